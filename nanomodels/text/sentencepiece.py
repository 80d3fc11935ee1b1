"""SentencePiece's BPE with byte fallback on tiktoken, from tokenizer.json or a .model file.

    text --normalise--> ▁text▁with▁bars --split at ▁--> words --merge, lowest rank first--> ids

SentencePiece merges characters, tiktoken merges bytes. With these ranks both merge alike:

    first      the 256 bytes
    then       the UTF-8 prefixes of each character in a piece, so that the bytes of a character
               merge first, and never with those of another character
    then       the pieces of several characters, in the order of their scores or merges

A character that is in no piece, or that is no piece by itself, becomes `<0xXX>` pieces.
Sources: sentencepiece 0.2.3 bpe_model.cc, normalizer.cc, sentencepiece_processor.cc;
tokenizers 0.23 models/bpe, pre_tokenizers/metaspace.rs, decoders/byte_fallback.rs.
"""

import codecs
import json
import math
import re
import struct
from functools import partial, reduce
from itertools import chain, pairwise

from nanomodels.text.bpe import MOST_TOKENS, WHITESPACE, BytePairs, Vocabulary, live_merges
from nanomodels.text.chat_template import read_templates
from nanomodels.text.files import check_file, one_line, refusal
from nanomodels.text.tokenizer_config import add_named, read_config, read_names

BAR = "▁"  # U+2581 means a space in a piece; a ▁ in the text also becomes a space
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # what tokenizers reads as a byte; it writes A to F


class SentencePiece:
    """The codec for pieces. Added tokens cut a text into parts; each part is normalised alone."""

    def __init__(
        self,
        pairs,
        ids_of_ranks,
        texts,
        byte_of,
        *,
        normalise,
        prepend,
        symbols_everywhere,
        new_stream,
    ):
        """pairs: BytePairs; ids_of_ranks: a tuple of ids for each rank; texts {id: piece};
        byte_of {id: byte}; normalise: a function of the text; prepend: the prepend_scheme of a
        Metaspace, or None; new_stream: a stream class, to be called with texts, byte_of and the
        hidden ids.
        """
        self.pairs, self.ids_of_ranks = pairs, ids_of_ranks
        self.texts, self.byte_of = Vocabulary(texts, "\ufffd"), byte_of
        token_bytes = {i: text.replace(BAR, " ").encode() for i, text in texts.items()}
        token_bytes |= {i: bytes([b]) for i, b in byte_of.items()}
        self.token_bytes = Vocabulary(token_bytes, "\ufffd".encode())
        self.normalise, self.prepend = normalise, prepend
        self.symbols_everywhere, self.new_stream = symbols_everywhere, new_stream

    def encode(self, text, first):
        """Return the ids of a normalised piece of text."""
        if self.prepend and text:  # as Metaspace does
            wanted = self.prepend == "always" or (self.prepend == "first" and first)
            bar = BAR if wanted and text[0] not in (" ", BAR) else ""
            text = bar + text.replace(" ", BAR)
        ids_of_ranks = self.ids_of_ranks
        return [i for rank in self.pairs.encode(text) for i in ids_of_ranks[rank]]

    def stream(self, hidden):
        return self.new_stream(self.texts, self.byte_of, hidden)


class ModelStream:
    """Ids in, text out, as sentencepiece decodes: each wrong byte becomes one U+FFFD."""

    def __init__(self, texts, byte_of, hidden, *, drop):
        """drop: how many ▁ are dropped at the start of the text, at most one for each piece."""
        self._texts, self._byte_of, self._hidden, self._drop = texts, byte_of, hidden, drop
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def push(self, token: int) -> str:
        """Take one id; return the text that it completes, "" within a character."""
        piece = self._texts[token]
        if token in self._byte_of:
            return self._show(self._utf8.decode(bytes([self._byte_of[token]])))
        before = self.finish()
        piece = "" if token in self._hidden else piece
        if self._drop and piece.startswith(BAR):
            piece, self._drop = piece[1:], self._drop - 1
        return before + self._show(piece.replace(BAR, " "))

    def finish(self) -> str:
        """Return what an unfinished character leaves: U+FFFD or nothing."""
        return self._show(self._utf8.decode(b"", final=True))

    def _show(self, text):
        self._drop = 0 if text else self._drop
        return re.sub("[\udc80-\udcff]", "\ufffd", text)


