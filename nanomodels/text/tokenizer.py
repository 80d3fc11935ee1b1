"""Text to token ids and back, for every tokenizer of these checkpoints, on tiktoken.

    text --split by a regex--> pieces --merge neighbours, lowest rank first--> ids

A Hub folder has tokenizer.json: merges as pairs of tokens, ids in any order. tiktoken wants one
rank for each token and merges any neighbours that spell one; `live_merges` finds the ranks with
which both give the same ids for every text.
A nanochat folder has tokenizer.pkl: a pickled tiktoken encoding with ranks that are ids;
`hub_files` writes the same as a Hub folder.
SentencePiece's vocabularies, in tokenizer.json or a .model file, are read in sentencepiece.py.
Each may have a chat template beside it, which chat_template.py renders.
"""

import codecs
import json
import math
import pickle
import re
from itertools import chain, pairwise
from pathlib import Path

from tiktoken import Encoding

from nanomodels.text import chat_template
from nanomodels.text.files import one_line, read_json

# What a ByteLevel pre-tokenizer with use_regex splits by: tokenizers 0.23 byte_level.rs.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The syntax that Oniguruma (in tokenizers) and Rust's fancy-regex (in tiktoken) read alike. Not in
# it, for one: \p{N}{1,3}+ (possessive in Rust only), $ (end of a line or of the text), \w.
SHARED_SYNTAX = re.compile(
    r"""(?x) (?: \\p\{\w+\} | \\[rntsSd] | \\\W                   # \p{L}, \s, an escaped sign
    | \[ \^? (?: \\p\{\w+\} | \\[rntsSd] | \\\W | [^][\\&^] )+ \]    # [^\s\p{L}]
    | \( (?: \?(?: i?: | <?[=!] ) | (?!\?) ) | [)|.?*+]
    | \{\d+(?:,\d*)?\}(?![+?]) | [^][\\(){}|.?*+^$] )+"""
)

# Of the 1,000,000 steps that tiktoken's regex engine can remember, \s+(?!\S) takes one a character.
LONGEST_WHITESPACE = 500_000

