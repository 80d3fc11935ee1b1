"""SentencePiece: ids, text and refusals, compared with `sentencepiece` and `tokenizers`."""

import io
import json
import math
import os
import re
import struct
from functools import cache

import pytest
import sentencepiece
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sentencepiece import EXTRA, HUB, TRAINED, convert, nemotron_mini, processor, train
from small_tokenizers import CALM, CHARACTERS, NASTY, SENTENCES, SOURCE, added, write
from tokenizers import Tokenizer as Reference
from transformers import PreTrainedTokenizerFast

from nanomodels.text.chat_template import read_templates
from nanomodels.text.sentencepiece import read_normalizer
from nanomodels.text.tokenizer import Tokenizer

NASTY_HERE = [
    *NASTY, "▁", "▁▁ ▁", "a▁b", " ▁a", "▁ ", "<0x0A>", "<0x0", "<unk>", "<c>", "<s>a</s>", "<pad>",
    "\0", "a\0b", "\x7f\x01", "\U0010ffff", "\ue000é", "日\U0001f9ff本", "é\u0301", "<extra_id_1>",
    " <extra_id_0> System\n", "<extra_id_", "<tool><t>", "日本語日本", "   x  ▁▁x", "ßßß", "a  ",
    "hello  world", "12345", "aaaa aaaa     aaaa", "ab" * 200, "日本語" * 99, "\U0001f9ff" * 99,
]  # fmt: skip
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=30),
    st.lists(
        st.sampled_from([*NASTY_HERE, *SENTENCES.split(), *" ▁\n"]).filter(lambda t: len(t) < 99),
        max_size=9,
    ).map("".join),
    st.text("ab ▁xé日ß\n1<", max_size=40),
)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    @cache
    def load(case, kind=None):
        folder = tmp_path_factory.mktemp("spm")
        if kind is None:
            (folder / "tokenizer.model").write_bytes(train(case))
            return Tokenizer.load(folder), processor(train(case))
        flags = {"bos": kind == "always", "normalized": kind in ("replace", "first")}
        write(folder, convert(train(case), kind, **flags))
        return Tokenizer.load(folder), Reference.from_file(str(folder / "tokenizer.json"))

    return load


def streamed(tokenizer, ids, **settings):
    stream = tokenizer.stream(**settings)
    return "".join([stream.push(i) for i in ids] + [stream.finish()])


# --- .model files ---


@pytest.mark.parametrize("case", TRAINED)
@CALM
@given(text=TEXTS)
def test_a_model_file_gives_the_ids_and_text_of_sentencepiece(load, case, text):
    ours, reference = load(case)
    ids = reference.encode(text)
    assert ours.encode(text) == ids
    assert ours.decode(ids, skip_special=True) == streamed(ours, ids) == reference.decode(ids)


@pytest.mark.parametrize("case", TRAINED)
def test_a_model_file_gives_the_ids_and_text_of_sentencepiece_on_nasty_text(load, case):
    ours, reference = load(case)
    for text in [*NASTY_HERE, SENTENCES, SOURCE, "".join(NASTY_HERE)]:
        ids = reference.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids, skip_special=True) == reference.decode(ids), text


def any_ids(ours):
    """Ids of any tokens, as a model may generate them; often of bytes and special tokens."""
    few = [*sorted(ours.codec.byte_of), *ours.special_ids.values(), *ours.encode(" a  é\n")]
    return st.lists(
        st.sampled_from(few) | st.sampled_from(sorted(ours.codec.token_bytes)), max_size=9
    )


@pytest.mark.parametrize("case", TRAINED)
@CALM
@given(data=st.data())
def test_any_ids_become_the_text_of_sentencepiece(load, case, data):
    ours, reference = load(case)
    ids = data.draw(any_ids(ours))
    assert ours.decode(ids, skip_special=True) == reference.decode(ids)
    for skip in (True, False):
        assert streamed(ours, ids, skip_special=skip) == ours.decode(ids, skip_special=skip)


