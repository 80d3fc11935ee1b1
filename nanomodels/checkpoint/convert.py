"""What convert_hf.py does: read a checkpoint folder, write it as a new one.

    read the source's headers -> a Part for each tensor -> Files with their headers
    -> each Part read, cast or quantised, and written -> the folder gets its name

There are two layouts: ours, "nanomodels", and the Hub's, "hf".
"""

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from math import prod
from pathlib import Path

import torch

from nanomodels import nanochat
from nanomodels.checkpoint import loading
from nanomodels.checkpoint.finding import COMPANIONS, SHIPPED_NAMES, find, origin
from nanomodels.checkpoint.names import left_out, numbers, pattern
from nanomodels.checkpoint.portable import portable_config, portable_tokenizer_config
from nanomodels.checkpoint.tensors import read_tensors
from nanomodels.checkpoint.writing import (
    MARK,
    Mapped,
    Part,
    Watch,
    existing,
    flush,
    index_file,
    json_bytes,
    kind_of,
    plan_files,
    publish,
    raw,
    restore_old,
    staging,
    tell,
    write,
)
from nanomodels.linears.quantized import parts_of
from nanomodels.text.files import LARGEST, check_file, read_json
from nanomodels.text.nanochat_pickle import hub_files
from nanomodels.text.tokenizer import Tokenizer

# All files that a converted folder can have.
CONTENTS = (*COMPANIONS, "config.json", "model*.safetensors", "model.safetensors.index.json", MARK)
ALIGNMENT = 64  # bytes, in our layout: a cache line, and the width of the widest vector register
SHARD = 5_000_000_000  # bytes at most of a file's tensors, in the Hub's layout


def convert(
    src,
    dst=None,
    *,
    weights,
    to="nanomodels",
    dtype=None,
    quantize=None,
    quantize_head=False,
    step=None,
    era=None,
    dry_run=False,
    verify=False,
    force=False,
    progress=lambda done, total: None,
):
    """Write the checkpoint `src`, a folder or a name, as a new folder `dst`, in the layout `to`.

    dst None is a folder in `weights`, named after the checkpoint. dtype, the name of one, None for
    each tensor's own. step and era are a nanochat training folder's, as for loading.read.
    progress(done, total) is called with bytes while the files are written.
    Raises ValueError, FileNotFoundError or another OSError; then nothing has changed.
    """
    check_options(to, quantize, quantize_head)
    src = find(src)
    dst = check_target(src, dst or weights / default_name(src, to, quantize), force)
    source = loading.read(src, era, step, quantize, quantize_head)
    if to == "hf" and not source.architecture.HUB_NAMES:
        model_type = source.config["model_type"]
        raise ValueError(f"{src}: --to hf: transformers has no class for {model_type}")
    companions = read_companions(source, to)
    parts = plan_parts(source, to, dtype)
    files = plan_files(parts, 1, SHARD) if to == "hf" else plan_files(parts, ALIGNMENT)
    left = source.skipped.keys() - (source.draft_head.keys() if to == "hf" else set())
    describe(source, dst, parts, files, companions, {n: source.skipped[n] for n in left})
    total = sum(file.size for file in files)
    free = shutil.disk_usage(existing(dst)).free
    if total > free:
        raise ValueError(
            f"{dst}: needs {total / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free"
        )
    if dry_run:
        return
    if len(files) > 1:
        companions["model.safetensors.index.json"] = json_bytes(index_file(files))
    companions["config.json"] = json_bytes(config_file(source, to, dtype))
    watch, began, done = Watch(source.files), time.monotonic(), 0
    with staging(dst) as folder:
        for name, content in companions.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        try:
            for file in files:
                path, mapped = folder / file.name, Mapped(source.files)
                write(path, file, mapped, lambda n, before=done: progress(before + n, total), watch)
                done += file.size
        finally:
            watch.check()  # a source that has changed explains any other error
        if verify:
            check_written(folder, source, parts, dtype)
            watch.check()
        flush(folder)
        publish(folder, dst, lambda: check_replaced(dst, force))
    tell(f"written   {dst}: {total / 1e9:.2f} GB in {time.monotonic() - began:.1f} s")


# --- The target ---


def check_options(to, quantize, quantize_head):
    """Refuse options that contradict each other."""
    if quantize_head and not quantize:
        raise ValueError("--quantize-head goes with --quantize")
    if quantize and to == "hf":
        raise ValueError(f"--quantize {quantize}: the Hub's layout has no such weights")