# What \s means in Rust's regex crate; Python's str.isspace adds U+001C to U+001F.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def byte_alphabet():
    """{character: byte}: the printable characters that spell bytes in a vocabulary (GPT-2's)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


ALPHABET = byte_alphabet()


class Tokenizer:
    """The tokenizer of one checkpoint, made by `Tokenizer.load(folder)`.

    vocab_size: one more than the highest id. special_ids: {name: id}. bos_id, eos_id: an id, or
    None where the checkpoint names none. stop_ids: the ids with which a turn ends, as far as the
    tokenizer says. chat_template: the default template's text, or None.
    """

    def __init__(
        self,
        encoding,
        token_bytes,
        added,
        names,
        templates,
        *,
        ids_of_ranks=None,
        prefix=(),
        prefix_space=False,
    ):
        """encoding: tiktoken's, which gives ids, or ranks where ids_of_ranks lists their ids.

        token_bytes {id: bytes}; added: entries as in tokenizer.json's added_tokens; names
        {"bos_token": "<s>", ...}; templates {name: text}; prefix: ids that stand before a text;
        prefix_space: whether a text that does not begin with a space gets one.
        """
        self._encoding, self._ids_of_ranks = encoding, ids_of_ranks
        self._prefix, self._prefix_space = list(prefix), prefix_space
        self._bytes, self._names, self._templates = token_bytes, names, templates
        self._added = {token["content"]: token for token in added if token["content"]}
        # tokenizers looks for the added tokens with normalized=false first, then for the others.
        self._finders = [
            find({t: v for t, v in self._added.items() if bool(v.get("normalized")) is normalized})
            for normalized in (False, True)
        ]

        self.vocab_size = max(token_bytes) + 1
        self.special_ids = {name: t["id"] for name, t in self._added.items() if t.get("special")}
        self._special = frozenset(self.special_ids.values())
        self.bos_id, self.eos_id = (
            self._added.get(names.get(key), {}).get("id") for key in ("bos_token", "eos_token")
        )
        stop = {self.eos_id}
        if "<|assistant_end|>" in self.special_ids:  # nanochat/engine.py stops at either
            stop |= {self.special_ids["<|assistant_end|>"], self.special_ids.get("<|bos|>")}
        self.stop_ids = sorted(stop - {None})
        self.chat_template = templates.get("default")

    @staticmethod
    def load(folder):
        """Read a folder with tokenizer.json (Hub), tokenizer.pkl (nanochat) or a .model file.

        The tokenizer.pkl of a training folder may be where `pickle_paths` says.
        Raises FileNotFoundError where there is none, and ValueError, with file, key and what was
        found, where a file is damaged or asks for something that this class does not do.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            try:
                return read_hub(folder)
            except (AttributeError, LookupError, TypeError, UnicodeEncodeError) as error:
                raise ValueError(
                    f"{folder}: tokenizer.json or tokenizer_config.json is not laid out as "
                    f"tokenizers writes it ({type(error).__name__}: {one_line(error)})"
                ) from None
        pickles = pickle_paths(folder)
        if any(path.is_file() for path in pickles):
            return read_nanochat(folder)
        models = [path for path in sorted(folder.glob("*.model")) if path.is_file()]
        models = [path for path in models if path.name == "tokenizer.model"] or models
        if len(models) == 1:
            from nanomodels.text import (
                sentencepiece,  # here, as sentencepiece.py builds on this file
            )

            return sentencepiece.read_model(folder, models[0])
        if models:
            raise ValueError(
                f"{folder}: holds {', '.join(path.name for path in models)}; "
                "name the checkpoint's own tokenizer.model"
            )
        raise FileNotFoundError(
            f"{folder}: found neither tokenizer.json (Hub) nor {' or '.join(map(str, pickles))} "
            "(nanochat) nor a SentencePiece .model; put the checkpoint's tokenizer into this folder"
        )

    def encode(self, text, *, add_bos=None, special=False):
        """Turn text into a list of ids.

        add_bos: None puts before the text what the checkpoint's post-processor does, True the BOS
        in any case, False nothing. special: whether names of special and other added tokens in the
        text become those tokens; without it they are text like any other.
        Raises ValueError for half of a surrogate pair and for too long a run of white space.
        """
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
        for piece in self._split(text, special):
            ids += self._encode_text(piece) if isinstance(piece, str) else [piece]
        return ids

    def _encode_text(self, text):
        if len(text) > LONGEST_WHITESPACE:
            longest = max(map(len, re.findall(r"\s+", text)), default=0)
            if longest > LONGEST_WHITESPACE:
                raise ValueError(
                    f"the text has {longest:,} characters of white space in a row; "
                    f"at most {LONGEST_WHITESPACE:,} can be encoded"
                )
        if self._prefix_space and text and not text.startswith(" "):
            text = " " + text
        ids = self._encoding.encode_ordinary(text)
        return ids if self._ids_of_ranks is None else [self._ids_of_ranks[rank] for rank in ids]

    def _split(self, text, special):
        """Cut a text at the added tokens: strings and ids, as tokenizers' added_vocabulary.rs."""
        pieces = [text]
        for finder in self._finders if special else ():
            cut = []
            for piece in pieces:
                cut += self._split_by(finder, piece) if isinstance(piece, str) else [piece]
            pieces = cut
        return pieces

    def _split_by(self, finder, text):
        regex, tokens = finder
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

    def token_bytes(self, token):
        """Give the bytes of one id; of a special token, its name. ValueError for an unknown id."""
        if token not in self._bytes:
            raise ValueError(
                f"token id {token} is not in the vocabulary, whose ids end at {self.vocab_size - 1}"
            )
        return self._bytes[token]

    def decode(self, ids, *, skip_special=False):
        """Turn ids into text; bytes that are not UTF-8 become U+FFFD. ValueError for an unknown id.

        skip_special leaves out the special tokens.
        """
        hidden = self._special if skip_special else ()
        return b"".join(self.token_bytes(i) for i in ids if i not in hidden).decode(
            errors="replace"
        )

    def stream(self, *, skip_special=True, keep=()):
        """Start a `Stream`: the same text as `decode`, one id at a time.

        keep: names of special tokens that skip_special does not leave out.
        """
        shown = {self.special_ids.get(name) for name in keep}
        return self._stream(self._special - shown if skip_special else frozenset())

    def _stream(self, hidden):
        return Stream(self, hidden)

    def render_chat(
        self, messages, *, tools=None, documents=None, add_generation_prompt=True, **variables
    ):
        """Write a chat as the text that the checkpoint was trained on: transformers' own result.

        messages: list of {"role": ..., "content": ...}; tools: list of JSON schemas; documents:
        list of dicts; variables: what else the template reads, such as enable_thinking.
        Raises ValueError where there is no template, or the template refuses the messages.
        """
        variables |= {"add_generation_prompt": add_generation_prompt}
        return chat_template.render(
            self._templates, messages, tools, documents, **self._names | variables
        )

    def encode_chat(self, messages, **settings):
        """Give the ids of `render_chat(messages, **settings)`, whose own BOS is the only one.

        Names of added tokens inside the messages become those tokens, as in transformers.
        """
        return self.encode(self.render_chat(messages, **settings), add_bos=False, special=True)


