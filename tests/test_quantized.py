"""Quantised linears: codes and scales against arithmetic by hand, and what they do to a text."""

import copy
import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from effort import THOROUGH, examples
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import nn

import nanomodels
from nanomodels import nanochat
from nanomodels.config import parameter_count
from nanomodels.linears import quantized
from nanomodels.linears.quantized import Int4, Int8, QuantizedLinear

pytestmark = pytest.mark.kernels

WEIGHTS = Path(__file__).parent.parent / "weights"
sizes = st.integers(1, 4).map(lambda blocks: 64 * blocks)
seeds = st.integers(0, 2**31)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(packed):
    """The weight (n, k) float64, byte by byte as the docstrings say."""
    scales = packed.scales.double()
    if isinstance(packed, Int8):
        return packed.codes.double() * scales[:, None]
    n, k = packed.shape
    bytes = packed.codes.flatten().tolist()
    w = torch.empty(n, k, dtype=torch.float64)
    for output in range(n):
        block, row = divmod(output, 64)
        for i in range(k):
            byte = bytes[block * 32 * k + i * 32 + row % 32]
            w[output, i] = (byte >> 4 if row >= 32 else byte & 15) - 8
    scale, zero = scales.repeat_interleave(64, 0).unbind(-1)  # (k, n)
    return w * scale.T + zero.T


def linear(weight, scheme, bias=None, dtype=torch.float32, device="cpu"):
    n, k = weight.shape
    module = QuantizedLinear(k, n, bias, scheme)
    module.load_weight(quantized.quantize(weight, scheme), device, dtype)
    return module


def assert_close(found, expected, limit):
    assert (found.double() - expected).abs().max() <= limit * expected.abs().max()


