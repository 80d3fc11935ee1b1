"""Hostile files: a clear line for each; no crash, no hang, nothing copied that is not the folder's.

Each file that could freeze or crash Python is read by a program of its own, within limits.
"""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from effort import THOROUGH
from reference import random_nanochat
from safetensors.torch import load_file, save_file

import convert_hf
import nanomodels
from nanomodels.checkpoint.pickles import LARGEST_PICKLE, LARGEST_TUPLE
from nanomodels.text import files

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path):
    random_nanochat(3).save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def as_torch_file(folder):
    """Replace model.safetensors by what change(tensors) makes, saved by torch."""

    def save(change=dict, **options):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(change(tensors), folder / "pytorch_model.bin", **options)
        return tensors

    return save


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))


def refused(folder, *words, program="convert_hf.py"):
    """A program of its own says one line, in bounded time and memory."""
    args = [folder, f"{folder}-new"] if program == "convert_hf.py" else ["--model", folder, "x"]
    result = subprocess.run(
        [sys.executable, program, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=60,
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr[-500:]
    for word in words:
        assert word in result.stderr
    assert not Path(f"{folder}-new").exists()


def convert(folder, *args):
    return convert_hf.main([str(folder), f"{folder}-new", *args])


# --- Pickles ---

# A tuple of tuples of ... 200,000 deep, and one that holds 2^60, each as the key of a dict.
DEEP = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."
WIDE = b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"K\x01s."
BEFORE = b"".join(pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))


def zipped(path, content, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/version", "3\n")


@pytest.mark.parametrize("layout", ["zip", "older"])
@pytest.mark.parametrize("content", [DEEP, WIDE], ids=["deep", "wide"])
def test_nested_tuples_neither_crash_nor_freeze(folder, layout, content):
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if layout == "zip":
        zipped(path, content)
    else:
        path.write_bytes(BEFORE + content)
    refused(folder, f"a tuple has more than {LARGEST_TUPLE} parts")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x02X\x01", "not a whole file"),
        (b"\x80\x02}K\x01K\x01s.", "a key that is no text"),
        (b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "it calls builtins bytearray"),
        (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "it calls collections OrderedDict"),
        (b"\x80\x02ctorch\nTensor\n)\x81.", "has a NEWOBJ"),
        (b"\x80\x02ctorch\nTensor\n)b.", "it changes an object"),
        (b"\x80\x02]" + b"N" * (LARGEST_PICKLE if THOROUGH else 10**6), "not a whole file"),
        (b"\x80\x02R.", "takes more from the stack"),
        (b"\x80\x02t.", "not a whole file"),
        (b"\x80\x02h\x05.", "not a whole file"),
    ],
    ids=range(10),
)
def test_pickles_of_more_than_tensors_are_refused(folder, content, words):
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    for layout in ("zip", "older", "bare"):
        if layout == "zip":
            zipped(path, content)
        else:
            path.write_bytes(BEFORE * (layout == "older") + content)
        with pytest.raises(ValueError, match="not a whole file of plain tensors") as raised:
            nanomodels.load(folder)
        assert words in str(raised.value) or "before seeing STOP" in str(raised.value)


@pytest.mark.slow
def test_a_compressed_file_is_not_unpacked(folder, as_torch_file):
    """A pickle of 0.5 MB could take gigabytes; and a map of compressed tensors holds no numbers."""
    as_torch_file()
    path = folder / "pytorch_model.bin"
    old = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    refused(folder, "is compressed")
    content = b"\x80\x02X" + struct.pack("<I", 500_000_000) + b"a" * 500_000_000 + b"."
    zipped(path, content, zipfile.ZIP_DEFLATED)
    refused(folder, "is compressed")


# --- Tensors ---


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: torch._neg_view(tensor.neg()),
        torch.nn.Parameter,
        lambda tensor: torch.nn.Parameter(
            tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor
        ),
    ],
    ids=["negative", "parameter", "transposed"],
)
def test_tensors_keep_their_values_however_torch_stores_them(folder, as_torch_file, change, zipped):
    expected = nanomodels.load(folder).state_dict()
    as_torch_file(
        lambda tensors: {name: change(tensor) for name, tensor in tensors.items()},
        _use_new_zipfile_serialization=zipped,
    )
    assert convert(folder, "--verify") == 0
    for path in (folder, f"{folder}-new"):
        for name, tensor in nanomodels.load(path).state_dict().items():
            assert not tensor.is_neg()
            assert torch.equal(tensor, expected[name])


def test_tensors_that_the_file_does_not_store_are_refused(folder, as_torch_file):
    """10 kB could claim 2^48 numbers."""
    as_torch_file(
        lambda tensors: {
            name: t.flatten()[:1].clone().expand(t.shape) for name, t in tensors.items()
        }
    )
    with pytest.raises(ValueError, match=r"weight is \[.*stores fewer numbers for it"):
        nanomodels.load(folder)


def test_complex_numbers_are_refused(folder, as_torch_file):
    as_torch_file(lambda tensors: {name: (t + 1j).conj() for name, t in tensors.items()})
    with pytest.raises(ValueError, match="is torch.complex64; supported: float32"):
        nanomodels.load(folder)


def write_header(path, header):
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content)


@pytest.mark.parametrize("shape", [[2**63, 0], [2**62, 2**62, 0], [2**63 - 1, 4, 0]])
def test_a_shape_that_torch_cannot_make_is_refused(folder, shape):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    write_header(folder / "model.safetensors", {"x": entry})
    with pytest.raises(ValueError, match="not a whole safetensors file|unexpected tensors"):
        nanomodels.load(folder)