def find(tokens):
    """What `Tokenizer._split_by` looks for, {text: entry of added_tokens}: the longest first."""
    choice = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return re.compile(choice or "(?!)"), tokens


class Stream:
    """Ids in, text out: the text that is complete so far. All of it together is `decode`'s."""

    def __init__(self, tokenizer, hidden):
        """hidden: the ids to leave out."""
        self._tokenizer, self._hidden = tokenizer, hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token):
        """Take one id, give the text that it completes: "" within a character."""
        if token in self._hidden:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self):
        """Give what an unfinished character leaves: U+FFFD or nothing."""
        return self._utf8.decode(b"", final=True)


# --- nanochat's tokenizer.pkl ---


class PickledEncoding:
    """Stands in for tiktoken.core.Encoding in a pickle and keeps its state as it is.

    tiktoken's own __setstate__ would download an encoding whose state is a name.
    """

    def __setstate__(self, state):
        self.state = state


class EncodingUnpickler(pickle.Unpickler):
    """Refuses every global that a pickle asks for, but tiktoken's Encoding."""

    def find_class(self, module, name):
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return PickledEncoding


# What unpickling a damaged file, or looking into what came out of it, can raise.
UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


def pickle_paths(folder):
    """List where the tokenizer.pkl of a folder may be: in it, or where nanochat's training puts it.

    A run has its checkpoints in NANOCHAT_BASE_DIR/base_checkpoints/d20 (or mid_, chatsft_,
    chatrl_checkpoints) and the tokenizer of all of them in NANOCHAT_BASE_DIR/tokenizer.
    Source: karpathy/nanochat nanochat/tokenizer.py get_tokenizer, checkpoint_manager.py load_model.
    """
    paths = [folder / "tokenizer.pkl"]
    if any(folder.glob("model_*.pt")):
        paths.append(folder.resolve().parent.parent / "tokenizer" / "tokenizer.pkl")
    return paths


def find_pickle(folder):
    paths = pickle_paths(folder)
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{folder}: found no tokenizer of nanochat, neither {' nor '.join(map(str, paths))}"
    )


