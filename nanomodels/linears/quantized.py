"""Linears whose weights are stored in 4 or 8 bits; activations are not quantised.

    int4:  w = (code - 8) * scale + zero   code 0..15; a scale and a zero for 64 inputs of an output
    int8:  w = code * scale                code -127..127; a scale for an output
    y = x w^T + bias                       in x's dtype

A few rows of bfloat16, as in a decode step, go to torch's kernels, which read only the small
weights. The speed of many rows depends on arithmetic: there the weight is dequantised piece by
piece, and each piece is multiplied like any other weight. So it is for float32 and float16 rows,
for which torch's kernels are scalar code.

Scales and zeros are bfloat16, and the codes are chosen for these rounded numbers. The range of a
group is cut into equal steps, and each weight is rounded to the nearest step. Narrower ranges or
least squares lower the squared error by a tenth, but bring the text of the tiny models no closer.
int8 has one scale for a whole output because torch's kernel has.

Speed depends on the CPU. With AVX-512, one row takes 0.35 to 0.45 times as long as in bfloat16;
with AVX2 alone 1.4 times, so there small weights save memory but no time.

Shapes: n outputs, k inputs (both multiples of 64), g groups k / 64, r rows of x, o blocks of
outputs, w outputs of a block.
"""

import functools

import torch
from torch import nn

from nanomodels import cpu
from nanomodels.linears.stored import StoredWeight, divide, take

GROUP = 64  # inputs that share a scale and a zero
BLOCK = 64  # outputs whose int4 codes are stored together
CHUNK_WEIGHTS = 1 << 19  # weights processed at a time, which a core's cache holds
LOW_NIBBLES = 0x0F0F0F0F  # the low half of each of four bytes


class QuantizedWeight(StoredWeight):
    """Base of Int4 and Int8: a weight as codes and scales."""

    def __init__(self, shape, codes, scales):
        super().__init__(shape, codes, scales)
        self.codes, self.scales = codes, scales

    @classmethod
    def checked(cls, codes, scales):
        """Make one from tensors of a file.

        Raises ValueError for dtypes and shapes that this scheme does not have.
        """
        if codes.dim() != 2:
            raise ValueError(f"codes are {list(codes.shape)}; they must have two dimensions")
        weight = cls(codes, scales)
        n, k = weight.shape
        if n % GROUP or k % GROUP:
            raise ValueError(f"codes are for {n} x {k} weights; both must be multiples of {GROUP}")
        for what, part, (dtype, shape) in zip(
            ("codes", "scales"), (codes, scales), cls.layout(n, k), strict=True
        ):
            if part.dtype != dtype or list(part.shape) != shape:
                raise ValueError(
                    f"{what} are {part.dtype} {list(part.shape)}; they must be {dtype} {shape}"
                )
        return weight

    def dequantise(self, device, dtype):
        codes, scales = self.arranged().to(device), self.scales.to(device, dtype)
        for outputs, w in self.pieces(codes, scales):
            yield outputs, w.T


