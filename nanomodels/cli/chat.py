"""A chat on the terminal."""

import contextlib
import sys

from nanomodels.cli.terminal import (
    Meter,
    Screen,
    report_unanswered,
    show_prefill,
    write,
)
from nanomodels.text.files import say


def converse(chat, quiet):
    """Answer each line from stdin in a nanomodels.Chat."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (line editing for input())

    if not quiet:
        say("Chat: an empty line, Ctrl-D or Ctrl-C ends it.")
        chat.progress = show_prefill
    while True:
        try:
            text = input("> " if sys.stdout.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        except UnicodeDecodeError:
            say("(that was not UTF-8 text)")
            continue
        if not text.strip():
            return
        try:
            reply = chat.ask(text)
        except ValueError as error:
            say(f"({error})")
            continue
        if reply.forgotten:
            say(f"(the context is full: the oldest {reply.forgotten} turns are forgotten)")
        answer(chat, reply, quiet)


def answer(chat, reply, quiet):
    """Write a reply as it comes; Ctrl-C ends it early."""
    completion, screen = reply.completion, Screen(not quiet)
    meter = Meter(chat.model, reply.prompt_tokens - reply.reused_tokens)
    try:
        for text in reply.steps():
            if completion.finish_reason is None:
                meter.step()
            screen.show(completion, text)
    except KeyboardInterrupt:
        pass
    write("\n")
    report_unanswered([completion])
    if not quiet:
        meter.drafted, meter.accepted = reply.drafted, reply.accepted
        meter.report(len(completion.tokens), chat.settings)
    if completion.finish_reason == "context":
        say("(the context is full: the answer is cut off)")
