#!/usr/bin/env python3
"""Turn a checkpoint into the layout that loads fastest, or back into the Hub's.

SRC is a folder from the Hub (safetensors or pytorch_model*.bin, in one file or in shards, FP8 and
NVFP4 releases of ModelOpt among them), of a nanochat training run (model_*.pt, meta_*.json and
tokenizer.pkl), or one that this program wrote. DST gets one model.safetensors whose tensors have
the names of our parameters and begin at multiples of 64 bytes, so that loading is a memory map;
config.json, which says where it comes from; tokenizer and chat template. Tensors keep their values
to the bit, unless --dtype or --quantize asks for others; FP8 and NVFP4 become bfloat16.
DST appears when it is whole: until then the work is in a hidden folder beside it.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from nanomodels import checkpoint, nanochat
from nanomodels.files import one_line
from nanomodels.quantize import Int4, Int8, QuantizedLinear, parts_of, quantize
from nanomodels.tokenizer import hub_files

EXAMPLES = """examples:
  python convert_hf.py ~/models/Minitron-4B-Base
  python convert_hf.py ~/.cache/nanochat/chatsft_checkpoints/d20 weights/d20 --dtype bfloat16
  python convert_hf.py ~/models/Nemotron-3-Nano-30B-A3B-NVFP4 --quantize int4 --verify
  python convert_hf.py weights/d20 ~/models/d20-hf --to hf

Exit status: 0, 2 for bad input, 130 after Ctrl-C.
"""
WEIGHTS = Path(__file__).resolve().parent / "weights"
# What goes along as it is.
COMPANIONS = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "*.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
ALIGNMENT = 64  # bytes; a cache line, and the width of the widest vector register
SHARD = 5_000_000_000  # most bytes of a file in the Hub's layout
PIECE = 1 << 26  # bytes written at a time
SAFETENSORS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "uint8": "U8", "int8": "I8"}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, like every other error here."""
        say(f"convert_hf.py: error: {message} (see convert_hf.py --help)")
        self.exit(2)


def say(line, end="\n"):
    """Write to stderr, if anybody listens."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, end=end, file=sys.stderr, flush=True)


def tell(line):
    """Write to stdout; that its reader is gone is no reason to stop."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_arguments(argv):
    parser = Parser(
        prog="convert_hf.py",
        allow_abbrev=False,
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("src", type=Path, metavar="SRC", help="folder of the checkpoint")
    add("dst", type=Path, metavar="DST", nargs="?", help="folder to write [weights/NAME]")
    add(
        "--to",
        choices=("nanomodels", "hf"),
        default="nanomodels",
        help="layout: ours, or the Hub's, which transformers, vLLM and llama.cpp read [nanomodels]",
    )
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, help="of the weights [each tensor's own]")
    add("--quantize", choices=("int4", "int8"), help="make the weights of the linears smaller")
    add("--quantize-head", action="store_true", help="with --quantize: the head (lm_head), too")
    add("--step", type=int, metavar="N", help="of a nanochat training run [the highest]")
    add("--era", metavar="DATE", help="of a nanochat training run [told by its tensors]")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--verify", action="store_true", help="read it again: all tensors, and some logits")
    add("--force", action="store_true", help="replace DST if there is a checkpoint")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave as after Ctrl-C: tidily
    try:
        convert(args)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        # torch says by RuntimeError that memory is short; any other is a fault of this program.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        say(f"convert_hf.py: error: {one_line(error)}")
        return 2
    return 0


def convert(args):
    dst = find_target(args)
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
    # From here on each part alone keeps the file mapped that it comes from, until it is written.
    del source, parts
    with staging(dst) as folder:
        for name, content in companions.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        for file in files:
            write(folder / file.name, file, progress, watch)
        watch.check()
        progress.end()
        if args.verify:
            verify(args, folder)
            watch.check()
        publish(folder, dst, args.force)
    tell(f"written   {dst}: {total / 1e9:.2f} GB in {progress.seconds:.1f} s")


# --- what to do ---


