"""A short run of fuzz.py, and each kind of finding that it must notice."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import pytest
from effort import examples


def test_damaged_files_end_in_one_line(tmp_path):
    """`make fuzz` for a few seconds, always the same cases."""
    command = [sys.executable, fuzz.__file__, "--cases", str(examples(160)), "--seed", "14"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert not done.stderr, done.stderr
    findings = re.findall(r"^seed \d+: (.*)", done.stdout, re.MULTILINE)
    assert done.returncode == int(bool(findings)), done.stdout
    assert f"{examples(160)} cases from seed 14" in done.stdout
    assert not findings, done.stdout


def ended(tmp_path, work, seconds=5, argv=("--quiet",)):
    """What fuzz says about a command that does `work`."""
    (tmp_path / "case").mkdir()
    case = fuzz.Case(0, tmp_path / "case", "generate", list(argv))
    return fuzz.judge(case, fuzz.run(case, work, seconds=seconds))


def says(text, status):
    def work(case):
        sys.stderr.write(text)
        return status

    return work


def one_error(case):
    sys.stderr.write("generate.py: error: SRC is no checkpoint\n")
    return 2


def fails(case):
    raise RuntimeError("a fault")


def leaves_a_file(case):
    Path("new").write_text("x")
    return 0


def takes_memory(case):
    return 0 * len(b"x" * 900_000_000)


@pytest.mark.parametrize(
    ("work", "kinds"),
    {
        "well": (lambda case: 0, []),
        "interrupted": (lambda case: 130, []),
        "one line": (one_error, []),
        "no line": (says("", 2), ["0 lines on stderr"]),
        "two lines": (says("generate.py: error: x\ny\n", 2), ["2 lines on stderr"]),
        "traceback": (fails, ["traceback: RuntimeError in ? line ?"]),
        "status": (lambda case: 3, ["exit status 3"]),
        "sys.exit": (lambda case: sys.exit(2), ["0 lines on stderr"]),
        "signal": (lambda case: os.kill(os.getpid(), signal.SIGSEGV), ["signal SIGSEGV"]),
        "memory": (takes_memory, ["more than 0.5 GB"]),
        "escape": (says("generate.py: error: \x1b[2J\n", 2), ["control characters"]),
        "long": (
            says("generate.py: error: " + "a" * 2000 + "\n", 2),
            ["a message of more than 2000 characters"],
        ),
        "left": (leaves_a_file, ["files left behind: new"]),
    }.values(),
)
def test_a_finding_is_noticed(tmp_path, work, kinds, monkeypatch):
    monkeypatch.setattr(fuzz, "GIGABYTES", 0.5)
    assert ended(tmp_path, work) == kinds


def test_a_command_that_hangs_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    assert ended(tmp_path, lambda case: time.sleep(60), seconds=1) == ["more than 1 s"]


def test_a_seed_makes_the_same_case_again(tmp_path):
    found = fuzz.originals(tmp_path / "originals")
    for seed in range(30):
        contents = []
        for at in (tmp_path / f"{seed}a", tmp_path / f"{seed}b"):
            at.mkdir()
            case = fuzz.make_case(seed, found, at)
            files = sorted(path for path in case.folder.rglob("*") if path.is_file())
            files = [path for path in files if path.name != "zero" and path.stat().st_size]
            contents.append((case.argv, case.changed, [path.read_bytes() for path in files]))
        assert contents[0] == contents[1]