def default_name(src, to, quantize):
    """The name of the target where none is given."""
    suffix = "-hf" if to == "hf" else f"-{quantize}" if quantize else ""
    name = origin(src)[0].split("/")[-1] + suffix
    if name in SHIPPED_NAMES:
        raise ValueError(f"{name} is the name of a shipped model; give another DST")
    return name


def check_target(src, dst, force):
    """The folder to write, as an absolute path. Refuse one where other files would be lost."""
    src, dst = src.resolve(), Path(os.path.abspath(dst))
    if dst.resolve() in (src, *src.parents) or src in dst.resolve().parents:
        raise ValueError(f"{dst} is SRC, or one is in the other; give another DST")
    restore_old(dst)
    check_replaced(dst, force)
    return dst


def check_replaced(dst, force):
    """Whether there is a folder to replace. Raise ValueError where other files would be lost."""
    if not os.path.lexists(dst):
        return False
    if not force:
        raise ValueError(f"{dst} is there already; --force replaces it, or give another DST")
    if other := foreign(dst):
        raise ValueError(f"{other}: {dst} is not replaced")
    return True


def foreign(folder):
    """What shows that a folder is more than a checkpoint, or None."""
    if folder.is_symlink() or not (folder / "config.json").is_file():
        return f"{folder} is not the folder of a checkpoint"
    ours = {path for wildcard in CONTENTS for path in folder.glob(wildcard)}
    ours |= {path.parent for path in ours}
    if others := sorted({*folder.rglob("*")} - ours):
        return f"{others[0]} is no part of a checkpoint"
    return None


# --- What to write ---


def read_companions(source, to):
    """The small files of the new folder: {name: bytes}."""
    src = source.folder
    paths = sorted({path for wildcard in COMPANIONS for path in src.glob(wildcard)})
    for path in paths:
        check_companion(path, src)
    size, most = sum(path.stat().st_size for path in paths), 4 * LARGEST
    if size > most:
        raise ValueError(f"{src}: its small files have {size:,} bytes; at most {most:,} are copied")
    files = {str(path.relative_to(src)): path.read_bytes() for path in paths}
    if source.format == "nanochat":
        eos = {"eos_token_id": source.config["eos_token_id"]}
        files["generation_config.json"] = json_bytes(nanochat.GENERATION_CONFIG | eos)
    if not has_tokenizer(files):
        with contextlib.suppress(FileNotFoundError):  # the source may have none
            for name, content in hub_files(src).items():
                files[name] = content.encode() if isinstance(content, str) else json_bytes(content)
    path, tokenizer = src / "tokenizer_config.json", None
    if to == "hf" and (path in paths or has_tokenizer(files)):
        with contextlib.suppress(ValueError, FileNotFoundError):  # others may read it, or need none
            tokenizer = Tokenizer.load(src)
        given = read_json(path) if path in paths else json.loads(files.get(path.name, "{}"))
        config = portable_tokenizer_config(given, tokenizer)
        if config != given:
            files[path.name] = json_bytes(config)
    return files


def check_companion(path, src):
    """Refuse a link out of the folder: the copy could carry any file of this user to the Hub."""
    check_file(path)
    folder, file = src.resolve(), path.resolve()
    folders = [folder]
    if folder.parent.name == "snapshots":  # the Hub's cache: its links lead to the folder blobs
        folders.append(folder.parents[1] / "blobs")
    if not any(each in file.parents for each in folders):
        raise ValueError(
            f"{path} is a link to {file}, outside the folder; put a copy in its place if you want "
            "it converted, too"
        )


def has_tokenizer(files):
    return any(name == "tokenizer.json" or name.endswith(".model") for name in files)


def plan_parts(source, to, dtype):
    """The Parts of a source, in the order in which they are read and written."""
    try:
        matches = loading.match_tensors(source.model, source.tensors)
    except ValueError as error:
        raise ValueError(f"{source.folder}: {error}") from None
    names = {}  # parameter name -> the Hub's; of several names in a table the first
    for hub, ours in source.architecture.HUB_NAMES.items():
        if ours is not None and ours.count("{}") == hub.count("{}"):
            names.setdefault(ours, hub)
    parts = {}
    for match in matches:
        tensor, place = match.tensor, match.places[0]
        name = place.name
        if place.is_quantized and to != "hf":
            outputs = [(name + end, *form) for end, form in parts_of(source.scheme, tensor.shape)]
        else:
            if to == "hf":
                name = names[pattern(name)].format(*numbers(name))
            outputs = [(name, written_dtype(place, tensor, dtype), tensor.shape)]
        part = Part(tensor, outputs, source.scheme)
        parts |= {place.name: part for place in match.places}
    # In the order of the source's files, because disks read in order fastest; wide numbers before
    # narrow ones, so that each begins at a multiple of its width in the Hub's layout, too.
    ordered = [*{id(parts[name]): parts[name] for name in source.tensors}.values()]
    if to == "hf":
        ordered += plan_draft_head(source, matches, dtype)
    return sorted(ordered, key=lambda part: -part.outputs[0][1].itemsize)