def find_target(args):
    """The folder to write; refused where something would be lost."""
    if args.quantize_head and not args.quantize:
        raise ValueError("--quantize-head goes with --quantize")
    if args.quantize and args.to == "hf":
        raise ValueError(f"--quantize {args.quantize}: the Hub's layout has no such weights")
    suffix = "-hf" if args.to == "hf" else f"-{args.quantize}" if args.quantize else ""
    dst = args.dst or WEIGHTS / (origin(args.src)[0].split("/")[-1] + suffix)
    src = args.src.resolve()
    if dst.resolve() in (src, *src.parents) or src in dst.resolve().parents:
        raise ValueError(f"{dst} is SRC, or one is in the other; give another DST")
    if os.path.lexists(dst):
        if not args.force:
            raise ValueError(f"{dst} is there already; --force replaces it, or give another DST")
        if dst.is_symlink() or not (dst / "config.json").is_file():
            raise ValueError(f"{dst} is not the folder of a checkpoint: not replaced")
    return dst


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
    with contextlib.suppress(OSError, UnicodeDecodeError):
        metadata = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
        return folder.name, metadata.read_text(encoding="utf-8").split()[0]
    return folder.name, None


def read_source(args):
    """The checkpoint.Source of SRC, quantised as asked for."""
    source = checkpoint.read(args.src, args.era, args.step)
    if args.to == "hf" and not source.architecture.HUB_NAMES:
        model_type = source.config["model_type"]
        raise ValueError(f"{args.src}: --to hf: transformers has no class for {model_type}")
    if args.quantize:
        try:
            source.quantize(args.quantize, args.quantize_head)
        except ValueError as error:
            raise ValueError(f"{args.src}: {error}") from None
    return source


def gather_companions(args, source):
    """The small files of the new folder: name -> bytes."""
    found = sorted({path for pattern in COMPANIONS for path in args.src.glob(pattern)})
    files = {str(path.relative_to(args.src)): path.read_bytes() for path in found}
    if source.native:
        eos = {"eos_token_id": source.config["eos_token_id"]}
        files["generation_config.json"] = json_bytes(nanochat.GENERATION_CONFIG | eos)
        with contextlib.suppress(FileNotFoundError):  # its tokenizer may be elsewhere
            for name, content in hub_files(args.src).items():
                files[name] = content.encode() if isinstance(content, str) else json_bytes(content)
    return files


@dataclass
class Part:
    """A tensor of the source, and what is written for it: one tensor, or two if it is quantised."""

    tensor: object  # torch.Tensor, or one of quantize.py or modelopt.py
    outputs: list  # (name, dtype, shape)
    scheme: str | None

    @property
    def size(self):
        """Bytes that are written."""
        return sum(prod(shape) * dtype.itemsize for _, dtype, shape in self.outputs)

    def make(self):
        """The tensors to write."""
        if len(self.outputs) == 1:
            [(_, dtype, _)] = self.outputs
            return [self.tensor.to("cpu", dtype)]
        packed = self.tensor
        if not isinstance(packed, Int4 | Int8):
            packed = quantize(packed.to("cpu", packed.dtype), self.scheme)
        return [packed.codes, packed.scales]


def plan(args, source):
    """The Parts of a source, in the order in which they are read and written."""
    try:
        found = checkpoint.match(source.model, source.tensors)
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
            target = names[checkpoint.pattern(name)].format(*checkpoint.numbers(name))
            outputs = [(target, chosen_dtype(args, module, leaf, tensor), tensor.shape)]
        elif isinstance(module, QuantizedLinear) and leaf == "weight":
            outputs = [(name + end, *what) for end, what in parts_of(source.scheme, tensor.shape)]
        else:
            outputs = [(name, chosen_dtype(args, module, leaf, tensor), tensor.shape)]
        for _, _, full in places:
            parts[full] = Part(tensor, outputs, source.scheme)
    # In the order of the source's files, so that each is soon done with; wide numbers before
    # narrow ones, so that each stands at a multiple of its width in the Hub's layout, too.
    ordered = {id(parts[name]): parts[name] for name in source.tensors}.values()
    return sorted(ordered, key=lambda part: -part.outputs[0][1].itemsize)


def chosen_dtype(args, module, leaf, tensor):
    """The dtype in which a tensor that is not quantised is written."""
    if args.dtype is None:
        return tensor.dtype
    return torch.float32 if checkpoint.is_exact(module, leaf) else getattr(torch, args.dtype)


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
            header[f"{checkpoint.PADDING}{offset}"] = entry("U8", gaps[-1:], offset, gaps[-1])
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
    tell(
        f"source    {args.src}: {type(source.model).__name__}, {len(parts)} tensors, {sizes(was)}"
    )
    if source.skipped:
        tell(f"left out  {checkpoint.left_out(source.skipped)}")
    tell(f"target    {dst}: {sizes(will)}")
    if source.scheme:
        count = sum(len(part.outputs) > 1 for part in parts)
        tell(f"{source.scheme:9} {count} of {len(parts)} tensors")
    tell(f"files     {', '.join([*(file.name for file in files), 'config.json', *companions])}")
    if not any(name.startswith("tokenizer") or name.endswith(".model") for name in companions):
        tell("          no tokenizer: SRC has none")


