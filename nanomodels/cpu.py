"""Which kernels this CPU has: how it multiplies matrices fast.

The speeds of three kinds of x86 CPU differ by factors (torch 2.13): with AMX, with AVX-512, with
AVX2 alone. torch is asked which kernels there are, so the variables ATEN_CPU_CAPABILITY and
ONEDNN_MAX_CPU_ISA make a machine behave like a smaller one.
"""

import functools
import platform

import torch


@functools.cache
def has_bf16():
    """Whether oneDNN multiplies bfloat16 here: AVX-512 on x86. Elsewhere float32 is faster."""
    return is_x86() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def has_amx():
    """Whether this CPU has matrix units; with them bfloat16 is 6 times as fast as float32."""
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return avx512 and has_bf16() and torch.cpu._is_amx_tile_supported()


@functools.cache
def has_fbgemm():
    """Whether torch has FBGEMM's product of float32 with a float16 weight here."""
    return is_x86() and "fbgemm" in torch.backends.quantized.supported_engines


def is_x86():
    return platform.machine().lower() in ("x86_64", "amd64")


def product_dtype(dtype, device):
    """The dtype in which to multiply two matrices of `dtype`, for speed; sums are float32."""
    if device.type != "cpu" or (dtype == torch.bfloat16 and has_bf16()):
        return dtype
    return torch.float32
