"""Linears whose weights are stored in 4 or 8 bits; activations are not quantised.

    int4:  w = (q - 8) * scale + zero     q 0..15; a scale and a zero for 64 inputs of an output
    int8:  w = q * scale                  q -127..127; a scale for an output
    y = x w^T + bias                      in x's dtype

Few rows of bfloat16, as in decoding, go to torch's kernels, which read only the small weights. Many
rows are bound by arithmetic: then the weight is dequantised piece by piece, and each piece
multiplied as any other. So are float32 and float16 rows, for which torch's kernels are scalar code.

Scales and zeros are bfloat16, and codes are chosen for these rounded numbers. A group's range is
cut into equal steps, and each weight is rounded to the nearest: narrower ranges and least squares
bring the squared error down by a tenth, and the text of the tiny models no closer. int8 has one
scale for a whole output because torch's kernel has.

Speed depends on the CPU: with AVX-512 one row takes 0.35 to 0.45 times as long as in bfloat16, with
AVX2 alone 1.4 times; small weights save memory there, not time.

Shapes: n outputs, k inputs (both multiples of 64), g groups k / 64, r rows of x, o blocks of
outputs, w outputs of a block.
"""

import functools

import torch
from torch import nn

from nanomodels import cpu

SCHEMES = ("int4", "int8")
GROUP = 64  # inputs that share a scale and a zero
BLOCK = 64  # outputs whose int4 codes are stored together
SLAB = 1 << 19  # weights worked on at a time, which a core's cache holds
LOW_NIBBLES = 0x0F0F0F0F  # the low half of each of four bytes


class Packed:
    """A quantised weight (n, k) as stored; to loading.fill it looks like a bfloat16 tensor."""

    dtype = torch.bfloat16

    def __init__(self, codes, scales):
        self.codes, self.scales = self.stored = codes, scales
        self.nbytes = codes.nbytes + scales.nbytes  # as stored

    @classmethod
    def from_parts(cls, codes, scales):
        """Raises ValueError for dtypes and shapes that this scheme does not have."""
        if codes.dim() != 2:
            raise ValueError(f"codes are {list(codes.shape)}; they must have two dimensions")
        packed = cls(codes, scales)
        n, k = packed.shape
        if n % GROUP or k % GROUP:
            raise ValueError(f"codes are for {n} x {k} weights; both must be multiples of {GROUP}")
        for what, part, (dtype, shape) in zip(
            ("codes", "scales"), (codes, scales), cls.parts(n, k), strict=True
        ):
            if part.dtype != dtype or list(part.shape) != shape:
                raise ValueError(
                    f"{what} are {part.dtype} {list(part.shape)}; they must be {dtype} {shape}"
                )
        return packed

    def dim(self):
        return 2

    def numel(self):
        return self.shape.numel()

    def to(self, device, dtype):
        """The weight as a tensor (n, k)."""
        w = torch.empty(self.shape, dtype=dtype, device=device)
        codes, scales = self.arranged().to(device), self.scales.to(device, dtype)
        for outputs, piece in self.pieces(codes, scales):
            w[outputs] = piece.T
        return w


