"""Checkpoint folders in: config, tensors and stop ids from the files that a folder holds.

A folder from the Hub (or one that convert_hf.py wrote) has config.json and safetensors, in one file
or in shards with an index; a folder from a nanochat training run has model_*.pt and meta_*.json.
The architecture's name table says which parameter each tensor is. Every tensor is used exactly
once, and a tensor too many or too few is an error. On a CPU a parameter is the mapped file itself
wherever the stored dtype is the wanted one; nothing is unpickled but plain tensors.
"""

import importlib
import math
import pickle
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from nanomodels.checkpoint import modelopt
from nanomodels.linears import memory
from nanomodels.linears import quantized as q
from nanomodels.linears.prepacked import prepack_linears
from nanomodels.linears.stored import StoredWeight
from nanomodels.text.files import one_line, read_json, state_of

# `model_type` of config.json; each is a module of this package.
MODEL_TYPES = ("nanochat", "nemotron", "nemotron_h", "nanochat_2026")
LANGUAGE_MODEL = "language_model."  # begins its tensors in a multimodal checkpoint
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NUMBER = r"(?<=\.)\d+(?=\.)"  # of a layer or an expert, in a tensor's name
PADDING = "padding."  # begins what stands between the tensors of a converted file


def load(folder, device="cpu", dtype=None, progress=None, era=None, quantize=None):
    """The model that a checkpoint folder holds, ready to run.

    Its `stop_ids` are the checkpoint's; `skipped` has the tensors left out: {name: bytes}.

    dtype None keeps the checkpoint's (where it mixes several, the one that most numbers have), else
    torch.float32, bfloat16 or float16. progress(done, total), if given, is called with bytes after
    each tensor. era, for a nanochat training folder, is a name in nanochat_2026.ERAS; None tells it
    by the tensors. quantize, "int4" or "int8", makes the weights of the linears smaller.
    Raises FileNotFoundError for a file that is not there, ValueError for one that cannot be used.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype {dtype} is not supported; supported: float32, bfloat16, float16")
    source = read(folder, era)
    if quantize is not None:
        source.quantize(quantize)
    return finish(source, device, dtype, progress)


@dataclass
class Source:
    """What a checkpoint folder holds."""

    folder: Path
    architecture: object  # the module of this package
    model: nn.Module  # on the meta device
    config: dict  # config.json, of the language model; made here for a nanochat training folder
    tensors: dict  # parameter name -> list of (name in the file, tensor); mapped, not read yet
    skipped: dict  # the names left out -> bytes
    files: dict  # that all this was read from -> files.state_of it, before
    native: bool  # a nanochat training folder
    scheme: str | None  # a name in quantized.SCHEMES where the linears are so

    def quantize(self, scheme, lm_head=False):
        """Let the model's linears hold their weights in a scheme of quantized.py."""
        if self.scheme is not None:
            if scheme != self.scheme or lm_head:
                raise ValueError(f"{self.folder}: its weights are {self.scheme} already")
            return
        count = q.swap_linears(self.model, scheme, lm_head)
        if not count or (lm_head and isinstance(self.model.lm_head, nn.Linear)):
            raise ValueError(
                f"{self.folder}: {scheme} is for linears whose sizes are multiples of {q.GROUP}; "
                f"{'its head is none' if count else 'there is none'}"
            )
        self.scheme = scheme


def read(folder, era=None, step=None):
    """The Source of a folder; step, of a nanochat training folder, is the highest unless given."""
    folder = Path(folder)
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: {what}; give the folder of a checkpoint")
    if (folder / "config.json").is_file():
        for name, value in (("an era", era), ("steps", step)):
            if value is not None:
                raise ValueError(f"{folder}: {value!r}: only a nanochat training folder has {name}")
        return read_hub(folder)
    if any(folder.glob("model_*.pt")):
        return read_nanochat(folder, era, step)
    raise FileNotFoundError(
        f"{folder}: no checkpoint here: neither a config.json nor a nanochat model_*.pt"
    )


