"""What makes a model fast on a CPU and has nothing to do with what it computes.

Weights in order. F.linear takes a bfloat16 weight as a checkpoint has it. With one row, when a
linear is bound by reading its weight, it reads it at 15 to 21 GB/s; oneDNN reads one that it has
put into an order of its own at 32 to 48, nearly what the memory gives. With 32 rows that is 1.5
times as fast, too, and with 512 still by a tenth (2 cores of an AMD EPYC with AVX-512, torch 2.13).
The results are the same.

The ordered copy takes 0.3 to 1 s for 1 GB and as much memory as the weight, which, where it is a
mapped file, can leave memory. That pays after 10 to 30 calls with any number of rows. So a linear
orders its weight after some calls, one linear after the other, so that no token waits long; a short
answer costs nothing. Experts stay as they are: most of them are seldom read.

Memory that is kept. See `keep_memory`.
"""

import copy
import ctypes
import sys

import torch
from torch import nn

CALLS = 16  # before the first linear orders its weight
LARGE = 1 << 20  # numbers; smaller weights stay in a cache, and oneDNN's own costs would show


class FastLinear(nn.Linear):
    """nn.Linear whose weight is ordered after `calls` calls; not while it is trained.

    A change in place of a weight that is not being trained is not noticed.
    """

    def __init__(self, linear, calls):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.calls, self.ordered = calls, None

    def forward(self, x):
        """x (..., in) -> (..., out)."""
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if trained or (x.requires_grad and torch.is_grad_enabled()) or x.dtype != torch.bfloat16:
            self.ordered, self.calls = None, CALLS
            return super().forward(x)
        if self.ordered is None:
            self.calls -= 1
            if self.calls > 0:
                return super().forward(x)
            self.ordered = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)
        return torch.ops.mkldnn._linear_pointwise(x, self.ordered, self.bias, "none", [], "")

    def _apply(self, fn, recurse=True):
        """As nn.Module's, which is behind .to() and the like; the copy was of the old weight."""
        self.ordered, self.calls = None, CALLS
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo):
        """Of the linear alone: torch copies no ordered weight."""
        new = memo[id(self)] = FastLinear(self, CALLS).train(self.training)
        new.weight, new.bias = copy.deepcopy((self.weight, self.bias), memo)
        return new


def speed_up(model):
    """Put a FastLinear in place of each large linear of a bfloat16 model on a CPU, but experts."""
    if any(parameter.device.type == "cpu" for parameter in model.parameters()):
        keep_memory()
    large = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module.weight.numel() >= LARGE
        and (module.weight.dtype, module.weight.device.type) == (torch.bfloat16, "cpu")
        and ".experts." not in name
    ]
    if large and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        for i, (name, module) in enumerate(large):
            model.set_submodule(name, FastLinear(module, CALLS + i))


def keep_memory():
    """Have glibc keep what a call of the model gives back, for the next call.

    Otherwise each large tensor is new memory from the system, which costs a page fault every 4 kB:
    a prompt of 512 tokens takes 1.1 to 1.3 times as long (d20 and a cut of Nemotron-Nano-9B-v2 in
    bfloat16; torch 2.13, glibc 2.36, in a virtual machine). Blocks of 256 MB or more still go back,
    and so does what is free at the end of the heap beyond 1 GB.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        if mallopt(M_MMAP_THRESHOLD, 1 << 28):  # older ones refuse so much
            mallopt(M_TRIM_THRESHOLD, 1 << 30)
