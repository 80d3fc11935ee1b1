"""Conversations: messages to prompts, and a cache that keeps what the next prompt repeats."""

from contextlib import closing
from dataclasses import dataclass

from nanomodels.generation.decoding import generate_batch, prefill


@dataclass
class Prompt:
    """What the model is given."""

    text: str  # as the user wrote it
    ids: list
    # Whether the ids end in <think>, so that the model continues its reasoning; None: no chat.
    thinking: bool | None


def encode(tokenizer, text, chat):
    """The Prompt of a text: as a user's message of a Chat, or, if chat is None, as it is."""
    if chat:
        return chat.encode([{"role": "user", "content": text}])
    return Prompt(text, tokenizer.encode(text), None)


class Chat:
    """Turns messages into prompts with the checkpoint's chat template.

    system is the text of a system message. think switches the reasoning on or off; None leaves it
    to the template. tools is a list of JSON schemas. trust_text: whether names of control tokens
    in messages and tools become those tokens; see Tokenizer.encode_chat.
    Raises ValueError if the template has no tools, or no switch for the reasoning.
    """

    def __init__(self, tokenizer, *, system=None, think=None, tools=None, trust_text=False):
        template = tokenizer.chat_template
        self.tokenizer = tokenizer
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.variables = {"trust_text": trust_text}
        self.switch = ""  # added to the last user message
        if tools is not None:
            if "tools" not in template:
                raise ValueError("the chat template has no tools")
            self.variables["tools"] = tools
        if think is not None and "enable_thinking" in template:
            self.variables["enable_thinking"] = think
        elif think is not None and "/no_think" in template:
            self.switch = " /think" if think else " /no_think"
        elif think is not None:
            raise ValueError("the chat template has no switch for the reasoning")

    def encode(self, turns, **variables):
        """The Prompt of a chat whose last turn is the user's.

        A system message that the turns begin with takes the place of `system`.
        """
        system = [] if turns[0]["role"] == "system" else self.system
        *before, last = system + turns
        messages = [*before, last | {"content": last["content"] + self.switch}]
        ids = self.tokenizer.encode_chat(messages, **self.variables | variables)
        end = self.tokenizer.decode(ids[-32:])  # long enough for <think> in bytes, and space
        return Prompt(last["content"], ids, end.rstrip().endswith("<think>"))


class PrefixCache:
    """The cache of a chat, and the ids that it holds.

    Usually the next prompt begins with these ids, and only the rest is fed. But a template may drop
    the reasoning of earlier answers, or encode an answer as other tokens than the model's. Then the
    cache goes back to the end of the last user message, or to the beginning.
    """

    def __init__(self, model, progress=None):
        self.model, self.cache, self.progress = model, model.new_cache(1, 0), progress
        self.ids = []
        self.snapshots = [([], self.cache.snapshot())]  # (ids, cache after them), longest last

    def prepare(self, ids, max_length):
        """Keep the ids that `ids` begin with, and make room for max_length tokens."""
        if max_length > self.cache.max_length:
            larger = self.model.new_cache(1, min(2 * max_length, self.model.context_length))
            larger.restore(self.cache.snapshot())
            self.cache = larger
        if not continues(ids, self.ids):
            while not continues(ids, self.snapshots[-1][0]):
                self.snapshots.pop()
            self.ids, snapshot = self.snapshots[-1]
            self.cache.restore(snapshot)

    def answer(self, ids, message, settings, on_draft=None):
        """What generate_batch yields for the prompt `ids`; call `prepare` first.

        message is the ids up to the end of the user's message, a place to go back to. Close the
        iterator before the next call.
        """
        tokens = []
        try:
            if continues(ids, message) and len(message) > self.cache.length:
                prefill(self.model, [message], self.cache, self.progress)
                self.snapshots[1:] = [(message, self.cache.snapshot())]
            callbacks = {"progress": self.progress, "on_draft": on_draft}
            rows = generate_batch(self.model, [ids], settings, cache=self.cache, **callbacks)
            with closing(rows):
                for row in rows:
                    tokens += [token for token in row if token is not None]
                    yield row
        finally:
            self.ids = (ids + tokens)[: self.cache.length]


def continues(ids, start):
    """Whether `ids` begin with `start` and are longer."""
    return len(ids) > len(start) and ids[: len(start)] == start
