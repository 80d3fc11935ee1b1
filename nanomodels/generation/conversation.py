"""A conversation with a model, of which each turn reads only what is new.

chat = nanomodels.Chat("weights/nanochat-tiny")
for text in chat.ask("What is the capital of France?"):
    print(text, end="")                      as it comes
print(chat.ask("And of Spain?"))             or as a whole
print(chat.reply.reused_tokens, chat.length)
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from nanomodels.generation.calculator import calculator_for
from nanomodels.generation.prompts import ChatEncoder, TextEncoder, Turn, question, shared
from nanomodels.generation.reuse import PrefixCache
from nanomodels.generation.settings import TextSettings, generation_config, settings_from
from nanomodels.generation.stream import Completion
from nanomodels.text import tool_calls
from nanomodels.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nanomodels.checkpoint.loading import Model


class Chat:
    """A conversation: messages, and a cache of what the model has read of them.

    model is a checkpoint's folder, which is loaded (device, dtype and quantize are for
    nanomodels.load); or a loaded model, with its tokenizer. system, think, tools and trust_text are
    explained in prompts.ChatEncoder. With raw=True there is no chat template: what is asked is
    added to the text, and the model continues it; then system is the beginning of the text.

    stop is a list of strings that end an answer. The other settings are fields of
    GenerationSettings; those not given come from the folder's generation_config.json.

    Each turn reads only what the cache does not hold. What undo, retry, reset and a full context go
    back to is in it, too; with Mamba-2 layers that takes at most `prefix.most_bytes`, 1 GiB.

    model, tokenizer, settings, stop, turns, reply and progress can be read and set between two
    answers. `reply` is the last Reply, `progress(done, total)` is called while a prompt is read.
    Raises ValueError for what the model or its chat template does not have.
    """

    def __init__(
        self,
        model: "Model | str | Path",
        tokenizer: Tokenizer | None = None,
        *,
        system: str | None = None,
        think: bool | None = None,
        tools: list[dict] | None = None,
        trust_text: bool = False,
        raw: bool = False,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        stop: Iterable[str] = (),
        progress: Callable[[int, int], None] | None = None,
        **settings: Unpack[TextSettings],
    ) -> None:
        if isinstance(model, str | Path):
            if tokenizer is not None:
                raise ValueError("a tokenizer goes with a loaded model; a folder has its own")
            settings = settings_from(generation_config(Path(model)), settings)
            model, tokenizer = load(model, device, dtype, quantize)
        elif tokenizer is None or (device, dtype, quantize) != (None, None, None):
            raise ValueError(
                "give a folder; or a loaded model and its tokenizer, without device, dtype and "
                "quantize, which are for loading"
            )
        else:
            settings = settings_from({}, settings)
        if not hasattr(model, "lm_head"):
            raise ValueError(f"a {type(model).__name__} makes no text")
        self.model, self.tokenizer, self.stop = model, tokenizer, list(stop)
        self.settings = replace(
            settings,
            vocab_size=settings.vocab_size or tokenizer.vocab_size,
            calculator=settings.calculator or calculator_for(tokenizer),
        )
        if raw:
            if think is not None or tools is not None:
                raise ValueError("raw text has no think and no tools, only a chat has")
            self.encoder = TextEncoder(tokenizer, system)
        else:
            self.encoder = ChatEncoder(tokenizer, system, think, tools, trust_text)
        self.turns, self.reply, self.progress = [], None, progress
        self.prefix = PrefixCache(model)

    # --- What is asked ---

    def ask(self, message: str | Iterable[Mapping], **settings: Unpack[TextSettings]) -> "Reply":
        """Ask something: the Reply, which yields the answer's text as it comes.

        message is the user's text, or a list of messages (dicts), for example the results of tools.
        settings replace those of the chat for this answer.

        If the context has no room for it, the oldest turns are forgotten, so many that half of
        their room is free again: `reply.forgotten` says how many.
        Raises ValueError for a message that is longer than the context, and then changes nothing.
        """
        self.end()
        if isinstance(message, str):
            return self.start([*self.turns, question(message)], settings)
        messages = [dict(each) for each in message]
        if not messages or not all({"role", "content"} <= each.keys() for each in messages):
            raise ValueError("a message must be a dict with a role and a content")
        return self.start([*self.turns, Turn(messages)], settings)

    def start(self, turns, settings):
        """Set and return the Reply to the last of the turns."""
        settings = replace(self.settings, **settings)
        prompt, kept = self.fit(turns, settings.max_new_tokens)
        self.reply = Reply(self, kept, prompt, settings, len(turns) - len(kept))
        self.turns = kept
        return self.reply

    def fit(self, turns, max_new_tokens):
        """The Prompt of the turns, or of the last ones if there is no room; and these turns."""
        context, prompt = self.context_length, self.encoder.encode(turns)
        room = min(max_new_tokens, context // 4)  # for the answer
        if len(prompt.ids) + room > context:
            alone = len(self.encoder.encode(turns[-1:]).ids)
            if alone > context:
                raise ValueError(
                    f"the message makes a prompt of {alone} tokens; the model's context holds "
                    f"{context}"
                )
            most = min(context, (alone + room + context) // 2)
            while len(turns) > 1 and len(prompt.ids) + room > most:
                turns = turns[1:]
                prompt = self.encoder.encode(turns)
        return prompt, turns

    def undo(self) -> list[dict]:
        """Take back the last turn; return its messages. Raises ValueError if there is none."""
        self.end()
        if not self.turns:
            raise ValueError("there is no turn to take back")
        self.reply = None
        return self.turns.pop().messages

    def retry(self, **settings: Unpack[TextSettings]) -> "Reply":
        """Ask the last message again, in place of its answer, as `ask` does.

        With the same seed, or without sampling, the answer is the same.
        """
        self.end()
        if not self.turns:
            raise ValueError("there is no message to ask again")
        *before, last = self.turns
        return self.start([*before, Turn(last.asked)], settings)

    def reset(self) -> None:
        """Forget all turns. The system message stays."""
        self.end()
        self.turns, self.reply = [], None

    def configure(self, **options: Any) -> None:
        """Change system, think, tools or trust_text, from the next prompt on."""
        self.end()
        if isinstance(self.encoder, TextEncoder) and {*options} - {"system"}:
            raise ValueError(f"raw text has no {' and no '.join(options)}, only a chat has")
        self.encoder = replace(self.encoder, **options)

    def read(self) -> int:
        """Read now what all next prompts begin with; return how many tokens that is."""
        self.end()
        ids = self.encoder.begin(self.turns)[: self.context_length]
        self.prefix.read_ahead(ids, [shared(ids, self.encoder.beginning)], self.progress)
        return len(ids)

    # --- What there is ---

    @property
    def messages(self) -> list[dict]:
        """The messages so far, as dicts. An answer is there when it has ended."""
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        return opening + [dict(message) for turn in self.turns for message in turn.messages]

    @property
    def system(self) -> str | None:
        """The text of the system message; of raw text, its beginning; None: none."""
        return self.encoder.system

    @property
    def length(self) -> int:
        """Tokens of the context that the conversation takes, after the last answer."""
        return self.turns[-1].length if self.turns else 0

    @property
    def context_length(self) -> int:
        """Tokens that the model's context holds."""
        return self.model.context_length

    def __repr__(self):
        return (
            f"<Chat with {type(self.model).__name__}: {len(self.turns)} turns, "
            f"{self.length} of {self.context_length} tokens>"
        )

    # --- Copies and files ---

    def fork(self) -> "Chat":
        """A second chat that goes on from here; the model is shared. Neither changes the other."""
        self.end()
        other = copy.copy(self)
        other.turns, other.prefix = copy.deepcopy(self.turns), self.prefix.clone()
        return other

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file, with all that was read of it; see states.py.

        First `read` is called. Raises ValueError if the path is something else than a file, OSError
        if the file cannot be written.
        """
        from nanomodels.generation.states import save

        self.read()
        save(self, path)

    def load(self, path: str | Path) -> None:
        """Go on with the conversation in a file, in place of this one; see states.py.

        Raises FileNotFoundError, or ValueError for a file that is damaged or was saved with another
        model, dtype, tokenizer or chat template; then the chat is as it was.
        """
        from nanomodels.generation.states import load

        self.end()
        load(self, path)

    def end(self):
        """End an answer that was left; let one that nobody has begun to read come to its end."""
        if self.reply is not None and not self.reply.begun:
            self.reply.whole()
        elif self.reply is not None:
            self.reply.close()


class Reply:
    """An answer. Iterate over it once, for its text as it comes; or take it whole, as str(reply).

    text, reasoning (None: there is none), tokens and finish_reason ("stop", "length", "context" or
    "interrupted") first run it to its end. Known before: prompt_tokens, reused_tokens (those that
    were not read again) and forgotten (turns). drafted and accepted count tokens of drafts.

    An answer that is left early (by close(), an exception, or another call of the chat) stays as
    far as it came, as the answer of its turn. If that is before its first token, the turn is taken
    back. An answer that nobody has begun to read is first run to its end by other calls.
    """

    def __init__(self, chat, turns, prompt, settings, forgotten):
        """turns are those that the prompt was made of."""
        self.chat, self.before, self.turn, self.asked = (
            chat,
            chat.turns,
            turns[-1],
            turns[-1].messages,
        )
        self.forgotten, self.settings = forgotten, settings
        self.drafted = self.accepted = 0
        length = self.prompt_tokens = len(prompt.ids)
        room = chat.context_length + 1 - length
        self.completion = Completion(chat.tokenizer, chat.stop, prompt, room)
        self.reused_tokens = chat.prefix.prepare(
            prompt.ids, min(length + settings.max_new_tokens, chat.context_length)
        )
        places = []
        if chat.prefix.cache.has_ssm:
            places = [chat.encoder.message_end(turns, prompt.ids)]
            if self.reused_tokens == 0:
                places.append(shared(prompt.ids, chat.encoder.beginning))
        self.rows = chat.prefix.answer(places, settings, chat.progress, self.count)
        self.pieces, self.begun, self.ended = self.run(), False, False

    def run(self):
        """Yield the text that is now certain, after each token; often it is empty."""
        self.begun, rest = True, ""
        try:
            for (token,) in self.rows:
                yield self.completion.push(token)
                if self.completion.finish_reason is not None:
                    break
            full = len(self.completion.tokens) < self.settings.max_new_tokens
            rest = self.completion.finish("context" if full else "length")
        finally:
            self.settle()
        yield rest

    def settle(self):
        """Make the answer a part of the chat, however it has ended; again, if interrupted."""
        if self.ended:
            return
        self.rows.close()
        said = self.completion
        taken_back = said.finish_reason is None and not said.tokens
        said.finish("interrupted")
        if taken_back:
            self.chat.turns = self.before
        else:
            knows_parts = "python_output" in (self.chat.tokenizer.chat_template or "")
            parts = said.stream.parts if knows_parts else None
            answer = {"role": "assistant", "content": parts or said.text}
            if said.reasoning is not None:
                answer["reasoning_content"] = said.reasoning
            self.turn.messages = [*self.asked, answer]
            self.turn.tokens = said.tokens
            if said.stream.stopped:  # the tokens are more than the text
                self.turn.tokens = self.chat.tokenizer.encode(said.text, add_bos=False)
            self.turn.length = self.prompt_tokens + len(said.tokens)
        self.ended = True

    def close(self) -> None:
        """End the answer here, unless it has ended."""
        self.pieces.close()
        self.begun = True
        self.settle()  # pieces had not, if it had not begun

    def steps(self) -> Iterator[str]:
        """As iterating over the reply, but with a text, often empty, after each token.

        completion.reasoning is the reasoning so far.
        """
        return self.pieces

    def __iter__(self) -> Iterator[str]:
        return (text for text in self.pieces if text)

    def __str__(self) -> str:
        return self.text

    def whole(self):
        """The Completion, at its end."""
        for _ in self.pieces:
            pass
        self.settle()  # if Ctrl-C came in between
        return self.completion

    @property
    def text(self) -> str:
        """The answer, without the reasoning."""
        return self.whole().text

    @property
    def reasoning(self) -> str | None:
        """What the model reasoned before the answer, or None."""
        return self.whole().reasoning

    @property
    def tool_calls(self) -> list[dict]:
        """The calls of tools in the answer: [{"name": ..., "arguments": {...}}, ...]."""
        tools = getattr(self.chat.encoder, "tools", None)
        return [] if tools is None else tool_calls.parse(self.text, tools)[1]

    @property
    def tokens(self) -> list[int]:
        """The ids of the reasoning and the answer."""
        return self.whole().tokens

    @property
    def finish_reason(self) -> str:
        """Why the answer has ended: "stop", "length", "context" or "interrupted"."""
        return self.whole().finish_reason

    @property
    def new_tokens(self) -> int:
        """How many tokens the reasoning and the answer have."""
        return len(self.tokens)

    def count(self, drafted, accepted):
        """Note the tokens of a draft."""
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted

    def __repr__(self):
        if not self.ended:
            return "<Reply: iterate over it, or print it>"
        return f"<Reply: {self.completion.text!r:.60}, {self.completion.finish_reason}>"


def load(folder, device, dtype, quantize):
    """The model and the tokenizer of a folder."""
    import nanomodels

    model = nanomodels.load(folder, device or "cpu", dtype, quantize=quantize)
    return model, nanomodels.Tokenizer.load(folder)