class Int4(Packed):
    """codes (n, k / 2) uint8, scales (g, n, 2) bfloat16: scale, then zero.

    The codes of a block of w outputs are stored together as (k, w / 2) bytes; byte j of an input
    has output j in its low half, output j + w/2 in its high half. In files w is 64, as torch's
    kernel for AVX-512 wants it (torch 2.13, aten/src/ATen/native/cpu/int4mm_kernel.cpp): there a
    mapped file is used as it is. The kernel for AVX2 wants 32: there the codes are repacked.
    """

    # From so many rows on, dequantising pays: it takes 20 ms of one core, the kernel 0.4 ms a row
    # (9216 x 3072 in bfloat16, AVX-512, torch 2.13).
    many_rows = 96

    @staticmethod
    def parts(n, k):
        """dtype and shape of codes and scales."""
        return (torch.uint8, [n, k // 2]), (torch.bfloat16, [k // GROUP, n, 2])

    @property
    def shape(self):
        n, half = self.codes.shape
        return torch.Size((n, 2 * half))

    @classmethod
    def quantize(cls, weight):
        n, k = weight.shape
        codes, scales = (torch.empty(shape, dtype=dtype) for dtype, shape in cls.parts(n, k))
        for outputs in slabs(n, k):
            w = weight[outputs].to(torch.float32, copy=True).unflatten(1, (-1, GROUP))  # (n, g, 64)
            low, high = w.amin(-1), w.amax(-1)  # (n, g)
            zero = (low * (7 / 15) + high * (8 / 15)).bfloat16().float()
            # Wide enough for both ends, so that no weight is more than half a step away.
            scale = torch.maximum(zero / 8 - low / 8, high / 7 - zero / 7).bfloat16().float()
            step = scale.clamp(min=torch.finfo().tiny)  # 0 where all are the same
            q = w.sub_(zero[..., None]).div_(step[..., None]).round_().clamp_(-8, 7).add_(8)
            codes[outputs] = pack(q.to(torch.uint8).flatten(1))
            scales[:, outputs] = torch.stack((scale, zero), -1).transpose(0, 1).bfloat16()
        return cls(codes, finite(scales))

    def arranged(self, block=BLOCK):
        """The codes in blocks of 64 or 32 outputs: (o, k, w / 2)."""
        n, k = self.shape
        if block == BLOCK:
            return self.codes.view(-1, k, BLOCK // 2)
        codes = torch.empty_like(self.codes)
        for outputs in slabs(n, k):
            codes[outputs] = pack(unpack(self.codes[outputs]), block)
        return codes.view(-1, k, block // 2)

    @staticmethod
    def pieces(codes, scales):
        """The weight in the dtype of scales, a block at a time: (outputs, (k, w)).

        codes as `arranged` gives them. Each number is rounded once. A piece is overwritten by
        those that come after it.
        """
        (_, k, half), g = codes.shape, len(scales)
        w, blocks = 2 * half, codes.view(torch.int32)  # (o, k, w / 8), 8 codes in each number
        scale, zero = scales.view(g, -1, 1, w, 2).permute(4, 1, 0, 2, 3).contiguous()
        # (o, g, 1, w) each; contiguous, as addcmul takes four times as long otherwise.
        count = max(1, SLAB // (k * w))
        # Made once: new memory for each step would take longer than all else here.
        halves = blocks.new_empty(count, k, 2, w // 8)
        whole = scales.new_empty(count, g, GROUP, w)  # (o, g, 64 inputs, w outputs)
        for first in range(0, len(blocks), count):
            some = slice(first, first + count)
            b = blocks[some]
            q, weight = halves[: len(b)], whole[: len(b)]
            q[:, :, 0] = b
            torch.bitwise_right_shift(b, 4, out=q[:, :, 1])
            q.bitwise_and_(LOW_NIBBLES)
            weight.copy_(q.view(torch.uint8).view_as(weight)).sub_(8)
            torch.addcmul(zero[some], weight, scale[some], out=weight)
            for i, block in enumerate(weight.flatten(1, 2), first):
                yield slice(i * w, (i + 1) * w), block

    @staticmethod
    def kernel_reads(codes):
        """Whether torch has vector code on this CPU for codes as `arranged` gave them."""
        return codes.shape[2] * 2 == kernel_block()

    @staticmethod
    def kernel(x, codes, scales):
        codes = codes.view(-1, x.shape[1] // 2)  # (n, k / 2)
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, GROUP, scales)


class Int8(Packed):
    """codes (n, k) int8, scales (n) bfloat16."""

    many_rows = 32  # as of Int4; the kernel takes 0.6 ms a row, dequantising 8 ms

    @staticmethod
    def parts(n, k):
        """dtype and shape of codes and scales."""
        return (torch.int8, [n, k]), (torch.bfloat16, [n])

    @property
    def shape(self):
        return self.codes.shape

    @classmethod
    def quantize(cls, weight):
        codes, scales = (
            torch.empty(shape, dtype=dtype) for dtype, shape in cls.parts(*weight.shape)
        )
        for outputs in slabs(*weight.shape):
            w = weight[outputs].to(torch.float32, copy=True)
            scale = (w.abs().amax(-1) / 127).bfloat16().float()  # (n)
            codes[outputs] = w.div_(scale.clamp(min=torch.finfo().tiny)[:, None]).round_().char()
            scales[outputs] = scale.bfloat16()
        return cls(codes, finite(scales))

    def arranged(self, block=BLOCK):
        """The codes, which have no blocks."""
        return self.codes

    @staticmethod
    def pieces(codes, scales):
        """The weight in the dtype of scales, some outputs at a time: (outputs, (k, outputs))."""
        for outputs in slabs(*codes.shape):
            yield outputs, codes[outputs].to(scales.dtype).mul_(scales[outputs, None]).T

    @staticmethod
    def kernel_reads(codes):
        """Whether torch has vector code for them on this CPU."""
        return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

    @staticmethod
    def kernel(x, codes, scales):
        return torch._weight_int8pack_mm(x, codes, scales)


KINDS = {"int4": Int4, "int8": Int8}


def quantize(weight, scheme):
    """Int4 or Int8 of a float tensor (n, k) on the CPU.

    Raises ValueError where a weight is not finite, or so large that a step is not.
    """
    return KINDS[scheme].quantize(weight)


def finite(scales):
    """The scales, which inf or nan among a group's weights would have made so."""
    if not scales.isfinite().all():
        raise ValueError("weights must be finite to be quantised: inf, nan or one near 1e38 found")
    return scales


def slabs(n, k):
    """Slices of n outputs, in whole blocks of 64."""
    step = max(1, SLAB // (k * GROUP)) * GROUP
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]


def pack(q, block=BLOCK):
    """Codes 0..15 (n, k) uint8 as Int4 stores them: (n, k / 2)."""
    n, k = q.shape
    low, high = q.view(-1, 2, block // 2, k).unbind(1)  # (o, w / 2, k)
    return (low | high << 4).mT.contiguous().view(n, k // 2)


def unpack(codes):
    """The codes (n, k) that `pack` was given, of blocks of 64."""
    n, k = len(codes), 2 * codes.shape[1]
    bytes = codes.view(-1, k, BLOCK // 2).mT  # (o, 32, k)
    return torch.stack((bytes & 15, bytes >> 4), 1).reshape(n, k)


def torch_pack(q):
    """Codes (n, k) as torch's int4 kernel on this machine wants them: (n, k / 2) uint8."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), 1)


@functools.cache
def kernel_block():
    """The outputs of a block for torch's int4 kernel: 64, 32, or None where it is scalar code."""
    probe = (torch.arange(128 * 192) * 2654435761 >> 20).bitwise_and(15).view(128, 192)
    blocks = (b for b in (64, 32) if torch.equal(torch_pack(probe), pack(probe.byte(), b)))
    return next(blocks, None)


class QuantizedLinear(nn.Module):
    """nn.Linear of a quantised weight, given by `take`; until then `weight` stands for it."""

    def __init__(self, in_features, out_features, bias, scheme):
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        weight = torch.empty(out_features, in_features, dtype=torch.bfloat16, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias
        self.register_buffer("codes", None)
        self.register_buffer("scales", None)

    def take(self, packed, device, dtype):
        """Hold a weight, Int4 or Int8; any other is quantised first. dtype is that of the model."""
        if not isinstance(packed, KINDS[self.scheme]):
            packed = quantize(packed.to("cpu", packed.dtype), self.scheme)
        block = kernel_block() if torch.device(device).type == "cpu" else None
        self.codes = packed.arranged(block or BLOCK).to(device)
        self.scales = packed.scales.to(device, dtype)
        self.weight = None

    def forward(self, x):
        """x (..., k) -> (..., n)."""
        kind, n = KINDS[self.scheme], self.out_features
        rows = x.reshape(-1, self.in_features)  # (r, k)
        few = x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(rows) < kind.many_rows
        if few and kind.kernel_reads(self.codes):
            y = kind.kernel(rows.contiguous(), self.codes, self.scales.to(x.dtype))  # (r, n)
        else:
            y, rows = rows.new_empty(len(rows), n), rows.to(cpu.product_dtype(x.dtype, x.device))
            for outputs, w in kind.pieces(self.codes, self.scales.to(rows.dtype)):
                y[:, outputs] = rows @ w
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], n)

    def extra_repr(self):
        return f"{self.in_features}, {self.out_features}, {self.scheme}"


def eligible(model, lm_head=False):
    """The linears to quantise, as (name, module): those of the layers and, if asked, the head.

    Raises ValueError where the head is asked for and is the embedding, too.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(s % GROUP for s in module.weight.shape):
            if name == "lm_head" and lm_head and id(module.weight) in embeddings:
                raise ValueError("lm_head is the embedding as well, which is not quantised")
            if "layers." in name or (name == "lm_head" and lm_head):
                found.append((name, module))
    return found


def replace(model, scheme, lm_head=False):
    """Put a QuantizedLinear in place of each eligible linear of a model on the meta device.

    Returns how many there are.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r} is unknown; supported: {', '.join(SCHEMES)}")
    linears = eligible(model, lm_head)
    for name, linear in linears:
        new = QuantizedLinear(linear.in_features, linear.out_features, linear.bias, scheme)
        model.set_submodule(name, new)
    return len(linears)


def parts_of(scheme, shape):
    """What a weight (n, k) is stored as: [(end of the name, (dtype, shape)), ...]."""
    return list(zip(("", "_scale"), KINDS[scheme].parts(*shape), strict=True))


def gather(tensors, scheme):
    """Join each quantised weight of a file with its scales: {name: tensor, Int4 or Int8}.

    Raises ValueError naming the tensor for scales without a weight, or parts that do not fit.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r} is unknown; supported: {', '.join(SCHEMES)}")
    gathered = {name: t for name, t in tensors.items() if not name.endswith(".weight_scale")}
    for scale in tensors.keys() - gathered.keys():
        name = scale.removesuffix("_scale")
        if name not in tensors:
            raise ValueError(f"{scale} scales nothing: {name} is not there")
        try:
            gathered[name] = KINDS[scheme].from_parts(tensors[name], tensors[scale])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return gathered
