"""Continue a prompt, or chat, with a NanoChat, Nemotron or Nemotron-H checkpoint.

The text goes to stdout as it is generated, and numbers go to stderr. The prompt is the argument, or
standard input if that is piped, or each line of --prompt-file. Without a prompt, on a terminal, a
chat begins. A checkpoint with a chat template answers the prompt as a user's message; with --raw it
continues the text. A model's reasoning goes to stderr, or with --json into "reasoning".
Of several texts each comes after a line such as ==> line 3, sample 2 <== or, with --json, as a line
of JSON. A prompt that is longer than the context gets an empty one, in a file.
"""

import time
from dataclasses import replace
from pathlib import Path

from nanomodels.cli.batch import json_line, run_batch
from nanomodels.cli.command import (
    Parser,
    exit_status,
    generation_settings,
    read_tools,
)
from nanomodels.cli.progress import Progress
from nanomodels.cli.rows import read_rows
from nanomodels.cli.start import catch_interrupts
from nanomodels.cli.terminal import (
    Completion,
    Meter,
    Screen,
    discard_stdout,
    produce,
    report,
    report_unanswered,
    use_utf8,
    write,
)
from nanomodels.text.files import read_json

EXAMPLES = """examples:
  python generate.py "What is the capital of France?"
  python generate.py --raw "ROMEO" --temperature 0.8 --num-samples 3
  python generate.py --model weights/nemotron-tiny "Once upon a time"
  python generate.py --prompt-file questions.txt --json > answers.jsonl
  echo "What is 12 + 30?" | python generate.py --quiet

Sampling settings that are not given come from the checkpoint's generation_config.json.
Without that file, generation is greedy. Exit status: 0, 2 for bad input, 130 after Ctrl-C, 1 for
a fault of this program; with the environment variable NANOMODELS_TRACEBACK=1 it says where.
"""
WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


