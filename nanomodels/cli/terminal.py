"""What generate.py writes: the text on stdout, the reasoning and the numbers on stderr."""

import os
import sys
import time

from nanomodels.cli.job import this_job
from nanomodels.cli.wrap import Output
from nanomodels.text.files import printable, say, show


class Screen:
    """Shows one completion as it comes: the answer on stdout, the reasoning on stderr.

    On a terminal, no control character of the model gets there, and no word is broken at the edge.
    A pipe or a file gets the text as it is.
    """

    def __init__(self, reasoning):
        self.reasoning = reasoning  # whether to show it
        self.shown = 0  # characters of the reasoning
        self.closed = False
        self.answer, self.thought = Output(sys.stdout), Output(sys.stderr)

    def show(self, completion, text):
        """Write `text`, which is new in the answer, and what is new in the reasoning."""
        ended = completion.finish_reason is not None
        if self.reasoning and completion.reasoning and not self.closed:
            if self.shown == 0:
                show(dim("<think>\n"))
            so_far = completion.splitter.reasoning.lstrip()
            show(dim(self.thought.push(so_far[self.shown :])))
            self.shown = len(so_far)
            self.closed = completion.answered or ended
            if self.closed:
                end = "\n" * (not so_far.endswith("\n")) + "</think>\n" * completion.answered
                show(dim(self.thought.finish() + end))
        write(self.answer.push(text) + (self.answer.finish() if ended else ""))


class Meter:
    """Times a generation and reports the figures on stderr."""

    def __init__(self, model, prompt_tokens, reused=0):
        """prompt_tokens are those that are read; reused is how many more a cache has."""
        self.model, self.prompt_tokens, self.reused = model, prompt_tokens, reused
        self.times = [time.perf_counter()]
        self.drafted = self.accepted = 0

    def draft(self, drafted, accepted):
        """Count the tokens of a draft."""
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted

    def step(self):
        """Note that a token has come, in each row."""
        self.times.append(time.perf_counter())

    def rate(self, new_tokens):
        """Tokens in a second, after the first step; None if there was only that one."""
        steps = len(self.times) - 2
        if steps < 1:
            return None
        return new_tokens * steps / (steps + 1) / (self.times[-1] - self.times[1])

    def report(self, new_tokens, settings):
        """Four lines of figures."""
        from nanomodels.linears.sizes import bytes_per_token, device_of

        if len(self.times) < 2:
            return
        first = self.times[1] - self.times[0]
        report(
            "prompt",
            f"{self.prompt_tokens} tokens",
            *([f"{self.reused} reused"] if self.reused else []),
            f"{self.prompt_tokens / first:.0f} tokens/s",
            f"first token after {first:.3f} s",
        )
        figures = [f"{new_tokens} tokens"]
        if len(self.times) > 2:
            steps = len(self.times) - 2
            seconds = self.times[-1] - self.times[1]
            size = bytes_per_token(self.model)
            figures += [
                f"{self.rate(new_tokens):.1f} tokens/s",
                f"{size * (steps - self.accepted) / seconds / 1e9:.2f} GB/s",
            ]
        if settings.temperature:
            figures.append(f"seed {settings.seed}")
        report("new", *figures)
        if self.drafted:
            report("drafts", f"{self.drafted} tokens, {self.accepted} of them right")
        report("memory", f"{peak_memory(device_of(self.model)) / 1e6:.0f} MB peak")


def report(name, *figures):
    """One line of figures on stderr."""
    tell(f"{name:8}{', '.join(figures)}")


def dim(text):
    """A text for stderr, in faint letters where that is a terminal with colours."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    colours = os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
    return f"\033[2m{text}\033[0m" if text and terminal and colours else text


def tell(text, style=str):
    """A line on stderr, not broken within words."""
    output = Output(sys.stderr)
    show(style(output.push(printable(text)) + output.finish()) + "\n")


def note(text):
    """A line on stderr that is no part of the conversation."""
    tell(text, dim)


def report_unanswered(completions):
    """One line if completions ended within the reasoning, and not by Ctrl-C."""
    rows = completions
    if count := sum(not row.answered and row.finish_reason != "interrupted" for row in rows):
        which = "the text" if len(rows) == 1 else f"{count} of {len(rows)} texts"
        say(f"({which} ended before the answer, within the reasoning; see --max-new-tokens)")


def peak_memory(device):
    """Bytes: on a GPU of the device, else of this process; of several, of the largest."""
    if device.type == "cuda":
        import torch

        return this_job().largest(torch.cuda.max_memory_allocated(device))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return this_job().largest(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def use_utf8():
    """Read and write UTF-8, whatever the locale; raises ValueError if stdout is closed."""
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    for stream in (sys.stdin, sys.stdout):
        if stream is not None:
            stream.reconfigure(encoding="utf-8")


def write(text):
    """Write to stdout at once."""
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def discard_stdout():
    """Throw away what is still buffered: at exit, writing it would fail again."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
