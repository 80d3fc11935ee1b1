"""Conversations to prompts: with the checkpoint's chat template, or as plain text."""

from dataclasses import dataclass, field
from functools import cached_property


@dataclass
class Turn:
    """One turn of a conversation: what is asked, and the answer once it is there."""

    messages: list  # dicts: the user's message or the results of tools, then the answer
    tokens: list | None = None  # of the answer
    length: int = 0  # tokens of the conversation up to here, with the answer

    @property
    def asked(self):
        """The messages without the answer."""
        return self.messages if self.tokens is None else self.messages[:-1]


def question(text):
    """The Turn of a user's message."""
    return Turn([{"role": "user", "content": text}])


@dataclass
class Prompt:
    """What the model is given."""

    text: str  # as the user wrote it
    ids: list
    # Whether the ids end in <think>, so that the model continues its reasoning; None: no chat.
    thinking: bool | None


@dataclass
class ChatEncoder:
    """Turns messages into prompts with the checkpoint's chat template.

    system is the text of a system message. think switches the reasoning on or off; None leaves it
    to the template. tools is a list of JSON schemas. trust_text: whether names of control tokens
    in messages and tools become those tokens; see Tokenizer.encode_chat.
    Raises ValueError if there is no template, or if it has no tools or no switch for the reasoning.
    """

    tokenizer: object
    system: str | None = None
    think: bool | None = None
    tools: list | None = None
    trust_text: bool = False
    variables: dict = field(init=False, default_factory=dict)  # of the template
    switch: str = field(init=False, default="")  # added to the last user message

    def __post_init__(self):
        template = self.tokenizer.chat_template
        if template is None:
            raise ValueError("the checkpoint has no chat template; it continues raw text")
        if self.tools is not None:
            if "tools" not in template:
                raise ValueError("the chat template has no tools")
            self.variables["tools"] = self.tools
        if self.think is not None and "enable_thinking" in template:
            self.variables["enable_thinking"] = self.think
        elif self.think is not None and "/no_think" in template:
            self.switch = " /think" if self.think else " /no_think"
        elif self.think is not None:
            raise ValueError("the chat template has no switch for the reasoning")

    @property
    def opening(self):
        """The messages before the first turn."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def messages(self, turns):
        """The messages of the system and the turns, as the template gets them."""
        messages = self.opening + [dict(message) for turn in turns for message in turn.messages]
        asked = next((m for m in reversed(messages) if m["role"] == "user"), None)
        if asked is not None and self.switch:
            asked["content"] += self.switch
        return messages

    def encode(self, turns):
        """The Prompt of a chat; its last turn has no answer yet."""
        trust = {"trust_text": self.trust_text}
        ids = self.tokenizer.encode_chat(self.messages(turns), **self.variables | trust)
        end = self.tokenizer.decode(ids[-32:])  # long enough for <think> in bytes, and space
        return Prompt(turns[-1].messages[-1]["content"], ids, end.rstrip().endswith("<think>"))

    def message_end(self, turns, ids):
        """How many of the ids of `encode` are before those that ask the model to answer.

        Of some templates it is less. Only the end is encoded, because the text can be long.
        """
        messages, render = self.messages(turns), self.tokenizer.render_chat
        whole = render(messages, **self.variables)
        text = render(messages, add_generation_prompt=False, **self.variables)
        end = whole[shared(whole, text) :]
        return len(ids) - len(self.tokenizer.encode(end, add_bos=False, special=True))

    def begin(self, turns):
        """The ids that all prompts begin with that go on after these turns."""
        some, others = (self.encode([*turns, question(text)]).ids for text in ("A", "b"))
        return some[: shared(some, others)]

    @cached_property
    def beginning(self):
        """The ids of the system message and the tools; [] without them."""
        return self.begin([]) if self.opening or self.tools else []


@dataclass
class TextEncoder:
    """Plain text in place of a chat: what is asked is added to the text, and the model goes on.

    Each text is encoded on its own, so that what was read before stays as it is. (SentencePiece may
    put a space before it.) system is the beginning of the text.
    """

    tokenizer: object
    system: str | None = None

    def encode(self, turns):
        """The Prompt of a text; its last turn has no answer yet."""
        return Prompt(turns[-1].messages[-1]["content"], self.begin(turns), None)

    def message_end(self, turns, ids):
        """All ids of `encode` but the one that must be read for an answer."""
        return len(ids) - 1

    def begin(self, turns):
        """The ids of the text up to here."""
        texts = [(self.system, None)] if self.system else []
        for turn in turns:
            texts.append(("".join(each["content"] for each in turn.asked), turn.tokens))
        ids = []
        for text, tokens in texts:  # add_bos=None: only the first has what goes before a text
            ids += self.tokenizer.encode(text, add_bos=False if ids else None)
            ids += tokens or []
        return ids

    @cached_property
    def beginning(self):
        """The ids of the beginning; [] without one."""
        return self.begin([]) if self.system else []


def shared(ids, others):
    """How many first ids, or characters, are the same."""
    length = min(len(ids), len(others))
    if ids[:length] == others[:length]:
        return length
    pairs = zip(ids, others, strict=False)
    return next(n for n, (a, b) in enumerate(pairs) if a != b)
