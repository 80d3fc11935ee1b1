"""From a checkpoint folder to a model, step by step in one direction:

    read     the config, and the tensors: mapped into memory, not read yet
    join     each quantised weight with its scales
    name     each tensor as a parameter of the model
    build    the model without weights; quantised linears are swapped in
    fill     each parameter with its tensor

`detect_format` alone decides which of four formats a folder has. "hub": config.json and tensors as
on the Hub. "modelopt": the same with FP8 or NVFP4 weights. "nanomodels": what convert_hf.py writes.
"nanochat": the folder of a nanochat training run, see nanochat_folder.py.

Every tensor is used exactly once; a missing tensor is an error, and so is an unexpected one. On a
CPU a parameter is the mapped file itself where the stored dtype is the wanted one. Only plain
tensors are unpickled.
"""

import importlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nanomodels.checkpoint import modelopt, nanochat_folder
from nanomodels.checkpoint.devices import Devices, connect_devices
from nanomodels.checkpoint.finding import find
from nanomodels.checkpoint.names import PADDING_PREFIX, listed, rename
from nanomodels.checkpoint.stop_ids import stop_ids
from nanomodels.checkpoint.tensors import read_tensors
from nanomodels.config import check_counts
from nanomodels.linears import memory, quantized
from nanomodels.linears.parallel import (
    Cut,
    Ranks,
    check_sizes,
    connect,
    cut_model,
    local_config,
    ranks_here,
)
from nanomodels.linears.prepacked import prepack_linears
from nanomodels.linears.quantized import QuantizedLinear, QuantizedWeight
from nanomodels.linears.stored import StoredWeight
from nanomodels.text.files import one_line, read_json, state_of

if TYPE_CHECKING:
    from nanomodels.nanochat import NanoChat
    from nanomodels.nanochat_2026 import NanoChat2026
    from nanomodels.nemotron import Nemotron
    from nanomodels.nemotron_h import NemotronH

    # What `load` returns, except for the heads of Nemotron that make no text.
    Model = NanoChat | NanoChat2026 | Nemotron | NemotronH

