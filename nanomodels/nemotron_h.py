"""Nemotron-H: the hybrid decoder of Nemotron-H, Nemotron-Nano-v2 and Nemotron-3.

    x = embed(ids)
    for each layer:
        u = norm(x)
        x = x + mixer(u)                    one mixer per layer, of four kinds:
    logits = lm_head(norm(x))

    M  Mamba-2:    z, xBC, dt = in_proj(u)
                   dt = clamp(softplus(dt + dt_bias))      the time step
                   x, B, C = silu(conv(xBC))               over each channel's last w tokens
                   S = exp(-exp(A_log) dt) S + dt x B^T    the state, token by token
                   y = S C + D x
                   out_proj(norm(y * silu(z)))             the norm in each of g groups
    *  attention:  o_proj(softmax(q_proj(u) k_proj(u)^T / sqrt(d), causal) v_proj(u))
    -  MLP:        down_proj(relu(up_proj(u))^2)
    E  experts:    scores = sigmoid(gate(u));  chosen = top k of scores + bias
                   sum over chosen of scale * score / (sum of chosen scores) * MLP_e(u)
                   + MLP_shared(u)
                   (without norm_topk_prob there is no division; with n_group > 1 only the
                   experts of a token's best groups can be chosen)

    norm(x):       x / sqrt(mean(x^2) + eps) * weight

What is unusual: attention has no rotation; the order of tokens comes from the Mamba layers (rope
keys in config.json are unused). A Mamba layer is heads * head width wide; the config's `expand` is
unused. z is a gate before the norm, and the norm takes each of the g groups by itself. The bias
(e_score_correction_bias) decides which experts are chosen, not how much they count. With
`moe_latent_size` the chosen experts work on fc1_latent_proj(u), which is narrower, and
fc2_latent_proj widens their sum. dt, A, S, the norms and the router are float32 in a model of any
dtype.

A cached Mamba layer keeps S and the last w-1 inputs of its convolution, whatever the text's length.

Shapes: b batch, t tokens in this call, m model width, f MLP width.
Attention: s cache slots with this call's, h heads, g key/value heads, d head width.
Mamba-2: h heads, g groups of heads that share B and C, p head width, n state width, c channels of
x, B and C together, w convolution width, l tokens of a chunk (as queries), s the same as keys.
Experts: e experts, k chosen of them, r = b * t tokens.

`nanomodels.load` may replace an nn.Linear by a class from linears/ that computes the same product.

Sources: transformers 5.23.0 models/nemotron_h/modeling_nemotron_h.py, except the lower limit of dt
in its line 414: the checkpoints were trained without it; arXiv 2405.21060 (Mamba-2); arXiv
2504.03624 (Nemotron-H).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanomodels import experts
from nanomodels.attention import attend
from nanomodels.cache import KV, SSM, Cache, cache_for_call
from nanomodels.config import ConfigReader, check_width, one_field_a_line, parameter_line
from nanomodels.inputs import check_inputs


@dataclass(frozen=True)
class Config:
    """The defaults are a tiny model."""

    vocab_size: int = 256
    hidden_size: int = 128  # m
    layers: str = "MEM*-"  # the kind of each layer: M, *, - or E
    max_position_embeddings: int = 256  # context length
    layer_norm_epsilon: float = 1e-5
    # attention
    num_attention_heads: int = 4  # h
    num_key_value_heads: int = 2  # g
    head_dim: int = 32  # d
    # Mamba-2
    mamba_num_heads: int = 8  # h
    mamba_head_dim: int = 16  # p
    ssm_state_size: int = 32  # n
    n_groups: int = 2  # g of Mamba-2
    conv_kernel: int = 4  # w
    chunk_size: int = 64
    time_step_limit: tuple = (0.0, math.inf)  # least and greatest dt
    use_bias: bool = False  # of in_proj and out_proj
    use_conv_bias: bool = True
    # MLP and experts
    intermediate_size: int = 256  # f of an MLP layer
    mlp_bias: bool = False
    n_routed_experts: int = 8  # e
    num_experts_per_tok: int = 2  # k
    moe_intermediate_size: int = 64  # f of each expert
    moe_shared_expert_intermediate_size: int = 128  # f of the shared expert
    moe_latent_size: int | None = None  # width that the chosen experts work on; None: m
    n_group: int = 1  # groups of experts, not Mamba-2's n_groups
    topk_group: int = 1  # groups that a token may choose from
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0

    __str__ = one_field_a_line


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


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32."""

    def __init__(self, width, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).type_as(x)


