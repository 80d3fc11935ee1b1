"""The memory of this process: how much there is, what glibc keeps, and mapped pages given back."""

import ctypes
import mmap
import sys
from pathlib import Path

import torch


def keep_memory():
    """Make glibc keep the memory that a forward call frees, for the next call.

    By default each large tensor is new memory from the system, with a page fault for every 4 kB: a
    prompt of 512 tokens takes 1.1 to 1.3 times as long (d20 and a cut of Nemotron-Nano-9B-v2 in
    bfloat16; torch 2.13, glibc 2.36, in a virtual machine). This affects the whole process, so only
    the commands call it. Blocks of 256 MB or more still go back to the system, and so does free
    memory above 1 GB at the end of the heap.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        if mallopt(M_MMAP_THRESHOLD, 1 << 28):  # older versions refuse so much
            mallopt(M_TRIM_THRESHOLD, 1 << 30)


def release(tensor):
    """Unmap the pages of a tensor that lies in a mapped file; reading it maps them again.

    Does nothing if any page has content that is in no file: memory of the process itself, or a page
    that was written to. Only Linux tells which pages are; elsewhere all pages stay.
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
            entries = bytearray(file.read(8 * count))
    except OSError:
        return
    if len(entries) != 8 * count:
        return
    # Linux, Documentation/admin-guide/mm/pagemap.rst: bit 63 present, 62 swapped, 61 of a file.
    flags = torch.frombuffer(entries, dtype=torch.int64) >> 61 & 7
    if ((flags & 6 == 0) | (flags & 1 == 1)).all():
        MADV_DONTNEED = 4
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(page * first), ctypes.c_size_t(page * count), MADV_DONTNEED)


def available_memory():
    """Bytes that this process can still allocate, or None if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup/memory.max")  # of a container
        if group.is_file() and (limit := group.read_text().strip()) != "max":
            sizes.append(int(limit))
    except (OSError, ValueError):
        return None
    return min(sizes, default=None)
