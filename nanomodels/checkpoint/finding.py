"""From the name of a checkpoint to its folder, for `load`, `Tokenizer.load` and the commands.

    ~/models/x            a folder; also models--org--name of the Hub's cache
    nanochat-tiny         a shipped model, or a folder in ./weights
    org/name              a model of the Hub: in its cache, else downloading.py gets it
    org/name@revision     the same at a branch, a tag or a commit

What is in the cache is used without asking the Hub whether there is a newer revision;
`hf download org/name` gets that one.

Source: huggingface_hub 2.4.0 constants.py (variables), file_download.py (layout of the cache).
"""

import contextlib
import os
import re
from fnmatch import fnmatch
from pathlib import Path

from nanomodels.text.files import read_json, read_text

PACKAGE = Path(__file__).resolve().parents[1]
IS_INSTALLED = (PACKAGE / "weights").is_dir()  # else this is a clone
SHIPPED = (PACKAGE if IS_INSTALLED else PACKAGE.parent) / "weights"
SHIPPED_NAMES = ("nanochat-tiny", "nemotron-tiny", "nemotron-h-tiny")
WEIGHTS = Path("weights") if IS_INSTALLED else SHIPPED  # where convert_hf.py writes

# Files beside config.json and the weights.
COMPANIONS = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "*.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
# A path below weights/ with a mistake in it is not looked for on the Hub.
HUB_NAME = re.compile(r"(?!weights/)(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)


def find(name, weights=True):
    """Return the folder of a checkpoint; name is a path or one of the names above.

    A model of the Hub that is not on this machine is downloaded, and a line on stderr says so;
    weights=False: only its small files, for the tokenizer.
    Raises FileNotFoundError if there is no such checkpoint, ValueError for GGUF.
    """
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        is_cache = path.name.startswith("models--") and (path / "snapshots").is_dir()
        folder = only_snapshot(path) if is_cache else path
        if weights:
            refuse_gguf(folder, [file.name for file in folder.iterdir()])
        return folder
    if path.exists():
        refuse_gguf(path, [path.name])
        raise FileNotFoundError(f"{path}: not a folder; give the folder of a checkpoint")
    for folder in (SHIPPED / path, Path("weights") / path):
        if len(path.parts) == 1 and folder.is_dir():
            return folder
    match = HUB_NAME.fullmatch(str(name))
    if match is None or ".." in str(name):
        raise FileNotFoundError(
            f"{name}: no such folder; give the folder of a checkpoint, org/name of the Hub, or "
            f"{' or '.join(SHIPPED_NAMES)}"
        )
    return find_on_hub(match[1], match[2] or "main", weights)


def refuse_gguf(name, files):
    """Raise ValueError if a checkpoint with these files has its weights in GGUF alone."""
    if any(file.endswith(".gguf") for file in files) and not needed(files)[1]:
        raise ValueError(
            f"{name} is GGUF, for llama.cpp; give the checkpoint with safetensors that it was made "
            "from"
        )


def needed(files):
    """Of the names of a checkpoint's files, those that loading reads: small files, and weights."""
    if "config.json" not in files:  # nanochat's own
        steps = {int(m[1]): m[0] for file in files if (m := re.fullmatch(r"model_(\d+)\.pt", file))}
        weights = [steps[max(steps)]] if steps else []
        small = {file.replace("model_", "meta_").replace(".pt", ".json") for file in weights}
        return sorted(({"tokenizer.pkl"} | small) & {*files}), weights
    wildcards = ("config.json", "hf_quant_config.json", *COMPANIONS)
    small = [file for wildcard in wildcards for file in files if matches(file, wildcard)]
    for single in ("model.safetensors", "pytorch_model.bin"):
        if single in files:
            return small, [single]
        if (index := f"{single}.index.json") in files:
            shards = [file for file in files if matches(file, f"*{Path(single).suffix}")]
            return [*small, index], shards
    return small, []


def matches(file, wildcard):
    """Whether a name fits a wildcard whose * stands for no slash."""
    return file.count("/") == wildcard.count("/") and fnmatch(file, wildcard)


# --- The Hub's cache ---


def find_on_hub(name, revision, weights):
    """The snapshot of a model of the Hub, from its cache or downloaded."""
    found, why = snapshot(cache_folder(name), revision), f"{name} is not on this machine"
    if found is not None:
        missing = lacking(found, weights)
        if missing is None:
            return found
        why = f"{name} lacks {missing}: its download has not ended"
    from nanomodels.checkpoint.downloading import download  # here, because it imports torch

    return download(name, revision, weights, why)


def cache_folder(name):
    """Where the Hub's cache has the model org/name."""
    return hub_cache() / f"models--{name.replace('/', '--')}"


def hub_cache():
    """The folder of the Hub's cache."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    home = os.environ.get("HF_HOME", default)
    cache = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return Path(os.path.expandvars(os.environ.get("HF_HUB_CACHE", cache))).expanduser()


def snapshot(folder, revision):
    """The snapshot of a revision in a folder models--org--name; None if there is none."""
    ref = folder / "refs" / revision
    commit = read_text(ref).strip() if ref.is_file() else revision
    found = folder / "snapshots" / commit
    return found if re.fullmatch(r"\w+", commit) and found.is_dir() else None


def only_snapshot(folder):
    """The snapshot of `main` in a folder models--org--name, or the only one."""
    snapshots = [*(folder / "snapshots").iterdir()]
    found = snapshot(folder, "main") or (snapshots[0] if len(snapshots) == 1 else None)
    if found is None:
        raise FileNotFoundError(f"{folder}: has no refs/main; give one of its snapshots")
    return found


def lacking(folder, weights):
    """What a snapshot lacks because its download did not end; None if nothing."""
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    small, shards = needed(files)
    if not weights:
        wildcards = ("tokenizer.json", "tokenizer.pkl", "*.model")
        has_tokenizer = any(matches(file, wildcard) for file in small for wildcard in wildcards)
        return None if has_tokenizer else "its tokenizer"
    for index in (file for file in small if file.endswith(".index.json")):
        weight_map = read_json(folder / index).get("weight_map")
        named = weight_map.values() if isinstance(weight_map, dict) else ()
        if missing := sorted({shard for shard in named if isinstance(shard, str)} - {*files}):
            return missing[0]
    return None if shards else "its weights"


def origin(folder):
    """A checkpoint's name, and its revision or None, by where its folder lies."""
    folder = folder.resolve()
    # The Hub's cache: models--OWNER--NAME/snapshots/REVISION.
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.removeprefix("models--").replace("--", "/"), folder.name
    # A download with local_dir.
    with contextlib.suppress(OSError, ValueError, IndexError):
        metadata = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
        return folder.name, read_text(metadata).split()[0]
    return folder.name, None
