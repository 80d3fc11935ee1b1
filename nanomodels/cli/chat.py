"""A chat on the terminal."""

from nanomodels.cli.commands import is_command, run_command
from nanomodels.cli.terminal import (
    Meter,
    Screen,
    note,
    report_unanswered,
    show_prefill,
    write,
)
from nanomodels.generation.prompts import TextEncoder
from nanomodels.text.files import one_line


def converse(chat, messages, quiet):
    """Answer what a MessageReader reads, in a nanomodels.Chat, until the user leaves."""
    if not quiet:
        chat.progress = show_prefill
    talk = Talk(chat, quiet)
    begin = "What you type is continued." if talk.raw else "Chat."
    note(f"{begin} /help lists the commands, Ctrl-D leaves.")
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
        self.meter, self.new_tokens = None, 0  # of the last answer

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
        """Write a reply as it comes; Ctrl-C ends it early."""
        if reply.forgotten:
            turns = "turn is" if reply.forgotten == 1 else f"{reply.forgotten} turns are"
            note(f"(the context is full: the oldest {turns} forgotten)")
        completion, screen, shown = reply.completion, Screen(not self.quiet), 0
        self.meter = Meter(self.chat.model, reply.prompt_tokens - reply.reused_tokens)
        try:
            for text in reply.steps():
                if completion.finish_reason is None:
                    self.meter.step()
                shown += len(text)
                screen.show(completion, text)
        except KeyboardInterrupt:
            reply.close()
            if not completion.tokens:
                note("(stopped; the message is taken back)")
                return
            screen.show(completion, completion.text[shown:])
        write("\n")
        self.meter.drafted, self.meter.accepted = reply.drafted, reply.accepted
        self.new_tokens = len(completion.tokens)
        self.report_end(completion)
        if not self.quiet:
            note(self.figures(reply))

    def report_end(self, completion):
        """Say why an answer is not whole."""
        report_unanswered([completion])
        if completion.finish_reason == "context":
            note("(the context is full: the answer is cut off)")
        elif completion.finish_reason == "length" and completion.answered and not self.raw:
            note(f"(cut off after {self.new_tokens} tokens; see --max-new-tokens)")

    def figures(self, reply):
        """One line on an answer: tokens read and generated, their rate, how full the context is."""
        figures = [f"{reply.prompt_tokens - reply.reused_tokens} + {self.new_tokens} tokens"]
        if reply.reused_tokens:
            figures[0] += f" ({reply.reused_tokens} reused)"
        rate = self.meter.rate(self.new_tokens)
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
