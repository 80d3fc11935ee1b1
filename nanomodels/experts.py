"""The chosen experts of a layer all at once, on a GPU: the CPU need not know which they are.

On a CPU nemotron_h.MoE calls the chosen experts one after the other. On a GPU it would have to wait
for their numbers in each layer, and a CUDA graph cannot wait. So there a layer's weights are
stacked, and all choices are computed together, in one of two ways:

    grouped     choices sorted by expert: one kernel multiplies each group by its own weight
    gathered    each choice by a copy of its weight: on any GPU and in any dtype, one token a row

Shapes: r rows, k experts chosen for each, e experts, m width of what they work on, f MLP width.
"""

import torch
import torch.nn.functional as F
from torch import nn


def fits(experts, x):
    """Whether a layer's experts are called at once for x (b, t, m).

    Quantised ones are not, nor those that are trained: a stack passes no gradient to their weights.
    """
    linear = experts[0].up_proj
    if x.device.type == "cpu" or not isinstance(linear, nn.Linear):
        return False
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in experts.parameters()):
        return False
    return x.shape[1] == 1 or has_grouped(linear.weight)


def at_once(experts, u, chosen, weights):
    """The weighted sum of what the chosen experts make of each row: (r, m) float32.

    u (r, m), chosen (r, k), weights (r, k) float32.
    """
    up, down = stacked(experts, "up_proj"), stacked(experts, "down_proj")
    return (grouped if has_grouped(up) else gathered)(u, chosen, weights, up, down)


def stacked(experts, name):
    """The weights of a linear of all experts: (e, f, m) or (e, m, f).

    They are moved into one tensor in the first call, and again after .to() or a deepcopy, which
    part them; so no weight is held twice. One that is replaced by another is not noticed.
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
        torch.cuda.empty_cache()  # the old weights' memory, in pieces too small for another stack
    return first.as_strided((e, *first.shape), (first.numel(), *first.stride()))


def has_grouped(weight):
    """Whether this GPU multiplies groups of rows in one kernel: in bfloat16, on Hopper and later.

    Elsewhere torch itself asks for the groups' sizes (2.11, aten/src/ATen/native/cuda/
    GroupedBlas.cpp), and knows no rows that are not a multiple of 16 bytes.
    """
    return (
        hasattr(F, "grouped_mm")  # torch 2.10
        and weight.is_cuda
        and weight.dtype == torch.bfloat16
        and not any(size % 8 for size in weight.shape[-2:])
        and torch.cuda.get_device_capability(weight.device)[0] in (9, 10)
    )


def grouped(u, chosen, weights, up, down):
    """`at_once` with F.grouped_mm: each expert reads its weights once."""
    experts, order = chosen.flatten().sort(stable=True)  # (r k)
    ids = torch.arange(len(up), device=u.device)
    ends = torch.searchsorted(experts, ids, right=True, out_int32=True)  # (e) of each one's rows
    y = F.relu(F.grouped_mm(u[order // chosen.shape[1]], up.mT, offs=ends)).square()  # (r k, f)
    y = F.grouped_mm(y, down.mT, offs=ends)[order.argsort()]  # (r k, m), back in the rows' order
    return (y.view(*chosen.shape, -1) * weights[..., None]).sum(1)


def gathered(u, chosen, weights, up, down):
    """`at_once` with copies of the weights, of no more of them at a time than a stack has."""
    rows = max(1, len(up) // chosen.shape[1])
    y = [
        F.relu(x[:, None, None] @ up[ids].mT).square() @ down[ids].mT  # (r, k, 1, m)
        for x, ids in zip(u.split(rows), chosen.split(rows), strict=True)
    ]
    return (torch.cat(y)[:, :, 0] * weights[..., None]).sum(1)
