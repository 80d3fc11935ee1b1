"""Text to token ids and back, for the tokenizers of all these checkpoints.

    text --cut at added tokens--> plain text --codec--> ids --stream--> text

`Tokenizer.load` chooses the reader. A reader returns a codec (see bpe.py), the added tokens, the
named tokens, the chat templates, and the ids before a text. No reader knows another:

    tokenizer.json (Hub)          hub_json.py; with byte_fallback, sentencepiece.py too
    tokenizer.pkl (nanochat)      nanochat_pickle.py
    .model (SentencePiece)        sentencepiece.py

Each folder can also have a chat template, which chat_template.py renders.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from nanomodels.checkpoint.finding import find
from nanomodels.text import chat_template, hub_json, nanochat_pickle, plain_chat, sentencepiece
from nanomodels.text.bpe import WHITESPACE, ByteStream
from nanomodels.text.files import one_line
from nanomodels.text.ids import list_of_ids

LONGEST_NAMES = 300_000  # characters of all added tokens; the search costs 3 µs for each


class Tokenizer:
    """The tokenizer of one checkpoint, made by `Tokenizer.load(folder)`.

    vocab_size: the highest id plus one. special_ids: {name: id}. bos_id, eos_id: an id, or None if
    the checkpoint names none. chat_template: the text of the default template, or None. The ids
    that end generation are the model's: model.stop_ids.
    """

    def __init__(self, codec, added, names, templates, prefix=()):
        """added: entries as in tokenizer.json's added_tokens; names {"bos_token": "<s>", ...};
        templates {name: text}; prefix: the ids that the files put before a text.
        """
        self.codec, self._prefix = codec, list(prefix)
        self._names, self._templates = names, templates
        self._added = {token["content"]: token for token in added if token["content"]}
        # tokenizers searches for added tokens with normalized=false first, then for the others.
        self._searches = [
            search_for({t: v for t, v in self._added.items() if bool(v.get("normalized")) is flag})
            for flag in (False, True)
        ]

        self.vocab_size = max(codec.token_bytes) + 1
        self.special_ids = {name: t["id"] for name, t in self._added.items() if t.get("special")}
        self._special = frozenset(self.special_ids.values())
        self.bos_id, self.eos_id = (
            self._added.get(names.get(key), {}).get("id") for key in ("bos_token", "eos_token")
        )
        # In training, a nanochat model saw <|bos|> before every text. Its tokenizer.pkl does not
        # say so; nanochat's own code passes prepend=bos where it encodes a text.
        if not self._prefix and "<|bos|>" in self.special_ids:
            self._prefix = [self.special_ids["<|bos|>"]]
        self.chat_template = templates.get("default")

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """Read a folder with tokenizer.json (Hub), tokenizer.pkl (nanochat) or a .model file.

        folder: a path, or a name that checkpoint/finding.py knows, as for `load`.
        For a training folder of nanochat, `pickle_paths` says where tokenizer.pkl can be.
        Raises FileNotFoundError if there is no tokenizer. Raises ValueError with file, key and
        found value if a file is damaged or needs something that is not supported here.
        """
        folder = find(folder, weights=False)
        try:
            codec, added, *rest = Tokenizer._read(folder)
            size = sum(len(token["content"]) for token in added)
            if size > LONGEST_NAMES:
                raise ValueError(
                    f"{folder}: its added tokens have {size:,} characters in all; at most "
                    f"{LONGEST_NAMES:,} are searched for"
                )
            return Tokenizer(codec, added, *rest)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            UnicodeEncodeError,
        ) as error:
            raise ValueError(
                f"{folder}: tokenizer.json (or .model) or tokenizer_config.json is not laid out as "
                f"tokenizers writes it ({type(error).__name__}: {one_line(error)})"
            ) from None

    @staticmethod
    def _read(folder):
        """What Tokenizer() takes."""
        if (folder / "tokenizer.json").is_file():
            hub = hub_json.read(folder)
            read_codec = sentencepiece.from_hub if hub.byte_fallback else hub_json.byte_level
            return read_codec(hub), hub.added, hub.names, hub.templates, hub.prefix
        pickles = nanochat_pickle.pickle_paths(folder)
        if any(path.is_file() for path in pickles):
            return nanochat_pickle.read(folder)
        models = [path for path in sorted(folder.glob("*.model")) if path.is_file()]
        models = [path for path in models if path.name == "tokenizer.model"] or models
        if len(models) == 1:
            return sentencepiece.read_model(folder, models[0])
        if models:
            raise ValueError(
                f"{folder}: holds {', '.join(path.name for path in models)}; "
                "rename the checkpoint's own to tokenizer.model"
            )
        raise FileNotFoundError(
            f"{folder}: found neither tokenizer.json (Hub) nor {' or '.join(map(str, pickles))} "
            "(nanochat) nor a SentencePiece .model; put the checkpoint's tokenizer into this folder"
        )

    def __repr__(self):
        template = "no" if self.chat_template is None else "a"
        return (
            f"<Tokenizer: vocab_size {self.vocab_size}, bos_id {self.bos_id}, "
            f"eos_id {self.eos_id}, {template} chat template>"
        )

    def fingerprint(self) -> str:
        """A hash of all tokens, and of how a sample text is encoded."""
        tokens = [(token, self.token_bytes(token)) for token in sorted(self.codec.token_bytes)]
        sample = self.encode("The 12 quick brown foxes\n\n  jump: über 日本!", special=True)
        hashed = hashlib.sha256(repr((tokens, sorted(self._added), sample)).encode())
        return hashed.hexdigest()

    def encode(
        self,
        text: str,
        *,
        add_bos: bool | None = None,
        special: bool = False,
        reveal: Callable[[str], str] = str,
    ) -> list[int]:
        """Return the ids of a text.

        add_bos: None puts before the text what the model saw there in training: <|bos|> for
        nanochat, otherwise what the post-processor in tokenizer.json says. True adds BOS in any
        case, False adds nothing. special: whether the names of special and other added tokens in
        the text become those tokens; otherwise they are plain text. reveal: what takes the twins
        out of a text that plain_chat.py has rendered.
        Raises ValueError for what is no text, for half of a surrogate pair and for too long a run
        of white space.
        """
        if not isinstance(text, str):
            raise ValueError(f"the text is {text!r:.80}; it must be a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text has half of a surrogate pair, {text[error.start]!r} at {error.start}, "
                "which is no character; decode the text with errors='replace'"
            ) from None
        ids = [] if add_bos is False else self._prefix[:]
        if add_bos and not ids:
            if self.bos_id is None:
                raise ValueError("add_bos=True, but this tokenizer names no BOS token")
            ids = [self.bos_id]
        for n, piece in enumerate(self._split(text, special, reveal)):
            ids += self.codec.encode(piece, n == 0) if isinstance(piece, str) else [piece]
        return ids

    def _split(self, text, special, reveal):
        """Yield normalised text and the ids of added tokens, as tokenizers' added_vocabulary.rs."""
        in_text, in_normalised = self._searches
        for piece in split_at(in_text, text) if special else [text]:
            if not isinstance(piece, str):
                yield piece
            elif special or self.codec.symbols_everywhere:
                for part in split_at(in_normalised, self.codec.normalise(piece)):
                    yield reveal(part) if isinstance(part, str) else part
            else:
                yield self.codec.normalise(piece)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of an id, for a special token its name. ValueError for an unknown id."""
        return self.codec.token_bytes[token]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of ids; wrong UTF-8 becomes U+FFFD. ValueError for an unknown id.

        skip_special leaves out the special tokens.
        """
        ids = list_of_ids("ids", ids)
        stream = self.stream(skip_special=skip_special)
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(
        self, *, skip_special: bool = True, keep: Iterable[str] = ()
    ) -> ByteStream | sentencepiece.ModelStream | sentencepiece.HubStream:
        """Start a stream: push(id) and finish() return the text of `decode`, piece by piece.

        keep: names of special tokens that skip_special does not leave out.
        """
        shown = {self.special_ids.get(name) for name in keep}
        return self.codec.stream(self._special - shown if skip_special else frozenset())

    def render_chat(
        self,
        messages: Sequence[dict],
        *,
        tools: Sequence[dict] | None = None,
        documents: Sequence[dict] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return a chat as the text of the training format, equal to transformers' result.

        messages: list of {"role": ..., "content": ...}; tools: list of JSON schemas; documents:
        list of dicts; variables: other variables of the template, such as enable_thinking.
        Raises ValueError if there is no template, or if the template refuses the messages.
        """
        variables |= {"add_generation_prompt": add_generation_prompt}
        return chat_template.render(
            self._templates, messages, tools, documents, **self._names | variables
        )

    def encode_chat(
        self, messages: Sequence[dict], *, trust_text: bool = False, **settings: Any
    ) -> list[int]:
        """Return the ids of `render_chat(messages, **settings)`.

        The template writes the BOS, so none is added here. Names of control tokens inside the
        messages, tools and documents stay text; plain_chat.py says how. With trust_text=True they
        become those tokens, as in transformers: then whoever writes the text can end a turn.
        """
        text, reveal = self.render_chat(messages, **settings), str
        if not trust_text:
            tools, documents = (settings.pop(key, None) for key in ("tools", "documents"))

            def write(messages, tools, documents):
                chat = {"tools": tools, "documents": documents} | settings
                return self.render_chat(messages, **chat)

            parts = messages, tools, documents
            text, reveal = plain_chat.render(self.chat_template, write, *parts, self._controls())
        return self.encode(text, add_bos=False, special=True, reveal=reveal)

    def _controls(self):
        """The names of added tokens, without words such as "日本" that are not special."""
        words = {
            name
            for name, token in self._added.items()
            if name.isspace()
            or (not token.get("special") and all(c.isalnum() or c.isspace() for c in name))
        }
        return self._added.keys() - words


def search_for(tokens):
    """Return the search of `split_at` for {text: entry of added_tokens}, the longest text first."""
    choice = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return re.compile(choice or "(?!)"), tokens


def split_at(search, text):
    """Yield the text before each token that is found and the token's id, then the rest."""
    regex, tokens = search
    start = 0
    for match in regex.finditer(text):
        token, (begin, end) = tokens[match[0]], match.span()
        if token.get("lstrip"):
            begin = max(start, len(text[:begin].rstrip(WHITESPACE)))
        if token.get("rstrip"):
            end = len(text) - len(text[end:].lstrip(WHITESPACE))
        yield from (text[start:begin], token["id"])
        start = end
    yield text[start:]
