"""Small tokenizers in the layouts of the Hub, and the text that tests encode with them."""

import json
from functools import cache
from pathlib import Path

from effort import examples
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Reference

from nanomodels.text.bpe import ALPHABET

DATA = Path(__file__).parent / "data"
SPLITS = {
    "gpt4": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "nemotron": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "nanochat": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "gaps": r"\p{L}+|\p{N}",  # leaves much unmatched
}
SENTENCES = """Once upon a time there was a little tokenizer, and it's said that it'll do what we've
asked. Elle a mangé une pêche à l'été. Über den Fluß und ins Gebüsch. Быстрая лиса прыгает через
ленивую собаку. 日本語の文章を少し。中文句子也有。 العربية جميلة، والخط عربي. हिन्दी भाषा। שלום עולם
한국어 문장입니다. 😀😃👩‍👩‍👧 1234567 3.14159 2026-11-21  x = [1, 2];\tif (a != b) {}\n\n\n"""
SOURCE = Path(__file__).read_text(encoding="utf-8")
CORPUS = [SENTENCES, SOURCE, "aaaa abab ababab aaabaaa " * 9]
NASTY = [
    "", " ", "  ", "\n", "\r\n", "\r\n\r\n x", "a  b   c    d", "\n\n\n\t\t  \n x\n", "   x",
    "x   ",
    "😀", "👩‍👩‍👧‍👦 family", "🇫🇷🇩🇪", "👍🏽", "日本語テキスト", "中文，标点。",
    "العَرَبِيَّة", "שָׁלוֹם", "हिन्दी",
    "e\u0301 a\u0308\u0323", "Z͑ͫa̴l̶g̷o", "1", "12", "123", "1234567890", "٠١٢٣", "½ ² Ⅷ", "３４５",
    "<|bos|>", "<s>", "</s>x", "<|bos|", "<|user_start|>hi<|user_end|>", "<|start|>",
    "<SPECIAL_10>",
    "it's IT'S we'LL WE'll I'D y'all've 'tis 'S 'ſ 'ſt x'ſ ſ", "don’t", "K Å ß ﬁ ǅ ŉ ẞ",
    "\u00a0x\u00a0\u00a0y", "a\u0085b\u0085\u0085", "\u200b\u200d\ufeffx\u2060", "\u3000全\u2003角",
    "\x00\x01\x1c\x1f\x7f", "\u2028x\u2029", "a/b//c/\n", "!!!???\n\n", " !\r\n", "x\r",
    "\ue000\uf8ff",
    "def f(x):\n    return {'a': x**2}  # ok\n", "http://a.b/c?d=e&f=%20", "abababababab",
    "aaaaaaaaaaa",
]  # fmt: skip
# Only characters that every Unicode version in use here knows: libraries differ on newer ones.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
CALM = settings(
    deadline=None,
    max_examples=examples(200),
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
# Without nanochat's <|bos|>, which encode would put before every text.
SPECIAL = ["<s>", "</s>", "<|start|>", "<|user_start|>", "<|user_end|>"]
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@cache
def trained(split, size=700):
    """tokenizer.json of a byte-level BPE trained on CORPUS; split is in SPLITS or "gpt2"."""
    reference = Reference(models.BPE())
    reference.decoder = decoders.ByteLevel()
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split != "gpt2":
        reference.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLITS[split]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator(CORPUS, trainer)
    return reference.to_str()


# The names that Nemotron 3 gives to its first tokens; all others to 999 are <SPECIAL_n>.
NEMOTRON_3 = {
    10: "<|im_start|>",
    11: "<|im_end|>",
    12: "<think>",
    13: "</think>",
    14: "<tool_call>",
}


def family_131072(folder, family, size=900):
    """A folder with a small tokenizer of Nemotron-H's family, laid out as its 131,072 tokens are.

    family: "nemotron-h", whose dense checkpoints add <s>, or "nano-v2" or "nemotron-3" with their
    chat templates. The merges are real, trained on CORPUS.
    """
    folder.mkdir(exist_ok=True)
    data = json.loads(trained("nemotron", size))
    named = {0: "<unk>", 1: "<s>", 2: "</s>"} | (NEMOTRON_3 if family == "nemotron-3" else {})
    names = [named.get(i, f"<SPECIAL_{i}>") for i in range(1000)]
    merged = ["".join(merge) for merge in data["model"]["merges"]]
    data["model"]["vocab"] = {name: i for i, name in enumerate(names)}
    data["model"]["vocab"] |= {char: 1000 + byte for char, byte in ALPHABET.items()}
    data["model"]["vocab"] |= {token: 1256 + n for n, token in enumerate(merged)}
    data["added_tokens"] = [added(name, i) for i, name in enumerate(names)]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"nemotron-3": "<|im_end|>", "nano-v2": "<SPECIAL_12>"}.get(family, "</s>"),
        "unk_token": "<unk>",
    }
    if family == "nemotron-h":
        processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
        )
        data["post_processor"] = json.loads(processor.__getstate__())
    else:
        data["post_processor"] = LEVEL
        config["add_bos_token"] = False
        template = DATA / "templates" / f"{family}.jinja"
        (folder / "chat_template.jinja").write_bytes(template.read_bytes())
    return write(folder, data, tokenizer_config=config)


def write(folder, data, **files):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def added(content, i, **flags):
    wanted = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": content, "special": True} | wanted | flags
