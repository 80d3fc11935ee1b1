"""Writing a checkpoint: tensors into safetensors files, and the files into a new folder.

    Parts -> Files with their headers -> each Part read, cast or quantised, and written
    -> the folder gets its name

No more than one tensor is in memory at a time.
"""

import contextlib
import fcntl
import json
import os
import shutil
import stat
import sys
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from nanomodels.checkpoint.names import PADDING_PREFIX
from nanomodels.linears.quantized import QuantizedWeight, quantize
from nanomodels.text.files import printable, state_of

WRITE_BYTES = 1 << 26  # written at a time
SAFETENSORS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "uint8": "U8", "int8": "I8"}
HEADER_ALIGNMENT = 64  # bytes; the header ends at a multiple of them


# --- What is written ---


@dataclass
class Part:
    """A tensor of the source, and what is written for it: one tensor, or two if it is quantised."""

    tensor: object  # torch.Tensor or StoredWeight
    outputs: list  # (name, dtype, shape)
    scheme: str | None

    @property
    def size(self):
        """Bytes that are written."""
        return sum(prod(shape) * dtype.itemsize for _, dtype, shape in self.outputs)

    def make(self, mapped):
        """The tensors to write; mapped, a Mapped, reads the source."""
        tensor, (name, dtype, _) = mapped.read(self.tensor), self.outputs[0]
        if len(self.outputs) == 1:
            made = tensor.to("cpu", dtype)
            if made.dtype != tensor.dtype and made.isinf().any():
                wide = tensor.to("cpu", torch.float64)
                if (made.isinf() & wide.isfinite()).any():
                    largest = wide[wide.isfinite()].abs().max().item()
                    raise ValueError(f"{name}: {largest:.3g} is too large for {kind_of(made)}")
            return [made]
        if not isinstance(tensor, QuantizedWeight):
            try:
                tensor = quantize(tensor.to("cpu", tensor.dtype), self.scheme)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return [tensor.codes, tensor.scales]


def kind_of(tensor):
    """How a tensor is stored: float32, ..., or FP8, NVFP4, Int4, Int8."""
    return str(tensor.dtype)[6:] if isinstance(tensor, torch.Tensor) else type(tensor).__name__


@dataclass
class File:
    """A safetensors file to write."""

    name: str
    parts: list
    gaps: list  # bytes of padding before each output of the parts
    header: bytes
    size: int  # bytes of the file


def plan_files(parts, alignment, largest=None):
    """The Files for some Parts: one, or several of at most `largest` bytes of tensors each.

    Each tensor begins at a multiple of `alignment` bytes.
    """
    groups, size = [[]], 0
    for part in parts:
        if largest is not None and groups[-1] and size + part.size > largest:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.size
    if len(groups) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    return [make_file(name, group, alignment) for name, group in zip(names, groups, strict=True)]


def make_file(name, parts, alignment):
    """A File with its header (https://github.com/huggingface/safetensors, "Format").

    The format allows no gaps, so the gap before an aligned tensor is filled by a tensor, too.
    """
    header, gaps, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for tensor, dtype, shape in (output for part in parts for output in part.outputs):
        gaps.append(-offset % alignment)
        if gaps[-1]:
            header[f"{PADDING_PREFIX}{offset}"] = entry("U8", gaps[-1:], offset, gaps[-1])
        offset += gaps[-1]
        size = prod(shape) * dtype.itemsize
        header[tensor] = entry(SAFETENSORS[str(dtype)[6:]], list(shape), offset, size)
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % HEADER_ALIGNMENT)
    return File(name, parts, gaps, len(text).to_bytes(8, "little") + text, 8 + len(text) + offset)


def entry(dtype, shape, offset, size):
    """The header's entry for one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}


def index_file(files):
    """The content of model.safetensors.index.json."""
    names = {
        name: file.name for file in files for part in file.parts for name, _, _ in part.outputs
    }
    total = sum(part.size for file in files for part in file.parts)
    return {"metadata": {"total_size": total}, "weight_map": names}


def json_bytes(content):
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


# --- Reading the source ---


class Watch:
    """Notices when a file changes while it is read; files {path: state_of it before}."""

    PAUSE = 0.05  # seconds between two checks

    def __init__(self, files):
        self.files, self.checked = files, 0.0

    def check(self, now=True):
        """Raise ValueError if a file has changed; now=False: only if the last check is old."""
        if not now and time.monotonic() < self.checked + self.PAUSE:
            return
        for path, state in self.files.items():
            if state_of(path) != state:
                raise ValueError(f"{path}: has changed while it was read; nothing was written")
        self.checked = time.monotonic()


class Mapped:
    """Reads mapped tensors with file reads, not through the map.

    So the pages do not stay in memory; and when a file is cut off meanwhile, the read is short,
    where the map would end the process (SIGBUS). /proc/self/maps says where in which file a tensor
    lies. On a system without it, the map is used.
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
        """The tensor in memory of its own; of a StoredWeight, each part."""
        if not isinstance(tensor, torch.Tensor):
            return type(tensor)(*map(self.read, tensor.parts))
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


