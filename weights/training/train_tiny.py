"""Train a tiny model of this project from nothing on two CPU cores, and measure it.

    python weights/training/train_tiny.py nanochat-tiny              # train, write its folder
    python weights/training/train_tiny.py nanochat-tiny --evaluate   # measure the one that is there

and the same with nemotron-tiny and nemotron-h-tiny. nanochat-tiny learns conversations that
chat_corpus.py makes and tinyshakespeare.txt beside it, nemotron-tiny the stories of
story_corpus.py, nemotron-h-tiny to find things in the notes of recall_corpus.py. Seeds and steps
are fixed, so a second run on the same machine and torch gives the same weights. The folder has the
Hub's layout; it is written beside the old one and takes its place at the end.
"""

import argparse
import io
import json
import math
import os
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

# Threads that wait asleep: 3 times as fast where the cores are shared (read when torch starts).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from recall_corpus import (
    COLOURS,
    FACTS,
    HOLDERS,
    LEADS,
    NAMES,
    PLACES,
    QUALITIES,
    SMALL_TALK,
    SYSTEMS,
    THINGS,
    TOWNS,
    UNKNOWN,
    Notes,
    small_talk,
)
from safetensors.torch import save_file
from story_corpus import NEW_NAMES, held_out_names, last_named, main_character, names_in, story
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

# The checkout's, installed or not.
from chat_corpus import WEIGHTS, Corpus, said  # noqa: E402

from nanomodels import nanochat, nemotron, nemotron_h  # noqa: E402
from nanomodels.checkpoint import loading  # noqa: E402
from nanomodels.generation import calculator  # noqa: E402
from nanomodels.text import tokenizer as text_tokenizer  # noqa: E402

# --------------------------------------------------------------------------------------------------
# The recipe of nanochat-tiny, and what all share

VOCAB_SIZE = 1536
STEPS = 3200
TOKENS_PER_STEP = 4096
ROW_LENGTHS = (128,) * 6 + (256, 512)  # taken in turn; mostly short, so that attention is cheap
TEXT_SHARE = ((0.12, 0.5), (0.85, 0.08), (1.0, 0.04))  # up to this part of the run, this much text
MATRIX_RATE, EMBEDDING_RATE, HEAD_RATE = 0.02, 0.2, 0.008
WARMUP, DECAY = 0.02, 0.6  # parts of the run
SEED = 1

