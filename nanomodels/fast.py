"""A linear that reads its bfloat16 weight twice as fast, for decoding on a CPU.

With one row a linear is bound by reading its weight. F.linear reads one as a checkpoint has it at
15 to 21 GB/s; oneDNN reads one that it has put into an order of its own at 32 to 40, nearly what
the memory gives (2 cores of an AMD EPYC with AVX-512, torch 2.13). The results are the same.

The ordered copy takes about 1 s for 1 GB and as much memory as the weight, which, where it is a
mapped file, can leave memory. That pays after some 30 tokens. So a linear orders its weight once it
has had some calls with few rows, one linear after the other, so that no token waits long; a short
answer costs nothing. Experts stay as they are: most of them are seldom read.
"""

import copy

import torch
from torch import nn

FEW_ROWS = 16  # beyond, arithmetic counts, and F.linear does it as fast
CALLS = 16  # with few rows, before the first linear orders its weight
LARGE = 1 << 20  # numbers; smaller weights stay in a cache, and oneDNN's own costs would show


class FastLinear(nn.Linear):
    """nn.Linear whose weight is ordered after `calls` calls with few rows; not while it is trained.

    A weight that is changed in place afterwards is not noticed.
    """

    def __init__(self, linear, calls):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.calls, self.ordered = calls, None

    def forward(self, x):
        """x (..., in) -> (..., out)."""
        if self.ordered is None:
            if x.numel() > FEW_ROWS * self.in_features or self.weight.requires_grad:
                return super().forward(x)
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
