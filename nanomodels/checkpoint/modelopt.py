"""The quantised releases of NVIDIA ModelOpt, read as bfloat16: FP8, NVFP4 and a mixture of both.

    FP8:    w = fp8 * scale                     X.weight (n, k) e4m3, X.weight_scale one float32
    NVFP4:  w = fp4 * block scale * scale       X.weight (n, k/2) bytes: two e2m1, the low four bits
                                                are the even column; X.weight_scale (n, k/16) e4m3,
                                                X.weight_scale_2 one float32

    e4m3:   sign, 4 bits of exponent, 3 of mantissa; up to 448, no infinity
    e2m1:   sign, 2 bits of exponent, 1 of mantissa; up to 6

The dtypes of the tensors say how each weight is stored; what config.json says is only checked. What
was measured to quantise activations and the cache (input_scale, k_scale, v_scale) is not used:
both stay as they are here, so the results are not those of a GPU that rounds them as well.

Shapes: n rows (out), k columns (in).

Sources: NVIDIA/Model-Optimizer @0030d2b modelopt/torch/export/convert_hf_config.py (the keys) and
quant_utils.py (the tensors); vllm-project/vllm @00155cd model_executor/layers/quantization/
modelopt.py (the spellings); the tensors of NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4 @6efb4a2a.
"""

import torch

from nanomodels.text.files import read_json

# ModelOpt writes the first; the others are vLLM's and SGLang's names for what quant_algo says.
METHODS = ("modelopt", "modelopt_fp8", "modelopt_fp4", "modelopt_mixed")
NVFP4_ALGOS = ("NVFP4", "W4A16_NVFP4")  # stored alike: the second leaves activations alone
ALGOS = ("FP8", *NVFP4_ALGOS)
GROUP = 16  # columns that share a block scale
UNUSED = ("input_scale", "k_scale", "v_scale")
# By code; the upper eight are the negative ones.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
SLICE = 2**18  # numbers unpacked at a time: 1 MiB of float32, which stays in a CPU's cache


def recognise(folder, quantization_config):
    """Whether a folder is a ModelOpt release; quantization_config is config.json's, or None.

    Where config.json has none, hf_quant_config.json is asked, if there is one.
    Raises ValueError naming file, key and value for a quantisation that this file does not read.
    """
    if quantization_config is not None:
        path = folder / "config.json"
        recipe = table(path, "quantization_config", quantization_config)
        require(path, "quantization_config.quant_method", recipe.get("quant_method"), METHODS)
    else:
        path = folder / "hf_quant_config.json"
        if not path.is_file():
            return False
        recipe = read_json(path)
        producer = table(path, "producer", recipe.get("producer"))
        require(path, "producer.name", producer.get("name"), METHODS[:1])
    if "quantization" in recipe:  # hf_quant_config.json has it so, and vLLM reads either in both
        recipe = table(path, "quantization", recipe["quantization"])

    check_algo(path, "", recipe, (*ALGOS, "MIXED_PRECISION"))
    if recipe["quant_algo"].upper() == "MIXED_PRECISION":
        layers = table(path, "quantized_layers", recipe.get("quantized_layers"))
        for name, layer in layers.items():
            key = f"quantized_layers.{name}"
            check_algo(path, f"{key}.", table(path, key, layer), ALGOS)
    return True


def check_algo(path, prefix, recipe, supported):
    """Refuse a quant_algo that is not supported, or an NVFP4 with another group_size than 16."""
    algo = recipe.get("quant_algo")
    algo = algo.upper() if isinstance(algo, str) else algo  # as vLLM does
    require(path, f"{prefix}quant_algo", algo, supported)
    if algo in NVFP4_ALGOS and recipe.get("group_size") is not None:
        require(path, f"{prefix}group_size", recipe["group_size"], (GROUP,))


def require(path, key, value, supported):
    """Raise ValueError for a value that is not among the supported ones."""
    if value not in supported:
        names = ", ".join(map(str, supported))
        # A list or an object can be megabytes long.
        raise ValueError(f"{path}: {key} {value!r:.80} is not supported; supported: {names}")


def table(path, key, value):
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key} is {value!r:.80}; it must be an object")
    return value


