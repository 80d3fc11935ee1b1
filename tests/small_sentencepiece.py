"""Small SentencePiece models, as .model files and as tokenizer.json, with Nemotron-Mini's chat."""

import io
import json
from functools import cache

import sentencepiece
from small_tokenizers import DATA, SENTENCES, SOURCE, write
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Reference
from transformers.convert_slow_tokenizer import generate_merges

EXTRA = ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
SYMBOLS = ["<tool>", "<t", "日本", "▁▁x", "ß"]
# What sentencepiece trains; all with byte fallback and identity normalisation.
TRAINED = {
    "plain": {},
    "no dummy prefix": {"add_dummy_prefix": False},
    "tidy": {"remove_extra_whitespaces": True},
    "tidy, no dummy prefix": {"remove_extra_whitespaces": True, "add_dummy_prefix": False},
    "nemotron": {
        "pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "user_defined_symbols": EXTRA,
        "split_digits": True, "allow_whitespace_only_pieces": True,
    },
    "symbols": {"user_defined_symbols": SYMBOLS, "control_symbols": ["<c>"], "vocab_size": 900},
    "runs of spaces": {"allow_whitespace_only_pieces": True, "vocab_size": 1200},
    "pieces across spaces": {"split_by_whitespace": False, "split_by_unicode_script": False},
    "few characters": {"vocab_size": 450, "character_coverage": 0.98, "unk_surface": "[?]"},
}  # fmt: skip


@cache
def train(case):
    """The content of a .model file."""
    content = io.BytesIO()
    lines = [line for line in (SENTENCES + SOURCE).split("\n") if line.strip()]
    wanted = {"vocab_size": 800, "remove_extra_whitespaces": False} | TRAINED[case]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines + ["a b a b  ab    x", "aaaa aaaa     aaaa"] * 20),
        model_writer=content,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
        **wanted,
    )
    return content.getvalue()


def processor(content):
    return sentencepiece.SentencePieceProcessor(model_proto=content)


def sequence(*steps):
    start = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    return decoders.Sequence([*start, *steps])


def metaspace(scheme, split):
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


STRIP = decoders.Strip(" ", 1, 0)
# name: normalizer, pre_tokenizer, decoder; as transformers' converters write them, and others
HUB = {
    "legacy": (
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
        sequence(STRIP),
    ),
    "replace": (normalizers.Replace(" ", "▁"), None, sequence()),
    "always": (None, metaspace("always", False), sequence(STRIP)),
    "first": (None, metaspace("first", False), sequence(decoders.Strip(" ", 2, 0))),
    "never, split": (
        None,
        metaspace("never", True),
        decoders.Sequence(
            [decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback(), decoders.Fuse()]
        ),
    ),
    "always, split": (None, metaspace("always", True), decoders.Metaspace()),
    "first, split": (
        None,
        metaspace("first", True),
        decoders.Sequence([decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback()]),
    ),
    "spaces joined": (
        normalizers.Sequence(
            [
                normalizers.Strip(left=False, right=True),
                normalizers.Replace(Regex(" {2,}"), "▁"),
            ]
        ),
        metaspace("always", True),
        sequence(STRIP),
    ),
}


def convert(content, kind, bos=False, normalized=False):
    """A .model file as a tokenizer.json, with the merges that transformers' converters list."""
    pieces = processor(content)
    every = range(pieces.get_piece_size())
    vocab = {pieces.id_to_piece(i): i for i in every}
    scores = {pieces.id_to_piece(i): pieces.get_score(i) for i in every}
    controls = [pieces.id_to_piece(i) for i in every if pieces.is_control(i)]
    symbols = [name for name in [*EXTRA, *SYMBOLS] if name in vocab]
    merges = generate_merges(vocab, scores, symbols)
    reference = Reference(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    normalizer, pre_tokenizer, decoder = HUB[kind]
    if normalizer:
        reference.normalizer = normalizer
    if pre_tokenizer:
        reference.pre_tokenizer = pre_tokenizer
    reference.decoder = decoder
    reference.add_special_tokens([AddedToken(t, normalized=normalized) for t in controls])
    reference.add_tokens([AddedToken(t, normalized=normalized) for t in symbols])
    if bos:
        reference.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
        )
    return json.loads(reference.to_str())


def nemotron_mini(folder, kind):
    """A folder with a tokenizer like Nemotron-Mini's, as `kind`: "json" or "model"."""
    folder.mkdir(exist_ok=True)
    if kind == "json":
        write(folder, convert(train("nemotron"), "first"))
    else:
        (folder / "tokenizer.model").write_bytes(train("nemotron"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    config["chat_template"] = (DATA / "templates" / "nemotron-mini.jinja").read_text()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
