"""The memory of the process: pages given back, memory kept, and how much there is."""

import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import nanomodels
from nanomodels import nanochat
from nanomodels.checkpoint import loading
from nanomodels.linears import memory
from nanomodels.text.files import read_json

ROOT = Path(__file__).parent.parent
linux = pytest.mark.skipif(
    not Path("/proc/self/pagemap").exists(), reason="Linux says which pages are a file's"
)
MB = 1 << 20


def resident():
    """Bytes of this process that are in memory, of files and of its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return 1024 * int(sizes["RssFile"]), 1024 * int(sizes["RssAnon"])


def mapped(path, numbers):
    save_file({"pad": torch.zeros(3), "x": torch.arange(numbers).float()}, path)
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("x")


@linux
def test_a_mapped_tensor_is_given_back_and_read_again(tmp_path):
    x = mapped(tmp_path / "x.safetensors", 8 * MB)
    total = x.double().sum()
    before = resident()[0]
    memory.release(x)
    assert before - resident()[0] > 30 * MB
    assert x.double().sum() == total
    assert resident()[0] > before - 2 * MB


@linux
def test_a_part_is_given_back_to_whole_pages(tmp_path):
    x = mapped(tmp_path / "x.safetensors", 4 * MB)
    x.sum()
    before = resident()[0]
    memory.release(x[1_000_001:3_000_001])
    assert 6 * MB < before - resident()[0] < 13 * MB  # 8 of 16; the system counts roughly
    memory.release(x[5:9]), memory.release(x[:0])  # within a page, and nothing
    assert torch.equal(x, torch.arange(4 * MB).float())


@linux
def test_what_no_file_holds_is_kept(tmp_path):
    x = mapped(tmp_path / "x.safetensors", MB)
    x[77] = -5  # the mapping is private: this number is in memory alone
    own, empty = torch.arange(MB), torch.zeros(MB)
    for tensor in (x, own, empty, x[:, None].expand(-1, 2)):
        memory.release(tensor)
    assert x[77] == -5 and x[78] == 78
    assert torch.equal(own, torch.arange(MB)) and not empty.any()
    memory.release(torch.empty(5, device="meta"))


@pytest.mark.parametrize("content", [None, b"", b"12345"])
def test_a_system_that_does_not_say_keeps_its_pages(monkeypatch, tmp_path, content):
    def opened(*args, **kwargs):
        if content is None:
            raise PermissionError("pagemap")
        (tmp_path / "pagemap").write_bytes(content)
        return (tmp_path / "pagemap").open("rb")

    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr(ctypes, "CDLL", None)
    memory.release(torch.ones(MB))


@linux
def test_loading_into_another_dtype_holds_one_tensor_of_the_file(tmp_path):
    """What a parameter was copied from leaves memory before the next is read."""
    model = nanomodels.load(ROOT / "weights" / "nanochat-tiny")
    config = (ROOT / "weights" / "nanochat-tiny" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    source = loading.read(ROOT / "weights" / "nanochat-tiny")
    stored = {name: t.float() for found in source.tensors.values() for name, t in found}
    save_file(stored, tmp_path / "model.safetensors")
    del model, source, stored
    before, peak = resident()[0], []
    nanomodels.load(
        tmp_path, dtype=torch.bfloat16, progress=lambda done, total: peak.append(resident()[0])
    )
    assert max(peak) - before < 8 * MB < 14 * MB < (tmp_path / "model.safetensors").stat().st_size


FAULTS = """
import resource, sys, torch
from nanomodels.linears.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def step():
    return sum(torch.ones(1 << 20) + i for i in range(8))
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory is about glibc")
def test_memory_is_kept_for_the_next_call():
    faults = {}
    for how in ("keep", "default"):
        command = [sys.executable, "-c", FAULTS, how]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "131072"}
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        faults[how] = int(run.stdout)
    assert faults["keep"] < faults["default"] / 2 > 5000


def test_a_libc_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.keep_memory()


def test_loading_sets_nothing_for_the_whole_process(monkeypatch):
    monkeypatch.setattr(memory, "keep_memory", None)
    threads = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    nanomodels.load(ROOT / "weights" / "nanochat-tiny")
    assert threads == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(monkeypatch):
    folder = ROOT / "weights" / "nanochat-tiny"
    monkeypatch.setattr(loading, "fill", None)

    def refusal(megabytes, **options):
        monkeypatch.setattr(memory, "available_memory", lambda: megabytes * 10**6)
        with pytest.raises(ValueError) as caught:
            nanomodels.load(folder, **options)
        return str(caught.value)

    # 3.9M parameters; 0.4M of them are the embedding, which is not quantised.
    assert refusal(6).endswith(
        "loading needs 0.0 GB of memory, 0.0 are available; "
        "--dtype bfloat16 --quantize int8 needs 0.0, --dtype bfloat16 --quantize int4 needs 0.0"
    )
    assert "; --dtype bfloat16 needs 0.0, " in refusal(12, dtype=torch.float32)
    assert refusal(0).endswith("; the least, --dtype bfloat16 --quantize int4, needs 0.0")
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    with pytest.raises(TypeError):  # so far it came
        nanomodels.load(folder)


def test_what_is_needed_is_what_is_then_held():
    source = loading.read(ROOT / "weights" / "nemotron-h-tiny")
    matches = loading.match_tensors(source.model, source.tensors)
    for scheme, dtype in ((None, None), (None, torch.float32), ("int8", None), ("int4", None)):
        model = nanomodels.load(ROOT / "weights" / "nemotron-h-tiny", dtype=dtype, quantize=scheme)
        held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        needed = loading.memory_needed(source, matches, dtype, scheme)
        assert held < needed <= held + 4 * max(p.numel() for p in model.parameters())


CONFIGS = ROOT / "tests" / "data" / "configs"
TABLE = (ROOT / "nanomodels" / "checkpoint" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "sizes"),
    re.findall(r"^\| \[[\w-]+/([^]]+)\].* \| ([\d.]+ \| [\d.]+) \|$", TABLE, re.MULTILINE),
)
def test_the_table_of_real_models_says_what_loading_needs(name, sizes):
    if depth := re.fullmatch(r"nanochat-d(\d+)", name):
        depth = int(depth[1])
        heads = depth // 2  # of 128, in a width of 64 times the depth
        keys = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
        sizes_of = dict(zip(keys, (2048, 65536, depth, heads, heads, 64 * depth), strict=True))
        config = nanochat.config_from_nanochat(sizes_of)
    else:
        path = CONFIGS / f"{name}.json"
        config = read_json(path if path.exists() else path.with_suffix(".partial.json"))
    _, model_class, config = loading.read_config(CONFIGS, config)
    model = loading.build(model_class, config)
    named = {name: [(name, weight.bfloat16())] for name, weight in model.named_parameters()}
    source, matches = SimpleNamespace(model=model, scheme=None), loading.match_tensors(model, named)
    schemes = (None, "int4")
    needed = [loading.memory_needed(source, matches, torch.bfloat16, s) / 1e9 for s in schemes]
    assert sizes == " | ".join(f"{size:.1f}" for size in needed)


def test_the_memory_that_is_available_is_read():
    available = memory.available_memory()
    if sys.platform == "linux":
        assert 10**7 < available < 10**14
