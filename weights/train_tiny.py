"""Train a tiny model of this project from nothing on two CPU cores, and measure it.

    python weights/train_tiny.py nanochat-tiny              # train, write weights/nanochat-tiny/
    python weights/train_tiny.py nanochat-tiny --evaluate   # measure the folder that is there

and the same with nemotron-tiny. nanochat-tiny learns conversations that chat_corpus.py makes and
tinyshakespeare.txt beside it, nemotron-tiny the stories of story_corpus.py. Seeds and steps are
fixed, so a second run on the same machine and torch gives the same weights. The folder has the
Hub's layout; it is written beside the old one and takes its place at the end.
"""

import argparse
import io
import json
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
from chat_corpus import WEIGHTS, Corpus
from safetensors.torch import save_file
from story_corpus import last_named, main_character, names_in, story
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
sys.path.insert(0, str(HERE.parent))

from nanomodels import checkpoint, nanochat, nemotron  # noqa: E402  (the checkout's, installed or not)

# --------------------------------------------------------------------------------------------------
# The recipe of nanochat-tiny, and what both share

VOCAB_SIZE = 1536
STEPS = 3200
TOKENS_PER_STEP = 4096
ROW_LENGTHS = (128,) * 6 + (256, 512)  # taken in turn; mostly short, so that attention is cheap
TEXT_SHARE = ((0.15, 0.6), (0.85, 0.12), (1.0, 0.06))  # up to this part of the run, this much text
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
        "intermediate_size": 1024,
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

STORY_STEPS = 1000
STORY_ROW_LENGTHS = (256, 256, 256, 512)
# Nothing normalises a Nemotron's embedding: smaller steps for it.
STORY_RATES = {"matrix": MATRIX_RATE, "embedding": 0.05, "head": HEAD_RATE, "norm": 0.01}
HELD_OUT_SEED = 20_000
SAMPLES, TEMPERATURE, PROMPT = 200, 0.7, "Once upon a time"

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
        "head_dim": 48,
        "max_position_embeddings": max(STORY_ROW_LENGTHS),
        "hidden_act": "relu2",
        "norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
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
    named["additional_special_tokens"] = STORY_SPECIAL_TOKENS[4:]
    return named, {}, config["eos_token_id"], {"do_sample": True, "temperature": TEMPERATURE}


# --------------------------------------------------------------------------------------------------
# Data


def shakespeare():
    """The plays: (to train on, the last tenth to measure with)."""
    text = (HERE / "tinyshakespeare.txt").read_text(encoding="utf-8")
    cut = text.index("\n\n", len(text) * 9 // 10) + 2
    return text[:cut], text[cut:]


def make_corpus():
    """The conversations; the words to spell are those of the plays."""
    words = re.findall(r"\b[a-z]{3,9}\b", shakespeare()[0])
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
                yield text

    def split_by(pattern):
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = split_by(SPLIT_PATTERN.replace("{1,2}", ""))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts(), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]

    vocabulary = {letter: byte for byte, letter in enumerate(byte_letters())}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = split_by(SPLIT_PATTERN)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    bos = "<|bos|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} ids, not {VOCAB_SIZE}")
    return tokenizer


def byte_letters():
    """The character that byte-level BPE writes for each byte (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    plain += range(ord("®"), ord("ÿ") + 1)
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def train_story_tokenizer(_):
    """SentencePiece's BPE with byte fallback, as tokenizers has it: no normaliser but the ▁."""
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
    return convert(sentencepiece.SentencePieceProcessor(model_proto=learned.getvalue()))


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
    """Rows to train on: (ids, targets), a target -100 where nothing is to be learned."""

    def __init__(self, corpus, tokenizer, seed):
        self.corpus, self.tokenizer, self.random = corpus, tokenizer, Random(seed)
        self.special = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
        speeches = re.findall(r".+?(?:\n\n|\Z)", shakespeare()[0], re.DOTALL)
        self.text, self.starts = [], []
        for encoding in tokenizer.encode_batch_fast(speeches, add_special_tokens=False):
            self.starts.append(len(self.text))
            self.text += encoding.ids
        self.waiting = []

    def batch(self, count, length, text_share):
        """`count` rows of `length` tokens, this share of them plays, the others conversations."""
        texts = round(count * text_share)
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
                said = next(encoded).ids
                mine = int(role == "assistant")
                ids += [self.special[f"<|{role}_start|>"], *said, self.special[f"<|{role}_end|>"]]
                learned += [0, *[mine] * (len(said) + 1)]
            rendered.append((ids, learned))
        return rendered


