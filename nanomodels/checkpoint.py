"""Checkpoint folders in: config, tensors and stop ids from the files that a folder holds.

A folder from the Hub (or one that convert_hf.py wrote) has config.json and safetensors, in one file
or in shards with an index; a folder from a nanochat training run has model_*.pt and meta_*.json.
The architecture's name table says which parameter each tensor is. Every tensor is used exactly
once, and a tensor too many or too few is an error. On a CPU a parameter is the mapped file itself
wherever the stored dtype is the wanted one; nothing is unpickled but plain tensors.
"""

import importlib
import pickle
import re
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from nanomodels.files import one_line, read_json

# `model_type` of config.json; each is a module of this package.
MODEL_TYPES = ("nanochat", "nemotron", "nemotron_h")
LANGUAGE_MODEL = "language_model."  # begins its tensors in a multimodal checkpoint
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load(folder, device="cpu", dtype=None, progress=None, era=None):
    """The model that a checkpoint folder holds, ready to run.

    Its `stop_ids` are the checkpoint's; `skipped` has the tensors left out: {name: bytes}.

    dtype None keeps the checkpoint's (where it mixes several, the one that most numbers have), else
    torch.float32, bfloat16 or float16. progress(done, total), if given, is called with bytes after
    each tensor. era, for a nanochat training folder, is a name in nanochat_2026.ERAS; None tells it
    by the tensors.
    Raises FileNotFoundError for a file that is not there, ValueError for one that cannot be used.
    """
    folder = Path(folder)
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype {dtype} is not supported; supported: float32, bfloat16, float16")
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: {what}; give the folder of a checkpoint")
    if (folder / "config.json").is_file():
        if era is not None:
            raise ValueError(f"{folder}: era {era!r}: only a nanochat training folder has an era")
        model, names, tensors = read_hub(folder)
    elif any(folder.glob("model_*.pt")):
        model, names, tensors = read_nanochat(folder, era)
    else:
        raise FileNotFoundError(
            f"{folder}: no checkpoint here: neither a config.json nor a nanochat model_*.pt"
        )
    try:
        renamed, skipped = rename(tensors, names)
        fill(model, renamed, torch.device(device), dtype, progress)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    model.skipped = {name: tensors[name].nbytes for name in skipped}
    return model.eval()


def read_hub(folder):
    """The model on the meta device, the name table and the mapped tensors of a Hub folder."""
    path = folder / "config.json"
    whole = read_json(path)
    # A multimodal checkpoint keeps the config of its language model under a key.
    parts = (whole.get(key) for key in ("text_config", "llm_config", "language_config"))
    hub = next((part for part in parts if isinstance(part, dict)), whole)
    model_type = hub.get("model_type")
    if model_type not in MODEL_TYPES:
        supported = ", ".join(MODEL_TYPES)
        raise ValueError(f"{path}: model_type {model_type!r} is unknown; supported: {supported}")
    if hub.get("quantization_config") or whole.get("quantization_config"):
        raise ValueError(f"{path}: quantization_config: quantised weights are not supported")
    architecture = importlib.import_module(f"nanomodels.{model_type}")
    classes = architecture.ARCHITECTURES
    name = next(iter(hub.get("architectures") or classes))
    if name not in classes:
        supported = ", ".join(classes)
        raise ValueError(f"{path}: architectures: {name!r} is unknown; supported: {supported}")
    try:
        config = architecture.config_from_hub(hub)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    model = on_meta(classes[name], config)
    model.stop_ids = stop_ids(folder, hub)
    tensors, names = read_safetensors(folder), architecture.HUB_NAMES
    if any(name.startswith(LANGUAGE_MODEL) for name in tensors):
        others = {name.split(".")[0] for name in tensors if not name.startswith(LANGUAGE_MODEL)}
        others -= {name.split(".")[0] for name in names}  # nothing of its own stands outside
        names = {LANGUAGE_MODEL + name: ours for name, ours in names.items()}
        names |= {part: None for part in others} | {f"{part}.*": None for part in others}
    return model, names, tensors


