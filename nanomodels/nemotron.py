"""Nemotron: the decoder of Minitron-4B and 8B, Nemotron-Mini-4B, nemotron-3-8b and Nemotron-4-340B.

    x = embed(ids)
    for each layer:
        x = x + attention(norm(x))
        x = x + down_proj(relu(up_proj(norm(x)))^2)
    logits = lm_head(norm(x))

    norm(x):       (x - mean(x)) / sqrt(var(x) + eps) * (1 + weight) + bias
    attention(x):  q, k, v = q_proj(x), k_proj(x), v_proj(x)
                   o_proj(softmax(rotate(q) rotate(k)^T / sqrt(d), causal) v)

What is unusual: the norm is a LayerNorm with a bias, and its stored weight is the gain minus 1.
Only the first r numbers of each head are rotated; r = d/2 in all checkpoints. The MLP has no gate.
In some checkpoints d is not m / h.

Differences from nanochat.py: norms have weights; there is no norm after the embedding, on queries
or on keys; the rotation turns by plus the angle; logits have no cap.

Shapes: b batch, t tokens in this call, s cache slots with this call's, m model width, f MLP width,
h heads, g key/value heads (h/g query heads share one), d head width, r rotated numbers of a head.

`nanomodels.load` may replace an nn.Linear by a class from linears/ that computes the same product.

Sources: transformers 5.23.0 models/nemotron/modeling_nemotron.py; arXiv 2402.16819 (Nemotron-4).
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
    num_key_value_heads: int = 2  # g
    head_dim: int = 32  # d
    max_position_embeddings: int = 256  # context length
    norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    rope: Rope | None = None  # None: Rope(head_dim // 2, max_position_embeddings)
    num_labels: int = 2  # of the classification heads
    problem_type: str | None = None  # of sequence classification; None: told by the labels
    pad_token_id: int | None = None

    __str__ = one_field_a_line


class LayerNorm1P(nn.Module):
    """LayerNorm over the last dimension, in float32, with the gain 1 + weight ("1P": 1 plus)."""

    def __init__(self, config):
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.zeros(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, x):
        gain = self.weight.float() + 1
        y = F.layer_norm(x.float(), gain.shape, gain, self.bias.float(), self.eps)
        return y.type_as(x)


def rotate(x, cos, sin):
    """Turn each (x[i], x[i + r/2]) of a head's first r numbers by the angle.

    x (b, heads, t, d) float32; cos, sin (b, t, r/2).
    """
    cos, sin = cos[:, None], sin[:, None]  # (b, 1, t, r/2)
    half = cos.shape[-1]
    x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest), dim=-1)  # (b, h, t, d)


class Attention(nn.Module):
    """Causal attention. call: the cache.Call of this forward call; kv: the cache.KV or None."""

    def __init__(self, config):
        super().__init__()
        m, d, bias = config.hidden_size, config.head_dim, config.attention_bias
        h, g = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = d
        self.q_proj = nn.Linear(m, h * d, bias=bias)
        self.k_proj = nn.Linear(m, g * d, bias=bias)
        self.v_proj = nn.Linear(m, g * d, bias=bias)
        self.o_proj = nn.Linear(h * d, m, bias=bias)

    def forward(self, x, cos, sin, call, kv):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, h, t, d)
        k = self.k_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, g, t, d)
        v = self.v_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, g, t, d)
        # Rotation in float32, rounded once; transformers rounds in between.
        q = rotate(q.float(), cos, sin).type_as(v)
        k = rotate(k.float(), cos, sin).type_as(v)
        if kv is not None:
            k, v = kv.extend(k, v, call.first_slot)  # (b, g, s, d)
        y = attend(q, k, v, call.mask)  # (b, h, t, d)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))  # (b, t, m)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        m, f, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up_proj = nn.Linear(m, f, bias=bias)
        self.down_proj = nn.Linear(f, m, bias=bias)

    def forward(self, x):
        return self.down_proj(F.relu(self.up_proj(x)).square())


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = LayerNorm1P(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = LayerNorm1P(config)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, call, kv):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, call, kv)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids to hidden states, for all output heads."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.rope = config.rope or Rope(config.head_dim // 2, config.max_position_embeddings)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = LayerNorm1P(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """The last norm's output (b, t, m). The arguments are those of Nemotron.forward.

        Tokens are selected before the norm, so that the head's input is contiguous. Otherwise a
        bfloat16 linear copies its weight on a CPU (torch 2.13).
        """
        check_inputs(input_ids, inputs_embeds, logits_to_keep)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (b, t, m)
        b, t, _ = x.shape
        cache = cache_for_call(cache, self.config, len(self.layers), self.embed_tokens.weight)
        call = cache.begin(b, t, attention_mask)
        positions = call.positions if position_ids is None else position_ids  # (b, t)
        cos, sin = rotation(self.rope, positions, call.max_length)
        for layer, kv in zip(self.layers, cache.entries, strict=True):
            x = layer(x, cos, sin, call, kv)
        cache.commit(call)
        return self.norm(x[:, -logits_to_keep:])  # 0 keeps all, because x[:, -0:] is x[:, 0:]


class Nemotron(nn.Module):
    """The decoder with its language model head: `NemotronForCausalLM` on the Hub."""

    stop_ids: Collection[int] = ()  # ids that end generation; set by nanomodels.load
    extra_repr = parameter_line

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

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
        return self.lm_head(x).float()

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
        return self.model(
            input_ids, cache, attention_mask, position_ids, inputs_embeds, logits_to_keep
        )

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` rows of `max_length` slots, on the model's device."""
        weight = self.model.embed_tokens.weight
        shape = (batch, self.config.num_key_value_heads, max_length, self.config.head_dim)
        entries = [KV(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.model.layers]
        return Cache(entries, batch, max_length, self.config, weight)

    @property
    def context_length(self) -> int:
        """Maximum context length in tokens."""
        return self.model.rope.context_length


# --- The other output heads ---

# problem_type of config.json, for sequence classification.
REGRESSION = "regression"
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


class NemotronForSequenceClassification(nn.Module):
    """num_labels scores for each text, from its last token."""

    extra_repr = parameter_line

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Logits (b, num_labels), float32, at each row's last token that is not pad_token_id.

        With inputs_embeds, which cannot show padding: at the last position.
        Raises ValueError for several rows if the config has no pad_token_id.
        """
        x = self.model(input_ids, None, attention_mask, position_ids, inputs_embeds)  # (b, t, m)
        pad = self.config.pad_token_id
        if pad is None and len(x) > 1:
            raise ValueError("config.json names no pad_token_id; give one row at a time")
        last = torch.full((len(x),), x.shape[1] - 1, device=x.device)  # (b,)
        if pad is not None and input_ids is not None:
            index = torch.arange(x.shape[1], device=x.device)
            last = (index * (input_ids != pad)).argmax(-1)
        return self.score(x[torch.arange(len(x), device=x.device), last]).float()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (b, num_labels), by the config's problem_type or by the labels.

        num_labels 1: mean squared error. Integers (b,): cross-entropy. Floats 0 and 1
        (b, num_labels): binary cross-entropy. Source: transformers 5.23.0 loss/loss_utils.py:88.
        """
        kind = self.config.problem_type
        if kind is None and self.config.num_labels == 1:
            kind = REGRESSION
        elif kind is None:
            kind = MULTI if labels.dtype.is_floating_point else SINGLE
        if kind == REGRESSION:
            return F.mse_loss(logits, labels.view_as(logits).to(logits.dtype))
        if kind == SINGLE:
            return F.cross_entropy(logits, labels.flatten())
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class NemotronForQuestionAnswering(nn.Module):
    """The first and the last token of the answer to a question."""

    extra_repr = parameter_line

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.transformer = Decoder(config)  # so named in checkpoints
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits of the first and of the last token of the answer: two of (b, t), float32."""
        x = self.transformer(input_ids, None, attention_mask, position_ids, inputs_embeds)
        return self.qa_outputs(x).float().unbind(-1)

    def loss(
        self,
        start_logits: Tensor,
        end_logits: Tensor,
        start_positions: Tensor,
        end_positions: Tensor,
    ) -> Tensor:
        """Mean of the two cross-entropies: logits (b, t), positions (b,), ignored if >= t."""
        t = start_logits.shape[1]
        losses = [
            F.cross_entropy(logits, positions.flatten().clamp(0, t), ignore_index=t)
            for logits, positions in ((start_logits, start_positions), (end_logits, end_positions))
        ]
        return sum(losses) / 2


class NemotronForTokenClassification(nn.Module):
    """One label for each token."""

    extra_repr = parameter_line

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Logits (b, t, num_labels), float32."""
        x = self.model(input_ids, None, attention_mask, position_ids, inputs_embeds)
        return self.score(x).float()


# --- The Hub's config.json and names ---

PROBLEM_TYPES = (None, REGRESSION, SINGLE, MULTI)

# Keys with one meaning under several names in published configs.
SPELLINGS = {
    "head_dim": ("head_dim", "kv_channels"),
    "norm_eps": ("norm_eps", "layer_norm_eps"),
}


def config_from_hub(hub: dict) -> Config:
    """Read the Hub's config.json, given as a dict; defaults as in transformers 5.23.0.

    Raises ValueError, with the key, for what this file does not implement.
    """
    keys = ConfigReader(hub, SPELLINGS)
    if keys.value("hidden_act", "relu2") != "relu2":
        raise ValueError(
            f"hidden_act {hub['hidden_act']!r:.80} is not supported; supported: 'relu2'"
        )
    hidden_size, heads = keys.size("hidden_size", 6144), keys.size("num_attention_heads", 48)
    groups = keys.size("num_key_value_heads", heads)
    if heads % groups:
        raise ValueError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}"
        )
    head_dim = keys.size("head_dim", hidden_size // heads)
    check_width(num_attention_heads=heads, head_dim=head_dim)
    context = keys.size("max_position_embeddings", 4096)
    labels, problem_type = hub.get("id2label"), hub.get("problem_type")
    if not isinstance(labels, dict | None):
        raise ValueError(f"id2label is {labels!r:.80}; it must be an object")
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"problem_type {problem_type!r:.80} is unknown; supported: {PROBLEM_TYPES}"
        )
    pad = hub.get("pad_token_id")
    if type(pad) not in (int, type(None)):
        raise ValueError(f"pad_token_id is {pad!r:.80}; it must be a whole number")
    return Config(
        vocab_size=keys.size("vocab_size", 256000),
        hidden_size=hidden_size,
        intermediate_size=keys.size("intermediate_size", 24576),
        num_hidden_layers=keys.size("num_hidden_layers", 32),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        max_position_embeddings=context,
        norm_eps=keys.number("norm_eps", 1e-5, above=0),
        attention_bias=keys.flag("attention_bias", False),
        mlp_bias=keys.flag("mlp_bias", False),
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
        rope=rope_from_hub({**hub, "max_position_embeddings": context}, head_dim, 0.5),
        num_labels=len(labels) if labels else keys.size("num_labels", 2),
        problem_type=problem_type,
        pad_token_id=pad,
    )