def raw(tensor):
    """The bytes of a tensor (n,) uint8."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


# --- Writing ---


def write(path, file, mapped, progress, watch):
    """Write a File, tensor by tensor. progress(n) is told that n bytes of it are written."""
    gaps = iter(file.gaps)
    with path.open("xb") as out:
        out.write(file.header)
        progress(out.tell())
        for part in file.parts:
            watch.check(now=False)
            write_part(out, part, gaps, mapped, progress)


def write_part(out, part, gaps, mapped, progress):
    """Write a Part. A function of its own frees the part before the next one is read."""
    for tensor in part.make(mapped):
        out.write(bytes(next(gaps)))
        data = memoryview(raw(tensor).numpy())
        for start in range(0, len(data), WRITE_BYTES):
            out.write(data[start : start + WRITE_BYTES])
            progress(out.tell())


# --- The new folder ---

# An empty file: it marks a hidden folder as this program's own, whose files may be removed.
MARK = ".convert_hf.py"


@contextlib.contextmanager
def staging(dst):
    """Make an empty hidden folder beside dst; remove it if anything goes wrong.

    One that a killed run left is used again. A lock keeps two runs apart. Raises ValueError for
    anything else that has the name: it may be somebody's, so it is left as it is.
    """
    parents = [parent for parent in dst.parents if not parent.exists()]
    folder = beside(dst, "partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
        is_new = True
    except FileExistsError:
        is_new = False
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError:  # a link or a file
        raise in_the_way(folder) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            has_lock = is_opened(folder, handle)
        except BlockingIOError:
            has_lock = False
        if not has_lock:
            raise ValueError(f"{dst} is being written by another convert_hf.py")
        if not (is_new or is_ours(folder) or is_empty(folder)):
            raise in_the_way(folder)
        try:
            (folder / MARK).touch()
            empty(folder)
            yield folder
        except BaseException:
            if is_opened(folder, handle):  # not yet dst
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another program has put a file there
                for parent in parents:
                    parent.rmdir()
            raise
    finally:
        os.close(handle)


def is_opened(folder, handle):
    """Whether a path is the folder that is open as `handle`, and not a link to it."""
    try:
        return os.path.samestat(os.fstat(handle), folder.lstat())
    except FileNotFoundError:
        return False


def is_own(path):
    """Whether a path is a folder of this user, and not a link."""
    state = path.lstat()
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid()


def is_ours(path):
    """Whether this program has made a folder."""
    return is_own(path) and (path / MARK).is_file()


def is_empty(path):
    return is_own(path) and not any(path.iterdir())


def in_the_way(path):
    return ValueError(
        f"{path} is in the way: this name is needed for the work, and what is there is not "
        "convert_hf.py's; move it or remove it"
    )


def empty(folder):
    """Remove the files of a folder but its mark, so that the next run can go on after a kill."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != MARK:
            path.unlink(missing_ok=True)


def flush(folder):
    """Wait until a folder's files are on the disk; only then may it get its name."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def publish(folder, dst, check):
    """Give the finished folder its name. check() says whether to replace one that has the name.

    check raises ValueError where other files would be lost; they can have come in the meantime.
    """
    old = beside(dst, "old")
    replaces = check()
    if replaces:
        (dst / MARK).touch()
        dst.rename(old)  # fails if `old` is there and not empty
    try:
        folder.rename(dst)
    except BaseException:
        if replaces and not dst.exists():
            rename_back(old, dst)
        raise
    (dst / MARK).unlink(missing_ok=True)
    if replaces:
        remove(old)


def restore_old(dst):
    """Do what a run that was killed in `publish` has left: rename the old folder, or remove it.

    Raises ValueError for a folder that is not this program's.
    """
    old = beside(dst, "old")
    if not os.path.lexists(old):
        return
    if not is_ours(old):
        raise in_the_way(old)
    if os.path.lexists(dst):
        remove(old)
    else:
        rename_back(old, dst)


def rename_back(old, dst):
    old.rename(dst)
    (dst / MARK).unlink(missing_ok=True)


def remove(folder):
    empty(folder)
    shutil.rmtree(folder, ignore_errors=True)


def beside(dst, what):
    """A hidden folder beside the target, for a run's own use."""
    return dst.parent / f".{dst.name}.{what}"


def existing(path):
    """The nearest folder above a path that exists."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


# --- Telling the user ---


def tell(line):
    """Write a line to stdout. A reader that has closed it does not stop the program."""
    line = printable(line)
    try:
        print(line, flush=True)
    except UnicodeEncodeError:  # a terminal without these letters
        print(ascii(line), flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
