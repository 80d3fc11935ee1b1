"""Nemotron-H beyond the decoder's logits: the scan, the router, and what others got wrong.

known_bugs.md explains the codes, such as H3.
"""

import json
import math
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from compare import close, random_ids
from effort import examples
from hypothesis import given, settings
from reference import random_nemotron_h
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, NemotronHConfig, NemotronHForCausalLM
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHTopkRouter

import nanomodels
from nanomodels import nemotron_h
from nanomodels.cache import KV, SSM, NoCache

CONFIGS = Path(__file__).parent / "data" / "configs"
PARAMETERS = {
    "Nemotron-H-4B-Base-8K.partial": 4_489_223_040,
    "Nemotron-H-8B-Base-8K.partial": 8_100_852_736,
    "Nemotron-H-47B-Base-8K.partial": 46_791_554_816,
    "Nemotron-H-56B-Base-8K": 56_324_350_464,
    "NVIDIA-Nemotron-Nano-9B-v2.partial": 8_888_227_328,
    "NVIDIA-Nemotron-Nano-12B-v2.partial": 12_310_001_152,
    "NVIDIA-Nemotron-3-Nano-4B-BF16.partial": 3_973_556_832,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_940_288,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": 31_577_940_288,
    "NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4": 31_577_940_288,
    "NVIDIA-Nemotron-3-Super-120B-A12B-FP8": 123_611_033_088 - 2_942_325_248,  # less its MTP
    "NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": 123_611_033_088 - 2_942_325_248,
    "NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4.rev-4f0cf9da": 123_611_033_088 - 2_942_325_248,
    "NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": 549_308_993_536,
    "NVIDIA-Nemotron-3-Ultra-550B-A55B-FP8": 549_308_993_536,
    "NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4": 549_308_993_536,
}


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def test_every_published_config_is_tested():
    names = {path.name.removesuffix(".json") for path in CONFIGS.glob("*N*n*.json")}
    hybrids = {n for n in names if "Nemotron-H" in n or n.startswith("NVIDIA")}
    assert hybrids == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_published_config_has_the_published_parameter_count(name):
    """Counted from one block of each kind: a mixer is the same in all layers of its kind."""
    config = nemotron_h.config_from_hub(json.loads((CONFIGS / f"{name}.json").read_text()))
    with torch.device("meta"):
        kinds = {kind: nemotron_h.Layer(config, kind) for kind in set(config.layers)}
    count = {kind: sum(p.numel() for p in layer.parameters()) for kind, layer in kinds.items()}
    outside = 2 * config.vocab_size * config.hidden_size + config.hidden_size
    assert sum(count[kind] for kind in config.layers) + outside == PARAMETERS[name]
    assert config.time_step_limit == (0.0, math.inf)  # H1: each says so, or says nothing


@pytest.mark.parametrize(
    "name", ["Nemotron-H-8B-Base-8K.partial", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"]
)
def test_a_whole_model_builds_on_the_meta_device(name):
    config = nemotron_h.config_from_hub(json.loads((CONFIGS / f"{name}.json").read_text()))
    with torch.device("meta"):
        model = nemotron_h.NemotronH(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


# --------------------------------------------------------------------------------------------------
# The scan


def recurrence(x, dt, A, B, C, state):
    """The state-space recurrence as it is defined: token by token, head by head, in float64."""
    x, dt, A, B, C, state = (tensor.double() for tensor in (x, dt, A, B, C, state))
    heads_a_group = x.shape[2] // B.shape[2]
    B, C = (tensor.repeat_interleave(heads_a_group, 2) for tensor in (B, C))
    outputs = []
    for i in range(x.shape[1]):
        decay = (dt[:, i] * A).exp()[..., None, None]
        grown = dt[:, i, :, None, None] * x[:, i, :, :, None] * B[:, i, :, None, :]
        state = decay * state + grown
        outputs.append((state * C[:, i, :, None, :]).sum(-1))
    return torch.stack(outputs, 1), state


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@settings(max_examples=examples(100), deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 70),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 4, 8, 16, 64]),
    st.sampled_from([(1e-4, 1e-4), (1e-4, 10), (1e-3, 0.1), (1, 10), (10, 10)]),
)
def test_the_scan_is_the_recurrence(device, seed, b, t, g, heads_a_group, chunk, dts):
    rng = torch.Generator().manual_seed(seed)
    h, p, n = g * heads_a_group, 5, 7
    x, B, C = (torch.randn(b, t, *s, generator=rng) for s in ((h, p), (g, n), (g, n)))
    low, high = map(math.log, dts)
    dt = (torch.rand(b, t, h, generator=rng) * (high - low) + low).exp()
    A = -(torch.randn(h, generator=rng) * 2).exp()
    state = torch.randn(b, h, p, n, generator=rng)
    x, dt, A, B, C, state = (tensor.to(device) for tensor in (x, dt, A, B, C, state))
    before = state.clone()
    y, after = nemotron_h.ssd(x, dt, A, B, C, state, chunk)
    expected, last = recurrence(x, dt, A, B, C, state)
    assert relative(y, expected) <= 1e-5
    assert relative(after, last) <= 1e-5
    assert torch.equal(state, before)


