"""The commands and the Python of README.md run and print what it shows."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """(command, output) of each generate.py command in a console block."""
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            if "generate.py" in line:
                yield line, output


def run(command):
    """stdout of a shell command, with the Python that runs the tests."""
    command = command.replace(".venv/bin/python", sys.executable)
    return subprocess.run(
        command, shell=True, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def test_the_readme_shows_commands():
    assert len(list(commands())) >= 3


@pytest.mark.parametrize(("command", "output"), list(commands()))
def test_a_command_of_the_readme_prints_what_it_shows(command, output):
    assert run(command) == output


@pytest.mark.parametrize(
    ("code", "says"), [*zip(blocks("python"), ("France is Paris.", "loss "), strict=True)]
)
def test_the_python_of_the_readme_runs(code, says):
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert says in result.stdout


def test_the_readme_is_short():
    assert len(README.split()) <= 1200


def test_make_prints_a_menu_of_its_targets():
    menu = run("make")
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    for target in targets.split()[1:]:  # the first is help, the menu itself
        assert f"make {target} " in menu


def test_the_demo_begins_with_a_command_that_the_readme_shows():
    recipe = run("make --no-print-directory --dry-run --assume-old=.venv/demo demo")
    command = recipe.splitlines()[0]
    assert f"\n{command}\n" in README
    assert command in [command for command, _ in commands()]


def test_files_that_the_readme_links_exist():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_pictures_are_well_formed():
    for path in ROOT.glob("nanomodels/**/*.svg"):
        ElementTree.parse(path)
