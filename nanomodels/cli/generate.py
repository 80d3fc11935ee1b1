"""Continue a prompt, or chat, with a NanoChat, Nemotron or Nemotron-H checkpoint.

The text goes to stdout as it is generated, and numbers go to stderr. The prompt is the argument, or
standard input if that is piped, or each line of --prompt-file. Without a prompt, on a terminal, a
chat begins. A checkpoint with a chat template answers the prompt as a user's message; with --raw it
continues the text. A model's reasoning goes to stderr, or with --json into "reasoning". What
nanochat's calculator was asked is no text; with --json it is in "parts".
Of several texts each comes after a line such as ==> line 3, sample 2 <== or, with --json, as a line
of JSON. A prompt that is longer than the context gets an empty one, in a file.
"""

import argparse
import re
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from nanomodels.checkpoint.finding import SHIPPED, find, origin
from nanomodels.cli.batch import Text, run_batch, write_json
from nanomodels.cli.command import Parser, exit_status, generation_settings, read_tools
from nanomodels.cli.history import History, history_path
from nanomodels.cli.job import this_job
from nanomodels.cli.line_input import MessageReader, SharedMessages
from nanomodels.cli.output import OutputFile
from nanomodels.cli.progress import Progress
from nanomodels.cli.rows import shared_rows
from nanomodels.cli.score import score_rows
from nanomodels.cli.start import catch_interrupts
from nanomodels.cli.terminal import Screen, discard_stdout, report, use_utf8
from nanomodels.generation.settings import generation_config
from nanomodels.text.files import read_text

EXAMPLES = """examples:
  {command} "What is the capital of France?"
  {command} --raw "ROMEO" --temperature 0.8 --num-samples 3
  {command} --model nemotron-tiny "Once upon a time"
  {command} --model nvidia/Nemotron-Mini-4B-Instruct --quantize int4 "Why is the sky blue?"
  {command} --prompt-file questions.txt --json > answers.jsonl
  {command} "What is the capital of France?" --explain france.html
  {command} --score texts.txt > scores.jsonl
  echo "What is 12 + 30?" | {command} --quiet

NAME is a folder, a folder in weights/, a shipped model (nanochat-tiny, nemotron-tiny,
nemotron-h-tiny), or org/name or org/name@revision of the Hugging Face Hub. That one is downloaded
if it is not in the Hub's cache and huggingface_hub is installed. Sampling settings that are not
given come from the checkpoint's generation_config.json. Without that file, generation is greedy.
Exit status: 0, 2 for bad input, 130 after Ctrl-C, 1 for a fault of this program; with the
environment variable NANOMODELS_TRACEBACK=1 it says where.
"""
# The options that go with --score.
SCORING = {
    "score", "model", "raw", "system", "think", "tools", "trust_text", "device", "dtype",
    "quantize", "era", "json", "logprobs", "quiet",
}  # fmt: skip
# What fingers type that know other programs.
HINTS = {
    "-m": "did you mean --model?",
    "-n": "did you mean --max-new-tokens?",
    "-f": "did you mean --prompt-file?",
    "-p": "the prompt needs no option",
    "--prompt": "the prompt needs no option",
}