def test_a_hidden_special_token_ends_a_character(load):
    ours, reference = load("nemotron")
    a, b, c = (reference.piece_to_id(f"<0x{byte:02X}>") for byte in "日".encode())
    for ids in ([a, 3, b, c], [3, a, b, 2, c], [a, b, c, 3], [3, 2, *ours.encode("a")]):
        assert ours.decode(ids, skip_special=True) == reference.decode(ids) == streamed(ours, ids)


def varint(number):
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def field(number, value):
    return varint(number << 3 | 2) + varint(len(value)) + value


TRAINER = b"\x18\x02" + varint(35 << 3) + b"\x01"  # BPE, byte_fallback


def model_file(pieces, trainer=TRAINER, normalizer=b"\x20\x00"):
    """A .model file of (piece, score, type), after the 256 bytes, <unk>, <s> and </s>."""
    always = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)]
    always += [(f"<0x{byte:02X}>", 0, 6) for byte in range(256)]
    listed = b"".join(
        field(1, field(1, p.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))
        for p, score, kind in [*always, *pieces]
    )
    return listed + field(2, trainer) + field(3, normalizer)


@settings(CALM, max_examples=examples(400))
@given(
    pieces=st.dictionaries(
        st.text("ab▁é日", min_size=1, max_size=5), st.integers(-99, 99), max_size=14
    ),
    symbols=st.sets(st.text("ab▁日", min_size=1, max_size=3), max_size=2),
    normalizer=st.sampled_from([b"", b"\x18\x00", b"\x20\x00", b"\x18\x00\x20\x00"]),
    texts=st.lists(st.text("ab ▁é日本\n", max_size=14), min_size=6, max_size=6),
)
def test_any_pieces_are_refused_or_give_the_ids_of_sentencepiece(
    tmp_path_factory, pieces, symbols, normalizer, texts
):
    """Most of these models come from no training: they have pieces that no merges make."""
    listed = [(p, score, 1) for p, score in pieces.items() if p not in symbols]
    content = model_file(
        listed + [(p, 0, 4) for p in sorted(symbols)], normalizer=b"\x0a\x01x" + normalizer
    )
    folder = tmp_path_factory.getbasetemp() / "any-pieces"
    folder.mkdir(exist_ok=True)
    (folder / "any.model").write_bytes(content)
    scores = [score for p, score, _ in listed if len(p) > 1]
    if len(set(scores)) < len(scores):
        with pytest.raises(ValueError, match="a score that another piece has"):
            Tokenizer.load(folder)
        return
    ours, reference = Tokenizer.load(folder), processor(content)
    for text in [*texts, *pieces]:
        ids = reference.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids, skip_special=True) == reference.decode(ids)