def test_a_small_dt_after_large_ones_keeps_its_decay():
    """In float32 it would be lost: it is the difference of two large sums of dt."""
    dt = torch.cat((torch.full((1, 40, 1), 10.0), torch.full((1, 24, 1), 1e-3)), 1)
    x = torch.zeros(1, 64, 1, 1)
    x[:, 40] = 1e3  # the only input; the output is this, decayed
    ones = torch.ones(1, 64, 1, 1)
    A, state = torch.tensor([-3.0]), torch.zeros(1, 1, 1, 1)
    y, _ = nemotron_h.ssd(x, dt, A, ones, ones, state, 64)
    expected, _ = recurrence(x, dt, A, ones, ones, state)
    assert ((y - expected)[:, 40:].abs() <= 1e-6 * expected[:, 40:]).all()


def test_a_decay_to_zero_gives_no_nan():
    x, dt, ones = torch.randn(1, 9, 2, 3), torch.full((1, 9, 2), 1e4), torch.ones(1, 9, 1, 4)
    A = -torch.tensor([80.0, 1.0]).exp()
    y, state = nemotron_h.ssd(x, dt, A, ones, ones, torch.zeros(1, 2, 3, 4), 4)
    expected, last = recurrence(x, dt, A, ones, ones, torch.zeros(1, 2, 3, 4))
    assert relative(y, expected) <= 1e-5 and relative(state, last) <= 1e-5