def parse_arguments(argv):
    parser = Parser("generate.py", __doc__, EXAMPLES)
    add = parser.add_argument
    add("prompt", nargs="?", help="the text to answer or to continue")
    add(
        "--model",
        type=Path,
        default=WEIGHTS / "nanochat-tiny",
        metavar="FOLDER",
        help="checkpoint [nanochat-tiny]",
    )
    add("--raw", action="store_true", help="continue the text, without a chat template")
    add("--system", metavar="TEXT", help="system message of the chat")
    thinking = parser.add_mutually_exclusive_group().add_argument
    thinking("--think", action="store_true", default=None, help="reason before the answer")
    thinking("--no-think", action="store_false", dest="think", help="answer without reasoning")
    add("--tools", type=Path, metavar="FILE", help="JSON list of the tools that may be called")
    add("--trust-text", action="store_true", help="names of control tokens in texts become tokens")
    add(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help="prompts, one a line, run as a batch; - is standard input; a line of a .jsonl file is "
        'a string, or an object with "prompt" or "messages", and, if need be, "system" and "id"',
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
    add("--era", metavar="DATE", help="version of a nanochat training folder [from its tensors]")
    add("--json", action="store_true", help="write each text as a JSON object, one a line")
    add("--quiet", action="store_true", help="no numbers and no reasoning on stderr")
    return parser.parse_args(argv)


def main(argv=None):
    status = exit_status("generate.py", lambda: run(parse_arguments(argv)))
    if status in (1, 2, 141):
        discard_stdout()
    return status


def run(args):
    use_utf8()
    rows = read_rows(args)  # None: chat
    import torch  # only here, so that --help and wrong options are fast

    from nanomodels import Tokenizer, load
    from nanomodels.checkpoint.names import left_out
    from nanomodels.linears.memory import keep_memory
    from nanomodels.linears.sizes import device_of, formats, parameter_count

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu")
    dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    if args.draft_lookup < 0:
        raise ValueError(f"--draft-lookup is {args.draft_lookup}; it must be 0 or more")
    if args.draft_lookup and rows is not None and len(rows) * args.num_samples != 1:
        raise ValueError("--draft-lookup goes with one prompt and one sample")
    if args.cuda_graph and (device != "cuda" or args.draft_lookup):
        raise ValueError("--cuda-graph goes with --device cuda, and not with --draft-lookup")
    # Before loading, so that a bad setting is reported at once.
    settings = generation_settings(args, generation_config(args.model))

    catch_interrupts()
    if device == "cpu":
        keep_memory()
    began = time.perf_counter()
    with Progress("quantising: " if args.quantize else "loading: ", "GB", args.quiet) as progress:
        model = load(args.model, device, dtype, progress, args.era, args.quantize)
    if not hasattr(model, "lm_head"):
        raise ValueError(f"{args.model}: a {type(model).__name__} makes no text")
    tokenizer = Tokenizer.load(args.model)
    settings = replace(settings, vocab_size=tokenizer.vocab_size)
    if not args.quiet:
        report(
            "load",
            f"{time.perf_counter() - began:.2f} s",
            args.model.resolve().name,
            f"{parameter_count(model) / 1e6:.1f}M parameters",
            " and ".join(formats(model)),
            f"{device_of(model)}",
        )
        if model.skipped:
            report("skipped", left_out(model.skipped))
    chat = start_chat(args, tokenizer)
    if rows is None:
        from nanomodels.cli.chat import converse

        if not chat:
            raise ValueError("give a prompt: only a checkpoint with a chat template can chat")
        if args.json or args.num_samples != 1:
            raise ValueError("give a prompt: a chat knows neither --json nor --num-samples")
        converse(model, tokenizer, chat, settings, args.stop, args.quiet)
        return
    prompts = [row.encode(tokenizer, chat) for row in rows]
    if args.prompt_file is not None or args.num_samples > 1:
        run_batch(args, model, tokenizer, settings, rows, prompts)
    else:
        complete(args, model, tokenizer, settings, rows[0], prompts[0])


def generation_config(folder):
    """The checkpoint's generation_config.json, or nanochat's own defaults for its folders."""
    from nanomodels.nanochat import GENERATION_CONFIG

    path = folder / "generation_config.json"
    if path.is_file():
        return read_json(path)
    return GENERATION_CONFIG if folder.is_dir() and not (folder / "config.json").is_file() else {}


def start_chat(args, tokenizer):
    """The Chat that encodes the prompts; None for raw text."""
    from nanomodels.generation.conversation import Chat

    if args.raw or tokenizer.chat_template is None:
        for option in ("system", "think", "tools"):
            if getattr(args, option) is not None:
                name = "no-think" if getattr(args, option) is False else option
                raise ValueError(f"--{name} needs a chat template, and there is none in use")
        return None
    tools = None if args.tools is None else read_tools(args.tools)
    try:
        return Chat(
            tokenizer,
            system=args.system,
            think=args.think,
            tools=tools,
            trust_text=args.trust_text,
        )
    except ValueError as error:
        raise ValueError(f"{args.model}: {error}") from None


def complete(args, model, tokenizer, settings, row, prompt):
    """Write the text for one prompt, as it comes."""
    from nanomodels import generate_batch

    ids = prompt.ids
    completion = Completion(tokenizer, args.stop, prompt, model.context_length + 1 - len(ids))
    reading = Progress("reading the prompt: ", "tokens", args.quiet)
    meter = Meter(model, len(ids))
    steps = generate_batch(model, [ids], settings, progress=reading, on_draft=meter.draft)
    show = (lambda completion, text: None) if args.json else Screen(not args.quiet).show
    with reading:
        interrupted = produce([completion], steps, settings.max_new_tokens, meter, show)
    steps.close()
    if not args.json:
        write("\n")
    elif not interrupted:
        write(json_line(row, ids, 0, completion, settings))
    report_unanswered([completion])
    if not args.quiet:
        meter.report(len(completion.tokens), settings)
    if interrupted:
        raise KeyboardInterrupt