class GatedRMSNorm(nn.Module):
    """RMSNorm of y * silu(z), over each of `groups` equal parts of the last dimension."""

    def __init__(self, width, groups, eps):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y, z):
        y = (y * F.silu(z.float())).unflatten(-1, (self.groups, -1))  # (b, t, g, h p / g)
        return F.rms_norm(y, y.shape[-1:], eps=self.eps).flatten(-2) * self.weight.float()


def ssd(x, dt, A, B, C, state, chunk):
    """Run the recurrence of Mamba-2 (SSD: state-space duality), `chunk` tokens at a time.

    x (b, t, h, p), dt (b, t, h) >= 0, A (h) < 0, B and C (b, t, g, n), state (b, h, p, n); float32.
    Returns y (b, t, h, p) and the new state; the given state is not changed. Any t >= 1 gives the
    same result as t calls with one token. A token with dt 0 does not change the state.
    Source: arXiv 2405.21060, section 6 and Listing 1. There a matrix carries the state from chunk
    to chunk, with quadratic cost in their number; here a loop does.
    """
    if x.shape[1] == 1:
        return ssd_step(x, dt, A, B, C, state)
    pieces = []
    for start in range(0, x.shape[1], chunk):
        piece = slice(start, start + chunk)
        y, state = ssd_chunk(x[:, piece], dt[:, piece], A, B[:, piece], C[:, piece], state)
        pieces.append(y)
    return torch.cat(pieces, dim=1), state


def ssd_step(x, dt, A, B, C, state):
    """`ssd` of one token: S = exp(A dt) S + dt x B^T, then y = S C."""
    b, _, h, p = x.shape
    g, n = B.shape[2:]
    decay = (dt * A).exp().view(b, h, 1, 1)
    S = (state * decay).view(b, g, -1, n)  # (b, g, h/g p, n)
    S.addcmul_((x * dt[..., None]).view(b, g, -1, 1), B.view(b, g, 1, n))
    # C as a row: a product with a single column is many times slower (torch 2.13, CPU).
    y = C.view(b, g, 1, n) @ S.mT  # (b, g, 1, h/g p)
    return y.view(b, 1, h, p), S.view(b, h, p, n)


def ssd_chunk(x, dt, A, B, C, state):
    """`ssd` of one chunk: a masked product of its tokens, plus what the state has of earlier ones.

    With a_l = A (dt_0 + ... + dt_l), unrolling the recurrence gives
        y_l = sum over s <= l of exp(a_l - a_s) dt_s (C_l . B_s) x_s  +  exp(a_l) S C_l
        S'  = sum over s of exp(a_last - a_s) dt_s x_s B_s^T  +  exp(a_last) S
    """
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    # a is multiplied by log2(e), so that exp2 below is exp in the formulas: on a CPU exp takes 10
    # times as long where it underflows (torch 2.13). float64, because a_l - a_s cancels: in float32
    # a small dt after large ones would be lost.
    a = (dt.double() * A * math.log2(math.e)).cumsum(1).mT.contiguous()  # (b, h, l)
    xdt = x * dt[..., None]  # (b, l, h, p)
    B, C = B.transpose(1, 2), C.transpose(1, 2)  # (b, g, l, n)

    # 1. What the chunk's tokens see of each other. All heads of a group share B and C.
    later = x.new_full((l, l), -math.inf).triu(1)  # hides later tokens
    # Above the diagonal the difference is positive and may be inf; clamp prevents inf - inf.
    decay = (a[..., None] - a[..., None, :]).float().clamp(max=0) + later  # (b, h, l, s)
    decay = decay.exp2()
    scores = ((C @ B.mT)[:, :, None] * decay.view(b, g, -1, l, l)).view(b, h, l, l)
    y = (scores @ xdt.transpose(1, 2)).transpose(1, 2)  # (b, l, h, p)

    # 2. What they see of all earlier tokens, through the state.
    S = state.view(b, g, -1, n)  # (b, g, h/g p, n)
    past = (C @ S.mT).transpose(1, 2).reshape(b, l, h, p)
    y = y + past * a.float().exp2().transpose(1, 2)[..., None]

    # 3. The state after the chunk.
    last = a[..., -1:]  # (b, h, 1)
    kept = (last - a).float().exp2().transpose(1, 2)[..., None]  # (b, l, h, 1)
    new = (xdt * kept).reshape(b, l, g, -1).permute(0, 2, 3, 1) @ B  # (b, g, h/g p, n)
    return y, state * last.float().exp2()[..., None] + new.view(b, h, p, n)


