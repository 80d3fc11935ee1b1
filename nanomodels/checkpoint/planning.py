"""How much memory a model takes, before its weights are read: of each process, token and row.

All is counted on models on the meta device, built as for loading, by the functions that loading
uses. A folder with nothing but a config.json is enough.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from nanomodels.checkpoint import loading, nanochat_folder
from nanomodels.checkpoint.tensors import MOST_TENSORS, read_tensors
from nanomodels.config import check_counts, parameter_count
from nanomodels.linears import quantized
from nanomodels.linears.parallel import Ranks, cut_model, local_config, uncut
from nanomodels.text.files import read_json

COUNTS = (1, 2, 4, 8, 16)  # numbers of processes
KINDS = ("bfloat16", *reversed(quantized.SCHEMES))  # how linears are stored
GPUS = (24, 80, 141)  # GB
GB = 2**30  # of a GPU: one of 80 GB has 79.6 of them, one of 141 GB has 140.4
FREE = 0.05  # of a GPU, for CUDA itself and for what a call computes


@dataclass(frozen=True)
class Plan:
    """What a checkpoint takes. A kind of weights that loading refuses is in no dict."""

    model_class: type
    parameters: int
    context_length: int
    obstacles: dict  # number of processes -> what cannot be cut, as parallel.uncut says it
    weights: dict  # number of processes that works -> {kind: bytes of the weights of each}
    loading: dict  # the same while loading: the largest tensor is there twice
    token: dict  # number of processes that works -> bytes of keys and values for a token, of each
    row: dict  # the same of the states of Mamba-2, for a row of any length

    def fit(self, kind, gigabytes):
        """The least number of GPUs of a size, and the share of each that is left for the cache.

        None if the model does not fit in any number that works.
        """
        size = gigabytes * GB
        for count, kinds in self.loading.items():
            if kinds.get(kind, size) <= size * (1 - FREE):
                return count, 1 - FREE - self.weights[count][kind] / size
        return None


def make_plan(folder: Path, era: str | None = None) -> Plan:
    """The Plan of a checkpoint folder; era is a nanochat training folder's, as for `load`.

    Raises ValueError or FileNotFoundError for what cannot be loaded either.
    """
    architecture, model_class, config, scheme, has_head = read_folder(folder, era)
    if not hasattr(model_class, "new_cache"):
        raise ValueError(f"{folder}: a {model_class.__name__} makes no text")
    whole = loading.build(model_class, config)
    obstacles = {count: uncut(config, count) for count in COUNTS}
    plan = Plan(
        model_class, parameter_count(whole), whole.context_length, obstacles, {}, {}, {}, {}
    )
    for count in (count for count in COUNTS if not obstacles[count]):
        part, named = cut(whole, count)
        if scheme is not None:
            quantized.swap_linears(part, scheme, has_head)
        source = loading.Source(
            folder, "hub", architecture, part, {}, named, {}, {}, scheme, Ranks(0, count)
        )
        matches = loading.match_tensors(part, named)
        kinds = [scheme] if scheme else KINDS if quantized.eligible(part) else KINDS[:1]
        sizes = {
            kind: loading.sizes_in_memory(source, matches, torch.bfloat16, as_scheme(kind))
            for kind in kinds
        }
        plan.weights[count] = {kind: sum(each) for kind, each in sizes.items()}
        plan.loading[count] = {kind: sum(each) + max(each) for kind, each in sizes.items()}
        plan.token[count], plan.row[count] = cache_bytes(part)
    return plan


def read_folder(folder, era):
    """The architecture, the class and its Config; the scheme of quantised weights, or None, and
    whether the head has it.
    """
    path = folder / "config.json"
    if not path.is_file():
        path, config, *_ = nanochat_folder.read_training_folder(folder, era)
        return *loading.read_config(path, config), None, False
    config = loading.language_config(read_json(path))
    found = loading.read_config(path, config)
    written = config.get("nanomodels")
    scheme = written.get("quantize") if isinstance(written, dict) else None
    try:
        check_counts(found[2], MOST_TENSORS)
        if scheme is None:
            return *found, None, False
        quantized.check_scheme(scheme)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return *found, scheme, "lm_head.weight_scale" in read_tensors(folder)[0]


def cut(whole, count):
    """One process's part of a model on the meta device, and its tensors, as Source.tensors."""
    named = {name: [(name, weight)] for name, weight in whole.named_parameters()}
    if count == 1:
        return whole, named
    part = loading.build(type(whole), local_config(whole.config, count))
    return part, cut_model(part, whole.config, named, Ranks(0, count))


def as_scheme(kind):
    return kind if kind in quantized.SCHEMES else None


def cache_bytes(model):
    """Bytes of the layers' entries in a new cache for each token, and for a row of any length."""
    model.to(torch.bfloat16)
    one, two = (
        sum(
            tensor.nbytes
            for entry in model.new_cache(1, length).entries
            if entry is not None
            for tensor in entry.tensors(length).values()
        )
        for length in (1, 2)
    )
    return two - one, 2 * one - two