SPECIAL_TOKENS = [
    *("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"),
    *("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"),
]
# karpathy/nanochat nanochat/tokenizer.py, SPLIT_PATTERN.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set turn = namespace(user=true, system='') -%}
{%- for message in messages -%}
    {%- if loop.first and message['role'] == 'system' -%}
        {%- set turn.system = message['content'] + '\\n\\n' -%}
    {%- elif turn.user and message['role'] == 'user' -%}
        {{- '<|user_start|>' + turn.system + message['content'] + '<|user_end|>' -}}
        {%- set turn.user = false -%}
        {%- set turn.system = '' -%}
    {%- elif not turn.user and message['role'] == 'assistant' -%}
        {{- '<|assistant_start|>' + message['content'] + '<|assistant_end|>' -}}
        {%- set turn.user = true -%}
    {%- else -%}
        {{- raise_exception('roles must alternate user, assistant; system only first') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant_start|>' -}}
{%- endif -%}"""


def nanochat_config(token_id):
    """config.json of nanochat-tiny; token_id gives the id of a special token."""
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 256,
        "intermediate_size": 1152,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max(ROW_LENGTHS),
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 15.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": token_id("<|bos|>"),
        "eos_token_id": token_id("<|assistant_end|>"),
        "pad_token_id": token_id("<|bos|>"),
        "dtype": "bfloat16",
        "transformers_version": "5.23.0",
    }


def nanochat_files(config):
    """Of nanochat-tiny what tokenizer_config.json and generation_config.json have of their own."""
    others = [name for name in SPECIAL_TOKENS if name not in ("<|bos|>", "<|assistant_end|>")]
    named = {
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        "pad_token": "<|bos|>",
        "additional_special_tokens": others,
    }
    stops = [config["eos_token_id"], config["bos_token_id"]]
    return named, {"chat_template": CHAT_TEMPLATE}, stops, {"do_sample": False}


# --------------------------------------------------------------------------------------------------
# The recipe of nemotron-tiny

STORY_STEPS = 1200
STORY_ROW_LENGTHS = (256, 256, 256, 512)
# Nothing normalises a Nemotron's embedding: smaller steps for it.
STORY_RATES = {"matrix": MATRIX_RATE, "embedding": 0.05, "head": HEAD_RATE, "other": 0.01}
HELD_OUT_SEED = 20_000
SAMPLES, TEMPERATURE, PROMPT = 200, 0.7, "Once upon a time"
STORY_LENGTH = 400  # of new tokens at most
NEW_NAME_PROMPT = "Once upon a time, there was a little {} named {}."

# The first ids, as in the family's 256,000 pieces; the 256 bytes follow them, then the pieces.
STORY_SPECIAL_TOKENS = [
    *("<pad>", "<unk>", "<s>", "</s>"),
    *(f"<extra_id_{n}>" for n in range(16)),
]


def nemotron_config(token_id):
    """config.json of nemotron-tiny; token_id gives the id of a special token."""
    return {
        "architectures": ["NemotronForCausalLM"],
        "model_type": "nemotron",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": max(STORY_ROW_LENGTHS),
        "hidden_act": "relu2",
        "norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
        "partial_rotary_factor": 0.5,  # llama.cpp reads it here
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": token_id("<s>"),
        "eos_token_id": token_id("</s>"),
        "pad_token_id": token_id("<pad>"),
        "dtype": "bfloat16",
        "transformers_version": "5.23.0",
    }


def nemotron_files(config):
    """Of nemotron-tiny what tokenizer_config.json and generation_config.json have of their own."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    named["add_bos_token"] = False
    named["additional_special_tokens"] = STORY_SPECIAL_TOKENS[4:]
    return named, {}, config["eos_token_id"], {"do_sample": True, "temperature": TEMPERATURE}


# --------------------------------------------------------------------------------------------------
# The recipe of nemotron-h-tiny

RECALL_STEPS = 2500
RECALL_TOKENS_PER_STEP = 2048
# Up to this part of the run, rows of these lengths: recall is learned on short notes first.
RECALL_ROW_LENGTHS = (
    (0.1, (128,)),
    (0.45, (256,)),
    (0.65, (256, 512)),
    (1.0, (256, 512, 1024, 2048)),
)
RECALL_RATES = {
    **{"matrix": 0.01, "embedding": 0.003, "head": 0.005},
    **{"other": 0.004, "router": 0.002, "balance": 0.003},
}
RECALL_VOCAB_SIZE = 896
RECALL_LENGTHS = (256, 512, 1024, 2048, 4096)  # of the prompts to measure with
RECALL_PROMPT = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n"

# The first ids, as in the family's 131,072; the 256 bytes follow them, then the merges.
RECALL_SPECIAL_TOKENS = [
    *("<unk>", "<s>", "</s>"),
    *(f"<SPECIAL_{n}>" for n in range(3, 10)),
    *("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *(f"<SPECIAL_{n}>" for n in range(16, 20)),
]
# As the family's: single digits, no contractions.
RECALL_SPLIT_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# ChatML as Nemotron 3 writes it; what was thought before the last question is left out.
RECALL_TEMPLATE = """\
{%- set thinks = enable_thinking | default(true) -%}
{%- set forgets = truncate_history_thinking | default(true) -%}
{%- set opening = messages[0].role == 'system' -%}
{%- set turns = messages[1:] if opening else messages -%}
{%- set last = namespace(question=-1) -%}
{%- for turn in turns if turn.role == 'user' -%}
    {%- set last.question = last.question + 1 -%}
{%- endfor -%}
{%- set seen = namespace(questions=0) -%}
{{- '<|im_start|>system\\n' ~ (messages[0].content if opening else '') ~ '<|im_end|>\\n' -}}
{%- for turn in turns -%}
    {{- '<|im_start|>' ~ turn.role ~ '\\n' -}}
    {%- if turn.role == 'user' -%}
        {%- set seen.questions = seen.questions + 1 -%}
        {{- turn.content -}}
    {%- elif turn.role == 'assistant' -%}
        {%- set said = (turn.content or '').split('</think>') -%}
        {%- set thought = turn.reasoning_content or said[:-1] | join | replace('<think>', '') -%}
        {%- if thought | trim and not (forgets and seen.questions <= last.question) -%}
            {{- '<think>\\n' ~ thought | trim ~ '\\n</think>\\n' -}}
        {%- else -%}
            {{- '<think></think>' -}}
        {%- endif -%}
        {{- said[-1] | trim -}}
    {%- else -%}
        {{- raise_exception('roles: system first, then user and assistant; not ' ~ turn.role) -}}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' ~ ('<think>\\n' if thinks else '<think></think>') -}}
{%- endif -%}"""


def nemotron_h_config(token_id):
    """config.json of nemotron-h-tiny; token_id gives the id of a special token."""
    return {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "vocab_size": RECALL_VOCAB_SIZE,
        "hidden_size": 192,
        "num_hidden_layers": 10,
        "hybrid_override_pattern": "MEM*-MEM*-",
        "mamba_num_heads": 12,
        "mamba_head_dim": 32,
        "ssm_state_size": 32,
        "n_groups": 2,
        "conv_kernel": 4,
        "chunk_size": 32,
        "expand": 2,
        "mamba_hidden_act": "silu",
        "mamba_proj_bias": False,
        "mamba_ssm_cache_dtype": "float32",
        "time_step_min": 0.001,
        "time_step_max": 0.1,
        "time_step_floor": 0.0001,
        "use_bias": False,
        "use_conv_bias": True,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "sliding_window": None,
        "intermediate_size": 512,
        "mlp_hidden_act": "relu2",
        "mlp_bias": False,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 192,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": 256,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "max_position_embeddings": max(RECALL_LENGTHS),
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "rescale_prenorm_residual": True,
        "residual_in_fp32": False,
        "hidden_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "num_logits_to_keep": 1,
        "bos_token_id": token_id("<s>"),
        "eos_token_id": token_id("</s>"),
        "pad_token_id": token_id("<unk>"),
        "dtype": "bfloat16",
        "transformers_version": "5.23.0",
    }


def nemotron_h_files(config):
    """Of nemotron-h-tiny what its other files have of their own."""
    named = {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
        "add_bos_token": False,
    }
    stops = [config["eos_token_id"], RECALL_SPECIAL_TOKENS.index("<|im_end|>")]
    return named, {}, stops, {"do_sample": False}


# --------------------------------------------------------------------------------------------------
# Data


def shakespeare():
    """The plays: (to train on, the last tenth to measure with)."""
    text = (HERE / "tinyshakespeare.txt").read_text(encoding="utf-8")
    cut = text.index("\n\n", len(text) * 9 // 10) + 2
    return text[:cut], text[cut:]


def make_corpus():
    """The conversations; the words to spell are those of the plays."""
    words = re.findall(r"\b[a-z]{3,12}\b", shakespeare()[0])
    return Corpus(list(dict.fromkeys(words)))


def train_tokenizer(corpus):
    """A byte-level BPE with nanochat's split pattern: bytes 0 to 255, merges, special tokens last.

    Merges are learned over single digits, so that no merge joins digits and sums stay readable.
    """

    def texts():
        yield shakespeare()[0]
        random = Random(SEED)
        for _ in range(60_000):
            for _, text in corpus.conversation(random):
                yield re.sub(r"<\|\w+\|>", "\n", text)

    merges = learn_merges(
        texts(), SPLIT_PATTERN.replace("{1,2}", ""), VOCAB_SIZE - len(SPECIAL_TOKENS)
    )
    tokenizer = byte_level(merges, SPLIT_PATTERN, first=())
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    bos = "<|bos|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} ids, not {VOCAB_SIZE}")
    return tokenizer, {}


def split_by(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def learn_merges(texts, pattern, size):
    """The merges of a byte-level BPE with `size` tokens, bytes among them."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = split_by(pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def byte_level(merges, pattern, first):
    """A byte-level BPE whose ids are those of the tokens `first`, the bytes, the merges."""
    vocabulary = {token: i for i, token in enumerate([*first, *byte_letters()])}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = split_by(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_letters():
    """The character that byte-level BPE writes for each byte (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    plain += range(ord("®"), ord("ÿ") + 1)
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def train_story_tokenizer(_):
    """SentencePiece's BPE with byte fallback: as tokenizers has it, and the file of its own.

    No normaliser but the ▁. llama.cpp reads the tokenizer.model.
    """
    import sentencepiece

    random, learned = Random(SEED), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(story(random) for _ in range(20_000)),
        model_writer=learned,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        control_symbols=STORY_SPECIAL_TOKENS[4:],
        num_threads=1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=learned.getvalue())
    return convert(pieces), {"tokenizer.model": learned.getvalue()}


def convert(pieces):
    """The same BPE for `tokenizers`, as transformers converts a sentencepiece model."""
    vocabulary = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    first = len(STORY_SPECIAL_TOKENS) + 256
    merges = []
    for i in range(first, len(pieces)):  # the scores are 0, -1, -2, ...: in the order of merging
        piece = pieces.id_to_piece(i)
        cuts = ((piece[:n], piece[n:]) for n in range(1, len(piece)))
        pairs = [pair for pair in cuts if all(vocabulary.get(part, 0) >= first for part in pair)]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    bpe = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in STORY_SPECIAL_TOKENS]
    )
    return tokenizer


def train_recall_tokenizer(_):
    """The family's layout: special tokens first, then the bytes, then the merges; no BOS added."""

    def texts():
        random = Random(SEED)
        for _ in range(4000):
            notes = Notes(random)
            yield " " + " ".join(notes.sentence() for _ in range(30))
            for fact in notes.facts:
                yield from notes.ask(fact)
            yield from small_talk(random)
        yield from (*LEADS, *SYSTEMS, UNKNOWN)

    size = RECALL_VOCAB_SIZE - len(RECALL_SPECIAL_TOKENS)
    merges = learn_merges(texts(), RECALL_SPLIT_PATTERN, size)
    tokenizer = byte_level(merges, RECALL_SPLIT_PATTERN, RECALL_SPECIAL_TOKENS)
    tokenizer.add_special_tokens(RECALL_SPECIAL_TOKENS)
    if tokenizer.get_vocab_size() != RECALL_VOCAB_SIZE:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} ids")
    return tokenizer, {"chat_template.jinja": RECALL_TEMPLATE.encode()}


class RecallRows:
    """Rows of a chat about notes, question after question; what the assistant says is learned."""

    def __init__(self, _, tokenizer, seed):
        self.tokenizer, self.random = tokenizer, Random(seed)
        words = (*NAMES, *TOWNS, *COLOURS, *HOLDERS, *QUALITIES, *THINGS, *PLACES)
        ids = [self.encode(f" {word}")[0] for word in words]
        self.few = sorted({*ids, *(self.encode(digit)[0] for digit in "0123456789")})

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def batch(self, count, length, part):
        """`count` rows of `length` tokens: (ids, targets).

        Copying is what all else is made of, and rows that repeat a few random tokens teach it
        soonest: only those at first, none from three eighths of the run on. Of the chats the early
        ones have short notes, and up to half of them begin with repeating the notes.
        """
        early = max(0.0, 1 - 2 * part)
        share = 1.0 if part < 0.04 else 0.5 * early
        drills = round(count * share)
        sentences = round((count - drills) * 0.6 * early)
        rows = [self.drill(length + 1) for _ in range(drills)]
        rows += [self.sentences(length + 1) for _ in range(sentences)]
        rows += [self.chats(length + 1, early) for _ in range(count - drills - sentences)]
        rows = torch.tensor(rows)
        ids, learned = rows.unbind(1)  # each (rows, length + 1)
        targets = ids[:, 1:].masked_fill(learned[:, 1:] == 0, -100)
        return ids[:, :-1].contiguous(), targets.contiguous()

    def drill(self, length):
        """A few tokens of the vocabulary in a random order, again and again."""
        random = self.random
        kinds = random.sample(self.few, random.randint(4, 16))
        tokens = random.choices(kinds, k=random.randint(4, 24))
        times = length // len(tokens) + 1
        return (tokens * times)[:length], ([0] * len(tokens) + [1] * length)[:length]

    def sentences(self, length):
        """Facts, then the same ones over and over; learned is what follows a name that is known."""
        random = self.random
        kinds = random.choice((tuple(FACTS), *((kind,) for kind in FACTS)))
        notes = Notes(random, facts_share=1.0, kinds=kinds)
        ids = [i for _ in range(random.randint(2, 7)) for i in self.encode(" " + notes.sentence())]
        learned = [0] * len(ids)
        while len(ids) < length:
            kind, slots, sentence = random.choice(notes.facts)
            name = slots[FACTS[kind].slots[0]]
            given = len(self.encode(" " + sentence[: sentence.index(name)] + name))
            more = self.encode(" " + sentence)
            ids += more
            learned += [0] * given + [1] * (len(more) - given)
        return ids[:length], learned[:length]

    def chats(self, length, early):
        """Chats one after another, the last one cut off: notes, then each fact of them asked once.

        Once only: asked again, it would be copied from the answer before, not from the notes. And
        mostly facts of one kind, so that only the name, or what else is asked, tells them apart.
        """
        random, ids, learned = self.random, [], []

        def add(text, mine=0):
            ids.extend(more := self.encode(text))
            learned.extend([mine] * len(more))

        while len(ids) < length:
            system = random.choice(SYSTEMS) if random.random() < 0.1 else ""
            text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
            turns, share = [], random.choice((0.0, 0.5, 1.0))  # of the turns with thinking
            if random.random() < 0.05:
                turns.append(small_talk(random))
            else:
                kinds = random.choice((tuple(FACTS), *((kind,) for kind in FACTS)))
                notes = Notes(random, random.uniform(0.4, 1.0), kinds)
                room = random.uniform(20, max(60, (length - len(ids)) * (0.8 - 0.6 * early)))
                text += random.choice(LEADS)
                while room > 0:
                    sentence = " " + notes.sentence()
                    text += sentence
                    room -= len(self.encode(sentence))
                text += random.choice((" ", " ", " ", "\n", "\n\n"))
                for fact in random.sample(notes.facts, len(notes.facts)):
                    if random.random() < 0.06:
                        turns += filter(None, [notes.ask_unknown()])
                    turns.append(notes.ask(fact))
            for question, reasoning, answer in turns:
                thinks = random.random() < share
                add(f"{text}{question}<|im_end|>\n<|im_start|>assistant\n")
                add("<think>\n" if thinks else "<think></think>")
                thought = f"{reasoning}\n</think>\n" if thinks else ""
                add(f"{thought}{answer}<|im_end|>", 1)
                add("\n")
                text = "<|im_start|>user\n"
        return ids[:length], learned[:length]


class StoryRows:
    """Rows of stories, each with </s> behind it; a row begins with a story and may end within."""

    def __init__(self, _, tokenizer, seed):
        self.tokenizer, self.random = tokenizer, Random(seed)
        self.end = tokenizer.token_to_id("</s>")
        self.waiting = []

    def batch(self, count, length, _):
        """`count` rows of `length` tokens; every token is learned."""
        rows = torch.tensor([self.row(length + 1) for _ in range(count)])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def row(self, length):
        ids = []
        while len(ids) < length:
            if not self.waiting:
                texts = [story(self.random) for _ in range(256)]
                self.waiting = [e.ids for e in self.tokenizer.encode_batch_fast(texts)]
            ids += [*self.waiting.pop(), self.end]
        return ids[:length]


class Rows:
    """Rows to train on: (ids, targets), a target -100 where nothing is to be learned.

    As in nanochat's own fine-tuning that is all but what the assistant says; of that all but the
    calculator's results, which are put into the text and not chosen.
    """

    def __init__(self, corpus, tokenizer, seed):
        self.corpus, self.tokenizer, self.random = corpus, tokenizer, Random(seed)
        self.special = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
        speeches = re.findall(r".+?(?:\n\n|\Z)", shakespeare()[0], re.DOTALL)
        self.text, self.starts = [], []
        for encoding in tokenizer.encode_batch_fast(speeches, add_special_tokens=False):
            self.starts.append(len(self.text))
            self.text += encoding.ids
        self.waiting = []

    def batch(self, count, length, part):
        """`count` rows of `length` tokens, plays and conversations as TEXT_SHARE says."""
        texts = round(count * next(share for end, share in TEXT_SHARE if part < end))
        rows = [self.play(length + 1) for _ in range(texts)]
        rows += [self.conversations(length + 1) for _ in range(count - texts)]
        ids, learned = torch.tensor(rows).unbind(1)  # each (rows, length + 1)
        targets = ids[:, 1:].masked_fill(learned[:, 1:] == 0, -100)
        return ids[:, :-1].contiguous(), targets.contiguous()

    def play(self, length):
        start = self.random.choice(self.starts[: -length // 10])
        ids = [self.special["<|bos|>"], *self.text[start : start + length - 1]]
        return ids, [1] * length

    def conversations(self, length):
        """Whole conversations, one after the other; only what the assistant says is learned."""
        ids, learned = [], []
        while True:
            if not self.waiting:
                self.waiting = self.render(256)
            more, flags = self.waiting.pop()
            if len(ids) + len(more) > length:
                break
            ids += more
            learned += flags
        gap = length - len(ids)
        return ids + [self.special["<|bos|>"]] * gap, learned + [0] * gap

    def render(self, count):
        """`count` conversations as ([id, ...], [1 where it is to be learned, ...])."""
        conversations = [self.corpus.conversation(self.random) for _ in range(count)]
        for messages in conversations:
            if messages[0][0] == "system":
                (_, system), (_, question), *_ = messages
                messages[:2] = [("user", f"{system}\n\n{question}")]
        texts = [text for messages in conversations for _, text in messages]
        encoded = iter(self.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        rendered = []
        for messages in conversations:
            ids, learned = [self.special["<|bos|>"]], [0]
            for role, _ in messages:
                more = [*next(encoded).ids, self.special[f"<|{role}_end|>"]]
                ids += [self.special[f"<|{role}_start|>"], *more]
                mine = role == "assistant"
                learned += [0, *(self.chosen(more) if mine else [0] * len(more))]
            rendered.append((ids, learned))
        return rendered

    def chosen(self, ids):
        """For each id of what the assistant says: 1, but 0 in a result of the calculator."""
        start, end = self.special["<|output_start|>"], self.special["<|output_end|>"]
        flags, result = [], False
        for i in ids:
            result |= i == start
            flags.append(int(not result))
            result &= i != end
        return flags


# --------------------------------------------------------------------------------------------------
# Training


def initialise(model, seed):
    """nanochat's start: matrices by their fan-in, what writes to the residual stream at zero."""
    generator = torch.Generator().manual_seed(seed)
    scale = {"embed_tokens.weight": 1.0, "embeddings.weight": 1.0, "lm_head.weight": 0.001}
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            continue  # as the class makes it; of a norm: gain 1, no bias
        if name.endswith(("o_proj.weight", "fc2.weight", "down_proj.weight", "out_proj.weight")):
            torch.nn.init.zeros_(weight)
        elif weight.ndim == 3:  # a convolution over time
            bound = weight.shape[2] ** -0.5
            torch.nn.init.uniform_(weight, -bound, bound, generator=generator)
        else:
            deviation = scale.get(name.removeprefix("model."), weight.shape[1] ** -0.5)
            torch.nn.init.normal_(weight, std=deviation, generator=generator)
    if isinstance(model, nemotron_h.NemotronH):
        initialise_hybrid(model, generator)


@torch.no_grad()
def initialise_hybrid(model, generator):
    """A start that already recalls a little: layers near to what they are to become.

    Most heads of a Mamba layer hand on the token that stood 1 to 3 places before, turned by a
    rotation; keys look at that, queries at the token itself and a little at those before; values
    and the head give back what is found. After the idea of arXiv 2305.09828 and 2410.11135.
    """
    m = model.config.hidden_size
    turned = torch.linalg.qr(torch.randn(m, m, generator=generator)).Q
    model.lm_head.weight.copy_(0.05 * model.embeddings.weight)
    for mixer in (layer.mixer for layer in model.layers):
        if isinstance(mixer, nemotron_h.Attention):
            k, v = (
                weight.view(-1, 1, mixer.head_dim, m)
                for weight in (mixer.k_proj.weight, mixer.v_proj.weight)
            )  # (g, 1, d, m)
            q = mixer.q_proj.weight.view(len(k), -1, *k.shape[2:])  # (g, h/g, d, m)
            q.copy_((k + 0.2 * k @ turned.T).expand_as(q))
            k.copy_(4 * k @ turned.T)
            mixer.o_proj.weight.copy_(0.5 * v.expand_as(q).flatten(0, 2).T)
        elif isinstance(mixer, nemotron_h.Mamba):
            inner, channels, heads = mixer.widths
            width = (channels - inner) // 2  # of B, and of C
            B, C = mixer.in_proj.weight[2 * inner : 2 * inner + 2 * width].mul_(0.5).split(width)
            C.copy_(B)
            B, C = mixer.conv1d.weight[inner:].split(width)
            C.copy_(B)
            mixer.conv1d.bias.zero_()
            taps = mixer.conv1d.weight[:inner].view(heads, -1, mixer.conv1d.kernel_size[0])
            taps *= 0.1
            for head in range(heads):
                taps[head, :, -2 - max(0, head % 4 - 1)] += 1  # of four heads two look 1 place back
            mixer.out_proj.weight.copy_(0.5 * turned @ mixer.in_proj.weight[inner : 2 * inner].T)
            mixer.in_proj.weight[-heads:] *= 0.3
            dt = torch.full((heads,), 0.3)
            mixer.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus turned round
            # Two heads of three forget at once, the others in 30 to 1000 tokens.
            mixer.A_log.copy_(torch.full((heads,), 10.0).log())
            slow = mixer.A_log[::3]
            slow.copy_(torch.linspace(math.log(0.1), math.log(0.003), len(slow)))


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal; for matrices (Keller Jordan, 2024)."""

    def __init__(self, parameters, lr, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = defaultdict(list)
            for weight in group["params"]:
                shapes[weight.shape].append(weight)
            for shape, weights in shapes.items():
                gradients = torch.stack([gradient(weight) for weight in weights])
                state = self.state[weights[0]]
                average = state.setdefault("average", torch.zeros_like(gradients))
                average.lerp_(gradients, 1 - group["momentum"])
                step = orthogonal(gradients.lerp(average, group["momentum"]))
                rate = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(weights, list(step.unbind()), alpha=-rate)


def gradient(weight):
    """Its gradient; an expert that no token came to has none."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def orthogonal(x, steps=5):
    """Roughly the nearest orthogonal matrix of each (., rows, columns), by Newton-Schulz steps."""
    wide = x.shape[-2] <= x.shape[-1]
    y = (x if wide else x.mT).bfloat16()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = y @ y.mT
        y = 3.4445 * y + (-4.7750 * square + 2.0315 * square @ square) @ y
    return (y if wide else y.mT).float()


def kind_of(name, weight):
    """Which of a recipe's rates a parameter has."""
    if "embed" in name:
        return "embedding"
    if name == "lm_head.weight":
        return "head"
    if name.endswith("gate.weight"):
        return "router"
    return "matrix" if weight.ndim == 2 else "other"  # norms, biases, what Mamba has of its own


class Balance:
    """Even use of a model's experts: the bias of one chosen too often sinks, by `rate` a step.

    arXiv 2408.15664; the bias has no gradient. Without experts this does nothing.
    """

    def __init__(self, model):
        self.chosen = {}  # router: the experts chosen in the last step
        for router in (m for m in model.modules() if isinstance(m, nemotron_h.Router)):
            # Not in autocast's bf16, which could not tell close scores apart.
            router.forward = torch.autocast("cpu", enabled=False)(router.forward)
            router.register_forward_hook(self.note)

    def note(self, router, _, output):
        self.chosen[router] = output[0]

    def loads(self):
        """For each router the share of the tokens' choices that each expert has."""
        for router, chosen in self.chosen.items():
            counts = chosen.flatten().bincount(minlength=len(router.weight))
            yield router, counts / counts.sum()

    @torch.no_grad()
    def step(self, rate):
        for router, loads in self.loads():
            router.e_score_correction_bias += rate * (loads.mean() - loads).sign()


def train(model, rows, steps, recipe):
    """Train in bf16 autocast; progress goes to stderr."""
    groups = defaultdict(list)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups[kind_of(name, weight)].append(weight)
    rates, matrices = recipe.rates, groups.pop("matrix")
    adam = torch.optim.AdamW(
        [
            {"params": groups[kind], "lr": rates[kind]}
            for kind in ("embedding", "head", "other", "router")
            if kind in groups
        ],
        betas=(0.8, 0.95),
        eps=1e-10,
        weight_decay=0.0,
    )
    optimizers, balance = (adam, Muon(matrices, lr=rates["matrix"])), Balance(model)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    # The head is a third of the work: give it only the positions where something is learned.
    learned = model.lm_head.register_forward_pre_hook(lambda _, inputs: inputs[0][targets >= 0])
    started, shown, average = time.perf_counter(), 0.0, None
    for step in range(steps):
        part = step / steps
        lengths = next(lengths for end, lengths in recipe.row_lengths if part < end)
        length = lengths[step % len(lengths)]
        ids, targets = rows.batch(recipe.tokens_per_step // length, length, part)
        # Of 128 tokens, plain attention takes 57 ms there and back, flash attention 87.
        attention = SDPBackend.MATH if length <= 128 else SDPBackend.FLASH_ATTENTION
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(attention):
            logits = model(ids)
        loss = F.cross_entropy(logits, targets[targets >= 0])
        loss.backward()
        rate = min(1.0, (part + 1 / steps) / WARMUP, (1 - part) / DECAY)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            optimizer.step()
            optimizer.zero_grad()
        balance.step(rate * rates.get("balance", 0))
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        seconds = time.perf_counter() - started
        if seconds - shown > 5 or step == steps - 1:
            shown = seconds
            left = seconds / (step + 1) * (steps - step - 1)
            say(
                f"\rstep {step + 1}/{steps}  loss {average:.3f}  "
                f"{(step + 1) * recipe.tokens_per_step / seconds:,.0f} tokens/s  "
                f"{left / 60:.1f} min left  ",
                end="",
            )
    say("")
    learned.remove()


def say(text, end="\n"):
    print(text, end=end, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------------------
# The folder


def write_folder(folder, model, config, tokenizer, beside, recipe):
    """Write the Hub's files and those of `beside` near `folder`, then put them in its place."""
    partial, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    def write(name, content):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (partial / name).write_text(text, encoding="utf-8")

    named, more, stops, sampling = recipe.files(config)
    ours_to_hub = {ours: hub for hub, ours in recipe.names.items()}
    float32 = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name in getattr(module, "float32", ())
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        numbers = re.findall(r"\.(\d+)\.", name)  # of the layer, and of the expert
        hub_name = ours_to_hub[re.sub(r"\.\d+\.", ".{}.", name)].format(*numbers)
        tensor = tensor if name in float32 else tensor.bfloat16()
        tensors[hub_name] = tensor.contiguous()
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    (partial / "model.safetensors").chmod(0o644)
    tokenizer.save(str(partial / "tokenizer.json"))
    for name, content in beside.items():
        (partial / name).write_bytes(content)
    write("config.json", config)
    write(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            **more,
        },
    )
    write(
        "generation_config.json",
        {
            "bos_token_id": config["bos_token_id"],
            "eos_token_id": stops,
            "pad_token_id": config["pad_token_id"],
            **sampling,
            "transformers_version": config["transformers_version"],
        },
    )
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


# --------------------------------------------------------------------------------------------------
# Measuring


@torch.inference_mode()
def answer_all(model, folder, conversations, max_new_tokens=72):
    """The greedy answer to each conversation, without the calculator's part.

    conversations: tuples of (role, text), the last one a question. Those of one length share a
    batch.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    helper = calculator.Calculator(text_tokenizer.Tokenizer.load(folder))
    special = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    lengths = defaultdict(list)
    for messages in conversations:
        prompt = [special["<|bos|>"]]
        for role, text in messages:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            prompt += [special[f"<|{role}_start|>"], *ids, special[f"<|{role}_end|>"]]
        prompt.append(special["<|assistant_start|>"])
        lengths[len(prompt)].append((messages, prompt))
    answers, stops = {}, (special["<|assistant_end|>"], special["<|bos|>"])
    for length, group in lengths.items():
        rows = [helper.row() for _ in group]
        told = [[] for _ in group]
        cache = model.new_cache(len(group), length + max_new_tokens)
        logits = model(torch.tensor([prompt for _, prompt in group]), cache=cache, logits_to_keep=1)
        for _ in range(max_new_tokens):
            tokens = logits[:, -1].argmax(-1).tolist()
            tokens = [row.next(token) for row, token in zip(rows, tokens, strict=True)]
            for row, token in zip(told, tokens, strict=True):
                row.append(token)
            if all(not set(stops).isdisjoint(row) for row in told):
                break
            logits = model(torch.tensor(tokens)[:, None], cache=cache)
        for (messages, _), row in zip(group, told, strict=True):
            end = next((n for n, token in enumerate(row) if token in stops), len(row))
            answers[messages] = said(tokenizer.decode(row[:end], skip_special_tokens=False))
    return answers


@torch.inference_mode()
def text_loss(model, tokenizer, text, length=512):
    """Mean loss on a text in nats: (per token, per byte, number of tokens)."""
    bos = tokenizer.token_to_id("<|bos|>")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    total = 0.0
    for start in range(0, len(ids), length - 1):
        row = torch.tensor([bos, *ids[start : start + length - 1]])
        total += F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="sum").item()
    return total / len(ids), total / len(text.encode()), len(ids)


def evaluate(folder, questions_per_cell):
    """Print, as the table of README.md, what the folder's bf16 weights get right."""
    model = loading.load(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    corpus, random = make_corpus(), Random(20_000)
    columns = (("trained", "trained"), ("held out", "trained"), ("held out", "held out"))
    print(f"{'phrasings':24} {'trained':>15} {'held out':>15} {'held out':>15}")
    print(f"{'items':24} {'trained':>15} {'trained':>15} {'held out':>15}")
    exams = {
        (name, column): corpus.exam(name, *column, questions_per_cell, random)
        for name in WEIGHTS
        for column in columns
    }
    questions = [question for exam in exams.values() for question, _ in exam]
    answers = answer_all(model, folder, dict.fromkeys(questions))
    wrong = []
    for name in WEIGHTS:
        cells = []
        for column in columns:
            exam = exams[name, column]
            right = {q: [said(answer) for answer in all_right] for q, all_right in exam}
            misses = [(q, answers[q], right[q][0]) for q in right if answers[q] not in right[q]]
            wrong += [(name, *column, *miss) for miss in misses[:2]]
            cells.append(f"{1 - len(misses) / len(exam):.1%} of {len(exam)}" if exam else "-")
        print(f"{name:24} " + " ".join(f"{cell:>15}" for cell in cells))
    per_token, per_byte, count = text_loss(model, tokenizer, shakespeare()[1])
    print(
        f"Shakespeare, last tenth: {per_token:.3f} nats per token, {per_byte:.3f} per byte, "
        f"{count} tokens"
    )
    print("\nSome wrong answers:")
    for name, phrasing, items, question, answer, right in wrong:
        asked = " / ".join(said(text) for _, text in question)
        print(f"  {name}, phrasing {phrasing}, item {items}: {asked!r}")
        print(f"    {answer!r}, not {right!r}")


@torch.inference_mode()
def sample(model, prompts, stop, length, seed):
    """Rows of `length` ids that go on after the prompts, at TEMPERATURE; stop fills them.

    prompts: rows of ids, all of one length.
    """
    generator = torch.Generator().manual_seed(seed)
    done = torch.zeros(len(prompts), dtype=torch.bool)
    cache = model.new_cache(len(prompts), len(prompts[0]) + length)
    logits = model(torch.tensor(prompts), cache=cache, logits_to_keep=1)
    told = []
    for _ in range(length):
        chances = (logits[:, -1] / TEMPERATURE).softmax(-1)
        token = torch.multinomial(chances, 1, generator=generator)[:, 0]
        done |= token == stop
        told.append(token.masked_fill(done, stop))
        if done.all():
            break
        logits = model(told[-1][:, None], cache=cache)
    return torch.stack(told, 1).tolist()


@torch.inference_mode()
def evaluate_stories(folder, _):
    """Print the loss on stories that were not trained on, and how sampled ones hold together."""
    model = loading.load(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end, random = tokenizer.token_to_id("</s>"), Random(HELD_OUT_SEED)
    told = [story(random) for _ in range(500)]
    loss = tokens = size = 0
    for text in told:
        row = torch.tensor([*tokenizer.encode(text).ids, end])  # the first one is given
        loss += F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="sum").item()
        tokens += len(row) - 1
        size += len(text.encode()) - len(tokenizer.decode(row[:1].tolist()).encode())
    print(
        f"{len(told)} held-out stories: {loss / tokens:.3f} nats per token, {loss / size:.3f} per "
        f"byte, {tokens} tokens of {size / tokens:.2f} bytes"
    )
    prompt = tokenizer.encode(PROMPT).ids
    rows = sample(model, [prompt] * SAMPLES, end, STORY_LENGTH, HELD_OUT_SEED)
    whole = [row for row in rows if end in row]
    within = sum(end in row[:200] for row in rows)
    texts = [tokenizer.decode([*prompt, *row]) for row in whole]
    print(f"{SAMPLES} stories after {PROMPT!r} at temperature {TEMPERATURE}:")
    print(f"  ended by </s>: {within} in 200 new tokens, {len(whole)} in {STORY_LENGTH}")
    for kind, stories in (("ended samples", texts), ("held-out stories", told)):
        same = sum(main_character(text) == last_named(text) for text in stories)
        two = sum(len(names_in(text)) <= 2 for text in stories)
        print(
            f"  {kind}, {len(stories)}: same main character at the end {same}, no third name {two}"
        )
    lengths, kept = defaultdict(dict), {True: 0, False: 0}  # {length: {name: prompt}}
    names = held_out_names(SAMPLES, HELD_OUT_SEED)
    for name, girl in names:
        prompt = tokenizer.encode(NEW_NAME_PROMPT.format("girl" if girl else "boy", name)).ids
        lengths[len(prompt)][name] = prompt
    for group in lengths.values():
        rows = sample(model, list(group.values()), end, STORY_LENGTH, HELD_OUT_SEED)
        for (name, prompt), row in zip(group.items(), rows, strict=True):
            text = tokenizer.decode([*prompt, *row])
            whole = end in row and main_character(text) == last_named(text) == name
            kept[name in NEW_NAMES] += whole and len(names_in(text)) <= 2
    made_up = len(names) - len(NEW_NAMES)
    print(
        f"  a hero's name that is in no story is kept: {kept[True]} of {len(NEW_NAMES)} real "
        f"ones, {kept[False]} of {made_up} made-up ones"
    )
    print("\nThe first ones:")
    for text in texts[:3]:
        print(f"  {text}\n")


@torch.inference_mode()
def ask_all(model, tokenizer, notes, questions, thinking, max_new_tokens=64):
    """What the model writes to each of several questions about the same notes, each asked alone.

    notes: the prompt up to the question. They are read once; then one row goes on per question.
    """
    opening = "<think>\n" if thinking else "<think></think>"
    turn = f"<|im_end|>\n<|im_start|>assistant\n{opening}"
    seen = tokenizer.encode(notes).ids
    rows = [tokenizer.encode(question + turn).ids for question in questions]
    longest = max(map(len, rows))
    cache = model.new_cache(1, len(seen) + longest + max_new_tokens)
    model(torch.tensor([seen]), cache=cache, logits_to_keep=1)
    cache.reorder([0] * len(rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    logits = model(ids, cache=cache, attention_mask=mask, logits_to_keep=1)
    stop, told = tokenizer.token_to_id("<|im_end|>"), []
    done = torch.zeros(len(rows), dtype=torch.bool)
    for _ in range(max_new_tokens):
        token = logits[:, -1].argmax(-1)
        done |= token == stop
        told.append(token.masked_fill(done, stop))
        if done.all():
            break
        logits = model(told[-1][:, None], cache=cache)
    rows = torch.stack(told, 1).tolist()
    texts = tokenizer.decode_batch(rows, skip_special_tokens=False)
    return [text.split("<|im_end|>")[0] for text in texts]


def write_notes(random, tokenizer, length, held_out):
    """Notes for a prompt of about `length` tokens: (Notes, the prompt up to the question)."""
    # At most 60 facts or so: there are but 40 names.
    notes, room = Notes(random, facts_share=min(0.5, 500 / length)), length - 30
    share = 0.5 if held_out else 0.0
    prompt = f"{RECALL_PROMPT}Notes:"
    while room > 0:
        sentence = " " + notes.sentence(share)
        prompt += sentence
        room -= len(tokenizer.encode(sentence).ids)
    return notes, prompt


def evaluate_recall(folder, questions_per_cell):
    """Print how much of the notes is recalled, as in the tables of README.md."""
    model = loading.load(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    random, wrong = Random(HELD_OUT_SEED), []
    marks = defaultdict(list)  # what is measured: [whether each answer is right, ...]

    def exam(prompt, asked, thinking, *cells):
        """Ask (question, reasoning, answer, cell): the marks go to this cell and to `cells`."""
        told = ask_all(model, tokenizer, prompt, [question for question, *_ in asked], thinking)
        for text, (question, reasoning, answer, cell) in zip(told, asked, strict=True):
            right = text.split("</think>\n")[-1] == answer
            for name in (cell, *cells):
                marks[name, thinking].append(right)
            if not right:
                wrong.append((cells, question, text, f"{reasoning}\n</think>\n{answer}"))

    for length in RECALL_LENGTHS:
        for thinking in (False, True):
            for cell in ((length, "trained"), (length, "held out"), (length, "not in the notes")):
                while len(marks[cell, thinking]) < questions_per_cell:
                    notes, prompt = write_notes(random, tokenizer, length, "held out" in cell)
                    if "not in the notes" in cell:
                        unknown = filter(None, [notes.ask_unknown() for _ in range(20)])
                        asked = [(*question, None) for question in unknown]
                    else:
                        facts = notes.held_out if "held out" in cell else notes.facts
                        asked = []
                        for fact in random.sample(facts, min(len(facts), 20)):
                            which = random.randrange(len(FACTS[fact[0]].questions))
                            asked.append((*notes.ask(fact, which), (cell[1], fact[0], which)))
                    if asked:
                        asked = [(f" {question}", *rest) for question, *rest in asked]
                        exam(prompt, asked, thinking, cell)
    talk = [(said, "", answer, None) for choices, answer in SMALL_TALK for said in choices]
    for thinking in (False, True):
        exam(RECALL_PROMPT, talk, thinking, "small talk")

    def show(name, *cells):
        """A line: the share of right answers of each cell, at once and with thinking."""
        found = [marks[cell, thinking] for cell in cells for thinking in (False, True)]
        shares = [f"{sum(m) / len(m):.1%} of {len(m)}" if m else "-" for m in found]
        print(f"{name!s:38}" + "".join(f"{share:>15}" for share in shares))

    print(f"{'':38}{'trained values':^30}{'held-out values':^30}{'not in the notes':^30}")
    print(f"{'tokens in the prompt':38}" + f"{'at once':>15}{'thinking':>15}" * 3)
    for length in RECALL_LENGTHS:
        show(length, *((length, kind) for kind in ("trained", "held out", "not in the notes")))
    print()
    for kind, fact in FACTS.items():
        for which, (question, _) in enumerate(fact.questions):
            show(question, ("trained", kind, which), ("held out", kind, which))
    show("small talk, without notes", "small talk")
    print("\nSome wrong answers:")
    for cells, question, text, expected in random.sample(wrong, min(len(wrong), 12)):
        print(f"  {cells}: {question!r}\n    {text!r}, not {expected!r}")


# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    new: type
    read_config: Callable  # of config.json
    names: dict  # the class's table of names
    config: Callable  # config.json to train
    files: Callable  # what the folder's other files have of their own
    corpus: Callable
    tokenizer: Callable  # of the corpus: the tokenizer, and {file: bytes} to lie beside it
    rows: type
    steps: int
    row_lengths: tuple  # (up to this part of the run, lengths taken in turn), ...
    rates: dict
    evaluate: Callable
    tokens_per_step: int = TOKENS_PER_STEP


MODELS = {
    "nanochat-tiny": Recipe(
        new=nanochat.NanoChat,
        read_config=nanochat.config_from_hub,
        names=nanochat.HUB_NAMES,
        config=nanochat_config,
        files=nanochat_files,
        corpus=make_corpus,
        tokenizer=train_tokenizer,
        rows=Rows,
        steps=STEPS,
        row_lengths=((1.0, ROW_LENGTHS),),
        rates={"matrix": MATRIX_RATE, "embedding": EMBEDDING_RATE, "head": HEAD_RATE},
        evaluate=evaluate,
    ),
    "nemotron-tiny": Recipe(
        new=nemotron.Nemotron,
        read_config=nemotron.config_from_hub,
        names=nemotron.HUB_NAMES,
        config=nemotron_config,
        files=nemotron_files,
        corpus=lambda: None,
        tokenizer=train_story_tokenizer,
        rows=StoryRows,
        steps=STORY_STEPS,
        row_lengths=((1.0, STORY_ROW_LENGTHS),),
        rates=STORY_RATES,
        evaluate=evaluate_stories,
    ),
    "nemotron-h-tiny": Recipe(
        new=nemotron_h.NemotronH,
        read_config=nemotron_h.config_from_hub,
        names={
            hub: ours
            for hub, ours in nemotron_h.HUB_NAMES.items()
            if hub.startswith(("backbone.", "lm_head."))
        },
        config=nemotron_h_config,
        files=nemotron_h_files,
        corpus=lambda: None,
        tokenizer=train_recall_tokenizer,
        rows=RecallRows,
        steps=RECALL_STEPS,
        row_lengths=RECALL_ROW_LENGTHS,
        rates=RECALL_RATES,
        evaluate=evaluate_recall,
        tokens_per_step=RECALL_TOKENS_PER_STEP,
    ),
}


def count(text):
    """An argument that is a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main():
    parser = argparse.ArgumentParser(
        description="Train a tiny model from nothing on two CPU cores, write its folder beside "
        "this script in the Hub's layout, and print how much it gets right.",
        epilog="Takes about 45 minutes, nemotron-tiny about 15, nemotron-h-tiny about 35. "
        "Progress goes to stderr, the figures to stdout. Ctrl-C stops; until the new folder is "
        "written, the one that was there stays as it was.",
    )
    parser.add_argument("model", choices=MODELS, help="which model: %(choices)s")
    parser.add_argument(
        "--evaluate", action="store_true", help="do not train; measure the folder that is there"
    )
    parser.add_argument(
        "--steps",
        type=count,
        help="training steps; fewer give a weaker model sooner (default: "
        + ", ".join(f"{name} {recipe.steps}" for name, recipe in MODELS.items())
        + ")",
    )
    parser.add_argument(
        "--questions",
        type=count,
        default=200,
        help="questions for one figure: of nanochat-tiny at most, of nemotron-h-tiny at least so "
        "many (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=count, default=2, help="CPU threads to use (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, help="the folder (default: the model's name, beside this script)"
    )
    options = parser.parse_args()
    recipe, folder = MODELS[options.model], options.out or HERE.parent / options.model
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        steps = options.steps or recipe.steps
        say("making the corpus and the tokenizer")
        corpus = recipe.corpus()
        tokenizer, beside = recipe.tokenizer(corpus)
        config = recipe.config(tokenizer.token_to_id)
        model = recipe.new(recipe.read_config(config))
        initialise(model, SEED)
        size = sum(weight.numel() for weight in model.parameters())
        say(f"training {options.model}: {size:,} parameters, {steps} steps")
        train(model, recipe.rows(corpus, tokenizer, SEED), steps, recipe)
        write_folder(folder, model, config, tokenizer, beside, recipe)
        say(f"wrote {folder}")
    recipe.evaluate(folder, options.questions)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("\nstopped")
        sys.exit(130)
    except (FileNotFoundError, ValueError) as error:
        say(f"train_tiny.py: {error}")
        sys.exit(2)
