"""What this CPU multiplies fast, and the memory of this process.

Three kinds of x86 CPU differ by factors (torch 2.13): with AMX, with AVX-512, with AVX2 alone.
Whether a kernel is there is asked of torch, so that ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA make
a machine behave as a smaller one.
"""

import ctypes
import functools
import mmap
import platform
import sys
from pathlib import Path

import torch


@functools.cache
def has_bf16():
    """Whether oneDNN multiplies bfloat16 here: AVX-512 on x86. Elsewhere float32 is faster."""
    return is_x86() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def has_amx():
    """Whether there are matrix units, with which bfloat16 is 6 times as fast as float32."""
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return avx512 and has_bf16() and torch.cpu._is_amx_tile_supported()


@functools.cache
def has_fbgemm():
    """Whether FBGEMM's product of float32 with a float16 weight is there."""
    return is_x86() and "fbgemm" in torch.backends.quantized.supported_engines


def is_x86():
    return platform.machine().lower() in ("x86_64", "amd64")


def product_dtype(dtype, device):
    """The dtype in which to multiply two matrices of `dtype`, for speed; sums are float32."""
    if device.type != "cpu" or (dtype == torch.bfloat16 and has_bf16()):
        return dtype
    return torch.float32


def keep_memory():
    """Make glibc keep the memory that a forward call frees, for the next call.

    Otherwise each large tensor is new memory from the system, at a page fault for every 4 kB: a
    prompt of 512 tokens takes 1.1 to 1.3 times as long (d20 and a cut of Nemotron-Nano-9B-v2 in
    bfloat16; torch 2.13, glibc 2.36, in a virtual machine). It concerns the whole process, so only
    the commands call it. Blocks of 256 MB or more still go back, and so does all above 1 GB that is
    free at the end of the heap.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        if mallopt(M_MMAP_THRESHOLD, 1 << 28):  # older versions refuse so much
            mallopt(M_TRIM_THRESHOLD, 1 << 30)


def release(tensor):
    """Unmap the pages of a tensor that is part of a mapped file; reading it maps them again.

    Does nothing where any page holds what no file holds: memory of the process itself, or a page
    that was written to. Linux alone says so; elsewhere the pages stay.
    """
    if tensor.device.type != "cpu" or sys.platform != "linux" or not tensor.is_contiguous():
        return
    page = mmap.PAGESIZE
    first = -(-tensor.data_ptr() // page)
    count = (tensor.data_ptr() + tensor.nbytes) // page - first
    if count <= 0:
        return
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(8 * first)
            found = bytearray(file.read(8 * count))
    except OSError:
        return
    if len(found) != 8 * count:
        return
    # Linux, Documentation/admin-guide/mm/pagemap.rst: bit 63 present, 62 swapped, 61 of a file.
    flags = torch.frombuffer(found, dtype=torch.int64) >> 61 & 7
    if ((flags & 6 == 0) | (flags & 1 == 1)).all():
        MADV_DONTNEED = 4
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(page * first), ctypes.c_size_t(page * count), MADV_DONTNEED)


def available_memory():
    """Bytes that this process can still take, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup/memory.max")  # of a container
        if group.is_file() and (limit := group.read_text().strip()) != "max":
            sizes.append(int(limit))
    except (OSError, ValueError):
        return None
    return min(sizes, default=None)