class Sizes(TorchDispatchMode):
    """Records the size in bytes of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


def largest_of_a_scan(t, chunk, h=8, g=2, n=16):
    x, dt = torch.randn(1, t, h, 4), torch.rand(1, t, h)
    B, state = torch.randn(1, t, g, n), torch.zeros(1, h, 4, n)
    with Sizes() as sizes:
        nemotron_h.ssd(x, dt, -torch.ones(h), B, B, state, chunk)
    return sizes.largest, x.nbytes


def test_memory_of_the_scan_grows_linearly_and_a_short_prompt_is_not_padded_to_a_chunk():
    """H25: no tensor is (chunks, chunk, chunk, heads, state); 10 tokens are not padded to 256."""
    for t in (10, 1000, 4000):
        largest, size = largest_of_a_scan(t, 256)
        assert largest <= max(size, 8 * 8 * min(t, 256) ** 2)
    for t in (1000, 4000):  # B and C for each head, or a matrix of chunks by chunks, would be more
        largest, size = largest_of_a_scan(t, 4, h=32, g=1, n=64)
        assert largest <= size


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["linear_attention", "full_attention"])
def test_memory_of_a_long_prompt_beside_the_cache(tmp_path, kind):
    """Mamba: the same for any length. Attention: the mask of one piece, one byte for each token."""
    model = ours(tmp_path, 4, layers_block_type=[kind, "mlp"], max_position_embeddings=10_000)
    largest = []
    for tokens in (2_000, 8_000):
        cache = model.new_cache(1, tokens)
        with Sizes() as sizes:
            list(nanomodels.generate(model, [1] * tokens, max_new_tokens=1, cache=cache))
        largest.append(sizes.largest)
    if kind == "linear_attention":
        assert largest[0] == largest[1]
    else:
        assert largest[1] <= max(entry.k.nbytes for entry in cache.entries[:1]) + 4 * 512 * 8_000


def mixer_by_the_token(mixer, config, u):
    """A Mamba-2 layer in float64 from its definition; u (b, t, m)."""
    inner = config.mamba_num_heads * config.mamba_head_dim
    width = config.n_groups * config.ssm_state_size
    weights = {name: tensor.double() for name, tensor in mixer.named_parameters()}
    zxBCdt = F.linear(u.double(), weights["in_proj.weight"], weights.get("in_proj.bias"))
    z, xBC, dt = zxBCdt.split((inner, inner + 2 * width, config.mamba_num_heads), -1)
    kernel = weights["conv1d.weight"][:, 0]
    padded = F.pad(xBC, (0, 0, kernel.shape[1] - 1, 0))
    conv = sum(padded[:, k : k + u.shape[1]] * kernel[:, k] for k in range(kernel.shape[1]))
    x, B, C = F.silu(conv + weights.get("conv1d.bias", 0)).split((inner, width, width), -1)
    low, high = config.time_step_limit
    dt = torch.log1p((dt + weights["dt_bias"]).exp()).clamp(low, high)
    x = x.unflatten(-1, (config.mamba_num_heads, -1))
    B, C = (tensor.unflatten(-1, (config.n_groups, -1)) for tensor in (B, C))
    state = u.new_zeros(len(u), *x.shape[2:], config.ssm_state_size)
    y, _ = recurrence(x, dt, -weights["A_log"].exp(), B, C, state)
    y = (y + weights["D"][:, None] * x).flatten(2) * F.silu(z)
    parts = y.chunk(config.n_groups, -1)
    eps = config.layer_norm_epsilon
    y = torch.cat(
        [part / (part.square().mean(-1, keepdim=True) + eps).sqrt() for part in parts], -1
    )
    return F.linear(
        y * weights["norm.weight"], weights["out_proj.weight"], weights.get("out_proj.bias")
    )


def ours(tmp_path, seed, **fixed):
    random_nemotron_h(seed, **fixed).save_pretrained(tmp_path)
    return nanomodels.load(tmp_path)


@pytest.mark.parametrize("limit", [(0.0, math.inf), (0.01, 0.5)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_dt_has_the_limits_of_the_config_in_every_path(device, tmp_path, limit, groups):
    """H1, H8, H27: with small and large dt, in one pass, in pieces and token by token.

    Some groups of the norm have far larger numbers than others.
    """
    model = ours(
        tmp_path,
        groups,
        layers_block_type=["linear_attention"] * 2,
        n_groups=groups,
        mamba_num_heads=8,
        time_step_limit=limit,
    )
    mixer = model.layers[0].mixer
    wanted = torch.tensor([1e-4, 1e-3, 5e-3, 0.05, 0.3, 1.0, 3.0, 10.0], device=device)
    mixer.dt_bias.data = wanted.expm1().log()  # its softplus is `wanted`
    mixer.in_proj.weight.data[-8:] *= 0.01
    channels = mixer.in_proj.weight.shape[0] // 2
    mixer.in_proj.weight.data[: channels // 2] *= 30  # some groups far larger than others
    u = torch.randn(2, 41, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    u, call = u.to(device), NoCache(1, device).begin(2, 41)
    expected = mixer_by_the_token(mixer, model.config, u)
    close(mixer(u, call, None), expected)
    for size in (1, 3, 17):
        entry, found = mixer.new_state(2, torch.float32), []
        for piece in u.split(size, 1):
            found.append(mixer(piece, call, entry))
            entry = entry.commit()
        close(torch.cat(found, 1), expected)
    free = nemotron_h.Mamba(model.config).to(device)
    free.load_state_dict(mixer.state_dict())
    free.time_step_limit = (0.0, math.inf)
    same = (free(u, call, None) - mixer(u, call, None)).abs().max() == 0
    assert same == (limit == (0.0, math.inf))


# --------------------------------------------------------------------------------------------------
# Any split, any padding, any row


def states(cache):
    return [(e.window, e.state) for e in cache.entries if isinstance(e, SSM)]


HYBRID = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention", "mlp"],
    "conv_kernel": 4,
    "chunk_size": 8,
    "vocab_size": 97,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ours(tmp_path_factory.mktemp("checkpoint"), 11, **HYBRID)


@settings(max_examples=examples(200), deadline=None, derandomize=True)
@given(st.data())
def test_any_split_gives_the_same_logits_and_the_same_state(model, data):
    """H3, H22, H23, H26: pieces shorter than the convolution, and about as long as a chunk."""
    tokens = data.draw(st.integers(1, 45), "tokens")
    sizes = st.one_of(st.sampled_from([1, 2, 3, 5, 7, 8, 9, 15, 16, 17]), st.integers(1, tokens))
    ids = random_ids(model, 2, tokens, seed=tokens)
    whole, cache = model.new_cache(2, tokens), model.new_cache(2, tokens)
    with torch.inference_mode():
        expected, found, done = model(ids, cache=whole), [], 0
        while done < tokens:
            n = min(data.draw(sizes), tokens - done)
            found.append(model(ids[:, done : done + n], cache=cache))
            done += n
    close(torch.cat(found, 1), expected)
    close(expected, model(ids))
    for pair, pair_whole in zip(states(cache), states(whole), strict=True):
        for found, expected in zip(pair, pair_whole, strict=True):
            close(found, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_leaves_the_window_and_the_state_of_the_row_alone(model, side):
    """H4, H5, H6, H7: for rows shorter than the convolution, of one chunk and of several.

    Also for a batch of a single row.
    """
    lengths = [33, 1, 2, 3, 5, 17]
    ids = random_ids(model, len(lengths), 33)
    mask = torch.arange(33) < torch.tensor(lengths)[:, None]
    if side == "left":
        mask = mask.flip(1)
    cache = model.new_cache(len(lengths), 40)
    logits = model(torch.where(mask, ids, 3), cache=cache, attention_mask=mask)
    more = random_ids(model, len(lengths), 2, seed=1)
    together = states(cache)
    continued = model(more, cache=cache)
    for i in range(len(lengths)):
        row = ids[i, mask[i]][None]
        alone = model.new_cache(1, 40)
        close(logits[i, mask[i]], model(row, cache=alone)[0])
        for (window, state), (its_window, its_state) in zip(together, states(alone), strict=True):
            close(window[i], its_window[0])
            close(state[i], its_state[0])
        close(continued[i], model(more[i : i + 1], cache=alone)[0])
        single = model.new_cache(1, 40)
        padded = model(ids[i : i + 1], cache=single, attention_mask=mask[i : i + 1])
        close(padded[0, mask[i]], logits[i, mask[i]])
        close(model(more[i : i + 1], cache=single)[0], continued[i])


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [2, 3, 4, 5])
def test_a_short_prompt_continues_as_without_a_cache(tmp_path, tokens, width):
    """H23: with prompts shorter than the convolution, of its length, and longer."""
    model = ours(tmp_path, width, **HYBRID | {"conv_kernel": width})
    ids = random_ids(model, 1, tokens + 8)
    cache = model.new_cache(1, tokens + 8)
    found = [model(ids[:, :tokens], cache=cache)]
    found += [model(ids[:, i : i + 1], cache=cache) for i in range(tokens, tokens + 8)]
    close(torch.cat(found, 1), model(ids))


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_token_changes_no_logits_before_it(tmp_path, seed, experts):
    """H2: in every chunk, and bit-equal.

    With experts not bit-equal: with another number of tokens, an expert's matrix product may add
    in another order.
    """
    kinds = ["linear_attention", "full_attention", "mlp", "linear_attention"]
    model = ours(tmp_path, seed, chunk_size=4, layers_block_type=kinds + ["moe"] * experts)
    ids = random_ids(model, 1, 23)
    before = model(ids)
    for place in (3, 4, 9, 14, 22):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % model.config.vocab_size
        after = model(changed)
        if experts:
            close(before[:, :place], after[:, :place], 1e-6)
        else:
            assert torch.equal(before[:, :place], after[:, :place])
        assert (before[:, place] - after[:, place]).abs().max() > 0.01


def test_attention_does_not_know_positions(tmp_path):
    """H11: without Mamba layers, the order of the earlier tokens does not matter."""
    model = ours(tmp_path, 2, layers_block_type=["full_attention", "mlp", "full_attention"])
    ids = random_ids(model, 1, 20)
    shuffled = torch.cat((ids[:, torch.randperm(19)], ids[:, -1:]), 1)
    assert not torch.equal(ids, shuffled)
    # One layer only: in a second one, the earlier tokens would have seen different tokens.
    model.layers = model.layers[:1]
    model.config = nemotron_h.Config(**{**vars(model.config), "layers": "*"})
    close(model(shuffled)[:, -1], model(ids)[:, -1])


# --------------------------------------------------------------------------------------------------
# The router and its experts


def router(seed, **fixed):
    """transformers' router, and ours with the same weights."""
    rng = torch.Generator().manual_seed(seed)
    hub = {
        "hidden_size": 24,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "hybrid_override_pattern": "E",
        **fixed,
    }
    theirs = NemotronHTopkRouter(NemotronHConfig(**hub))
    mine = nemotron_h.Router(nemotron_h.config_from_hub(hub))
    weight = torch.randn(16, 24, generator=rng) / 3
    bias = torch.randn(16, generator=rng) / 4
    for module in (theirs, mine):
        module.weight.data, module.e_score_correction_bias.data = weight, bias
    return theirs, mine, torch.randn(1000, 24, generator=rng)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (4, 2), (8, 3)])
