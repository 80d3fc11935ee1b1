"""Byte-level tokenizers: ids, text and refusals, compared with `tokenizers` and nanochat."""

import json
import pickle
import random
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import (
    CALM,
    CHARACTERS,
    CORPUS,
    LEVEL,
    NASTY,
    SENTENCES,
    SPLITS,
    added,
    family_131072,
    trained,
    write,
)
from tiktoken import Encoding
from tokenizers import Tokenizer as Reference
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nanomodels.text import chat_template, hub_json
from nanomodels.text.bpe import ALPHABET
from nanomodels.text.nanochat_pickle import hub_files
from nanomodels.text.tokenizer import Tokenizer

NANOCHAT = Path(__file__).parent / "data" / "nanochat-2025-10-16"
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=40),
    st.lists(
        st.sampled_from([*NASTY, *SENTENCES.split(), " ", "\n", "'", "s", "1"]), max_size=9
    ).map("".join),
    st.text("ab '\n1é", max_size=40),
)


def shuffled_ids(data):
    ids = list(range(len(data["model"]["vocab"])))
    random.Random(0).shuffle(ids)
    return renumber(data, ids.__getitem__)


def renumber(data, new_id):
    data["model"]["vocab"] = {t: new_id(i) for t, i in data["model"]["vocab"].items()}
    for token in data["added_tokens"]:
        token["id"] = new_id(token["id"])
    return data


def merges_as_strings(data):
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    return data


def every_split_listed(data):
    """As converters from tiktoken write it: for each token, all pairs that spell it."""
    vocab, merges = data["model"]["vocab"], []
    for token in ("".join(merge) for merge in data["model"]["merges"]):
        cuts = [(token[:n], token[n:]) for n in range(1, len(token))]
        pairs = [pair for pair in cuts if vocab.keys() >= set(pair)]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    data["model"]["merges"] = merges
    return data


def ignore_merges(data):
    """Whole pieces count as tokens even if no merge makes them; two such are in the vocabulary."""
    data["model"]["ignore_merges"] = True
    data["model"]["vocab"] |= {"qzqzq": 5000, "ĠXYZZY": 5001}
    return data


def prefix_space(data):
    data["pre_tokenizer"]["add_prefix_space"] = True
    return data


def bos(data):
    data["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": False,
                "use_regex": True,
            },
            json.loads(
                processors.TemplateProcessing(
                    single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 0)]
                ).__getstate__()
            ),
        ],
    }
    return data


def removed(data):
    data["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    return data


def as_is(data):
    return data


CASES = {
    "gpt2": ("gpt2", as_is),
    "gpt2 prefix space": ("gpt2", prefix_space),
    "gpt4": ("gpt4", as_is),
    "gpt4 removed": ("gpt4", removed),
    "o200k": ("o200k", as_is),
    "o200k merges as strings": ("o200k", merges_as_strings),
    "o200k bos": ("o200k", bos),
    "nemotron-h": None,  # of family_131072
    "nemotron-3": None,
    "nanochat": ("nanochat", as_is),
    "nanochat shuffled ids": ("nanochat", shuffled_ids),
    "gaps": ("gaps", as_is),
    "gaps removed": ("gaps", removed),
    "every split listed": ("gpt4", every_split_listed),
    "ignore merges": ("gpt4", ignore_merges),
    "ignore merges, every split": (
        "nanochat",
        lambda data: ignore_merges(every_split_listed(data)),
    ),
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    @cache
    def load(case):
        folder = tmp_path_factory.mktemp("tokenizer")
        if CASES[case] is None:
            family_131072(folder, case)
        else:
            split, change = CASES[case]
            write(folder, change(json.loads(trained(split))))
        return Tokenizer.load(folder), Reference.from_file(str(folder / "tokenizer.json"))

    return load


@pytest.mark.parametrize("case", CASES)
@CALM
@given(text=TEXTS)
def test_encode_gives_the_ids_of_tokenizers(load, case, text):
    ours, reference = load(case)
    assert ours.encode(text, special=True) == reference.encode(text).ids
    plain = ours.encode(text, add_bos=False)
    assert not ours._special & set(plain)
    if not any(name in text for name in ours.special_ids):
        assert plain == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("case", CASES)
def test_encode_gives_the_ids_of_tokenizers_on_nasty_text(load, case):
    ours, reference = load(case)
    for text in [*NASTY, *CORPUS, "".join(NASTY)]:
        assert ours.encode(text, special=True) == reference.encode(text).ids, text


@pytest.mark.parametrize("case", [case for case in CASES if "removed" not in case])
@CALM
@given(text=TEXTS)
def test_decode_undoes_encode(load, case, text):
    ours, reference = load(case)
    expected = " " + text if "prefix" in case and text and text[0] != " " else text
    for special in (False, True):
        ids = ours.encode(text, add_bos=False, special=special)
        if "prefix" not in case or not special:
            assert ours.decode(ids) == expected
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=False)
        shown = ours.decode(ids, skip_special=True)
        assert shown == reference.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("case", ["gpt2", "nemotron-3", "nanochat shuffled ids"])
@CALM
@given(data=st.data())
def test_the_joined_stream_is_what_decode_gives(load, case, data):
    ours, _ = load(case)
    ids = data.draw(st.lists(st.sampled_from(sorted(ours.codec.token_bytes)), max_size=30))
    ids += ours.encode(data.draw(TEXTS))
    for skip in (False, True):
        stream = ours.stream(skip_special=skip)
        pieces = [stream.push(i) for i in ids] + [stream.finish()]
        assert "".join(pieces) == ours.decode(ids, skip_special=skip)


def test_the_stream_holds_back_an_unfinished_character(load):
    ours, _ = load("gpt2")
    ids = [
        i
        for byte in "é🙂".encode()
        for i, b in ours.codec.token_bytes.items()
        if b == bytes([byte])
    ]
    stream = ours.stream()
    assert [stream.push(i) for i in ids] == ["", "é", "", "", "", "🙂"]
    assert stream.push(ours.special_ids["<s>"]) == "" and stream.finish() == ""
    assert ours.stream(skip_special=False).push(ours.special_ids["<s>"]) == "<s>"
    assert stream.push(ids[0]) == "" and stream.finish() == "\ufffd"


@st.composite
def merge_lists(draw):
    """Merge lists that no training makes: any tokens of a, b, c; half of the lists in any order."""
    tokens, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(1, 14))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if len("".join(pair)) < 7 and (pair not in merges or draw(st.integers(0, 9)) == 0):
            merges.append(pair)
            tokens.append("".join(pair))
    return draw(st.permutations(merges)) if draw(st.booleans()) else merges