# `architectures` in config.json -> class; the first is the default.
ARCHITECTURES = {
    "NemotronForCausalLM": Nemotron,
    "NemotronForSequenceClassification": NemotronForSequenceClassification,
    "NemotronForQuestionAnswering": NemotronForQuestionAnswering,
    "NemotronForTokenClassification": NemotronForTokenClassification,
}

# Names of parameters, which are those of the checkpoints; {} is the layer. The decoder is called
# `model`, but `transformer` for question answering.
DECODER_NAMES = (
    "embed_tokens.weight",
    "layers.{}.input_layernorm.weight",
    "layers.{}.input_layernorm.bias",
    "layers.{}.self_attn.q_proj.weight",
    "layers.{}.self_attn.k_proj.weight",
    "layers.{}.self_attn.v_proj.weight",
    "layers.{}.self_attn.o_proj.weight",
    "layers.{}.self_attn.q_proj.bias",
    "layers.{}.self_attn.k_proj.bias",
    "layers.{}.self_attn.v_proj.bias",
    "layers.{}.self_attn.o_proj.bias",
    "layers.{}.post_attention_layernorm.weight",
    "layers.{}.post_attention_layernorm.bias",
    "layers.{}.mlp.up_proj.weight",
    "layers.{}.mlp.down_proj.weight",
    "layers.{}.mlp.up_proj.bias",
    "layers.{}.mlp.down_proj.bias",
    "norm.weight",
    "norm.bias",
)
HEAD_NAMES = (
    "lm_head.weight",
    "score.weight",
    "score.bias",
    "qa_outputs.weight",
    "qa_outputs.bias",
)
HUB_NAMES = {name: name for name in HEAD_NAMES} | {
    f"{decoder}.{name}": f"{decoder}.{name}"
    for decoder in ("model", "transformer")
    for name in DECODER_NAMES
}