def convolve(x, conv1d):
    """The depthwise convolution of x (b, w-1 + t, c) float32: (b, t, c).

    As a sum of w shifted products, 2 to 5 times as fast on a CPU as F.conv1d (torch 2.13).
    """
    w = conv1d.kernel_size[0]
    t = x.shape[1] - w + 1
    weight = conv1d.weight[:, 0].float().T.contiguous()  # (w, c)
    y = x[:, :t] * weight[0]
    for k in range(1, w):
        y.addcmul_(x[:, k : k + t], weight[k])
    return y if conv1d.bias is None else y.add_(conv1d.bias.float())


class Mamba(KeepFloat32):
    float32 = ("A_log", "D", "dt_bias")

    def __init__(self, config):
        super().__init__()
        h, g, n = config.mamba_num_heads, config.n_groups, config.ssm_state_size
        inner, w = h * config.mamba_head_dim, config.conv_kernel
        c = inner + 2 * g * n
        self.chunk_size, self.time_step_limit = config.chunk_size, config.time_step_limit
        self.x_shape, self.BC_shape = (h, config.mamba_head_dim), (g, n)
        self.widths, self.xBC_widths = (inner, c, h), (inner, g * n, g * n)
        self.in_proj = nn.Linear(config.hidden_size, sum(self.widths), bias=config.use_bias)
        self.conv1d = nn.Conv1d(c, c, w, groups=c, bias=config.use_conv_bias)
        self.dt_bias = nn.Parameter(torch.zeros(h))
        self.A_log = nn.Parameter(torch.zeros(h))
        self.D = nn.Parameter(torch.ones(h))
        self.norm = GatedRMSNorm(inner, g, config.layer_norm_epsilon)
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=config.use_bias)
        nn.init.uniform_(self.dt_bias, -6.9, -2.3)  # softplus: dt from 0.001 to 0.1, as in Mamba-2
        nn.init.uniform_(self.A_log, 0, math.log(16))  # A from -16 to -1

    def new_state(self, batch, dtype):
        """The state before the first token: window (b, w-1, c), S (b, h, p, n) float32; zeros."""
        channels, _, width = self.conv1d.weight.shape
        window = self.A_log.new_zeros(batch, width - 1, channels, dtype=dtype)
        S = self.A_log.new_zeros(batch, *self.x_shape, self.BC_shape[1], dtype=torch.float32)
        return SSM(window, S)

    def forward(self, x, call, ssm):
        old = self.new_state(len(x), x.dtype) if ssm is None else ssm
        z, xBC, dt = self.in_proj(x).split(self.widths, dim=-1)
        dt = F.softplus(dt.float() + self.dt_bias.float()).clamp(*self.time_step_limit)
        xBC, dt = call.pack(xBC), call.pack(dt)  # padding last, and 0: it does not change S

        xBC = torch.cat((old.window, xBC), dim=1)  # (b, w-1 + t, c)
        window = call.last(xBC, old.window.shape[1])  # (b, w-1, c)
        # From here on in float32, rounded once before out_proj.
        xBC = F.silu(convolve(xBC.float(), self.conv1d))  # (b, t, c)
        x, B, C = xBC.split(self.xBC_widths, dim=-1)
        x = x.unflatten(-1, self.x_shape)  # (b, t, h, p)
        B, C = B.unflatten(-1, self.BC_shape), C.unflatten(-1, self.BC_shape)  # (b, t, g, n)

        A = -self.A_log.float().exp()  # (h)
        y, S = ssd(x, dt, A, B, C, old.state, self.chunk_size)
        y = (y + x * self.D.float()[:, None]).flatten(-2)  # (b, t, h p)
        if ssm is not None:
            ssm.stage(window, S)
        return self.out_proj(self.norm(call.unpack(y), z).type_as(z))  # (b, t, m)


