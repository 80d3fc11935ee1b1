"""Reading tokenizer.json, which the `tokenizers` library writes, with the files beside it."""

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from nanomodels.text.bpe import (
    ALPHABET,
    GPT2_SPLIT,
    MOST_TOKENS,
    SHARED_SYNTAX,
    ByteLevel,
    BytePairs,
    live_merges,
    spell,
)
from nanomodels.text.chat_template import read_templates
from nanomodels.text.files import one_line, read_json, refusal
from nanomodels.text.tokenizer_config import add_named, read_config, read_names


@dataclass(frozen=True)
class HubJson:
    """A tokenizer.json with a BPE model."""

    path: Path
    data: dict  # the whole content
    vocab: dict  # {token: id}
    pairs: list  # model.merges as pairs of tokens
    added: list  # the entries of added_tokens, and the named tokens that are not among them
    names: dict  # {"bos_token": "<s>", ...}
    templates: dict  # {name: chat template}
    prefix: list  # the ids before a text

    @property
    def byte_fallback(self):
        """True for a vocabulary of SentencePiece, False for a byte-level one."""
        return bool(self.data["model"].get("byte_fallback"))


def read(folder):
    """Read tokenizer.json and the files beside it. ValueError for what is not supported here."""
    path = folder / "tokenizer.json"
    data = read_json(path)
    model = data.get("model") or {}
    for key, found, supported in (
        ("model.type", model.get("type", "BPE"), ("BPE",)),
        ("model.dropout", model.get("dropout"), (None, 0)),
        ("model.continuing_subword_prefix", model.get("continuing_subword_prefix"), (None, "")),
        ("model.end_of_word_suffix", model.get("end_of_word_suffix"), (None, "")),
        ("model.byte_fallback", model.get("byte_fallback"), (None, False, True)),
    ):
        check(path, key, found, supported)
    added = data.get("added_tokens") or []
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not isinstance(added, list):
        raise ValueError(f"{path}: needs model.vocab, model.merges and added_tokens of a BPE model")
    if len(vocab) > MOST_TOKENS or len(merges) > 2 * MOST_TOKENS:
        raise ValueError(
            f"{path}: has {len(vocab):,} tokens and {len(merges):,} merges; at most "
            f"{MOST_TOKENS:,} and {2 * MOST_TOKENS:,} are read"
        )
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
    config = read_config(folder)
    names = read_names(folder, config)
    add_named(folder, path, vocab, added, names)
    return HubJson(
        path=path,
        data=data,
        vocab=vocab,
        pairs=split_pairs(path, merges),
        added=added,
        names=names,
        templates=read_templates(folder, config),
        prefix=read_prefix(path, data.get("post_processor"), set(ids)),
    )


def check(path, key, found, supported):
    if found not in supported:
        raise refusal(path, key, found, " or ".join(map(json.dumps, supported)))


def split_pairs(path, merges):
    """Return model.merges as pairs of tokens."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if (
        not {list} >= set(map(type, pairs))
        or not {2} >= set(map(len, pairs))
        or not {str} >= set(map(type, chain.from_iterable(pairs)))
    ):
        raise ValueError(f"{path}: model.merges must be pairs of tokens, 'a b' or ['a', 'b']")
    return pairs


def read_prefix(path, post_processor, known):
    """Return the ids that the post-processor puts before a text, all from the set `known`."""
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
                ids = step["special_tokens"][part["SpecialToken"]["id"]]["ids"]
                if {int} != set(map(type, ids)) or not set(ids) <= known:
                    raise refusal(path, "post_processor: ids", ids, "ids of its vocabulary")
                prefix += ids
        elif step.get("type") not in (None, "ByteLevel"):
            raise refusal(path, "post_processor", step["type"], "TemplateProcessing, ByteLevel")
    return prefix


def byte_level(hub):
    """Return the ByteLevel codec of a HubJson without byte_fallback."""
    path, data, vocab = hub.path, hub.data, hub.vocab
    check(path, "normalizer", data.get("normalizer"), (None,))
    check(path, "decoder", (data.get("decoder") or {}).get("type"), (None, "ByteLevel"))
    pattern, prefix_space = read_split(path, data.get("pre_tokenizer") or {})
    if missing := [byte for char, byte in ALPHABET.items() if char not in vocab]:
        raise refusal(path, "model.vocab without the bytes", missing, "all 256 bytes")
    names_only = {token["content"] for token in hub.added}
    whole = vocab.keys() - names_only if data["model"].get("ignore_merges") else ()
    tokens = live_merges(path, vocab, hub.pairs, whole, ALPHABET)
    ids_of_ranks = [vocab[token] for token in tokens]
    # Only the order of ranks matters, and single bytes need no order. So if the ids of the merged
    # tokens are in order, they can be the ranks.
    merged = ids_of_ranks[256:]
    ordered = all(map(int.__lt__, merged, merged[1:]))
    ranks = ids_of_ranks if ordered else range(len(tokens))
    token_bytes = {i: spell(token) for token, i in vocab.items()}
    produced = set(ids_of_ranks)
    for token in hub.added:
        if token["id"] not in produced:
            token_bytes[token["id"]] = token["content"].encode()
    try:
        numbered = {token_bytes[i]: n for i, n in zip(ids_of_ranks, ranks, strict=True)}
        encoding = BytePairs(path, pattern, numbered)
    except ValueError as error:
        raise ValueError(f"{path}: pre_tokenizer: {one_line(error)}") from None
    return ByteLevel(
        encoding,
        token_bytes,
        ids_of_ranks=None if ordered else ids_of_ranks,
        prefix_space=prefix_space,
    )


def read_split(path, pre_tokenizer):
    """Return the regex that splits a text, and whether a space goes before the text."""
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
        raise refusal(
            path,
            "pre_tokenizer: Regex",
            pattern,
            "syntax that Oniguruma and Rust understand alike",
        )
    if behavior == ("Removed", True):
        return pattern, False
    # tiktoken drops what the regex does not match; Isolated keeps it as separate pieces.
    return rf"{pattern}|(?:(?!{pattern})[\s\S])+", False