# `model_type` of config.json; each is a module of this package.
MODEL_TYPES = ("nanochat", "nemotron", "nemotron_h", "nanochat_2026")
LANGUAGE_MODEL = "language_model."  # begins the names of these tensors in a multimodal checkpoint
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
    era: str | None = None,
    quantize: str | None = None,
    parallel: bool = False,
) -> "Model":
    """Load the model of a checkpoint folder, ready to run.

    folder: a path, or a name that finding.py knows; a model of the Hub may be downloaded.
    Its `stop_ids` are the checkpoint's; `skipped` lists the tensors left out: {name: bytes}. To
    train it, call model.requires_grad_() first; the files do not change.

    device: one, or several as "cuda:0,cuda:1": the layers are spread over them, and one after the
    other computes (checkpoint/devices.py).

    dtype None keeps the checkpoint's (of several, the one that most weights have); else it is
    float32, bfloat16 or float16, as a string or torch's. progress(done, total), if given, is called
    with bytes before the first tensor and after each. era, for a nanochat training folder, is a
    name in nanochat_2026.ERAS; None detects it by the tensors. quantize, "int4" or "int8", makes
    the weights of the linears smaller. parallel: each process of torch.distributed's default group
    gets its part of one model (linears/parallel.py); call it with the same arguments on all.
    Raises FileNotFoundError for a missing file, ValueError for one that cannot be used.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in DTYPES:
        raise ValueError(f"dtype {name} is not supported; supported: {', '.join(DTYPES)}")
    devices, ranks = usable_devices(device), ranks_here() if parallel else None
    source = read(folder, era, quantize=quantize, ranks=ranks)
    return finish(source, devices, DTYPES.get(name), progress)


def usable_devices(device):
    """A list of torch.device: of one, or of "cuda:0,cuda:1" and the like.

    Raises ValueError for one that torch does not know or find here.
    """
    names = device.split(",") if isinstance(device, str) else [device]
    try:
        return [torch.empty(0, device=name).device for name in names]
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r} cannot be used: {one_line(error)}") from None


@dataclass
class Source:
    """A checkpoint folder as it was read: a model without weights, and the tensors for it."""

    folder: Path
    format: str  # see detect_format
    architecture: object  # the module of this package
    model: nn.Module  # on the meta device
    config: dict  # config.json, of the language model; made here for a nanochat training folder
    tensors: dict  # parameter name -> list of (name in the file, tensor); mapped, not read yet
    skipped: dict  # names of the tensors left out -> bytes
    files: dict  # each file that was read -> files.state_of it, before
    scheme: str | None  # a name in quantized.SCHEMES if linears are quantised
    ranks: Ranks | None = None  # if it is one process's part of the model
    draft_head: dict = field(default_factory=dict)  # of the skipped tensors mtp.*: name -> tensor


def read(folder, era=None, step=None, quantize=None, quantize_head=False, ranks=None):
    """Read a folder into a Source, without the weights.

    era and step are for a nanochat training folder; step None is the highest. quantize is the
    scheme to quantise the linears with, None for the folder's own; quantize_head: the head, too.
    ranks: read this process's part only; its rank need not have begun.
    """
    folder = find(folder)
    states = {path: state_of(path) for path in folder.iterdir()}
    path = folder / "config.json"
    hub = read_json(path) if path.is_file() else None
    format = detect_format(folder, hub)
    if format == "nanochat":
        path, config, tensors, files = nanochat_folder.read_training_folder(folder, era, step)
        architecture, model_class, model_config = read_config(path, config)
    else:
        for what, value in (("an era", era), ("steps", step)):
            if value is not None:
                raise ValueError(f"{folder}: {value!r}: only a nanochat training folder has {what}")
        config = language_config(hub)
        architecture, model_class, model_config = read_config(path, config)
        tensors, files = read_tensors(folder)
        files = [path, *files]

    try:
        tensors, scheme, skipped = join_scales(format, config, tensors)
        named, unused = name_tensors(format, architecture, tensors)
        skipped |= {name: tensors[name].nbytes for name in unused}
        drafts = [n for n in unused if n.removeprefix(LANGUAGE_MODEL).startswith("mtp.")]
        draft_head = {name: tensors[name] for name in drafts}
        check_counts(model_config, len(named))
        if ranks is None:
            model, whole = build(model_class, model_config), named
        else:
            check_sizes(model_config, ranks.count)
            model = build(model_class, local_config(model_config, ranks.count))
            whole, named = named, cut_model(model, model_config, named, ranks)
        scheme = swap_linears(model, whole, scheme, quantize, quantize_head)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    model.stop_ids = stop_ids(folder, config)
    files = {path: states[path] for path in files}
    return Source(
        *(folder, format, architecture, model, config, named, skipped, files, scheme, ranks),
        draft_head=draft_head,
    )


# --- Read ---


def detect_format(folder, hub):
    """The format of a folder: "hub", "modelopt", "nanomodels" or "nanochat".

    hub is its config.json, None if there is none. Raises FileNotFoundError for no checkpoint,
    ValueError for a quantisation that modelopt.py does not read.
    """
    if hub is None:
        if nanochat_folder.is_training_folder(folder):
            return "nanochat"
        raise FileNotFoundError(
            f"{folder}: no checkpoint here: neither a config.json nor a nanochat model_*.pt"
        )
    config = language_config(hub)
    recipe = config.get("quantization_config") or hub.get("quantization_config") or None
    has_modelopt = modelopt.detect_modelopt(folder, recipe)
    if "nanomodels" in config:
        return "nanomodels"
    return "modelopt" if has_modelopt else "hub"


def language_config(hub):
    """The part of a config.json about the language model: of a multimodal one, under a key."""
    parts = (hub.get(key) for key in ("text_config", "llm_config", "language_config"))
    return next((part for part in parts if isinstance(part, dict)), hub)


def read_config(path, config):
    """The architecture's module, the model's class, and its Config, for the config.json at path."""
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
        return architecture, classes[name], architecture.config_from_hub(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# --- Join, name, build ---


def join_scales(format, config, tensors):
    """Join each quantised weight with its scales.

    Returns {name: tensor or StoredWeight}, the scheme of the folder's linears or None, and the
    scales that are not used: {name: bytes}.
    """
    if format == "modelopt":
        joined, unused = modelopt.join_scales(tensors)
        return joined, None, unused
    if format != "nanomodels":
        return tensors, None, {}
    written = config["nanomodels"]
    if not isinstance(written, dict):
        raise ValueError(f"config.json: nanomodels is {written!r}; it must be an object")
    scheme = written.get("quantize")
    tensors = {name: t for name, t in tensors.items() if not name.startswith(PADDING_PREFIX)}
    return tensors if scheme is None else quantized.join_scales(tensors, scheme), scheme, {}


def name_tensors(format, architecture, tensors):
    """Name tensors as parameters, and list the names of the others, as `rename` does."""
    if format == "nanomodels":  # they have the parameters' names
        return {name: [(name, tensor)] for name, tensor in tensors.items()}, []
    if format == "nanochat":
        return rename(tensors, architecture.NANOCHAT_NAMES)
    return rename(tensors, hub_names(architecture, tensors))


def hub_names(architecture, tensors):
    """An architecture's table for `rename`, with a multimodal checkpoint's names if need be."""
    table = architecture.HUB_NAMES
    if not any(name.startswith(LANGUAGE_MODEL) for name in tensors):
        return table
    others = {name.split(".")[0] for name in tensors if not name.startswith(LANGUAGE_MODEL)}
    others -= {name.split(".")[0] for name in table}  # no tensor of its own lies outside
    prefixed = {LANGUAGE_MODEL + name: parameter for name, parameter in table.items()}
    return prefixed | {part: None for part in others} | {f"{part}.*": None for part in others}


def build(model_class, config):
    """A model without weights, on the meta device."""
    with torch.device("meta"), WithoutInitialisation():
        return model_class(config)


class WithoutInitialisation(TorchFunctionMode):
    """Makes torch.nn.init do nothing: on the meta device it imports sympy, for 2 s (torch 2.13)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) != "torch.nn.init":
            return func(*args, **(kwargs or {}))


