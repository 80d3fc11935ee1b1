"""A model of the Hub, downloaded into the Hub's cache with huggingface_hub.

That package is no requirement: without it, an error says the command to type. The weights come
last, file by file, and only if config.json can be loaded. After Ctrl-C or an error the next run
goes on with the first file that is not whole.
"""

import contextlib
import os
import shutil
from pathlib import Path

from nanomodels.checkpoint import finding, loading
from nanomodels.checkpoint.writing import existing
from nanomodels.text.files import one_line, read_json, say


def download(name, revision, weights, why):
    """Download a model and return the folder of its snapshot.

    weights: whether to get them, too; why: the reason for a download, for errors.
    Raises ValueError or an OSError; files that are whole are kept.
    """
    api = hub_api(name, revision, why)
    with explained(api, name, revision, why):
        info = api.model_info(name, revision=revision, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings or ()}
    finding.refuse_gguf(name, [*files])
    small, shards = finding.needed([*files])
    if not shards:
        raise ValueError(f"{name}: has no model.safetensors, pytorch_model.bin or model_STEP.pt")
    wanted = [*small, *shards] if weights else small
    cache = finding.hub_cache()
    announce(name, finding.cache_folder(name), [files[file] for file in wanted])
    folder = None
    for file in wanted:
        if folder and file == shards[0]:
            check_config(folder)
        commit = folder.name if folder else revision  # one for all files
        with explained(api, name, revision, why):
            path = api.hf_hub_download(name, file, revision=commit, cache_dir=cache)
        folder = folder or Path(path).parent
    return folder


def hub_api(name, revision, why):
    """huggingface_hub's HfApi; FileNotFoundError if it may not be used or is not installed."""
    command = f"hf download {name}" + (f" --revision {revision}" if revision != "main" else "")
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    if offline.upper() in ("1", "ON", "YES", "TRUE"):
        raise FileNotFoundError(
            f"{why}, and HF_HUB_OFFLINE is set; get it with: HF_HUB_OFFLINE=0 {command}"
        )
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise FileNotFoundError(
            f"{why}; get it with: pip install huggingface_hub && {command}"
        ) from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def announce(name, folder, files):
    """Say what will be downloaded; raise ValueError if the disk has no room for it."""
    blobs = folder / "blobs"  # a file that is whole is there, under its hash
    names = [str(file.lfs.sha256 if file.lfs else file.blob_id) for file in files]
    sizes = [
        f.size or 0 for f, blob in zip(files, names, strict=True) if not (blobs / blob).exists()
    ]
    total, free = sum(sizes) / 1e9, shutil.disk_usage(existing(folder)).free / 1e9
    if total > free:
        raise ValueError(
            f"{name}: downloading needs {total:.2f} GB; the disk of {folder} has {free:.2f} GB free"
        )
    if sizes:
        count = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
        say(f"downloading {name}: {count}, {total:.2f} GB, to {folder}")


def check_config(folder):
    """Refuse a model that cannot be loaded, before its weights are downloaded."""
    path = folder / "config.json"
    if path.is_file():
        hub = read_json(path)
        loading.detect_format(folder, hub)
        loading.read_config(path, loading.language_config(hub))


@contextlib.contextmanager
def explained(api, name, revision, why):
    """Turn whatever huggingface_hub raises into an OSError of one line."""
    from huggingface_hub import errors

    endpoint = api.endpoint
    try:
        yield
    except errors.GatedRepoError:
        what = f"{name} is gated: accept its terms at {endpoint}/{name}, then: hf auth login"
    except errors.RevisionNotFoundError:
        what = f"{name} has no revision {revision!r} at {endpoint}"
    except errors.RepositoryNotFoundError:
        what = f"{why}, and {endpoint} has no such model, or it is private (hf auth login)"
    except Exception as error:  # those of the HTTP package, which is another in each version
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {one_line(cause)[:200]}"
        what = f"{why}, and downloading from {endpoint} failed ({reason}); run this again to go on"
    else:
        return
    raise OSError(what)
