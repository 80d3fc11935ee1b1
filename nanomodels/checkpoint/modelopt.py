"""NVIDIA ModelOpt's quantised checkpoints, read as bfloat16: FP8, NVFP4, or both in one model.

    FP8:    w = fp8 * scale                     X.weight (n, k) e4m3, X.weight_scale one float32
    NVFP4:  w = fp4 * block scale * scale       X.weight (n, k/2) bytes: two e2m1, the low four bits
                                                are the even column; X.weight_scale (n, k/16) e4m3,
                                                X.weight_scale_2 one float32

    e4m3:   sign, 4 bits of exponent, 3 of mantissa; up to 448, no infinity
    e2m1:   sign, 2 bits of exponent, 1 of mantissa; up to 6

The dtype of each tensor says how that weight is stored. The keys of config.json are only checked.
The scales of activations and of the cache (input_scale, k_scale, v_scale) are not used, because
neither is quantised here. So results differ from a GPU's that quantises them.

Shapes: n rows (out), k columns (in).

Sources: NVIDIA/Model-Optimizer @0030d2b modelopt/torch/export/convert_hf_config.py (the keys) and
quant_utils.py (the tensors); vllm-project/vllm @00155cd model_executor/layers/quantization/
modelopt.py (the spellings); the tensors of NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4 @6efb4a2a.
"""

import torch

from nanomodels.linears.stored import StoredWeight, divide, take
from nanomodels.text.files import read_json

# ModelOpt writes the first. The others are vLLM's and SGLang's names for what quant_algo says.
METHODS = ("modelopt", "modelopt_fp8", "modelopt_fp4", "modelopt_mixed")
NVFP4_ALGORITHMS = ("NVFP4", "W4A16_NVFP4")  # stored alike; the second keeps activations in 16 bits
ALGORITHMS = ("FP8", *NVFP4_ALGORITHMS)
GROUP_SIZE = 16  # columns that share a block scale
UNUSED = ("input_scale", "k_scale", "v_scale")
# By code; the upper eight are the negative ones.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
CHUNK_WEIGHTS = 2**18  # weights dequantised at a time: 1 MiB of float32, which a CPU's cache holds


def detect_modelopt(folder, quantization_config):
    """Whether a folder is a ModelOpt checkpoint; quantization_config is config.json's, or None.

    Without one, hf_quant_config.json decides, if that file exists.
    Raises ValueError naming file, key and value for a quantisation that this file does not read.
    """
    if quantization_config is not None:
        path = folder / "config.json"
        recipe = require_object(path, "quantization_config", quantization_config)
        require(path, "quantization_config.quant_method", recipe.get("quant_method"), METHODS)
    else:
        path = folder / "hf_quant_config.json"
        if not path.is_file():
            return False
        recipe = read_json(path)
        producer = require_object(path, "producer", recipe.get("producer"))
        require(path, "producer.name", producer.get("name"), METHODS[:1])
    if "quantization" in recipe:  # hf_quant_config.json's layout; vLLM accepts it in both files
        recipe = require_object(path, "quantization", recipe["quantization"])

    check_algorithm(path, "", recipe, (*ALGORITHMS, "MIXED_PRECISION"))
    if recipe["quant_algo"].upper() == "MIXED_PRECISION":
        layers = require_object(path, "quantized_layers", recipe.get("quantized_layers"))
        for name, layer in layers.items():
            key = f"quantized_layers.{name}"
            check_algorithm(path, f"{key}.", require_object(path, key, layer), ALGORITHMS)
    return True


def check_algorithm(path, prefix, recipe, supported):
    """Refuse a quant_algo that is not supported, and an NVFP4 group_size other than 16."""
    algorithm = recipe.get("quant_algo")
    algorithm = algorithm.upper() if isinstance(algorithm, str) else algorithm  # as vLLM does
    require(path, f"{prefix}quant_algo", algorithm, supported)
    if algorithm in NVFP4_ALGORITHMS and recipe.get("group_size") is not None:
        require(path, f"{prefix}group_size", recipe["group_size"], (GROUP_SIZE,))


def require(path, key, value, supported):
    """Raise ValueError for a value that is not among the supported ones."""
    if value not in supported:
        names = ", ".join(map(str, supported))
        # A list or an object can be megabytes long.
        raise ValueError(f"{path}: {key} {value!r:.80} is not supported; supported: {names}")


def require_object(path, key, value):
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key} is {value!r:.80}; it must be an object")
    return value


