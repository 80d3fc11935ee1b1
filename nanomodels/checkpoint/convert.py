"""What convert_hf.py does: a loading.Source into a new folder, in our layout or the Hub's.

    read the source's headers -> a Part for each tensor -> Files with their headers
    -> each Part read, cast or quantised, and written -> the folder gets its name

No more than one tensor is in memory at a time.
"""

import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from nanomodels import nanochat
from nanomodels.checkpoint import loading
from nanomodels.linears.quantized import Int4, Int8, QuantizedLinear, parts_of, quantize
from nanomodels.text.files import read_json, say, state_of
from nanomodels.text.nanochat_pickle import hub_files

# What goes along as it is.
COMPANIONS = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "*.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
# All that a converted folder can hold.
CONTENTS = (*COMPANIONS, "config.json", "model*.safetensors", "model.safetensors.index.json")
ALIGNMENT = 64  # bytes; a cache line, and the width of the widest vector register
SHARD = 5_000_000_000  # most bytes of a file in the Hub's layout
PIECE = 1 << 26  # bytes written at a time
SAFETENSORS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "uint8": "U8", "int8": "I8"}


def tell(line):
    """Write to stdout; that its reader is gone is no reason to stop."""
    try:
        print(line, flush=True)
    except UnicodeEncodeError:  # a terminal that knows no such letter
        print(ascii(line), flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def convert(args, weights):
    """Run convert_hf.py; weights is the folder that DST is in where it is not given."""
    dst = find_target(args, weights)
    source = read_source(args)
    companions = gather_companions(args, source)
    parts = plan(args, source)
    files = layout(args, parts)
    describe(args, dst, source, parts, files, companions)
    total = sum(file.size for file in files)
    free = shutil.disk_usage(existing(dst)).free
    if total > free:
        raise ValueError(
            f"{dst}: needs {total / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free"
        )
    if args.dry_run:
        return
    if len(files) > 1:
        companions["model.safetensors.index.json"] = json_bytes(index_file(files))
    companions["config.json"] = json_bytes(config_file(args, source))
    watch, progress = Watch(source.files), Progress(total)
    with staging(dst) as folder:
        for name, content in companions.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        try:
            for file in files:
                write(folder / file.name, file, Mapped(source.files), progress, watch)
        finally:
            progress.end()
            watch.check()  # what is wrong with a file that has changed is that
        if args.verify:
            verify(args, folder)
            watch.check()
        flush(folder)
        publish(folder, dst, args.force)
    tell(f"written   {dst}: {total / 1e9:.2f} GB in {progress.seconds:.1f} s")


# --- what to do ---


def find_target(args, weights):
    """The folder to write; refused where something would be lost."""
    if args.quantize_head and not args.quantize:
        raise ValueError("--quantize-head goes with --quantize")
    if args.quantize and args.to == "hf":
        raise ValueError(f"--quantize {args.quantize}: the Hub's layout has no such weights")
    suffix = "-hf" if args.to == "hf" else f"-{args.quantize}" if args.quantize else ""
    dst = args.dst or weights / (origin(args.src)[0].split("/")[-1] + suffix)
    src, dst = args.src.resolve(), Path(os.path.abspath(dst))
    if dst.resolve() in (src, *src.parents) or src in dst.resolve().parents:
        raise ValueError(f"{dst} is SRC, or one is in the other; give another DST")
    if beside(dst, "old").exists() and not os.path.lexists(dst):
        beside(dst, "old").rename(dst)  # a run was killed between two steps of `publish`
    if os.path.lexists(dst):
        if not args.force:
            raise ValueError(f"{dst} is there already; --force replaces it, or give another DST")
        if dst.is_symlink() or not (dst / "config.json").is_file():
            raise ValueError(f"{dst} is not the folder of a checkpoint: not replaced")
        ours = {path for pattern in CONTENTS for path in dst.glob(pattern)}
        ours |= {path.parent for path in ours}
        if others := sorted({*dst.rglob("*")} - ours):
            raise ValueError(f"{others[0]} is no part of a checkpoint: {dst} is not replaced")
    return dst


def beside(dst, what):
    """The hidden folder in which a run keeps something beside its target."""
    return dst.parent / f".{dst.name}.{what}"


def existing(path):
    """The nearest folder above a path that exists."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def origin(folder):
    """(name, revision or None) of a checkpoint, as far as its place says."""
    folder = folder.resolve()
    # The Hub's cache: models--OWNER--NAME/snapshots/REVISION.
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.removeprefix("models--").replace("--", "/"), folder.name
    # A download with local_dir.
    with contextlib.suppress(OSError, UnicodeDecodeError, IndexError):
        metadata = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
        return folder.name, metadata.read_text(encoding="utf-8").split()[0]
    return folder.name, None


def read_source(args):
    """The loading.Source of SRC, quantised as asked for."""
    source = loading.read(args.src, args.era, args.step)
    if args.to == "hf" and not source.architecture.HUB_NAMES:
        model_type = source.config["model_type"]
        raise ValueError(f"{args.src}: --to hf: transformers has no class for {model_type}")
    if args.quantize:
        source.quantize(args.quantize, args.quantize_head)
    return source


def gather_companions(args, source):
    """The small files of the new folder: name -> bytes."""
    found = sorted({path for pattern in COMPANIONS for path in args.src.glob(pattern)})
    files = {str(path.relative_to(args.src)): path.read_bytes() for path in found}
    if source.native:
        eos = {"eos_token_id": source.config["eos_token_id"]}
        files["generation_config.json"] = json_bytes(nanochat.GENERATION_CONFIG | eos)
    if not has_tokenizer(files):
        with contextlib.suppress(FileNotFoundError):  # SRC may have none
            for name, content in hub_files(args.src).items():
                files[name] = content.encode() if isinstance(content, str) else json_bytes(content)
    path = args.src / "tokenizer_config.json"
    if args.to == "hf" and path in found:
        config = read_json(path)
        if config.pop("auto_map", None):  # code of the repository, which is not copied
            files[path.name] = json_bytes(config)
    return files


def has_tokenizer(files):
    return any(name == "tokenizer.json" or name.endswith(".model") for name in files)


@dataclass
class Part:
    """A tensor of the source, and what is written for it: one tensor, or two if it is quantised."""

    tensor: object  # torch.Tensor, or one of quantized.py or modelopt.py
    outputs: list  # (name, dtype, shape)
    scheme: str | None

    @property
    def size(self):
        """Bytes that are written."""
        return sum(prod(shape) * dtype.itemsize for _, dtype, shape in self.outputs)

    def make(self, mapped):
        """The tensors to write."""
        tensor, (name, dtype, _) = mapped.read(self.tensor), self.outputs[0]
        if len(self.outputs) == 1:
            made = tensor.to("cpu", dtype)
            if made.dtype != tensor.dtype and made.isinf().any():
                wide = tensor.to("cpu", torch.float64)
                if (made.isinf() & wide.isfinite()).any():
                    largest = wide[wide.isfinite()].abs().max().item()
                    raise ValueError(f"{name}: {largest:.3g} is too large for {kind_of(made)}")
            return [made]
        if not isinstance(tensor, Int4 | Int8):
            try:
                tensor = quantize(tensor.to("cpu", tensor.dtype), self.scheme)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return [tensor.codes, tensor.scales]


def plan(args, source):
    """The Parts of a source, in the order in which they are read and written."""
    try:
        found = loading.match(source.model, source.tensors)
    except ValueError as error:
        raise ValueError(f"{args.src}: {error}") from None
    names = {}  # our name -> the Hub's, where a table has several the first
    for hub, ours in source.architecture.HUB_NAMES.items():
        if ours is not None and ours.count("{}") == hub.count("{}"):
            names.setdefault(ours, hub)
    parts = {}
    for _, tensor, places in found:
        module, leaf, name = places[0]
        if args.to == "hf":
            target = names[loading.pattern(name)].format(*loading.numbers(name))
            outputs = [(target, chosen_dtype(args, module, leaf, tensor), tensor.shape)]
        elif isinstance(module, QuantizedLinear) and leaf == "weight":
            outputs = [(name + end, *what) for end, what in parts_of(source.scheme, tensor.shape)]
        else:
            outputs = [(name, chosen_dtype(args, module, leaf, tensor), tensor.shape)]
        part = Part(tensor, outputs, source.scheme)
        parts |= {full: part for _, _, full in places}
    # In the order of the source's files, as disks like it; wide numbers before narrow ones, so
    # that each stands at a multiple of its width in the Hub's layout, too.
    ordered = {id(parts[name]): parts[name] for name in source.tensors}.values()
    return sorted(ordered, key=lambda part: -part.outputs[0][1].itemsize)


def chosen_dtype(args, module, leaf, tensor):
    """The dtype in which a tensor that is not quantised is written."""
    if args.dtype is None:
        return tensor.dtype
    return torch.float32 if loading.is_exact(module, leaf) else getattr(torch, args.dtype)


@dataclass
class File:
    """A safetensors file to write."""

    name: str
    parts: list
    gaps: list  # bytes of padding before each output of the parts
    header: bytes
    size: int  # bytes of the file


def layout(args, parts):
    """The Files to write: one, or in the Hub's layout as many as SHARD makes."""
    groups, size = [[]], 0
    for part in parts:
        if args.to == "hf" and groups[-1] and size + part.size > SHARD:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.size
    if len(groups) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    alignment = 1 if args.to == "hf" else ALIGNMENT
    return [make_file(name, group, alignment) for name, group in zip(names, groups, strict=True)]


def make_file(name, parts, alignment):
    """A File with its header (https://github.com/huggingface/safetensors, "Format").

    The format allows no holes, so what stands before an aligned tensor is a tensor, too.
    """
    header, gaps, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for tensor, dtype, shape in (output for part in parts for output in part.outputs):
        gaps.append(-offset % alignment)
        if gaps[-1]:
            header[f"{loading.PADDING}{offset}"] = entry("U8", gaps[-1:], offset, gaps[-1])
        offset += gaps[-1]
        size = prod(shape) * dtype.itemsize
        header[tensor] = entry(SAFETENSORS[str(dtype)[6:]], list(shape), offset, size)
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return File(name, parts, gaps, len(text).to_bytes(8, "little") + text, 8 + len(text) + offset)


def entry(dtype, shape, offset, size):
    return {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}


def describe(args, dst, source, parts, files, companions):
    """What will be done, on stdout."""
    was, will = Counter(), Counter()
    for part in parts:
        was[kind_of(part.tensor)] += part.tensor.nbytes
        for _, dtype, shape in part.outputs:
            will[str(dtype)[6:]] += prod(shape) * dtype.itemsize
    tell(f"source    {args.src}: {type(source.model).__name__}, {len(parts)} tensors, {sizes(was)}")
    if source.skipped:
        tell(f"left out  {loading.left_out(source.skipped)}")
    tell(f"target    {dst}: {sizes(will)}")
    if count := sum(len(part.outputs) > 1 for part in parts):
        tell(f"{source.scheme:9} {count} of {len(parts)} tensors")
    tell(f"files     {', '.join([*(file.name for file in files), 'config.json', *companions])}")
    if not has_tokenizer(companions):
        tell("          no tokenizer: SRC has none")


def kind_of(tensor):
    """float32, or FP8, NVFP4, Int4, Int8."""
    return str(tensor.dtype)[6:] if isinstance(tensor, torch.Tensor) else type(tensor).__name__


def sizes(kinds):
    return ", ".join(f"{size / 1e6:,.1f} MB {kind}" for kind, size in kinds.items())


def config_file(args, source):
    """config.json of the new folder."""
    # auto_map names code of the repository, which is not copied.
    without = ["nanomodels", "quantization_config", "auto_map"]
    without += ["dtype", "torch_dtype"] if args.dtype else []
    config = {key: value for key, value in source.config.items() if key not in without}
    if args.dtype:
        config["dtype"] = args.dtype
    if args.to == "hf":
        return config
    name, revision = origin(args.src)
    if source.native:
        revision = next(path.stem for path in source.files if path.suffix == ".pt")  # the step
    made = source.config.get("nanomodels") or {"source": name, "revision": revision}
    return config | {"nanomodels": made | {"quantize": source.scheme}}


def index_file(files):
    """model.safetensors.index.json."""
    names = {
        name: file.name for file in files for part in file.parts for name, _, _ in part.outputs
    }
    total = sum(part.size for file in files for part in file.parts)
    return {"metadata": {"total_size": total}, "weight_map": names}


def json_bytes(content):
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


# --- doing it ---


class Watch:
    """Notices when a file changes while it is read; files {path: state_of it}, before it was."""

    PAUSE = 0.05  # seconds between two looks

    def __init__(self, files):
        self.files, self.checked = files, 0.0

    def check(self, now=True):
        """Raise ValueError if one has changed; not now: if the last look was a while ago."""
        if not now and time.monotonic() < self.checked + self.PAUSE:
            return
        for path, state in self.files.items():
            if state_of(path) != state:
                raise ValueError(f"{path}: has changed while it was read; nothing was written")
        self.checked = time.monotonic()


class Mapped:
    """Reads mapped tensors from their files instead of from the map.

    So pages that were read do not stay in memory, and a file that is cut off meanwhile is a short
    read, where the map would end the process (SIGBUS). Where in which file a tensor lies is in
    /proc/self/maps; a system without it uses the map.
    """

    def __init__(self, files):
        paths, self.spans = {os.path.realpath(path) for path in files}, []
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
                addresses, _, offset, _, _, *path = line.split(maxsplit=5)
                if path and path[0] in paths:
                    start, end = (int(address, 16) for address in addresses.split("-"))
                    self.spans.append((start, end, int(offset, 16), path[0]))

    def read(self, tensor):
        """The tensor in memory of its own; of a quantised one each part."""
        if not isinstance(tensor, torch.Tensor):
            return type(tensor)(*map(self.read, tensor.stored))
        start = tensor.data_ptr()
        span = next((span for span in self.spans if span[0] <= start < span[1]), None)
        if span is None or not tensor.is_contiguous():
            return tensor
        copy, position = torch.empty_like(tensor), span[2] + start - span[0]
        left = memoryview(raw(copy).numpy())
        with open(span[3], "rb", buffering=0) as file:
            file.seek(position)
            while left and (count := file.readinto(left)):
                left = left[count:]
        if left:
            raise ValueError(f"{span[3]}: has changed while it was read; nothing was written")
        return copy


class Progress:
    """Bytes written so far, as a line on a terminal that is written over."""

    PAUSE = 0.2  # seconds between two lines

    def __init__(self, total):
        self.total, self.done, self.began, self.shown = total, 0, time.monotonic(), 0.0
        self.seconds = 0.0

    def add(self, size):
        self.done += size
        self.seconds = time.monotonic() - self.began
        if sys.stderr is None or not sys.stderr.isatty() or self.seconds < self.shown + self.PAUSE:
            return
        self.shown = self.seconds
        rate = self.done / self.seconds
        say(
            f"{self.done / 1e9:.2f} of {self.total / 1e9:.2f} GB, {rate / 1e9:.2f} GB/s, "
            f"{(self.total - self.done) / rate:.0f} s left\033[K",
            end="\r",
        )

    def end(self):
        if self.shown:
            say("", end="\r\033[K")


def write(path, file, mapped, progress, watch):
    """Write a File, tensor by tensor."""
    gaps = iter(file.gaps)
    with path.open("xb") as out:
        out.write(file.header)
        for part in file.parts:
            watch.check(now=False)
            write_part(out, part, gaps, mapped, progress)


def write_part(out, part, gaps, mapped, progress):
    """A function, so that what it has in memory is gone before the next part is read."""
    for tensor in part.make(mapped):
        out.write(bytes(next(gaps)))
        data = memoryview(raw(tensor).numpy())
        for start in range(0, len(data), PIECE):
            out.write(data[start : start + PIECE])
            progress.add(len(data[start : start + PIECE]))


@contextlib.contextmanager
def staging(dst):
    """An empty hidden folder beside dst; removed, whatever goes wrong.

    One that a killed run left behind is used again; a lock keeps two runs apart.
    """
    parents = [parent for parent in dst.parents if not parent.exists()]
    folder = beside(dst, "partial")
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(handle), folder.stat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            raise ValueError(f"{dst} is being written by another convert_hf.py")
        try:
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # somebody else has put something there
                for parent in parents:
                    parent.rmdir()
            raise
    finally:
        os.close(handle)


def flush(folder):
    """Make sure that a folder's files are on the disk before it gets its name."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def publish(folder, dst, force):
    """Give the finished folder its name; a folder that has it is removed afterwards."""
    old = beside(dst, "old")
    if force and dst.exists():
        shutil.rmtree(old, ignore_errors=True)
        dst.rename(old)
    try:
        folder.rename(dst)
    except BaseException:
        if old.exists() and not dst.exists():
            old.rename(dst)
        raise
    shutil.rmtree(old, ignore_errors=True)


@torch.inference_mode()
def verify(args, folder):
    """Read the new folder: its tensors, and the logits of a prompt, are the source's to the bit."""
    written, files = loading.read_tensors(folder)
    source = read_source(args)
    ours, theirs = Mapped(files), Mapped(source.files)
    for part in plan(args, source):
        for (name, _, _), tensor in zip(part.outputs, part.make(theirs), strict=True):
            found = ours.read(written[name])
            same = found.dtype == tensor.dtype and found.shape == tensor.shape
            if not same or not torch.equal(raw(found), raw(tensor)):
                raise ValueError(f"{args.src}: {name} does not read back as it was written")
    dtype = getattr(torch, args.dtype) if args.dtype else None
    models = [loading.finish(s, dtype=dtype) for s in (loading.read(folder), source)]
    ids = torch.arange(16)[None] * 7919 % models[0].config.vocab_size
    ours, theirs = (torch.cat(tuple(model(ids)), -1).double() for model in models)
    if not torch.equal(raw(ours), raw(theirs)):
        # Tensors that begin elsewhere in memory may be summed in another order.
        difference = ((ours - theirs).abs().mean() / theirs.abs().mean()).item()
        exact = next(models[1].parameters()).dtype == torch.float32
        if not difference <= (1e-5 if exact else 0.02):
            raise ValueError(f"{args.src}: the new folder's logits are others, by {difference:.1e}")
        tell(f"verified  every tensor to the bit; the logits differ by {difference:.1e} of them")
    else:
        tell("verified  every tensor and the logits of 16 tokens, to the bit")


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)
