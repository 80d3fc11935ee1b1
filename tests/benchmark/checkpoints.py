"""The models that are measured, and random checkpoints of them."""

import json
import math
import os
import shutil
import zlib
from itertools import groupby
from pathlib import Path

from benchmark.machine import proc

ROOT = Path(__file__).resolve().parent.parent.parent

D20 = {
    "model_type": "nanochat",
    "vocab_size": 65536,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 20,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "max_position_embeddings": 4096,  # d20 has 2048; the speed does not depend on it
}
MINITRON, NANO_2 = "Minitron-4B-Base.json", "NVIDIA-Nemotron-Nano-9B-v2.partial.json"
NANO_3 = "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.json"
# Name -> title, config.json or the file with it, and the changes that keep only some layers.
MODELS = {
    "d20": ("nanochat d20", D20, {}),
    "minitron": ("8 layers of Minitron-4B", MINITRON, {"num_hidden_layers": 8}),
    "nemotron-h": ("M-M*M- of Nemotron-Nano-9B-v2", NANO_2, {"hybrid_override_pattern": "M-M*M-"}),
    "nemotron-3": ("MEM* of Nemotron-3-Nano-30B", NANO_3, {"hybrid_override_pattern": "MEM*"}),
}
FULL = ("MEMEM*EMM of Nemotron-3-Nano-30B", NANO_3, {"hybrid_override_pattern": "MEMEM*EMM"})
CONTEXT = (
    "two Mamba layers of Nemotron-3-Nano-30B",
    NANO_3,
    {"hybrid_override_pattern": "MM", "vocab_size": 1024},
)
LARGE = ("Nemotron-3-Nano-30B-A3B, int4", NANO_3, {"nanomodels": {"quantize": "int4"}})
TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "mamba_num_heads": 64,
    "mamba_head_dim": 2,
    "ssm_state_size": 16,
    "moe_intermediate_size": 64,
}


class Skipped(Exception):
    """A model that this machine has no room for."""


def write_checkpoint(folder, source, changes, tiny, llama=False):
    """Write random weights for a config with changes, a file for each layer. Returns bytes.

    Raises Skipped if there is no room: with llama, for GGUF files, too.
    """
    import torch
    from safetensors.torch import save_file

    from nanomodels.checkpoint import loading
    from nanomodels.checkpoint.names import numbers, pattern
    from nanomodels.linears import quantized

    if isinstance(source, str):
        source = json.loads((ROOT / "tests" / "data" / "configs" / source).read_text())
        del source["num_hidden_layers"]  # of the whole model; a hybrid's pattern says it, too
    config = source | changes | ({k: TINY[k] for k in TINY if k in source} if tiny else {})
    config |= {"dtype": "bfloat16"}
    config.pop("auto_map", None)  # names code on the Hub
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    architecture, model_class, parsed = loading.read_config(folder, config)
    model = loading.build(model_class, parsed)
    scheme = config.get("nanomodels", {}).get("quantize")
    if scheme:  # as convert_hf.py writes it, with the parameters' own names
        quantized.swap_linears(model, scheme, lm_head=True)
        hub_names = {pattern(name): name for name, _ in model.named_parameters()}
        hub_names = dict(zip(hub_names, hub_names, strict=True))
    else:
        hub_names = {  # of several names the first: the others are transformers 5's
            ours: hub
            for hub, ours in reversed(architecture.HUB_NAMES.items())
            if ours and ours.count("{}") == hub.count("{}")
        }
    tensors = []  # (name, shape, dtype)
    for prefix, module in model.named_modules():
        for leaf, weight in module.named_parameters(recurse=False):
            name = f"{prefix}.{leaf}"
            name = hub_names[pattern(name)].format(*numbers(name))
            if isinstance(module, quantized.QuantizedLinear) and leaf == "weight":
                parts = quantized.parts_of(scheme, weight.shape)
                tensors += [(name + end, torch.Size(shape), t) for end, (t, shape) in parts]
            else:
                exact = leaf in getattr(module, "float32", ())
                tensors.append((name, weight.shape, torch.float32 if exact else torch.bfloat16))
    size = sum(shape.numel() * dtype.itemsize for _, shape, dtype in tensors)
    free = {"disk": shutil.disk_usage(folder).free, "memory": proc("/proc/meminfo", "MemAvailable")}
    # In memory ours maps the file and theirs copies it.
    disk = size * (3 if llama else 1) + 1e9
    for what, needed in (("disk", disk), ("memory", (1 if scheme else 2) * size + 2e9)):
        if free[what] < needed:
            raise Skipped(f"{what}: {needed / 1e9:.1f} GB needed, {free[what] / 1e9:.1f} free")
    noise, weight_map = torch.randn(1 << 24).bfloat16(), {}
    for n, (_, layer) in enumerate(groupby(tensors, lambda t: numbers(t[0])[:1])):
        file = f"model-{n:05}.safetensors"
        made = {name: random_weight(name, shape, dtype, noise) for name, shape, dtype in layer}
        save_file(made, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(made, file)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    os.sync()  # else the writing would continue during the measurements
    return size


def random_weight(name, shape, dtype, noise):
    """A tensor with numbers as large as in a trained model; large tensors repeat the noise."""
    import numpy
    import torch

    if name.endswith("weight_scale"):  # scale and zero; the codes are any bytes
        size = (64 * shape[0]) ** -0.5 / 4.6  # too large, the router would see nan
        return torch.tensor([size, size / 2]).bfloat16().expand(shape).clone()
    if name.endswith("A_log"):
        return torch.linspace(0, math.log(16), *shape)
    if name.endswith("dt_bias"):
        return torch.linspace(-6, -2, *shape)
    if name.endswith((".D", "norm.weight", "norm_f.weight")):
        return torch.ones(shape)
    if dtype == torch.uint8:
        codes = numpy.random.default_rng(zlib.crc32(name.encode()))
        return torch.from_numpy(codes.integers(0, 256, shape, dtype=numpy.uint8))
    flat, half = torch.empty(math.prod(shape), dtype=noise.dtype), len(noise) // 2
    for n, piece in enumerate(flat.split(half)):
        start = (zlib.crc32(name.encode()) + n * 104729) % half
        piece.copy_(noise[start : start + len(piece)])
    return flat.mul_(shape[-1] ** -0.5).view(shape).to(dtype)