def plan_draft_head(source, matches, dtype):
    """The Parts of mtp.*, which this program does not compute with but others do."""
    places = [place for match in matches for place in match.places if place.keeps_float32]
    kept = {tuple(place.name.split(".")[-2:]) for place in places}  # (module, leaf)
    parts = []
    for name, tensor in source.draft_head.items():
        name = name.removeprefix(loading.LANGUAGE_MODEL)
        keeps = tensor.dtype == torch.float32 and tuple(name.split(".")[-2:]) in kept
        wanted = tensor.dtype if dtype is None or keeps else getattr(torch, dtype)
        parts.append(Part(tensor, [(name, wanted, tensor.shape)], None))
    return parts


def written_dtype(place, tensor, dtype):
    """The dtype in which a tensor that is not quantised is written."""
    if dtype is None:
        return tensor.dtype
    return torch.float32 if place.keeps_float32 else getattr(torch, dtype)


def describe(source, dst, parts, files, companions, skipped):
    """Tell what will be done; skipped {name: bytes}: the tensors left out."""
    was, will = Counter(), Counter()
    for part in parts:
        was[kind_of(part.tensor)] += part.tensor.nbytes
        for _, dtype, shape in part.outputs:
            will[str(dtype)[6:]] += prod(shape) * dtype.itemsize
    model = type(source.model).__name__
    tell(f"source    {source.folder}: {model}, {len(parts)} tensors, {sizes(was)}")
    if skipped:
        tell(f"left out  {left_out(skipped)}")
    tell(f"target    {dst}: {sizes(will)}")
    if count := sum(len(part.outputs) > 1 for part in parts):
        tell(f"{source.scheme:9} {count} of {len(parts)} tensors")
    tell(f"files     {', '.join([*(file.name for file in files), 'config.json', *companions])}")
    if not has_tokenizer(companions):
        tell("          no tokenizer: SRC has none")


def sizes(kinds):
    return ", ".join(f"{size / 1e6:,.1f} MB {kind}" for kind, size in kinds.items())


def config_file(source, to, dtype):
    """The content of the new folder's config.json."""
    # auto_map names code of the repository, which is not copied.
    without = ["nanomodels", "quantization_config", "auto_map"]
    without += ["dtype", "torch_dtype"] if dtype else []
    config = {key: value for key, value in source.config.items() if key not in without}
    if dtype:
        config["dtype"] = dtype
    if to == "hf":
        return portable_config(config, source.architecture, source.model, bool(source.draft_head))
    name, revision = origin(source.folder)
    if source.format == "nanochat":
        revision = next(path.stem for path in source.files if path.suffix == ".pt")  # the step
    written = source.config.get("nanomodels") or {"source": name, "revision": revision}
    return config | {"nanomodels": written | {"quantize": source.scheme}}


# --- Verifying ---


@torch.inference_mode()
def check_written(folder, source, parts, dtype):
    """Read the new folder: its tensors, and the logits of a prompt, are the source's to the bit."""
    written, files = read_tensors(folder)
    new, old = Mapped(files), Mapped(source.files)
    for part in parts:
        for (name, _, _), tensor in zip(part.outputs, part.make(old), strict=True):
            found = new.read(written[name])
            same = found.dtype == tensor.dtype and found.shape == tensor.shape
            if not same or not torch.equal(raw(found), raw(tensor)):
                raise ValueError(f"{source.folder}: {name} does not read back as it was written")
    dtype = getattr(torch, dtype) if dtype else None
    models = [loading.finish(s, dtype=dtype) for s in (loading.read(folder), source)]
    ids = torch.arange(16)[None] * 7919 % models[0].config.vocab_size
    new, old = (torch.cat(tuple(model(ids)), -1).double() for model in models)
    if torch.equal(raw(new), raw(old)):
        tell("verified  every tensor and the logits of 16 tokens, to the bit")
        return
    # Tensors that begin elsewhere in memory may be summed in another order.
    difference = ((new - old).abs().mean() / old.abs().mean()).item()
    has_float32 = next(models[1].parameters()).dtype == torch.float32
    if not difference <= (1e-5 if has_float32 else 0.02):
        raise ValueError(f"{source.folder}: the new folder's logits differ by {difference:.1e}")
    tell(f"verified  every tensor to the bit; the logits differ by {difference:.1e} of them")