def swap_linears(model, named, stored, quantize, quantize_head):
    """Swap in the quantised linears of a model; return their scheme, None if there are none.

    named: as Source.tensors; stored: the scheme of the folder, or None; the rest as for `read`.
    """
    if stored is not None:
        if quantize not in (None, stored) or quantize_head:
            raise ValueError(f"its weights are {stored} already")
        head = any(isinstance(t, QuantizedWeight) for _, t in named.get("lm_head.weight", ()))
        quantized.swap_linears(model, stored, head)
        return stored
    if quantize is not None:
        count = quantized.swap_linears(model, quantize, quantize_head)
        head = getattr(model, "lm_head", None)
        if not count or (quantize_head and not isinstance(head, QuantizedLinear)):
            raise ValueError(
                f"{quantize} is for linears whose sizes are multiples of {quantized.GROUP}; "
                f"{'its head is not one' if count else 'there is none'}"
            )
    return quantize


# --- Fill ---


def finish(source, devices=("cpu",), dtype=None, progress=None):
    """Fill the model of a Source with its weights; arguments as for `load`."""
    devices = [torch.device(device) for device in devices]
    try:
        matches = match_tensors(source.model, source.tensors)
        spread = Devices(devices, matches)
        for device in devices:
            here = [match for match in matches if spread.of(match.places[0].name) == device]
            check_memory(source, here, device, dtype)
        fill(matches, spread, dtype, progress)
    except ValueError as error:
        raise ValueError(f"{source.folder}: {error}") from None
    source.model.skipped = source.skipped
    prepack_linears(source.model)
    if source.ranks is not None:
        connect(source.model, source.ranks)
    if len(devices) > 1:
        connect_devices(source.model)
    return source.model.eval()


@dataclass(frozen=True)
class Place:
    """Where a module holds a parameter."""

    module: nn.Module
    leaf: str  # the parameter's name in the module
    name: str  # and in the model

    @property
    def keeps_float32(self):
        """Whether the parameter is float32 whatever the model's dtype."""
        return self.leaf in getattr(self.module, "float32", ())

    @property
    def is_quantized(self):
        return isinstance(self.module, QuantizedLinear) and self.leaf == "weight"


@dataclass(frozen=True)
class Match:
    """A tensor of a file, and the parameter that it is for."""

    name: str  # in the file
    tensor: torch.Tensor | StoredWeight | Cut
    places: list[Place]  # several if the parameter is tied


def match_tensors(model, tensors):
    """Find the tensor of each parameter: a list of Match; tensors as in Source.

    Tied parameters take one tensor between them. Raises ValueError for an unexpected or missing
    tensor, another shape, or a dtype that is not supported.
    """
    parameters = {}  # id of a parameter -> the parameter, and its places
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            place = Place(module, leaf, f"{prefix}.{leaf}" if prefix else leaf)
            parameters.setdefault(id(parameter), (parameter, []))[1].append(place)
    left = dict(tensors)
    given = [
        (parameter, places, [entry for place in places for entry in left.pop(place.name, ())])
        for parameter, places in parameters.values()
    ]
    if left:
        names = [name for entries in left.values() for name, _ in entries]
        raise ValueError(f"unexpected tensors: {listed(names)}")
    missing = [places[0].name for _, places, entries in given if not entries]
    if missing:
        raise ValueError(f"missing tensors: {listed(missing)}")
    return [choose(*each) for each in given]