def parse_arguments(argv, prog="generate.py"):
    parser = Parser(prog, __doc__, EXAMPLES, HINTS)
    add = parser.add_argument
    add("prompt", nargs="?", help="the text to answer or to continue")
    add(
        "--model",
        default=SHIPPED / "nanochat-tiny",
        metavar="NAME",
        help="a folder, a shipped model, or org/name of the Hub [nanochat-tiny]",
    )
    add("--raw", action="store_true", help="continue the text, without a chat template")
    add("--system", metavar="TEXT", help="system message of the chat")
    thinking = parser.add_mutually_exclusive_group().add_argument
    thinking("--think", action="store_true", default=None, help="reason before the answer")
    thinking("--no-think", action="store_false", dest="think", help="answer without reasoning")
    add(
        "--tools",
        type=Path,
        metavar="FILE",
        help='JSON list of the tools that may be called; --json has the calls in "tool_calls"',
    )
    add("--trust-text", action="store_true", help="names of control tokens in texts become tokens")
    add(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help="prompts, one a line, run as a batch; - is standard input; a line of a .jsonl file is "
        'a string, or an object with "prompt" or "messages", and, if need be, "system" and "id"',
    )
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the JSON lines of --prompt-file there; a run that was stopped goes on",
    )
    add("--shard", metavar="K/N", help="only part K of N of --prompt-file, counted from 1")
    add(
        "--document",
        type=Path,
        metavar="FILE",
        help="text to read first: added to the system message, or the beginning of raw text",
    )
    add("--save-state", type=Path, metavar="FILE", help="save what was read and said")
    add("--load-state", type=Path, metavar="FILE", help="go on from what --save-state wrote")
    add(
        "--explain",
        type=Path,
        metavar="FILE",
        help="write a page for a browser that shows what happened inside the model",
    )
    add(
        "--score",
        type=Path,
        metavar="FILE",
        help="generate nothing; write how likely each line of FILE is, as JSON: of a .jsonl file "
        'the "text", if need be after a "prompt" or "messages"; --logprobs K adds alternatives',
    )
    add("--max-new-tokens", type=int, metavar="N", help="at most N new tokens [256]")
    add("--temperature", type=float, metavar="T", help="0 is greedy; 1 is the model's own")
    add("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens; 0 is off")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the likeliest that make up P; 1 is off",
    )
    add("--min-p", type=float, metavar="P", help="drop those below P times the top probability")
    add("--repetition-penalty", type=float, metavar="R", help="above 1: less repetition; 1 is off")
    add("--seed", type=int, metavar="N", help="the same seed gives the same samples [random]")
    add("--num-samples", type=int, default=1, metavar="N", help="texts for each prompt [1]")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable")
    add(
        "--draft-lookup",
        type=int,
        default=0,
        metavar="N",
        help="draft up to N tokens from the text so far [0: off]",
    )
    add(
        "--device",
        type=device_name,
        default="auto",
        metavar="D",
        help="auto, cpu, cuda, or layers over several, as cuda:0,cuda:1 [auto]",
    )
    add("--cuda-graph", action="store_true", help="run each decode step as a CUDA graph")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="dtype of the weights [auto: the checkpoint's]",
    )
    add(
        "--quantize",
        choices=("int4", "int8"),
        help="store weights in 4 or 8 bits: less exact, and without AVX-512 not faster",
    )
    add("--plan", action="store_true", help="say what memory the model takes, and read no weights")
    add("--era", metavar="DATE", help="version of a nanochat training folder [from its tensors]")
    add("--json", action="store_true", help="write each text as a JSON object, one a line")
    add(
        "--logprobs",
        type=int,
        metavar="K",
        help="with --json: log-probabilities of each token and of the K likeliest",
    )
    add("--quiet", action="store_true", help="no numbers and no reasoning on stderr")
    parser.set_defaults(chat=prog == "nanomodels chat")
    args = parser.parse_args(argv)
    if args.chat and (args.prompt, args.prompt_file, args.score) != (None, None, None):
        parser.error("a chat takes no prompt; type it when the chat has begun")
    if args.score is not None:
        for name, value in vars(args).items():
            if value != parser.get_default(name) and name not in SCORING:
                option = name if name == "prompt" else f"--{name.replace('_', '-')}"
                parser.error(f"--score generates nothing; leave out {option}")
    if args.plan and (args.prompt is not None or args.prompt_file is not None):
        parser.error("--plan takes no prompt")
    return args