class HubStream:
    """Ids in, text out, as tokenizers decodes: a wrong byte makes its whole run of bytes U+FFFD.

    So the text of a run of `<0xXX>` pieces is returned when the run has ended.
    """

    def __init__(self, texts, byte_of, hidden, *, strip, drop):
        """strip: how many spaces to remove at the start of the text; drop: whether ▁ in the first
        piece becomes nothing.
        """
        self._texts, self._byte_of, self._hidden = texts, byte_of, hidden
        self._strip, self._drop, self._run = strip, drop, bytearray()

    def push(self, token: int) -> str:
        """Take one id; return the text that it completes, "" for a byte."""
        piece = self._texts[token]
        if token in self._hidden:
            return ""
        space, self._drop = "" if self._drop else " ", False
        if token in self._byte_of:
            self._run.append(self._byte_of[token])
            return ""
        return self.finish() + self._show(piece.replace(BAR, space))

    def finish(self) -> str:
        """Return the text of the last run of bytes."""
        run, self._run = self._run, bytearray()
        try:
            return self._show(run.decode())
        except UnicodeDecodeError:
            return self._show("\ufffd" * len(run))

    def _show(self, text):
        spaces = min(self._strip, len(text) - len(text.lstrip(" ")))
        self._strip = self._strip - spaces if len(text) == spaces else 0
        return text[spaces:]


