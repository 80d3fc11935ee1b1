"""The settings of a generation: one frozen object, checked when it is made."""

import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TypedDict

from nanomodels.generation.calculator import Calculator
from nanomodels.text.files import read_json
from nanomodels.text.ids import list_of_ids

# Numbers: lowest, highest, what a special value means.
RANGES = {
    "temperature": (0, 1e6, "0 is greedy"),
    "top_k": (0, 2**31, "a whole number, 0 is off"),
    "top_p": (1e-9, 1, "1 is off"),
    "min_p": (0, 1, "0 is off"),
    "repetition_penalty": (0.01, 100, "1 is off"),
}
# Whole numbers without an upper limit: the lowest.
COUNTS = {
    "num_samples": 1,
    "max_new_tokens": 0,
    "draft_lookup": 0,
    "vocab_size": 1,
    "logprobs": 0,
}
OPTIONAL = ("vocab_size", "logprobs")  # may be None


def is_real(value, kind=Real):
    """Whether it is a number of Python or numpy, and no bool."""
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class GenerationSettings:
    """How prompts are continued.

    Raises ValueError naming a setting that is out of range.
    """

    max_new_tokens: int = 256  # of each text
    num_samples: int = 1  # texts for each prompt
    temperature: float = 0.0  # 0 is greedy; 1 samples from the model's own probabilities
    top_k: int = 0  # sample from the k likeliest tokens; 0 is off
    top_p: float = 1.0  # sample from the likeliest tokens that together have probability p
    min_p: float = 0.0  # sample from tokens with p times the likeliest token's probability or more
    repetition_penalty: float = 1.0  # above 1 makes tokens less likely that the text already has
    seed: int | None = None  # sample j of a prompt uses seed + j; None: a random seed
    # A text ends before one of these ids; None: model.stop_ids; (): none.
    stop_ids: Collection[int] | None = None
    # Ids from this one on are never chosen: the tokenizer's size, where the model's vocabulary is
    # padded to more. None: the model's.
    vocab_size: int | None = None
    # Most tokens of a draft (drafts.py); 0 is off. 8 to 16 pay on a CPU.
    draft_lookup: int = 0
    cuda_graph: bool = False  # run each decode step as a CUDA graph (cuda_graph.py)
    # Tokens come with log-probabilities, theirs and those of the K likeliest (logprobs.py).
    logprobs: int | None = None
    # A Calculator puts the values of expressions into the text of a nanochat model (calculator.py).
    calculator: Calculator | None = None

    def __post_init__(self):
        for name, least in COUNTS.items():
            number = getattr(self, name)
            if number is None and name in OPTIONAL:
                continue
            if not is_real(number, Integral) or number < least:
                raise ValueError(
                    f"{name} is {number!r}; it must be a whole number, {least} or more"
                )
            object.__setattr__(self, name, int(number))  # of numpy's, a plain one
        for name, (low, high, meaning) in RANGES.items():
            number = getattr(self, name)
            kind, plain = (Integral, int) if name == "top_k" else (Real, float)
            if not is_real(number, kind) or not low <= number <= high:
                raise ValueError(f"{name} is {number!r}; it must be {low} to {high} ({meaning})")
            object.__setattr__(self, name, plain(number))
        if self.seed is not None:
            whole = is_real(self.seed, Integral)
            if not whole or self.seed < 0 or int(self.seed) + self.num_samples > 2**63:
                raise ValueError("seed must be a whole number from 0 to 2^63 - 1")
            object.__setattr__(self, "seed", int(self.seed))
        if self.stop_ids is not None and not isinstance(self.stop_ids, frozenset):
            object.__setattr__(self, "stop_ids", tuple(list_of_ids("stop_ids", self.stop_ids)))
        if self.calculator is not None and not isinstance(self.calculator, Calculator):
            raise ValueError(
                f"calculator is {self.calculator!r:.80}; give a Calculator(tokenizer), or None"
            )
        if self.cuda_graph and self.draft_lookup:
            raise ValueError("cuda_graph and draft_lookup do not go together")

    def for_model(self, model):
        """The same settings, where None is replaced by the model's value or a random seed."""
        known = model.config.vocab_size
        return replace(
            self,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            stop_ids=frozenset(model.stop_ids if self.stop_ids is None else self.stop_ids),
            vocab_size=min(known, self.vocab_size or known),
        )


class TextSettings(TypedDict, total=False):
    """The fields of GenerationSettings that `generate` takes as keywords."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop_ids: Collection[int] | None
    vocab_size: int | None
    draft_lookup: int
    cuda_graph: bool
    logprobs: int | None
    calculator: Calculator | None


class BatchSettings(TextSettings, total=False):
    """The same for `generate_batch`: all fields."""

    num_samples: int


def settings_from(config, given):
    """The GenerationSettings: those given, then generation_config.json (a dict), then defaults."""
    settings = {"temperature": 0.0}
    names = ("repetition_penalty", "max_new_tokens")
    if config.get("do_sample") is True:
        settings["temperature"] = 1.0
        names += ("temperature", "top_k", "top_p", "min_p")
    settings |= {name: config[name] for name in names if config.get(name) is not None}
    samples = given.get("num_samples", 1) != 1 or given.get("top_p", 1) != 1
    if samples or given.get("top_k") or given.get("min_p"):
        settings["temperature"] = settings["temperature"] or 1.0  # they make no sense without
    return GenerationSettings(**settings | given)


def generation_config(folder):
    """The checkpoint's generation_config.json, or nanochat's own defaults for its folders."""
    from nanomodels.nanochat import GENERATION_CONFIG

    path = folder / "generation_config.json"
    if path.is_file():
        return read_json(path)
    return GENERATION_CONFIG if folder.is_dir() and not (folder / "config.json").is_file() else {}
