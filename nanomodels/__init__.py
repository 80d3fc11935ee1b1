"""NanoChat, Nemotron and Nemotron-H in plain PyTorch; see README.md.

The modules in this folder are the decoders and what they import. The folders are the machinery:
checkpoint, text, linears, generation, analysis, cli.

Words that the code uses:

    token         an id of the vocabulary, or the text that it stands for
    row           one sequence of a batch
    prompt        the tokens that are given; all others are generated
    prefill       the calls that read the prompt
    decode step   a call that reads one generated token per row, to choose the next
    call          one forward pass, with any number of tokens per row
    slot          where the cache stores one token of each row, or padding
    position      the index of a token in its row; padding has none
    padding       fills short rows of a batch; it changes nothing
    begin         give a call its slots
    stage         write a call's results where they do not count yet
    commit        make a call's tokens part of the cache
    savepoint     a state of the cache to go back to
    rollback      undo all calls since a savepoint
    mark          a length to which a cache with Mamba-2 states can be truncated
    prefix        the first tokens of a text, which two prompts may share
    turn          a message of a conversation and its answer
    draft         tokens that are guessed, then checked by the model in one call
    yield         give the caller the next token or piece of text
    head          a part of attention or Mamba; of a model: the last linear, to logits
    prepack       store a weight in the order in which a CPU kernel reads it
    quantise      store a weight in 4 or 8 bits; dequantise: compute its numbers again
    era           a version of nanochat, with its own constants

The names below are imported on first use, so that `import nanomodels` costs nothing.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, the same names
    from nanomodels.analysis.scoring import score as score
    from nanomodels.analysis.tracing import trace as trace
    from nanomodels.checkpoint.loading import load as load
    from nanomodels.cli.version import __version__ as __version__
    from nanomodels.generation.continuous import generate_many as generate_many
    from nanomodels.generation.conversation import Chat as Chat
    from nanomodels.generation.decoding import generate as generate
    from nanomodels.generation.decoding import generate_batch as generate_batch
    from nanomodels.text.tokenizer import Tokenizer as Tokenizer

_LAZY = {
    "load": "nanomodels.checkpoint.loading",
    "Tokenizer": "nanomodels.text.tokenizer",
    "generate": "nanomodels.generation.decoding",
    "generate_batch": "nanomodels.generation.decoding",
    "generate_many": "nanomodels.generation.continuous",
    "Chat": "nanomodels.generation.conversation",
    "score": "nanomodels.analysis.scoring",
    "trace": "nanomodels.analysis.tracing",
    "__version__": "nanomodels.cli.version",
}
__all__ = list(_LAZY)


if not TYPE_CHECKING:  # else any name would seem to be here

    def __getattr__(name):
        if name not in _LAZY:
            raise AttributeError(f"module 'nanomodels' has no attribute {name!r}")
        return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__():
    """What tab completion offers: the names above, and the modules that are imported by now."""
    modules = (name for name in globals() if f"nanomodels.{name}" in sys.modules)
    return [*__all__, *modules]
