"""Rotary position embedding: the cosine and sine of the rotation angles.

A head of width d is rotated in d/2 planes. At position i, plane j turns by the angle
i * theta^(-2j/d). The scaled rope types change these frequencies, so that a model can read longer
texts than those that it was trained on.

Each decoder's `rotate` says which two numbers form a plane and in which direction it turns.

Source: arXiv 2104.09864; transformers 5.23.0 modeling_rope_utils.py (names, defaults, formulas).
"""

import functools
import math
from dataclasses import dataclass

import torch

from nanomodels.config import ConfigReader, is_number


@dataclass(frozen=True)
class Rope:
    """The rotary part of a config; one field per key of the Hub's `rope_parameters`."""

    dim: int  # the leading numbers of a head that are rotated; even
    max_position_embeddings: int
    rope_type: str = "default"
    rope_theta: float = 10_000.0
    original_max_position_embeddings: int | None = None  # trained length; yarn, longrope, llama3
    factor: float | None = None
    attention_factor: float | None = None  # multiplies cos and sin
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None

    @property
    def context_length(self):
        """Maximum context length in tokens."""
        stretch = self.factor if self.rope_type == "dynamic" else 1
        return int(self.max_position_embeddings * stretch)

    @property
    def depends_on_length(self):
        """Whether the frequencies are chosen by the `length` that is given to `rotation`."""
        return self.rope_type in ("dynamic", "longrope")


def rotation(rope, positions, length):
    """Cosine and sine of the rotation angles at positions (b, t): two of (b, t, dim/2), float32.

    The rope types "dynamic" and "longrope" choose their frequencies by `length`: the cache's
    max_length, or t without a cache. It is constant for a cache, so all cached keys have the same
    frequencies. (transformers 5.23.0 changes them during a text and keeps the older keys.)
    """
    length = length if rope.depends_on_length else None
    # What torch.export traces are no numbers to keep.
    compute = frequencies.__wrapped__ if torch.compiler.is_compiling() else frequencies
    inv_freq, scale = compute(rope, length, positions.device)
    angles = positions.float()[..., None] * inv_freq  # (b, t, dim/2)
    return angles.cos() * scale, angles.sin() * scale


@functools.cache  # without a limit: a CUDA graph reads the same memory again and again
@torch.inference_mode(False)  # a later call may need autograd
def frequencies(rope, length, device):
    """The angle per position of each plane (dim/2,), float32, and the factor on cos and sin."""
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32, device=device) / rope.dim
    if rope.rope_type != "default":
        return SCALED[rope.rope_type](rope, exponents, length)
    return 1.0 / rope.rope_theta**exponents, 1.0


# --- The scaled types; source: transformers 5.23.0 modeling_rope_utils.py:129-680 ---


def linear(rope, exponents, length):
    """All planes turn more slowly."""
    return 1.0 / rope.rope_theta**exponents / rope.factor, 1.0


def dynamic(rope, exponents, length):
    """NTK: a larger base for texts that are longer than those of the training."""
    trained, dim = rope.max_position_embeddings, rope.dim
    growth = rope.factor * max(length, trained) / trained - (rope.factor - 1)
    theta = rope.rope_theta * growth ** (dim / (dim - 2))
    return 1.0 / theta**exponents, 1.0


def yarn(rope, exponents, length):
    """Fast planes as trained, slow ones divided, a ramp between them (arXiv 2309.00071)."""
    inv_freq = 1.0 / rope.rope_theta**exponents
    keep = 1 - yarn_ramp(rope).to(exponents.device)  # 1: as trained; 0: divided
    return inv_freq / rope.factor * (1 - keep) + inv_freq * keep, yarn_scale(rope)


def yarn_scale(rope):
    """YaRN's factor on cos and sin, which keeps the softmax sharp (arXiv 2309.00071 eq. 22)."""

    def attention_scale(mscale):
        return 0.1 * mscale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return attention_scale(rope.mscale) / attention_scale(rope.mscale_all_dim)
    return attention_scale(1.0)


def yarn_ramp(rope):
    """How much YaRN divides each plane (dim/2,), from 0 to 1."""

    def plane(turns):  # the plane that makes so many turns in the trained length
        trained = rope.original_max_position_embeddings
        return (
            rope.dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))
        )

    low, high = plane(rope.beta_fast or 32), plane(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)


def longrope(rope, exponents, length):
    """A divisor for each plane, with one list for short texts and one for long ones."""
    trained, factor = rope.original_max_position_embeddings, rope.factor
    scale = rope.attention_factor
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    divisors = rope.long_factor if length > trained else rope.short_factor
    divisors = torch.tensor(divisors, dtype=torch.float32, device=exponents.device)
    return 1.0 / (divisors * rope.rope_theta**exponents), scale


def llama3(rope, exponents, length):
    """Fast planes as trained, slow ones divided, by their turns in the trained length."""
    inv_freq = 1.0 / rope.rope_theta**exponents
    low, high = rope.low_freq_factor, rope.high_freq_factor
    turns = rope.original_max_position_embeddings * inv_freq / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)  # 1: as trained; 0: divided
    return (1 - smooth) * inv_freq / rope.factor + smooth * inv_freq, 1.0


