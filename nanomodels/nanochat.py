"""NanoChat: the decoder of karpathy/nanochat's d20, d32 and d34, and of transformers' `nanochat`.

    x = norm(embed(ids))
    for each layer:
        x = x + attention(norm(x))
        x = x + fc2(relu(fc1(norm(x)))^2)
    logits = cap * tanh(lm_head(norm(x)) / cap)

    attention(x):  q, k, v = q_proj(x), k_proj(x), v_proj(x)
                   q, k = norm(rotate(q)), norm(rotate(k))
                   o_proj(softmax(q k^T / sqrt(d), causal) v)

What is unusual: norms have no weight, and one more norm follows the embedding. Queries and keys
are normalised after the rotation ("QK norm"). The MLP has no gate. The logits have a soft cap, in
float32. The rotation turns by minus the angle: a model can be trained with either sign, and these
were trained with minus.

Shapes: b batch, t tokens in this call, s cache slots with this call's, m model width, f MLP width,
h heads, g key/value heads (h/g query heads share one), d head width.

`nanomodels.load` may replace an nn.Linear by a class from linears/ that computes the same product.

Sources: transformers 5.23.0 models/nanochat/modeling_nanochat.py; karpathy/nanochat 306bc38
(2025-10-16) nanochat/gpt.py. nanochat_2026.py is the decoder of nanochat from 2026-01-11 on.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanomodels.attention import attend
from nanomodels.cache import KV, Cache, cache_for_call
from nanomodels.config import ConfigReader, check_width, one_field_a_line, parameter_line
from nanomodels.inputs import check_inputs
from nanomodels.rope import Rope, rope_from_hub, rotation


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
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float | None = 15.0  # None: no cap
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    rope: Rope | None = None  # None: Rope(head_dim, max_position_embeddings)

    __str__ = one_field_a_line


def rms_norm(x, eps):
    """x / sqrt(mean(x^2) + eps) over the last dimension, in float32; there is no weight."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).type_as(x)


def rotate(x, cos, sin):
    """Turn each (x[i], x[i + d/2]) by minus the angle. x (b, heads, t, d); cos, sin (b, t, d/2)."""
    cos, sin = cos[:, None], sin[:, None]  # (b, 1, t, d/2)
    x1, x2 = x.chunk(2, dim=-1)  # (b, h, t, d/2)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)  # (b, h, t, d)


class Attention(nn.Module):
    """Causal attention. call: the cache.Call of this forward call; kv: the cache.KV or None."""

    def __init__(self, config):
        super().__init__()
        m, d, bias = config.hidden_size, config.head_dim, config.attention_bias
        h, g = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps = d, config.rms_norm_eps
        self.q_proj = nn.Linear(m, h * d, bias=bias)
        self.k_proj = nn.Linear(m, g * d, bias=bias)
        self.v_proj = nn.Linear(m, g * d, bias=bias)
        self.o_proj = nn.Linear(h * d, m, bias=bias)

    def forward(self, x, cos, sin, call, kv):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, h, t, d)
        k = self.k_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, g, t, d)
        v = self.v_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, g, t, d)
        # Rotation and norm in float32, rounded once; transformers rounds in between.
        q = rms_norm(rotate(q.float(), cos, sin), self.eps).type_as(v)
        k = rms_norm(rotate(k.float(), cos, sin), self.eps).type_as(v)
        if kv is not None:
            k, v = kv.extend(k, v, call.first_slot)  # (b, g, s, d)
        y = attend(q, k, v, call.mask)  # (b, h, t, d)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))  # (b, t, m)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)).square())


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, call, kv):
        x = x + self.self_attn(rms_norm(x, self.eps), cos, sin, call, kv)
        return x + self.mlp(rms_norm(x, self.eps))