def test_a_model_file_names_its_special_tokens(load, tmp_path):
    ours, reference = load("nemotron")
    assert ours.vocab_size == reference.get_piece_size()
    assert ours.special_ids == {"<pad>": 0, "<s>": 2, "</s>": 3}
    assert (ours.bos_id, ours.eos_id) == (2, 3)
    assert ours.encode("<s>a")[0] != 2 and 2 not in ours.encode("<s>")
    assert ours.encode("<s>a</s>", special=True) == [2, *ours.encode("a"), 3]
    assert ours.encode("a", add_bos=True) == [2, *ours.encode("a")]
    assert ours.decode([2, *ours.encode("a b"), 3]) == "<s> a b</s>"
    assert ours.decode([2, *ours.encode("a b"), 3], skip_special=True) == "a b"
    assert ours.token_bytes(reference.piece_to_id("<0xE6>")) == b"\xe6"
    assert ours.decode([1]) == reference.decode([1]) == " ⁇ "
    assert load("few characters")[0].decode([0]) == "[?]"
    for name in ("tokenizer.model", "other.model"):
        (tmp_path / name).write_bytes(train("nemotron"))
    settings = {"add_bos_token": True, "eos_token": "<extra_id_1>", "chat_template": "{{ x }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    other = Tokenizer.load(tmp_path)
    assert other.encode("a") == [2, *ours.encode("a")] and other.encode("") == [2]
    assert other.eos_id == reference.piece_to_id("<extra_id_1>") and other.chat_template
    (tmp_path / "tokenizer.model").rename(tmp_path / "third.model")
    with pytest.raises(ValueError, match=r"other.model, third.model; rename the checkpoint's own"):
        Tokenizer.load(tmp_path)


# --- tokenizer.json ---

HUB_CASES = [(case, "always") for case in TRAINED] + [
    (case, kind) for case in ("nemotron", "runs of spaces") for kind in HUB if kind != "always"
]


@pytest.mark.parametrize(("case", "kind"), HUB_CASES)
@CALM
@given(text=TEXTS)
def test_a_converted_tokenizer_json_gives_the_ids_and_text_of_tokenizers(load, case, kind, text):
    ours, reference = load(case, kind)
    names = {token.content for token in reference.get_added_tokens_decoder().values()}
    ids = reference.encode(text).ids
    assert ours.encode(text, special=True) == ids
    plain = ours.encode(text, add_bos=False)
    assert not {reference.token_to_id(name) for name in names} & set(plain)
    if not any(name in text for name in names):
        assert plain == reference.encode(text, add_special_tokens=False).ids
    for skip in (True, False):
        expected = reference.decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids, skip_special=skip) == expected
        assert streamed(ours, ids, skip_special=skip) == expected


@pytest.mark.parametrize(("case", "kind"), HUB_CASES)
def test_a_converted_tokenizer_json_gives_the_ids_of_tokenizers_on_nasty_text(load, case, kind):
    ours, reference = load(case, kind)
    for text in [*NASTY_HERE, SENTENCES, SOURCE, "".join(NASTY_HERE)]:
        assert ours.encode(text, special=True) == reference.encode(text).ids, text


@pytest.mark.parametrize(("case", "kind"), [("nemotron", kind) for kind in HUB])
@CALM
@given(data=st.data())
def test_any_ids_become_the_text_of_tokenizers(load, case, kind, data):
    ours, reference = load(case, kind)
    ids = data.draw(any_ids(ours))
    for skip in (True, False):
        expected = reference.decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids, skip_special=skip) == expected
        assert streamed(ours, ids, skip_special=skip) == expected


@settings(CALM, max_examples=examples(400))
@given(
    pairs=st.lists(st.tuples(*[st.text("ab▁é日", min_size=1, max_size=3)] * 2), max_size=14),
    kind=st.sampled_from(list(HUB)),
    texts=st.lists(st.text("ab ▁é日本\n", max_size=14), min_size=6, max_size=6),
)
def test_any_merges_are_refused_or_give_the_ids_of_tokenizers(tmp_path_factory, pairs, kind, texts):
    data = convert(train("plain"), kind)
    tokens = dict.fromkeys(token for a, b in pairs for token in (a, b, a + b))
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: n for n, token in enumerate(["<unk>", *names, *tokens])}
    data["model"] |= {"vocab": vocab, "merges": [list(pair) for pair in pairs]}
    data["added_tokens"] = []
    folder = write(tmp_path_factory.getbasetemp() / "any-merges-spm", data)
    try:
        ours = Tokenizer.load(folder)
    except ValueError as error:
        assert "each pair once" in str(error) and len(set(pairs)) < len(pairs)
        return
    reference = Reference.from_file(str(folder / "tokenizer.json"))
    for text in [*texts, *tokens]:
        assert ours.encode(text) == reference.encode(text).ids


