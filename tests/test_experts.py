"""Experts called at once: the numbers of the loop over them, and nothing is read back."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanomodels import experts, nemotron_h, quantize

WAYS = ["gathered", "grouped"] if hasattr(F, "grouped_mm") else ["gathered"]  # torch 2.10


def layer(seed=0, **changes):
    """A layer with random weights; sizes are multiples of 8, as F.grouped_mm wants them."""
    hub = {
        **{"hybrid_override_pattern": "E", "hidden_size": 24, "n_routed_experts": 12},
        **{"num_experts_per_tok": 3, "moe_intermediate_size": 16},
        **{"moe_shared_expert_intermediate_size": 8, "routed_scaling_factor": 2.5, **changes},
    }
    moe = nemotron_h.MoE(nemotron_h.config_from_hub(hub)).requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for parameter in moe.parameters():
        parameter.normal_(generator=rng).mul_(parameter.shape[-1] ** -0.5)
    return moe


def rows(*shape, seed=1):
    return torch.randn(*shape, 24, generator=torch.Generator().manual_seed(seed))


def at_once(moe, x, way):
    """The layer's output, its experts called at once, on whatever device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "fits", lambda *_: True)
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
def test_the_numbers_are_those_of_the_loop(way, seed, b, t, chosen, groups, latent, uneven):
    """Also where some experts are chosen by all tokens, and others by none."""
    n_group, topk_group = groups
    moe = layer(
        seed,
        num_experts_per_tok=chosen,
        n_group=n_group,
        topk_group=topk_group,
        moe_latent_size=latent,
    )
    moe.gate.e_score_correction_bias.mul_(uneven)
    x = rows(b, t, seed=seed)
    close(at_once(moe, x, way), moe(x))


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_is_rounded_as_in_the_loop(way):
    moe, x = layer(moe_intermediate_size=128), rows(4, 50)
    exact, moe, x = moe(x.bfloat16().float()), moe.bfloat16(), x.bfloat16()
    errors = [(y - exact).square().mean() for y in (at_once(moe, x, way), moe(x))]
    assert 0 < errors[0] <= 1.1 * errors[1]


def test_weights_are_moved_into_one_tensor_and_stay_what_they_are():
    moe, x = layer(), rows(2, 3)
    before = {name: weight.clone() for name, weight in moe.state_dict().items()}
    expected = at_once(moe, x, "gathered")
    for name in ("up_proj", "down_proj"):
        weights = [getattr(expert, name).weight for expert in moe.experts]
        stack = experts.stacked(moe.experts, name)
        assert stack.untyped_storage().nbytes() == sum(weight.nbytes for weight in weights)
        assert [w.data_ptr() for w in weights] == [w.data_ptr() for w in stack]
        assert experts.stacked(moe.experts, name).data_ptr() == stack.data_ptr(), "once"
    after = moe.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(moe(x), layer()(x))
    moe.experts[5].up_proj.weight.zero_(), moe.experts[7].down_proj.weight.mul_(2)
    close(at_once(moe, x, "gathered"), moe(x))  # a change in place is seen
    assert (at_once(moe, x, "gathered") - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "change",
    [copy.deepcopy, lambda moe: copy.deepcopy(moe).double().float(), lambda moe: moe.cpu()],
)
def test_copies_and_casts_are_stacked_again(change):
    moe, x = layer(), rows(2, 3)
    at_once(moe, x, "gathered")
    other = change(moe)
    close(at_once(other, x, "gathered"), other(x))
    for expert in other.experts:
        expert.up_proj.weight.mul_(3)
    close(at_once(other, x, "gathered"), other(x))
    if other is not moe:
        close(at_once(moe, x, "gathered"), layer()(x))
        assert (other(x) - moe(x)).abs().max() > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_a_stack_made_in_inference_mode_serves_outside_it(way):
    x, moe = rows(2, 4), layer()
    with torch.inference_mode():
        loaded_there, expected = layer(), moe(x)
        at_once(loaded_there, x, way), at_once(moe, x, way)
    for each in (loaded_there, moe):
        close(at_once(each, x, way), expected)
        close(each(x), expected)
    grads = []
    for call in (lambda x: at_once(moe, x, way), moe):
        leaf = x.clone().requires_grad_()
        call(leaf).square().sum().backward()
        grads.append(leaf.grad)
    close(*grads, 1e-4)


def test_weights_are_trained_between_calls():
    moe, x = layer().requires_grad_(), rows(2, 3)
    with torch.no_grad():
        before = at_once(moe, x, "gathered")
    moe(x).square().sum().backward()
    weights = [expert.up_proj.weight for expert in moe.experts]
    assert all(weight.is_leaf and weight.requires_grad for weight in weights)
    with torch.no_grad():
        for weight in weights:
            weight.sub_(0.1 * (0 if weight.grad is None else weight.grad))
        after = at_once(moe, x, "gathered")
        close(after, moe(x))
        assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_nothing_is_read_back(way, tokens):
    """On the meta device no number can be read."""
    moe = layer(n_group=3, topk_group=2).bfloat16().to("meta")
    x = rows(2, tokens).bfloat16().to("meta")
    for _ in range(2):
        assert at_once(moe, x, way).shape == x.shape


def test_the_loop_stays_where_it_is_better_or_alone_possible():
    moe, one, many = layer(), rows(3, 1), rows(1, 3)
    assert not experts.fits(moe.experts, one)  # on a CPU
    moe, one, many = moe.to("meta"), one.to("meta"), many.to("meta")
    assert experts.fits(moe.experts, one)
    assert not experts.fits(moe.experts, many)  # that would be a copy of a weight for each choice
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "has_grouped", lambda _: True)
        assert experts.fits(moe.experts, many)
    moe.experts[4].down_proj.weight.requires_grad_()
    assert not experts.fits(moe.experts, one)
    with torch.no_grad():
        assert experts.fits(moe.experts, one)
    moe.experts[0].up_proj = quantize.QuantizedLinear(64, 128, None, "int4")
    assert not experts.fits(moe.experts, one)


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
def test_one_kernel_for_all_groups_is_for_bfloat16_on_hopper(monkeypatch, changes, found):
    weight = {"is_cuda": True, "dtype": torch.bfloat16, "shape": (24, 16), "device": "cuda"}
    capability = changes.get("capability", (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(experts, "F", changes.get("torch", SimpleNamespace(grouped_mm=None)))
    assert experts.has_grouped(SimpleNamespace(**weight | changes)) == found