def read_hub(folder):
    """The Source of a folder with a config.json."""
    path = folder / "config.json"
    whole = read_json(path)
    # A multimodal checkpoint keeps the config of its language model under a key.
    parts = (whole.get(key) for key in ("text_config", "llm_config", "language_config"))
    config = next((part for part in parts if isinstance(part, dict)), whole)
    architecture, model = build(path, config)
    model.stop_ids = stop_ids(folder, config)
    states = states_of(folder)
    recipe = config.get("quantization_config") or whole.get("quantization_config") or None
    packed = modelopt.detect_modelopt(folder, recipe)
    tensors, files = read_tensors(folder)
    names, skipped, scheme = architecture.HUB_NAMES, {}, None
    try:
        if packed:
            tensors, skipped = modelopt.join_scales(tensors)
        if "nanomodels" in config:  # convert_hf.py wrote it: tensors have the parameters' names
            made = config["nanomodels"]
            if not isinstance(made, dict):
                raise ValueError(f"config.json: nanomodels is {made!r}; it must be an object")
            scheme = made.get("quantize")
            names = {pattern(name): pattern(name) for name, _ in model.named_parameters()}
            tensors = {name: t for name, t in tensors.items() if not name.startswith(PADDING)}
            if scheme is not None:
                stored, tensors = tensors, q.join_scales(tensors, scheme)
                q.swap_linears(model, scheme, "lm_head.weight_scale" in stored)
        elif any(name.startswith(LANGUAGE_MODEL) for name in tensors):
            others = {name.split(".")[0] for name in tensors if not name.startswith(LANGUAGE_MODEL)}
            others -= {name.split(".")[0] for name in names}  # nothing of its own stands outside
            names = {LANGUAGE_MODEL + name: ours for name, ours in names.items()}
            names |= {part: None for part in others} | {f"{part}.*": None for part in others}
        renamed, left_out = rename(tensors, names)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    skipped |= {name: tensors[name].nbytes for name in left_out}
    files = {path: states[path] for path in (path, *files)}
    return Source(folder, architecture, model, config, renamed, skipped, files, False, scheme)