@settings(CALM, max_examples=examples(500))
@given(
    merges=merge_lists(),
    whole=st.lists(st.text("abc", min_size=2, max_size=5), max_size=2),
    ignore=st.booleans(),
    text=st.data(),
)
def test_any_merge_list_is_refused_or_gives_the_ids_of_tokenizers(
    tmp_path_factory, merges, whole, ignore, text
):
    data = json.loads(trained("gpt2", size=262))
    tokens = dict.fromkeys(token for a, b in merges for token in (a, b, a + b))
    tokens = [t for t in [*tokens, *dict.fromkeys(whole)] if len(t) > 1]
    data["model"]["vocab"] = {char: n for n, char in enumerate(ALPHABET)} | {
        token: 300 + n for n, token in enumerate(dict.fromkeys(tokens))
    }
    data["added_tokens"] = []
    data["model"] |= {"merges": merges, "ignore_merges": ignore}
    folder = write(tmp_path_factory.getbasetemp() / "any-merges", data)
    try:
        ours = Tokenizer.load(folder)
    except ValueError as error:
        assert "model.merges" in str(error) or "model.ignore_merges" in str(error)
        return
    reference = Reference.from_file(str(folder / "tokenizer.json"))
    for _ in range(8):
        sample = text.draw(st.text("abc", max_size=14))
        assert ours.encode(sample) == reference.encode(sample).ids
    for sample in tokens:
        assert ours.encode(sample) == reference.encode(sample).ids


OVERLAPPING = [
    added("<a>", 700),
    added("<a><b>", 701),
    added("<b>", 702, normalized=True, special=False),
    added("><", 703, normalized=True),
    added("<l>", 704, lstrip=True),
    added("<r>", 705, rstrip=True),
    added("<lr>", 706, lstrip=True, rstrip=True, normalized=True),
    added(" y", 707),
    added("日本", 708, special=False),
]


@CALM
@given(
    parts=st.lists(
        st.sampled_from(
            [*(t["content"] for t in OVERLAPPING), " ", "\n", "\u3000", "\x1c", "x", "<", ">"]
        )
    )
)
def test_added_tokens_are_found_where_tokenizers_finds_them(tmp_path_factory, parts):
    data = json.loads(trained("gpt2"))
    data["added_tokens"] += OVERLAPPING
    folder = write(tmp_path_factory.getbasetemp() / "overlapping", data)
    ours = Tokenizer.load(folder)
    reference = Reference.from_file(str(folder / "tokenizer.json"))
    text = "".join(parts)
    assert ours.encode(text, special=True) == reference.encode(text).ids


