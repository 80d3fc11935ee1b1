"""The benchmark runs on tiny shapes and gives every figure; what these are does not matter here."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import bench
import pytest
from benchmark.measure import DRAFTS, PLAIN
from benchmark.sides import INT4, LLAMA, LLAMA_4, OURS, PAIRS, THEIRS

TINY = [sys.executable, Path(bench.__file__), "--tiny", "--repeats", "1", "--threads", "1"]


@pytest.mark.slow
def test_the_benchmark_measures_a_model(tmp_path):
    files = ["--json", tmp_path / "b.json", "--plot", tmp_path / "b.svg"]
    work = tmp_path / "work"
    work.mkdir()
    result = subprocess.run(
        [*TINY, "--models", "nemotron-3,drafts", *files],
        env=os.environ | {"TMPDIR": str(work)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert not list(work.glob("nanomodels-bench-*"))
    results = json.loads((tmp_path / "b.json").read_text())
    for table in results["drafts"].values():
        assert set(table) == {DRAFTS, PLAIN}
    assert len(results["drafts"]) == 2
    found = results["models"]["nemotron-3"]
    # Both computed the same; rounding may choose other experts for a few tokens.
    assert found["correlation of logits"][THEIRS] > 0.8
    assert found["correlation of logits"][INT4] > 0.7
    # One step of batch 8 reads more experts than one of batch 1, and int4 reads less.
    read = {side: [read[b]["bytes"] for b in "18"] for side, read in found["read"].items()}
    assert read[INT4][0] < read[OURS][0] < read[OURS][1]
    for other, table in found["figures"].items():
        for label, sides in table.items():
            assert set(sides) == {OURS, other}
            assert f"| {label} " in result.stdout
            for figure in sides.values():
                assert figure["min"] <= figure["median"] <= figure["max"]
                assert ("share" in figure) == label.startswith(("prefill", "decode"))
    words = "".join(ET.parse(tmp_path / "b.svg").getroot().itertext())
    assert all(word in words for word in ("nemotron-3", "decode, ours int4", "prefill, ours"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("llama_cpp") and find_spec("gguf")),
    reason="llama-cpp-python and gguf are not installed",
)
def test_the_benchmark_measures_llama_cpp_on_the_same_weights(tmp_path):
    file = tmp_path / "b.json"
    command = [*TINY, "--llama", "--models", "minitron", "--json", file]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    results = json.loads(file.read_text())
    assert results["llama.cpp"]["version"] in result.stdout
    found = results["models"]["minitron"]
    assert found["correlation of logits"][LLAMA] > 0.99  # so the GGUF file is right
    assert found["correlation of logits"][LLAMA_4] > 0.5  # both in 4 bits, each its own
    sizes = [found["read"][side]["1"]["bytes"] for side in (LLAMA, LLAMA_4)]
    assert 0.25 < sizes[1] / sizes[0] < 0.3  # 4.5 bits instead of 16
    for other in (LLAMA, LLAMA_4):
        for label in ("prefill 32", "prefill 512", "decode x 1", "decode x 8"):
            assert set(found["figures"][other][f"{label}, tokens/s"]) == set(PAIRS[other])


@pytest.mark.slow
def test_ctrl_c_ends_the_benchmark_and_its_processes(tmp_path):
    process = subprocess.Popen(
        [*TINY, "--models", "nemotron-3"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in process.stderr:
            if "ours, transformers" in line:
                break
        path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children = path.read_text().split()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 130
    assert not list(tmp_path.glob("nanomodels-bench-*"))
    assert len(children) >= 2
    until = time.monotonic() + 5  # multiprocessing's own tracker ends a moment later
    while any(Path("/proc", child).exists() for child in children):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("wrong", [["--models", "d20,d99"], ["--repeats", "0"], ["--threads", "0"]])
def test_the_benchmark_refuses_wrong_options(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        bench.main(wrong)
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_benchmark_names_the_packages_that_llama_cpp_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(SystemExit) as caught:
        bench.main(["--llama"])
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "pip install llama-cpp-python" in line