def test_a_stack_of_empty_matrices_is_refused(tmp_path):
    """It could have 10^9 rows in a file of 100 bytes."""
    folder = tmp_path / "hub"
    shutil.copytree(ROOT / "weights" / "nemotron-h-tiny", folder)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    layer = config["hybrid_override_pattern"].find("E")
    name = f"model.layers.{max(layer, 0)}.mixer.experts.up_proj"
    entry = {"dtype": "F32", "shape": [10**9, 0, 0], "data_offsets": [0, 0]}
    write_header(folder / "model.safetensors", {name: entry})
    refused(folder, f"{name} is [1000000000, 0, 0]")
    assert tensors


def test_too_many_tensors_are_refused(folder, monkeypatch):
    """A million of them, each empty, took half a minute."""
    most = "nanomodels.checkpoint.tensors.MOST_TENSORS"
    monkeypatch.setattr(most, len(load_file(folder / "model.safetensors")))
    nanomodels.load(folder)
    monkeypatch.setattr(most, 10)
    with pytest.raises(ValueError, match=r"safetensors: has \d+ tensors; at most 10 are"):
        nanomodels.load(folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {f"x{i}": "x.safetensors" for i in range(11)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json: has 11 tensors; at most 10 are read"):
        nanomodels.load(folder)


# --- Files that are none, and links ---


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("generate.py", "additional_chat_templates/a.jinja"),
        ("convert_hf.py", "additional_chat_templates/a.jinja"),
        ("convert_hf.py", "merges.txt"),
        ("convert_hf.py", "tokenizer_config.json"),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"] if THOROUGH else ["pipe"])
def test_what_is_no_plain_file_is_not_read(tmp_path, kind, name, program):
    folder = tmp_path / "hub"
    shutil.copytree(ROOT / "weights" / "nanochat-tiny", folder)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 2 * files.LARGEST)
    refused(folder, str(path), program=program)


def test_a_companion_outside_the_folder_is_not_copied(folder, tmp_path, capsys):
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    (folder / "vocab.json").symlink_to(secret)
    assert convert(folder) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'vocab.json'} is a link to {secret}" in error
    assert error.count("\n") == 1
    (folder / "vocab.json").unlink()
    (folder / "additional_chat_templates").symlink_to(tmp_path)
    (tmp_path / "a.jinja").write_text("secret")
    assert convert(folder) == 2
    assert not Path(f"{folder}-new").exists()
    (folder / "additional_chat_templates").unlink()
    (folder / "vocab.json").symlink_to("inside.json")
    (folder / "inside.json").write_text("{}")
    assert convert(folder) == 0
    assert Path(f"{folder}-new", "vocab.json").read_text() == "{}"


def test_companions_that_fill_the_memory_are_not_read(folder, capsys):
    for i in range(5):
        (folder / f"{i}.model").touch()
        os.truncate(folder / f"{i}.model", files.LARGEST)
    assert convert(folder) == 2
    assert "its small files have 250," in capsys.readouterr().err


def test_the_hubs_cache_keeps_its_files_elsewhere(folder, tmp_path):
    """models--OWNER--NAME/snapshots/REVISION holds links to models--OWNER--NAME/blobs."""
    cache = tmp_path / "models--owner--name"
    snapshot, blobs = cache / "snapshots" / "0123abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (folder / "vocab.json").write_text("{}")
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(Path("../../blobs", str(i)))
    assert convert_hf.main([str(snapshot), str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "vocab.json").read_text() == "{}"
    assert not (tmp_path / "new" / "vocab.json").is_symlink()


def test_a_fifo_in_place_of_the_downloads_note_is_not_read(folder):
    note = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    note.parent.mkdir(parents=True)
    os.mkfifo(note)
    assert convert(folder) == 0


def test_a_pipe_may_hold_the_prompts(tmp_path):
    command = f"{sys.executable} generate.py --quiet --max-new-tokens 2 --prompt-file <(echo Hi)"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


# --- Messages ---


def test_a_terminal_gets_no_control_characters(folder, capsys):
    tensors = load_file(folder / "model.safetensors")
    name = "\x1b]0;x\x07\u202e.y"
    named = {f"language_model.{n}": t for n, t in tensors.items()} | {name: torch.ones(2)}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    assert convert(folder) == 0
    said = capsys.readouterr()
    assert r"\x1b]0;x\x07\u202e" in said.out
    assert (said.out + said.err).replace("\n", "").isprintable()
    (folder / "model.safetensors").rename(folder / "\x1b[2J.safetensors")
    index = {"weight_map": dict.fromkeys(named, "\x1b[2J.safetensors") | {"\x9b1m": "\x1b[3J"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert convert(folder, "--force") == 2
    assert capsys.readouterr().err.strip().isprintable()


def test_a_message_is_never_long(folder, capsys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "A" * 10**6}))
    assert convert(folder) == 2
    error = capsys.readouterr().err
    assert len(error) < 1100
    assert error.endswith("nanochat_2026\n")  # what is allowed stands at the end
    assert str(folder) in error


@pytest.mark.parametrize("number", ["x", "1" * 5000, "-1", "1.5", "²"])
def test_a_token_id_that_is_no_number_is_refused(folder, number):
    tokens = {number: {"content": "<end>"}}
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"eos_token": "<end>", "added_tokens_decoder": tokens}))
    with pytest.raises(ValueError, match="tokenizer_config.json: added_tokens_decoder"):
        nanomodels.load(folder)