# --------------------------------------------------------------------------------------------------
# Training


def initialise(model, seed):
    """nanochat's start: matrices by their fan-in, what writes to the residual stream at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            continue  # of a norm, zero: gain 1, no bias
        if name.endswith(("o_proj.weight", "fc2.weight", "down_proj.weight")):
            torch.nn.init.zeros_(weight)
        else:
            scale = {"embed_tokens.weight": 1.0, "lm_head.weight": 0.001}
            deviation = scale.get(name.removeprefix("model."), weight.shape[1] ** -0.5)
            torch.nn.init.normal_(weight, std=deviation, generator=generator)


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
                gradients = torch.stack([weight.grad for weight in weights])
                state = self.state[weights[0]]
                average = state.setdefault("average", torch.zeros_like(gradients))
                average.lerp_(gradients, 1 - group["momentum"])
                step = orthogonal(gradients.lerp(average, group["momentum"]))
                rate = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(weights, list(step.unbind()), alpha=-rate)


def orthogonal(x, steps=5):
    """Roughly the nearest orthogonal matrix of each (., rows, columns), by Newton-Schulz steps."""
    wide = x.shape[-2] <= x.shape[-1]
    y = (x if wide else x.mT).bfloat16()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = y @ y.mT
        y = 3.4445 * y + (-4.7750 * square + 2.0315 * square @ square) @ y
    return (y if wide else y.mT).float()


def train(model, rows, steps, recipe):
    """Train in bf16 autocast; progress goes to stderr."""
    named = {name.removeprefix("model."): weight for name, weight in model.named_parameters()}
    embedding, head = named.pop("embed_tokens.weight"), named.pop("lm_head.weight")
    matrices = [weight for weight in named.values() if weight.ndim > 1]
    norms = [weight for weight in named.values() if weight.ndim == 1]
    rates = recipe.rates
    adam = torch.optim.AdamW(
        [
            {"params": [embedding], "lr": rates["embedding"]},
            {"params": [head], "lr": rates["head"]},
            *([{"params": norms, "lr": rates["norm"]}] if norms else ()),
        ],
        betas=(0.8, 0.95),
        eps=1e-10,
        weight_decay=0.0,
    )
    optimizers = (adam, Muon(matrices, lr=rates["matrix"]))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    # The head is a third of the work: give it only the positions where something is learned.
    learned = model.lm_head.register_forward_pre_hook(lambda _, inputs: inputs[0][targets >= 0])
    started, shown, average = time.perf_counter(), 0.0, None
    for step in range(steps):
        part = step / steps
        share = next(share for end, share in TEXT_SHARE if part < end)
        length = recipe.row_lengths[step % len(recipe.row_lengths)]
        ids, targets = rows.batch(TOKENS_PER_STEP // length, length, share)
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
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        seconds = time.perf_counter() - started
        if seconds - shown > 5 or step == steps - 1:
            shown = seconds
            left = seconds / (step + 1) * (steps - step - 1)
            say(
                f"\rstep {step + 1}/{steps}  loss {average:.3f}  "
                f"{(step + 1) * TOKENS_PER_STEP / seconds:,.0f} tokens/s  "
                f"{left / 60:.1f} min left  ",
                end="",
            )
    say("")
    learned.remove()


def say(text, end="\n"):
    print(text, end=end, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------------------
# The folder


def write_folder(folder, model, config, tokenizer, recipe):
    """Write the Hub's files beside `folder`, then put them in its place."""
    partial, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    def write(name, content):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (partial / name).write_text(text, encoding="utf-8")

    named, more, stops, sampling = recipe.files(config)
    ours_to_hub = {ours: hub for hub, ours in recipe.names.items()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        layer = re.search(r"\.(\d+)\.", name)
        pattern = re.sub(r"\.\d+\.", ".{}.", name)
        hub_name = ours_to_hub[pattern].format(*(layer.groups() if layer else ()))
        tensors[hub_name] = tensor.bfloat16().contiguous()
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    (partial / "model.safetensors").chmod(0o644)
    tokenizer.save(str(partial / "tokenizer.json"))
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
def answer_all(model, tokenizer, questions, max_new_tokens=72):
    """The greedy answer to each question alone; questions of one length share a batch."""
    special = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    lengths = defaultdict(list)
    for question in questions:
        said = tokenizer.encode(question, add_special_tokens=False).ids
        prompt = [special["<|bos|>"], special["<|user_start|>"], *said]
        prompt += [special["<|user_end|>"], special["<|assistant_start|>"]]
        lengths[len(prompt)].append((question, prompt))
    answers = {}
    for length, group in lengths.items():
        ids = torch.tensor([prompt for _, prompt in group])
        done = torch.zeros(len(ids), dtype=torch.bool)
        cache = model.new_cache(len(ids), length + max_new_tokens)
        logits = model(ids, cache=cache, logits_to_keep=1)
        told = []
        for _ in range(max_new_tokens):
            token = logits[:, -1].argmax(-1)
            done |= (token == special["<|assistant_end|>"]) | (token == special["<|bos|>"])
            told.append(token.masked_fill(done, special["<|bos|>"]))
            if done.all():
                break
            logits = model(token[:, None], cache=cache)
        for (question, _), row in zip(group, torch.stack(told, 1).tolist(), strict=True):
            answers[question] = tokenizer.decode(row, skip_special_tokens=True)
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
    model = checkpoint.load(folder)
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
    answers = answer_all(model, tokenizer, dict.fromkeys(questions))
    wrong = []
    for name in WEIGHTS:
        cells = []
        for column in columns:
            exam = exams[name, column]
            misses = [(q, answers[q], right[0]) for q, right in exam if answers[q] not in right]
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
        print(f"  {name}, phrasing {phrasing}, item {items}: {question!r}")
        print(f"    {answer!r}, not {right!r}")


@torch.inference_mode()
def sample(model, prompt, stop, count, length, seed):
    """`count` rows of `length` ids that go on after the prompt, at TEMPERATURE; stop fills them."""
    generator = torch.Generator().manual_seed(seed)
    done = torch.zeros(count, dtype=torch.bool)
    cache = model.new_cache(count, len(prompt) + length)
    logits = model(torch.tensor([prompt] * count), cache=cache, logits_to_keep=1)
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
    model = checkpoint.load(folder)
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
    rows = sample(model, prompt, end, SAMPLES, 300, HELD_OUT_SEED)
    whole = [row for row in rows if end in row]
    within = sum(end in row[:200] for row in rows)
    texts = [tokenizer.decode([*prompt, *row]) for row in whole]
    print(f"{SAMPLES} stories after {PROMPT!r} at temperature {TEMPERATURE}:")
    print(f"  ended by </s>: {within} in 200 new tokens, {len(whole)} in 300")
    for kind, stories in (("ended samples", texts), ("held-out stories", told)):
        same = sum(main_character(text) == last_named(text) for text in stories)
        two = sum(len(names_in(text)) <= 2 for text in stories)
        print(
            f"  {kind}, {len(stories)}: same main character at the end {same}, no third name {two}"
        )
    print("\nThe first ones:")
    for text in texts[:3]:
        print(f"  {text}\n")


# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    new: type
    read_config: Callable  # of config.json
    names: dict  # the class's table of names
    config: Callable  # config.json to train
    files: Callable  # what the folder's other files have of their own
    corpus: Callable
    tokenizer: Callable
    rows: type
    steps: int
    row_lengths: tuple
    rates: dict
    evaluate: Callable


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
        row_lengths=ROW_LENGTHS,
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
        row_lengths=STORY_ROW_LENGTHS,
        rates=STORY_RATES,
        evaluate=evaluate_stories,
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
        epilog="Takes about 45 minutes, nemotron-tiny about 15. Progress goes to stderr, "
        "the figures to stdout. Ctrl-C stops; until the new folder is written, the one that was "
        "there stays as it was.",
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
        help="most questions for one figure of nanochat-tiny's evaluation (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=count, default=2, help="CPU threads to use (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, help="the folder (default: the model's name, beside this script)"
    )
    options = parser.parse_args()
    recipe, folder = MODELS[options.model], options.out or HERE / options.model
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        steps = options.steps or recipe.steps
        say("making the corpus and the tokenizer")
        corpus = recipe.corpus()
        tokenizer = recipe.tokenizer(corpus)
        config = recipe.config(tokenizer.token_to_id)
        model = recipe.new(recipe.read_config(config))
        initialise(model, SEED)
        size = sum(weight.numel() for weight in model.parameters())
        say(f"training {options.model}: {size:,} parameters, {steps} steps")
        train(model, recipe.rows(corpus, tokenizer, SEED), steps, recipe)
        write_folder(folder, model, config, tokenizer, recipe)
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
