"""The folder of a nanochat training run: model_STEP.pt with the tensors, meta_STEP.json with sizes.

All that it leaves unsaid is here: the era of nanochat's code, which the tensors show, the ids of
the special tokens, and the rows of the vocabulary that are padding.

Source: karpathy/nanochat nanochat/checkpoint_manager.py, gpt.py and tokenizer.py.
"""

import re

from nanomodels import nanochat, nanochat_2026
from nanomodels.checkpoint.tensors import map_torch
from nanomodels.text.files import read_json


def is_training_folder(folder):
    """Whether a folder has files of a nanochat training run."""
    return any(folder.glob("model_*.pt"))


def read_training_folder(folder, era=None, step=None):
    """The config.json, as a dict, and the tensors of a training folder.

    era is a name in nanochat_2026.ERAS; None detects it by the tensors. step None is the highest.
    Returns meta_STEP.json's path, the config, {name: tensor}, and the files that were read.
    """
    path, meta_path = files_of_step(folder, step)
    tensors = map_torch(path)
    model_config = read_json(meta_path).get("model_config") or {}
    if not isinstance(model_config, dict):
        raise ValueError(f"{meta_path}: model_config is {model_config!r}; it must be an object")
    # torch.compile leaves a prefix.
    named = {name.removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}
    embedding = named.get("transformer.wte.weight")
    if len(named) != len(tensors) or embedding is None or embedding.dim() != 2:
        raise ValueError(f"{path}: lacks transformer.wte.weight, or has a tensor twice")
    try:
        era = nanochat_2026.detect_era(named, era)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        config, rows = read_model_config(model_config, era)
    except ValueError as error:
        raise ValueError(f"{meta_path}: {error}") from None
    # From 2025-12-23 on, nanochat rounds the rows up to a multiple of 64 and cuts the logits back.
    if len(embedding) not in (rows, -(-rows // 64) * 64):
        raise ValueError(
            f"{meta_path}: vocab_size is {rows}, but the embedding has {len(embedding)} rows"
        )
    for name, tensor in named.items():
        if name.startswith(("transformer.wte.", "lm_head.", "value_embeds.")):
            named[name] = tensor[:rows]
    return meta_path, config | special_ids(rows), named, [meta_path, path]


def files_of_step(folder, step):
    """Paths of model_STEP.pt and meta_STEP.json; step None is the highest."""
    names = (re.fullmatch(r"model_(\d+)\.pt", path.name) for path in folder.iterdir())
    steps = {int(name[1]): folder / name[0] for name in names if name}
    if not steps:
        raise FileNotFoundError(f"{folder}: has no model_STEP.pt, STEP a number")
    if step not in (None, *steps):
        raise FileNotFoundError(f"{folder}: has no step {step}; it has {sorted(steps)}")
    path = steps[max(steps) if step is None else step]
    return path, path.with_name(path.stem.replace("model_", "meta_") + ".json")


def read_model_config(model_config, era):
    """config.json, as a dict, for meta_STEP.json's model_config; and its number of token ids."""
    if era == nanochat_2026.FIRST:
        architecture, config = nanochat, nanochat.config_from_nanochat(model_config)
    else:
        architecture = nanochat_2026
        config = nanochat_2026.config_from_nanochat(model_config, era)
    return config, architecture.config_from_hub(config).vocab_size


def special_ids(vocab_size):
    """The keys of config.json that name special tokens.

    The nine special tokens are the last ids: <|bos|> is the first of them, <|assistant_end|> the
    fifth (nanochat/tokenizer.py, SPECIAL_TOKENS). nanochat's engine stops at either.
    """
    bos, assistant_end = vocab_size - 9, vocab_size - 5
    return {"bos_token_id": bos, "eos_token_id": [bos, assistant_end], "pad_token_id": bos}