class Int4(QuantizedWeight):
    """codes (n, k / 2) uint8, scales (g, n, 2) bfloat16: scale, then zero.

    The codes of a block of w outputs are stored together, as (k, w / 2) bytes. Byte j of an input
    holds output j in its low half and output j + w/2 in its high half. In files w is 64, as torch's
    kernel for AVX-512 expects (torch 2.13, aten/src/ATen/native/cpu/int4mm_kernel.cpp), so there a
    mapped file is used as it is. The kernel for AVX2 expects 32, so there the codes are repacked.
    """

    # With this many rows or more, dequantising pays: it takes 20 ms of one core, the kernel 0.4 ms
    # a row (9216 x 3072 in bfloat16, AVX-512, torch 2.13).
    many_rows = 96

    def __init__(self, codes, scales):
        super().__init__((len(codes), 2 * codes.shape[1]), codes, scales)

    @staticmethod
    def layout(n, k):
        """dtype and shape of codes and scales."""
        return (torch.uint8, [n, k // 2]), (torch.bfloat16, [k // GROUP, n, 2])

    @classmethod
    def quantize(cls, weight):
        n, k = weight.shape
        codes, scales = (torch.empty(shape, dtype=dtype) for dtype, shape in cls.layout(n, k))
        for outputs in chunks(n, k):
            w = weight[outputs].to(torch.float32, copy=True).unflatten(1, (-1, GROUP))  # (n, g, 64)
            low, high = w.amin(-1), w.amax(-1)  # (n, g)
            zero = (low * (7 / 15) + high * (8 / 15)).bfloat16().float()
            # Wide enough for both ends, so that no weight is more than half a step away.
            scale = torch.maximum(zero / 8 - low / 8, high / 7 - zero / 7).bfloat16().float()
            step = scale.clamp(min=torch.finfo().tiny)  # scale is 0 where all weights are equal
            w = w.sub_(zero[..., None]).div_(step[..., None]).round_().clamp_(-8, 7).add_(8)
            codes[outputs] = pack(w.to(torch.uint8).flatten(1))
            scales[:, outputs] = torch.stack((scale, zero), -1).transpose(0, 1).bfloat16()
        return cls(codes, finite(scales))

    def cut(self, dim, pieces):
        n, k = self.shape
        if dim == 0:
            codes = take(unpack(self.codes), 0, pieces)  # rows of several blocks may come together
            if len(codes) % BLOCK:
                return None
            return Int4(pack(codes), take(self.scales, 1, pieces))
        groups = divide(pieces, GROUP)
        if groups is None:
            return None
        codes = take(self.codes.view(-1, k, BLOCK // 2), 1, pieces)
        return Int4(codes.view(n, -1), take(self.scales, 0, groups))

    def arranged(self, block=BLOCK):
        """The codes in blocks of 64 or 32 outputs: (o, k, w / 2)."""
        n, k = self.shape
        if block == BLOCK:
            return self.codes.view(-1, k, BLOCK // 2)
        codes = torch.empty_like(self.codes)
        for outputs in chunks(n, k):
            codes[outputs] = pack(unpack(self.codes[outputs]), block)
        return codes.view(-1, k, block // 2)

    @staticmethod
    def pieces(codes, scales):
        """Yield the weight in the dtype of scales, a block at a time: (outputs, (k, w)).

        codes as `arranged` returns them. Each number is rounded once. A block is valid only until
        the next one is taken: they share memory.
        """
        (_, k, half), g = codes.shape, len(scales)
        w, blocks = 2 * half, codes.view(torch.int32)  # (o, k, w / 8), 8 codes in each number
        scale, zero = scales.view(g, -1, 1, w, 2).permute(4, 1, 0, 2, 3).contiguous()
        # (o, g, 1, w) each; contiguous, as addcmul takes four times as long otherwise.
        count = max(1, CHUNK_WEIGHTS // (k * w))
        # Allocated once: new memory for each chunk would take longer than all else here.
        halves = blocks.new_empty(count, k, 2, w // 8)
        weights = scales.new_empty(count, g, GROUP, w)  # (o, g, 64 inputs, w outputs)
        for first in range(0, len(blocks), count):
            some = slice(first, first + count)
            b = blocks[some]
            nibbles, weight = halves[: len(b)], weights[: len(b)]
            nibbles[:, :, 0] = b
            torch.bitwise_right_shift(b, 4, out=nibbles[:, :, 1])
            nibbles.bitwise_and_(LOW_NIBBLES)
            weight.copy_(nibbles.view(torch.uint8).view_as(weight)).sub_(8)
            torch.addcmul(zero[some], weight, scale[some], out=weight)
            for i, block in enumerate(weight.flatten(1, 2), first):
                yield slice(i * w, (i + 1) * w), block

    @staticmethod
    def kernel_reads(codes):
        """Whether torch has vector code on this CPU for codes as `arranged` returned them."""
        return codes.shape[2] * 2 == kernel_block()

    @staticmethod
    def kernel(x, codes, scales):
        codes = codes.view(-1, x.shape[1] // 2)  # (n, k / 2)
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, GROUP, scales)


class Int8(QuantizedWeight):
    """codes (n, k) int8, scales (n) bfloat16."""

    many_rows = 32  # as for Int4; the kernel takes 0.6 ms a row, dequantising 8 ms

    def __init__(self, codes, scales):
        super().__init__(codes.shape, codes, scales)

    @staticmethod
    def layout(n, k):
        """dtype and shape of codes and scales."""
        return (torch.int8, [n, k]), (torch.bfloat16, [n])

    @classmethod
    def quantize(cls, weight):
        codes, scales = (
            torch.empty(shape, dtype=dtype) for dtype, shape in cls.layout(*weight.shape)
        )
        for outputs in chunks(*weight.shape):
            w = weight[outputs].to(torch.float32, copy=True)
            scale = (w.abs().amax(-1) / 127).bfloat16().float()  # (n)
            codes[outputs] = w.div_(scale.clamp(min=torch.finfo().tiny)[:, None]).round_().char()
            scales[outputs] = scale.bfloat16()
        return cls(codes, finite(scales))

    def cut(self, dim, pieces):
        scales = take(self.scales, 0, pieces) if dim == 0 else self.scales
        return Int8(take(self.codes, dim, pieces), scales)

    def arranged(self, block=BLOCK):
        """The codes, which are in no blocks."""
        return self.codes

    @staticmethod
    def pieces(codes, scales):
        """Yield the weight in the dtype of scales, some outputs at a time: (outputs, (k, w))."""
        for outputs in chunks(*codes.shape):
            yield outputs, codes[outputs].to(scales.dtype).mul_(scales[outputs, None]).T

    @staticmethod
    def kernel_reads(codes):
        """Whether torch has vector code on this CPU for int8 codes."""
        return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

    @staticmethod
    def kernel(x, codes, scales):
        return torch._weight_int8pack_mm(x, codes, scales)


SCHEMES = {"int4": Int4, "int8": Int8}


def check_scheme(scheme):
    """Raise ValueError for a scheme that does not exist; config.json may hold any JSON value."""
    if scheme not in [*SCHEMES]:
        raise ValueError(f"scheme {scheme!r} is unknown; supported: {', '.join(SCHEMES)}")


def quantize(weight, scheme):
    """Quantise a float tensor (n, k) on the CPU: an Int4 or Int8.

    Raises ValueError where a weight is not finite, or so large that a step is not.
    """
    return SCHEMES[scheme].quantize(weight)


def finite(scales):
    """The scales. ValueError if one is inf or nan: then a weight of its group is."""
    if not scales.isfinite().all():
        raise ValueError("weights must be finite to be quantised: inf, nan or one near 1e38 found")
    return scales


def chunks(n, k):
    """Slices of n outputs, in whole blocks of 64, about CHUNK_WEIGHTS weights in each."""
    step = max(1, CHUNK_WEIGHTS // (k * GROUP)) * GROUP
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]


def pack(nibbles, block=BLOCK):
    """Codes 0..15 (n, k) uint8, packed as Int4 stores them: (n, k / 2)."""
    n, k = nibbles.shape
    low, high = nibbles.view(-1, 2, block // 2, k).unbind(1)  # (o, w / 2, k)
    return (low | high << 4).mT.contiguous().view(n, k // 2)


def unpack(codes):
    """The inverse of `pack`, for blocks of 64: (n, k)."""
    n, k = len(codes), 2 * codes.shape[1]
    pairs = codes.view(-1, k, BLOCK // 2).mT  # (o, 32, k)
    return torch.stack((pairs & 15, pairs >> 4), 1).reshape(n, k)


def torch_pack(nibbles):
    """Codes 0..15 (n, k) as torch's int4 kernel on this CPU expects them: (n, k / 2) uint8."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.int(), 1)


@functools.cache
def kernel_block():
    """Outputs of a block for torch's int4 kernel on this CPU: 64, 32, or None for scalar code."""
    probe = (torch.arange(128 * 192) * 2654435761 >> 20).bitwise_and(15).view(128, 192)
    blocks = (b for b in (64, 32) if torch.equal(torch_pack(probe), pack(probe.byte(), b)))
    return next(blocks, None)


class QuantizedLinear(nn.Module):
    """nn.Linear with a quantised weight. `weight` is a placeholder until `load_weight`."""

    def __init__(self, in_features, out_features, bias, scheme):
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        weight = torch.empty(out_features, in_features, dtype=torch.bfloat16, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias
        self.register_buffer("codes", None)
        self.register_buffer("scales", None)

    def load_weight(self, weight, device, dtype):
        """Take an Int4 or Int8; quantise any other weight first. dtype is the model's."""
        if not isinstance(weight, SCHEMES[self.scheme]):
            weight = quantize(weight.to("cpu", weight.dtype), self.scheme)
        block = kernel_block() if torch.device(device).type == "cpu" else None
        self.codes = weight.arranged(block or BLOCK).to(device)
        self.scales = weight.scales.to(device, dtype)
        self.weight = None

    def forward(self, x):
        """x (..., k) -> (..., n)."""
        scheme, n = SCHEMES[self.scheme], self.out_features
        rows = x.reshape(-1, self.in_features)  # (r, k)
        few = x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(rows) < scheme.many_rows
        if few and scheme.kernel_reads(self.codes):
            y = scheme.kernel(rows.contiguous(), self.codes, self.scales.to(x.dtype))  # (r, n)
        else:
            y, rows = rows.new_empty(len(rows), n), rows.to(cpu.product_dtype(x.dtype, x.device))
            for outputs, w in scheme.pieces(self.codes, self.scales.to(rows.dtype)):
                y[:, outputs] = rows @ w
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], n)

    def extra_repr(self):
        return f"{self.in_features}, {self.out_features}, {self.scheme}"


def eligible(model, lm_head=False):
    """The linears to quantise, as (name, module): those in layers and, if asked for, the head.

    Raises ValueError if the head is asked for and shares its weight with the embedding.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linears = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(s % GROUP for s in module.weight.shape):
            if name == "lm_head" and lm_head and id(module.weight) in embeddings:
                raise ValueError("lm_head is the embedding as well, which is not quantised")
            if "layers." in name or (name == "lm_head" and lm_head):
                linears.append((name, module))
    return linears


def swap_linears(model, scheme, lm_head=False):
    """Replace each eligible linear of a model on the meta device by a QuantizedLinear.

    Returns how many there are.
    """
    check_scheme(scheme)
    linears = eligible(model, lm_head)
    for name, linear in linears:
        new = QuantizedLinear(linear.in_features, linear.out_features, linear.bias, scheme)
        model.set_submodule(name, new)
    return len(linears)


def parts_of(scheme, shape):
    """What a weight (n, k) is stored as: [(end of the name, (dtype, shape)), ...]."""
    return list(zip(("", "_scale"), SCHEMES[scheme].layout(*shape), strict=True))


def join_scales(tensors, scheme):
    """Join each quantised weight of a file with its scales: {name: tensor, Int4 or Int8}.

    Raises ValueError naming the tensor for scales without a weight, or parts that do not fit.
    """
    check_scheme(scheme)
    joined = {name: t for name, t in tensors.items() if not name.endswith(".weight_scale")}
    for scale in tensors.keys() - joined.keys():
        name = scale.removesuffix("_scale")
        if name not in tensors:
            raise ValueError(f"{scale} scales nothing: {name} is not there")
        try:
            joined[name] = SCHEMES[scheme].checked(tensors[name], tensors[scale])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return joined
