"""Experts called at once: the same numbers as in a loop, and the CPU reads nothing back."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanomodels import experts, nemotron_h
from nanomodels.linears import quantized
from nanomodels.linears.sizes import bytes_per_token

WAYS = ["gathered", "grouped"] if hasattr(F, "grouped_mm") else ["gathered"]  # torch 2.10


def layer(device, seed=0, **changes):
    """A layer with random weights; F.grouped_mm needs sizes that are multiples of 8."""
    hub = {
        **{"hybrid_override_pattern": "E", "hidden_size": 24, "n_routed_experts": 12},
        **{"num_experts_per_tok": 3, "moe_intermediate_size": 16},
        **{"moe_shared_expert_intermediate_size": 8, "routed_scaling_factor": 2.5, **changes},
    }
    moe = nemotron_h.MoE(nemotron_h.config_from_hub(hub)).requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for parameter in moe.parameters():
        parameter.normal_(generator=rng).mul_(parameter.shape[-1] ** -0.5)
    return moe.to(device)


def rows(device, *shape, seed=1):
    return torch.randn(*shape, 24, generator=torch.Generator().manual_seed(seed)).to(device)


def output(way, moe, x):
    """The layer's output; way is "loop", "gathered" or "grouped"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "can_stack", lambda *_: way != "loop")
        patch.setattr(experts, "has_grouped", lambda _: way == "grouped")
        return moe(x)


def close(found, expected, limit=1e-5):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert (found - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    b=st.integers(1, 3),
    t=st.integers(1, 9),
    chosen=st.integers(1, 4),
    groups=st.sampled_from([(1, 1), (2, 1), (3, 2)]),
    latent=st.sampled_from([None, 8]),
    uneven=st.sampled_from([0, 1, 100]),
)
def test_experts_at_once_give_the_numbers_of_the_loop(
    device, way, seed, b, t, chosen, groups, latent, uneven
):
    """Also if all tokens choose some experts, and none chooses others."""
    sizes = {"num_experts_per_tok": chosen, "moe_latent_size": latent}
    moe = layer(device, seed, n_group=groups[0], topk_group=groups[1], **sizes)
    moe.gate.e_score_correction_bias.mul_(uneven)
    x = rows(device, b, t, seed=seed)
    close(output(way, moe, x), output("loop", moe, x))


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_errs_no_more_than_in_the_loop(device, way):
    moe, x = layer(device, moe_intermediate_size=128), rows(device, 4, 50).bfloat16()
    exact, moe = output("loop", moe, x.float()), moe.bfloat16()
    errors = [(output(each, moe, x) - exact).square().mean() for each in (way, "loop")]
    assert 0 < errors[0] <= 1.1 * errors[1]