def test_the_ids_of_a_nanochat_tokenizer_are_nanochats():
    tokenizer = Tokenizer.load(NANOCHAT)
    for case in json.loads((NANOCHAT / "tokenizer_expected.json").read_text(encoding="utf-8")):
        ids = tokenizer.encode(case["text"], add_bos=False)  # nanochat's encode without prepend
        assert ids == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    assert tokenizer.vocab_size == 400 and tokenizer.bos_id == 391
    assert tokenizer.special_ids["<|output_end|>"] == 399
    assert tokenizer.token_bytes(391) == b"<|bos|>"
    ids = tokenizer.encode("<|bos|>a", add_bos=False, special=True)
    assert ids == tokenizer.encode("a") and tokenizer.decode(ids) == "<|bos|>a"


def test_raw_text_for_nanochat_begins_with_one_bos(tmp_path):
    """In Python as in the command, and from each kind of folder."""
    trained_folder = NANOCHAT.parents[2] / "weights" / "nanochat-tiny"
    for folder in (NANOCHAT, write_hub(NANOCHAT, tmp_path), trained_folder):
        tokenizer = Tokenizer.load(folder)
        bos = tokenizer.special_ids["<|bos|>"]
        for text in ("", "Hello world", "<|bos|>"):
            ids = tokenizer.encode(text)
            assert ids == [bos, *tokenizer.encode(text, add_bos=False)] and ids.count(bos) == 1
            assert ids == tokenizer.encode(text, add_bos=True)
        chat = tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
        assert chat[0] == bos and chat.count(bos) == 1


@settings(CALM, max_examples=examples(300))
@given(text=TEXTS)
def test_the_same_nanochat_tokenizer_from_either_file_gives_the_same_ids(
    load, tmp_path_factory, text
):
    ours, _ = load("nanochat")
    special = {name: i for name, i in ours.special_ids.items()}
    ranks = {ours.token_bytes(i): i for i in ours.codec.token_bytes if i not in special.values()}
    # Ids of the merges are in their order here, so they can be ranks.
    encoding = Encoding(
        "rustbpe", pat_str=SPLITS["nanochat"], mergeable_ranks=ranks, special_tokens=special
    )
    folder = tmp_path_factory.getbasetemp() / "native"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    native = Tokenizer.load(folder)
    assert native.encode(text) == ours.encode(text) == encoding.encode_ordinary(text)


def write_native(folder, tokens, ids=None, pattern=SPLITS["nanochat"]):
    """A nanochat tokenizer.pkl: tokens in the order of their ranks, then the nine special ones."""
    folder.mkdir(exist_ok=True, parents=True)
    names = list(Tokenizer.load(NANOCHAT).special_ids)
    ids = ids or range(len(tokens) + len(names))
    every = dict(zip([*tokens, *names], ids, strict=True))
    encoding = Encoding(
        "rustbpe",
        pat_str=pattern,
        mergeable_ranks={token: every[token] for token in sorted(tokens)},  # the order says nothing
        special_tokens={name: every[name] for name in names},
    )
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    return encoding


def write_hub(native, folder):
    """A folder with the hub_files, and with the part of config.json that AutoTokenizer needs."""
    folder.mkdir(exist_ok=True)
    for name, content in hub_files(native).items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8", newline="")
    (folder / "config.json").write_text('{"model_type": "nanochat"}')
    return folder


def trained_tokens(size):
    """All 256 bytes, then the tokens that training makes from them."""
    merged = ["".join(merge) for merge in json.loads(trained("nanochat", size))["model"]["merges"]]
    spelled = [bytes(map(ALPHABET.__getitem__, token)) for token in dict.fromkeys(merged)]
    return [*(bytes([byte]) for byte in range(256)), *spelled]


def odd_native(folder):
    """Ranks that no training makes: with gaps, in any order, and two tokens that no merge makes."""
    tokens = [*trained_tokens(900), b"qzqzq", b" XYZZY"]
    random.Random(1).shuffle(tokens)
    ids = random.Random(2).sample(range(3 * len(tokens)), len(tokens) + 9)
    return write_native(folder, tokens, [*sorted(ids[9:]), *ids[:9]])