def unpickle(path):
    """Read tokenizer.pkl: its regex, {bytes: rank}, {name of a special token: id}, the encoding.

    Of all that a pickle can do, this allows only one tiktoken.core.Encoding.
    """
    try:
        with path.open("rb") as file:
            state = EncodingUnpickler(file).load().state
        pattern, ranks, special = (
            state[key] for key in ("pat_str", "mergeable_ranks", "special_tokens")
        )
        if not (
            isinstance(pattern, str)
            and {(type(token), type(rank)) for token, rank in ranks.items()} == {(bytes, int)}
            and {(type(name), type(rank)) for name, rank in special.items()} <= {(str, int)}
            and all(bytes([byte]) in ranks for byte in range(256))
            and len(ids := {*ranks.values(), *special.values()}) == len(ranks) + len(special)
            and min(ids) >= 0
        ):
            raise ValueError("its pattern, ranks or special tokens are not tiktoken's")
        encoding = Encoding("nanochat", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except UNPICKLING_ERRORS as error:
        raise ValueError(
            f"{path}: not a plain pickle of one tiktoken.core.Encoding ({one_line(error)}); "
            "nothing in it was run"
        ) from None
    return pattern, ranks, special, encoding


def read_nanochat(folder):
    """Read the tokenizer.pkl of a training folder."""
    _, ranks, special, encoding = unpickle(find_pickle(folder))
    token_bytes = {rank: token for token, rank in ranks.items()}
    token_bytes |= {rank: name.encode() for name, rank in special.items()}
    added = [{"id": rank, "content": name, "special": True} for name, rank in special.items()]
    return Tokenizer(encoding, token_bytes, added, nanochat_names(special), templates_of(folder))


def nanochat_names(special):
    names = {"bos_token": "<|bos|>", "eos_token": "<|assistant_end|>"}
    return {key: name for key, name in names.items() if name in special}


def templates_of(folder):
    return {"default": chat_template.NANOCHAT_TEMPLATE} | chat_template.read_templates(folder, {})


# --- nanochat's tokenizer.pkl as the files of a Hub folder ---


def hub_files(folder):
    """Write the tokenizer of a nanochat training folder as a Hub folder has it: {name: content}.

    Content is text, or what json.dump takes. tokenizers, transformers and `Tokenizer.load` give
    with these files the ids that tiktoken gives with tokenizer.pkl.
    Raises ValueError, with the file, where tokenizer.json cannot say the same.
    """
    path = find_pickle(Path(folder))
    pattern, ranks, special, _ = unpickle(path)
    if not SHARED_SYNTAX.fullmatch(pattern):
        raise refusal(path, "pat_str", pattern, "what Oniguruma and Rust read alike")
    characters = {byte: char for char, byte in ALPHABET.items()}
    tokens = ["".join(map(characters.get, token)) for token in sorted(ranks, key=ranks.get)]
    vocab = dict(zip(tokens, sorted(ranks.values()), strict=True))
    if both := vocab.keys() & special.keys():
        raise refusal(path, "special_tokens", sorted(both), "names that no other token spells")
    merges = [last_merge(token, vocab) for token in tokens if len(token) > 1]
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    added = [
        {"id": i, "content": name, **dict.fromkeys(flags, False), "special": True}
        for name, i in sorted(special.items(), key=lambda item: item[1])
    ]
    names = nanochat_names(special)
    # Removed with invert keeps what the regex matches and drops the rest, as tiktoken does.
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = False
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "post_processor": None,
            "decoder": level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": True,  # tiktoken looks a whole piece up before it merges
                "vocab": vocab | special,
                "merges": [merge for merge in merges if merge],
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "pad_token": names.get("bos_token"),
            "additional_special_tokens": [name for name in special if name not in names.values()],
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: token[key] for key in ("content", *flags, "special")}
                for token in added
            },
        },
        "chat_template.jinja": templates_of(Path(folder))["default"],
    }


