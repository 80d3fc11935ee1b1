"""How the chosen experts of a layer are called.

On a CPU nemotron_h.MoE calls them one after another (`by_expert`). On a GPU it would have to wait
in each layer for the numbers of the chosen experts, and a CUDA graph cannot wait. So on a GPU the
weights of a layer's experts are stacked, and all choices are computed together in one of two ways:

    grouped     choices sorted by expert; one kernel multiplies each group by its own weight
    gathered    each choice by a copy of its weight; for decode steps on any GPU, in any dtype

Shapes: r rows, k chosen experts of each row, e experts, m width of their input, f MLP width.
"""

import torch
import torch.nn.functional as F
from torch import nn


def by_expert(chosen, count):
    """Which choices (r, k) fell on which expert: pairs of an expert and indices into the r * k.

    An expert that nobody chose is left out. But a graph of torch.compile or torch.export is the
    same for all numbers, so there each of the `count` experts has its pair, maybe with no index.
    """
    if torch.compiler.is_compiling():
        return [(i, (chosen.flatten() == i).nonzero()[:, 0]) for i in range(count)]
    ids, order = chosen.flatten().sort(stable=True)
    ids, counts = ids.unique_consecutive(return_counts=True)
    return zip(ids.tolist(), order.split(counts.tolist()), strict=True)


def can_stack(experts, x):
    """Whether the experts of a layer are computed together for x (b, t, m).

    Not if they are quantised or on other ranks (linears/parallel.py), and not if they are trained:
    the stack has no gradients. Nor in a graph of torch.compile, which cannot move weights.
    """
    linear = experts[-1].up_proj
    if x.device.type == "cpu" or not isinstance(linear, nn.Linear):
        return False
    if torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in experts.parameters()):
        return False
    return x.shape[1] == 1 or has_grouped(linear.weight)


def at_once(experts, u, chosen, weights):
    """The weighted sum of the chosen experts' outputs for each row: (r, m) float32.

    u (r, m), chosen (r, k), weights (r, k) float32.
    """
    up, down = stacked(experts, "up_proj"), stacked(experts, "down_proj")
    return (grouped if has_grouped(up) else gathered)(u, chosen, weights, up, down)


def stacked(experts, name):
    """The weights of a linear of all experts: (e, f, m) or (e, m, f).

    The first call moves them into one tensor, so that no weight is in memory twice. So does the
    first call after .to() or a deepcopy, which separate them. A weight that is replaced later is
    not noticed.
    """
    e, linears = len(experts), [getattr(experts[i], name) for i in (0, -1)]
    first, last = (linear.weight for linear in linears)
    distance = last.data_ptr() - first.data_ptr()
    if (first.untyped_storage().nbytes(), distance) != (e * first.nbytes, (e - 1) * first.nbytes):
        linears = [getattr(expert, name) for expert in experts]
        with torch.inference_mode(first.is_inference()), torch.no_grad():
            stack = torch.stack([linear.weight for linear in linears])
            for linear, weight in zip(linears, stack, strict=True):
                linear.weight.data = weight
        torch.cuda.empty_cache()  # the old weights were in pieces too small for the next stack
    return first.as_strided((e, *first.shape), (first.numel(), *first.stride()))


def has_grouped(weight):
    """Whether this GPU has a kernel for grouped products: in bfloat16, on Hopper and Blackwell.

    On others torch waits for the sizes of the groups (2.11, aten/src/ATen/native/cuda/
    GroupedBlas.cpp). Rows must be a multiple of 16 bytes.
    """
    return (
        hasattr(F, "grouped_mm")  # torch 2.10
        and weight.is_cuda
        and weight.dtype == torch.bfloat16
        and not any(size % 8 for size in weight.shape[-2:])
        and torch.cuda.get_device_capability(weight.device)[0] in (9, 10)
    )


def grouped(u, chosen, weights, up, down):
    """`at_once` with F.grouped_mm: each expert's weights are read once."""
    experts, order = chosen.flatten().sort(stable=True)  # (r k)
    ids = torch.arange(len(up), device=u.device)
    ends = torch.searchsorted(
        experts, ids, right=True, out_int32=True
    )  # (e) where each expert's rows end
    y = F.relu(F.grouped_mm(u[order // chosen.shape[1]], up.mT, offs=ends)).square()  # (r k, f)
    y = F.grouped_mm(y, down.mT, offs=ends)[order.argsort()]  # (r k, m), back in the rows' order
    return (y.view(*chosen.shape, -1) * weights[..., None]).sum(1)


def gathered(u, chosen, weights, up, down):
    """`at_once` with copies of the weights, never more at a time than the stack itself."""
    rows = max(1, len(up) // chosen.shape[1])
    y = [
        F.relu(x[:, None, None] @ up[ids].mT).square() @ down[ids].mT  # (r, k, 1, m)
        for x, ids in zip(u.split(rows), chosen.split(rows), strict=True)
    ]
    return (torch.cat(y)[:, :, 0] * weights[..., None]).sum(1)