def choose(parameter, places, entries):
    """The Match of a parameter; entries are its tensors, more than one if it is tied."""
    for name, tensor in entries:
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{name} is {list(tensor.shape)}; the config asks for {list(parameter.shape)}"
            )
        if tensor.dtype not in DTYPES.values():
            raise ValueError(f"{name} is {tensor.dtype}; supported: float32, bfloat16, float16")
    if len(entries) > len(places):
        raise ValueError(f"one parameter is there twice: {listed([name for name, _ in entries])}")
    (first_name, first), *others = entries
    for name, tensor in others:
        dtype = first.dtype
        same = tensor.dtype == dtype
        if not same or not torch.equal(tensor.to("cpu", dtype), first.to("cpu", dtype)):
            raise ValueError(f"{first_name} and {name} are one parameter, but differ")
    return Match(first_name, first, places)


def usual_dtype(matches):
    """The dtype that most weights have."""
    sizes = Counter()
    for match in matches:
        sizes[match.tensor.dtype] += match.tensor.numel()
    return sizes.most_common(1)[0][0]


def memory_needed(source, matches, dtype, scheme):
    """Bytes to hold the parameters and to read the largest; arguments as for sizes_in_memory."""
    sizes = sizes_in_memory(source, matches, dtype, scheme)
    return sum(sizes) + max(sizes)


def sizes_in_memory(source, matches, dtype, scheme):
    """Bytes of each parameter once it is loaded; dtype None is the usual one.

    scheme: count the linears as if they were quantised so, unless they are quantised already.
    """
    wanted = dtype or usual_dtype(matches)
    eligible = [] if source.scheme or not scheme else quantized.eligible(source.model)
    to_quantise, sizes = {id(linear) for _, linear in eligible}, []
    for match in matches:
        place, shape = match.places[0], match.tensor.shape
        if place.is_quantized or (place.leaf == "weight" and id(place.module) in to_quantise):
            parts = quantized.parts_of(source.scheme or scheme, shape)
            sizes.append(sum(math.prod(part) * kind.itemsize for _, (kind, part) in parts))
        else:
            sizes.append(math.prod(shape) * (4 if place.keeps_float32 else wanted.itemsize))
    return sizes


def check_memory(source, matches, device, dtype):
    """Raise ValueError for a model that does not fit into memory, before it is read."""
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu":
        available = memory.available_memory()
    else:
        return
    needed = memory_needed(source, matches, dtype, None)
    if available is None or needed <= available:
        return
    smaller = [("--dtype bfloat16", memory_needed(source, matches, torch.bfloat16, None))]
    if source.scheme is None:
        for scheme in ("int8", "int4"):
            size = memory_needed(source, matches, torch.bfloat16, scheme)
            smaller.append((f"--dtype bfloat16 --quantize {scheme}", size))
    fit = [f"{options} needs {size / 1e9:.1f}" for options, size in smaller if size <= available]
    raise ValueError(
        f"loading needs {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} are available; "
        + (", ".join(fit) or f"the least, {smaller[-1][0]}, needs {smaller[-1][1] / 1e9:.1f}")
    )


def fill(matches, devices, dtype, progress):
    """Put each tensor into its places; devices as Devices, dtype None is the usual one.

    The pages of a tensor that was copied leave memory before the next one is read.
    """
    wanted = dtype or usual_dtype(matches)
    total, done = sum(match.tensor.nbytes for match in matches), 0
    if progress is not None:
        progress(0, total)
    for match in matches:
        tensor, place = match.tensor, match.places[0]
        device = devices.of(place.name)
        if place.is_quantized:
            stored = tensor.read(wanted) if isinstance(tensor, Cut) else tensor
            place.module.load_weight(stored, device, wanted)
            used = (place.module.codes, place.module.scales)
        else:
            parameter = tensor.to(device, torch.float32 if place.keeps_float32 else wanted)
            parameter = nn.Parameter(parameter, requires_grad=False)
            for each in match.places:
                setattr(each.module, each.leaf, parameter)
            used = (parameter,)
        addresses = {part.data_ptr() for part in used}
        for part in tensor.parts if isinstance(tensor, StoredWeight | Cut) else (tensor,):
            if part.data_ptr() not in addresses:
                memory.release(part)
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