def last_merge(token, ranks):
    """Give the two parts that tiktoken joins last to make a token, or None where none make it.

    What joins inside a stretch of text depends on that stretch alone, until something joins across
    its ends: so these two are the only neighbours that ever spell the token, in any text.
    """
    parts = list(token)
    while len(parts) > 2:
        found = [ranks.get(left + right, math.inf) for left, right in pairwise(parts)]
        first = found.index(min(found))
        if found[first] == math.inf:
            return None
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


# --- the Hub's tokenizer.json ---


def read_hub(folder):
    """Read tokenizer.json, with the names and templates of the files beside it."""
    path = folder / "tokenizer.json"
    data = read_json(path)
    model = data.get("model") or {}
    pieces = model.get("byte_fallback")
    for key, found, supported in (
        ("model.type", model.get("type", "BPE"), ("BPE",)),
        ("model.dropout", model.get("dropout"), (None, 0)),
        ("model.continuing_subword_prefix", model.get("continuing_subword_prefix"), (None, "")),
        ("model.end_of_word_suffix", model.get("end_of_word_suffix"), (None, "")),
        ("model.byte_fallback", pieces, (None, False, True)),
        *(
            ()
            if pieces
            else (
                ("normalizer", data.get("normalizer"), (None,)),
                ("decoder", (data.get("decoder") or {}).get("type"), (None, "ByteLevel")),
            )
        ),
    ):
        if found not in supported:
            raise refusal(path, key, found, " or ".join(map(json.dumps, supported)))
    added = data.get("added_tokens") or []
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not isinstance(added, list):
        raise ValueError(f"{path}: needs model.vocab, model.merges and added_tokens of a BPE model")
    for token in added:
        if token.get("single_word"):
            raise refusal(path, f"single_word of {token['content']!r}", True, "false")
    ids = [*vocab.values(), *(token["id"] for token in added)]
    if (
        set(map(type, ids)) != {int}
        or not 0 <= min(ids) <= max(ids) < 2**31
        or len({*vocab.values()}) != len(vocab)
    ):
        raise ValueError(f"{path}: ids must be whole numbers, each with one token in model.vocab")
    names = read_names(folder)
    add_named(folder, path, vocab, added, names)
    merges = split_pairs(path, merges)
    if pieces:
        from nanomodels.text import sentencepiece  # here, as sentencepiece.py builds on this file

        return sentencepiece.read_hub(folder, path, data, merges, added, names)

    pattern, prefix_space = read_split(path, data.get("pre_tokenizer") or {})
    if missing := [byte for char, byte in ALPHABET.items() if char not in vocab]:
        raise refusal(path, "model.vocab without the bytes", missing, "all 256 bytes")
    names_only = {token["content"] for token in added}
    whole = vocab.keys() - names_only if model.get("ignore_merges") else ()
    tokens = live_merges(path, vocab, merges, whole, ALPHABET)
    ids_of_ranks = [vocab[token] for token in tokens]
    # Only the order of ranks matters, and bytes have none: ids in that order can be the ranks.
    merged = ids_of_ranks[256:]
    ordered = all(map(int.__lt__, merged, merged[1:]))
    ranks = ids_of_ranks if ordered else range(len(tokens))
    token_bytes = {i: spell(token) for token, i in vocab.items()}
    produced = set(ids_of_ranks)
    for token in added:
        if token["id"] not in produced:
            token_bytes[token["id"]] = token["content"].encode()
    try:
        encoding = Encoding(
            str(path),
            pat_str=pattern,
            mergeable_ranks={token_bytes[i]: n for i, n in zip(ids_of_ranks, ranks, strict=True)},
            special_tokens={},
        )
    except ValueError as error:
        raise ValueError(f"{path}: pre_tokenizer: {one_line(error)}") from None
    return Tokenizer(
        encoding,
        token_bytes,
        added,
        names,
        chat_template.read_templates(folder, read_config(folder)),
        ids_of_ranks=None if ordered else ids_of_ranks,
        prefix=read_prefix(path, data.get("post_processor")),
        prefix_space=prefix_space,
    )


