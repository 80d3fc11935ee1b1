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
        answer(chat, reply, quiet, Screen(not quiet))


def answer(chat, reply, quiet, screen=None):
    """Write a reply to the Screen as it comes, if there is one, and then its figures.

    Ctrl-C ends it early. Returns whether it was pressed.
    """
    if reply.forgotten:
        say(f"(the context is full: the oldest turns are forgotten, {reply.forgotten} of them)")
    completion, interrupted = reply.completion, False
    meter = Meter(chat.model, reply.prompt_tokens - reply.reused_tokens, reply.reused_tokens)
    try:
        for text in reply.steps():
            if not reply.ended:
                meter.step()
            if screen is not None:
                screen.show(completion, text)
    except KeyboardInterrupt:
        reply.close()
        interrupted = True
    if screen is not None:
        write("\n")
    report_unanswered([completion])
    if not quiet:
        meter.draft(reply.drafted, reply.accepted)
        meter.report(len(completion.tokens), reply.settings)
    if completion.finish_reason == "context":
        say("(the context is full: the answer is cut off)")
    return interrupted