def read_nanochat(folder, era=None, step=None):
    """The Source of a nanochat training folder."""
    from nanomodels import nanochat, nanochat_2026

    found = (re.fullmatch(r"model_(\d+)\.pt", path.name) for path in folder.iterdir())
    steps = {int(match[1]): folder / match[0] for match in found if match}
    if not steps:
        raise FileNotFoundError(f"{folder}: has no model_STEP.pt, STEP a number")
    if step not in (None, *steps):
        raise FileNotFoundError(f"{folder}: has no step {step}; it has {sorted(steps)}")
    path = steps[max(steps) if step is None else step]
    meta_path = path.with_name(path.stem.replace("model_", "meta_") + ".json")
    states = states_of(folder)
    tensors = map_torch(path)
    model_config = read_json(meta_path).get("model_config") or {}
    if not isinstance(model_config, dict):
        raise ValueError(f"{meta_path}: model_config is {model_config!r}; it must be an object")
    # torch.compile leaves a prefix.
    named = {name.removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}
    embedding = named.get("transformer.wte.weight")
    if len(named) != len(tensors) or embedding is None or embedding.dim() != 2:
        raise ValueError(f"{path}: lacks transformer.wte.weight, or has a tensor twice")
    try:
        era = nanochat_2026.detect_era(named, era)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        if era == nanochat_2026.FIRST:
            config = nanochat.config_from_nanochat(model_config)
        else:
            config = nanochat_2026.config_from_nanochat(model_config, era)
    except ValueError as error:
        raise ValueError(f"{meta_path}: {error}") from None
    architecture, model = build(meta_path, config)
    # The nine special tokens are the last ids: <|bos|> is the first of them, <|assistant_end|> the
    # fifth (nanochat/tokenizer.py, SPECIAL_TOKENS); nanochat's engine stops on either.
    rows = model.config.vocab_size
    model.stop_ids = (rows - 9, rows - 5)
    config |= {
        "bos_token_id": rows - 9,
        "eos_token_id": [*model.stop_ids],
        "pad_token_id": rows - 9,
    }
    # From 2025-12-23 on nanochat has a multiple of 64 rows; it cuts the logits back.
    if len(embedding) not in (rows, -(-rows // 64) * 64):
        raise ValueError(
            f"{meta_path}: vocab_size is {rows}, but the embedding has {len(embedding)} rows"
        )
    for name, tensor in named.items():
        if name.startswith(("transformer.wte.", "lm_head.", "value_embeds.")):
            named[name] = tensor[:rows]
    try:
        renamed, _ = rename(named, architecture.NANOCHAT_NAMES)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    files = {path: states[path] for path in (meta_path, path)}
    return Source(folder, architecture, model, config, renamed, {}, files, True, None)


def states_of(folder):
    """The files of a folder -> files.state_of each."""
    return {path: state_of(path) for path in folder.iterdir()}


def build(path, config):
    """The architecture's module and the model on the meta device, by the config.json at path."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        supported = ", ".join(MODEL_TYPES)
        raise ValueError(f"{path}: model_type {model_type!r} is unknown; supported: {supported}")
    architecture = importlib.import_module(f"nanomodels.{model_type}")
    classes = architecture.ARCHITECTURES
    names = config.get("architectures") or [*classes]
    name = names[0] if isinstance(names, list) else names
    if name not in [*classes]:
        supported = ", ".join(classes)
        raise ValueError(f"{path}: architectures: {name!r} is unknown; supported: {supported}")
    try:
        read = architecture.config_from_hub(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with torch.device("meta"), WithoutInitialisation():
        return architecture, classes[name](read)


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


def read_tensors(folder):
    """Name -> tensor over all files of a folder, mapped, so that nothing is read yet; the files."""
    for name, reader in (("model.safetensors", map_safetensors), ("pytorch_model.bin", map_torch)):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return reader(single), [single]
        if index.is_file():
            return read_shards(index, reader)
    raise FileNotFoundError(
        f"{folder}: has neither model.safetensors nor model.safetensors.index.json, nor "
        "pytorch_model.bin or its index"
    )


def read_shards(index, reader):
    """`read_tensors` of the files that an index names."""
    folder = index.parent
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: lacks weight_map, which says the file of each tensor")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".."):
            raise ValueError(f"{index}: {name} is in {shard!r}; it must be a file of this folder")
    tensors, shards = {}, sorted(set(weight_map.values()))
    for shard in shards:
        for name, tensor in reader(folder / shard).items():
            if weight_map.get(name) != shard:
                raise ValueError(f"{folder / shard}: holds {name}, which {index.name} does not say")
            tensors[name] = tensor
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise ValueError(f"{folder / weight_map[missing[0]]}: lacks {listed(missing)}")
    return tensors, [index, *(folder / shard for shard in shards)]


def map_safetensors(path):
    """Name -> tensor of one safetensors file; the tensors are views of the mapped file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; is the download complete?")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


# What torch.load raises for a file that is cut off, is no pickle, or asks for more than tensors.
LOADING_ERRORS = (
    *(RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError),
    *(AttributeError, TypeError, AssertionError, OverflowError),
)


def map_torch(path):
    """The same of a file that torch.save wrote; of its pickle only plain tensors are read."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; is the download complete?")
    with path.open("rb") as file:
        mapped = file.read(2) == b"PK"  # else it is older than torch 1.6, and is read
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that are not torch's
            tensors = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except LOADING_ERRORS as error:
        if "memory" in str(error):
            raise MemoryError(f"{path}: {one_line(error)}") from None
        what = "it asks for more than tensors; nothing in it was run"
        if not isinstance(error, pickle.UnpicklingError):
            what = f"{one_line(error)[:80]}"
        raise ValueError(f"{path}: not a whole file of plain tensors ({what})") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and (tensor.layout, tensor.device.type, tensor.is_nested) == (torch.strided, "cpu", False)
        for name, tensor in tensors.items()
    ):
        raise ValueError(f"{path}: must hold tensors by name")
    return tensors


def pattern(name):
    """A tensor's name with {} for each number between dots."""
    return re.sub(NUMBER, "{}", name)


def numbers(name):
    """Those numbers."""
    return re.findall(NUMBER, name)


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
        kind, places = pattern(name), numbers(name)
        parameter = names.get(kind)
        if parameter is None:
            (skipped if kind in names or name.startswith(left_out) else unknown).append(name)
        elif parameter.count("{}") == len(places):
            renamed.setdefault(parameter.format(*places), []).append((name, tensor))
        elif tensor.dim() != 3:
            raise ValueError(
                f"{name} is {list(tensor.shape)}; it must have a matrix a row, stacked"
            )
        else:
            for i, row in enumerate(tensor):
                renamed.setdefault(parameter.format(*places, i), []).append((name, row))
    if unknown:
        raise ValueError(f"unexpected tensors: {listed(unknown)}")
    return renamed, skipped


def match(model, tensors):
    """Which tensor goes where: a list of (its name, tensor, [(module, leaf, parameter name)]).

    Tied parameters take one between them. Raises ValueError for a tensor too many, too few, of
    another shape or of a dtype that is not supported.
    """
    homes = {}  # id of a meta parameter -> it, and each (module, leaf, full name) that holds it
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{leaf}" if prefix else leaf
            homes.setdefault(id(parameter), (parameter, []))[1].append((module, leaf, full))
    tensors = dict(tensors)
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
            first, dtype = entries[0][1], tensor.dtype
            same = dtype == first.dtype
            if not same or not torch.equal(tensor.to("cpu", dtype), first.to("cpu", dtype)):
                raise ValueError(f"{entries[0][0]} and {name} are one parameter, but differ")
    return [(*entries[0], places) for _, places, entries in found]


def usual_dtype(found):
    """The dtype that most numbers of a `match` have."""
    sizes = Counter()
    for _, tensor, _ in found:
        sizes[tensor.dtype] += tensor.numel()
    return sizes.most_common(1)[0][0]


def is_exact(module, leaf):
    """Whether a parameter is float32 whatever the model's dtype."""
    return leaf in getattr(module, "float32", ())


def finish(source, device="cpu", dtype=None, progress=None):
    """The model of a Source, with its parameters; as `load`."""
    try:
        found, device = match(source.model, source.tensors), torch.device(device)
        check_memory(source, found, device, dtype)
        fill(found, device, dtype, progress)
    except ValueError as error:
        raise ValueError(f"{source.folder}: {error}") from None
    source.model.skipped = source.skipped
    prepack_linears(source.model)
    return source.model.eval()


def memory_needed(source, found, dtype, scheme):
    """Bytes to hold the parameters of a `match`, and to read the largest; dtype None: the usual."""
    wanted = dtype or usual_dtype(found)
    eligible = [] if source.scheme or not scheme else q.eligible(source.model)
    quantised, sizes = {id(linear) for _, linear in eligible}, []
    for _, tensor, places in found:
        module, leaf, _ = places[0]
        if leaf == "weight" and (id(module) in quantised or isinstance(module, q.QuantizedLinear)):
            parts = q.parts_of(source.scheme or scheme, tensor.shape)
            sizes.append(sum(math.prod(shape) * dtype.itemsize for _, (dtype, shape) in parts))
        else:
            itemsize = 4 if is_exact(module, leaf) else wanted.itemsize
            sizes.append(tensor.numel() * itemsize)
    return sum(sizes) + max(sizes)


def check_memory(source, found, device, dtype):
    """Raises ValueError for a model that does not fit into memory, before it is read."""
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu":
        available = memory.available_memory()
    else:
        return
    needed = memory_needed(source, found, dtype, None)
    if available is None or needed <= available:
        return
    smaller = [("--dtype bfloat16", memory_needed(source, found, torch.bfloat16, None))]
    if source.scheme is None:
        for scheme in ("int8", "int4"):
            size = memory_needed(source, found, torch.bfloat16, scheme)
            smaller.append((f"--dtype bfloat16 --quantize {scheme}", size))
    fit = [f"{way} needs {size / 1e9:.1f}" for way, size in smaller if size <= available]
    raise ValueError(
        f"loading needs {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} are available; "
        + (", ".join(fit) or f"the least, {smaller[-1][0]}, needs {smaller[-1][1] / 1e9:.1f}")
    )


def fill(found, device, dtype, progress):
    """Put each tensor of a `match` in its places; dtype None is the usual one."""
    wanted = dtype or usual_dtype(found)
    total, done = sum(tensor.nbytes for _, tensor, _ in found), 0
    for _, tensor, places in found:
        module, leaf, _ = places[0]
        if isinstance(module, q.QuantizedLinear) and leaf == "weight":
            module.load_weight(tensor, device, wanted)
            used = (module.codes, module.scales)
        else:
            parameter = tensor.to(device, torch.float32 if is_exact(module, leaf) else wanted)
            parameter = nn.Parameter(parameter, requires_grad=False)
            for module, leaf, _ in places:
                setattr(module, leaf, parameter)
            used = (parameter,)
        addresses = {part.data_ptr() for part in used}
        parts = tensor.parts if isinstance(tensor, StoredWeight) else (tensor,)
        for part in parts:  # one that was copied is not read again
            if part.data_ptr() not in addresses:
                memory.release(part)
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)


def left_out(skipped):
    """One line on the tensors that a Source or a model has `skipped`."""
    words = [name.split(".") for name in skipped]
    kinds = {f"*.{w[-1]}" if w[-1].endswith("_scale") else f"{w[0]}.*" for w in words}
    size = sum(skipped.values()) / 1e6
    return f"{', '.join(sorted(kinds))}: {len(skipped)} tensors, {size:.1f} MB"


def listed(names):
    """Up to five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:5]) + more