def add_named(folder, path, vocab, added, names):
    """Add the tokens that the files beside path name, as transformers does."""
    known = {token["content"] for token in added}
    for name in dict.fromkeys(names.values()):
        if name in vocab and name not in known:
            added.append({"id": vocab[name], "content": name, "special": True})
    for key in ("bos_token", "eos_token"):
        if names.get(key, "") not in {"", *known, *vocab}:
            raise refusal(folder / "tokenizer_config.json", key, names[key], f"a token of {path}")


def split_pairs(path, merges):
    """Give model.merges as pairs of tokens."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if (
        not {list} >= set(map(type, pairs))
        or not {2} >= set(map(len, pairs))
        or not {str} >= set(map(type, chain.from_iterable(pairs)))
    ):
        raise ValueError(f"{path}: model.merges must be pairs of tokens, 'a b' or ['a', 'b']")
    return pairs


def live_merges(path, vocab, pairs, whole, alphabet):
    """List the tokens that byte-pair encoding can make, in the order of their merges.

    alphabet: the tokens that every text is made of, which come first.

    tokenizers joins only the pairs in `merges`, lowest index first; tiktoken joins any neighbours
    that spell a token, lowest rank first. Whether a stretch of text turns into one token depends on
    that stretch alone, as long as nothing joins across its ends; so a token arises everywhere or
    nowhere, and always from the same pair. The tokens that do arise, ranked by the index of that
    pair, make tiktoken take the same steps as tokenizers: every other pair is never met.
    A pair does arise if both parts do and no earlier merge joins across the border of the two,
    which `stay_apart` looks up. Where a pair stands before those of its parts (converters list
    "</s>" so, if other pieces spell it) the token arises as soon as they do; such a token, and each
    that holds one, is joined step by step instead.

    whole: with ignore_merges the tokens that stand for a piece of text equal to them even where no
    merge makes them, else nothing. Those come last. Raises ValueError if ranks cannot say the same.
    """
    rank = {char: n for n, char in enumerate(alphabet)}
    base = len(rank)
    firsts, lasts = list(range(base)), list(range(base))  # the two that make a token, by rank
    many = base + len(pairs)
    joined = {}  # first * many + last: the token that the two make
    order = {}  # token: the index of the pair that makes it
    unmade = []
    for n, (left, right) in enumerate(pairs):
        token, a, b = left + right, rank.get(left), rank.get(right)
        if token in rank:
            if a is not None and b is not None and a * many + b in joined:
                raise refusal(path, "model.merges", [left, right], "each pair once")
        elif a is None or b is None or not stay_apart(a, b, base, many, firsts, lasts, joined):
            unmade.append(token)
        else:
            rank[token] = joined[a * many + b] = len(firsts)
            order[token] = n
            firsts.append(a)
            lasts.append(b)
    if unknown := {*rank, *unmade} - vocab.keys():
        raise refusal(path, "model.merges", sorted(unknown)[:3], "merges that make tokens")

    rest = [token for token in [*unmade, *whole] if token not in rank]
    rest = [token for token in dict.fromkeys(rest) if alphabet.keys() >= set(token)]
    index = {(left, right): n for n, (left, right) in enumerate(pairs)} if rest else {}
    alone = {token: join(token, index) for token in rest}
    early = [token for token, (parts, _) in alone.items() if len(parts) == 1]
    for token in [token for token in order if any(part in token for part in early)]:
        del order[token]
        alone[token] = join(token, index)
    order |= {token: n for token, (parts, n) in alone.items() if len(parts) == 1}
    others = [token for token, (parts, _) in alone.items() if token in whole and len(parts) > 1]
    for token in others:
        # Of three parts or more tiktoken never makes the token: it joins two at a time.
        if len(alone[token][0]) == 2:
            raise refusal(path, "model.ignore_merges with a token without merge", token, "none")
    return [*alphabet, *sorted(order, key=order.get), *others]


def join(token, index):
    """Give what all merges together make of a token's characters, and the index of the last."""
    parts, last = list(token), None
    while len(parts) > 1:
        found = [index.get(pair, math.inf) for pair in pairwise(parts)]
        first = found.index(min(found))
        if found[first] == math.inf:
            break
        last = found[first]
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts, last


