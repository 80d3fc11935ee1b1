"""Token by token to text: what is certain, without stop strings, and apart from the reasoning."""

from nanomodels.generation.calculator import Parts
from nanomodels.text import tool_calls

# Special tokens that stay in the text: without them it makes no sense. All others are left out.
OPEN, CLOSE = "<think>", "</think>"
MARKUP = (OPEN, CLOSE, *tool_calls.MARKS, *tool_calls.MARKS.values())


class TextStream:
    """Takes tokens and returns text as soon as it is certain.

    It returns whole characters only. stop is a list of strings: the text ends before the first one
    that appears, and then `stopped` is True. No part of a stop string is ever returned. With a
    ReasoningSplitter the text is the answer alone, and stop strings count only in the answer.

    The expressions and results of nanochat's calculator are no text; `parts` has them. Neither a
    character nor a stop string reaches across them.
    """

    def __init__(self, tokenizer, stop=(), splitter=None):
        self.tokenizer, self.decoder = tokenizer, tokenizer.stream(keep=MARKUP)
        self.splitter = splitter
        self.stop = [text for text in stop if text]
        self.pending = ""  # text that may still become a stop string
        self.stopped = False
        self.reader = Parts(tokenizer)
        self.found = []  # the parts: (kind, text), or (kind, tokens) of an expression or result

    def push(self, token):
        """Add a token; return the text that is now certain."""
        self.reader.push(token)
        if self.reader.kind == "text":
            text = self.decoder.push(token)
            return self.keep(self.release(self.splitter.push(text) if self.splitter else text))
        if self.reader.tokens:
            return ""
        text = self.finish()
        self.found.append((self.reader.kind, self.reader.tokens))  # the reader adds to this list
        return text

    def finish(self):
        """Return the rest of the text, after the last token or before a calculation."""
        text = self.decoder.finish()
        if self.splitter:
            text = self.splitter.push(text) + self.splitter.finish()
        text = self.release(text)
        text, self.pending = text + self.pending, ""
        return self.keep(text)

    def keep(self, text):
        """Remember text that is returned."""
        self.found.append(("text", text))
        return text

    @property
    def parts(self):
        """The answer as nanochat's chat format has it, which is also the content of a message for
        Tokenizer.encode_chat: [{"type": "text", "python" or "python_output", "text": ...}, ...].
        None for an answer without calculations.
        """
        if all(kind == "text" for kind, _ in self.found):
            return None
        parts = []
        for kind, content in self.found:
            if kind != "text":
                parts.append({"type": kind, "text": self.tokenizer.decode(content)})
            elif parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += content
            elif content:
                parts.append({"type": "text", "text": content})
        return parts

    def release(self, text):
        """Add text; return what cannot be part of a stop string."""
        if self.stopped:
            return ""
        self.pending += text
        starts = [at for at in map(self.pending.find, self.stop) if at >= 0]
        if starts:
            self.stopped = True
            text, self.pending = self.pending[: min(starts)], ""
            return text
        cut = len(self.pending) - begun(self.pending, self.stop)
        text, self.pending = self.pending[:cut], self.pending[cut:]
        return text


def begun(text, marks):
    """How many characters at the end of the text begin a mark that is not complete yet."""
    lengths = (n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n]))
    return max(lengths, default=0)


class ReasoningSplitter:
    """Takes text and returns the part that belongs to the answer; collects the `reasoning`.

    The reasoning ends at </think>. It begins with <think> at the start of the text, or before the
    text if the prompt ends in <think> (opened). White space after </think> belongs to neither.
    `state` is "start", "reasoning", "gap" or "answer". If it is "reasoning" at the end, there is no
    answer.
    """

    def __init__(self, opened=False):
        self.state = "reasoning" if opened else "start"
        self.reasoning = ""  # so far
        self.pending = ""  # text that may still become <think> or </think>

    def push(self, text):
        """Add text; return the part of the answer that is now certain."""
        self.pending += text
        if self.state == "start":
            start = self.pending.lstrip()
            if start.startswith(OPEN):
                self.state, self.pending = "reasoning", start.removeprefix(OPEN)
            elif not OPEN.startswith(start):
                self.state = "answer"
        if self.state == "reasoning":
            before, mark, after = self.pending.partition(CLOSE)
            if mark:
                self.state = "gap"
            else:
                cut = len(self.pending) - begun(self.pending, [CLOSE])
                before, after = self.pending[:cut], self.pending[cut:]
            self.reasoning, self.pending = self.reasoning + before, after
        if self.state == "gap":
            self.pending = self.pending.lstrip()
            if self.pending:
                self.state = "answer"
        if self.state != "answer":
            return ""
        text, self.pending = self.pending, ""
        return text

    def finish(self):
        """Return the rest of the answer, after the last text or before a calculation."""
        rest, self.pending = self.pending, ""
        if self.state == "reasoning":
            self.reasoning, rest = self.reasoning + rest, ""
        elif self.state == "start":
            self.state = "answer"
        return rest


class Completion:
    """One completion that is being generated."""

    def __init__(self, tokenizer, stop, prompt, room):
        self.room = room  # new tokens until the context is full
        self.splitter = None if prompt.thinking is None else ReasoningSplitter(prompt.thinking)
        self.stream = TextStream(tokenizer, stop, self.splitter)
        self.text = ""  # of the answer
        self.tokens = []
        self.finish_reason = None  # "stop", "length", "context", "too_long" or "interrupted"

    def push(self, token):
        """Add the next token, None for a stop id; return the text that is now certain."""
        if self.finish_reason is not None:
            return ""
        if token is None:
            return self.finish("stop")
        self.tokens.append(token)
        text = self.stream.push(token)
        self.text += text
        if self.stream.stopped:
            self.finish_reason = "stop"
        return text

    def finish(self, reason):
        """End here, unless it has already ended; return the rest of the text."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = reason
        text = self.stream.finish()
        self.text += text
        return text

    @property
    def reasoning(self):
        """The model's reasoning before the answer; None if there is none."""
        return (self.splitter and self.splitter.reasoning.strip()) or None

    @property
    def answered(self):
        """Whether the answer has begun."""
        return self.splitter is None or self.splitter.state != "reasoning"