def test_a_token_that_other_pieces_spell_is_found_only_where_it_is_asked_for(tmp_path):
    """Converters list the pairs that spell "</s>" before all others."""
    vocab = {"<unk>": 0, "</s>": 1, "<": 2, "/": 3, "s": 4, ">": 5, "</": 6, "s>": 7, "</s>s>": 8}
    vocab |= {f"<0x{byte:02X}>": 300 + byte for byte in range(256)}
    data = convert(train("plain"), "replace")
    data["added_tokens"] = [added("</s>", 1, normalized=False)]
    merges = [["</", "s>"], ["</s>", "s>"], ["<", "/"], ["s", ">"]]
    data["model"] |= {"vocab": vocab, "merges": merges}
    ours = Tokenizer.load(write(tmp_path, data))
    reference = Reference.from_file(str(tmp_path / "tokenizer.json"))
    assert ours.encode("</s>s>", special=True) == reference.encode("</s>s>").ids == [1, 7]
    assert ours.encode("</s>") == [6, 7]


def test_a_pair_listed_before_its_parts_changes_what_holds_it(tmp_path):
    data = convert(train("plain"), "replace")
    merges = [["a", "bc"], ["b", "c"], ["x", "a"], ["xa", "bc"], ["abc", "y"]]
    tokens = dict.fromkeys([*"abcxy", *map("".join, merges)])
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: n for n, token in enumerate(["<unk>", *names, *tokens])}
    data["model"] |= {"vocab": vocab, "merges": merges}
    data["added_tokens"] = []
    ours = Tokenizer.load(write(tmp_path, data))
    reference = Reference.from_file(str(tmp_path / "tokenizer.json"))
    for text, pieces in {"xabc": ["x", "abc"], "abcy": ["abcy"], "xab": ["xa", "b"]}.items():
        ids = [vocab[piece] for piece in pieces]
        assert ours.encode(text) == reference.encode(text).ids == ids


def test_a_newline_is_a_byte_and_no_bos_is_added(load):
    for kind in (None, "legacy", "first"):
        ours, reference = load("nemotron", kind)
        newline = (reference.piece_to_id if kind is None else reference.token_to_id)("<0x0A>")
        assert ours.encode("\n")[-1] == newline and ours.token_bytes(newline) == b"\n"
        assert 2 not in ours.encode("a") and ours.encode("") == []
    ours, _ = load("nemotron", "always")
    assert ours.encode("Paris") == ours.encode(" Paris") and ours.encode("a")[0] == 2
    assert ours.encode("a", add_bos=False) == ours.encode("a")[1:]


def test_a_stream_gives_each_text_as_soon_as_it_is_sure(load):
    ours, reference = load("nemotron")
    pieces = ["▁", "a", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "<0x0A>", "<0xF0>", "a", "<0x9F>"]
    ids = [reference.piece_to_id(piece) for piece in pieces]
    stream = ours.stream()
    given = [stream.push(i) for i in ids]
    assert given == ["", "a", "", "", "", "🙂", "\n", "", "\ufffda", "\ufffd"]
    assert stream.finish() == ""
    ours, _ = load("nemotron", "legacy")
    stream = ours.stream()
    given = [stream.push(i) for i in ids]
    assert given == ["", "a", "", "", "", "", "", "", "\ufffd" * 6 + "a", ""]
    assert stream.finish() == "\ufffd"
    stream = ours.stream()
    assert [stream.push(i) for i in [*ids[:6], ids[1]]] == ["", "a", "", "", "", "", "🙂a"]


def test_an_unknown_id_is_refused(load):
    for kind in (None, "legacy"):
        ours, _ = load("plain", kind)
        for i in (-1, ours.vocab_size):
            with pytest.raises(ValueError, match=f"token id {i} is not in the vocabulary"):
                ours.decode([5, i])
            with pytest.raises(ValueError, match=f"token id {i} is not in the vocabulary"):
                ours.stream().push(i)


def test_half_a_surrogate_pair_is_refused(load):
    for kind in (None, "legacy"):
        with pytest.raises(ValueError, match=r"half of a surrogate pair, '\\ud83d' at 1"):
            load("plain", kind)[0].encode("a\ud83d")


