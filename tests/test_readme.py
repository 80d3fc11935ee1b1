"""README.md and the pages of tests/ say what is so; the README's commands print what it shows."""

import ast
import re
import subprocess
import sys
import tomllib
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


@pytest.mark.parametrize("page", ["PROMISES.md", "known_bugs.md"])
def test_every_test_that_a_page_names_exists(page):
    page = (ROOT / "tests" / page).read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 60 and len(named) == page.count("::")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "| tests |" not in line]
    assert all("::" in row for row in rows)
    files = {file: (ROOT / "tests" / file).read_text() for file, _ in named}
    assert not [f"{file}::{name}" for file, name in named if f"def {name}(" not in files[file]]


# --- What the package imports ---


def imports(path):
    """The modules that a file imports, anywhere in it: "torch", "nanomodels.cache"."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = node.module == "nanomodels"
            yield from (f"nanomodels.{alias.name}" for alias in node.names if package)
            yield from () if package else [node.module]


def test_decoders_import_only_what_lies_beside_them():
    """And every .py file that lies beside them is a decoder or imported by one."""
    package = ROOT / "nanomodels"
    decoders = {"nanochat", "nanochat_2026", "nemotron", "nemotron_h"}
    beside = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    reached, left = set(), set(decoders)
    while left:
        name = left.pop()
        reached.add(name)
        parts = [x.split(".")[1:] for x in imports(package / f"{name}.py") if "nanomodels" in x]
        assert all(len(part) == 1 for part in parts), name
        used = {part[0] for part in parts}
        assert used <= beside - decoders, name
        left |= used - reached
    assert reached == beside


def test_the_package_needs_what_it_says_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"\w+", line)[0] for line in project["dependencies"]}
    assert len(needed) == 5, "README: PyTorch and four small packages"
    files = [*(ROOT / "nanomodels").rglob("*.py"), ROOT / "generate.py", ROOT / "convert_hf.py"]
    used = {name.split(".")[0] for path in files for name in imports(path)}
    used -= {"nanomodels", *sys.stdlib_module_names}
    extras = {"huggingface_hub", "transformers"}  # of downloading.py and comparing.py
    assert used - extras == needed - {"numpy"}, "only torch needs numpy, for tensor.numpy()"


def test_pictures_are_well_formed():
    for path in ROOT.glob("nanomodels/**/*.svg"):
        ElementTree.parse(path)