class FP8(StoredWeight):
    """weight (n, k) float8_e4m3fn, scale () or (1) float32."""

    def __init__(self, weight, scale):
        super().__init__(weight.shape, weight, scale)
        self.weight, self.scale = weight, scale

    def cut(self, dim, pieces):
        codes = take(self.weight.view(torch.uint8), dim, pieces)
        return FP8(codes.view(torch.float8_e4m3fn), self.scale)

    def dequantise(self, device, dtype):
        # By a table of all 256 codes: 4 times as fast on a CPU as .float() (torch 2.13).
        e4m3 = torch.arange(256, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
        values = e4m3.float() * self.scale.to(device)
        for rows in chunks(*self.shape):
            codes = self.weight[rows].view(torch.uint8).to(device)
            yield rows, values.index_select(0, codes.flatten().int()).view(codes.shape)


class NVFP4(StoredWeight):
    """weight (n, k/2) uint8, scale (n, k/16) float8_e4m3fn, scale_2 () or (1) float32."""

    def __init__(self, weight, scale, scale_2):
        n, half = weight.shape
        super().__init__((n, 2 * half), weight, scale, scale_2)
        self.weight, self.scale, self.scale_2 = weight, scale, scale_2

    def cut(self, dim, pieces):
        codes = scales = pieces
        if dim == 1:
            codes, scales = divide(pieces, 2), divide(pieces, GROUP_SIZE)
            if scales is None:
                return None
        scale = take(self.scale.view(torch.uint8), dim, scales).view(torch.float8_e4m3fn)
        return NVFP4(take(self.weight, dim, codes), scale, self.scale_2)

    def dequantise(self, device, dtype):
        # By a table of both numbers of a byte. As one int64 they are gathered 4 times as fast.
        e2m1 = torch.tensor(E2M1, dtype=torch.float32, device=device)
        pairs = torch.stack((e2m1.repeat(16), e2m1.repeat_interleave(16)), dim=-1)  # (256, 2)
        pairs = pairs.view(torch.int64).flatten()
        for rows in chunks(*self.shape):
            codes, scale = self.weight[rows].to(device), self.scale[rows].to(device)
            w = pairs.index_select(0, codes.flatten().int()).view(torch.float32)
            w = w.view(*scale.shape, GROUP_SIZE)  # (n, k/16, 16)
            # In this order the first product is exact, and float32 rounds once.
            w = w.mul_(scale.float()[..., None]).mul_(self.scale_2.to(device))
            yield rows, w.flatten(1)  # (n, k)


def chunks(n, k):
    """Slices of n rows, at most CHUNK_WEIGHTS weights in each."""
    step = max(1, CHUNK_WEIGHTS // k)
    return [slice(first, first + step) for first in range(0, n, step)]


def join_scales(tensors):
    """Join each quantised weight with its scales.

    Returns {name: tensor, FP8 or NVFP4}, and the scales that are not used: {name: bytes}.
    Raises ValueError naming the tensor for a quantised weight without its scales, for a scale
    without its weight, and for a shape or dtype that ModelOpt does not write.
    """
    joined, scales, unused = {}, {}, {}
    for name, tensor in tensors.items():
        leaf = name.rpartition(".")[2]
        if leaf in UNUSED:
            unused[name] = tensor.nbytes
        elif leaf in ("weight_scale", "weight_scale_2"):
            scales[name] = tensor
        else:
            joined[name] = tensor
    for name, tensor in joined.items():
        if name.endswith(".weight") and tensor.dtype == torch.float8_e4m3fn:
            matrix_shape(name, tensor)
            joined[name] = FP8(tensor, pop_number(scales, f"{name}_scale", name))
        elif name.endswith(".weight") and tensor.dtype == torch.uint8:
            n, half = matrix_shape(name, tensor)
            if 2 * half % GROUP_SIZE:
                raise ValueError(f"{name} packs {2 * half} columns, not a multiple of {GROUP_SIZE}")
            scale = pop_scale(scales, f"{name}_scale", name)
            shape = [n, 2 * half // GROUP_SIZE]
            if scale.dtype != torch.float8_e4m3fn or list(scale.shape) != shape:
                raise ValueError(
                    f"{name}_scale is {described(scale)}; of {name} {list(tensor.shape)} it must "
                    f"be float8_e4m3fn {shape}, a scale for {GROUP_SIZE} columns"
                )
            joined[name] = NVFP4(tensor, scale, pop_number(scales, f"{name}_scale_2", name))
    for name in scales:
        weight = name[: name.rindex("_scale")]
        found = described(tensors[weight]) if weight in tensors else "not there"
        raise ValueError(
            f"{name} scales nothing: {weight} is {found}; float8_e4m3fn has a weight_scale, "
            "uint8 a weight_scale and a weight_scale_2"
        )
    return joined, unused


def matrix_shape(name, tensor):
    """The shape of a quantised weight, which must have two dimensions."""
    if tensor.dim() != 2:
        raise ValueError(f"{name} is {described(tensor)}; quantised weights have two dimensions")
    return tensor.shape


def pop_scale(scales, name, weight):
    """Remove a weight's scale from `scales` and return it."""
    if name not in scales:
        raise ValueError(f"{weight} is quantised, but {name} is not there")
    return scales.pop(name)


def pop_number(scales, name, weight):
    """`pop_scale` of a scale that is one number for the whole weight."""
    scale = pop_scale(scales, name, weight)
    if scale.dtype != torch.float32 or list(scale.shape) not in ([], [1]):
        raise ValueError(f"{name} is {described(scale)}; it must be one float32, [] or [1]")
    return scale


def described(tensor):
    """A tensor's dtype and shape, for error messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
