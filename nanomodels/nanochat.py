"""NanoChat: the decoder of karpathy/nanochat's d20, d32 and d34, and of transformers' `nanochat`.

    x = norm(embed(ids))
    for each layer:
        x = x + attention(norm(x))
        x = x + fc2(relu(fc1(norm(x)))^2)
    logits = cap * tanh(lm_head(norm(x)) / cap)

    attention(x):  q, k, v = q_proj(x), k_proj(x), v_proj(x)
                   q, k = norm(rotate(q)), norm(rotate(k))
                   o_proj(softmax(q k^T / sqrt(d), causal) v)

What is unusual: no norm has a weight, and one stands right behind the embedding; queries and keys
are normalised after the rotation ("QK norm"); the rotation turns by -theta, not theta; the MLP has
no gate; the head is untied, and its logits are capped softly, in float32.

Shapes: b batch, t tokens in this call, s tokens seen, m model width, f MLP width, h heads, g heads
of keys and values (h/g queries share one), d head width.

Sources: transformers 5.23.0 models/nanochat/modeling_nanochat.py; karpathy/nanochat 306bc38
(2025-10-16) nanochat/gpt.py. Checkpoints of nanochat from 2026-01-11 on have more in them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from nanomodels.attention import attend
from nanomodels.cache import KV, Cache, place
from nanomodels.config import Keys
from nanomodels.rope import Rope, rope_from_hub, rotation


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
    rms_norm_eps: float
    final_logit_softcapping: float | None  # None: logits as they are
    attention_bias: bool
    tie_word_embeddings: bool
    rope: Rope


def config_from_hub(hub):
    """Read the Hub's config.json, given as a dict; defaults as in transformers 5.23.0.

    Raises ValueError naming the key for anything that this file does not implement.
    """
    keys = Keys(hub)
    if keys.value("hidden_act", "relu2") != "relu2":
        raise ValueError(f"hidden_act {hub['hidden_act']!r} is not supported; supported: 'relu2'")
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
    context = keys.size("max_position_embeddings", 2048)
    rope = rope_from_hub({**hub, "max_position_embeddings": context}, head_dim)
    if rope.dim != head_dim:
        raise ValueError("partial_rotary_factor must be 1: nanochat rotates the whole head")
    # An absent key is transformers' default; an explicit null is nanochat's own rule, 4 m, for the
    # one, and no capping for the other.
    ffn, cap = keys.size("intermediate_size", 8192), keys.number("final_logit_softcapping", 15.0, 0)
    ffn = 4 * hidden_size if hub.get("intermediate_size", ffn) is None else ffn
    cap = None if hub.get("final_logit_softcapping", cap) is None else cap
    return Config(
        vocab_size=keys.size("vocab_size", 50304),
        hidden_size=hidden_size,
        intermediate_size=ffn,
        num_hidden_layers=keys.size("num_hidden_layers", 12),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        max_position_embeddings=context,
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6, above=0),
        final_logit_softcapping=cap,
        attention_bias=keys.flag("attention_bias", False),
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
        rope=rope,
    )


def rms_norm(x, eps):
    """Divide by the root mean square over the last dimension, in float32; there is no weight."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).type_as(x)


def rotate(x, cos, sin):
    """Turn each (x[i], x[i + d/2]) by minus the angle. x (b, h, t, d); cos, sin (b, t, d/2)."""
    cos, sin = cos[:, None], sin[:, None]  # (b, 1, t, d/2)
    x1, x2 = x.chunk(2, dim=-1)  # (b, h, t, d/2)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)  # (b, h, t, d)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        m, d, bias = config.hidden_size, config.head_dim, config.attention_bias
        h, g = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps = d, config.rms_norm_eps
        self.q_proj = nn.Linear(m, h * d, bias=bias)
        self.k_proj = nn.Linear(m, g * d, bias=bias)
        self.v_proj = nn.Linear(m, g * d, bias=bias)
        self.o_proj = nn.Linear(h * d, m, bias=bias)

    def forward(self, x, cos, sin, step, kv):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, h, t, d)
        k = self.k_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, g, t, d)
        v = self.v_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, g, t, d)
        # Rotation and norm in float32, rounded once; transformers rounds in between.
        q = rms_norm(rotate(q.float(), cos, sin), self.eps).type_as(v)
        k = rms_norm(rotate(k.float(), cos, sin), self.eps).type_as(v)
        if kv is not None:
            k, v = kv.extend(k, v, step.start)  # (b, g, s, d)
        y = attend(q, k, v, step.mask)  # (b, h, t, d)
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

    def forward(self, x, cos, sin, step, kv):
        x = x + self.self_attn(rms_norm(x, self.eps), cos, sin, step, kv)
        return x + self.mlp(rms_norm(x, self.eps))