NATIVE = {
    **{path.name: path for path in sorted(NANOCHAT.parent.glob("nanochat-*"))},
    "4000 tokens": lambda folder: write_native(folder, trained_tokens(4000)),
    "odd": odd_native,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """tiktoken's encoding, our tokenizer of tokenizer.pkl, and three tokenizers of hub_files."""

    @cache
    def both(case):
        native, folder = NATIVE[case], tmp_path_factory.mktemp("hub")
        if callable(native):
            native(folder / "native")
            native = folder / "native"
        encoding = pickle.loads((native / "tokenizer.pkl").read_bytes())
        write_hub(native, folder)
        reference = Reference.from_file(str(folder / "tokenizer.json"))
        transformers = AutoTokenizer.from_pretrained(folder)
        return encoding, Tokenizer.load(native), Tokenizer.load(folder), reference, transformers

    return both


CHATTY = st.one_of(
    TEXTS,
    st.lists(
        st.sampled_from(
            ["<|bos|>", "<|assistant_end|>", "<|python_start|", "\u0301", "\r\n", "qzqzq", " XYZZY"]
        )
    ).map("".join),
)


@pytest.mark.parametrize("case", NATIVE)
@settings(CALM, max_examples=examples(300))
@given(text=CHATTY)
def test_hub_files_give_the_ids_of_tiktoken(both, case, text):
    encoding, native, hub, reference, transformers = both(case)
    ids = encoding.encode(text, allowed_special="all")
    for ours in (native, hub):  # the others add no <|bos|>
        assert ours.encode(text, add_bos=False, special=True) == ids
    assert reference.encode(text).ids == transformers(text).input_ids == ids
    plain = encoding.encode_ordinary(text)
    assert native.encode(text, add_bos=False) == hub.encode(text, add_bos=False) == plain
    reference.encode_special_tokens = True
    assert reference.encode(text).ids == plain
    reference.encode_special_tokens = False
    assert native.decode(ids) == hub.decode(ids) == transformers.decode(ids) == text
    shown = transformers.decode(ids, skip_special_tokens=True)
    assert (
        native.decode(ids, skip_special=True) == hub.decode(ids, skip_special=True) == shown
        and reference.decode(ids, skip_special_tokens=True) == shown
    )


@pytest.mark.parametrize("case", NATIVE)
@settings(CALM, max_examples=examples(100))
@given(texts=st.lists(CHATTY, min_size=1, max_size=4), system=st.booleans(), more=st.booleans())
def test_hub_files_give_the_ids_of_a_chat(both, case, texts, system, more):
    _, native, hub, _, transformers = both(case)
    messages = [{"role": "system", "content": "Be kind."}] if system else []
    for n, text in enumerate(texts):
        messages.append({"role": ("user", "assistant")[n % 2], "content": text})
    ids = native.encode_chat(messages, add_generation_prompt=more, trust_text=True)
    assert hub.encode_chat(messages, add_generation_prompt=more, trust_text=True) == ids
    assert ids == transformers.apply_chat_template(
        messages, add_generation_prompt=more, return_dict=False
    )


@pytest.mark.parametrize("case", NATIVE)
def test_hub_files_keep_every_token_and_name(both, case):
    encoding, native, hub, reference, transformers = both(case)
    for text in [*NASTY, *CORPUS, "".join(NASTY)]:
        ids = encoding.encode(text, allowed_special="all")
        for ours in (native, hub):  # the others add no <|bos|>
            assert ours.encode(text, add_bos=False, special=True) == ids
        assert reference.encode(text).ids == transformers(text).input_ids == ids
    for token, i in encoding._mergeable_ranks.items():
        assert hub.token_bytes(i) == token
    for name, i in encoding._special_tokens.items():
        assert hub.special_ids[name] == reference.token_to_id(name) == i
        assert transformers.convert_tokens_to_ids(name) == i and i in transformers.all_special_ids
    same = ["bos_id", "chat_template", "eos_id", "special_ids", "vocab_size"]
    assert [getattr(hub, name) for name in same] == [getattr(native, name) for name in same]
    assert (
        hub.codec.token_bytes == native.codec.token_bytes
        and hub.chat_template == chat_template.NANOCHAT_TEMPLATE
    )
    assert (transformers.bos_token_id, transformers.eos_token_id) == (hub.bos_id, hub.eos_id)
    assert transformers.pad_token_id == hub.bos_id and transformers.chat_template
    assert (len(hub.codec.token_bytes), hub.vocab_size) == (len(transformers), encoding.n_vocab)


@settings(CALM, max_examples=examples(200))
@given(
    tokens=st.lists(st.text("abc", min_size=2, max_size=6), max_size=14, unique=True),
    texts=st.lists(st.text("abc", max_size=14), max_size=8),
    pattern=st.sampled_from([SPLITS["nanochat"], "[ab]+"]),
)
def test_hub_files_give_the_ids_of_tiktoken_for_any_ranks(tmp_path_factory, tokens, texts, pattern):
    folder = tmp_path_factory.getbasetemp() / "any-ranks"
    tokens = [token.encode() for token in tokens]
    encoding = write_native(
        folder / "native", [*(bytes([byte]) for byte in range(256)), *tokens], pattern=pattern
    )
    hub = Tokenizer.load(write_hub(folder / "native", folder))
    reference = Reference.from_file(str(folder / "tokenizer.json"))
    for text in [*texts, *(token.decode() for token in tokens)]:
        ids = hub.encode(text, add_bos=False)  # the others add no <|bos|>
        assert ids == reference.encode(text).ids == encoding.encode_ordinary(text)


def test_what_hub_files_cannot_say_is_refused(tmp_path):
    every = [bytes([byte]) for byte in range(256)]
    write_native(tmp_path, every, pattern=r"\p{N}{1,3}+|.")
    with pytest.raises(ValueError, match=r"tokenizer.pkl: pat_str is .* Oniguruma"):
        hub_files(tmp_path)
    write_native(tmp_path, [*every, b"<|bos|>"])
    with pytest.raises(ValueError, match=r'tokenizer.pkl: special_tokens is \["<\|bos\|>"\]'):
        hub_files(tmp_path)


@pytest.mark.parametrize("phase", ["base", "mid", "chatsft", "chatrl"])
def test_a_training_run_keeps_its_tokenizer_apart(tmp_path, monkeypatch, phase):
    run = tmp_path / f"{phase}_checkpoints" / "d20"
    run.mkdir(parents=True)
    shared = tmp_path / "tokenizer" / "tokenizer.pkl"
    with pytest.raises(FileNotFoundError) as caught:
        Tokenizer.load(run)
    assert str(shared) not in str(caught.value)
    (run / "model_000010.pt").touch()
    for read in (Tokenizer.load, hub_files):
        with pytest.raises(FileNotFoundError) as caught:
            read(run)
        assert str(run / "tokenizer.pkl") in str(caught.value) and str(shared) in str(caught.value)

    write_native(shared.parent, trained_tokens(300))
    vocab = hub_files(run)["tokenizer.json"]["model"]["vocab"]
    assert len(vocab) == Tokenizer.load(run).vocab_size == 256 + 39 + 9
    monkeypatch.chdir(run)
    assert Tokenizer.load(".").vocab_size == Tokenizer.load(Path("..") / run.name).vocab_size == 304
    write_native(run, trained_tokens(320))  # the folder's own comes first
    assert Tokenizer.load(run).vocab_size == 256 + 59 + 9


def test_bos_is_added_where_the_checkpoint_adds_it(load):
    for case, bos in (("o200k bos", 0), ("nemotron-h", 1)):
        ours = load(case)[0]
        assert ours.encode("x")[0] == bos and len(ours.encode("x")) == 2
        assert len(ours.encode("x", add_bos=False)) == 1
        assert ours.encode("") == [bos] and ours.encode("x", add_bos=True).count(bos) == 1
    without = load("nemotron-3")[0]
    assert len(without.encode("x")) == 1 and without.encode("") == []
    assert without.encode("x", add_bos=True) == [1, *without.encode("x")]
    with pytest.raises(ValueError, match="names no BOS"):
        load("gpt4")[0].encode("x", add_bos=True)


@pytest.mark.parametrize("add_bos_token", [None, False, True])
@pytest.mark.parametrize("case", ["nemotron-h", "nemotron-3"])
def test_the_post_processor_alone_says_whether_bos_is_added(tmp_path, case, add_bos_token):
    folder = family_131072(tmp_path, case)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"add_bos_token": add_bos_token}
    path.write_text(json.dumps(config))
    ids = PreTrainedTokenizerFast.from_pretrained(folder)("x").input_ids
    assert Tokenizer.load(folder).encode("x") == ids and (ids[0] == 1) == (case == "nemotron-h")