def stay_apart(left, right, base, many, firsts, lasts, joined):
    """Whether no merge so far joins the end of one token to the beginning of the next.

    Undoes the merges of both, the latest first, and looks whether the tokens then at the border
    would have been joined before. Of equal merges the left one comes first.
    """
    limit = many
    while joined.get(left * many + right, limit) >= limit:
        if left < base and right < base:
            return True
        if left > right:
            limit, left = left, lasts[left]
        else:
            limit, right = right + 1, firsts[right]
    return False


def spell(token):
    """Give the bytes of a token of the vocabulary; one that is not spelled in bytes is text."""
    try:
        return bytes(map(ALPHABET.__getitem__, token))
    except KeyError:
        return token.encode()


def read_split(path, pre_tokenizer):
    """Give the regex that cuts a text into pieces, and whether a space goes before the text."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    last = steps[-1] if steps else {}
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return GPT2_SPLIT, bool(last.get("add_prefix_space"))
    split = steps[0] if steps else {}
    pattern = (split.get("pattern") or {}).get("Regex")
    behavior = split.get("behavior"), bool(split.get("invert"))
    if (
        kinds != ["Split", "ByteLevel"]
        or last.get("use_regex", True)
        or last.get("add_prefix_space")
        or not isinstance(pattern, str)
        or behavior not in {("Isolated", False), ("Removed", True)}
    ):
        raise refusal(
            path,
            "pre_tokenizer",
            pre_tokenizer,
            "ByteLevel with use_regex, or a Split at a Regex (Isolated, or Removed with invert) "
            "followed by ByteLevel without use_regex and add_prefix_space",
        )
    if not SHARED_SYNTAX.fullmatch(pattern):
        raise refusal(path, "pre_tokenizer: Regex", pattern, "what Oniguruma and Rust read alike")
    if behavior == ("Removed", True):
        return pattern, False
    # tiktoken drops what the regex does not match; Isolated keeps it as pieces of its own.
    return rf"{pattern}|(?:(?!{pattern})[\s\S])+", False


def read_prefix(path, post_processor):
    """Give the ids that the post-processor puts before a text."""
    processor = post_processor or {}
    steps = processor.get("processors", [processor])
    prefix = []
    for step in steps:
        if step.get("type") == "TemplateProcessing":
            single = step["single"]
            where = ["Sequence" in part for part in single].index(True)
            if where != len(single) - 1:
                raise refusal(path, "post_processor.single", single, "tokens before the text only")
            for part in single[:where]:
                prefix += step["special_tokens"][part["SpecialToken"]["id"]]["ids"]
        elif step.get("type") not in (None, "ByteLevel"):
            raise refusal(path, "post_processor", step["type"], "TemplateProcessing, ByteLevel")
    return prefix


def read_config(folder):
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def read_names(folder):
    """{"bos_token": "<s>", ...}: the named tokens, which are also variables of chat templates."""
    config = read_config(folder)
    older = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and older.is_file():
        config |= read_json(older)
    names = {key: value for key, value in config.items() if key.endswith("_token")}
    if isinstance(config.get("extra_special_tokens"), dict):
        names |= config["extra_special_tokens"]
    names = {k: v.get("content") if isinstance(v, dict) else v for k, v in names.items()}
    return {key: value for key, value in names.items() if isinstance(value, str)}


def refusal(path, key, found, supported):
    found = json.dumps(found, ensure_ascii=False)
    found = found if len(found) < 300 else found[:300] + "..."
    return ValueError(f"{path}: {key} is {found}, which is not supported; supported: {supported}")
