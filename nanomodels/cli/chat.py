"""A chat on the terminal."""

from contextlib import nullcontext

from nanomodels.cli.commands import is_command, run_command
from nanomodels.cli.terminal import (
    Meter,
    Screen,
    note,
    report_unanswered,
    write,
)
from nanomodels.generation.prompts import TextEncoder
from nanomodels.text.files import one_line


def converse(chat, messages, quiet):
    """Answer what a MessageReader reads, in a nanomodels.Chat, until the user leaves."""
    talk = Talk(chat, quiet)
    begin = "What you type is continued." if talk.raw else "Chat."
    note(f"{begin} /help lists the commands, Ctrl-D leaves.")
    if chat.turns:  # from --load-state
        note(f"({talk.summary()})")
    while True:
        try:
            talk.take(*messages.read())
        except EOFError:
            return
        except KeyboardInterrupt:
            talk.before.clear()
            note("(cleared; Ctrl-D or /exit leaves)")
        except UnicodeDecodeError:
            note("(that was not UTF-8 text)")


class Talk:
    """A chat, and what its commands need besides."""

    def __init__(self, chat, quiet):
        self.chat, self.quiet = chat, quiet
        self.before = []  # texts of files, which go before the next message
        self.files = set()  # where this conversation has been saved, or comes from
        self.meter, self.reply = None, None  # of the last answer

    @property
    def raw(self):
        """Whether the text goes on, without a chat template."""
        return isinstance(self.chat.encoder, TextEncoder)

    def take(self, text, is_block):
        """Answer a message, or run it as a command; EOFError: leave."""
        if not text.strip():
            return
        try:
            reply = self.reply_to(text, is_block)
        except (ValueError, OSError) as error:
            note(f"({one_line(error)})")
            return
        if reply is not None:
            self.answer(reply)

    def reply_to(self, text, is_block):
        """The Reply to a message or a command; None if a command has none."""
        if not is_block:
            if text in ("exit", "quit"):
                raise ValueError("/exit or Ctrl-D leaves")
            if is_command(text):
                return run_command(self, text)
            if text.startswith(" /"):
                text = text[1:]
        text = "\n\n".join([*self.before, text])
        self.before.clear()
        if self.raw and self.chat.turns:
            text = "\n" + text  # as on the screen
        return self.chat.ask(text)

    def answer(self, reply):
        """Write a reply as it comes, and a line of figures."""
        meter, _ = write_reply(reply, Screen(not self.quiet))
        if not reply.new_tokens and reply.finish_reason == "interrupted":
            note("(stopped; the chat is as it was before)")
            return
        self.meter, self.reply = meter, reply
        completion = reply.completion
        if completion.finish_reason == "length" and completion.answered and not self.raw:
            note(f"(cut off after {reply.new_tokens} tokens; see --max-new-tokens)")
        if not self.quiet:
            note(self.figures(reply))

    def figures(self, reply):
        """One line on an answer: tokens read and generated, their rate, how full the context is."""
        figures = [f"{self.meter.prompt_tokens} + {reply.new_tokens} tokens"]
        if reply.reused_tokens:
            figures[0] += f" ({reply.reused_tokens} reused)"
        rate = self.meter.rate(reply.new_tokens)
        if rate is not None:
            figures.append(f"{rate:.{0 if rate >= 10 else 1}f}/s")
        return ", ".join([*figures, f"{self.length} of the context"])

    @property
    def length(self):
        return f"{self.chat.length} of {self.chat.context_length}"

    def summary(self):
        """How long the conversation is."""
        turns = len(self.chat.turns)
        return f"{turns} turn{'s' * (turns != 1)}, {self.length} tokens of the context"


def write_reply(reply, screen):
    """Write a reply to a Screen as it comes, if there is one; Ctrl-C ends it early.

    Returns its Meter, and whether Ctrl-C was pressed.
    """
    if reply.forgotten:
        turns = "turn is" if reply.forgotten == 1 else f"{reply.forgotten} turns are"
        note(f"(the context is full: the oldest {turns} forgotten)")
    completion, interrupted, shown = reply.completion, False, 0
    read = reply.prompt_tokens - reply.reused_tokens
    meter = Meter(reply.chat.model, read, reply.reused_tokens)
    try:
        with reply.chat.progress or nullcontext():
            for text in reply.steps():
                if not reply.ended:
                    meter.step()
                shown += len(text)
                if screen is not None:
                    screen.show(completion, text)
    except KeyboardInterrupt:
        reply.close()
        interrupted = True
        if screen is not None:
            screen.show(completion, completion.text[shown:])
    if screen is not None and (completion.tokens or not interrupted):
        write("\n")
    meter.draft(reply.drafted, reply.accepted)
    report_unanswered([completion])
    if completion.finish_reason == "context":
        note("(the context is full: the answer is cut off)")
    return meter, interrupted