def test_the_131072_family_has_its_special_tokens_before_its_bytes(load):
    ours, _ = load("nemotron-3")
    assert sorted(ours.special_ids.values()) == list(range(1000))
    assert [ours.token_bytes(1000 + byte) for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]
    assert ours.encode("\n") == [1010] and ours.encode("12") == [1000 + ord("1"), 1000 + ord("2")]
    assert (ours.bos_id, ours.eos_id) == (1, 11)
    ids = ours.encode("<think>\n</think><SPECIAL_999>", special=True)
    assert ids == [12, 1010, 13, 999] and ours.decode(ids, skip_special=True) == "\n"


@pytest.mark.parametrize("case", ["nemotron-h", "nemotron-3"])
@CALM
@given(text=TEXTS)
def test_the_131072_family_is_read_as_transformers_reads_it(case, tmp_path_factory, text):
    ours, reference = both_131072(case, tmp_path_factory.getbasetemp())
    ids = reference(text).input_ids
    assert ours.encode(text, special=True) == ids
    for skip in (False, True):
        assert ours.decode(ids, skip_special=skip) == reference.decode(
            ids, skip_special_tokens=skip
        )


@cache
def both_131072(case, folder):
    family_131072(folder / case, case)
    return Tokenizer.load(folder / case), PreTrainedTokenizerFast.from_pretrained(folder / case)