@pytest.mark.parametrize("case", ["plain", "runs of spaces", "pieces across spaces"])
def test_a_megabyte_is_encoded_whole(load, case):
    """Also as a single word; quadratic code would not end."""
    for kind in (None, "always"):
        ours, _ = load(case, kind)
        prose = ((SENTENCES + SOURCE) * 99)[:1_000_000]
        for text in (prose, "é日ab" * 250_000, " " * 1_000_000):
            ids = ours.encode(text)
            if kind is None and text is prose:
                assert ours.decode(ids) == text


# --- what is refused ---

REFUSED_MODELS = {
    r'trainer_spec.model_type is "UNIGRAM"': {"trainer": TRAINER[2:]},
    r'trainer_spec.model_type is "WORD"': {"trainer": b"\x18\x03" + TRAINER[2:]},
    r'trainer_spec.model_type is "CHAR"': {"trainer": b"\x18\x04" + TRAINER[2:]},
    r'trainer_spec.model_type is "9"': {"trainer": b"\x18\x09" + TRAINER[2:]},
    "trainer_spec.byte_fallback is false": {"trainer": TRAINER[:2]},
    "trainer_spec.treat_whitespace_as_suffix": {"trainer": TRAINER + varint(24 << 3) + b"\x01"},
    r'normalizer_spec.name is "nmt_nfkc"': {"normalizer": field(1, b"nmt_nfkc") + field(2, b"x")},
    r'normalizer_spec.name is ""': {"normalizer": field(2, b"x")},
    "normalizer_spec.escape_whitespaces": {"normalizer": b"\x28\x00"},
    "type of piece 'ab' is \"5\"": {"pieces": [("ab", 0, 5)]},
    "type of piece 'ab' is \"7\"": {"pieces": [("ab", 0, 7)]},
    "a score that another piece has": {"pieces": [("ab", -1, 1), ("bc", -1, 1)]},
    "a score that another piece has is ": {"pieces": [("ab", -1, 1), ("bc", math.nan, 1)]},
    "a piece that occurs twice": {"pieces": [("a", 0, 1), ("a", -1, 1)]},
    "a piece that is empty or has a NUL": {"pieces": [("", 0, 1)]},
    "a piece that is empty or has a NUL is": {"pieces": [("a\0", 0, 1)]},
    "a control piece of one character": {"pieces": [("x", 0, 3)]},
    "a user-defined piece with a space": {"pieces": [("a b", 0, 4)]},
}


@pytest.mark.parametrize("message", REFUSED_MODELS)
def test_a_model_file_that_asks_for_more_is_refused_by_name(tmp_path, message):
    content = model_file(**{"pieces": []} | REFUSED_MODELS[message])
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.model: " in str(caught.value) and "\n" not in str(caught.value)
    assert "supported: " in str(caught.value)


def test_models_that_sentencepiece_trains_otherwise_are_refused_by_name(tmp_path):
    for name, wanted in {
        "normalizer_spec.name is": {"normalization_rule_name": "nmt_nfkc"},
        "trainer_spec.model_type": {"model_type": "unigram"},
        "trainer_spec.byte_fallback": {"byte_fallback": False},
        "trainer_spec.treat_whitespace_as_suffix": {"treat_whitespace_as_suffix": True},
        "denormalizer_spec.precompiled_charsmap": {"denormalization_rule_tsv": "rules"},
    }.items():
        (tmp_path / "rules").write_text("61\t62\n")
        content = io.BytesIO()
        settings = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 400}
        settings |= {"normalization_rule_name": "identity"} | wanted
        if "denormalization_rule_tsv" in settings:
            settings["denormalization_rule_tsv"] = str(tmp_path / "rules")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES.split("\n")),
            model_writer=content,
            hard_vocab_limit=False,
            minloglevel=2,
            **settings,
        )
        (tmp_path / "x.model").write_bytes(content.getvalue())
        with pytest.raises(ValueError, match=name):
            Tokenizer.load(tmp_path)


def test_a_model_file_without_a_byte_is_refused(tmp_path):
    content = model_file([]).replace(b"<0x41>", b"<0xZZ>")
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r'without the pieces is \["<0x41>"\]'):
        Tokenizer.load(tmp_path)