def read_nanochat(folder, era=None):
    """The same of a nanochat training folder, at its highest step."""
    from nanomodels import nanochat, nanochat_2026

    path = max(folder.glob("model_*.pt"), key=lambda path: path.stem)
    meta_path = path.with_name(path.stem.replace("model_", "meta_") + ".json")
    meta = read_json(meta_path)
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path}: not a whole file of plain tensors ({one_line(error)[:80]})"
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in tensors.items()
    ):
        raise ValueError(f"{path}: must hold tensors by name, as nanochat saves them")
    # torch.compile leaves a prefix.
    renamed = {name.removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}
    embedding = renamed.get("transformer.wte.weight")
    if len(renamed) != len(tensors) or embedding is None or embedding.dim() != 2:
        raise ValueError(f"{path}: lacks transformer.wte.weight, or has a tensor twice")
    try:
        era = nanochat_2026.recognise(renamed, era)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    first = era == nanochat_2026.FIRST
    architecture = nanochat if first else nanochat_2026
    try:
        sizes = (meta.get("model_config") or {}, len(embedding))
        config = architecture.config_from_native(*sizes, *(() if first else (era,)))
    except ValueError as error:
        raise ValueError(f"{meta_path}: {error}") from None
    model = on_meta(nanochat.NanoChat if first else nanochat_2026.NanoChat2026, config)
    # The nine special tokens are the last ids: <|bos|> is the first of them, <|assistant_end|> the
    # fifth (nanochat/tokenizer.py, SPECIAL_TOKENS); nanochat's engine stops on either.
    model.stop_ids = (config.vocab_size - 9, config.vocab_size - 5)
    return model, architecture.NATIVE_NAMES, renamed


def on_meta(architecture, config):
    """The model without memory for its parameters."""
    with torch.device("meta"), WithoutInitialisation():
        return architecture(config)


class WithoutInitialisation(TorchFunctionMode):
    """Makes torch.nn.init do nothing: on the meta device it imports sympy, for 2 s (torch 2.13)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) != "torch.nn.init":
            return func(*args, **(kwargs or {}))


def stop_ids(folder, hub):
    """The ids that end a text: all that generation_config, config and tokenizer_config name."""
    found = [hub.get("eos_token_id")]
    if (folder / "generation_config.json").is_file():
        found.append(read_json(folder / "generation_config.json").get("eos_token_id"))
    if (folder / "tokenizer_config.json").is_file():
        found.append(eos_of_tokenizer(folder))
    ids = [i for entry in found for i in (entry if isinstance(entry, list) else [entry])]
    for i in ids:
        if i is not None and type(i) is not int:
            raise ValueError(f"{folder}: eos_token_id {i!r} must be a whole number, or a list")
    return tuple(sorted({i for i in ids if i is not None}))


def eos_of_tokenizer(folder):
    """The id of the tokenizer's eos_token, or None; reads no more of its files than that takes."""
    config = read_json(folder / "tokenizer_config.json")
    try:
        eos = config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        decoder = config.get("added_tokens_decoder") or {}
        added = {token["content"]: int(i) for i, token in decoder.items()}
        if eos is not None and eos not in added and (folder / "tokenizer.json").is_file():
            tokens = read_json(folder / "tokenizer.json").get("added_tokens") or ()
            added = {token["content"]: token["id"] for token in tokens}
        return added.get(eos)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: tokenizer_config.json or tokenizer.json is not laid out as transformers "
            f"writes it ({type(error).__name__}: {one_line(error)})"
        ) from None