class NanoChat(nn.Module):
    """The whole decoder with its head."""

    stop_ids = ()  # what ends a text, where the model was loaded from a checkpoint that says

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def context_length(self):
        """The most tokens that the model is made to look back on."""
        rope = self.config.rope
        stretch = rope.factor if rope.rope_type == "dynamic" else 1
        return int(self.config.max_position_embeddings * stretch)

    def new_cache(self, batch, max_length):
        """An empty cache for `batch` rows of at most `max_length` tokens, on the model's device."""
        weight = self.embed_tokens.weight
        shape = (batch, self.config.num_key_value_heads, max_length, self.config.head_dim)
        entries = [KV(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.layers]
        return Cache(entries, batch, max_length, weight.device)

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

        input_ids (b, t), or inputs_embeds (b, t, m) in their place; attention_mask (b, t), 1 for a
        token and 0 for padding on either side; position_ids (b, t) changes the rotation alone, by
        default each row counts its tokens from 0. logits_to_keep=n gives the last n positions only.
        With a cache the tokens follow those that it holds, and it holds them too afterwards.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (b, t, m)
        b, t, _ = x.shape
        step = place(cache, attention_mask, b, t, x.device)
        cos, sin = rotation(
            self.config.rope,
            step.positions if position_ids is None else position_ids,
            length=t if cache is None else cache.max_length,
        )
        x = rms_norm(x, self.config.rms_norm_eps)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, step, None if cache is None else cache.entries[i])
        if cache is not None:
            cache.extend_by(step)
        x = rms_norm(x[:, -logits_to_keep:], self.config.rms_norm_eps)  # -0 keeps all
        logits = self.lm_head(x).float()
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)


# `architectures` in config.json -> class; the first where there is none.
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
NATIVE_NAMES = {
    "transformer.wte.weight": "embed_tokens.weight",
    "transformer.h.{}.attn.c_q.weight": "layers.{}.self_attn.q_proj.weight",
    "transformer.h.{}.attn.c_k.weight": "layers.{}.self_attn.k_proj.weight",
    "transformer.h.{}.attn.c_v.weight": "layers.{}.self_attn.v_proj.weight",
    "transformer.h.{}.attn.c_proj.weight": "layers.{}.self_attn.o_proj.weight",
    "transformer.h.{}.mlp.c_fc.weight": "layers.{}.mlp.fc1.weight",
    "transformer.h.{}.mlp.c_proj.weight": "layers.{}.mlp.fc2.weight",
    "lm_head.weight": "lm_head.weight",
}

# A training folder has no generation_config.json; this is scripts/chat_cli.py's.
GENERATION_CONFIG = {"do_sample": True, "temperature": 0.6, "top_k": 50}

# meta.json -> config.json.
NATIVE_KEYS = {
    "sequence_len": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
}


def hub_config(model_config):
    """config.json for the `model_config` of nanochat's meta_XXXXXX.json, as a dict.

    The rest of it is in nanochat's code alone. Raises ValueError for a key that is not there.
    """
    missing = [key for key in NATIVE_KEYS if key not in model_config]
    if missing:
        raise ValueError(f"model_config lacks {', '.join(missing)}")
    width = model_config["n_embd"]
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        **{hub: model_config[native] for native, hub in NATIVE_KEYS.items()},
        "intermediate_size": 4 * width if isinstance(width, int) else None,
        "rms_norm_eps": torch.finfo(torch.float32).eps,  # what F.rms_norm takes without one
        "final_logit_softcapping": 15.0,
        "rope_theta": 10000.0,
    }