class NanoChat(nn.Module):
    """The whole decoder with its head."""

    stop_ids: Collection[int] = ()  # ids that end generation; set by nanomodels.load
    extra_repr = parameter_line

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.rope = config.rope or Rope(config.head_dim, config.max_position_embeddings)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

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

        input_ids (b, t), or inputs_embeds (b, t, m) instead. attention_mask (b, t) is 1 for a token
        and 0 for padding, on either side. position_ids (b, t) changes only the rotation; by
        default each row counts its tokens from 0. logits_to_keep=n returns the last n of the t
        columns only, 0 all. With a cache, the tokens continue it and are added to it.
        """
        x = self.hidden(
            input_ids, cache, attention_mask, position_ids, inputs_embeds, logits_to_keep
        )
        logits = self.lm_head(x).float()
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)

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
        check_inputs(input_ids, inputs_embeds, logits_to_keep)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (b, t, m)
        b, t, _ = x.shape
        cache = cache_for_call(cache, self.config, len(self.layers), self.embed_tokens.weight)
        call = cache.begin(b, t, attention_mask)
        positions = call.positions if position_ids is None else position_ids  # (b, t)
        # Some rope types depend on max_length.
        cos, sin = rotation(self.rope, positions, call.max_length)
        x = rms_norm(x, self.config.rms_norm_eps)
        for layer, kv in zip(self.layers, cache.entries, strict=True):
            x = layer(x, cos, sin, call, kv)
        cache.commit(call)
        x = x[:, -logits_to_keep:]  # 0 keeps all, because x[:, -0:] is x[:, 0:]
        return rms_norm(x, self.config.rms_norm_eps)

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` rows of `max_length` slots, on the model's device."""
        weight = self.embed_tokens.weight
        shape = (batch, self.config.num_key_value_heads, max_length, self.config.head_dim)
        entries = [KV(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.layers]
        return Cache(entries, batch, max_length, self.config, weight)

    @property
    def context_length(self) -> int:
        """Maximum context length in tokens."""
        return self.rope.context_length


# --- Checkpoints of the Hub, and of nanochat ---


def config_from_hub(hub: dict) -> Config:
    """Read the Hub's config.json, given as a dict; defaults as in transformers 5.23.0.

    Raises ValueError, with the key, for what this file does not implement.
    """
    keys = ConfigReader(hub)
    if keys.value("hidden_act", "relu2") != "relu2":
        raise ValueError(
            f"hidden_act {hub['hidden_act']!r:.80} is not supported; supported: 'relu2'"
        )
    hidden_size, heads = keys.size("hidden_size", 768), keys.size("num_attention_heads", 6)
    groups = keys.size("num_key_value_heads", heads)
    if heads % groups:
        raise ValueError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}"
        )
    if hub.get("head_dim") is None and hidden_size % heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}"
        )
    head_dim = keys.size("head_dim", hidden_size // heads)
    check_width(num_attention_heads=heads, head_dim=head_dim)
    context = keys.size("max_position_embeddings", 2048)
    rope = rope_from_hub({**hub, "max_position_embeddings": context}, head_dim)
    if rope.dim != head_dim:
        raise ValueError("partial_rotary_factor must be 1: nanochat rotates the whole head")
    # An absent key has transformers' default. A null has another meaning: a width of 4 m, no cap.
    null = {key for key, value in hub.items() if value is None}
    width = 4 * hidden_size if "intermediate_size" in null else 8192
    cap = None if "final_logit_softcapping" in null else 15.0
    return Config(
        vocab_size=keys.size("vocab_size", 50304),
        hidden_size=hidden_size,
        intermediate_size=keys.size("intermediate_size", width),
        num_hidden_layers=keys.size("num_hidden_layers", 12),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        max_position_embeddings=context,
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6, above=0),
        final_logit_softcapping=keys.number("final_logit_softcapping", cap, above=0),
        attention_bias=keys.flag("attention_bias", False),
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
        rope=rope,
    )


# `architectures` in config.json -> class; the first is the default.
ARCHITECTURES = {"NanoChatForCausalLM": NanoChat}

# Checkpoint name -> parameter name; {} is the layer.
HUB_NAMES = {
    "model.embed_tokens.weight": "embed_tokens.weight",
    "model.layers.{}.self_attn.q_proj.weight": "layers.{}.self_attn.q_proj.weight",
    "model.layers.{}.self_attn.k_proj.weight": "layers.{}.self_attn.k_proj.weight",
    "model.layers.{}.self_attn.v_proj.weight": "layers.{}.self_attn.v_proj.weight",
    "model.layers.{}.self_attn.o_proj.weight": "layers.{}.self_attn.o_proj.weight",
    "model.layers.{}.self_attn.q_proj.bias": "layers.{}.self_attn.q_proj.bias",
    "model.layers.{}.self_attn.k_proj.bias": "layers.{}.self_attn.k_proj.bias",
    "model.layers.{}.self_attn.v_proj.bias": "layers.{}.self_attn.v_proj.bias",
    "model.layers.{}.self_attn.o_proj.bias": "layers.{}.self_attn.o_proj.bias",
    "model.layers.{}.mlp.fc1.weight": "layers.{}.mlp.fc1.weight",
    "model.layers.{}.mlp.fc2.weight": "layers.{}.mlp.fc2.weight",
    "lm_head.weight": "lm_head.weight",
}
# The same for nanochat's own checkpoints.
NANOCHAT_NAMES = {
    "transformer.wte.weight": "embed_tokens.weight",
    "transformer.h.{}.attn.c_q.weight": "layers.{}.self_attn.q_proj.weight",
    "transformer.h.{}.attn.c_k.weight": "layers.{}.self_attn.k_proj.weight",
    "transformer.h.{}.attn.c_v.weight": "layers.{}.self_attn.v_proj.weight",
    "transformer.h.{}.attn.c_proj.weight": "layers.{}.self_attn.o_proj.weight",
    "transformer.h.{}.mlp.c_fc.weight": "layers.{}.mlp.fc1.weight",
    "transformer.h.{}.mlp.c_proj.weight": "layers.{}.mlp.fc2.weight",
    "lm_head.weight": "lm_head.weight",
}

# nanochat's scripts/chat_cli.py; its checkpoint folders have no generation_config.json.
GENERATION_CONFIG = {"do_sample": True, "temperature": 0.6, "top_k": 50}

# Key of nanochat's meta_XXXXXX.json -> key of config.json.
NANOCHAT_KEYS = {
    "sequence_len": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
}


def config_from_nanochat(model_config: dict) -> dict:
    """config.json, as a dict, for the `model_config` of nanochat's meta_XXXXXX.json.

    The constants are in nanochat's code alone. Raises ValueError for a missing key.
    """
    missing = [key for key in NANOCHAT_KEYS if key not in model_config]
    if missing:
        raise ValueError(f"model_config lacks {', '.join(missing)}")
    width = model_config["n_embd"]
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        **{hub_key: model_config[key] for key, hub_key in NANOCHAT_KEYS.items()},
        "intermediate_size": 4 * width if isinstance(width, int) else None,
        "rms_norm_eps": torch.finfo(torch.float32).eps,  # F.rms_norm's default
        "final_logit_softcapping": 15.0,
        "rope_theta": 10000.0,
    }