def read_safetensors(folder):
    """Name -> tensor over all safetensors files of a folder; mapped, so nothing is read yet."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return map_file(single)
    if not index.is_file():
        raise FileNotFoundError(f"{folder}: has neither {single.name} nor {index.name}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: lacks weight_map, which says the file of each tensor")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index}: {name} is in {shard!r}; it must be a file of this folder")
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in map_file(folder / shard).items():
            if weight_map.get(name) != shard:
                raise ValueError(f"{folder / shard}: holds {name}, which {index.name} does not say")
            tensors[name] = tensor
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise ValueError(f"{folder / weight_map[missing[0]]}: lacks {listed(missing)}")
    return tensors


def map_file(path):
    """Name -> tensor of one safetensors file; the tensors are views of the mapped file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; is the download complete?")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


def rename(tensors, names):
    """Parameter name -> list of (checkpoint name, tensor), by an architecture's name table; and the
    names that it leaves out.

    Numbers between dots stand as {} in the table. A {} more on the parameter's side stands for the
    rows of a stacked tensor. None is left out; so is, for "some.*", all that begins with "some.".
    Raises ValueError for names that are not in the table.
    """
    renamed, skipped, unknown = {}, [], []
    left_out = tuple(name[:-1] for name in names if name.endswith(".*"))
    for name, tensor in tensors.items():
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", name)
        parameter = names.get(pattern)
        if parameter is None:
            (skipped if pattern in names or name.startswith(left_out) else unknown).append(name)
        elif parameter.count("{}") == len(numbers):
            renamed.setdefault(parameter.format(*numbers), []).append((name, tensor))
        elif tensor.dim() == 0:
            raise ValueError(f"{name} is one number; it must have a row for each expert")
        else:
            for i, row in enumerate(tensor):
                renamed.setdefault(parameter.format(*numbers, i), []).append((name, row))
    if unknown:
        raise ValueError(f"unexpected tensors: {listed(unknown)}")
    return renamed, skipped


def fill(model, tensors, device, dtype, progress):
    """Put each tensor in place of its meta parameter; tied parameters take one between them."""
    homes = {}  # id of a meta parameter -> it, and each (module, leaf, full name) that holds it
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{leaf}" if prefix else leaf
            homes.setdefault(id(parameter), (parameter, []))[1].append((module, leaf, full))
    found = [
        (parameter, places, [entry for _, _, full in places for entry in tensors.pop(full, ())])
        for parameter, places in homes.values()
    ]
    if tensors:
        names = [name for entries in tensors.values() for name, _ in entries]
        raise ValueError(f"unexpected tensors: {listed(names)}")
    missing = [places[0][2] for _, places, entries in found if not entries]
    if missing:
        raise ValueError(f"missing tensors: {listed(missing)}")
    sizes = Counter()
    for parameter, places, entries in found:
        for name, tensor in entries:
            if tensor.shape != parameter.shape:
                raise ValueError(
                    f"{name} is {list(tensor.shape)}; the config asks for {list(parameter.shape)}"
                )
            if tensor.dtype not in DTYPES:
                raise ValueError(f"{name} is {tensor.dtype}; supported: float32, bfloat16, float16")
        if len(entries) > len(places):
            raise ValueError(f"one parameter is there twice: {listed([n for n, _ in entries])}")
        for name, tensor in entries[1:]:
            if tensor.dtype != entries[0][1].dtype or not torch.equal(tensor, entries[0][1]):
                raise ValueError(f"{entries[0][0]} and {name} are one parameter, but differ")
        tensor = entries[0][1]
        sizes[tensor.dtype] += tensor.numel()
    wanted = dtype or sizes.most_common(1)[0][0]

    total = sum(entries[0][1].nbytes for _, _, entries in found)
    done = 0
    for _, places, entries in found:
        tensor = entries[0][1]
        done += tensor.nbytes
        module, leaf, _ = places[0]
        exact = leaf in getattr(module, "float32", ())
        parameter = tensor.to(device, torch.float32 if exact else wanted)
        parameter = nn.Parameter(parameter, requires_grad=False)
        for module, leaf, _ in places:
            setattr(module, leaf, parameter)
        if progress is not None:
            progress(done, total)


def listed(names):
    """Up to five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
