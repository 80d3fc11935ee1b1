"""Continue a prompt, or chat, with a NanoChat, Nemotron or Nemotron-H checkpoint.

The text goes to stdout as it is generated, and numbers go to stderr. The prompt is the argument, or
standard input if that is piped, or each line of --prompt-file. Without a prompt, on a terminal, a
chat begins. A checkpoint with a chat template answers the prompt as a user's message; with --raw it
continues the text. A model's reasoning goes to stderr, or with --json into "reasoning". What
nanochat's calculator was asked is no text; with --json it is in "parts".
Of several texts each comes after a line such as ==> line 3, sample 2 <== or, with --json, as a line
of JSON. A prompt that is longer than the context gets an empty one, in a file.
"""

import time
from dataclasses import replace
from pathlib import Path

from nanomodels.checkpoint.finding import SHIPPED, find, origin
from nanomodels.cli.batch import run_batch, write_json
from nanomodels.cli.command import Parser, exit_status, generation_settings, read_tools
from nanomodels.cli.history import History, history_path
from nanomodels.cli.job import this_job
from nanomodels.cli.line_input import MessageReader, SharedMessages
from nanomodels.cli.progress import Progress
from nanomodels.cli.rows import shared_rows
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
  echo "What is 12 + 30?" | {command} --quiet

NAME is a folder, a folder in weights/, a shipped model (nanochat-tiny, nemotron-tiny,
nemotron-h-tiny), or org/name or org/name@revision of the Hugging Face Hub. That one is downloaded
if it is not in the Hub's cache and huggingface_hub is installed. Sampling settings that are not
given come from the checkpoint's generation_config.json. Without that file, generation is greedy.
Exit status: 0, 2 for bad input, 130 after Ctrl-C, 1 for a fault of this program; with the
environment variable NANOMODELS_TRACEBACK=1 it says where.
"""
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
        "--document",
        type=Path,
        metavar="FILE",
        help="text to read first: added to the system message, or the beginning of raw text",
    )
    add("--save-state", type=Path, metavar="FILE", help="save what was read and said")
    add("--load-state", type=Path, metavar="FILE", help="go on from what --save-state wrote")
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
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="[auto]")
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
    if args.chat and (args.prompt is not None or args.prompt_file is not None):
        parser.error("a chat takes no prompt; type it when the chat has begun")
    if args.plan and (args.prompt is not None or args.prompt_file is not None):
        parser.error("--plan takes no prompt")
    return args


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

    from nanomodels.cache import check_target
    from nanomodels.cli.chat import converse
    from nanomodels.generation.calculator import calculator_for
    from nanomodels.linears.memory import keep_memory

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu")
    dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    if args.draft_lookup < 0:
        raise ValueError(f"--draft-lookup is {args.draft_lookup}; it must be 0 or more")
    texts = len(rows or ()) * args.num_samples
    if args.draft_lookup and texts > 1:
        raise ValueError("--draft-lookup goes with one prompt and one sample")
    if (args.save_state or args.load_state) and texts > 1:
        raise ValueError("--save-state and --load-state go with one prompt and one sample")
    if job.is_parallel and (args.save_state or args.load_state or args.cuda_graph):
        raise ValueError("--save-state, --load-state and --cuda-graph do not go with torchrun")
    if args.save_state is not None:
        check_target(args.save_state)  # before the work
    if args.cuda_graph and (device != "cuda" or args.draft_lookup):
        raise ValueError("--cuda-graph goes with --device cuda, and not with --draft-lookup")
    if rows is None and (args.json or args.num_samples != 1):
        raise ValueError("give a prompt: a chat knows neither --json nor --num-samples")
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
    model, tokenizer = load_checkpoint(args, folder, device, dtype)
    if args.prompt_file is None and args.num_samples == 1:
        answer_once(args, start_chat(args, settings, model, tokenizer), rows)
        return
    calculator = calculator_for(tokenizer)
    settings = replace(settings, vocab_size=tokenizer.vocab_size, calculator=calculator)
    run_batch(args, model, settings, rows, start_encoder(args, tokenizer))


def messages_for(job):
    """What reads the messages of a chat."""
    reader = MessageReader(History(history_path())) if job.rank == 0 else None
    return SharedMessages(job, reader) if job.is_parallel else reader


def load_checkpoint(args, folder, device, dtype):
    """The model and the tokenizer in a folder."""
    from nanomodels import Tokenizer
    from nanomodels.checkpoint.loading import finish, read
    from nanomodels.checkpoint.names import left_out
    from nanomodels.config import parameter_count
    from nanomodels.linears.sizes import device_of, formats

    job, began = this_job(), time.perf_counter()
    with Progress("quantising: " if args.quantize else "loading: ", "GB", args.quiet) as progress:
        source = read(folder, args.era, quantize=args.quantize, ranks=job.ranks)
        job.connect(device)
        model = finish(source, job.device(device), dtype, progress)
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
            write_json(row, reply.prompt_tokens, 0, reply.completion, reply.settings, chat.encoder)
    if args.save_state is not None:
        with chat.progress:
            chat.save(args.save_state)
        if not args.quiet:
            report("saved", f"{chat.prefix.cache.length} tokens", f"{args.save_state}")
