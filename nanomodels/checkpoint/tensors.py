"""Files of tensors: safetensors and what torch.save writes, mapped into memory, not read yet."""

import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nanomodels.checkpoint.names import listed
from nanomodels.checkpoint.pickles import check_torch_file
from nanomodels.text.files import one_line, read_json

MOST_TENSORS = 300_000  # of a file or an index; they take 6 s. Nemotron 3 Ultra has 202,000


def read_tensors(folder):
    """All tensors of a folder, {name: tensor}, and the files that hold them."""
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
    check_count(index, weight_map)
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


def check_count(path, names):
    """Raise ValueError for a file with too many tensors; of a stranger's, each could be empty."""
    if len(names) > MOST_TENSORS:
        raise ValueError(f"{path}: has {len(names):,} tensors; at most {MOST_TENSORS:,} are read")


def map_safetensors(path):
    """The tensors of one safetensors file, {name: tensor}: views of the mapped file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; is the download complete?")
    path.open("rb").close()  # safe_open says "no such file" of one that must not be read
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = file.keys()
            check_count(path, names)
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, RuntimeError, TypeError, OverflowError) as error:
        # torch raises the last three for shapes that it cannot make, with a trace in the message.
        what = one_line(error)[:200]
        raise ValueError(f"{path}: not a whole safetensors file ({what})") from None


# What torch.load raises for a file that is cut off, is no pickle, or asks for more than tensors.
LOADING_ERRORS = (
    *(RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError),
    *(AttributeError, TypeError, AssertionError, OverflowError, struct.error, zipfile.BadZipFile),
)


def map_torch(path):
    """The tensors of one file that torch.save wrote; of its pickle only plain tensors are read."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; is the download complete?")
    with path.open("rb") as file:
        can_map = file.read(2) == b"PK"  # a file from before torch 1.6 is read whole
    try:
        check_torch_file(path)
        with warnings.catch_warnings(action="ignore"):  # about pickles that are not torch's
            tensors = torch.load(path, map_location="cpu", mmap=can_map, weights_only=True)
    except LOADING_ERRORS as error:
        if "memory" in str(error):
            raise MemoryError(f"{path}: {one_line(error)}") from None
        what = "it asks for more than tensors; nothing in it was run"
        if not isinstance(error, pickle.UnpicklingError):
            what = f"{one_line(error)[:200]}"
        raise ValueError(f"{path}: not a whole file of plain tensors ({what})") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and (tensor.layout, tensor.device.type, tensor.is_nested) == (torch.strided, "cpu", False)
        for name, tensor in tensors.items()
    ):
        raise ValueError(f"{path}: must hold tensors by name")
    return {name: stored_numbers(path, name, tensor) for name, tensor in tensors.items()}


def stored_numbers(path, name, tensor):
    """A tensor of torch.load as numbers that the file stores; each is stored once."""
    if tensor.untyped_storage().nbytes() < tensor.nbytes:
        raise ValueError(
            f"{path}: {name} is {list(tensor.shape)}, but the file stores fewer numbers for it"
        )
    # Some tensors are stored as the negative of others, and only a bit says so.
    return tensor.detach().resolve_neg().resolve_conj()
