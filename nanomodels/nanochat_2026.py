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

It came in steps, `ERAS` below; smear and backout are the last. The constants of an era stand in
nanochat's code alone, so an era is told by the tensors that its checkpoints have.

What is unusual beside nanochat.py: every other layer, the last among them, adds an embedding of the
token to its values, with a gate for each head; the smear looks at the embedding of the token before
as it was without smear, so the cache keeps the ids and looks them up again (nanochat itself forgets
that token where a prompt comes in pieces).

A file of its own, because d20, d32, d34 and the Hub's `nanochat` have none of this: nanochat.py
stays what they are, and neither file has a branch for the other.

Shapes: b batch, t tokens in this call, s columns seen, m model width, f MLP width, h heads, g heads
of keys and values (h/g queries share one), d head width.

Source: karpathy/nanochat nanochat/gpt.py at the commits in ERAS, up to 92d63d4 (2026-07-03).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from nanomodels.attention import attend
from nanomodels.cache import KV, PADDING, Cache, Ids, place
from nanomodels.config import Keys
from nanomodels.rope import Rope, rope_from_hub, rotation

SMEAR_CHANNELS = 24


@dataclass(frozen=True)
class Era:
    """What nanochat's code said from a date on, and no checkpoint says."""

    commit: str
    rope_theta: float
    qk_scale: float  # of normalised queries and keys, each
    short: Callable  # context length -> how far back an S of window_pattern looks
    softcap: float
    gate: tuple | None  # channels and scale of the value embeddings' gate; None: no such embeddings
    smear: bool  # and backout


