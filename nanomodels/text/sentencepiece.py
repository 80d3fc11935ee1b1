"""SentencePiece's BPE with byte fallback on tiktoken, from tokenizer.json or a .model file.

    text --normalise--> ▁text▁with▁bars --split at ▁--> words --merge, lowest rank first--> ids

SentencePiece merges characters and tiktoken bytes. With these ranks both take the same steps:

    0 ..       the 256 bytes
    then       the beginnings of each character that a piece holds, so that these come first: its
               bytes join one by one, and never with those of another character
    then       the pieces of several characters, in the order of their scores or merges

A character whose bytes do not join, or that is no piece by itself, comes out as `<0xXX>` pieces.
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

from tiktoken import Encoding

from nanomodels.text import chat_template
from nanomodels.text.files import one_line
from nanomodels.text.tokenizer import (
    WHITESPACE,
    Tokenizer,
    add_named,
    find,
    live_merges,
    read_config,
    read_names,
    read_prefix,
    refusal,
)

BAR = "▁"  # U+2581, what a space is in a piece; one in the text becomes a space, too
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # what tokenizers reads as a byte; it writes A to F


class SentencePiece(Tokenizer):
    """A `Tokenizer` over pieces; a .model file's user-defined symbols are found in every text.

    Where encode(special=True) cuts a text, each part is normalised as a text of its own.
    """

    def __init__(self, encoding, ids_of_ranks, texts, byte_of, *args, prefix, normalise, symbols,
                 always, prepend, stream):  # fmt: skip
        """ids_of_ranks: a tuple of ids for each rank; texts {id: piece}; byte_of {id: byte}.

        symbols {text: entry of added} to look for in normalised text, always or with special only;
        prepend: a Metaspace's "always", "first" or "never", else None; stream: what starts one.
        """
        token_bytes = {i: text.replace(BAR, " ").encode() for i, text in texts.items()}
        token_bytes |= {i: bytes([byte]) for i, byte in byte_of.items()}
        super().__init__(encoding, token_bytes, *args, ids_of_ranks=ids_of_ranks, prefix=prefix)
        self._texts, self._byte_of, self._new_stream = texts, byte_of, stream
        self._normalise, self._prepend = normalise, prepend
        self._symbols, self._always = find(symbols), always

    def _split(self, text, special):
        cut = []
        for part in self._split_by(self._finders[0], text) if special else [text]:
            if isinstance(part, str):
                part = self._normalise(part)
                look = special or self._always
                cut += self._split_by(self._symbols, part) if look else [part]
            else:
                cut.append(part)
        if self._prepend:  # as Metaspace does, in each part; "first" means the text's beginning
            where = {"always": len(cut), "first": 1, "never": 0}[self._prepend]
            for n, part in enumerate(cut):
                if isinstance(part, str) and part:
                    bar = BAR if n < where and part[0] not in (" ", BAR) else ""
                    cut[n] = bar + part.replace(" ", BAR)
        return cut

    def _encode_text(self, text):
        ids_of_ranks = self._ids_of_ranks
        return [i for rank in self._encoding.encode_ordinary(text) for i in ids_of_ranks[rank]]

    def decode(self, ids, *, skip_special=False):
        """Turn ids into text as the reference does. ValueError for an unknown id.

        skip_special leaves out the special tokens.
        """
        stream = self.stream(skip_special=skip_special)
        return "".join([*map(stream.push, ids), stream.finish()])

    def _stream(self, hidden):
        return self._new_stream(self, hidden)


class ModelStream:
    """Ids in, text out, as sentencepiece decodes: each wrong byte is a U+FFFD of its own."""

    def __init__(self, tokenizer, hidden, *, drop):
        """hidden: the ids to leave out.

        drop: how many ▁ go where nothing stands before them: 0, 1, or math.inf (1 a piece).
        """
        self._tokenizer, self._hidden, self._drop = tokenizer, hidden, drop
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def push(self, token):
        """Take one id, give the text that it completes: "" within a character."""
        tokenizer = self._tokenizer
        spelled = tokenizer.token_bytes(token)  # refuses an unknown id
        if token in tokenizer._byte_of:
            return self._show(self._utf8.decode(spelled))
        before = self.finish()
        piece = "" if token in self._hidden else tokenizer._texts[token]
        if self._drop and piece.startswith(BAR):
            piece, self._drop = piece[1:], self._drop - 1
        return before + self._show(piece.replace(BAR, " "))

    def finish(self):
        """Give what an unfinished character leaves: U+FFFD or nothing."""
        return self._show(self._utf8.decode(b"", final=True))

    def _show(self, text):
        self._drop = 0 if text else self._drop
        return re.sub("[\udc80-\udcff]", "\ufffd", text)


class HubStream:
    """Ids in, text out, as tokenizers decodes: one wrong byte makes all bytes beside it U+FFFD.

    So a run of `<0xXX>` pieces is given out when it has ended.
    """

    def __init__(self, tokenizer, hidden, *, strip, drop):
        """hidden: the ids to leave out.

        strip: how many spaces to take off the text; drop: whether its first piece has no ▁.
        """
        self._tokenizer, self._hidden = tokenizer, hidden
        self._strip, self._drop, self._run = strip, drop, bytearray()

    def push(self, token):
        """Take one id, give the text that it completes: "" for a byte."""
        tokenizer = self._tokenizer
        spelled = tokenizer.token_bytes(token)  # refuses an unknown id
        if token in self._hidden:
            return ""
        space, self._drop = "" if self._drop else " ", False
        if token in tokenizer._byte_of:
            self._run += spelled
            return ""
        return self.finish() + self._show(tokenizer._texts[token].replace(BAR, space))

    def finish(self):
        """Give the bytes that no piece came after."""
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
    """Give {id: byte} of the pieces that stand for bytes."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    if missing := [name for name in names if name not in vocab]:
        raise refusal(path, "model.byte_fallback without the pieces", missing, "all 256 of them")
    return {vocab[name]: byte for byte, name in enumerate(names)}


