"""The version, from pyproject.toml: of the clone, or as it was when pip installed the package."""

import importlib.metadata
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def find_version():
    if PROJECT.is_file():
        return tomllib.loads(PROJECT.read_text())["project"]["version"]
    return importlib.metadata.version("nanomodels")


__version__ = find_version()