def test_weights_are_moved_into_one_tensor_once_and_keep_their_values(device):
    moe, x = layer(device), rows(device, 2, 3)
    before = {name: weight.clone() for name, weight in moe.state_dict().items()}
    expected = output("gathered", moe, x)
    for name in ("up_proj", "down_proj"):
        weights = [getattr(expert, name).weight for expert in moe.experts]
        stack = experts.stacked(moe.experts, name)
        assert stack.untyped_storage().nbytes() == sum(weight.nbytes for weight in weights)
        assert [w.data_ptr() for w in weights] == [w.data_ptr() for w in stack]
        assert experts.stacked(moe.experts, name).data_ptr() == stack.data_ptr(), "once"
    after = moe.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    moe.experts[5].up_proj.weight.zero_(), moe.experts[7].down_proj.weight.mul_(2)
    close(output("gathered", moe, x), output("loop", moe, x))  # a change in place is seen
    assert (output("gathered", moe, x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "change",
    [copy.deepcopy, lambda moe: copy.deepcopy(moe).double().float(), lambda moe: moe.float()],
    ids=["copied", "cast and back", "the same"],
)
def test_copies_and_casts_are_stacked_again(device, change):
    moe, x = layer(device), rows(device, 2, 3)
    expected = output("gathered", moe, x)
    other = change(moe)
    close(output("gathered", other, x), expected)
    for expert in other.experts:
        expert.up_proj.weight.mul_(3)
    close(output("gathered", other, x), output("loop", other, x))
    assert (output("gathered", other, x) - expected).abs().max() > 1e-3
    if other is not moe:
        close(output("gathered", moe, x), expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_stack_made_in_inference_mode_works_outside_it(device, way):
    moe, x = layer(device), rows(device, 2, 4)
    with torch.inference_mode():
        made_there = layer(device)
        expected = output("loop", moe, x)
        output(way, made_there, x), output(way, moe, x)
    for each in (made_there, moe):
        close(output(way, each, x), expected)
        close(output("loop", each, x), expected)
    grads = []
    for each in (way, "loop"):
        leaf = x.clone().requires_grad_()
        output(each, moe, leaf).square().sum().backward()
        grads.append(leaf.grad)
    close(*grads, 1e-4)


def test_weights_can_be_trained_between_calls(device):
    moe, x = layer(device).requires_grad_(), rows(device, 2, 3)
    with torch.no_grad():
        before = output("gathered", moe, x)
    moe(x).square().sum().backward()
    weights = [expert.up_proj.weight for expert in moe.experts]
    assert all(weight.is_leaf and weight.requires_grad for weight in weights)
    with torch.no_grad():
        for weight in weights:
            weight.sub_(0.1 * (0 if weight.grad is None else weight.grad))
        after = output("gathered", moe, x)
        close(after, output("loop", moe, x))
        assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_a_call_reads_no_number_back(way, tokens):
    """On the meta device, reading one would be an error."""
    moe = layer("meta", n_group=3, topk_group=2).bfloat16()
    x = rows("meta", 2, tokens).bfloat16()
    for _ in range(2):
        assert output(way, moe, x).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_decode_step_on_a_gpu_never_synchronises(device, dtype):
    if device.type != "cuda":
        pytest.skip("for --device cuda")
    moe, x = layer(device).to(dtype), rows(device, 3, 1).to(dtype)
    expected = moe(x)  # this call stacks
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = moe(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)
    close(found, output("loop", moe, x), 1e-5 if dtype == torch.float32 else 0.02)


def test_the_loop_is_kept_where_it_is_faster_or_the_only_way():
    moe, one, many = layer("cpu"), rows("cpu", 3, 1), rows("cpu", 1, 3)
    assert not experts.can_stack(moe.experts, one)
    moe, one, many = moe.to("meta"), one.to("meta"), many.to("meta")
    assert experts.can_stack(moe.experts, one)
    assert not experts.can_stack(moe.experts, many)  # it would copy a weight for each choice
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "has_grouped", lambda _: True)
        assert experts.can_stack(moe.experts, many)
    moe.experts[4].down_proj.weight.requires_grad_()
    assert not experts.can_stack(moe.experts, one)
    with torch.no_grad():
        assert experts.can_stack(moe.experts, one)
    moe.experts[0].up_proj = quantized.QuantizedLinear(64, 128, None, "int4")
    assert not experts.can_stack(moe.experts, one)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"capability": (10, 0)}, True),
        ({"capability": (8, 6)}, False),
        ({"capability": (12, 0)}, False),
        ({"dtype": torch.float16}, False),
        ({"shape": (12, 24, 16)}, True),
        ({"shape": (8, 20, 24)}, False),
        ({"shape": (24, 20)}, False),
        ({"is_cuda": False}, False),
        ({"torch": SimpleNamespace()}, False),
    ],
    ids=str,
)
def test_the_grouped_kernel_is_used_for_bfloat16_on_hopper_and_blackwell(
    monkeypatch, changes, found
):
    weight = {"is_cuda": True, "dtype": torch.bfloat16, "shape": (24, 16), "device": "cuda"}
    capability = changes.get("capability", (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(experts, "F", changes.get("torch", SimpleNamespace(grouped_mm=None)))
    assert experts.has_grouped(SimpleNamespace(**weight | changes)) == found


def test_a_decode_step_reads_the_chosen_experts_alone():
    """Counted by hand: 3 of 8 experts of two layers, no embedding, and the head."""
    model = nemotron_h.NemotronH(nemotron_h.Config(layers="EM*E", num_experts_per_tok=3))
    read = sum(p.numel() for p in model.parameters()) - model.embeddings.weight.numel()
    for i in (0, 3):
        unread = list(model.layers[i].mixer.experts)[3:]
        read -= sum(p.numel() for expert in unread for p in expert.parameters())
    assert bytes_per_token(model) == 4 * read


@torch.inference_mode()
def test_experts_in_float64_are_summed_in_float64():
    """For comparisons; the router's weights are float32 all the same."""
    moe = layer("cpu")
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    expected = moe(x)
    found = copy.deepcopy(moe).double()(x.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-6)