def test_experts_and_their_weights_are_those_of_transformers(norm, groups):
    """H17, H19: for 1000 tokens. The bias changes which experts are chosen, never their weights."""
    n_group, topk_group = groups
    theirs, mine, x = router(
        1, norm_topk_prob=norm, n_group=n_group, topk_group=topk_group, routed_scaling_factor=2.5
    )
    _, expected_weights, expected = theirs(x)
    chosen, weights = mine(x)
    order, expected_order = chosen.argsort(), expected.argsort()
    assert torch.equal(chosen.gather(1, order), expected.gather(1, expected_order))
    close(weights.gather(1, order), expected_weights.gather(1, expected_order), 1e-6)


def test_no_expert_outside_the_chosen_groups_even_where_all_scores_are_negative():
    """H18: experts masked with 0 instead of -inf would win over negative scores."""
    _, mine, x = router(2, n_group=4, topk_group=2)
    mine.e_score_correction_bias.data = torch.full((16,), -1.5)
    chosen, _ = mine(x)
    assert ((chosen // 4).sort().values.diff() != 0).sum(1).max() == 1  # two groups at most


def test_a_near_tie_is_decided_in_float32(tmp_path):
    """H16: in bf16 the biases are equal, and another expert would be chosen."""
    _, mine, x = router(3, num_experts_per_tok=1)
    mine.weight.data.zero_()
    bias = torch.full((16,), 0.5)
    bias[11] += 1e-4
    assert bias.bfloat16().unique().numel() == 1
    mine.e_score_correction_bias.data = bias
    assert (mine(x.bfloat16())[0] == 11).all()


def test_the_router_computes_in_float32_in_a_bf16_model():
    """H17: the experts and weights of 1000 bf16 rows are those of the same rows in float32."""
    theirs, mine, x = router(4)
    mine = mine.bfloat16()
    assert not torch.equal(mine.weight, mine.weight.bfloat16())
    x = x.bfloat16()
    _, expected_weights, expected = theirs(x.float())
    chosen, weights = mine(x)
    order, expected_order = chosen.argsort(), expected.argsort()
    assert torch.equal(chosen.gather(1, order), expected.gather(1, expected_order))
    close(weights.gather(1, order), expected_weights.gather(1, expected_order), 1e-6)


def test_a_bf16_model_keeps_its_float32_parameters_and_state(tmp_path):
    """H9, H10, H16: read from a bf16 checkpoint, loaded as bf16, or cast after loading."""
    theirs = random_nemotron_h(11, **HYBRID)
    keep = ("A_log", "D", "dt_bias", "gate.weight", "e_score_correction_bias")
    exact = {name: p for name, p in theirs.state_dict().items() if name.endswith(keep)}
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    mixed = {n: t if n.endswith(keep) else t.bfloat16() for n, t in tensors.items()}
    casts = [
        nanomodels.load(tmp_path, dtype=torch.bfloat16),
        nanomodels.load(tmp_path).to(torch.bfloat16),
        nanomodels.load(tmp_path).bfloat16(),
    ]
    save_file(mixed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for model in (nanomodels.load(tmp_path), *casts):
        parameters = dict(model.named_parameters())
        assert parameters["lm_head.weight"].dtype == torch.bfloat16
        found = {f"model.{name}": p for name, p in parameters.items() if name.endswith(keep)}
        assert found.keys() == exact.keys()
        for name, parameter in found.items():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter.cpu(), exact[name])
        cache = model.new_cache(2, 30)
        for piece in random_ids(model, 2, 30).split([20, 1, 9], 1):
            model(piece, cache=cache)
            for entry in cache.entries:
                if isinstance(entry, SSM):
                    assert (entry.window.dtype, entry.state.dtype) == (
                        torch.bfloat16,
                        torch.float32,
                    )
                elif isinstance(entry, KV):
                    assert entry.k.dtype == torch.bfloat16
    assert [type(entry) for entry in cache.entries] == [SSM, type(None), KV, SSM, type(None)]


def test_the_inputs_of_the_scan_are_float32_in_a_bf16_model(device, tmp_path, monkeypatch):
    """H10: dt is bit-equal to softplus in float32 of a sum in float32."""
    model = ours(tmp_path, 11, **HYBRID, time_step_limit=(0.0, math.inf)).bfloat16()
    seen, ssd = [], nemotron_h.ssd

    def spy(*args):
        seen.append(args[:-1])
        return ssd(*args)

    monkeypatch.setattr(nemotron_h, "ssd", spy)
    mixer = model.layers[0].mixer
    u = torch.randn(1, 5, model.config.hidden_size).bfloat16().to(device)
    mixer(u, NoCache(1, device).begin(1, 5), None)
    assert [a.dtype for a in seen[0]] == [torch.float32] * 6
    dt = mixer.in_proj(u)[..., -model.config.mamba_num_heads :].float()
    assert torch.equal(seen[0][1], F.softplus(dt + mixer.dt_bias))
    assert not torch.equal(mixer.dt_bias, mixer.dt_bias.bfloat16())


def test_a_single_layer_can_be_cast_and_a_model_on_meta_can_be_moved(tmp_path):
    model = ours(tmp_path, 11, **HYBRID)
    for layer in model.layers:
        layer.bfloat16()
    assert model.layers[0].mixer.A_log.dtype == torch.float32
    assert model.layers[1].mixer.gate.weight.dtype == torch.float32
    with torch.device("meta"):
        empty = nemotron_h.NemotronH(model.config)
    assert {p.device.type for p in empty.to_empty(device="cpu").parameters()} == {"cpu"}


def decoded(step, ids, prompt):
    """Logits of the prompt's last token, and of each behind it, fed alone: (b, rest + 1, vocab)."""
    pieces = ids[:, prompt:].split(1, 1)
    return torch.cat([step(ids[:, :prompt])[:, -1:], *map(step, pieces)], 1).float()


def divergence(exact, found):
    """Mean KL divergence from the exact next-token distributions, in nats."""
    exact, found = exact.log_softmax(-1), found.log_softmax(-1)
    return (exact.exp() * (exact - found)).sum(-1).mean().item()


def test_bf16_decoding_stays_as_close_to_float32_as_that_of_transformers(tmp_path):
    """H9, H10: over 256 steps. Without experts: in bf16 a router's near-tie can go either way."""
    mine, its = [], []
    for seed in range(4):
        folder = tmp_path / str(seed)
        kinds = [
            "linear_attention",
            "full_attention",
            "linear_attention",
            "mlp",
            "linear_attention",
        ]
        random_nemotron_h(
            seed, layers_block_type=kinds, hidden_size=64, time_step_limit=(0.0, math.inf)
        ).save_pretrained(folder)
        exact, rounded = nanomodels.load(folder), nanomodels.load(folder, dtype=torch.bfloat16)
        theirs = NemotronHForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        for layer in theirs.model.layers:
            layer.mixer.time_step_limit = (0.0, math.inf)
        ids, cache = random_ids(exact, 2, 296, seed), rounded.new_cache(2, 296)
        past = DynamicCache(config=theirs.config)
        expected = exact(ids)[:, 39:]
        found = decoded(partial(rounded, cache=cache), ids, 40)
        mine.append(divergence(expected, found))
        found = decoded(lambda x: theirs(x, past_key_values=past).logits, ids, 40)  # noqa: B023
        its.append(divergence(expected, found))
    assert sum(mine) < 0.95 * sum(its), (mine, its)
    assert max(mine) < 0.02


# --------------------------------------------------------------------------------------------------
# Configs and checkpoints


def hub(**changes):
    return {"hybrid_override_pattern": "M*-E", "n_routed_experts": 4, **changes}


@pytest.mark.parametrize(
    ("found", "limit"),
    [
        ("[0.0, Infinity]", (0.0, math.inf)),
        ("[0.0, 1e308]", (0.0, math.inf)),
        ('[0.0, {"__float__": "Infinity"}]', (0.0, math.inf)),
        ("[0.001, 0.1]", (0.001, 0.1)),
        ("null", (0.0, math.inf)),
    ],
)
def test_the_limits_of_dt_are_read_in_every_spelling(found, limit):
    """H14: infinity as a number, as a large number, and as an object."""
    assert (
        nemotron_h.config_from_hub(hub(time_step_limit=json.loads(found))).time_step_limit == limit
    )


def test_both_spellings_of_the_layers_and_of_the_keys_are_read():
    """H12, H13: `hybrid_override_pattern` or `layers_block_type`, and each renamed key."""
    names = ["mamba", "linear_attention", "attention", "full_attention", "mlp", "moe"]
    read = nemotron_h.config_from_hub
    assert read({"layers_block_type": names}).layers == "MM**-E"
    for pattern in ("M-*", "ME*", "M", "---MM---", "E*E"):
        assert read({"hybrid_override_pattern": pattern}).layers == pattern
    assert read(hub(attention_head_dim=48)).head_dim == 48
    assert read(hub(norm_eps=1e-6)).layer_norm_epsilon == 1e-6
    assert read(hub(mamba_num_groups=4, mamba_state_dim=32)).n_groups == 4
    assert read(hub(mamba_state_dim=32)).ssm_state_size == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hybrid_override_pattern": "M*X"}, "hybrid_override_pattern is 'M\\*X'"),
        ({"hybrid_override_pattern": ""}, "hybrid_override_pattern is ''"),
        ({"hybrid_override_pattern": None}, "hybrid_override_pattern is None"),
        ({"layers_block_type": ["mamba", "rnn"]}, "layers_block_type is .*'rnn'"),
        ({"layers_block_type": ["mamba"]}, "disagree"),
        ({"num_hidden_layers": 5}, "num_hidden_layers is 5; the layers named are 4"),
        ({"time_step_limit": [0.1]}, "time_step_limit is"),
        ({"time_step_limit": [0.5, 0.1]}, "time_step_limit is"),
        ({"time_step_limit": [0.0, {"__float__": "NaN"}]}, "time_step_limit is"),
        ({"time_step_limit": [float("nan"), 1.0]}, "time_step_limit is"),
        ({"sliding_window": 512}, "sliding_window 512 is not supported"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True is not supported"),
        ({"time_step_limit": [1e308, 1e308]}, "time_step_limit is"),
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act 'silu' is not supported; supported: 'relu2'"),
        ({"mamba_hidden_act": "relu"}, "mamba_hidden_act 'relu' is not supported"),
        ({"residual_in_fp32": True}, "residual_in_fp32 True is not supported"),
        ({"n_shared_experts": 2}, "n_shared_experts 2 is not supported"),
        ({"n_groups": 3}, "mamba_num_heads 128 is not a multiple of n_groups 3"),
        ({"n_groups": 4, "mamba_num_groups": 2}, "disagree"),
        ({"num_key_value_heads": 5}, "num_attention_heads 32 is not a multiple"),
        ({"n_group": 3}, "n_routed_experts 4 is not a multiple of n_group 3"),
        ({"n_group": 2, "topk_group": 3}, "topk_group is 3, n_group 2"),
        ({"n_group": 4}, "a group must have 2 experts"),
        ({"num_experts_per_tok": 5}, "a token can choose from 4 experts"),
        ({"moe_latent_size": 0}, "moe_latent_size is 0"),
        ({"moe_latent_size": "no"}, "moe_latent_size is 'no'"),
        ({"norm_eps": 1e-5, "rms_norm_eps": 1e-6}, "disagree"),
        ({"use_bias": "yes"}, "use_bias is 'yes'; it must be true or false"),
    ],
)
def test_an_unsupported_config_is_refused_by_the_name_of_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        nemotron_h.config_from_hub(hub(**changes))


def test_keys_of_absent_kinds_of_layer_are_not_read():
    zeros = {"n_routed_experts": 0, "n_shared_experts": 0, "moe_latent_size": 0}
    assert nemotron_h.config_from_hub({"hybrid_override_pattern": "M-", **zeros}).layers == "M-"
    none = {"mamba_num_heads": 0, "num_attention_heads": 0, "intermediate_size": 0}
    assert nemotron_h.config_from_hub({"hybrid_override_pattern": "E", **none}).layers == "E"


def test_a_tensor_under_two_names_is_refused(tmp_path):
    random_nemotron_h(11, **HYBRID).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    again = {"model.norm_f.weight": tensors["backbone.norm_f.weight"].clone()}
    save_file(tensors | again, path)
    with pytest.raises(ValueError, match=r"twice: .*backbone.norm_f.weight, model.norm_f.weight"):
        nanomodels.load(tmp_path)
    again = {"model.layers.1.mixer.experts.up_proj": torch.tensor(1.0)}
    save_file(tensors | again, path)
    with pytest.raises(ValueError, match=r"experts.up_proj is \[\]; it must have a matrix a row"):
        nanomodels.load(tmp_path)


def test_tensors_of_the_draft_head_are_left_out_and_named(tmp_path):
    """H28: by name and size in `model.skipped`; other unknown tensors are refused."""
    theirs = random_nemotron_h(11, **HYBRID)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    draft = {
        "mtp.layers.0.eh_proj.weight": torch.zeros(3, 6),
        "mtp.layers.1.mixer.experts.7.up_proj.weight": torch.zeros(2, 2),
    }
    save_file(tensors | draft, tmp_path / "model.safetensors")
    model = nanomodels.load(tmp_path)
    assert model.skipped == {"mtp.layers.0.eh_proj.weight": 72, draft.copy().popitem()[0]: 16}
    ids = random_ids(model, 1, 9)
    close(model(ids), theirs(ids).logits)
    save_file(tensors | {"mtpx.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unexpected tensors: mtpx.weight"):
        nanomodels.load(tmp_path)


def test_an_expert_too_many_or_too_few_is_named(tmp_path):
    theirs = random_nemotron_h(11, **HYBRID)
    theirs.save_pretrained(tmp_path, save_original_format=False)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mixer.experts.up_proj"
    for rows, message in (
        (7, "missing tensors: layers.1.mixer.experts.7"),
        (9, f"unexpected.*{name}"),
    ):
        stacked = torch.cat((tensors[name], tensors[name]))[:rows].clone()
        save_file(tensors | {name: stacked}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            nanomodels.load(tmp_path)


@pytest.mark.cpu
def test_stacked_experts_are_views_of_the_mapped_tensor(tmp_path):
    random_nemotron_h(11, **HYBRID).save_pretrained(tmp_path, save_original_format=False)
    experts = nanomodels.load(tmp_path).layers[1].mixer.experts
    first, second = (experts[i].up_proj.weight for i in (0, 1))
    assert second.data_ptr() - first.data_ptr() == first.nbytes


def test_the_language_model_of_a_multimodal_checkpoint_is_read(tmp_path):
    theirs = random_nemotron_h(11, **HYBRID)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {f"language_model.{name}": tensor for name, tensor in load_file(path).items()}
    others = {"vision_model.blocks.0.weight": torch.zeros(3), "scale": torch.ones(1)}
    save_file(tensors | others, path)
    config = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "NemotronH_Nano_VL_V2", "llm_config": config, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    model = nanomodels.load(tmp_path)
    assert model.skipped == {"vision_model.blocks.0.weight": 12, "scale": 4}
    ids = random_ids(model, 1, 9)
    close(model(ids), theirs(ids).logits)
    for name in ("language_model.adapter.weight", "backbone.norm_f.weight", "lm_head.weight"):
        save_file(tensors | {name: torch.zeros(3)}, path)
        with pytest.raises(ValueError, match=f"unexpected tensors: {name}"):
            nanomodels.load(tmp_path)