SCALED = {
    "linear": linear,
    "dynamic": dynamic,
    "yarn": yarn,
    "longrope": longrope,
    "llama3": llama3,
}


# --- The Hub's config.json ---

# Keys of rope_parameters for each type: (required, optional).
TYPES = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        ("factor",),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (("short_factor", "long_factor"), ("factor", "attention_factor")),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ()),
}
# Keys of every type.
COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# Its spellings at the top level of config.json.
PARTIAL = ("partial_rotary_factor", "rope_percent", "rope_percentage")
NEED_TRAINED = ("yarn", "longrope", "llama3")  # these types need the trained length


def rope_from_hub(config, head_dim, partial_rotary_factor=1.0):
    """Read the rotary keys of a Hub config.json.

    config is the parsed dict. The keys are in `rope_parameters`, or in its older spelling
    `rope_scaling` with a top-level `rope_theta`; both are read as transformers 5.23.0 reads them.
    partial_rotary_factor is the family's default.
    Raises ValueError for an unknown type or key, a missing key, two spellings that disagree, or an
    odd rotated width, a number out of range, or numbers that have no rotation.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise ValueError(f"rope_parameters is {given!r:.80}; it must be an object")
    rope_type = given.get("rope_type", given.get("type", "default"))
    if not isinstance(rope_type, str) or rope_type not in TYPES:
        raise ValueError(
            f"rope_type {rope_type!r:.80} is not supported; supported: {', '.join(TYPES)}"
        )
    required, optional = TYPES[rope_type]
    if rope_type in NEED_TRAINED:
        optional += ("original_max_position_embeddings",)
    for key in given:
        if key not in required + optional + COMMON:
            raise ValueError(
                f"rope_parameters key {key!r:.80} is unknown for rope_type {rope_type!r}"
            )
    context = config["max_position_embeddings"]
    keys = ConfigReader(given)
    if rope_type in NEED_TRAINED:  # a top-level key wins over the nested one
        nested = keys.size("original_max_position_embeddings", context)
        original = ConfigReader(config).size("original_max_position_embeddings", nested)
    else:
        original = None
    for key in required:
        if given.get(key) is None and (rope_type, key) != ("yarn", "factor"):
            raise ValueError(f"rope_parameters lacks {key!r}, which rope_type {rope_type!r} needs")
    factor = keys.number("factor", None, above=0)
    if factor is None and rope_type in ("yarn", "longrope"):
        factor = context / original

    spelled = {key: config[key] for key in PARTIAL if config.get(key) is not None}
    if given.get("partial_rotary_factor") is not None:
        spelled["rope_parameters.partial_rotary_factor"] = given["partial_rotary_factor"]
    partial = ConfigReader(spelled, {"the rotated part": tuple(spelled)}).number(
        "the rotated part", partial_rotary_factor, above=0
    )
    dim = int(head_dim * partial)
    if not 2 <= dim <= head_dim or dim % 2 or (rope_type == "dynamic" and dim == 2):
        raise ValueError(
            f"the rotated part of a head is {dim} wide; it must be even, 2 or more (4 or more for "
            f"rope_type 'dynamic'), and at most head_dim {head_dim}"
        )
    truncate = given.get("truncate", True)
    if truncate not in (True, False, None):
        raise ValueError(f"truncate is {truncate!r:.80}; it must be true or false")
    rope = Rope(
        rope_type=rope_type,
        rope_theta=keys.number(
            "rope_theta", ConfigReader(config).number("rope_theta", 10_000.0, above=1), above=1
        ),
        dim=dim,
        max_position_embeddings=context,
        original_max_position_embeddings=original,
        factor=factor,
        attention_factor=keys.number("attention_factor", None),
        truncate=bool(truncate),
        short_factor=stretch(given, "short_factor", rope_type, dim),
        long_factor=stretch(given, "long_factor", rope_type, dim),
        **{
            key: keys.number(key, None, above=0)
            for key in (
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "low_freq_factor",
                "high_freq_factor",
            )
        },
    )
    check_rotation(rope, given)
    return rope


def check_rotation(rope, given):
    """Raise ValueError for rope_parameters, the dict `given`, whose rotation is not finite.

    Each number may be good alone, but not with the others.
    """
    if not 1 <= rope.context_length <= 2**30:
        raise ValueError(
            f"factor is {rope.factor}; with it the context is {rope.context_length} tokens, and it "
            "must be 1 to 2^30"
        )
    try:
        for length in (1, rope.context_length):
            inv_freq, scale = frequencies.__wrapped__(rope, length, "cpu")  # the cache keeps none
            if not (inv_freq.isfinite().all() and math.isfinite(scale)):
                raise OverflowError("infinite or nan")
    except (ArithmeticError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"rope_parameters {given!r:.300} have no rotation ({error}); use other numbers"
        ) from None


def stretch(given, key, rope_type, dim):
    """longrope's divisors of the frequencies (dim/2); () for the other types."""
    if rope_type != "longrope":
        return ()
    values = given[key]
    good = isinstance(values, list) and all(is_number(value) and value > 0 for value in values)
    if not good or len(values) != dim // 2:
        raise ValueError(
            f"{key} is {values!r:.80}; it must be {dim // 2} numbers from 1e-30 to 1e30, one for "
            "each rotated plane"
        )
    return tuple(map(float, values))