def test_names_come_from_the_files_beside_tokenizer_json(tmp_path):
    data = json.loads(trained("gpt4"))
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "</s>"]
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
    tokenizer = Tokenizer.load(write(tmp_path / "a", data, tokenizer_config=config))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.encode("</s>", special=True) == [1]  # in the vocabulary only, but named
    assert tokenizer.encode("x", add_bos=True)[0] == 0 and len(tokenizer.encode("x")) == 1
    older = {"eos_token": {"content": "<|start|>"}}
    tokenizer = Tokenizer.load(write(tmp_path / "b", data, special_tokens_map=older))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 2)
    newer = {"eos_token": "</s>", "added_tokens_decoder": {"1": added("</s>", 1)}}
    both = {"tokenizer_config": newer, "special_tokens_map": older}
    folder = write(tmp_path / "d", data, **both)
    assert Tokenizer.load(folder).eos_id == 1, "the newer file says all"
    assert PreTrainedTokenizerFast.from_pretrained(folder).eos_token == "</s>"
    with pytest.raises(ValueError, match=r"tokenizer_config.json: eos_token is \"</t>\""):
        Tokenizer.load(write(tmp_path / "c", data, tokenizer_config={"eos_token": "</t>"}))


def test_a_nanochat_hub_tokenizer_stops_at_the_end_of_the_assistant(tmp_path):
    data = json.loads(trained("nanochat"))
    data["added_tokens"] += [added("<|bos|>", 900), added("<|assistant_end|>", 901)]
    tokenizer = Tokenizer.load(write(tmp_path, data))
    assert tokenizer.vocab_size == 902


def test_an_unknown_id_is_refused(load):
    ours, _ = load("ignore merges")
    for i in (-1, ours.vocab_size):
        with pytest.raises(ValueError, match=f"token id {i} is not in the vocabulary"):
            ours.decode([100, i])
        with pytest.raises(ValueError, match=f"token id {i} is not in the vocabulary"):
            ours.stream().push(i)


def test_an_id_in_a_gap_becomes_a_replacement_character(load):
    """A model can sample an id that no token has. The text before it must not be lost."""
    ours, _ = load("ignore merges")
    assert ours.vocab_size == 5002 and 4999 not in ours.codec.token_bytes
    ids = [*ours.encode("Hi"), 4999, *ours.encode(" you")]
    assert ours.decode(ids) == "Hi\ufffd you"
    assert ours.token_bytes(4999) == "\ufffd".encode()


@pytest.mark.parametrize("regex", ["x*", "h*?", "(?:)|a", "(?=h)", "", "q|(?=Z)"])
def test_a_regex_that_matches_no_text_is_refused(tmp_path, capfd, regex):
    state = STATE | {"pat_str": regex}
    (tmp_path / "tokenizer.pkl").write_bytes(pickled_encoding(state))
    with pytest.raises(ValueError, match="tokenizer.pkl: .*the regex matches no text"):
        Tokenizer.load(tmp_path).encode("hZ")
    assert capfd.readouterr() == ("", "")  # Rust's panics are written to stderr


def test_a_regex_that_gives_up_is_one_line(tmp_path, capfd):
    data = json.loads(trained("gpt4"))
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"(?:h|h)+(?!b)Q|."
    tokenizer = Tokenizer.load(write(tmp_path, data))
    with pytest.raises(ValueError, match="tokenizer.json: the regex fails on this text") as caught:
        tokenizer.encode("h" * 3000)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_one_very_long_token_is_read_fast(tmp_path):
    """A token of 20,000 letters took minutes."""
    data = json.loads(trained("gpt4"))
    data["model"]["ignore_merges"] = True
    data["model"]["vocab"]["qz" * 10_000] = 9000
    began = time.process_time()
    ours = Tokenizer.load(write(tmp_path, data))
    assert time.process_time() - began < 5
    assert ours.encode("qz" * 10_000) == [9000]


def test_names_that_take_long_to_search_for_are_refused(tmp_path):
    """An added token of 10,000,000 letters took half a minute."""
    data = json.loads(trained("gpt4"))
    data["added_tokens"] += [added("q" * 200_000, 9000), added("z" * 100_000, 9001)]
    with pytest.raises(ValueError, match="its added tokens have 300,0.. characters in all"):
        Tokenizer.load(write(tmp_path, data))


