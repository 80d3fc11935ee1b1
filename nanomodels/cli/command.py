"""Options and exit statuses of the commands. Nothing here imports torch, so --help is fast."""

import argparse
import difflib
import os
import secrets
import traceback

from nanomodels.cli.job import this_job
from nanomodels.generation.settings import settings_from
from nanomodels.text.files import one_line, read_json, say


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong option in one line, like every other error.

    {command} in the examples is what the user types. hints: {an option of other programs: text}.
    """

    def __init__(self, prog, description, examples, hints=()):
        super().__init__(
            prog=prog,
            allow_abbrev=False,
            description=description,
            epilog=examples.format(command=f"python {prog}" if prog.endswith(".py") else prog),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.hints = dict(hints)

    def parse_args(self, args=None):
        parsed, unknown = self.parse_known_args(args)
        options = [word.split("=")[0] for word in unknown if word.startswith("-")]
        if options:
            self.error(f"{options[0]} is no option; {self.hint(options[0])}".rstrip("; "))
        if unknown:
            self.error(f"unexpected {unknown[0]!r}; put a text of several words in quotes")
        return parsed

    def hint(self, option):
        """What somebody may want who types an option that is none."""
        options = [name for name in self._option_string_actions if name.startswith("--")]
        longer = [name for name in options if name.startswith(option) and len(option) > 3]
        similar = longer or difflib.get_close_matches(option, options, n=1)
        return self.hints.get(option) or (f"did you mean {similar[0]}?" if similar else "")

    def error(self, message):
        say(f"{self.prog}: error: {message} (see {self.prog} --help)")
        self.exit(2)


def exit_status(prog, work, speak=say):
    """Call work() and return the exit status; an error becomes one line, which speak() writes.

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
            speak(f"{prog}: error: {one_line(error)}")
            return 2
        if os.environ.get("NANOMODELS_TRACEBACK"):
            say(traceback.format_exc().rstrip())
        speak(
            f"{prog}: error: this is a fault of nanomodels; please report it: "
            f"{type(error).__name__}: {one_line(error)[:300]} (NANOMODELS_TRACEBACK=1 shows where)"
        )
        return 1
    return 0


def generation_settings(args, config):
    """The GenerationSettings: the options, then generation_config.json (a dict), then defaults."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    seed = this_job().shared(lambda: secrets.randbits(32)) if args.seed is None else args.seed
    names = ("num_samples", "draft_lookup", "cuda_graph", "logprobs")
    return settings_from(config, given | {"seed": seed} | {n: getattr(args, n) for n in names})


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