def test_a_model_file_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").touch()
    os.truncate(tmp_path / "tokenizer.model", 200_000_000)
    with pytest.raises(ValueError, match="tokenizer.model: has 200000000 bytes; at most 16000000"):
        Tokenizer.load(tmp_path)


@CALM
@given(keep=st.floats(0, 1, exclude_max=True), noise=st.binary(max_size=60))
def test_a_damaged_model_file_is_one_clear_line(tmp_path_factory, keep, noise):
    folder = tmp_path_factory.getbasetemp() / "damaged-spm"
    folder.mkdir(exist_ok=True)
    path = folder / "tokenizer.model"
    content = train("plain")
    for damaged in (content[: int(keep * (len(content) - 9))], noise):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tokenizer.model: not a whole Sentence") as caught:
            Tokenizer.load(folder)
        assert "\n" not in str(caught.value)


@settings(CALM, max_examples=examples(300))
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_model_file_with_one_wrong_byte_is_read_or_refused(tmp_path_factory, where, byte):
    folder = tmp_path_factory.getbasetemp() / "wrong-byte-spm"
    folder.mkdir(exist_ok=True)
    content = bytearray(train("few characters"))
    content[int(where * len(content))] = byte
    (folder / "tokenizer.model").write_bytes(content)
    try:
        Tokenizer.load(folder).encode("abc é")
    except ValueError as error:
        assert "tokenizer.model" in str(error) and "\n" not in str(error)


SPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
REFUSED_HUB = {
    "normalizer is": {"normalizer": {"type": "NFKC"}},
    'normalizer is {"type": "Precompiled"': {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "AA=="}],
        }
    },
    'normalizer is ["<s>"]': {
        "normalizer": {"type": "Prepend", "prepend": "▁"},
        "added_tokens": [added("<s>", 2, normalized=True)],
    },
    'normalizer is {"type": "Replace"': {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"}
    },
    'normalizer is {"type": "Strip"': {
        "normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}
    },
    "pre_tokenizer is": {"pre_tokenizer": {"type": "Whitespace"}},
    'pre_tokenizer is {"type": "Metaspace", "replacement": "_"': {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "_"}
    },
    'pre_tokenizer is {"type": "Metaspace", "replacement": "▁", "add_prefix_space": false': {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": False}
    },
    "decoder is null": {"decoder": None},
    'decoder is {"type": "ByteLevel"': {"decoder": {"type": "ByteLevel"}},
    'decoder is {"type": "Sequence"': {
        "decoder": {"type": "Sequence", "decoders": [SPACE, {"type": "ByteFallback"}]}
    },
    'model.type is "Unigram"': {"model": {"type": "Unigram"}},
    'model.byte_fallback is "yes"': {"model": {"byte_fallback": "yes"}},
    "model.ignore_merges is true": {"model": {"ignore_merges": True}},
    "model.byte_fallback without the pieces": {"model": {"vocab": {"a": 0}, "merges": []}},
    'model.merges is ["<0xE6>"]': {"model": {"merges": [["<0xE6>", "a"]]}},
    "post_processor": {"post_processor": {"type": "BertProcessing"}},
}