def device_name(text):
    """An argument that names a device, or several."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3}(,cuda:\d{1,3})*)?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r:.40} is none; give auto, cpu, cuda, or several as cuda:0,cuda:1"
        )
    return text


def main(argv=None, prog="generate.py"):
    status = exit_status(prog, lambda: run(parse_arguments(argv, prog)), this_job().speak)
    if status in (1, 2, 141):
        discard_stdout()
    return status


def run(args):
    use_utf8()
    if args.plan:
        from nanomodels.cli.plan import write_plan

        write_plan(args.model, args.era, args.json)
        return
    job = this_job()
    job.meet()
    rows = shared_rows(args)  # None: chat
    import torch  # only here, so that --help and wrong options are fast

    from nanomodels.cli.chat import converse
    from nanomodels.generation.calculator import calculator_for
    from nanomodels.linears.memory import keep_memory

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no CUDA device here; use --device cpu")
    dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    check_options(args, rows, device, job)
    output = None if args.output is None else open_output(args, rows)
    if output is not None and output.count == len(rows) * args.num_samples:
        if not args.quiet:
            report("total", f"{args.output} has all {output.count} texts")
        return
    if not job.is_parallel:  # there Ctrl-C ends the program at once
        catch_interrupts()
    folder = find(args.model)
    # Before loading, so that a bad setting is reported at once.
    settings = generation_settings(args, generation_config(folder))

    if device == "cpu":
        keep_memory()
    if rows is None:
        with messages_for(job) as messages:  # keeps what is typed meanwhile
            chat = start_chat(args, settings, *load_checkpoint(args, folder, device, dtype))
            converse(chat, messages, args.quiet)
        return
    with output or nullcontext():
        model, tokenizer = load_checkpoint(args, folder, device, dtype)
        if args.score is not None:
            score_rows(args, model, rows, start_encoder(args, tokenizer))
            return
        if not is_batch(args):
            answer_once(args, start_chat(args, settings, model, tokenizer), rows)
            return
        calculator = calculator_for(tokenizer)
        settings = replace(settings, vocab_size=tokenizer.vocab_size, calculator=calculator)
        run_batch(args, model, settings, rows, start_encoder(args, tokenizer), output)


def is_batch(args):
    return args.prompt_file is not None or args.num_samples > 1


def check_options(args, rows, device, job):
    """Raise ValueError for options that do not go together, or that this machine has not."""
    from nanomodels.cache import check_target

    if args.draft_lookup < 0:
        raise ValueError(f"--draft-lookup is {args.draft_lookup}; it must be 0 or more")
    for name in ("draft_lookup", "cuda_graph", "save_state", "load_state", "explain"):
        option = f"--{name.replace('_', '-')}"
        if getattr(args, name) and is_batch(args):
            raise ValueError(f"{option} goes with one prompt and one sample")
        if getattr(args, name) and name != "draft_lookup" and job.is_parallel:
            raise ValueError(f"{option} does not go with torchrun")
    if job.is_parallel and ":" in device:
        raise ValueError("under torchrun, --device is cpu or cuda: each process has its own")
    if args.explain is not None and not rows:
        raise ValueError("--explain goes with a prompt")
    for path in filter(None, (args.save_state, args.explain)):
        check_target(path)  # before the work
    if args.cuda_graph and (device != "cuda" or args.draft_lookup):
        raise ValueError("--cuda-graph goes with --device cuda, and not with --draft-lookup")
    if rows is None and (args.json or args.num_samples != 1):
        raise ValueError("give a prompt: a chat knows neither --json nor --num-samples")


def open_output(args, rows):
    """The OutputFile of --output, with the seed that it was begun with."""
    output = OutputFile(args.output, rows, args.num_samples)
    if output.seed is not None and args.seed not in (None, output.seed):
        raise ValueError(f"{args.output}: was begun with --seed {output.seed}; give another name")
    if output.seed is not None:
        args.seed = output.seed
    return output


def messages_for(job):
    """What reads the messages of a chat."""
    reader = MessageReader(History(history_path())) if job.rank == 0 else None
    return SharedMessages(job, reader) if job.is_parallel else reader


def load_checkpoint(args, folder, device, dtype):
    """The model and the tokenizer in a folder."""
    from nanomodels import Tokenizer, load
    from nanomodels.checkpoint.loading import finish, read, usable_devices
    from nanomodels.checkpoint.names import left_out
    from nanomodels.config import parameter_count
    from nanomodels.linears.sizes import device_of, formats

    job, began = this_job(), time.perf_counter()
    with Progress("quantising: " if args.quantize else "loading: ", "GB", args.quiet) as progress:
        if job.is_parallel:
            source = read(folder, args.era, quantize=args.quantize, ranks=job.ranks)
            job.connect(device)  # after a ValueError for sizes that cannot be cut
            model = finish(source, usable_devices(job.device(device)), dtype, progress)
        else:
            model = load(folder, device, dtype, progress, args.era, args.quantize)
    if not hasattr(model, "lm_head"):
        raise ValueError(f"{args.model}: a {type(model).__name__} makes no text")
    tokenizer = Tokenizer.load(folder)
    if not args.quiet:
        report(
            "load",
            f"{time.perf_counter() - began:.2f} s",
            origin(folder)[0],
            f"{parameter_count(model) / 1e6:.1f}M parameters",
            " and ".join(formats(model)),
            f"{device_of(model)}",
            *([f"1 of {job.count} processes"] if job.is_parallel else []),
        )
        if model.skipped:
            report("skipped", left_out(model.skipped))
    return model, tokenizer


def start_encoder(args, tokenizer):
    """The encoder of the prompts."""
    from nanomodels.generation.prompts import ChatEncoder, TextEncoder

    job, document = this_job(), None
    if args.document is not None:
        document = job.shared(lambda: read_text(args.document, may_be_pipe=True))
    if args.raw or tokenizer.chat_template is None:
        for option in ("system", "think", "tools"):
            if getattr(args, option) is not None:
                name = "no-think" if getattr(args, option) is False else option
                raise ValueError(f"--{name} needs a chat template, and there is none in use")
        return TextEncoder(tokenizer, document)
    texts = [text for text in (args.system, document) if text is not None]
    tools = None if args.tools is None else job.shared(lambda: read_tools(args.tools))
    try:
        return ChatEncoder(
            tokenizer, "\n\n".join(texts) if texts else None, args.think, tools, args.trust_text
        )
    except ValueError as error:
        raise ValueError(f"{args.model}: {error}") from None


def start_chat(args, settings, model, tokenizer):
    """The Chat of these options; with --load-state, the one in the file."""
    from nanomodels import Chat

    chat, encoder = Chat(model, tokenizer, raw=True, stop=args.stop), start_encoder(args, tokenizer)
    chat.encoder = encoder
    given = {"vocab_size": tokenizer.vocab_size, "calculator": chat.settings.calculator}
    chat.settings = replace(settings, **given)
    chat.progress = Progress("reading the prompt: ", "tokens", args.quiet)
    if args.load_state is not None:
        if args.system is not None or args.document is not None:
            raise ValueError("--load-state has its own --system and --document; leave these out")
        chat.load(args.load_state)
        given = {name: getattr(encoder, name, None) for name in ("think", "tools")}
        given["trust_text"] = args.trust_text or None
        chat.configure(**{name: value for name, value in given.items() if value is not None})
    return chat


def answer_once(args, chat, rows):
    """Answer the prompt, if there is one; then write the state, if --save-state is given."""
    from nanomodels.cli.chat import write_reply

    for row in rows:
        reply = chat.ask(row.messages[0]["content"])
        meter, interrupted = write_reply(reply, None if args.json else Screen(not args.quiet))
        if not args.quiet:
            meter.report(reply.new_tokens, reply.settings)
        if interrupted:
            raise KeyboardInterrupt
        if args.json:
            text = Text(row, reply.prompt_tokens, 0, reply.completion)
            write_json(text, reply.settings, chat.encoder)
        if args.explain is not None:
            write_page(args, chat)
    if args.save_state is not None:
        with chat.progress:
            chat.save(args.save_state)
        if not args.quiet:
            report("saved", f"{chat.prefix.cache.length} tokens", f"{args.save_state}")


def write_page(args, chat):
    """Write the page of --explain about the last answer."""
    from nanomodels import __version__
    from nanomodels.analysis.explaining import explain
    from nanomodels.cache import whole_file
    from nanomodels.linears.sizes import device_of, formats

    ids, count = chat.prefix.ids, chat.reply.prompt_tokens
    ids = ids[: chat.context_length]  # the last token of a full context is never read
    settings = chat.reply.settings
    about = {
        "model": str(args.model),
        "weights": " and ".join(formats(chat.model)),
        "device": str(device_of(chat.model)),
        "temperature": settings.temperature,
        "seed": settings.seed if settings.temperature else "none: greedy",
        "made by": f"nanomodels {__version__}",
    }
    with Progress("explaining: ", "tokens", args.quiet) as progress:
        page = explain(chat.model, chat.tokenizer, ids[:count], ids[count:], about, progress)
    with whole_file(args.explain) as partial:
        partial.write_text(page, encoding="utf-8")
    if not args.quiet:
        report("page", f"{len(page) / 1e6:.2f} MB", f"{args.explain}")