def kind_of(tensor):
    """float32, or FP8, NVFP4, Int4, Int8."""
    return str(tensor.dtype)[6:] if isinstance(tensor, torch.Tensor) else type(tensor).__name__


def sizes(kinds):
    return ", ".join(f"{size / 1e6:,.1f} MB {kind}" for kind, size in kinds.items())


def config_file(args, source):
    """config.json of the new folder."""
    without = ("nanomodels", "quantization_config")
    config = {key: value for key, value in source.config.items() if key not in without}
    if args.dtype:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = args.dtype
    if args.to == "hf":
        return config
    name, revision = origin(args.src)
    if source.native:
        revision = source.files[-1].stem  # the step
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
    """Notices when a file changes while it is read."""

    PAUSE = 0.05  # seconds between two looks

    def __init__(self, files):
        self.files, self.checked = {path: self.state(path) for path in files}, 0.0

    @staticmethod
    def state(path):
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def check(self, now=True):
        """Raise ValueError if one has changed; not now: if the last look was a while ago."""
        if not now and time.monotonic() < self.checked + self.PAUSE:
            return
        for path, state in self.files.items():
            if self.state(path) != state:
                raise ValueError(f"{path}: has changed while it was read; nothing was written")
        self.checked = time.monotonic()


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


def write(path, file, progress, watch):
    """Write a File; its parts are forgotten one by one, and with them what they have mapped."""
    gaps = iter(file.gaps)
    with path.open("xb") as out:
        out.write(file.header)
        file.parts.reverse()
        while file.parts:
            watch.check(now=False)
            for tensor in file.parts.pop().make():
                out.write(bytes(next(gaps)))
                data = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
                for start in range(0, len(data), PIECE):
                    out.write(data[start : start + PIECE])
                    progress.add(len(data[start : start + PIECE]))


@contextlib.contextmanager
def staging(dst):
    """An empty hidden folder beside dst; removed, whatever goes wrong.

    One that a killed run left behind is used again; a lock keeps two runs apart.
    """
    dst.parent.mkdir(parents=True, exist_ok=True)
    folder = dst.parent / f".{dst.name}.partial"
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{dst} is being written by another convert_hf.py") from None
        try:
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def publish(folder, dst, force):
    """Give the finished folder its name; a folder that has it is removed afterwards."""
    old = dst.parent / f".{dst.name}.old"
    if force and dst.exists():
        shutil.rmtree(old, ignore_errors=True)
        dst.rename(old)
    try:
        folder.rename(dst)
    except OSError:
        if old.exists():
            old.rename(dst)
        raise
    shutil.rmtree(old, ignore_errors=True)


@torch.inference_mode()
def verify(args, folder):
    """Read the new folder: its tensors, and the logits of a prompt, are the source's to the bit."""
    written, _ = checkpoint.read_tensors(folder)
    source = read_source(args)
    for part in plan(args, source):
        for (name, _, _), tensor in zip(part.outputs, part.make(), strict=True):
            same = written[name].dtype == tensor.dtype and written[name].shape == tensor.shape
            if not same or not torch.equal(raw(written[name]), raw(tensor)):
                raise ValueError(f"{args.src}: {name} does not read back as it was written")
    dtype = getattr(torch, args.dtype) if args.dtype else None
    ours, theirs = (checkpoint.finish(s, dtype=dtype) for s in (checkpoint.read(folder), source))
    usual = next(theirs.parameters()).dtype
    ids = torch.arange(16)[None] * 7919 % ours.config.vocab_size
    ours, theirs = (torch.cat(tuple(model(ids)), -1).double() for model in (ours, theirs))
    # Tensors that begin elsewhere in memory may be summed in another order.
    difference = ((ours - theirs).abs().mean() / theirs.abs().mean()).item()
    limit = 1e-5 if usual == torch.float32 else 0.02
    if not difference <= limit:
        raise ValueError(f"{args.src}: the new folder's logits are others, by {difference:.1e}")
    tell(f"verified  every tensor to the bit, the logits of 16 tokens to {difference:.1e} of them")


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


if __name__ == "__main__":
    sys.exit(main())