def tiles(context, parts):
    """A part of the context, rounded up to 128, the tile of FlashAttention 3."""
    return -(-context // (parts * 128)) * 128


FIRST = "2025-10-13"  # nanochat.py
# The first that fits a checkpoint's tensors is taken: a softcap of 20 must be asked for.
ERAS = {
    "2026-01-11": Era("aa530cd", 10_000.0, 1.0, lambda n: n // 2, 15.0, None, False),
    "2026-01-18": Era("e85db6b", 10_000.0, 1.0, lambda n: n // 2, 15.0, (32, 2.0), False),
    "2026-03-03": Era("aba30cb", 10_000.0, 1.0, lambda n: n // 2, 20.0, (32, 2.0), False),
    "2026-03-09": Era("6ed7d1d", 100_000.0, 1.15, lambda n: tiles(n, 3), 15.0, (12, 3.0), False),
    "2026-03-14": Era("a825e63", 100_000.0, 1.2, lambda n: tiles(n, 4), 15.0, (12, 3.0), True),
}


@dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int  # m
    intermediate_size: int  # f
    num_hidden_layers: int
    num_attention_heads: int  # h
    num_key_value_heads: int  # g
    head_dim: int  # d
    max_position_embeddings: int  # context length
    windows: tuple[int, ...]  # of each layer: a token looks at itself and so many before it
    rms_norm_eps: float
    final_logit_softcapping: float
    qk_scale: float
    gate: tuple[int, float] | None  # as in Era
    smear: bool
    rope: Rope

    def has_values(self, i):
        """Whether layer i has a value embedding: the last one, and every other before it."""
        return self.gate is not None and i % 2 == (self.num_hidden_layers - 1) % 2


NATIVE_KEYS = (
    *("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"),
    "window_pattern",
)


def hub_config(model_config, era):
    """config.json for the `model_config` of nanochat's meta_XXXXXX.json; era is a name in ERAS."""
    return {
        "architectures": ["NanoChat2026"],
        "model_type": "nanochat_2026",
        **{key: model_config[key] for key in NATIVE_KEYS if key in model_config},
        "era": era,
    }


def config_from_hub(hub):
    """Read a config.json: nanochat's own keys, and the era.

    Raises ValueError naming the key for anything that this file does not implement.
    """
    names = NATIVE_KEYS[:-1]
    missing = [key for key in names if key not in hub]
    if missing:
        raise ValueError(f"model_config lacks {', '.join(missing)}")
    if hub.get("era") not in ERAS:
        raise ValueError(f"era is {hub.get('era')!r}; known: {', '.join(ERAS)}")
    keys, era = Keys(hub), ERAS[hub["era"]]
    context, vocab_size, layers, heads, groups, m = (keys.size(name, None) for name in names)
    if m % heads or heads % groups or m // heads % 2:
        raise ValueError(
            f"n_embd {m}, n_head {heads} and n_kv_head {groups} do not go together: each must be a "
            "multiple of the next, the first an even one"
        )
    channels = max(SMEAR_CHANNELS if era.smear else 0, era.gate[0] if era.gate else 0)
    if m < channels:
        raise ValueError(f"n_embd is {m}; the gates look at {channels} channels")
    pattern = keys.value("window_pattern", "L")  # nanochat's own reading of a file without one
    if not isinstance(pattern, str) or not re.fullmatch("[SLsl]+", pattern):
        raise ValueError(f"window_pattern is {pattern!r}; it must be letters S and L")
    reach = {"S": era.short(context), "L": context}
    windows = [reach[pattern[i % len(pattern)].upper()] for i in range(layers)]
    return Config(
        vocab_size=vocab_size,
        hidden_size=m,
        intermediate_size=4 * m,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=m // heads,
        max_position_embeddings=context,
        windows=(*windows[:-1], reach["L"]),  # the last layer is an L, whatever the pattern says
        rms_norm_eps=torch.finfo(torch.float32).eps,  # what F.rms_norm takes without one
        final_logit_softcapping=era.softcap,
        qk_scale=era.qk_scale,
        gate=era.gate,
        smear=era.smear,
        rope=rope_from_hub(
            {"max_position_embeddings": context, "rope_theta": era.rope_theta}, m // heads
        ),
    )


def rms_norm(x, eps):
    """Divide by the root mean square over the last dimension, in float32; there is no weight."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).type_as(x)


def rotate(x, cos, sin):
    """Turn each (x[i], x[i + d/2]) by minus the angle. x (b, h, t, d); cos, sin (b, t, d/2)."""
    cos, sin = cos[:, None], sin[:, None]  # (b, 1, t, d/2)
    x1, x2 = x.chunk(2, dim=-1)  # (b, h, t, d/2)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)  # (b, h, t, d)


def window_mask(step, seen, window):
    """The mask of a layer that looks at most `window` tokens back; seen (b, s) are all positions.

    (b, 1, t, s), or step.mask where nothing is out of reach.
    """
    if seen.shape[1] <= window + 1:
        return step.mask
    query, key = step.positions[:, :, None], seen[:, None, :]
    mask = (key <= query) & (key >= query - window) & (key != PADDING)  # (b, t, s)
    return (mask | (query == PADDING))[:, None]  # as in cache.place


def ids_before(ids, seen, positions):
    """The id of the token before each of those at `positions` (b, t); any for the first of a row.

    ids, seen (b, s): of all columns, and their positions. Returns (b, t).
    """
    b, s = seen.shape
    columns = torch.arange(s, device=ids.device).expand(b, s)
    # Of position p at p + 1; at 0 is padding's, if there is any.
    column = columns.new_zeros(b, s + 1).scatter(1, seen + 1, columns)
    return ids.gather(1, column.gather(1, positions.clamp(min=0)))


class Attention(nn.Module):
    def __init__(self, config, i):
        super().__init__()
        m, d = config.hidden_size, config.head_dim
        h, g = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps, self.qk_scale = d, config.rms_norm_eps, config.qk_scale
        self.q_proj = nn.Linear(m, h * d, bias=False)
        self.k_proj = nn.Linear(m, g * d, bias=False)
        self.v_proj = nn.Linear(m, g * d, bias=False)
        self.o_proj = nn.Linear(h * d, m, bias=False)
        if config.has_values(i):
            self.gate_channels, self.gate_scale = config.gate
            self.value_embed = nn.Embedding(config.vocab_size, g * d)
            self.ve_gate = nn.Linear(self.gate_channels, g, bias=False)
        else:
            self.value_embed = None

    def forward(self, x, ids, cos, sin, step, mask, kv):
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
            k, v = kv.extend(k, v, step.start)  # (b, g, s, d)
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

    def forward(self, x, ids, cos, sin, step, mask, kv):
        x = x + self.self_attn(rms_norm(x, self.eps), ids, cos, sin, step, mask, kv)
        return x + self.mlp(rms_norm(x, self.eps))


class NanoChat2026(nn.Module):
    """The whole decoder with its head."""

    stop_ids = ()  # what ends a text, where the model was loaded from a checkpoint that says
    # Stay so, whatever the dtype asked for.
    float32 = ("resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda")

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.resid_lambdas = nn.Parameter(torch.ones(config.num_hidden_layers))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.num_hidden_layers))
        if config.smear:
            self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def context_length(self):
        """The most tokens that the model is made to look back on."""
        return self.config.max_position_embeddings

    def new_cache(self, batch, max_length):
        """An empty cache for `batch` rows of at most `max_length` tokens, on the model's device.

        Behind the entries of the blocks there is one more, with the ids of the tokens.
        """
        weight = self.embed_tokens.weight
        shape = (batch, self.config.num_key_value_heads, max_length, self.config.head_dim)
        entries = [KV(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.layers]
        ids = Ids(torch.zeros(batch, max_length, dtype=torch.long, device=weight.device))
        return Cache([*entries, ids], batch, max_length, weight.device)

    def smear(self, x, before, step):
        """Add to each embedding (b, t, m) some of that of the token `before` it (b, t)."""
        prior = rms_norm(self.embed_tokens(before), self.config.rms_norm_eps)  # (b, t, m)
        gate = self.smear_lambda[0] * self.smear_gate(x[..., :SMEAR_CHANNELS]).sigmoid()
        return x + gate * (step.positions > 0)[..., None] * prior

    def forward(
        self,
        input_ids=None,
        *,
        cache=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        logits_to_keep=0,
    ):
        """Logits of the token after each token: (b, t, vocab), float32.

        input_ids (b, t); attention_mask (b, t), 1 for a token and 0 for padding on either side;
        position_ids (b, t) changes the rotation alone, by default each row counts its tokens from
        0. logits_to_keep=n gives the last n positions only. With a cache the tokens follow those
        that it holds, and it holds them too afterwards. inputs_embeds is refused: values and smear
        are looked up by id.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("nanochat of 2026 looks its ids up again: give input_ids alone")
        (b, t), eps = input_ids.shape, self.config.rms_norm_eps
        step = place(cache, attention_mask, b, t, input_ids.device)
        seen, ids = step.positions, input_ids  # (b, s)
        if cache is not None:
            ids = cache.entries[-1].extend(input_ids, step.start)
            seen = cache.positions[:, : ids.shape[1]]
        cos, sin = rotation(
            self.config.rope, step.positions if position_ids is None else position_ids, length=t
        )
        masks = {window: window_mask(step, seen, window) for window in {*self.config.windows}}

        x = rms_norm(self.embed_tokens(input_ids), eps)  # (b, t, m)
        if self.config.smear:
            x = self.smear(x, ids_before(ids, seen, step.positions), step)
        x0 = x
        for i, (layer, window) in enumerate(zip(self.layers, self.config.windows, strict=True)):
            x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            kv = None if cache is None else cache.entries[i]
            x = layer(x, input_ids, cos, sin, step, masks[window], kv)
            if i == self.config.num_hidden_layers // 2:
                middle = x
        if self.config.smear:
            x = x - self.backout_lambda[0] * middle
        if cache is not None:
            cache.extend_by(step)
        x = rms_norm(x[:, -logits_to_keep:], eps)  # -0 keeps all
        logits = self.lm_head(x).float()
        cap = self.config.final_logit_softcapping
        return cap * torch.tanh(logits / cap)


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
NATIVE_NAMES = BASE_NAMES | LAMBDA_NAMES | VALUE_NAMES | SMEAR_NAMES


def recognise(tensors, wanted=None):
    """The era of a checkpoint's tensors {name: tensor}: FIRST, or a name in ERAS.

    wanted, if given, is the one to take among those that have such tensors.
    Raises ValueError naming the tensors where there is none.
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
        names = {*LAMBDA_NAMES, *(VALUE_NAMES if era.gate else ())}
        names |= {*(SMEAR_NAMES if era.smear else ())}
        if added == names and channels == ({era.gate[0]} if era.gate else set()):
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
