"""NanoChat from 2026-01-11 on: nanochat.py's decoder with more paths from the input to the output.

    x = norm(embed(ids))
    x = x + smear_lambda * sigmoid(smear_gate(x[:24])) * x of the token before         (smear)
    x0 = x
    for layer i:
        x = resid_lambda[i] * x + x0_lambda[i] * x0
        x = x + attention(norm(x))
        x = x + fc2(relu(fc1(norm(x)))^2)
        at i = layers // 2:  middle = x
    x = x - backout_lambda * middle                                                    (backout)
    logits = cap * tanh(lm_head(norm(x)) / cap)

    attention(x):  q, k, v = q_proj(x), k_proj(x), v_proj(x)
                   v = v + scale * sigmoid(ve_gate(x[:channels])) * value_embed[i](ids)
                   q, k = qk_scale * norm(rotate(q)), qk_scale * norm(rotate(k))
                   o_proj(softmax(q k^T / sqrt(d), causal, at most window[i] tokens back) v)

nanochat changed in steps, the eras: `ERAS` lists them. Smear and backout came last. The constants
of an era are in nanochat's code alone, so `detect_era` tells the era from a checkpoint's tensors.

What is unusual beside nanochat.py: every second layer, counted back from the last, adds an
embedding of the token to its values, with one gate for each value head. Smear needs the embedding
of the previous token as it was before smear. So the cache keeps the token ids, and the embedding is
computed again. (nanochat itself forgets the previous token at the start of a call.)

This is a file of its own because d20, d32, d34 and the Hub's `nanochat` have none of this. So
neither decoder needs an `if` for the other.

Shapes: b batch, t tokens in this call, s cache slots with this call's, m model width, f MLP width,
h heads, g key/value heads (h/g query heads share one), d head width.

`nanomodels.load` may replace an nn.Linear by a class from linears/ that computes the same product.

Source: karpathy/nanochat nanochat/gpt.py at the commits in ERAS; unchanged to 92d63d4 (2026-07-03).
"""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanomodels.attention import attend
from nanomodels.cache import KV, PADDING, Cache, Ids, cache_for_call, causal_mask
from nanomodels.config import ConfigReader, one_field_a_line, parameter_line
from nanomodels.inputs import check_inputs
from nanomodels.rope import Rope, rope_from_hub, rotation

SMEAR_CHANNELS = 24


@dataclass(frozen=True)
class Config:
    """The defaults are a tiny model."""

    vocab_size: int = 256
    hidden_size: int = 128  # m
    intermediate_size: int = 512  # f
    num_hidden_layers: int = 4
    num_attention_heads: int = 4  # h
    num_key_value_heads: int = 4  # g
    head_dim: int = 32  # d
    max_position_embeddings: int = 256  # context length
    # Of each layer: how many earlier tokens a token sees.
    windows: tuple[int, ...] = (64, 64, 64, 256)
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 15.0
    qk_scale: float = 1.2
    value_gate: tuple[int, float] | None = (12, 3.0)  # channels, scale; None: no value embeddings
    smear: bool = True  # and backout
    rope: Rope | None = None  # None: Rope(head_dim, max_position_embeddings)

    __str__ = one_field_a_line

    def has_value_embed(self, i):
        """Whether layer i has a value embedding: every second layer, counted from the last."""
        return self.value_gate is not None and i % 2 == (self.num_hidden_layers - 1) % 2


class KeepFloat32(nn.Module):
    """A module whose parameters named in `float32` stay float32 when the model is cast."""

    float32 = ()

    def _apply(self, fn, recurse=True):
        """What nn.Module calls for .to(), .bfloat16(), .cuda() and the like."""
        kept = {name: getattr(self, name).data for name in self.float32}
        super()._apply(fn, recurse)
        for name, data in kept.items():
            parameter = getattr(self, name)
            if not data.is_meta:  # a meta tensor has no numbers to keep
                parameter.data = data.to(parameter.device)
        return self


