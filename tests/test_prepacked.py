"""Linears that prepack their weight: the same product, when it pays, and only then."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nanomodels
from nanomodels import cpu
from nanomodels.linears import memory, prepacked
from nanomodels.linears.prepacked import FBGEMM, FastLinear, OneDNN

pytestmark = pytest.mark.kernels

WEIGHTS = Path(__file__).parent.parent / "weights"
KERNELS = [OneDNN] * cpu.has_bf16() + [FBGEMM] * cpu.has_fbgemm()  # that this CPU has
each_kernel = pytest.mark.parametrize("kernel", KERNELS)
fbgemm = pytest.mark.skipif(not cpu.has_fbgemm(), reason="only x86 has FBGEMM")
a_kernel = pytest.mark.skipif(not KERNELS, reason="F.linear is all that this CPU has")


def plain_linear(bias=True, dtype=torch.bfloat16, size=(96, 130)):
    rng = torch.Generator().manual_seed(0)
    module = nn.Linear(*size, bias=bias, dtype=dtype)
    for parameter in module.parameters():
        parameter.data.normal_(generator=rng)
        parameter.requires_grad = False
    return module


def random_rows(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def exact(x, module):
    """The product in float64."""
    y = x.double() @ module.weight.double().T
    return y if module.bias is None else y + module.bias.double()


@each_kernel
@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,), (2, 5), (16,), (40,), (0,), (2, 0)])
def test_a_packed_weight_gives_the_product(kernel, bias, shape):
    plain = plain_linear(bias)
    module, x = FastLinear(plain, kernel, wait=1), random_rows(*shape, 96)
    module(random_rows(1, 96))
    assert module.packed is not None
    expected, found = exact(x, plain), module(x)
    assert found.shape == expected.shape and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-6)
    torch.testing.assert_close(found, plain(x), rtol=2**-7, atol=2**-6)


@each_kernel
@torch.inference_mode()
def test_a_packed_weight_errs_no_more_than_f_linear(kernel):
    plain, x = plain_linear(size=(2048, 256)), random_rows(64, 2048)
    packed = kernel(plain.weight, plain.bias)
    errors = [(y.double() - exact(x, plain)).square().mean() for y in (packed(x), plain(x))]
    assert errors[0] <= 1.02 * errors[1]  # both are the rounding of y to bfloat16, and little else


@each_kernel
@torch.inference_mode()
@pytest.mark.parametrize("rows", [130, 33, 1])
def test_a_large_weight_is_packed_in_pieces(monkeypatch, kernel, rows):
    plain, x = plain_linear(), random_rows(7, 96)
    expected = kernel(plain.weight, plain.bias)(x)
    monkeypatch.setattr(prepacked, "CHUNK_WEIGHTS", rows * 96)
    given = []
    monkeypatch.setattr(memory, "release", lambda weight: given.append(len(weight)))
    packed = kernel(plain.weight, plain.bias)
    assert len(packed.pieces) == len(given) == -(-130 // rows) and sum(given) == 130
    torch.testing.assert_close(packed(x), expected)
    torch.testing.assert_close(packed(x.T.contiguous().T), expected)


@fbgemm
@torch.inference_mode()
def test_fbgemm_adds_in_float32():
    plain, x = plain_linear(size=(2048, 100), dtype=torch.float16), random_rows(7, 2048).float()
    found = FBGEMM(plain.weight, plain.bias)(x)
    torch.testing.assert_close(found.double(), exact(x, plain), rtol=1e-5, atol=1e-4)


@fbgemm
@torch.inference_mode()
@pytest.mark.parametrize("value", [7e4, 1e30, -7e4, float("inf"), float("nan")])
def test_a_weight_that_float16_cannot_hold_stays_with_f_linear(value):
    plain = plain_linear()
    assert FBGEMM.fits(plain.weight)
    plain.weight[17, 5] = value
    assert not FBGEMM.fits(plain.weight)
    module, x = FastLinear(plain, FBGEMM, wait=1), random_rows(3, 96)
    for _ in range(2):
        torch.testing.assert_close(module(x), plain(x), equal_nan=True)
    assert module.packed is None


@fbgemm
@pytest.mark.parametrize(("size", "fits"), [(3e4, True), (1.0, True), (1e-3, True), (1e-7, False)])
def test_float16_must_hold_the_numbers_of_a_row_to_12_bits(size, fits):
    weight = torch.rand(8, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[3] *= size  # one row is enough
    weight[5] = 0
    assert FBGEMM.fits(weight) == fits


@each_kernel
@torch.inference_mode()
def test_a_weight_is_packed_once_that_pays(monkeypatch, kernel):
    monkeypatch.setattr(kernel, "work", lambda rows: rows)
    module = FastLinear(plain_linear(), kernel, wait=10)
    for rows, packed in ((3, False), (6, False), (1, True), (2, True)):
        module(random_rows(rows, 96))
        assert (module.packed is not None) == packed
    monkeypatch.setattr(F, "linear", None)  # from now on, it is not called
    module(random_rows(100, 96))


@each_kernel
def test_in_a_compiled_model_it_is_f_linear(kernel):
    """A graph cannot have the kernels; before and after prepacking, nothing of it changes."""
    plain, x = plain_linear(), random_rows(3, 96)
    module = FastLinear(plain, kernel, wait=1)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), plain(x))
        assert module.packed is None and module.wait == 1
        module(x)
        assert module.packed is not None
        assert torch.equal(compiled(x), plain(x))


def test_a_prompt_pays_at_once_where_f_linear_is_slow_for_many_rows():
    assert OneDNN.work(512) < OneDNN.wait and FBGEMM.work(512) > FBGEMM.wait > FBGEMM.work(1)


@each_kernel
def test_a_weight_that_is_trained_is_not_packed(kernel):
    plain = plain_linear()
    module, x = FastLinear(plain, kernel, wait=1), random_rows(1, 96)
    with torch.no_grad():
        module(x)
    assert module.packed is not None
    module.requires_grad_()
    module(x).sum().backward()
    assert module.packed is None
    assert module.weight.grad is not None
    with torch.no_grad():
        module.weight.mul_(2)
        module.bias.mul_(2)
        module.requires_grad_(False)
        module.wait = 1
        torch.testing.assert_close(module(x), plain(x))  # of the new weight, which both have
    assert module.packed is not None


@each_kernel
def test_a_bias_alone_is_trained_and_autocast_works(kernel):
    module = FastLinear(plain_linear(), kernel, wait=1)
    with torch.no_grad():
        module(random_rows(1, 96))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert module(torch.ones(2, 96)).dtype == torch.bfloat16
    module.bias.requires_grad_()
    module(random_rows(2, 96)).sum().backward()
    assert (module.bias.grad == 2).all()


@each_kernel
def test_a_gradient_goes_through_to_the_input(kernel):
    plain = plain_linear()
    module, x = FastLinear(plain, kernel, wait=1), random_rows(5, 96).requires_grad_()
    with torch.no_grad():
        module(x)
    module(x).square().sum().backward()
    found, x.grad = x.grad, None
    plain(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad)


@each_kernel
@torch.inference_mode()
def test_a_change_of_the_weight_is_followed(kernel):
    plain, x = plain_linear(), random_rows(2, 96)
    module = FastLinear(plain, kernel, wait=1)
    module(x)
    expected = F.linear(x.float(), plain.weight.float(), plain.bias.float())
    assert module.to(torch.float32).packed is None
    for _ in range(300):
        torch.testing.assert_close(module(x.float()), expected)
    assert module.packed is None  # float32 has no kernel
    module = FastLinear(plain_linear(), kernel, wait=1)
    module(x)
    twin = copy.deepcopy(module)
    twin.weight.data.mul_(2)
    twin.bias.data.mul_(2)
    torch.testing.assert_close(twin(x), 2 * module(x))


def test_the_kernel_follows_dtype_and_cpu(monkeypatch):
    def kernels():
        dtypes = (torch.bfloat16, torch.float16, torch.float32)
        return [prepacked.kernel_for(torch.empty(1, dtype=dtype)) for dtype in dtypes]

    for bf16, fbgemm, expected in (
        (True, True, [OneDNN, FBGEMM, None]),
        (False, True, [FBGEMM, FBGEMM, None]),
        (False, False, [None, None, None]),
    ):
        monkeypatch.setattr(cpu, "has_bf16", lambda bf16=bf16: bf16)
        monkeypatch.setattr(cpu, "has_fbgemm", lambda fbgemm=fbgemm: fbgemm)
        assert kernels() == expected
    assert prepacked.kernel_for(torch.empty(1, dtype=torch.bfloat16, device="meta")) is None


def test_other_processors_have_neither_kernel(monkeypatch):
    monkeypatch.setattr(cpu.platform, "machine", lambda: "arm64")
    assert not cpu.has_bf16.__wrapped__() and not cpu.has_fbgemm.__wrapped__()
    assert cpu.product_dtype(torch.bfloat16, torch.device("cuda")) == torch.bfloat16


@a_kernel
@torch.inference_mode()
@pytest.mark.parametrize("name", ["nanochat-tiny", "nemotron-tiny", "nemotron-h-tiny"])
def test_a_model_says_the_same_with_its_weights_packed(monkeypatch, name):
    plain = nanomodels.load(WEIGHTS / name)
    assert not any(isinstance(module, FastLinear) for module in plain.modules())  # all small
    monkeypatch.setattr(prepacked, "LARGE", 1)
    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "wait", 16)
    model = nanomodels.load(WEIGHTS / name)
    quick = {n: module for n, module in model.named_modules() if isinstance(module, FastLinear)}
    assert len(quick) > 10
    exact = nanomodels.load(WEIGHTS / name, dtype=torch.float32)
    ids = torch.arange(76 + len(quick)) * torch.tensor([7, 11, 13, 17, 19, 23])[:, None] % 300
    logits = []
    for each in (exact, plain, model):
        cache = each.new_cache(*ids.shape)
        pieces = ids.split([30] + [1] * (ids.shape[1] - 60) + [30], dim=1)
        logits.append(torch.cat([each(piece, cache=cache)[:, -1:] for piece in pieces], 1))
    for n, module in quick.items():  # an expert may be called too seldom
        assert module.packed is not None or ".experts." in n
    assert any(".experts." in n and m.packed is not None for n, m in quick.items()) == (
        name == "nemotron-h-tiny"
    )
    # The median, as a router's near tie that falls the other way is a large error of either,
    # from there on to the end of its row.
    mine, its = ((y - logits[0]).square().mean(-1).median() for y in logits[:0:-1])
    assert mine <= 1.25 * its


def test_linears_without_a_kernel_are_left_alone(monkeypatch):
    monkeypatch.setattr(prepacked, "LARGE", 1)
    model = nanomodels.load(WEIGHTS / "nemotron-h-tiny", dtype=torch.float32)
    assert not any(isinstance(module, FastLinear) for module in model.modules())
    monkeypatch.setattr(prepacked, "kernel_for", lambda weight: OneDNN)
    model = nanomodels.load(WEIGHTS / "nemotron-h-tiny", quantize="int4")
    names = {name for name, module in model.named_modules() if isinstance(module, FastLinear)}
    assert "lm_head" in names and not any("out_proj" in name for name in names)
    waits = [m.wait for n, m in model.named_modules() if isinstance(m, FastLinear)]
    assert waits == [*range(OneDNN.wait, OneDNN.wait + len(waits))]
