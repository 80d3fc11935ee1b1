"""Softmax attention against its formula in float64: blocks of any size, masks, shared heads."""

import math

import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from nanomodels import attention
from nanomodels.attention import attend, attend_at_once

pytestmark = pytest.mark.kernels


def reference(q, k, v, mask, dtype=torch.float64):
    """One query at a time, in float64; dtype is what weights and result are rounded to."""
    b, h, t, d = q.shape
    g, s = k.shape[1:3]
    y = torch.zeros(b, h, t, d, dtype=torch.float64)
    for row in range(b):
        for head in range(h):
            keys, values = (x[row, head // (h // g)].double() for x in (k, v))
            for i in range(t):
                scores = keys @ q[row, head, i].double() / math.sqrt(d)  # (s,)
                seen = torch.arange(s) <= s - t + i if mask is None else mask[row, 0, i]
                weights = scores.masked_fill(~seen, -math.inf).softmax(0)
                y[row, head, i] = weights.to(dtype).double() @ values
    return y.to(dtype)


def inputs(seed, b, h, g, t, s, d, masked):
    """q, k, v and mask as a decoder gives them: q is transposed, k and v are views of a cache."""
    rng = torch.Generator().manual_seed(seed)
    q = 3 * torch.randn(b, t, h, d, generator=rng).transpose(1, 2)
    k, v = (torch.randn(b, g, s + 3, d, generator=rng)[:, :, :s] for _ in range(2))
    mask = None
    if masked:
        mask = torch.rand(b, 1, t, s, generator=rng) < 0.4
        mask |= torch.eye(t, s, dtype=torch.bool)  # each token sees at least itself
    return q, k, v, mask


def on(device, *inputs):
    """`attend` on a device; the result is on the CPU."""
    return attend(*(None if x is None else x.to(device) for x in inputs)).cpu()


@settings(max_examples=examples(60), deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    b=st.integers(1, 3),
    g=st.integers(1, 3),
    share=st.integers(1, 3),
    t=st.integers(1, 20),
    before=st.integers(0, 12),
    masked=st.booleans(),
    block=st.integers(1, 7),
    rows=st.sampled_from([1, 4, 64]),
    scores=st.sampled_from([1, 100, 1000, 1 << 23]),
)
def test_attention_is_its_formula(
    device, seed, b, g, share, t, before, masked, block, rows, scores
):
    q, k, v, mask = inputs(seed, b, g * share, g, t, t + before, 8, masked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        patch.setattr(attention, "MIN_ROWS", rows)
        patch.setattr(attention, "MAX_SCORES", scores)
        found = on(device, q, k, v, mask)
    torch.testing.assert_close(found.double(), reference(q, k, v, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("t", "s"), [(1, 150), (64, 64), (65, 65), (150, 150), (130, 200)])
@pytest.mark.parametrize("has_bf16", [True, False])
def test_bfloat16_attention_is_rounded_only_at_its_ends(
    device, monkeypatch, t, s, masked, has_bf16
):
    """Scores and softmax are float32: the error is about that of rounding weights and result."""
    monkeypatch.setattr(attention.cpu, "has_amx", lambda: False)
    monkeypatch.setattr(attention.cpu, "has_bf16", lambda: has_bf16)
    q, k, v, mask = inputs(1, 2, 6, 2, t, s, 32, masked)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    expected, rounded = reference(q, k, v, mask), reference(q, k, v, mask, torch.bfloat16)
    found = on(device, q, k, v, mask)
    assert found.dtype == torch.bfloat16 and found.shape == q.shape
    errors = [(y.double() - expected).pow(2).mean().sqrt() for y in (found, rounded)]
    assert errors[0] < 1.2 * errors[1]  # with scores in bfloat16 it is 3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("repeated", [1, 1 << 27])
@pytest.mark.parametrize(("t", "s"), [(7, 7), (5, 12)])
def test_attend_at_once_gives_the_same_numbers(monkeypatch, t, s, repeated, masked):
    """The code for CUDA and for CPUs with AMX, run on this CPU."""
    monkeypatch.setattr(attention, "MAX_REPEATED", repeated)
    q, k, v, mask = inputs(2, 2, 4, 2, t, s, 8, masked)
    torch.testing.assert_close(attend_at_once(q, k, v, mask), attend(q, k, v, mask))


@pytest.mark.parametrize(("has_amx", "has_bf16"), [(True, True), (False, True), (False, False)])
def test_the_function_is_chosen_by_dtype_and_cpu(monkeypatch, has_amx, has_bf16):
    monkeypatch.setattr(attention.cpu, "has_amx", lambda: has_amx)
    monkeypatch.setattr(attention.cpu, "has_bf16", lambda: has_bf16)
    called = []
    for name in ("attend_at_once", "attend_in_blocks"):
        function = getattr(attention, name)
        monkeypatch.setattr(
            attention, name, lambda *a, f=function, n=name: called.append(n) or f(*a)
        )
    products = []
    softmax = torch.Tensor.softmax

    def spy(scores, dim):
        weights = softmax(scores, dim)
        to = weights.to
        weights.to = lambda dtype: products.append(dtype) or to(dtype)
        return weights

    monkeypatch.setattr(torch.Tensor, "softmax", spy)
    q, k, v, _ = inputs(1, 1, 4, 4, 20, 20, 8, False)
    for dtype in (torch.bfloat16, torch.float32):
        attention.attend(*(x.to(dtype) for x in (q, k, v)), None)
    bf16 = "attend_at_once" if has_amx else "attend_in_blocks"
    assert called == [bf16, "attend_in_blocks"]
    expected = [torch.bfloat16 if has_bf16 else torch.float32, torch.float32]
    assert products == expected[has_amx:]


def test_gradients_match_torchs_own_attention():
    q, k, v, _ = inputs(3, 1, 4, 2, 100, 100, 8, False)
    grads = []
    for function in (attend, attend_at_once):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        function(*leaves, None).square().sum().backward()
        grads.append([x.grad for x in leaves])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
