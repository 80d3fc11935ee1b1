"""The machine: its clock, its memory, and its limits.

torch is imported late everywhere in this folder: bench.py sets the number of its threads first.
"""

import os
import time
from pathlib import Path

DEVICE = os.environ.get("NANOMODELS_BENCH_DEVICE", "cpu")  # bench.py sets it for child processes


def now():
    """Seconds, after all work of the GPU is done."""
    if DEVICE == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def proc(path, key):
    """A size in bytes from a file of /proc."""
    lines = dict(line.split(":", 1) for line in Path(path).read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


def peak_memory():
    """Most GB so far: allocated on a GPU, else in this process with its mapped files."""
    if DEVICE == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    return proc("/proc/self/status", "VmHWM") / 1e9


def limits(side, tiny):
    """A task without a side: {unit: (best rate, how it was measured)}, and "threads"."""
    import torch
    import torch.nn.functional as F

    from nanomodels import cpu

    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device here")
    torch.set_default_device(DEVICE)
    data = torch.full((1 << (24 if tiny else 30),), 0x3F, dtype=torch.uint8)  # 0.7 in any dtype
    bf16 = data.view(torch.bfloat16).view(-1, 1 << 13)
    float32 = data.view(torch.float32).view(-1, 1 << 12)
    reads = {
        "sum of int64": lambda: data.view(torch.int64).sum(),
        "sum of float32": lambda: float32.sum(),
        "torch.mv of bfloat16": lambda: torch.mv(bf16, bf16[0]),
        "torch.mv of float32": lambda: torch.mv(float32, float32[0]),
    }
    found = {"GB/s": max((data.nbytes / best(f) / 1e9, kind) for kind, f in reads.items())}
    if DEVICE == "cuda":  # bytes read and bytes written
        found = {"GB/s": (2 * data.nbytes / best(data.clone) / 1e9, "a copy")}
    for dtype in (torch.bfloat16, torch.float32):
        rates = []
        for m, k, n in [(512, 512, 512)] if tiny else [(512, 4096, 4096), (512, 4096, 16384)]:
            x, w = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
            products = {"": lambda x=x, w=w: F.linear(x, w)}
            if dtype == torch.bfloat16 and DEVICE == "cpu" and cpu.has_bf16():
                ordered = torch.ops.mkldnn._reorder_linear_weight(w, m)
                products[" ordered"] = lambda x=x, w=ordered: torch.ops.mkldnn._linear_pointwise(
                    x, w, None, "none", [], ""
                )
            rates += [
                (2 * m * n * k / best(f) / 1e12, f"{m} x {k} x {n}{way}")
                for way, f in products.items()
            ]
        found[f"{str(dtype)[6:]} TFLOP/s"] = max(rates)
    return found | {"threads": torch.get_num_threads()}


def best(call):
    """Least seconds of five calls."""
    times = []
    for _ in range(5):
        began = now()
        call()
        times.append(now() - began)
    return min(times)