def build(path, characters, pieces, byte_of, *, split=False):
    """Give tiktoken's Encoding and, for each of its ranks, the tuple of ids.

    characters {character: id, or None for one that is no piece itself}; pieces {piece: id} of
    several characters, in the order in which they are made; split: whether each ▁ begins a word.
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
    # Short words are faster; no piece may lie across the border of two.
    if split or not any(BAR in piece[1:] for piece in pieces):
        words = f"{BAR}[^{BAR}]*|[^{BAR}]+"
    elif not any(BAR in piece.lstrip(BAR) for piece in pieces):
        words = f"{BAR}+[^{BAR}]*|[^{BAR}]+"
    else:
        words = r"[\s\S]+"
    encoding = Encoding(str(path), pat_str=words, mergeable_ranks=ranks, special_tokens={})
    return encoding, ids_of_ranks


# --- the Hub's tokenizer.json ---


def read_hub(folder, path, data, pairs, added, names):
    """Read a tokenizer.json with model.byte_fallback; tokenizer.read_hub has read these of it:

    pairs: model.merges; added: added_tokens; names: those of the files beside it.
    """
    vocab = data["model"]["vocab"]
    byte_of = read_bytes(path, vocab)
    if data["model"].get("ignore_merges"):
        raise refusal(path, "model.ignore_merges", True, "false where byte_fallback is true")
    parts = set(chain.from_iterable(pairs))
    if joined := [part for part in parts if vocab.get(part) in byte_of]:
        raise refusal(path, "model.merges", joined[:3], "merges of other pieces than <0xXX>")
    normalise = read_normalizer(path, data.get("normalizer"))
    prepend, split = read_metaspace(path, data.get("pre_tokenizer"))
    stream, fall_back = read_decoder(path, data.get("decoder"))
    names_only = {token["content"] for token in added}
    symbols = {token["content"]: token for token in added if token.get("normalized")}
    if changed := [name for name in symbols if normalise(name) != name]:
        # tokenizers finds and shows such a token by its normalised name, but hides it by its own.
        raise refusal(path, "normalizer", changed[:3], "one that leaves added tokens as they are")

    characters = {p: None if p in names_only else i for p, i in vocab.items() if len(p) == 1}
    live = live_merges(path, vocab, pairs, (), characters)[len(characters) :]
    pieces = {piece: vocab[piece] for piece in live if piece not in names_only}
    texts = {i: piece for piece, i in vocab.items()}
    texts |= {token["id"]: token["content"] for token in added}
    return SentencePiece(
        *build(path, characters, pieces, byte_of, split=split),
        texts,
        {i: int(t[3:5], 16) for i, t in texts.items() if fall_back and BYTE.fullmatch(t)},
        added,
        names,
        chat_template.read_templates(folder, read_config(folder)),
        prefix=read_prefix(path, data.get("post_processor")),
        normalise=normalise,
        symbols=symbols,
        always=False,
        prepend=prepend,
        stream=stream,
    )


def read_normalizer(path, normalizer):
    """Give what a normalizer does, as a function of the text."""
    steps = []
    for step in [] if normalizer is None else normalizer.get("normalizers", [normalizer]):
        match step:
            case {"type": "Prepend", "prepend": str(prefix)}:
                steps.append(lambda text, prefix=prefix: prefix + text if text else text)
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
                steps.append(lambda text, old=old, new=new: text.replace(old, new))
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": str(new)}:
                steps.append(lambda text, new=new: re.sub(" {2,}", lambda _: new, text))
            case {"type": "Strip", "strip_left": False, "strip_right": True}:
                steps.append(lambda text: text.rstrip(WHITESPACE))
            case _:
                raise refusal(
                    path,
                    "normalizer",
                    step,
                    "Prepend, Replace of a String or of the Regex ' {2,}', Strip on the right, "
                    "or a Sequence of them",
                )
    return lambda text: reduce(lambda text, step: step(text), steps, text)


def read_metaspace(path, pre_tokenizer):
    """Give the prepend_scheme (None: no Metaspace), and whether ▁ always begins a word."""
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
    """Give what starts a stream, and whether `<0xXX>` pieces become bytes again."""
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
        "the start; or Metaspace with ByteFallback behind it, or alone",
    )


# --- SentencePiece's own file; the numbers are those of its sentencepiece_model.proto ---

MODEL_TYPES = {1: "UNIGRAM", 2: "BPE", 3: "WORD", 4: "CHAR"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE_PIECE = 1, 2, 3, 4, 6
NAMES = {"bos_token": (46, b"<s>"), "eos_token": (47, b"</s>"), "pad_token": (48, b"<pad>")}


def read_model(folder, path):
    """Read a .model file, with the names and templates of the files beside it."""
    parts = {1: [], 2: [], 3: [], 5: []}
    try:
        for number, value in fields(path.read_bytes()):
            if number in parts:
                parts[number].append(dict(fields(value)))
        listed = [
            (entry[1].decode(), *struct.unpack("<f", entry.get(2, bytes(4))), entry.get(3, NORMAL))
            for entry in parts[1]
        ]
        trainer, normalizer, denormalizer = (
            {number: value for part in parts[n] for number, value in part.items()}
            for n in (2, 3, 5)
        )
        if not (listed and trainer and normalizer):
            raise ValueError("it ends before its pieces, trainer_spec and normalizer_spec do")
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
        ("a piece that stands twice", [p for i, (p, _, _) in enumerate(listed) if vocab[p] != i]),
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
    encoding, ids_of_ranks = build(path, characters, pieces, byte_of)
    # tiktoken takes a word that is a piece as it is, so none that no merges make may stay. NUL
    # joins with nothing: with it behind, a piece is merged.
    reached = {
        piece: i
        for piece, i in pieces.items()
        if ids_of_ranks[encoding.encode_ordinary(piece + "\0")[0]] == (i,)
    }
    if len(reached) < len(pieces):
        encoding, ids_of_ranks = build(path, characters, reached, byte_of)

    config = read_config(folder)
    added = [{"id": i, "content": piece, "special": True} for piece, i in kinds[CONTROL].items()]
    symbols = {
        piece: {"id": i, "content": piece, "normalized": True}
        for piece, i in kinds[USER_DEFINED].items()
    }
    added += symbols.values()
    names = {key: name for key, name in names.items() if name in kinds[CONTROL]}
    names |= read_names(folder)
    add_named(folder, path, vocab, added, names)
    tidy, bar = bool(normalizer.get(4, 1)), BAR if normalizer.get(3, 1) else ""
    with_bos = config.get("add_bos_token") and "bos_token" in names
    return SentencePiece(
        encoding,
        ids_of_ranks,
        {i: piece for piece, i in vocab.items()} | dict.fromkeys(kinds[UNKNOWN].values(), unknown),
        byte_of,
        added,
        names,
        chat_template.read_templates(folder, config),
        prefix=[vocab[names["bos_token"]]] if with_bos else (),
        normalise=partial(normalise, bar=bar, tidy=tidy),
        symbols=symbols,
        always=True,
        prepend=None,
        stream=partial(ModelStream, drop=math.inf if tidy else len(bar)),
    )


def normalise(text, bar, tidy):
    """Give what sentencepiece merges: bar goes before a text; tidy takes needless spaces off."""
    if tidy:
        text = re.sub(" +", " ", text.lstrip(" "))
    if text:
        text = bar + text.replace(" ", BAR)
    return text.rstrip(BAR) if tidy else text


def fields(data):
    """Yield the number and the value of each field of a protobuf message: an int, or bytes."""
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
    """Give the number at a place, seven bits a byte, and the place behind it."""
    if at < len(data) and data[at] < 128:  # most are one byte
        return data[at], at + 1
    value = 0
    for n, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * n
        if byte < 128:
            return value, at + n + 1
    raise ValueError("it is cut off")