def read_bytes(path, vocab):
    """Return {id: byte} for the pieces `<0xXX>`."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    if missing := [name for name in names if name not in vocab]:
        raise refusal(path, "model.byte_fallback without the pieces", missing, "all 256 of them")
    return {vocab[name]: byte for byte, name in enumerate(names)}


def build(path, characters, pieces, byte_of, *, split=False):
    """Return the BytePairs and, for each of its ranks, the tuple of ids.

    characters {character: id, or None if it is no piece by itself}; pieces {piece: id} of several
    characters, in the order of their merges; split: whether each ▁ begins a word.
    """
    byte_ids = {byte: i for i, byte in byte_of.items()}
    ranks = {bytes([byte]): byte for byte in range(256)}
    ids_of_ranks = [(byte_ids[byte],) for byte in range(256)]
    for character, i in characters.items():
        spelled = character.encode()
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in ranks:
                ranks[spelled[:end]] = len(ranks)
                ids_of_ranks.append(tuple(byte_ids[byte] for byte in spelled[:end]))
        if i is not None:
            ids_of_ranks[ranks[spelled]] = (i,)
    for piece, i in pieces.items():
        ranks[piece.encode()] = len(ranks)
        ids_of_ranks.append((i,))
    # Short words are faster, but no piece may cross the border between two words.
    if split or not any(BAR in piece[1:] for piece in pieces):
        words = f"{BAR}[^{BAR}]*|[^{BAR}]+"
    elif not any(BAR in piece.lstrip(BAR) for piece in pieces):
        words = f"{BAR}+[^{BAR}]*|[^{BAR}]+"
    else:
        words = r"[\s\S]+"
    return BytePairs(path, words, ranks), ids_of_ranks


# --- the Hub's tokenizer.json ---


def from_hub(hub):
    """Return the SentencePiece codec of a hub_json.HubJson with byte_fallback."""
    path, data, vocab = hub.path, hub.data, hub.vocab
    byte_of = read_bytes(path, vocab)
    if data["model"].get("ignore_merges"):
        raise refusal(path, "model.ignore_merges", True, "false where byte_fallback is true")
    parts = set(chain.from_iterable(hub.pairs))
    if joined := [part for part in parts if vocab.get(part) in byte_of]:
        raise refusal(path, "model.merges", joined[:3], "merges of other pieces than <0xXX>")
    normalise = read_normalizer(path, data.get("normalizer"))
    prepend, split = read_metaspace(path, data.get("pre_tokenizer"))
    new_stream, fall_back = read_decoder(path, data.get("decoder"))
    names_only = {token["content"] for token in hub.added}
    symbols = [token["content"] for token in hub.added if token.get("normalized")]
    if changed := [name for name in symbols if normalise(name) != name]:
        # tokenizers finds and shows such a token by its normalised name, but hides it by its own.
        raise refusal(path, "normalizer", changed[:3], "one that leaves added tokens as they are")

    characters = {p: None if p in names_only else i for p, i in vocab.items() if len(p) == 1}
    live = live_merges(path, vocab, hub.pairs, (), characters)[len(characters) :]
    pieces = {piece: vocab[piece] for piece in live if piece not in names_only}
    texts = {i: piece for piece, i in vocab.items()}
    texts |= {token["id"]: token["content"] for token in hub.added}
    return SentencePiece(
        *build(path, characters, pieces, byte_of, split=split),
        texts,
        {i: int(t[3:5], 16) for i, t in texts.items() if fall_back and BYTE.fullmatch(t)},
        normalise=normalise,
        prepend=prepend,
        symbols_everywhere=False,
        new_stream=new_stream,
    )


def read_normalizer(path, normalizer):
    """Return the normalizer as a function of the text."""
    steps = []  # functions of the text, and of how long it may become
    for step in [] if normalizer is None else normalizer.get("normalizers", [normalizer]):
        match step:
            case {"type": "Prepend", "prepend": str(prefix)}:
                steps.append(partial(prepended, prefix))
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
                steps.append(partial(replaced, re.compile(re.escape(old)), new))
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": str(new)}:
                steps.append(partial(replaced, re.compile(" {2,}"), new))
            case {"type": "Strip", "strip_left": False, "strip_right": True}:
                steps.append(lambda text, longest: text.rstrip(WHITESPACE))
            case _:
                raise refusal(
                    path,
                    "normalizer",
                    step,
                    "Prepend, Replace of a String or of the Regex ' {2,}', Strip on the right, "
                    "or a Sequence of them",
                )

    def normalise(text):
        longest = 1000 + 64 * len(text)  # steps that follow each other can multiply a text
        return reduce(lambda text, step: step(text, longest), steps, text)

    return normalise


def prepended(prefix, text, longest):
    return prefix + text if text else text


def replaced(old, new, text, longest):
    """Return the text with `new` for each match of the regex `old`. ValueError: too long."""
    if len(new) > 1 and len(text) + len(old.findall(text)) * len(new) > longest:
        raise ValueError(f"the normalizer makes more than {longest:,} characters of this text")
    return old.sub(lambda _: new, text)


def read_metaspace(path, pre_tokenizer):
    """Return the prepend_scheme (None: no Metaspace) and whether ▁ always begins a word."""
    if pre_tokenizer is None:
        return None, False
    match {"prepend_scheme": "always", "split": True} | pre_tokenizer:
        case {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "always" | "first" | "never" as scheme,
            "split": bool(split),
        } if scheme == "never" or pre_tokenizer.get("add_prefix_space", True):
            return scheme, split
    raise refusal(
        path,
        "pre_tokenizer",
        pre_tokenizer,
        "null, or Metaspace with replacement ▁ and prepend_scheme always, first or never",
    )


def read_decoder(path, decoder):
    """Return what makes a stream, and whether `<0xXX>` pieces become bytes again."""
    space = {"type": "Replace", "pattern": {"String": BAR}, "content": " "}
    fall_back, fuse = {"type": "ByteFallback"}, {"type": "Fuse"}
    match None if decoder is None else decoder.get("decoders", [decoder]):
        case [first, second, third, *rest] if [first, second, third] == [space, fall_back, fuse]:
            match rest:
                case []:
                    return partial(HubStream, strip=0, drop=False), True
                case [{"type": "Strip", "content": " ", "start": int(start), "stop": 0}]:
                    return partial(HubStream, strip=start, drop=False), True
        case [{"type": "Metaspace", "replacement": "▁"} as metaspace, *rest] if rest in (
            [],
            [fall_back],
            [fall_back, fuse],
        ):
            drop = metaspace.get("prepend_scheme", "always") != "never"
            return partial(HubStream, strip=0, drop=drop), bool(rest)
    raise refusal(
        path,
        "decoder",
        decoder,
        "Sequence of Replace ▁ by a space, ByteFallback, Fuse and, if wanted, Strip of spaces at "
        "the start; or Metaspace, with or without ByteFallback after it",
    )


# --- SentencePiece's .model file; field numbers as in sentencepiece_model.proto ---

LARGEST = 16_000_000  # bytes, which can be 8,000,000 fields: 3 s; 256,000 pieces have 5 MB
MODEL_TYPES = {1: "UNIGRAM", 2: "BPE", 3: "WORD", 4: "CHAR"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE_PIECE = 1, 2, 3, 4, 6
NAMES = {"bos_token": (46, b"<s>"), "eos_token": (47, b"</s>"), "pad_token": (48, b"<pad>")}


def read_model(folder, path):
    """Read a .model file and the files beside it; return what Tokenizer takes."""
    check_file(path, LARGEST)
    parts = {1: [], 2: [], 3: [], 5: []}
    try:
        for number, value in fields(path.read_bytes()):
            if number in parts:
                parts[number].append(dict(fields(value)))
                if len(parts[number]) > MOST_TOKENS:
                    raise ValueError(f"it has more than {MOST_TOKENS:,} pieces")
        listed = [
            (entry[1].decode(), *struct.unpack("<f", entry.get(2, bytes(4))), entry.get(3, NORMAL))
            for entry in parts[1]
        ]
        trainer, normalizer, denormalizer = (
            {number: value for part in parts[n] for number, value in part.items()}
            for n in (2, 3, 5)
        )
        if not (listed and trainer and normalizer):
            raise ValueError("it lacks pieces, trainer_spec or normalizer_spec")
        rule = normalizer.get(1, b"").decode()
        unknown = trainer.get(44, " ⁇ ".encode()).decode()
        names = {key: (trainer.get(n) or name).decode() for key, (n, name) in NAMES.items()}
    except (AttributeError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"{path}: not a whole SentencePiece model ({one_line(error)})") from None

    model_type = trainer.get(3, 1)
    for key, found, supported in (
        ("trainer_spec.model_type", MODEL_TYPES.get(model_type, str(model_type)), "BPE"),
        ("trainer_spec.byte_fallback", bool(trainer.get(35)), True),
        ("trainer_spec.treat_whitespace_as_suffix", bool(trainer.get(24)), False),
        ("normalizer_spec.escape_whitespaces", bool(normalizer.get(5, 1)), True),
        ("normalizer_spec.name", rule if normalizer.get(2) else "identity", "identity"),
        ("denormalizer_spec.precompiled_charsmap", bool(denormalizer.get(2)), False),
    ):
        if found != supported:
            raise refusal(path, key, found, json.dumps(supported))
    vocab = {piece: i for i, (piece, _, _) in enumerate(listed)}
    kinds = {NORMAL: {}, UNKNOWN: {}, CONTROL: {}, USER_DEFINED: {}, BYTE_PIECE: {}}
    for i, (piece, _, kind) in enumerate(listed):
        if kind not in kinds:
            raise refusal(path, f"type of piece {piece!r}", str(kind), "1 to 4, and 6 for a byte")
        kinds[kind][piece] = i
    made = sorted((-score, piece) for piece, score, kind in listed if kind == NORMAL and piece[1:])
    for key, found in (
        ("a piece that is empty or has a NUL", [p for p in vocab if not p or "\0" in p]),
        ("a piece of more than 1,000 characters", [p[:9] for p in vocab if len(p) > 1000]),
        ("a piece that occurs twice", [p for i, (p, _, _) in enumerate(listed) if vocab[p] != i]),
        ("a score that another piece has", [b for a, b in pairwise(made) if not a[0] < b[0]]),
        ("a control piece of one character", [p for p in kinds[CONTROL] if not p[1:]]),
        ("a user-defined piece with a space", [p for p in kinds[USER_DEFINED] if " " in p]),
    ):
        if found:
            raise refusal(path, key, found[:3], "none")

    byte_of = read_bytes(path, kinds[BYTE_PIECE])
    characters = dict.fromkeys("".join(kinds[NORMAL]))
    characters |= {piece: i for piece, i in kinds[NORMAL].items() if not piece[1:]}
    pieces = {piece: vocab[piece] for _, piece in made}
    pairs, ids_of_ranks = build(path, characters, pieces, byte_of)
    # tiktoken takes a whole word that is a piece without merging, so pieces that no merges make
    # must go. To find them, each piece is merged with a NUL after it, which merges with nothing.
    reached = {
        piece: i
        for piece, i in pieces.items()
        if ids_of_ranks[pairs.encode(piece + "\0")[0]] == (i,)
    }
    if len(reached) < len(pieces):
        pairs, ids_of_ranks = build(path, characters, reached, byte_of)

    config = read_config(folder)
    added = [{"id": i, "content": piece, "special": True} for piece, i in kinds[CONTROL].items()]
    added += [
        {"id": i, "content": piece, "normalized": True} for piece, i in kinds[USER_DEFINED].items()
    ]
    names = {key: name for key, name in names.items() if name in kinds[CONTROL]}
    names |= read_names(folder, config)
    add_named(folder, path, vocab, added, names)
    tidy, bar = bool(normalizer.get(4, 1)), BAR if normalizer.get(3, 1) else ""
    codec = SentencePiece(
        pairs,
        ids_of_ranks,
        {i: piece for piece, i in vocab.items()} | dict.fromkeys(kinds[UNKNOWN].values(), unknown),
        byte_of,
        normalise=partial(normalise, bar=bar, tidy=tidy),
        prepend=None,
        symbols_everywhere=True,
        new_stream=partial(ModelStream, drop=math.inf if tidy else len(bar)),
    )
    with_bos = config.get("add_bos_token") and "bos_token" in names
    prefix = [vocab[names["bos_token"]]] if with_bos else []
    return codec, added, names, read_templates(folder, config), prefix


def normalise(text, bar, tidy):
    """Return the text that sentencepiece merges, with `bar` first; tidy removes extra spaces."""
    if tidy:
        text = re.sub(" +", " ", text.lstrip(" "))
    if text:
        text = bar + text.replace(" ", BAR)
    return text.rstrip(BAR) if tidy else text


def fields(data):
    """Yield number and value (int or bytes) of each field of a protobuf message."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag & 7 == 0:
            value, at = read_varint(data, at)
        else:
            size, at = read_varint(data, at) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
            value, at = data[at : at + size], at + size
        if at > len(data):
            raise ValueError("it is cut off")
        yield tag >> 3, value


def read_varint(data, at):
    """Return the number at an offset, seven bits a byte, and the offset after it."""
    if at < len(data) and data[at] < 128:  # most are one byte
        return data[at], at + 1
    value = 0
    for n, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * n
        if byte < 128:
            return value, at + n + 1
    raise ValueError("it is cut off")