class Quantised:
    """A weight (n, k) as stored; to loading.fill it looks like a bfloat16 tensor."""

    dtype = torch.bfloat16

    def __init__(self, shape, *parts):
        self.shape = torch.Size(shape)
        self.stored = parts
        self.nbytes = sum(part.nbytes for part in parts)

    def dim(self):
        return len(self.shape)

    def numel(self):
        return self.shape.numel()

    def to(self, device, dtype):
        """The weight as a tensor (n, k): computed in float32, then rounded once to dtype."""
        n, k = self.shape
        w = torch.empty(n, k, dtype=dtype, device=device)
        step = max(1, SLICE // k)
        for first in range(0, n, step):
            piece = slice(first, first + step)
            w[piece] = self.rows(piece, device)
        return w


class FP8(Quantised):
    """weight (n, k) float8_e4m3fn, scale () or (1) float32."""

    def __init__(self, weight, scale):
        super().__init__(weight.shape, weight, scale)
        self.weight, self.scale = weight, scale

    def rows(self, piece, device):
        codes = self.weight[piece].view(torch.uint8).to(device)
        # By a table of all 256 codes: 4 times as fast on a CPU as .float() (torch 2.13).
        e4m3 = torch.arange(256, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
        values = e4m3.float() * self.scale.to(device)
        return values.index_select(0, codes.flatten().int()).view(codes.shape)


class NVFP4(Quantised):
    """weight (n, k/2) uint8, scale (n, k/16) float8_e4m3fn, scale_2 () or (1) float32."""

    def __init__(self, weight, scale, scale_2):
        n, half = weight.shape
        super().__init__((n, 2 * half), weight, scale, scale_2)
        self.weight, self.scale, self.scale_2 = weight, scale, scale_2

    def rows(self, piece, device):
        codes, scale = self.weight[piece].to(device), self.scale[piece].to(device)
        # By a table of both numbers of a byte, which as one int64 are gathered 4 times as fast.
        e2m1 = torch.tensor(E2M1, dtype=torch.float32, device=device)
        pairs = torch.stack((e2m1.repeat(16), e2m1.repeat_interleave(16)), dim=-1)  # (256, 2)
        w = pairs.view(torch.int64).flatten().index_select(0, codes.flatten().int())
        w = w.view(torch.float32).view(*scale.shape, GROUP)  # (n, k/16, 16)
        # In this order the first product is exact, and float32 rounds once.
        w = w.mul_(scale.float()[..., None]).mul_(self.scale_2.to(device))
        return w.flatten(1)  # (n, k)


def gather(tensors):
    """Take up each quantised weight's scales into it: {name: tensor, FP8 or NVFP4}, and the bytes
    of each scale that is not used: {name: bytes}.

    Raises ValueError naming the tensor for a quantised weight without its scales, for a scale
    without its weight, and for a shape or dtype that ModelOpt does not write.
    """
    gathered, scales, ignored = {}, {}, {}
    for name, tensor in tensors.items():
        leaf = name.rpartition(".")[2]
        if leaf in UNUSED:
            ignored[name] = tensor.nbytes
        elif leaf in ("weight_scale", "weight_scale_2"):
            scales[name] = tensor
        else:
            gathered[name] = tensor
    for name, tensor in gathered.items():
        if name.endswith(".weight") and tensor.dtype == torch.float8_e4m3fn:
            matrix(name, tensor)
            gathered[name] = FP8(tensor, take_number(scales, f"{name}_scale", name))
        elif name.endswith(".weight") and tensor.dtype == torch.uint8:
            n, half = matrix(name, tensor)
            if 2 * half % GROUP:
                raise ValueError(f"{name} packs {2 * half} columns, not a multiple of {GROUP}")
            scale = take(scales, f"{name}_scale", name)
            shape = [n, 2 * half // GROUP]
            if scale.dtype != torch.float8_e4m3fn or list(scale.shape) != shape:
                raise ValueError(
                    f"{name}_scale is {described(scale)}; of {name} {list(tensor.shape)} it must "
                    f"be float8_e4m3fn {shape}, a scale for {GROUP} columns"
                )
            gathered[name] = NVFP4(tensor, scale, take_number(scales, f"{name}_scale_2", name))
    for name in scales:
        weight = name[: name.rindex("_scale")]
        found = described(tensors[weight]) if weight in tensors else "not there"
        raise ValueError(
            f"{name} scales nothing: {weight} is {found}; float8_e4m3fn has a weight_scale, "
            "uint8 a weight_scale and a weight_scale_2"
        )
    return gathered, ignored


def matrix(name, tensor):
    """The sizes of a quantised weight, which must have two dimensions."""
    if tensor.dim() != 2:
        raise ValueError(f"{name} is {described(tensor)}; quantised weights have two dimensions")
    return tensor.shape


def take(scales, name, weight):
    """Remove a scale from those found."""
    if name not in scales:
        raise ValueError(f"{weight} is quantised, but {name} is not there")
    return scales.pop(name)


def take_number(scales, name, weight):
    """The same of a scale that is one number for the whole weight."""
    scale = take(scales, name, weight)
    if scale.dtype != torch.float32 or list(scale.shape) not in ([], [1]):
        raise ValueError(f"{name} is {described(scale)}; it must be one float32, [] or [1]")
    return scale


def described(tensor):
    """A tensor's dtype and shape, as messages have them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
