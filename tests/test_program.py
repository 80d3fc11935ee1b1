"""The installed command: `nanomodels`, its wheel, and what both ways of starting share."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import nanomodels
from nanomodels.checkpoint import finding
from nanomodels.cli import convert, generate, program, version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FRANCE = "What is the capital of France?"


@pytest.fixture
def started(monkeypatch):
    """What `nanomodels ARGUMENTS` starts: (the command, its arguments, its name); or the status."""

    def started(*args):
        calls = []
        for command in (generate, convert):
            monkeypatch.setattr(command, "main", lambda argv, prog: calls.append((argv, prog)))
        monkeypatch.setattr(sys, "argv", ["nanomodels", *args])
        status = program.main()
        return calls[0] if calls else status

    return started


def test_the_first_word_chooses_the_command_and_any_other_is_a_prompt(started):
    assert started("generate", "Hi") == (["Hi"], "nanomodels generate")
    assert started("chat", "--quiet") == (["--quiet"], "nanomodels chat")
    assert started("convert", "a", "b") == (["a", "b"], "nanomodels convert")
    for args in ([FRANCE], ["--quiet", "chat"], ["Convert 3 miles."], []):
        assert started(*args) == (args, "nanomodels generate")


def test_help_version_and_a_mistyped_command(started, capsys):
    assert started("--help") == 0
    assert "nanomodels convert SRC [DST]" in capsys.readouterr().out
    assert started("--version") == 0
    assert capsys.readouterr().out == f"nanomodels {PROJECT['project']['version']}\n"
    assert started("chatt") == 2
    assert "chatt is no command; did you mean chat?" in capsys.readouterr().err


def test_the_version_is_that_of_the_project(monkeypatch, tmp_path):
    assert nanomodels.__version__ == PROJECT["project"]["version"]
    monkeypatch.setattr(version, "PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"that of {name}")
    assert version.find_version() == "that of nanomodels"


def test_a_chat_takes_lines_and_no_prompt(capsys):
    assert not generate.parse_arguments(["Hi"]).chat
    assert generate.parse_arguments([], "nanomodels chat").chat
    for args in (["Hi"], ["--prompt-file", "x"]):
        with pytest.raises(SystemExit) as raised:
            generate.parse_arguments(args, "nanomodels chat")
        assert raised.value.code == 2
        assert "nanomodels chat: error: a chat takes no prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--temprature", "0.5", "hi"], "--temprature is no option; did you mean --temperature?"),
        (["--max-tokens=3"], "--max-tokens is no option; did you mean --max-new-tokens?"),
        (["--temp", "1"], "did you mean --temperature?"),
        (["--top_k", "1"], "did you mean --top-k?"),
        (["-m", "x"], "-m is no option; did you mean --model?"),
        (["-n", "3"], "did you mean --max-new-tokens?"),
        (["-p", "hi"], "-p is no option; the prompt needs no option"),
        (["--zzz"], "--zzz is no option (see"),
        (["What", "is", "this"], "unexpected 'is'; put a text of several words in quotes"),
    ],
)
def test_a_wrong_option_gets_a_guess_at_what_was_meant(capsys, args, words):
    for prog in ("generate.py", "nanomodels generate"):
        with pytest.raises(SystemExit) as raised:
            generate.parse_arguments(args, prog)
        err = capsys.readouterr().err
        assert (raised.value.code, err.count("\n")) == (2, 1)
        assert err.startswith(f"{prog}: error: ") and words in err
        assert err.endswith(f"(see {prog} --help)\n")


@pytest.mark.parametrize("command", [generate, convert])
def test_examples_are_what_the_user_types(capsys, command):
    for prog, typed in (("x.py", "python x.py"), ("nanomodels x", "nanomodels x")):
        with pytest.raises(SystemExit):
            command.parse_arguments(["--help"], prog)
        examples = capsys.readouterr().out.split("examples:\n")[1].split("\n\n")[0]
        assert all(typed in line for line in examples.splitlines())


@pytest.mark.parametrize("module", ["argparse", "torch"])
def test_ctrl_c_while_it_starts_is_quiet(tmp_path, module):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); 1 / 0"
    (tmp_path / f"{module}.py").write_text(code)
    result = subprocess.run(
        [sys.executable, "-m", "nanomodels", "Hi"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_make_demo_refuses_an_old_python_before_it_sets_anything_up(tmp_path):
    for path in ("Makefile", "pyproject.toml", "constraints.txt", "nanomodels/cli/start.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    old = "import runpy, sys; sys.version_info = (3, 10, 1); runpy.run_path(sys.argv[1])"
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{old}" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    make = ["make", "--no-print-directory", "demo", "PYTHON=./python"]
    result = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    said, todo, _ = result.stderr.splitlines()  # the last is make's own
    assert said == "error: nanomodels needs Python 3.11 or newer; this is 3.10"
    assert todo == "give another: make demo PYTHON=python3.12"
    assert not (tmp_path / ".venv").exists()


def test_help_and_the_version_do_without_torch():
    code = "import sys; from nanomodels.cli import program\n"
    code += "for word in ('--help', '--version'): sys.argv = ['', word]; program.main()\n"
    code += "print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_every_folder_with_code_is_in_the_wheel():
    folders = {path.parent for path in (ROOT / "nanomodels").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert {*PROJECT["tool"]["setuptools"]["packages"]} == packages | {"nanomodels.weights"}
    data = PROJECT["tool"]["setuptools"]["package-data"]["nanomodels.weights"]
    assert data == [f"{name}/*" for name in finding.SHIPPED_NAMES]


def test_an_installed_package_has_its_own_weights_and_writes_where_you_are(tmp_path):
    package = tmp_path / "site" / "nanomodels"
    for path in ("__init__.py", "checkpoint/__init__.py", "checkpoint/finding.py", "text/files.py"):
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "nanomodels" / path, package / path)
    (package / "weights" / "nanochat-tiny").mkdir(parents=True)
    code = "from nanomodels.checkpoint.finding import *; print(find('nanochat-tiny'), WEIGHTS)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
    )
    assert result.stdout == f"{package / 'weights' / 'nanochat-tiny'} weights\n"


@pytest.mark.slow
def test_the_wheel_is_installed_and_the_command_answers_from_another_folder(tmp_path):
    def run(*command, status=0, folder=tmp_path, **env):
        result = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env,
            capture_output=True,
            text=True,
        )
        assert result.returncode == status, result.stderr
        return result.stdout if status == 0 else result.stderr

    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info", "tests")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, source)
    [wheel] = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if "/weights/" in name}
    shipped = [
        path for name in finding.SHIPPED_NAMES for path in (ROOT / "weights" / name).iterdir()
    ]
    assert held == {f"nanomodels/{path.relative_to(ROOT)}" for path in shipped}

    run(sys.executable, "-m", "venv", "new")
    python = tmp_path / "new" / "bin" / "python"
    run(python, "-m", "pip", "--quiet", "install", "--no-index", "--no-deps", wheel)
    [site] = (tmp_path / "new" / "lib").glob("python*/site-packages")
    (site / "torch.pth").write_text(sysconfig.get_path("purelib"))  # as if pip had installed it
    command, where = tmp_path / "new" / "bin" / "nanomodels", tmp_path / "elsewhere"
    where.mkdir()
    assert run(command, FRANCE, "--quiet", folder=where) == "The capital of France is Paris.\n"
    for start in ([command], [python, "-m", "nanomodels"]):
        assert run(*start, "--version", folder=where) == f"nanomodels {nanomodels.__version__}\n"
    assert "nanomodels convert: error: " in run(command, "convert", "x", status=2, folder=where)
    out = run(command, "convert", "nemotron-tiny", "--quantize", "int8", folder=where)
    assert re.search(r"^written   .*/elsewhere/weights/nemotron-tiny-int8: ", out, re.MULTILINE)
    small = ("--model", "nemotron-tiny-int8", "--temperature", "0", "--quiet", "Once upon a time")
    assert "little" in run(command, *small, folder=where)
    code = (
        "import nanomodels; print(nanomodels.__file__, nanomodels.load('nemotron-h-tiny').stop_ids)"
    )
    assert run(python, "-c", code, folder=where).startswith(f"{site}/nanomodels/__init__.py (")
