"""Options and exit statuses of the commands. Nothing here imports torch, so --help is fast."""

import argparse
import os
import secrets
import sys
import traceback

from nanomodels.generation.settings import GenerationSettings
from nanomodels.text.files import one_line, read_json, read_text, say


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong option in one line, like every other error."""

    def __init__(self, prog, description, examples):
        super().__init__(
            prog=prog,
            allow_abbrev=False,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message):
        say(f"{self.prog}: error: {message} (see {self.prog} --help)")
        self.exit(2)


def exit_status(prog, work):
    """Call work() and return the exit status; an error becomes one line on stderr.

    0 is success, 1 a fault of this program, 2 bad input or too little memory or disk, 130 Ctrl-C,
    141 a closed pipe.
    """
    try:
        work()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of stdout has ended
        return 141
    except SystemExit:
        raise
    except BaseException as error:  # all: a panic in tiktoken's Rust code is no Exception
        # torch reports too little memory as a RuntimeError.
        too_large = isinstance(error, RuntimeError) and "memory" in str(error)
        if too_large or isinstance(error, (ValueError, OSError, MemoryError)):
            say(f"{prog}: error: {one_line(error)}")
            return 2
        if os.environ.get("NANOMODELS_TRACEBACK"):
            say(traceback.format_exc().rstrip())
        say(
            f"{prog}: error: this is a fault of nanomodels; please report it: "
            f"{type(error).__name__}: {one_line(error)[:300]} (NANOMODELS_TRACEBACK=1 shows where)"
        )
        return 1
    return 0


def read_prompts(args):
    """The prompts: the argument, the lines of the file, or piped input; None: chat on a terminal.

    Raises ValueError for no prompt, an empty one, or text that is not UTF-8.
    """
    if "" in args.stop:
        raise ValueError("--stop is empty; give the text to end before")
    if args.prompt_file is not None:
        if args.prompt is not None:
            raise ValueError("give a prompt or --prompt-file, not both")
        text = read_text(args.prompt_file, may_be_pipe=True, keep_returns=True)
        lines = text.removeprefix("\ufeff").split("\n")  # a lone carriage return ends no line
        prompts = [line.removesuffix("\r") for line in lines if line.strip()]
    elif args.prompt is not None:
        prompts = [args.prompt]
    elif sys.stdin is not None and sys.stdin.isatty():
        return None
    else:
        try:
            text = sys.stdin.read() if sys.stdin is not None else ""
            prompts = [text.removeprefix("\ufeff").rstrip("\r\n")]
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8 text ({error})") from None
    if not prompts or not all(prompts):
        where = args.prompt_file or (
            "the argument" if args.prompt is not None else "standard input"
        )
        raise ValueError(f"the prompt is empty ({where}); give some text")
    for text in (*prompts, *args.stop, args.system or ""):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("the prompt is not UTF-8 text")
    return prompts


def generation_settings(args, config):
    """The GenerationSettings: the options, then generation_config.json (a dict), then defaults."""
    settings = {
        "temperature": 0.0,
        "seed": secrets.randbits(32) if args.seed is None else args.seed,
        "num_samples": args.num_samples,
        "draft_lookup": args.draft_lookup,
        "cuda_graph": args.cuda_graph,
    }
    names = ("repetition_penalty", "max_new_tokens")
    if config.get("do_sample") is True:
        settings["temperature"] = 1.0
        names += ("temperature", "top_k", "top_p", "min_p")
    settings |= {name: config[name] for name in names if config.get(name) is not None}
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    samples = args.num_samples > 1 or args.top_k or args.min_p or args.top_p not in (None, 1)
    if samples and settings["temperature"] == 0:
        settings["temperature"] = 1.0  # these options make no sense without sampling
    return GenerationSettings(**settings | given)


def read_tools(path):
    """The tools in a JSON file, in the form that the Hub's chat templates expect."""
    tools = read_json(path, list, may_be_pipe=True)
    for n, tool in enumerate(tools, 1):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not is_function(function):
            raise ValueError(
                f"{path}: entry {n} is no tool; each must be an object with a name, as "
                '{"name": ..., "description": ..., "parameters": {...}}'
            )
    return [t if "function" in t else {"type": "function", "function": t} for t in tools]


def is_function(entry):
    """Whether it has a name, and parameters that a chat template can read."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    parameters = entry.get("parameters") or {}
    return isinstance(parameters, dict) and isinstance(parameters.get("properties") or {}, dict)