class Attention(nn.Module):
    """Causal attention. call: the cache.Call of this forward call; kv: the cache.KV or None."""

    def __init__(self, config):
        super().__init__()
        m, d = config.hidden_size, config.head_dim
        h, g = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = d
        self.q_proj = nn.Linear(m, h * d, bias=False)
        self.k_proj = nn.Linear(m, g * d, bias=False)
        self.v_proj = nn.Linear(m, g * d, bias=False)
        self.o_proj = nn.Linear(h * d, m, bias=False)

    def forward(self, x, call, kv):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, h, t, d)
        k = self.k_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, g, t, d)
        v = self.v_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, g, t, d)
        if kv is not None:
            k, v = kv.extend(k, v, call.first_slot)  # (b, g, s, d)
        y = attend(q, k, v, call.mask)  # (b, h, t, d)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))  # (b, t, m)


class MLP(nn.Module):
    def __init__(self, width, intermediate, bias):
        super().__init__()
        self.up_proj = nn.Linear(width, intermediate, bias=bias)
        self.down_proj = nn.Linear(intermediate, width, bias=bias)

    def forward(self, x):
        return self.down_proj(F.relu(self.up_proj(x)).square())


class Router(KeepFloat32):
    """Chooses the experts of each token and their weights, all in float32."""

    float32 = ("weight", "e_score_correction_bias")

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        e, m = config.n_routed_experts, config.hidden_size
        self.weight = nn.Parameter(torch.zeros(e, m))
        self.e_score_correction_bias = nn.Parameter(torch.zeros(e), requires_grad=False)
        nn.init.normal_(self.weight, std=m**-0.5)

    def forward(self, x):
        """x (r, m). Returns the chosen experts (r, k) and their weights (r, k), float32."""
        config = self.config
        scores = F.linear(x.float(), self.weight.float()).sigmoid()  # (r, e)
        choice = scores + self.e_score_correction_bias.float()
        if config.n_group > 1:  # choose from the groups with the largest sums of their top two
            groups = choice.unflatten(-1, (config.n_group, -1))  # (r, groups, e / groups)
            best = groups.topk(2).values.sum(-1).topk(config.topk_group).indices
            others = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(1, best, False)
            choice = groups.masked_fill(others[..., None], -math.inf).flatten(1)
        chosen = choice.topk(config.num_experts_per_tok).indices  # (r, k)
        weights = scores.gather(1, chosen)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * config.routed_scaling_factor


class MoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        m, f, bias = config.hidden_size, config.moe_intermediate_size, config.mlp_bias
        latent = config.moe_latent_size
        self.gate = Router(config)
        self.experts = nn.ModuleList(
            MLP(latent or m, f, bias=False) for _ in range(config.n_routed_experts)
        )
        self.shared_experts = MLP(m, config.moe_shared_expert_intermediate_size, bias)
        self.fc1_latent_proj = nn.Linear(m, latent, bias=bias) if latent else nn.Identity()
        self.fc2_latent_proj = nn.Linear(latent, m, bias=bias) if latent else nn.Identity()

    def forward(self, x):
        rows = x.flatten(0, 1)  # (r, m)
        chosen, weights = self.gate(rows)
        latent = self.fc1_latent_proj(rows)  # rows itself without moe_latent_size
        if experts.can_stack(self.experts, x):  # on a GPU
            y = experts.at_once(self.experts, latent, chosen, weights)  # as latent, float32
        else:
            # Each expert is called once, for all its rows.
            y = torch.zeros_like(latent, dtype=torch.promote_types(x.dtype, weights.dtype))
            for i, choices in experts.by_expert(chosen, len(self.experts)):
                row, weight = choices // chosen.shape[1], weights.flatten()[choices, None]
                y.index_add_(0, row, self.experts[i](latent[row]) * weight)
        y = self.fc2_latent_proj(y.type_as(latent))
        return y.view_as(x) + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, config, kind):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.has_state = kind in "M*"
        if kind == "-":
            self.mixer = MLP(config.hidden_size, config.intermediate_size, config.mlp_bias)
        else:
            self.mixer = {"M": Mamba, "*": Attention, "E": MoE}[kind](config)

    def forward(self, x, call, entry):
        y = self.norm(x)
        return x + (self.mixer(y, call, entry) if self.has_state else self.mixer(y))