@given(sizes, sizes, seeds)
@settings(max_examples=examples(20), deadline=None)
def test_int4_codes_are_packed_and_unpacked(n, k, seed):
    q = torch.randint(16, (n, k), generator=torch.Generator().manual_seed(seed)).byte()
    codes = quantized.pack(q)
    assert (codes.shape, codes.dtype, codes.is_contiguous()) == ((n, k // 2), torch.uint8, True)
    assert torch.equal(quantized.unpack(codes), q)


@given(sizes, sizes, seeds, st.sampled_from([*quantized.SCHEMES]))
@settings(max_examples=examples(10), deadline=None)
def test_a_whole_weight_is_what_its_bytes_say(device, n, k, seed, scheme):
    packed = quantized.quantize(normal(n, k, seed=seed), scheme)
    exact = by_hand(packed)
    assert_close(packed.to(device, torch.float32).cpu(), exact, 1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        found = packed.to(device, dtype).cpu()
        assert found.dtype == dtype and found.is_contiguous()
        # Each number rounded once, of float32 that may be off by its own last bit.
        error = (found.double() - exact).abs()
        assert (error <= exact.abs() * (torch.finfo(dtype).eps / 2 + 1e-5) + 1e-7).all()


@pytest.mark.parametrize("chunk", [1, 64 * 192, 3 * 64 * 192])
@pytest.mark.parametrize("scheme", quantized.SCHEMES)
def test_a_weight_is_the_same_in_chunks_of_any_size(monkeypatch, scheme, chunk):
    weight = normal(320, 192)  # not a whole number of chunks of three blocks
    whole = quantized.quantize(weight, scheme)
    monkeypatch.setattr(quantized, "CHUNK_WEIGHTS", chunk)
    packed = quantized.quantize(weight, scheme)
    assert torch.equal(packed.codes, whole.codes) and torch.equal(packed.scales, whole.scales)
    assert_close(packed.to("cpu", torch.float32), by_hand(packed), 1e-6)


MY_BLOCK = quantized.kernel_block()  # of this CPU
LIMITS = [(torch.float32, 1e-5), (torch.bfloat16, 0.012), (torch.float16, 2e-3)]


@pytest.fixture(params=[64, 32, None], ids=["blocks of 64", "blocks of 32", "no kernel"])
def block(request, monkeypatch):
    """As on a CPU whose int4 kernel wants such blocks; the kernel itself may be of another kind."""
    monkeypatch.setattr(quantized, "kernel_block", lambda: request.param)
    capability = "DEFAULT" if request.param is None else "AVX2"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    return request.param


def kernel_calls(monkeypatch):
    """The rows of each call of a kernel; an int4 kernel of another kind gets its own blocks."""
    rows, mine = [], MY_BLOCK or 64

    def int4(x, codes, scales, kernel=Int4.kernel):
        rows.append(len(x))
        block = codes.shape[2] * 2
        q = unpack32(codes) if block == 32 else quantized.unpack(codes.view(-1, x.shape[1] // 2))
        packed = quantized.torch_pack(q)
        return kernel(x, packed.view(-1, codes.shape[1], mine // 2), scales)

    def int8(x, codes, scales, kernel=Int8.kernel):
        rows.append(len(x))
        return kernel(x, codes, scales)

    monkeypatch.setattr(Int4, "kernel", int4)
    monkeypatch.setattr(Int8, "kernel", int8)
    return rows


def unpack32(codes):
    """The codes (n, k) of blocks of 32, (o, k, 16)."""
    return torch.cat((codes & 15, codes >> 4), 2).mT.flatten(0, 1)


@pytest.mark.parametrize("scheme", quantized.SCHEMES)
@pytest.mark.parametrize(("dtype", "limit"), LIMITS)
def test_both_routes_are_the_product_with_the_weight(monkeypatch, block, scheme, dtype, limit):
    weight, bias = normal(192, 320), normal(192, seed=1).to(dtype)
    exact = by_hand(quantized.quantize(weight, scheme))
    plain = linear(weight, scheme, dtype=dtype)
    biased = linear(weight, scheme, nn.Parameter(bias, requires_grad=False), dtype)
    kind, rows_of_calls = quantized.SCHEMES[scheme], kernel_calls(monkeypatch)
    counts = [*range(1, 20), 31, 32, 33, 64, 70, 95, 96, 97, 130]
    for rows in counts:
        x = normal(rows, 320, seed=rows).to(dtype)
        expected = x.double() @ exact.T
        assert_close(plain(x), expected, limit)
        assert_close(biased(x), expected + bias.double(), limit)
    few = [rows for rows in counts if rows < kind.many_rows for _ in "pb"]
    # float32 and float16 are scalar code in torch's kernels.
    assert rows_of_calls == (few if block and dtype == torch.bfloat16 else [])
    for shape in ((320,), (1, 1, 320), (2, 3, 5, 320), (0, 320), (2, 0, 320)):
        x = normal(*shape).to(dtype)
        found = plain(x)
        assert (found.shape, found.dtype) == ((*shape[:-1], 192), dtype)
        if x.numel():
            assert_close(found, x.double() @ exact.T, limit)
    strided = normal(320, 6).to(dtype).T
    assert_close(plain(strided), strided.double() @ exact.T, limit)
    expanded = strided[:1].expand(4, 320)
    assert_close(plain(expanded), expanded.double() @ exact.T, limit)


@pytest.mark.parametrize("scheme", quantized.SCHEMES)
@pytest.mark.parametrize(("dtype", "limit"), LIMITS)
def test_what_runs_here_is_the_product_with_the_weight(device, scheme, dtype, limit):
    """The kernel of this CPU, or what --device has."""
    weight = normal(256, 320)
    exact = by_hand(quantized.quantize(weight, scheme))
    module = linear(weight, scheme, dtype=dtype, device=device)
    for rows in (1, 2, 5, 31, 40, 95, 100):
        x = normal(rows, 320, seed=rows).to(dtype)
        assert_close(module(x.to(device)).cpu(), x.double() @ exact.T, limit)


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("scheme", quantized.SCHEMES)
def test_many_rows_are_multiplied_in_the_dtype_that_is_fast(monkeypatch, scheme, has_bf16):
    monkeypatch.setattr(quantized.cpu, "has_bf16", lambda: has_bf16)
    kind, dtypes = quantized.SCHEMES[scheme], []
    pieces = kind.pieces
    monkeypatch.setattr(kind, "pieces", lambda c, s: dtypes.append(s.dtype) or pieces(c, s))
    module = linear(normal(64, 64), scheme, dtype=torch.bfloat16)
    module(normal(200, 64).bfloat16()), module(normal(200, 64)), module(normal(200, 64).half())
    first = torch.bfloat16 if has_bf16 else torch.float32
    assert dtypes == [first, torch.float32, torch.float32]


def test_a_module_follows_a_change_of_dtype():
    weight, x = normal(128, 64), normal(3, 64)
    for scheme in quantized.SCHEMES:
        module = linear(weight, scheme, dtype=torch.bfloat16)
        expected = x.double() @ by_hand(quantized.quantize(weight, scheme)).T
        assert_close(module(x), expected, 1e-5)  # bfloat16 scales are exact in float32
        assert_close(copy.deepcopy(module).float()(x), expected, 1e-5)
        assert module.codes.dtype in (torch.uint8, torch.int8)


@given(seeds, st.floats(1e-6, 1e6), st.floats(-3, 3))
@settings(max_examples=examples(30), deadline=None)
def test_no_weight_is_further_off_than_half_a_step(seed, size, offset):
    weight = (normal(64, 128, seed=seed) + offset) * size
    int4, int8 = (quantized.quantize(weight, scheme) for scheme in quantized.SCHEMES)
    step = int4.scales[..., 0].double().repeat_interleave(64, 0).T  # (n, k)
    edge = weight.abs().max() * 1e-6
    assert ((by_hand(int4) - weight.double()).abs() <= step * 0.5 + edge).all()
    # Steps are not wider than the range of a group asks for, but for the rounding of two bfloat16.
    groups = weight.double().unflatten(1, (-1, 64))
    spread, far = groups.amax(-1) - groups.amin(-1), groups.abs().amax(-1)
    assert (step[:, ::64] <= 1.01 * (spread / 15 + far / 256 / 7)).all()
    step = int8.scales.double()[:, None]
    assert ((by_hand(int8) - weight.double()).abs() <= step * 0.5 + edge).all()
    assert (step[:, 0] <= 1.01 * weight.double().abs().amax(1) / 127).all()


def test_constant_groups_are_kept_and_a_huge_weight_hurts_its_group_alone():
    weight = normal(64, 256).bfloat16()
    weight[:, :64] = 0
    weight[:, 64:128] = weight[:, :1].new_tensor(0.37)
    weight[5, 130] = 3e30
    int4, int8 = (
        quantized.quantize(weight, s).to("cpu", torch.bfloat16) for s in quantized.SCHEMES
    )
    assert torch.equal(int4[:, :128], weight[:, :128])
    assert torch.equal(int8[:, :64], weight[:, :64])
    assert (int4[5, 130] / weight[5, 130] - 1).abs() < 0.01
    others = torch.ones(64, 256, dtype=torch.bool)
    others[5, 128:192] = False
    assert (int4 - weight)[others].abs().max() < 0.3
    for scheme in quantized.SCHEMES:
        zeros = quantized.quantize(torch.zeros(64, 64), scheme)
        assert not zeros.to("cpu", torch.float32).any()


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("scheme", quantized.SCHEMES)
def test_weights_that_are_not_finite_are_refused(scheme, value):
    weight = normal(128, 128)
    weight[70, 100] = value
    with pytest.raises(ValueError, match="must be finite"):
        quantized.quantize(weight, scheme)


def test_parts_are_checked():
    four, eight = (quantized.quantize(normal(128, 192), scheme) for scheme in quantized.SCHEMES)
    for packed, size in ((four, 128 * 96 + 3 * 128 * 4), (eight, 128 * 192 + 128 * 2)):
        again = type(packed).checked(packed.codes, packed.scales)
        assert (again.shape, again.dim(), again.numel()) == ((128, 192), 2, 128 * 192)
        assert (again.dtype, again.nbytes) == (torch.bfloat16, size)
        scheme = "int4" if packed is four else "int8"
        assert quantized.parts_of(scheme, packed.shape) == [
            ("", (packed.codes.dtype, list(packed.codes.shape))),
            ("_scale", (packed.scales.dtype, list(packed.scales.shape))),
        ]
    for kind, codes, scales, message in (
        (Int4, eight.codes, four.scales, "multiples of 64|codes are torch.int8"),
        (Int8, four.codes, eight.scales, "multiples of 64|codes are torch.uint8"),
        (Int4, four.codes, four.scales.float(), "scales are torch.float32"),
        (Int4, four.codes, four.scales[:2], "they must be torch.bfloat16 .3, 128, 2."),
        (Int8, eight.codes, eight.scales[:, None], "they must be torch.bfloat16 .128."),
        (Int4, four.codes[:100], four.scales, "multiples of 64"),
        (Int4, four.codes[0], four.scales, "two dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            kind.checked(codes, scales)


def test_parts_in_a_file_are_joined():
    packed = quantized.quantize(normal(64, 64), "int4")
    parts = {"a.weight": packed.codes, "a.weight_scale": packed.scales, "b.weight": normal(3)}
    found = quantized.join_scales(parts, "int4")
    assert found.keys() == {"a.weight", "b.weight"} and found["b.weight"] is parts["b.weight"]
    assert torch.equal(by_hand(found["a.weight"]), by_hand(packed))
    with pytest.raises(ValueError, match="a.weight: codes are torch.uint8|a.weight: codes are for"):
        quantized.join_scales(parts, "int8")
    with pytest.raises(ValueError, match="c.weight_scale scales nothing: c.weight is not there"):
        quantized.join_scales(parts | {"c.weight_scale": packed.scales}, "int4")
    with pytest.raises(ValueError, match="scheme 'int2' is unknown; supported: int4, int8"):
        quantized.join_scales(parts, "int2")


def test_quantising_leaves_the_weight_as_it_was():
    weight = normal(64, 64)
    for scheme in quantized.SCHEMES:
        quantized.quantize(weight, scheme)
        assert torch.equal(weight, normal(64, 64))


def test_a_weight_is_used_as_it_is_stored(monkeypatch):
    packed = quantized.quantize(normal(64, 128), "int4")
    for block in (64, None):
        monkeypatch.setattr(quantized, "kernel_block", lambda block=block: block)
        module = QuantizedLinear(128, 64, None, "int4")
        module.load_weight(packed, torch.device("cpu"), torch.bfloat16)
        assert module.codes.data_ptr() == packed.codes.data_ptr()
        assert module.scales.data_ptr() == packed.scales.data_ptr()
    monkeypatch.setattr(quantized, "kernel_block", lambda: 32)
    # Another device has no such kernel.
    module.load_weight(packed, torch.device("meta"), torch.bfloat16)
    assert module.codes.shape == (1, 128, 32)


def test_the_kernel_is_used_for_its_own_blocks_alone(monkeypatch):
    """A model that comes from a GPU has blocks of 64, whatever the CPU's kernel reads."""
    packed = quantized.quantize(normal(64, 128), "int4")
    for mine in (64, 32, None):
        monkeypatch.setattr(quantized, "kernel_block", lambda mine=mine: mine)
        for block in (64, 32):
            assert Int4.kernel_reads(packed.arranged(block)) == (block == mine)


@given(sizes, sizes, seeds)
@settings(max_examples=examples(20), deadline=None)
def test_codes_are_repacked_a_chunk_at_a_time(n, k, seed):
    q = torch.randint(16, (n, k), generator=torch.Generator().manual_seed(seed)).byte()
    scales = torch.ones(k // 64, n, 2, dtype=torch.bfloat16)
    packed = Int4.checked(quantized.pack(q), scales)
    assert torch.equal(unpack32(packed.arranged(32)), q)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized, "CHUNK_WEIGHTS", 1)
        assert torch.equal(unpack32(packed.arranged(32)), q)
    for block in (64, 32):
        pieces = Int4.pieces(packed.arranged(block), scales.float())
        found = torch.cat([w.T.clone() for _, w in pieces])
        assert torch.equal(found, q.float() - 8 + 1)


def test_the_probe_tells_torchs_packing(monkeypatch):
    probe = quantized.kernel_block.__wrapped__
    expected = {"AVX512": 64, "AVX2": 32}
    assert probe() == expected.get(torch.backends.cpu.get_cpu_capability())
    for block in (64, 32):
        monkeypatch.setattr(quantized, "torch_pack", lambda q, b=block: quantized.pack(q, b))
        assert probe() == block
    monkeypatch.setattr(quantized, "torch_pack", lambda q: quantized.pack(q.roll(1, 0)))
    assert probe() is None
    # Low and high halves the other way round.
    monkeypatch.setattr(quantized, "torch_pack", lambda q: quantized.pack(q.roll(32, 0)))
    assert probe() is None


def tiny_nanochat(**changes):
    hub = {
        **{"vocab_size": 128, "hidden_size": 128, "intermediate_size": 192},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"max_position_embeddings": 64, "hidden_act": "relu2", "rms_norm_eps": 1e-6},
    }
    with torch.device("meta"):
        return nanochat.NanoChat(nanochat.config_from_hub(hub | changes))


def test_linears_of_the_layers_are_eligible_and_the_head_if_asked():
    model = tiny_nanochat()
    names = [name for name, _ in quantized.eligible(model)]
    leaves = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
    assert [name.rpartition(".")[2] for name in names] == leaves * 2
    assert [name for name, _ in quantized.eligible(model, lm_head=True)] == [*names, "lm_head"]
    odd = [name for name, _ in quantized.eligible(tiny_nanochat(intermediate_size=100))]
    assert odd == [name for name in names if "fc" not in name]
    with pytest.raises(ValueError, match="lm_head is the embedding as well"):
        quantized.eligible(tiny_nanochat(tie_word_embeddings=True), lm_head=True)


def test_experts_are_eligible_and_their_router_is_not():
    with torch.device("meta"):
        model = nanomodels.load(WEIGHTS / "nemotron-h-tiny")
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    found = {name for name, _ in quantized.eligible(model)}
    odd = {n for n in linears if any(size % 64 for size in model.get_submodule(n).weight.shape)}
    assert found == linears - odd - {"lm_head"}
    assert any(".experts." in name for name in found)
    assert not any(name.endswith(".gate") for name in found)


def test_a_replaced_linear_keeps_name_shape_and_count():
    model = tiny_nanochat()
    before = {name: p.shape for name, p in model.named_parameters()}
    count = sum(p.numel() for p in model.parameters())
    quantized.swap_linears(model, "int4", lm_head=True)
    assert {name: p.shape for name, p in model.named_parameters()} == before
    assert all(p.is_meta for p in model.parameters())
    assert parameter_count(model) == count
    for _, module in [*model.named_modules()]:
        if isinstance(module, QuantizedLinear):
            # As from a file that is not quantised.
            weight = normal(module.out_features, module.in_features).bfloat16()
            module.load_weight(weight, "cpu", torch.bfloat16)
            packed = quantized.quantize(weight, "int4")
            assert torch.equal(module.codes, packed.arranged(MY_BLOCK or 64))
    assert [name for name, _ in model.named_parameters()] == ["embed_tokens.weight"]
    assert parameter_count(model) == count
    with pytest.raises(ValueError, match="scheme 'int2' is unknown; supported: int4, int8"):
        quantized.swap_linears(model, "int2")


# --------------------------------------------------------------------------------------------------


def train_tiny():
    """weights/training/train_tiny.py, a script."""
    sys.path.insert(0, str(WEIGHTS / "training"))
    try:
        return importlib.import_module("train_tiny")
    finally:
        sys.path.remove(str(WEIGHTS / "training"))


def plays(tokenizer, script):
    """The last tenth of the plays, as train_tiny.py measures them; a third of it."""
    ids = tokenizer.encode(script.shakespeare()[1], add_special_tokens=False).ids
    bos = tokenizer.token_to_id("<|bos|>")
    rows = torch.tensor([[bos, *ids[at : at + 256]] for at in range(0, 60 * 256, 256)])
    return rows[:, :-1], rows[:, 1:]


def conversations(tokenizer, script):
    """Of another seed than those learned."""
    rows = script.Rows(script.make_corpus(), tokenizer, script.HELD_OUT_SEED)
    rows = torch.tensor([rows.conversations(257) for _ in range(60)])
    ids, learned = rows.unbind(1)  # each (rows, 257)
    return ids[:, :-1], ids[:, 1:].masked_fill(learned[:, 1:] == 0, -100)


def stories(tokenizer, script):
    return script.StoryRows(None, tokenizer, script.HELD_OUT_SEED).batch(40, 256, 1.0)


def notes(tokenizer, script):
    return script.RecallRows(None, tokenizer, script.HELD_OUT_SEED).batch(30, 512, 1.0)


@torch.inference_mode()
def loss(model, ids, targets):
    total = 0.0
    for i, t in zip(ids.split(10), targets.split(10), strict=True):
        total += F.cross_entropy(model(i).flatten(0, 1), t.flatten(), reduction="sum").item()
    return total / (targets != -100).sum().item()


@pytest.mark.parametrize(
    ("name", "held_out", "limits"),
    [
        ("nanochat-tiny", conversations, {"int8": 0.002, "int4": 0.02}),
        ("nemotron-tiny", stories, {"int8": 0.002, "int4": 0.02}),
        ("nemotron-h-tiny", notes, {"int8": 0.002, "int4": 0.02}),
        # What it learned least of, a perplexity near 90, is what 4 bits take most from.
        ("nanochat-tiny", plays, {"int8": 0.004, "int4": 0.08}),
    ],
)
def test_perplexity_on_held_out_text_stays(name, held_out, limits):
    tokenizer = Tokenizer.from_file(str(WEIGHTS / name / "tokenizer.json"))
    ids, targets = (rows if THOROUGH else rows[::3] for rows in held_out(tokenizer, train_tiny()))
    model = nanomodels.load(WEIGHTS / name)
    before = loss(model, ids, targets)
    for scheme, limit in limits.items():
        small = copy.deepcopy(model)
        for full, module in quantized.eligible(small):
            n, k = module.weight.shape
            new = QuantizedLinear(k, n, module.bias, scheme)
            new.load_weight(module.weight.data, module.weight.device, torch.bfloat16)
            small.set_submodule(full, new)
        rise = math.exp(loss(small, ids, targets) - before) - 1
        assert -limit <= rise <= limit, f"{scheme}: {rise:+.3%}"
