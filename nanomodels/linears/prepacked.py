"""Linears for CPUs: weights prepacked for the kernel that is fastest on this kind of CPU.

`load` replaces each large nn.Linear by a FastLinear, which computes the same product:

    weight      CPU                  kernel    products              memory of the packed weight
    bfloat16    x86 with AVX-512     OneDNN    bfloat16              2 bytes a weight
    bfloat16    other x86            FBGEMM    float16 x float32     2 bytes a weight
    float16     x86                  FBGEMM    float16 x float32     2 bytes a weight
    float32, and all on other CPUs   F.linear takes the weight as it is

Sums are float32 everywhere. float16 represents every bfloat16 number from 6e-5 to 65504 exactly. A
weight that float16 does not represent well stays with F.linear.

For one row, F.linear reads a bfloat16 weight at 15 to 28 GB/s, OneDNN at 32 to 51. For many rows on
a CPU without AVX-512, F.linear computes 32 GFLOP/s, FBGEMM 155 (2 cores, torch 2.13).

Prepacking 1 GB takes OneDNN 0.3 to 1 s and FBGEMM 10 s. So a linear prepacks its weight only after
some work, when that pays. The linears do so one after the other, so no token waits long, and a
short answer costs nothing. The pages of a mapped checkpoint are unmapped, so the packed weight
takes the place of the original in memory.
"""

import copy

import torch
from torch import nn

from nanomodels import cpu
from nanomodels.linears import memory

LARGE = 1 << 20  # weights; a smaller linear is in the CPU's cache, and the kernel's call would show
CHUNK_WEIGHTS = 1 << 26  # weights packed at a time, so that few are in memory twice


class Kernel:
    """y = x w^T + bias with a packed weight. The pages of a mapped weight are unmapped."""

    def __init__(self, weight, bias):
        rows = max(1, CHUNK_WEIGHTS // weight.shape[1])
        self.pieces = []
        for first in range(0, len(weight), rows):
            some = slice(first, first + rows)
            self.pieces.append((self.pack(weight[some]), None if bias is None else bias[some]))
            memory.release(weight[some])

    def __call__(self, x):
        """x (..., in) -> (..., out)."""
        y = [self.product(x, weight, bias) for weight, bias in self.pieces]
        return torch.cat(y, -1) if len(y) > 1 else y[0]


class OneDNN(Kernel):
    """A bfloat16 weight in oneDNN's blocked layout."""

    wait = 16  # the work of F.linear after which prepacking pays

    @staticmethod
    def pack(weight):
        return torch.ops.mkldnn._reorder_linear_weight(weight, 1)

    @staticmethod
    def product(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def fits(weight):
        return True

    @staticmethod
    def work(rows):
        """The work of a call of F.linear: the same for any number of rows."""
        return 1


class FBGEMM(Kernel):
    """A float16 weight in FBGEMM's layout, x and sums in float32."""

    wait = 256

    @staticmethod
    def pack(weight):
        return torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    @staticmethod
    def product(x, weight, bias):
        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        y = torch.ops.quantized.linear_dynamic_fp16(rows, weight)
        y = y if bias is None else y + bias
        return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def fits(weight):
        """Whether float16 represents each row to 12 bits of its largest number, without overflow.

        float16 rounds numbers below 6e-5 by up to 2^-25.
        """
        low, high = weight.aminmax(dim=1)
        largest = torch.maximum(-low, high)  # of each row
        good = (largest <= torch.finfo(torch.float16).max) & ((largest >= 2**-13) | (largest == 0))
        return weight.dtype == torch.float16 or bool(good.all())

    @staticmethod
    def work(rows):
        """The work of a call of F.linear: its rows, because each of them is slow."""
        return rows


def kernel_for(weight):
    """The kernel for a weight on this CPU, by the table above; None for F.linear."""
    if weight.device.type != "cpu":
        return None
    if weight.dtype == torch.bfloat16 and cpu.has_bf16():
        return OneDNN
    if weight.dtype in (torch.bfloat16, torch.float16) and cpu.has_fbgemm():
        return FBGEMM
    return None


class FastLinear(nn.Linear):
    """nn.Linear that prepacks its weight for a kernel after some work, but not in training.

    `wait` is the work that is left until then. After prepacking, a change of the weight in place is
    not noticed, unless the weight is trained.
    """

    def __init__(self, linear, kernel, wait):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.kernel, self.wait, self.packed = kernel, wait, None

    def forward(self, x):
        """x (..., in) -> (..., out)."""
        if torch.compiler.is_compiling():  # the kernels are no part of a graph
            return super().forward(x)
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if trained or (x.requires_grad and torch.is_grad_enabled()) or x.dtype != self.weight.dtype:
            self.unpack()
        elif self.kernel is not None and self.packed is None:
            self.wait -= self.kernel.work(x.numel() // self.in_features)
            if self.wait <= 0:
                self.prepack()
        return super().forward(x) if self.packed is None else self.packed(x)

    def prepack(self):
        """Pack the weight for the kernel, if it fits."""
        if self.kernel.fits(self.weight):
            self.packed = self.kernel(self.weight, self.bias)
        else:
            self.kernel = None

    def unpack(self):
        """Start again with the weight as it is now."""
        self.packed, self.kernel = None, kernel_for(self.weight)
        self.wait = self.kernel.wait if self.kernel else 0

    def _apply(self, fn, recurse=True):
        """What nn.Module calls for .to() and the like; the packed weight is the old one."""
        super()._apply(fn, recurse)
        self.unpack()
        return self

    def __deepcopy__(self, memo):
        """Copy without the packed weight, which torch cannot copy."""
        new = memo[id(self)] = FastLinear(self, self.kernel, self.wait).train(self.training)
        new.weight, new.bias = copy.deepcopy((self.weight, self.bias), memo)
        return new


def prepack_linears(model):
    """Replace each large linear that this CPU has a kernel for by a FastLinear."""
    count = 0
    for name, module in list(model.named_modules()):
        large = type(module) is nn.Linear and module.weight.numel() >= LARGE
        if large and (kernel := kernel_for(module.weight)) is not None:
            model.set_submodule(name, FastLinear(module, kernel, kernel.wait + count))
            count += ".experts." not in name  # experts are called at different times anyway