class NemotronH(nn.Module):
    """The decoder with its language model head: `NemotronHForCausalLM` on the Hub."""

    stop_ids: Collection[int] = ()  # ids that end generation; set by nanomodels.load
    extra_repr = parameter_line

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, kind) for kind in config.layers)
        self.norm_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

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
        and 0 for padding, on either side. position_ids changes nothing, because there is no
        rotation. logits_to_keep=n returns the last n of the t columns only, 0 all. With a cache,
        the tokens continue it and are added to it.
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
        check_inputs(input_ids, inputs_embeds, logits_to_keep)
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds  # (b, t, m)
        b, t, _ = x.shape
        cache = cache_for_call(cache, self.config, len(self.layers), self.embeddings.weight)
        call = cache.begin(b, t, attention_mask)
        for layer, entry in zip(self.layers, cache.entries, strict=True):
            x = layer(x, call, entry)
        cache.commit(call)
        return self.norm_f(x[:, -logits_to_keep:])  # 0 keeps all, because x[:, -0:] is x[:, 0:]

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` rows of `max_length` slots, on the model's device."""
        weight = self.embeddings.weight
        shape = (batch, self.config.num_key_value_heads, max_length, self.config.head_dim)
        entries = []
        for kind, layer in zip(self.config.layers, self.layers, strict=True):
            if kind == "M":
                entries.append(layer.mixer.new_state(batch, weight.dtype))
            elif kind == "*":
                entries.append(KV(weight.new_zeros(shape), weight.new_zeros(shape)))
            else:
                entries.append(None)  # MLP and experts have no state
        return Cache(entries, batch, max_length, self.config, weight)

    @property
    def context_length(self) -> int:
        """Maximum context length in tokens."""
        return self.config.max_position_embeddings


# --- The Hub's config.json and names ---

# Keys with one meaning under several names in published configs.
SPELLINGS = {
    "head_dim": ("head_dim", "attention_head_dim"),
    "layer_norm_epsilon": ("layer_norm_epsilon", "norm_eps", "rms_norm_eps"),
    "n_groups": ("n_groups", "mamba_num_groups", "mamba_n_groups"),
    "ssm_state_size": ("ssm_state_size", "mamba_state_dim"),
    "conv_kernel": ("conv_kernel", "mamba_d_conv"),
    "chunk_size": ("chunk_size", "mamba_chunk_size"),
    "use_conv_bias": ("use_conv_bias", "mamba_conv_bias"),
    "time_step_limit": ("time_step_limit", "mamba_dt_limit"),
}
# Names in layers_block_type; those with _attention are transformers' since 5.17.
LETTERS = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}


def config_from_hub(hub: dict) -> Config:
    """Read the Hub's config.json, given as a dict; defaults as in transformers 5.23.0.

    Raises ValueError, with the key, for what this file does not implement.
    """
    keys, layers = ConfigReader(hub, SPELLINGS), read_layers(hub)
    # The keys of a kind of layer that the model does not have are ignored.
    absent = ConfigReader({})
    mamba = keys if "M" in layers else absent
    attention = keys if "*" in layers else absent
    mlp = keys if "-" in layers else absent
    moe = keys if "E" in layers else absent
    # transformers 5.23.0 ignores attention_bias and tie_word_embeddings.
    for part, key, supported in (
        (keys, "mlp_hidden_act", "relu2"),
        (mamba, "mamba_hidden_act", "silu"),
        (attention, "attention_bias", False),
        (attention, "sliding_window", None),
        (moe, "n_shared_experts", 1),
        (keys, "residual_in_fp32", False),
        (keys, "tie_word_embeddings", False),
    ):
        if part.value(key, supported) != supported:
            raise ValueError(f"{key} {hub[key]!r:.80} is not supported; supported: {supported!r}")
    latent = moe.value("moe_latent_size", None)
    latent = None if latent is None else moe.size("moe_latent_size", latent)
    config = Config(
        vocab_size=keys.size("vocab_size", 131072),
        hidden_size=keys.size("hidden_size", 4096),
        layers=layers,
        max_position_embeddings=keys.size("max_position_embeddings", 4096),
        layer_norm_epsilon=keys.number("layer_norm_epsilon", 1e-5, above=0),
        num_attention_heads=attention.size("num_attention_heads", 32),
        num_key_value_heads=attention.size("num_key_value_heads", 8),
        head_dim=attention.size("head_dim", 128),
        mamba_num_heads=mamba.size("mamba_num_heads", 128),
        mamba_head_dim=mamba.size("mamba_head_dim", 64),
        ssm_state_size=mamba.size("ssm_state_size", 128),
        n_groups=mamba.size("n_groups", 8),
        conv_kernel=mamba.size("conv_kernel", 4),
        chunk_size=mamba.size("chunk_size", 128),
        time_step_limit=read_limit(mamba.value("time_step_limit", [0.0, math.inf])),
        use_bias=mamba.flag("use_bias", False),
        use_conv_bias=mamba.flag("use_conv_bias", True),
        intermediate_size=mlp.size("intermediate_size", 21504),
        mlp_bias=keys.flag("mlp_bias", False),
        n_routed_experts=moe.size("n_routed_experts", 8),
        num_experts_per_tok=moe.size("num_experts_per_tok", 2),
        moe_intermediate_size=moe.size("moe_intermediate_size", 7688),
        moe_shared_expert_intermediate_size=moe.size("moe_shared_expert_intermediate_size", 7688),
        moe_latent_size=latent,
        n_group=moe.size("n_group", 1),
        topk_group=moe.size("topk_group", 1),
        norm_topk_prob=moe.flag("norm_topk_prob", True),
        routed_scaling_factor=moe.number("routed_scaling_factor", 1.0),
    )
    for large, small in (
        ("num_attention_heads", "num_key_value_heads"),
        ("mamba_num_heads", "n_groups"),
        ("n_routed_experts", "n_group"),
    ):
        if getattr(config, large) % getattr(config, small):
            raise ValueError(
                f"{large} {getattr(config, large)} is not a multiple of "
                f"{small} {getattr(config, small)}"
            )
    for heads, width in (
        ("num_attention_heads", "head_dim"),
        ("mamba_num_heads", "mamba_head_dim"),
        ("n_groups", "ssm_state_size"),
    ):
        check_width(**{heads: getattr(config, heads), width: getattr(config, width)})
    group = config.n_routed_experts // config.n_group
    if config.topk_group > config.n_group or (config.n_group > 1 and group < 2):
        raise ValueError(
            f"topk_group is {config.topk_group}, n_group {config.n_group}, with {group} experts in "
            "a group; topk_group must be at most n_group, and a group must have 2 experts or more"
        )
    if config.num_experts_per_tok > config.topk_group * group:
        raise ValueError(
            f"num_experts_per_tok is {config.num_experts_per_tok}; a token can choose from "
            f"{config.topk_group * group} experts"
        )
    return config


def read_layers(hub):
    """The kind of each layer, as a string of M, *, - and E, from either spelling."""
    pattern, names = hub.get("hybrid_override_pattern"), hub.get("layers_block_type")
    if names is not None:
        if not isinstance(names, list) or not all(name in LETTERS for name in map(str, names)):
            raise ValueError(
                f"layers_block_type is {names!r:.80}; it must list some of {[*LETTERS]}"
            )
        letters = "".join(LETTERS[name] for name in names)
        if pattern not in (None, letters):
            raise ValueError(
                f"hybrid_override_pattern {pattern!r:.80} and layers_block_type disagree"
            )
        pattern = letters
    if not isinstance(pattern, str) or not pattern or set(pattern) - set("M*-E"):
        raise ValueError(
            f"hybrid_override_pattern is {pattern!r:.80}; it must say each layer by one of M * - E "
            "(or layers_block_type by its name)"
        )
    count = hub.get("num_hidden_layers")
    if count not in (None, len(pattern)):
        raise ValueError(f"num_hidden_layers is {count!r:.80}; the layers named are {len(pattern)}")
    return pattern


def read_limit(limit):
    """time_step_limit: two numbers. Infinity may be 1e308 or {"__float__": "Infinity"}, too."""
    words = {"Infinity": math.inf}
    if isinstance(limit, list | tuple):
        ends = [words.get(str(x.get("__float__"))) if isinstance(x, dict) else x for x in limit]
        if len(ends) == 2 and all(type(x) in (int, float) for x in ends):
            # A number beyond float32 means infinity.
            low, high = (math.inf if x > torch.finfo().max else float(x) for x in ends)
            if 0 <= low <= high and low < math.inf:
                return low, high
    raise ValueError(f"time_step_limit is {limit!r:.80}; it must be two numbers, 0 or more")


# `architectures` in config.json -> class; the first is the default.
ARCHITECTURES = {"NemotronHForCausalLM": NemotronH}

# Names of parameters; {} is the layer, then the expert.
DECODER_NAMES = (
    "embeddings.weight",
    "norm_f.weight",
    "layers.{}.norm.weight",
    # Mamba
    "layers.{}.mixer.in_proj.weight",
    "layers.{}.mixer.in_proj.bias",
    "layers.{}.mixer.conv1d.weight",
    "layers.{}.mixer.conv1d.bias",
    "layers.{}.mixer.A_log",
    "layers.{}.mixer.D",
    "layers.{}.mixer.dt_bias",
    "layers.{}.mixer.norm.weight",
    "layers.{}.mixer.out_proj.weight",
    "layers.{}.mixer.out_proj.bias",
    # attention
    "layers.{}.mixer.q_proj.weight",
    "layers.{}.mixer.k_proj.weight",
    "layers.{}.mixer.v_proj.weight",
    "layers.{}.mixer.o_proj.weight",
    # MLP
    "layers.{}.mixer.up_proj.weight",
    "layers.{}.mixer.down_proj.weight",
    "layers.{}.mixer.up_proj.bias",
    "layers.{}.mixer.down_proj.bias",
    # experts
    "layers.{}.mixer.gate.weight",
    "layers.{}.mixer.gate.e_score_correction_bias",
    "layers.{}.mixer.experts.{}.up_proj.weight",
    "layers.{}.mixer.experts.{}.down_proj.weight",
    "layers.{}.mixer.shared_experts.up_proj.weight",
    "layers.{}.mixer.shared_experts.down_proj.weight",
    "layers.{}.mixer.shared_experts.up_proj.bias",
    "layers.{}.mixer.shared_experts.down_proj.bias",
    "layers.{}.mixer.fc1_latent_proj.weight",
    "layers.{}.mixer.fc2_latent_proj.weight",
    "layers.{}.mixer.fc1_latent_proj.bias",
    "layers.{}.mixer.fc2_latent_proj.bias",
)
DECODERS = ("backbone", "model")
# Checkpoint name -> parameter name. If only the parameter's name has the expert's {}, the tensor is
# a stack of all experts' matrices. None: the tensor is skipped.
HUB_NAMES = {
    "lm_head.weight": "lm_head.weight",
    # transformers 5 stacks a layer's experts: (e, f, m) and (e, m, f).
    "model.layers.{}.mixer.experts.up_proj": "layers.{}.mixer.experts.{}.up_proj.weight",
    "model.layers.{}.mixer.experts.down_proj": "layers.{}.mixer.experts.{}.down_proj.weight",
    "mtp.*": None,  # multi-token prediction: drafts tokens; the text does not need it
}
# The rest begins with "backbone." on the Hub, and with "model." in transformers 5.
HUB_NAMES |= {f"{decoder}.{name}": name for name in DECODER_NAMES for decoder in DECODERS}