def rms_norm(x, eps):
    """x / sqrt(mean(x^2) + eps) over the last dimension, in float32; there is no weight."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).type_as(x)


def rotate(x, cos, sin):
    """Turn each (x[i], x[i + d/2]) by minus the angle. x (b, heads, t, d); cos, sin (b, t, d/2)."""
    cos, sin = cos[:, None], sin[:, None]  # (b, 1, t, d/2)
    x1, x2 = x.chunk(2, dim=-1)  # (b, h, t, d/2)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)  # (b, h, t, d)


def window_mask(call, all_positions, window):
    """The mask (b, 1, t, s) of a layer whose tokens see at most `window` earlier ones.

    all_positions (b, s) are those in all slots. Returns call.mask if no token is too far back.
    """
    if not torch.compiler.is_compiling() and all_positions.shape[1] <= window + 1:
        return call.mask
    query, key = call.positions[:, None, :, None], all_positions[:, None, None, :]
    near = (key >= query - window) | (query == PADDING)  # (b, 1, t, s)
    return causal_mask(call.positions, all_positions) & near


def previous_ids(all_ids, all_positions, positions):
    """The id of the token before each token at `positions` (b, t); any id for the first of a row.

    all_ids and all_positions (b, s) are those in all slots. Returns (b, t).
    """
    b, s = all_positions.shape
    slots = torch.arange(s, device=all_ids.device).expand(b, s)
    # slot_of[row, p + 1] is the slot of position p. slot_of[row, 0] is of padding, or any slot.
    slot_of = slots.new_zeros(b, s + 1).scatter(1, all_positions + 1, slots)
    return all_ids.gather(1, slot_of.gather(1, positions.clamp(min=0)))


class Attention(nn.Module):
    """Causal attention. call: the cache.Call of this forward call; kv: the cache.KV or None."""

    def __init__(self, config, i):
        super().__init__()
        m, d = config.hidden_size, config.head_dim
        h, g = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps, self.qk_scale = d, config.rms_norm_eps, config.qk_scale
        self.q_proj = nn.Linear(m, h * d, bias=False)
        self.k_proj = nn.Linear(m, g * d, bias=False)
        self.v_proj = nn.Linear(m, g * d, bias=False)
        self.o_proj = nn.Linear(h * d, m, bias=False)
        if config.has_value_embed(i):
            self.gate_channels, self.gate_scale = config.value_gate
            self.value_embed = nn.Embedding(config.vocab_size, g * d)
            self.ve_gate = nn.Linear(self.gate_channels, g, bias=False)
        else:
            self.value_embed = None

    def forward(self, x, ids, cos, sin, call, mask, kv):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, h, t, d)
        k = self.k_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, g, t, d)
        v = self.v_proj(x).view(b, t, -1, self.head_dim)  # (b, t, g, d)
        if self.value_embed is not None:
            gate = self.gate_scale * self.ve_gate(x[..., : self.gate_channels]).sigmoid()
            v = v + gate[..., None] * self.value_embed(ids).view_as(v)
        v = v.transpose(1, 2)  # (b, g, t, d)
        # Rotation, norm and scale in float32, rounded once; nanochat rounds in between.
        q = (self.qk_scale * rms_norm(rotate(q.float(), cos, sin), self.eps)).type_as(v)
        k = (self.qk_scale * rms_norm(rotate(k.float(), cos, sin), self.eps)).type_as(v)
        if kv is not None:
            k, v = kv.extend(k, v, call.first_slot)  # (b, g, s, d)
        y = attend(q, k, v, mask)  # (b, h, t, d)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))  # (b, t, m)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)).square())


class Layer(nn.Module):
    def __init__(self, config, i):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.self_attn = Attention(config, i)
        self.mlp = MLP(config)

    def forward(self, x, ids, cos, sin, call, mask, kv):
        x = x + self.self_attn(rms_norm(x, self.eps), ids, cos, sin, call, mask, kv)
        return x + self.mlp(rms_norm(x, self.eps))


class NanoChat2026(KeepFloat32):
    """The whole decoder with its head."""

    stop_ids: Collection[int] = ()  # ids that end generation; set by nanomodels.load
    extra_repr = parameter_line
    float32 = ("resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda")

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.rope = config.rope or Rope(config.head_dim, config.max_position_embeddings)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.resid_lambdas = nn.Parameter(torch.ones(config.num_hidden_layers))
        # 0.1 and 0.2, so that no path is closed in a random model: as nanochat at aba30cb, a825e63.
        self.x0_lambdas = nn.Parameter(torch.full((config.num_hidden_layers,), 0.1))
        if config.smear:
            self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
            self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))
        else:
            self.float32 = ("resid_lambdas", "x0_lambdas")
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def smear(self, x, previous, call):
        """Add to each x (b, t, m) a gated part of the embedding of the `previous` token (b, t)."""
        prior = rms_norm(self.embed_tokens(previous), self.config.rms_norm_eps)  # (b, t, m)
        gate = self.smear_lambda[0] * self.smear_gate(x[..., :SMEAR_CHANNELS]).sigmoid()
        return x + gate * (call.positions > 0)[..., None] * prior

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """Logits of the token after each token: (b, t, vocab), float32.

        input_ids (b, t). attention_mask (b, t) is 1 for a token and 0 for padding, on either side.
        position_ids (b, t) changes only the rotation; by default each row counts its tokens from
        0. logits_to_keep=n returns the last n of the t columns only, 0 all. inputs_embeds is
        refused, because value embeddings and smear need the ids. With a cache, the tokens continue
        it and are added to it.
        """
        x = self.hidden(
            input_ids, cache, attention_mask, position_ids, inputs_embeds, logits_to_keep
        )
        logits = self.lm_head(x).float()
        cap = self.config.final_logit_softcapping
        return cap * torch.tanh(logits / cap)

    def hidden(
        self,
        input_ids: Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """The last norm's output (b, t, m), the head's input; arguments as in `forward`."""
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("nanochat of 2026 needs the ids: give input_ids, not inputs_embeds")
        check_inputs(input_ids, None, logits_to_keep)
        (b, t), eps = input_ids.shape, self.config.rms_norm_eps
        no_cache = cache is None
        weight = self.embed_tokens.weight
        cache = cache_for_call(cache, self.config, len(self.layers) + 1, weight)
        call = cache.begin(b, t, attention_mask)
        all_ids, all_positions = input_ids, call.positions  # (b, s)
        if not no_cache:
            all_ids = cache.entries[-1].extend(input_ids, call.first_slot)
            all_positions = cache.positions[:, : all_ids.shape[1]]
        positions = call.positions if position_ids is None else position_ids  # (b, t)
        cos, sin = rotation(self.rope, positions, call.max_length)
        windows = self.config.windows
        masks = {window: window_mask(call, all_positions, window) for window in {*windows}}

        x = rms_norm(self.embed_tokens(input_ids), eps)  # (b, t, m)
        if self.config.smear:
            x = self.smear(x, previous_ids(all_ids, all_positions, call.positions), call)
        x0 = x
        for i, (layer, window) in enumerate(zip(self.layers, windows, strict=True)):
            x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            x = layer(x, input_ids, cos, sin, call, masks[window], cache.entries[i])
            if i == self.config.num_hidden_layers // 2:
                middle = x
        if self.config.smear:
            x = x - self.backout_lambda[0] * middle
        cache.commit(call)
        return rms_norm(x[:, -logits_to_keep:], eps)  # 0 keeps all, because x[:, -0:] is x[:, 0:]

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` rows of `max_length` slots, on the model's device.

        After the entries of the layers there is one more, with the token ids.
        """
        weight = self.embed_tokens.weight
        shape = (batch, self.config.num_key_value_heads, max_length, self.config.head_dim)
        entries = [KV(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.layers]
        ids = torch.zeros(batch, max_length, dtype=torch.long, device=weight.device)
        entries.append(Ids(ids, self.config.vocab_size))
        return Cache(entries, batch, max_length, self.config, weight)

    @property
    def context_length(self) -> int:
        """Maximum context length in tokens."""
        return self.rope.context_length


# --- Checkpoints of nanochat ---


@dataclass(frozen=True)
class Era:
    """The constants of nanochat's code from a date on. They are in no checkpoint."""

    commit: str
    rope_theta: float
    qk_scale: float  # of normalised queries and keys, each
    short: Callable  # context length -> window of a layer with S in window_pattern
    softcap: float
    value_gate: tuple | None  # channels and scale; None: no value embeddings
    smear: bool  # and backout


def tiled(length):
    """A length, rounded up to a multiple of 128, the tile of FlashAttention 3."""
    return math.ceil(length / 128) * 128


FIRST = "2025-10-13"  # nanochat.py
# A checkpoint's era is the first that fits its tensors. So softcap 20 needs `--era 2026-03-03`.
ERAS = {
    "2026-01-11": Era("aa530cd", 10_000.0, 1.0, lambda n: n // 2, 15.0, None, False),
    "2026-01-18": Era("e85db6b", 10_000.0, 1.0, lambda n: n // 2, 15.0, (32, 2.0), False),
    "2026-03-03": Era("aba30cb", 10_000.0, 1.0, lambda n: n // 2, 20.0, (32, 2.0), False),
    "2026-03-09": Era("6ed7d1d", 100_000.0, 1.15, lambda n: tiled(n / 3), 15.0, (12, 3.0), False),
    "2026-03-14": Era("a825e63", 100_000.0, 1.2, lambda n: tiled(n / 4), 15.0, (12, 3.0), True),
}


NANOCHAT_KEYS = (
    *("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"),
    "window_pattern",
)


def config_from_nanochat(model_config: dict, era: str) -> dict:
    """config.json for the `model_config` of nanochat's meta_XXXXXX.json; era is a name in ERAS."""
    return {
        "architectures": ["NanoChat2026"],
        "model_type": "nanochat_2026",
        **{key: model_config[key] for key in NANOCHAT_KEYS if key in model_config},
        "era": era,
    }


def config_from_hub(hub: dict) -> Config:
    """Read a config.json that `config_from_nanochat` made: nanochat's own keys, and the era.

    Raises ValueError, with the key, for what this file does not implement.
    """
    names = NANOCHAT_KEYS[:-1]
    missing = [key for key in names if key not in hub]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    if hub.get("era") not in [*ERAS]:  # a list, because a value may have no hash
        raise ValueError(f"era is {hub.get('era')!r:.80}; known: {', '.join(ERAS)}")
    keys, era = ConfigReader(hub), ERAS[hub["era"]]
    context, vocab_size, layers, heads, groups, m = (keys.size(name, None) for name in names)
    if m % heads or heads % groups or m // heads % 2:
        raise ValueError(
            f"n_embd {m}, n_head {heads} and n_kv_head {groups} do not go together: each must be a "
            "multiple of the next, and n_embd / n_head even"
        )
    channels = max(SMEAR_CHANNELS if era.smear else 0, era.value_gate[0] if era.value_gate else 0)
    if m < channels:
        raise ValueError(f"n_embd is {m}; the gates look at {channels} channels")
    pattern = keys.value("window_pattern", "L")  # nanochat's default
    if not isinstance(pattern, str) or not re.fullmatch("[SLsl]+", pattern):
        raise ValueError(f"window_pattern is {pattern!r:.80}; it must be letters S and L")
    reach = {"S": era.short(context), "L": context}
    windows = tuple(reach[letter] for letter in pattern.upper())
    windows *= layers // len(windows) + 1  # may be too many layers; nothing is computed for each
    return Config(
        vocab_size=vocab_size,
        hidden_size=m,
        intermediate_size=4 * m,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=m // heads,
        max_position_embeddings=context,
        windows=(*windows[: layers - 1], reach["L"]),  # the last layer is always L
        rms_norm_eps=torch.finfo(torch.float32).eps,  # F.rms_norm's default
        final_logit_softcapping=era.softcap,
        qk_scale=era.qk_scale,
        value_gate=era.value_gate,
        smear=era.smear,
        rope=rope_from_hub(
            {"max_position_embeddings": context, "rope_theta": era.rope_theta}, m // heads
        ),
    )


# `architectures` in config.json -> class.
ARCHITECTURES = {"NanoChat2026": NanoChat2026}
HUB_NAMES = {}  # neither the Hub nor transformers has it

# Checkpoint name -> parameter name; {} is the layer.
BASE_NAMES = {
    "transformer.wte.weight": "embed_tokens.weight",
    "transformer.h.{}.attn.c_q.weight": "layers.{}.self_attn.q_proj.weight",
    "transformer.h.{}.attn.c_k.weight": "layers.{}.self_attn.k_proj.weight",
    "transformer.h.{}.attn.c_v.weight": "layers.{}.self_attn.v_proj.weight",
    "transformer.h.{}.attn.c_proj.weight": "layers.{}.self_attn.o_proj.weight",
    "transformer.h.{}.mlp.c_fc.weight": "layers.{}.mlp.fc1.weight",
    "transformer.h.{}.mlp.c_proj.weight": "layers.{}.mlp.fc2.weight",
    "lm_head.weight": "lm_head.weight",
}
LAMBDA_NAMES = {"resid_lambdas": "resid_lambdas", "x0_lambdas": "x0_lambdas"}
VALUE_NAMES = {
    "value_embeds.{}.weight": "layers.{}.self_attn.value_embed.weight",
    "transformer.h.{}.attn.ve_gate.weight": "layers.{}.self_attn.ve_gate.weight",
}
SMEAR_NAMES = {
    "smear_gate.weight": "smear_gate.weight",
    "smear_lambda": "smear_lambda",
    "backout_lambda": "backout_lambda",
}
NANOCHAT_NAMES = BASE_NAMES | LAMBDA_NAMES | VALUE_NAMES | SMEAR_NAMES


def detect_era(tensors, wanted=None):
    """The era of a checkpoint's tensors {name: tensor}: FIRST, or a name in ERAS.

    Several eras may have such tensors; `wanted` chooses among them.
    Raises ValueError for an unknown `wanted`, and for tensors that do not fit it, or fit no era.
    """
    if wanted not in (None, FIRST, *ERAS):
        raise ValueError(f"era {wanted!r} is unknown; known: {', '.join((FIRST, *ERAS))}")
    kinds = {}  # "transformer.h.{}.attn.ve_gate.weight": the names of this kind
    for name in tensors:
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "{}", name), []).append(name)
    added = kinds.keys() - BASE_NAMES.keys()
    gates = [tensors[name] for name in kinds.get("transformer.h.{}.attn.ve_gate.weight", ())]
    channels = {gate.shape[-1] if gate.dim() else 0 for gate in gates}
    fitting = [] if added else [FIRST]
    for name, era in ERAS.items():
        names = {*LAMBDA_NAMES, *(VALUE_NAMES if era.value_gate else ())}
        names |= {*(SMEAR_NAMES if era.smear else ())}
        if added == names and channels == ({era.value_gate[0]} if era.value_gate else set()):
            fitting.append(name)
    if not fitting:
        first = sorted(kinds[kind][0] for kind in added)
        shown = ", ".join(first[:7]) + (f" and {len(first) - 7} more kinds" if first[7:] else "")
        widths = f" (gates of {sorted(channels)} channels)" if channels else ""
        why = f"these are of no known era ({', '.join((FIRST, *ERAS))})"
        if any(kind.startswith("bigram_") for kind in added):
            why = "nanochat's bigram embedding, of 2026-01-27 and 28 alone, is not supported"
        raise ValueError(f"unexpected tensors: {shown}{widths}: {why}")
    if wanted not in (None, *fitting):
        shown = ", ".join(sorted(added)) or "none beside those of 2025"
        raise ValueError(
            f"era {wanted} has other tensors than this file, which is of {' or '.join(fitting)} "
            f"(added tensors: {shown})"
        )
    return wanted or fitting[0]