def test_a_vocabulary_that_takes_long_to_read_is_refused(tmp_path, monkeypatch):
    data = json.loads(trained("gpt4"))
    tokens, merges = len(data["model"]["vocab"]), len(data["model"]["merges"])
    write(tmp_path, data)
    monkeypatch.setattr(hub_json, "MOST_TOKENS", tokens)
    Tokenizer.load(tmp_path)
    for most in (tokens - 1, merges // 2 - 1):
        monkeypatch.setattr(hub_json, "MOST_TOKENS", most)
        with pytest.raises(ValueError, match=f"json: has {tokens} tokens and {merges} merges; at"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize("ids", [[[1]], [None], ["a"], [1.5], [True], [99999], 3])
def test_wrong_ids_of_the_post_processor_are_refused(tmp_path, ids):
    data = bos(json.loads(trained("gpt4")))
    data["post_processor"]["processors"][1]["special_tokens"]["<s>"]["ids"] = ids
    with pytest.raises(ValueError, match="tokenizer.json"):
        Tokenizer.load(write(tmp_path, data))


def test_bytes_that_are_no_text_become_replacement_characters(load):
    ours, _ = load("gpt2")
    byte = {b: i for i, b in ours.codec.token_bytes.items()}
    ids = [byte[b"\xf0"], byte[b"a"], byte[b"\x80"]]
    assert ours.decode(ids) == b"\xf0a\x80".decode(errors="replace")


@pytest.mark.parametrize("case", ["gpt2", "nemotron-3", "nanochat", "gaps"])
def test_large_texts_work_or_are_refused(load, case):
    ours, _ = load(case)
    for text in (
        "a" * 100_000,
        " " * 100_000,
        " " * 100_000 + "x",
        "\n" * 100_000,
        SENTENCES * 2000,
    ):
        assert ours.decode(ours.encode(text)) == text
    with pytest.raises(ValueError, match="600,000 characters of white space in a row"):
        ours.encode("x" + " " * 600_000)


def test_half_a_surrogate_pair_is_refused(load):
    for special in (False, True):
        with pytest.raises(ValueError, match=r"half of a surrogate pair, '\\ud83d' at 1"):
            load("gpt2")[0].encode("a\ud83d", special=special)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    for folder, words in ((tmp_path, "neither tokenizer.json"), (tmp_path / "x", "no such folder")):
        with pytest.raises(FileNotFoundError, match=words):
            Tokenizer.load(folder)


SPLIT = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False}
REFUSED = {
    "normalizer": ({"normalizer": {"type": "NFC"}}, {}),
    "model.type": ({}, {"type": "Unigram"}),
    "model.dropout": ({}, {"dropout": 0.1}),
    "model.continuing_subword_prefix": ({}, {"continuing_subword_prefix": "##"}),
    "model.end_of_word_suffix": ({}, {"end_of_word_suffix": "</w>"}),
    "model.byte_fallback": ({}, {"byte_fallback": True}),
    "decoder": ({"decoder": {"type": "Metaspace"}}, {}),
    "pre_tokenizer": ({"pre_tokenizer": {"type": "Metaspace"}}, {}),
    "pre_tokenizer none": ({"pre_tokenizer": None}, {}),
    "pre_tokenizer no split": ({"pre_tokenizer": LEVEL}, {}),
    "pre_tokenizer string": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [SPLIT | {"pattern": {"String": "a"}}, LEVEL],
            }
        },
        {},
    ),
    "pre_tokenizer merged": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [SPLIT | {"behavior": "MergedWithNext"}, LEVEL],
            }
        },
        {},
    ),
    "pre_tokenizer two splits": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, SPLIT, LEVEL]}},
        {},
    ),
    "post_processor": ({"post_processor": {"type": "BertProcessing"}}, {}),
    "post_processor.single": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}],
                "special_tokens": {},
            }
        },
        {},
    ),
    "single_word": ({"added_tokens": [added("<x>", 999, single_word=True)]}, {}),
    "ids must be": ({"added_tokens": [added("<x>", -1)]}, {}),
    "model.merges must be": ({}, {"merges": ["a b c"]}),
    "model.merges is": ({}, {"merges": ["q q"]}),
    "model.merges is [": ({}, {"merges": ["t h", "t h"]}),
    "model.ignore_merges": ({}, {"ignore_merges": True, "merges": [], "vocab": None}),
    "model.vocab without the bytes": ({}, {"vocab": {"a": 0}, "merges": []}),
    "needs model.vocab": ({}, {"merges": None}),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path, key):
    data = json.loads(trained("gpt4"))
    top, model = REFUSED[key]
    if "vocab" in model and model["vocab"] is None:
        model = model | {"vocab": {c: n for n, c in enumerate(ALPHABET)} | {"qz": 256}}
    data |= top
    data["model"] |= model
    name = key.split()[0] if key.startswith("pre_tokenizer") else key
    with pytest.raises(ValueError, match="tokenizer.json") as caught:
        Tokenizer.load(write(tmp_path, data))
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "regex", [r"\p{N}{1,3}+", r"\s+$", "^a", r"\w", r"\h", "(?<a", "[a&&b]", ""]
)
def test_a_regex_that_the_libraries_read_differently_is_refused(tmp_path, regex):
    data = json.loads(trained("gpt4"))
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex
    with pytest.raises(ValueError, match="tokenizer.json: pre_tokenizer: Regex is"):
        Tokenizer.load(write(tmp_path, data))
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "a)("
    with pytest.raises(ValueError, match="tokenizer.json: pre_tokenizer: "):
        Tokenizer.load(write(tmp_path, data))