@pytest.mark.parametrize("message", REFUSED_HUB)
def test_a_tokenizer_json_that_asks_for_more_is_refused_by_name(tmp_path, message):
    data = convert(train("plain"), "always")
    changes = REFUSED_HUB[message]
    data |= {key: value for key, value in changes.items() if key != "model"}
    data["model"] |= changes.get("model", {})
    with pytest.raises(ValueError, match=re.escape(f"tokenizer.json: {message}")) as caught:
        Tokenizer.load(write(tmp_path, data))
    assert "\n" not in str(caught.value) and "supported: " in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": []},
        {"decoder": []},
        {"pre_tokenizer": []},
        {"decoder": "x"},
        {"pre_tokenizer": 3},
        {"added_tokens": [{}]},
        {"normalizer": {"type": "Sequence", "normalizers": 3}},
    ],
)
def test_a_tokenizer_json_of_another_layout_is_one_clear_line(tmp_path, change):
    data = convert(train("plain"), "always") | change
    with pytest.raises(ValueError, match="tokenizer.json") as caught:
        Tokenizer.load(write(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_a_piece_with_half_a_surrogate_pair_is_one_clear_line(tmp_path):
    data = convert(train("plain"), "always")
    data["model"]["vocab"]["\ud83d"] = 9999
    with pytest.raises(ValueError, match="tokenizer.json"):
        Tokenizer.load(write(tmp_path, data))


# --- the chat of Nemotron-Mini ---

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Das Wetter in <Zürich> & 東京",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
USER = {"role": "user", "content": " Wie ist das Wetter? <extra_id_0> \n"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Zürich"}}}],
}
CHATS = {
    "user": ([USER], {}),
    "system": ([{"role": "system", "content": "Be kind. "}, USER], {}),
    "tools": ([{"role": "system", "content": "Help."}, USER], {"tools": [TOOL, TOOL]}),
    "context": ([{"role": "context", "content": "It rains."}, USER], {}),
    "calls": ([USER, CALL, {"role": "tool", "content": '{"c": 7}'}], {"tools": [TOOL]}),
    "turns": (
        [USER, {"role": "assistant", "content": "Gut."}, USER],
        {"add_generation_prompt": False},
    ),
}


@pytest.mark.parametrize("name", CHATS)
def test_nemotron_minis_chat_is_that_of_transformers(tmp_path, name):
    messages, settings = CHATS[name]
    ours = Tokenizer.load(nemotron_mini(tmp_path, "json"))
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    settings = {"add_generation_prompt": True} | settings
    text = theirs.apply_chat_template(messages, tokenize=False, **settings)
    assert ours.render_chat(messages, **settings) == text
    ids = ours.encode_chat(messages, trust_text=True, **settings)  # USER names control tokens
    assert ids == theirs.apply_chat_template(messages, **settings)["input_ids"]
    extra = [ours.encode(t, special=True, add_bos=False)[-1] for t in EXTRA[:2]]
    assert ids[0] == extra[0] and ids.count(extra[1]) == text.count("<extra_id_1>")
    assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)


def test_nemotron_minis_chat_always_has_a_system_block(tmp_path):
    ours = Tokenizer.load(nemotron_mini(tmp_path, "json"))
    assert ours.render_chat([{"role": "user", "content": "Hi"}]) == (
        "<extra_id_0>System\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n"
    )
    assert ours.render_chat(*CHATS["calls"][:1], tools=[{"name": "f"}]) == (
        '<extra_id_0>System\n<tool> {"name": "f"} </tool>\n\n'
        "<extra_id_1>User\nWie ist das Wetter? <extra_id_0>\n"
        '<extra_id_1>Assistant\n<toolcall> {"name": "weather", "arguments": {"city": "Zürich"}} '
        '</toolcall>\n<extra_id_1>Tool\n{"c": 7}\n<extra_id_1>Assistant\n'
    )


def test_a_normalizer_that_multiplies_the_text_is_refused():
    """Five steps of "h" to 100 "h" made 10^10 characters of one."""
    step = {"type": "Replace", "pattern": {"String": "h"}, "content": "h" * 100}
    normalise = read_normalizer("path", {"normalizers": [step] * 5})
    assert normalise("x" * 5000) == "x" * 5000
    with pytest.raises(ValueError, match="the normalizer makes more than 1,064 characters"):
        normalise("h")


@pytest.mark.parametrize("found", [5, [5], [{}], {"default": 1}, [{"name": "x"}], True])
def test_a_chat_template_of_another_type_is_refused(tmp_path, found):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": found}))
    with pytest.raises(ValueError, match="tokenizer_config.json: chat_template is"):
        read_templates(tmp_path, {"chat_template": found})
