"""Token by token to text: what is certain, without stop strings, and apart from the reasoning."""

# Special tokens that stay in the text: without them it makes no sense. All others are left out.
OPEN, CLOSE = "<think>", "</think>"
MARKUP = (OPEN, CLOSE, "<tool_call>", "</tool_call>", "<TOOLCALL>", "</TOOLCALL>")


class TextStream:
    """Takes tokens and returns text as soon as it is certain.

    It returns whole characters only. stop is a list of strings: the text ends before the first one
    that appears, and then `stopped` is True. No part of a stop string is ever returned. With a
    ReasoningSplitter the text is the answer alone, and stop strings count only in the answer.
    """

    def __init__(self, tokenizer, stop=(), splitter=None):
        self.decoder = tokenizer.stream(keep=MARKUP)
        self.splitter = splitter
        self.stop = [text for text in stop if text]
        self.pending = ""  # text that may still become a stop string
        self.stopped = False

    def push(self, token):
        """Add a token; return the text that is now certain."""
        text = self.decoder.push(token)
        return self.release(self.splitter.push(text) if self.splitter else text)

    def finish(self):
        """Return the rest of the text, after the last token."""
        text = self.decoder.finish()
        if self.splitter:
            text = self.splitter.push(text) + self.splitter.finish()
        text = self.release(text)
        text, self.pending = text + self.pending, ""
        return text

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
        """Return the rest of the answer, after the last text."""
        rest, self.pending = self.pending, ""
        if self.state == "reasoning":
            self.reasoning, rest = self.reasoning + rest, ""
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
            return self.finish("context" if len(self.tokens) == self.room else "stop")
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
