"""Models by name: folders, shipped models, the Hub's cache, and downloads from a small Hub here."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from small_hub import COMMIT, Hub

import nanomodels
from nanomodels.checkpoint import finding
from nanomodels.checkpoint.finding import find
from nanomodels.cli import convert as cli_convert

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights"
TINY = {path.name: path.read_bytes() for path in (WEIGHTS / "nanochat-tiny").iterdir()}
VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home, the folder that we are in; no Hub."""
    for name in (*VARIABLES, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    with Hub("acme/tiny", dict(TINY)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def cached(cache, name="acme/tiny", commit=COMMIT, ref="main", files=TINY):
    """A model in the Hub's cache, as huggingface_hub lays it out: links to blobs."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for file, data in files.items():
        (folder / "blobs" / f"{commit}-{file}").write_bytes(data)
        (snapshot / file).symlink_to(f"../../blobs/{commit}-{file}")
    if ref:
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def refused(capsys):
    def refused(name, *words):
        """What `convert_hf.py NAME` says: one line with the words, and the status 2."""
        capsys.readouterr()
        assert cli_convert.main([str(name), "out"]) == 2
        *before, line = capsys.readouterr().err.splitlines()
        assert all(line.startswith("downloading ") for line in before)
        assert line.startswith("convert_hf.py: error: ") and len(line) < 500
        for word in words:
            assert str(word) in line
        return line

    return refused


# --- on this machine ---


def test_a_name_is_a_folder_a_shipped_model_or_one_in_weights(home):
    shipped = WEIGHTS / "nemotron-tiny"
    assert find("nemotron-tiny") == shipped
    assert find(str(shipped)) == find(shipped) == shipped
    (home / "weights" / "mine").mkdir(parents=True)
    assert find("mine") == Path("weights/mine")
    assert find("~/weights/mine") == home / "weights" / "mine"
    (home / "mine").mkdir()
    assert find("mine") == Path("mine"), "a folder comes first"
    (home / "acme" / "tiny").mkdir(parents=True)
    assert find("acme/tiny") == Path("acme/tiny")
    model = nanomodels.load("nanochat-tiny")
    assert nanomodels.Tokenizer.load("nanochat-tiny").vocab_size == model.config.vocab_size


def test_all_shipped_models_are_known_by_name():
    folders = {path.parent.name for path in WEIGHTS.glob("*/config.json")}
    ignored = subprocess.run(
        ["git", "check-ignore", *folders], cwd=WEIGHTS, capture_output=True, text=True
    )
    assert folders - {*ignored.stdout.split()} == {*finding.SHIPPED_NAMES}


@pytest.mark.parametrize(
    "settings",
    [
        {"HF_HUB_CACHE": "a", "HUGGINGFACE_HUB_CACHE": "b", "HF_HOME": "c", "XDG_CACHE_HOME": "d"},
        {"HUGGINGFACE_HUB_CACHE": "b", "HF_HOME": "c", "XDG_CACHE_HOME": "d"},
        {"HF_HOME": "~/c", "XDG_CACHE_HOME": "d"},
        {"XDG_CACHE_HOME": "$HOME/d"},
        {},
    ],
    ids=lambda settings: next(iter(settings), "none"),
)
def test_the_cache_is_where_huggingface_hub_has_it(monkeypatch, settings):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    theirs = runpy.run_path(constants.__file__)["HF_HUB_CACHE"]
    assert str(finding.hub_cache()) == theirs
    snapshot = cached(Path(theirs))
    assert find("acme/tiny") == snapshot
    assert nanomodels.Tokenizer.load("acme/tiny").bos_id is not None


def test_a_revision_is_a_branch_a_tag_or_a_commit(home, refused):
    cache = home / ".cache" / "huggingface" / "hub"
    main = cached(cache)
    pull = cached(cache, commit="ab12", ref="refs/pr/1")
    old = cached(cache, commit="cd34", ref=None)
    assert find("acme/tiny") == find("acme/tiny@main") == find(f"acme/tiny@{COMMIT}") == main
    assert find("acme/tiny@refs/pr/1") == pull
    assert find("acme/tiny@cd34") == old
    refused("acme/tiny@v7", "acme/tiny is not on this machine")
    (main.parents[1] / "refs" / "odd").write_text("../..")
    refused("acme/tiny@odd", "acme/tiny is not on this machine")


def test_a_folder_of_the_cache_stands_for_its_snapshot(home, refused):
    snapshot = cached(home, ref=None)
    assert find(home / "models--acme--tiny") == snapshot
    other = cached(home, commit="ab12", ref=None)
    refused("models--acme--tiny", "has no refs/main; give one of its snapshots")
    (home / "models--acme--tiny" / "refs").mkdir()
    (home / "models--acme--tiny" / "refs" / "main").write_text("ab12\n")
    assert find(home / "models--acme--tiny") == other
    assert finding.origin(other) == ("acme/tiny", "ab12")
    (home / "run" / "snapshots").mkdir(parents=True)
    assert find(home / "run") == home / "run", "of another program"


@pytest.mark.parametrize(
    "name",
    [
        *("nowhere", "./acme/tiny", "acme/tiny/more", "/acme/tiny", "~acme/tiny", "weights/tniy"),
        *("acme/tiny@", "acme/../tiny", "acme/tiny@../../x", "acme /tiny", "acm\u00e9/tiny"),
    ],
)
def test_what_is_no_name_is_not_looked_for_on_the_hub(hub, name, refused):
    refused(name, f"{name}: no such folder; give the folder of a checkpoint, org/name of the Hub")
    assert not hub.asked


def test_gguf_is_called_by_its_name(home, hub, refused):
    file = home / "gguf" / "model-Q4_K_M.gguf"
    file.parent.mkdir()
    file.touch()
    (home / "gguf" / "config.json").write_text("{}")
    refused(home / "gguf", home / "gguf", "is GGUF, for llama.cpp; give the checkpoint with safe")
    refused(file, file, "is GGUF")
    hub.files = {"config.json": b"{}", "x.gguf": b""}
    refused("acme/tiny", "acme/tiny is GGUF")
    assert not hub.downloads()
    (home / "gguf" / "model.safetensors").touch()
    assert find(home / "gguf") == home / "gguf", "both are there"


# --- downloads ---


def test_a_model_is_downloaded_once_and_only_what_is_needed(hub, capsys, home):
    hub.files |= {"README.md": b"", "onnx/model.onnx": b"", "original/tokenizer.model": b""}
    hub.files |= {"pytorch_model.bin": b"", "special_tokens_map.json": b"{}"}
    model = nanomodels.load("acme/tiny")
    said = capsys.readouterr().err.splitlines()
    cache = home / ".cache" / "huggingface" / "hub" / "models--acme--tiny"
    assert said == [f"downloading acme/tiny: 6 files, 0.01 GB, to {cache}"]
    assert sorted(hub.downloads()) == sorted([*TINY, "special_tokens_map.json"])
    assert hub.downloads()[-1] == "model.safetensors", "weights last"
    revisions = [path.split("/")[4] for _, path, _ in hub.asked if "resolve" in path]
    assert {*revisions[2:]} == {COMMIT}, "all files are of one commit"
    hub.asked.clear()
    folder = find("acme/tiny")
    assert folder == cache / "snapshots" / COMMIT == find("acme/tiny@main")
    tokenizer = nanomodels.Tokenizer.load("acme/tiny")
    assert not hub.asked and not capsys.readouterr().err
    ids = tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    assert "Paris" in tokenizer.decode(nanomodels.generate(model, ids, temperature=0.0))


def test_the_revision_that_was_downloaded_is_noted(hub, home, monkeypatch, capsys):
    monkeypatch.setattr(cli_convert, "WEIGHTS", home / "weights")
    assert cli_convert.main(["acme/tiny@v1", "--quantize", "int4"]) == 0
    config = json.loads((home / "weights" / "tiny-int4" / "config.json").read_text())
    written = {"source": "acme/tiny", "revision": COMMIT, "quantize": "int4"}
    assert config["nanomodels"] == written
    assert find("tiny-int4") == Path("weights/tiny-int4")


def test_a_tokenizer_comes_without_weights(hub, capsys):
    nanomodels.Tokenizer.load("acme/tiny")
    assert set(hub.downloads()) == TINY.keys() - {"model.safetensors"}
    hub.asked.clear()
    assert nanomodels.Tokenizer.load("acme/tiny").vocab_size == 1536
    assert not hub.asked
    assert capsys.readouterr().err.startswith("downloading acme/tiny: 4 files, 0.00 GB, to ")
    find("acme/tiny")
    assert hub.downloads() == ["model.safetensors"]
    assert capsys.readouterr().err.startswith("downloading acme/tiny: 1 file, 0.01 GB, to ")


BIN, SHARDS = "pytorch_model.bin", ["model-1.safetensors", "model-2.safetensors"]
INDEX = "model.safetensors.index.json"
TOOLS = "additional_chat_templates/tools.jinja"


@pytest.mark.parametrize(
    ("files", "small", "weights"),
    [
        (["config.json", "model.safetensors", BIN, *SHARDS], [], ["model.safetensors"]),
        (["config.json", BIN, f"{BIN}.index.json", INDEX, *SHARDS], [INDEX], SHARDS),
        (["config.json", BIN, "README.md", "optimizer.bin"], [], [BIN]),
        (["config.json", f"{BIN}.index.json", "a.bin"], [f"{BIN}.index.json"], ["a.bin"]),
        (["config.json", "tokenizer.json", "a/b.safetensors"], ["tokenizer.json"], []),
        (["config.json", "nemotron.model", BIN, "a/b.model"], ["nemotron.model"], [BIN]),
        (["config.json", BIN, TOOLS, f"a/{TOOLS}", f"{TOOLS}.txt"], [TOOLS], [BIN]),
    ],
)
def test_the_files_that_loading_reads(files, small, weights):
    assert finding.needed(files) == (["config.json", *small], weights)


def test_the_files_of_nanochat_are_those_of_its_last_step():
    files = ["model_9.pt", "meta_9.json", "model_010.pt", "meta_010.json", "optim_010.pt"]
    small = ["meta_010.json", "tokenizer.pkl"]
    assert finding.needed([*files, "tokenizer.pkl", "token_bytes.pt"]) == (small, ["model_010.pt"])
    assert finding.needed(["README.md", "model_x.pt"]) == ([], [])


def in_shards(files):
    """The files of a checkpoint, with its weights in two shards."""
    files = dict(files)
    data = files.pop("model.safetensors")
    index = json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()
    return files | dict.fromkeys(SHARDS, data[:1000]) | {INDEX: index}


def test_a_download_that_ended_early_goes_on_where_it_was(hub, monkeypatch, refused):
    """Files that are whole are not read again, by whatever program they came."""
    hub.files = in_shards(TINY)
    lost = hub.files.pop(SHARDS[1])
    cache = finding.hub_cache()
    cached(cache, files=hub.files)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(
        "acme/tiny",
        f"acme/tiny lacks {SHARDS[1]}: its download has not ended, and HF_HUB_OFFLINE is set; get "
        "it with: HF_HUB_OFFLINE=0 hf download acme/tiny",
    )
    monkeypatch.delenv("HF_HUB_OFFLINE")
    odd = json.dumps({"weight_map": {"a": ["x"], "b": 1}}).encode()
    folder = cached(cache, "acme/odd", files=TINY | in_shards(TINY) | {INDEX: odd})
    (folder / "model.safetensors").unlink()
    assert find("acme/odd") == folder, "the loader says what is wrong with it"
    hub.files[SHARDS[1]] = lost
    folder = find("acme/tiny")
    assert hub.downloads() == [SHARDS[1]]
    assert (folder / SHARDS[1]).read_bytes() == lost


def test_a_connection_that_breaks_is_taken_up_again(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.broken = {"model.safetensors": 5_005_000}
    folder = find("acme/tiny")
    assert (folder / "model.safetensors").read_bytes() == TINY["model.safetensors"]
    ranges = [begin for _, path, begin in hub.asked if path.endswith("model.safetensors")]
    assert ranges == [None, None, "bytes=5000000-"]  # HEAD, GET, and GET of the rest


def test_a_download_that_breaks_for_good_is_one_line_and_the_next_run_goes_on(
    hub, monkeypatch, refused
):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.logger.warning", lambda *_: None)
    hub.broken = Always({"model.safetensors": 1000})
    words = ["downloading from", "failed (RemoteProtocolError", "run this again to go on"]
    refused("acme/tiny", "acme/tiny is not on this machine, and", *words)
    hub.broken = {}
    hub.asked.clear()
    refused("acme/tiny@v9", "has no revision 'v9'")
    find("acme/tiny")
    assert hub.downloads() == ["model.safetensors"]


class Always(dict):
    """A dict that keeps what is taken from it."""

    pop = dict.__getitem__


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_says_where_its_terms_are(hub, status, refused):
    hub.refuse = (status, "GatedRepo")
    terms = f"accept its terms at {hub.url}/acme/tiny, then: hf auth login"
    refused("acme/tiny", f"acme/tiny is gated: {terms}")


def test_a_name_that_the_hub_does_not_know(hub, refused):
    words = f"{hub.url} has no such model, or it is private (hf auth login)"
    refused("acme/tniy", f"acme/tniy is not on this machine, and {words}")


def test_a_hub_that_cannot_be_reached_is_one_line(refused):
    refused("acme/tiny", "downloading from http://127.0.0.1:9 failed (ConnectError: ")


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_the_hub_is_not_asked(hub, monkeypatch, name):
    monkeypatch.setenv(name, "true")
    with pytest.raises(FileNotFoundError, match=r"get it with: HF_HUB_OFFLINE=0 hf download acme"):
        find("acme/tiny@v1")
    assert not hub.asked


def test_without_huggingface_hub_the_command_is_told(hub, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    get = "get it with: pip install huggingface_hub && hf download acme/tiny"
    assert refused("acme/tiny").endswith(f"acme/tiny is not on this machine; {get}")
    assert refused("acme/tiny@v1").endswith(f"{get} --revision v1")
    assert not hub.asked


def test_a_disk_that_is_too_small_is_told_before(hub, monkeypatch, refused):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=7_000_000))
    refused("acme/tiny", "downloading needs 0.01 GB", "has 0.01 GB free", "models--acme--tiny")
    assert not hub.downloads()


def test_a_disk_that_is_full_is_one_line(hub, monkeypatch, refused):
    def write(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", write)
    refused("acme/tiny", "failed (OSError: [Errno 28] No space left on device); run this again")


def test_what_cannot_be_loaded_is_refused_before_its_weights_come(hub, refused):
    hub.files["config.json"] = b'{"model_type": "llama"}'
    refused("acme/tiny", "config.json: model_type 'llama' is unknown; supported: nanochat")
    assert "model.safetensors" not in hub.downloads()
    hub.files = {"README.md": b"", "tokenizer.json": b"{}"}
    refused("acme/tiny", "acme/tiny: has no model.safetensors, pytorch_model.bin or model_STEP.pt")


@pytest.mark.slow
def test_ctrl_c_ends_a_download_at_once_and_leaves_no_part_of_a_file(hub, home):
    hub.pause = 0.01  # 70 s for the weights
    process = subprocess.Popen(
        [sys.executable, ROOT / "generate.py", "--model", "acme/tiny", "Hi"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while "model.safetensors" not in hub.downloads():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    assert (process.returncode, err.count("\n")) == (130, 1)
    blobs = home / ".cache" / "huggingface" / "hub" / "models--acme--tiny" / "blobs"
    assert sorted(path.stat().st_size for path in blobs.iterdir()) == sorted(
        len(data) for name, data in TINY.items() if name != "model.safetensors"
    )
