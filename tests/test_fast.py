"""Linears that order their weight: the same numbers, when it pays, and only then."""

import copy
import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nanomodels
from nanomodels import fast
from nanomodels.fast import CALLS, FastLinear

orders = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 for oneDNN"
)
WEIGHTS = Path(__file__).parent.parent / "weights"


def linear(bias=True, calls=1):
    rng = torch.Generator().manual_seed(0)
    module = nn.Linear(96, 130, bias=bias, dtype=torch.bfloat16)
    for parameter in module.parameters():
        parameter.data.normal_(generator=rng)
        parameter.requires_grad = False
    return module, FastLinear(module, calls)


@orders
@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3,), (2, 5), (16,), (40,), (0,)])
def test_an_ordered_weight_gives_the_product(bias, shape):
    plain, module = linear(bias)
    x = torch.randn(*shape, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    module(x[:1])
    expected = x.double() @ plain.weight.double().T + (plain.bias.double() if bias else 0)
    found = module(x)
    assert found.shape == expected.shape and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-6)
    torch.testing.assert_close(found, plain(x), rtol=2**-7, atol=2**-6)


@orders
@torch.inference_mode()
def test_a_weight_is_ordered_after_some_calls(monkeypatch):
    _, module = linear(calls=3)
    few, many = torch.ones(1, 96).bfloat16(), torch.ones(100, 96).bfloat16()
    for x in (few, many):
        module(x)
        assert module.ordered is None
    module(many)
    assert module.ordered is not None
    monkeypatch.setattr(F, "linear", None)  # from now on, it is not called
    module(few), module(many)


@orders
def test_a_weight_that_is_trained_is_not_ordered():
    plain, module = linear()
    x = torch.ones(1, 96).bfloat16()
    with torch.no_grad():
        module(x)
    assert module.ordered is not None
    module.requires_grad_()
    module(x).sum().backward()
    assert module.ordered is None
    assert module.weight.grad is not None
    with torch.no_grad():
        module.weight.mul_(2)
        module.bias.mul_(2)
        module.requires_grad_(False)
        module.calls = 1
        torch.testing.assert_close(module(x), plain(x))  # of the new weight, which both have


@orders
def test_a_bias_alone_is_trained_and_autocast_works():
    _, module = linear()
    with torch.no_grad():
        module(torch.ones(1, 96).bfloat16())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert module(torch.ones(2, 96)).dtype == torch.bfloat16
    module.bias.requires_grad_()
    module(torch.ones(2, 96).bfloat16()).sum().backward()
    assert (module.bias.grad == 2).all()


@orders
def test_a_gradient_goes_through_to_the_input():
    plain, module = linear()
    x = torch.randn(5, 96).bfloat16().requires_grad_()
    with torch.no_grad():
        module(x)
    module(x).square().sum().backward()
    found, x.grad = x.grad, None
    plain(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad)


@orders
@torch.inference_mode()
def test_a_change_of_the_weight_is_followed():
    plain, module = linear()
    x = torch.randn(2, 96).bfloat16()
    module(x)
    assert module.to(torch.float32).ordered is None
    torch.testing.assert_close(
        module(x.float()), F.linear(x.float(), plain.weight.float(), plain.bias.float())
    )
    _, module = linear()
    module(x)
    twin = copy.deepcopy(module)
    twin.weight.data.mul_(2)
    twin.bias.data.mul_(2)
    torch.testing.assert_close(twin(x), 2 * module(x))


@orders
@torch.inference_mode()
@pytest.mark.parametrize("name", ["nanochat-tiny", "nemotron-tiny", "nemotron-h-tiny"])
def test_a_model_says_the_same_with_its_weights_ordered(monkeypatch, name):
    plain = nanomodels.load(WEIGHTS / name)
    assert not any(isinstance(module, FastLinear) for module in plain.modules())  # all small
    monkeypatch.setattr(fast, "LARGE", 1)
    model = nanomodels.load(WEIGHTS / name)
    quick = [module for module in model.modules() if isinstance(module, FastLinear)]
    assert len(quick) > 10
    ids = torch.arange(30)[None] * 7
    tokens = []
    for each in (plain, model):
        cache = each.new_cache(1, 200)
        logits = [each(ids, cache=cache)[:, -1:]]
        for _ in range(CALLS + len(quick) + 2):
            logits.append(each(logits[-1].argmax(-1), cache=cache))
        tokens.append(torch.cat(logits, 1))
    assert all(module.ordered is not None for module in quick)
    torch.testing.assert_close(tokens[1], tokens[0], rtol=0.02, atol=0.2)


@orders
def test_experts_and_other_dtypes_are_left_alone(monkeypatch):
    monkeypatch.setattr(fast, "LARGE", 1)
    model = nanomodels.load(WEIGHTS / "nemotron-h-tiny")
    names = {name for name, module in model.named_modules() if isinstance(module, FastLinear)}
    assert any("shared_experts" in name for name in names)
    assert not any(".experts." in name for name in names)
    model = nanomodels.load(WEIGHTS / "nemotron-h-tiny", dtype=torch.float32)
    assert not any(isinstance(module, FastLinear) for module in model.modules())
    model = nanomodels.load(WEIGHTS / "nemotron-h-tiny", quantize="int4")
    names = {name for name, module in model.named_modules() if isinstance(module, FastLinear)}
    assert "lm_head" in names and not any("out_proj" in name for name in names)


FAULTS = """
import resource, sys, torch
from nanomodels.fast import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def step():
    return sum(torch.ones(1 << 20) + i for i in range(8))
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory is about glibc")
def test_memory_is_kept_for_the_next_call():
    faults = {}
    for how in ("keep", "default"):
        command = [sys.executable, "-c", FAULTS, how]
        env = {**os.environ, "PYTHONPATH": str(WEIGHTS.parent), "MALLOC_MMAP_THRESHOLD_": "131072"}
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        faults[how] = int(run.stdout)
    assert faults["keep"] < 3000 < 10000 < faults["default"]


def test_a_libc_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    fast.keep_memory()


def test_a_cpu_without_bfloat16_keeps_its_linears(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(fast, "LARGE", 1)
    model = nanomodels.load(WEIGHTS / "nanochat-tiny")
    assert not any(isinstance(module, FastLinear) for module in model.modules())