@pytest.mark.parametrize("content", ["", '{"model": ', "[]", "\xff"])
def test_a_damaged_tokenizer_json_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="tokenizer.json: "):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("change", [{"model": []}, {"added_tokens": [{}]}, {"added_tokens": ["x"]}])
def test_a_tokenizer_json_of_another_layout_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match="tokenizer.json"):
        Tokenizer.load(write(tmp_path, json.loads(trained("gpt4")) | change))


NESTED = b"K\x01\x85" + b"".join(b"\x94h%c\x86" % n for n in range(60))  # t(n+1) = (tn, tn)
BOMBS = {
    "a tuple in a tuple, 200,000 times, as a key: a crash": b"})" + b"\x85" * 200_000 + b"K\x01s.",
    "a key whose hash takes 2^60 steps: for ever": b"}" + NESTED + b"K\x01s.",
    "a place in the memo that takes 64 GB": b"}r\xff\xff\xff\x7f.",
    "frozenset": b"(K\x01\x91.",
    "a byte array": b"\x96\xff\xff\xff\xff\xff\xff\xff\x00.",
    "a long number": b"\x8b\xff\xff\x00\x00" + bytes(65535) + b".",
    "a persistent id": b"Pos\n.",
    "too large": b"})" * 4_100_000 + b".",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_pickle_can_neither_crash_nor_freeze(tmp_path, bomb):
    (tmp_path / "tokenizer.pkl").write_bytes(b"\x80\x04" + BOMBS[bomb])
    code = "import sys, nanomodels.text.tokenizer as t; t.Tokenizer.load(sys.argv[1])"
    run = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(run, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1, "killed by a signal"
    wanted = "tokenizer.pkl: not a plain pickle of one tiktoken"
    assert f"ValueError: {tmp_path}/{wanted}" in done.stderr


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_of_any_protocol_is_read(tmp_path, protocol):
    encoding = pickle.loads((NANOCHAT / "tokenizer.pkl").read_bytes())
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(encoding, protocol=protocol))
    ours = Tokenizer.load(tmp_path)
    assert ours.encode("Hello", add_bos=False) == encoding.encode_ordinary("Hello")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.path}",))


def test_a_pickle_that_would_run_a_command_is_refused_without_running_it(tmp_path):
    mark = tmp_path / "was-run"
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(Malicious(mark)))
    with pytest.raises(ValueError, match=r"tokenizer.pkl: .*it refers to (posix|nt).system"):
        Tokenizer.load(tmp_path)
    assert not mark.exists()
    pickle.loads((tmp_path / "tokenizer.pkl").read_bytes())
    assert mark.exists()  # the command would have worked


def pickled_encoding(state):
    """A pickle of a tiktoken.core.Encoding with any state."""
    whole = b"\x80\x04ctiktoken.core\nEncoding\n)\x81"
    return whole + pickle.dumps(state, protocol=4)[2:-1] + b"b."


BYTES = {bytes([b]): b for b in range(256)}
STATE = {"name": "x", "pat_str": "a", "mergeable_ranks": BYTES, "special_tokens": {"<|bos|>": 256}}


def test_a_pickle_with_another_state_is_refused(tmp_path):
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickled_encoding(STATE))
    assert Tokenizer.load(tmp_path).encode("aba") == [256, 97, 97]
    good = path.read_bytes()
    bad = [
        "gpt2",  # by which tiktoken itself would download an encoding
        {},
        STATE | {"pat_str": 3},
        STATE | {"pat_str": "(?<a"},
        STATE | {"mergeable_ranks": {}},
        STATE | {"mergeable_ranks": {"a": 1}},
        STATE | {"mergeable_ranks": BYTES | {b"ab": 0}},
        STATE | {"mergeable_ranks": BYTES | {b"ab": 2**40}},
        STATE | {"mergeable_ranks": list(BYTES)},
        STATE | {"special_tokens": {"<|bos|>": 255}},
        STATE | {"special_tokens": {"<|bos|>": -1}},
        STATE | {"special_tokens": None},
    ]
    for content in [pickle.dumps(STATE), good[:-9], b"", b"abc", *map(pickled_encoding, bad)]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="tokenizer.pkl: not a plain pickle of one tiktoken"):
            Tokenizer.load(tmp_path)


@settings(CALM, max_examples=examples(300))
@given(where=st.integers(0, 3119), byte=st.integers(0, 255))
def test_a_damaged_pickle_is_read_or_refused(tmp_path_factory, where, byte):
    content = bytearray((NANOCHAT / "tokenizer.pkl").read_bytes())
    content[where] = byte
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.pkl").write_bytes(content)
    try:
        Tokenizer.load(folder)
    except ValueError as error:
        assert "tokenizer.pkl" in str(error)
