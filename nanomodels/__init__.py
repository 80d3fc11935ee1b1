"""NanoChat, Nemotron and Nemotron-H in plain PyTorch; see README.md.

The names below are imported when they are first used, so that `import nanomodels` costs nothing.
"""

import importlib

HOMES = {
    "load": "nanomodels.checkpoint.loading",
    "Tokenizer": "nanomodels.text.tokenizer",
    "generate": "nanomodels.generation.decoding",
    "generate_batch": "nanomodels.generation.decoding",
}
__all__ = list(HOMES)


def __getattr__(name):
    if name not in HOMES:
        raise AttributeError(f"module 'nanomodels' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
