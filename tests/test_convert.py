"""convert_hf.py: nothing is changed, nothing is half-written, nothing of a file is run."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from effort import THOROUGH
from reference import FAMILIES, random_nanochat, random_nemotron_h
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import convert_hf
import nanomodels
from nanomodels.checkpoint import convert, writing
from nanomodels.checkpoint.names import PADDING_PREFIX
from nanomodels.checkpoint.tensors import read_tensors
from nanomodels.cli import convert as cli_convert

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights"
DATA = Path(__file__).parent / "data"
NATIVE = ("nanochat-2025-10-16", "nanochat-2026-01-18", "nanochat-2026-07-03")
TINY = ("nanochat-tiny", "nemotron-tiny", "nemotron-h-tiny")
SHARDED, WHOLE = "5KB", "1GB"


def run(*args):
    assert convert_hf.main([str(arg) for arg in args]) == 0


@pytest.fixture
def refused(capsys):
    def refused(*args, words=(), status=2):
        """Run it; it says one line, and leaves no trace."""
        folder = Path(args[1]).parent
        before = sorted(folder.rglob("*")) if folder.is_dir() else None
        capsys.readouterr()
        assert convert_hf.main([str(arg) for arg in args]) == status
        error = capsys.readouterr().err
        assert error.startswith("convert_hf.py: error: ")
        assert error.count("\n") == 1
        for word in words:
            assert str(word) in error
        assert before is None or sorted(folder.rglob("*")) == before
        return error

    return refused


def same(ours, theirs):
    """Whether two dicts of tensors are equal to the bit."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(writing.raw(tensor), writing.raw(theirs[name])), name


def tensors_of(folder):
    """What a converted folder holds, but what stands between."""
    stored, _ = read_tensors(folder)
    return {n: t for n, t in stored.items() if not n.startswith(PADDING_PREFIX)}


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(6))
def test_there_and_back_again_every_tensor_is_equal_to_the_bit(tmp_path, family, seed):
    theirs = FAMILIES[family](seed)
    dtype = (torch.float32, torch.bfloat16)[seed % 2]
    theirs.to(dtype).save_pretrained(
        tmp_path / "hub",
        max_shard_size=SHARDED if seed % 3 else WHOLE,
        save_original_format=seed in (0, 1, 5),  # else Nemotron-H's experts are stacked
    )
    run(tmp_path / "hub", tmp_path / "ours", "--verify")
    run(tmp_path / "ours", tmp_path / "back", "--to", "hf", "--verify")
    ids = torch.arange(53)[None] * 31 % theirs.config.vocab_size
    rounding = {"rtol": 0, "atol": 0.2 if seed % 2 else 1e-4}  # where tensors begin matters
    models = [nanomodels.load(tmp_path / name) for name in ("hub", "ours", "back")]
    expected = models[0](ids)
    for model in models[1:]:
        same(model.state_dict(), models[0].state_dict())
        torch.testing.assert_close(model(ids), expected, **rounding)
    first, again = (
        type(theirs).from_pretrained(tmp_path / name, dtype="auto") for name in ("hub", "back")
    )
    same(again.state_dict(), first.state_dict())
    if family == "nemotron_h":
        for model in (first, again):  # the other implementations want wider experts
            model.set_experts_implementation("eager")
    torch.testing.assert_close(again(ids).logits, first(ids).logits, **rounding)


@pytest.mark.parametrize("stored", [("embed",), ("head",), ("embed", "head")])
@pytest.mark.parametrize("family", ["nanochat", "nemotron"])
def test_tied_weights_are_written_once(tmp_path, family, stored):
    make = FAMILIES[family]
    theirs = next(m for m in map(make, range(50)) if m.config.tie_word_embeddings)
    theirs.save_pretrained(tmp_path / "hub")
    file = tmp_path / "hub" / "model.safetensors"
    tensors = load_file(file)
    names = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight"}
    shared = tensors.pop(names["embed"])
    save_file(tensors | {names[name]: shared.clone() for name in stored}, file, {"format": "pt"})
    run(tmp_path / "hub", tmp_path / "ours", "--verify")
    run(tmp_path / "ours", tmp_path / "back", "--to", "hf", "--verify")
    again = type(theirs).from_pretrained(tmp_path / "back")
    same(again.state_dict(), theirs.state_dict())


def test_other_heads_go_there_and_back(tmp_path):
    from transformers import NemotronForQuestionAnswering, NemotronForSequenceClassification

    config = FAMILIES["nemotron"](2).config
    for head in (NemotronForQuestionAnswering, NemotronForSequenceClassification):
        theirs, folder = head(config), tmp_path / head.__name__
        theirs.save_pretrained(folder / "hub")
        run(folder / "hub", folder / "ours", "--verify")
        run(folder / "ours", folder / "back", "--to", "hf", "--verify")
        same(head.from_pretrained(folder / "back").state_dict(), theirs.state_dict())


def test_code_of_the_repository_is_not_named_in_what_goes_back(tmp_path):
    random_nemotron_h(1).save_pretrained(tmp_path / "hub")
    for name in ("config.json", "tokenizer_config.json"):
        path = tmp_path / "hub" / name
        content = json.loads(path.read_text()) if path.exists() else {"eos_token": "</s>"}
        path.write_text(json.dumps(content | {"auto_map": {"AutoConfig": "x.Y"}}))
    run(tmp_path / "hub", tmp_path / "back", "--to", "hf")
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "back" / name).read_text())


def test_the_hubs_own_names_come_back(tmp_path):
    """Not those of transformers in memory, whose experts are stacked under `model.`."""
    theirs = random_nemotron_h(3)
    theirs.save_pretrained(tmp_path / "hub", save_original_format=True)
    theirs.save_pretrained(tmp_path / "stacked", save_original_format=False)
    expected = load_file(tmp_path / "hub" / "model.safetensors")
    assert any(name.startswith("backbone.") for name in expected)
    for source in ("hub", "stacked"):
        run(tmp_path / source, tmp_path / f"{source}-back", "--to", "hf")
        same(load_file(tmp_path / f"{source}-back" / "model.safetensors"), expected)


def test_a_large_model_goes_back_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "SHARD", 20_000)
    theirs = random_nanochat(3)
    theirs.save_pretrained(tmp_path / "hub")
    run(tmp_path / "hub", tmp_path / "back", "--to", "hf")
    shards = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    again = type(theirs).from_pretrained(tmp_path / "back")
    same(again.state_dict(), theirs.state_dict())


@pytest.mark.parametrize(
    "source", [*(WEIGHTS / name for name in TINY), *(DATA / n for n in NATIVE)]
)
def test_every_tensor_begins_at_a_multiple_of_64_bytes_and_is_the_mapped_file(tmp_path, source):
    run(source, tmp_path / "ours")
    stored = tensors_of(tmp_path / "ours")
    assert all(tensor.data_ptr() % 64 == 0 for tensor in stored.values())
    model, first = nanomodels.load(tmp_path / "ours"), nanomodels.load(source)
    same(model.state_dict(), first.state_dict())
    usual = model.lm_head.weight.dtype
    for name, parameter in model.named_parameters():
        if stored[name].dtype == usual == parameter.dtype:
            assert parameter.data_ptr() % 64 == 0


@torch.inference_mode()
@pytest.mark.parametrize("name", TINY if THOROUGH else TINY[:1])
def test_a_converted_checkpoint_talks_as_before(tmp_path, name):
    run(WEIGHTS / name, tmp_path / "ours")
    made = json.loads((tmp_path / "ours" / "config.json").read_text())["nanomodels"]
    assert made["source"] == name
    texts = []
    for folder in (WEIGHTS / name, tmp_path / "ours"):
        model, tokenizer = nanomodels.load(folder), nanomodels.Tokenizer.load(folder)
        ids = tokenizer.encode("Once upon a time")
        tokens = nanomodels.generate(model, ids, max_new_tokens=20)
        texts.append((tokenizer.decode(tokens), model.stop_ids, tokenizer.chat_template))
    assert texts[0] == texts[1]
    command = [sys.executable, "generate.py", "--model", tmp_path / "ours", "Hello!"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    assert result.stdout.strip()


@torch.inference_mode()
@pytest.mark.parametrize("name", NATIVE)
def test_a_nanochat_training_folder_is_converted(tmp_path, name):
    run(DATA / name, tmp_path / "ours", "--verify")
    expected = load_file(DATA / name / "expected.safetensors")
    model, first = nanomodels.load(tmp_path / "ours"), nanomodels.load(DATA / name)
    logits = model(expected["input_ids"])[:, expected["positions"]]
    assert (logits - expected["logits"]).abs().max() <= 1e-4
    assert model.stop_ids == first.stop_ids
    assert model.config == first.config
    ours, theirs = (nanomodels.Tokenizer.load(f) for f in (tmp_path / "ours", DATA / name))
    text = "Two 2s, naïve 世界 🙂  \r\n<|bos|> x"
    assert ours.encode(text) == theirs.encode(text)
    chat = [{"role": "user", "content": text}]
    assert ours.encode_chat(chat) == theirs.encode_chat(chat)
    settings = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert settings["temperature"] == 0.6


@torch.inference_mode()
def test_a_nanochat_training_folder_of_2025_goes_to_the_hub(tmp_path):
    from transformers import NanoChatForCausalLM

    source = DATA / NATIVE[0]
    run(source, tmp_path / "hub", "--to", "hf", "--dtype", "float32")
    theirs = NanoChatForCausalLM.from_pretrained(tmp_path / "hub")
    expected = load_file(source / "expected.safetensors")
    logits = theirs(expected["input_ids"]).logits[:, expected["positions"]]
    assert (logits - expected["logits"]).abs().max() <= 1e-4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hub")
    text = "Two 2s, naïve 世界 🙂  \r\n x"
    ours = nanomodels.Tokenizer.load(source)
    assert tokenizer.encode(text) == ours.encode(text, add_bos=False)  # transformers adds no BOS


@pytest.mark.parametrize("name", NATIVE[1:])
def test_transformers_has_no_class_for_later_nanochats(tmp_path, refused, name):
    refused(DATA / name, tmp_path / "hub", "--to", "hf", words=["--to hf", "nanochat_2026"])


def test_a_step_of_a_training_run_is_chosen(tmp_path, refused):
    folder = tmp_path / "run"
    shutil.copytree(DATA / NATIVE[0], folder)
    tensors = torch.load(folder / "model_000010.pt", weights_only=True)
    tensors["_orig_mod.lm_head.weight"] *= 2
    torch.save(tensors, folder / "model_000020.pt")
    shutil.copy(folder / "meta_000010.json", folder / "meta_000020.json")
    heads = []
    for name, step in (("a", ["--step", 10]), ("b", ["--step", 20]), ("c", [])):
        run(folder, tmp_path / name, *step)
        heads.append(nanomodels.load(tmp_path / name).lm_head.weight)
    assert torch.equal(heads[0] * 2, heads[1])
    assert torch.equal(heads[1], heads[2])
    refused(folder, tmp_path / "d", "--step", 30, words=["has no step 30; it has [10, 20]"])
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "model_latest.pt").touch()
    refused(tmp_path / "odd", tmp_path / "d", words=["has no model_STEP.pt"])
    refused(WEIGHTS / TINY[0], tmp_path / "d", "--step", 3, words=["3", "has steps"])


@pytest.mark.parametrize("layout", ["zip", "older", "shards"])
def test_files_that_torch_saved_are_read(tmp_path, layout):
    theirs = random_nanochat(3)
    theirs.save_pretrained(tmp_path / "hub")
    source = tmp_path / "bin"
    shutil.copytree(tmp_path / "hub", source)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    if layout == "shards":
        names = sorted(tensors)
        halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
        for file, some in halves.items():
            torch.save({name: tensors[name] for name in some}, source / file)
        weight_map = {name: file for file, some in halves.items() for name in some}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        zipped = layout == "zip"
        torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    run(source, tmp_path / "ours")
    first = nanomodels.load(tmp_path / "hub").state_dict()
    same(nanomodels.load(tmp_path / "ours").state_dict(), first)
    same(nanomodels.load(source).state_dict(), first)


def test_a_dtype_asked_for_is_written_but_what_must_be_exact_stays_float32(tmp_path):
    random_nemotron_h(1).save_pretrained(tmp_path / "hub")
    run(tmp_path / "hub", tmp_path / "ours", "--dtype", "bfloat16", "--verify")
    expected = nanomodels.load(tmp_path / "hub", dtype=torch.bfloat16)
    same(tensors_of(tmp_path / "ours"), expected.state_dict())
    same(nanomodels.load(tmp_path / "ours").state_dict(), expected.state_dict())


@torch.inference_mode()
@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("head", [[], ["--quantize-head"]])
def test_quantised_weights_are_those_that_loading_makes(tmp_path, refused, scheme, head):
    source, ours = WEIGHTS / "nemotron-h-tiny", tmp_path / "ours"
    run(source, ours, "--quantize", scheme, "--verify", *head)
    ids = torch.arange(40)[None]
    model = nanomodels.load(ours)
    if not head:
        expected = nanomodels.load(source, quantize=scheme)
        same(model.state_dict(), expected.state_dict())
        assert torch.equal(model(ids), expected(ids))
        assert not torch.equal(model(ids), nanomodels.load(source)(ids))
    else:
        assert "lm_head.codes" in model.state_dict()
    assert torch.equal(nanomodels.load(ours, quantize=scheme)(ids), model(ids))
    other = {"int4": "int8", "int8": "int4"}[scheme]
    with pytest.raises(ValueError, match=f"its weights are {scheme}"):
        nanomodels.load(ours, quantize=other)
    refused(ours, tmp_path / "other", "--quantize", other, words=[f"its weights are {scheme}"])
    # Back in the Hub's layout they are what the codes stand for.
    run(ours, tmp_path / "back", "--to", "hf")
    back = nanomodels.load(tmp_path / "back")
    difference = (back(ids) - model(ids)).abs().max()
    assert difference <= 0.05 * model(ids).abs().max()


def test_weights_that_cannot_be_quantised_are_refused(tmp_path, refused):
    random_nanochat(3).save_pretrained(tmp_path / "hub")
    words = ["there is none"]
    refused(tmp_path / "hub", tmp_path / "ours", "--quantize", "int4", words=words)
    with pytest.raises(ValueError, match="sizes are multiples of 64; there is none"):
        nanomodels.load(tmp_path / "hub", quantize="int8")
    run(WEIGHTS / TINY[0], tmp_path / "small", "--quantize", "int8")
    again = ["--quantize", "int8", "--quantize-head"]
    refused(tmp_path / "small", tmp_path / "ours", *again, words=["are int8 already"])
    shutil.copytree(WEIGHTS / TINY[0], tmp_path / "nan")
    file = tmp_path / "nan" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.fc1.weight"
    tensors[name][3, 5] = torch.nan
    save_file(tensors, file)
    refused(tmp_path / "nan", tmp_path / "ours", "--quantize", "int4", words=["layers.1.mlp.fc1"])
    run(tmp_path / "nan", tmp_path / "ours", "--verify")  # as it is, it is a model


def test_a_number_that_the_dtype_cannot_hold_is_refused(tmp_path, refused):
    random_nanochat(3).save_pretrained(tmp_path / "hub")
    file = tmp_path / "hub" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.fc1.weight"][0, 0] = 70_000.0
    save_file(tensors, file)
    words = ["layers.0.mlp.fc1.weight", "7e+04 is too large for float16"]
    refused(tmp_path / "hub", tmp_path / "ours", "--dtype", "float16", words=words)
    run(tmp_path / "hub", tmp_path / "ours", "--dtype", "bfloat16")


def test_a_tokenizer_of_nanochat_beside_a_hubs_config_goes_along(tmp_path):
    shutil.copytree(WEIGHTS / TINY[0], tmp_path / "hub")
    for path in (tmp_path / "hub").glob("tokenizer*"):
        path.unlink()
    shutil.copy(DATA / NATIVE[0] / "tokenizer.pkl", tmp_path / "hub")
    theirs = nanomodels.Tokenizer.load(tmp_path / "hub")
    for layout in ("nanomodels", "hf"):
        run(tmp_path / "hub", tmp_path / layout, "--to", layout)
        ours = nanomodels.Tokenizer.load(tmp_path / layout)
        assert ours.encode("Hello, world") == theirs.encode("Hello, world")


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    run(WEIGHTS / "nemotron-h-tiny", tmp_path / "a" / "ours", "--dry-run", "--quantize", "int4")
    said = capsys.readouterr().out
    for words in ("NemotronH", "bfloat16", "int4", "model.safetensors", "chat_template.jinja"):
        assert words in said
    assert not list(tmp_path.iterdir())


def test_a_reader_that_is_gone_stops_nothing(source, target):
    command = f"{sys.executable} convert_hf.py {source} {target} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert nanomodels.load(target)


def test_the_target_is_weights_and_the_name(monkeypatch, tmp_path):
    monkeypatch.setattr(cli_convert, "WEIGHTS", tmp_path / "weights")
    revision = "0123abc"
    cached = tmp_path / "models--nvidia--Tiny" / "snapshots" / revision
    cached.parent.mkdir(parents=True)
    shutil.copytree(WEIGHTS / "nanochat-tiny", cached)
    run(cached)
    config = json.loads((tmp_path / "weights" / "Tiny" / "config.json").read_text())
    assert config["nanomodels"]["source"] == "nvidia/Tiny"
    assert config["nanomodels"]["revision"] == revision
    run(tmp_path / "weights" / "Tiny", "--to", "hf")
    config = json.loads((tmp_path / "weights" / "Tiny-hf" / "config.json").read_text())
    assert "nanomodels" not in config
    local = tmp_path / "local"
    shutil.copytree(WEIGHTS / "nanochat-tiny", local)
    (local / ".cache" / "huggingface" / "download").mkdir(parents=True)
    metadata = local / ".cache" / "huggingface" / "download" / "config.json.metadata"
    metadata.write_text(f"{revision}\netag\n123.4\n")
    run(local, "--quantize", "int8")
    config = json.loads((tmp_path / "weights" / "local-int8" / "config.json").read_text())
    assert config["nanomodels"] == {"source": "local", "revision": revision, "quantize": "int8"}


# --- what must not happen ---


@pytest.fixture
def source(tmp_path):
    """A checkpoint in shards."""
    random_nanochat(3).save_pretrained(tmp_path / "in" / "hub", max_shard_size="40KB")
    (tmp_path / "out").mkdir()
    return tmp_path / "in" / "hub"


@pytest.fixture
def target(tmp_path, source):
    return tmp_path / "out" / "ours"


def test_a_target_that_is_there_is_kept(source, target, refused):
    run(source, target)
    mark = target / "config.json"
    before = mark.read_bytes()
    refused(source, target, words=["is there already; --force"])
    refused(source, source, words=["is SRC"])
    refused(source, source.parent, words=["is SRC"])
    refused(source, source / "x", words=["is SRC"])
    thesis = target / "thesis.tex"
    thesis.write_text("dear")
    refused(source, target, "--force", words=[thesis, "is no part of a checkpoint"])
    thesis.unlink()
    other = target.parent / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    refused(source, other, "--force", words=["not the folder of a checkpoint"])
    refused(source, target, "--quantize-head", words=["--quantize-head"])
    refused(source, target, "--to", "hf", "--quantize", "int4", words=["the Hub's layout"])
    # A run with --force that fails leaves the old one.
    refused(source.parent / "nowhere", target, "--force", words=["no such folder"])
    assert mark.read_bytes() == before
    (target / "merges.txt").touch()
    run(source, target, "--force")
    assert not (target / "merges.txt").exists()
    assert sorted(path.name for path in target.parent.iterdir()) == ["other", "ours"]


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_ends_between_two_names_loses_nothing(source, target, monkeypatch, killed):
    run(source, target)
    rename = Path.rename

    def stop(path, name):
        if path.name == ".ours.partial":
            raise KeyboardInterrupt
        if not (killed and path.name == ".ours.old"):
            return rename(path, name)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        assert convert_hf.main([str(source), str(target), "--force"]) == 130
    assert target.exists() != killed
    assert convert_hf.main([str(source), str(target)]) == 2  # without --force: it is there again
    assert nanomodels.load(target)
    run(source, target, "--force")
    assert [path.name for path in target.parent.iterdir()] == ["ours"]


@pytest.mark.parametrize("args", [[], ["--force"]])
@pytest.mark.parametrize("name", [".ours.partial", ".ours.old"])
@pytest.mark.parametrize("kind", ["folder", "link", "link to a checkpoint", "file", "checkpoint"])
def test_what_somebody_else_has_beside_the_target_is_kept(
    source, target, refused, tmp_path, args, name, kind
):
    run(source, target)
    precious = tmp_path / "precious"
    shutil.copytree(target, precious)
    (precious / "letter.txt").write_text("dear")
    beside = target.parent / name
    if kind == "folder":
        precious.rename(beside)
    elif kind == "file":
        beside.write_text("dear")
    elif kind == "checkpoint":  # perhaps a backup
        shutil.copytree(target, beside)
    else:
        if kind == "link to a checkpoint":
            (precious / "letter.txt").unlink()
        beside.symlink_to(precious)
    if not args:
        shutil.rmtree(target)
    refused(source, target, *args, words=[f"{beside} is in the way", "move it or remove it"])
    refused(source, target, *args, "--dtype", "bfloat16", words=[beside])
    beside.rename(tmp_path / "moved")
    run(source, target, *args)


def test_a_folder_of_another_user_is_not_used(source, target, refused, monkeypatch):
    (target.parent / ".ours.partial").mkdir()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    refused(source, target, words=[".ours.partial is in the way"])


def test_files_that_come_into_the_target_meanwhile_are_kept(source, target, refused, monkeypatch):
    run(source, target)
    before = (target / "model.safetensors").read_bytes()
    flush = convert.flush

    def meddle(folder):
        flush(folder)
        (target / "thesis.tex").write_text("dear")

    monkeypatch.setattr(convert, "flush", meddle)
    assert convert_hf.main([str(source), str(target), "--force", "--dtype", "bfloat16"]) == 2
    assert (target / "thesis.tex").read_text() == "dear"
    assert (target / "model.safetensors").read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["ours"]
    other = target.parent / "other"
    monkeypatch.setattr(convert, "flush", lambda folder: other.mkdir())
    assert convert_hf.main([str(source), str(other)]) == 2  # nor is an empty folder replaced


def test_what_a_killed_run_left_of_the_old_target_is_removed(source, target):
    run(source, target)
    old = target.parent / ".ours.old"
    shutil.copytree(target, old)
    (old / writing.MARK).touch()
    run(source, target, "--force")
    assert [path.name for path in target.parent.iterdir()] == ["ours"]
    assert not (target / writing.MARK).exists()


def test_a_full_disk_is_one_clear_line(source, target, refused, monkeypatch):
    usage = shutil.disk_usage(target.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused(source, target, words=["needs 0.00 GB"])


def test_a_disk_that_fills_up_meanwhile_is_one_clear_line(source, target):
    """The limit on the size of a file stands for the disk: the write fails in the middle."""
    command = [sys.executable, "convert_hf.py", source, target]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # noqa: E731
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert result.returncode == 2
    assert result.stderr.startswith("convert_hf.py: error: ")
    assert result.stderr.count("\n") == 1
    assert not list(target.parent.iterdir())


def test_a_small_disk(source, tmp_path, refused):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        refused(source, disk / "ours", words=["needs", "its disk has 0.00 GB free"])
        usage = shutil.disk_usage("/")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: usage)
            refused(source, disk / "ours", words=["No space left on device"])
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            refused(source, disk / "ours", words=["Read-only file system"])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_target_that_cannot_be_written_is_one_clear_line(source, refused, tmp_path):
    refused(source, "/proc/nowhere/ours")
    (tmp_path / "file").touch()
    refused(source, tmp_path / "file" / "ours")


@pytest.mark.parametrize("dtype", [[], ["--dtype", "bfloat16"]])
@pytest.mark.parametrize("change", ["grown", "cut", "gone"])
def test_a_source_that_changes_meanwhile_is_noticed(
    source, target, refused, monkeypatch, change, dtype
):
    shard = sorted(source.glob("*.safetensors"))[-1]
    add = writing.Progress.add

    def meddle(self, size):
        add(self, size)
        if self.done == size:  # the first tensor is written
            if change == "gone":
                shard.unlink()
            else:
                os.truncate(shard, 4096 if change == "cut" else shard.stat().st_size + 1)

    monkeypatch.setattr(writing.Progress, "add", meddle)
    refused(source, target, *dtype, words=[shard, "has changed while it was read"])


def test_what_does_not_read_back_is_noticed(source, target, refused, monkeypatch):
    write = convert.write

    def damage(path, *args):
        write(path, *args)
        with path.open("r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"\x5a")

    monkeypatch.setattr(convert, "write", damage)
    refused(source, target, "--verify", words=["does not read back as it was written"])


@pytest.fixture
def slow(tmp_path):
    """A program that converts the source so slowly that it can be stopped meanwhile."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\nimport convert_hf\nfrom nanomodels.checkpoint import writing\n"
        "add = writing.Progress.add\n"
        "def slowly(self, size):\n    add(self, size)\n    print('.', flush=True)\n"
        "    time.sleep(0.3)\n"
        "writing.Progress.add = slowly\nsys.exit(convert_hf.main())\n"
    )

    def start(*args):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, script, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        while process.stdout.readline() != ".\n":
            assert process.poll() is None
        return process

    return start


def test_a_run_that_is_killed_leaves_no_target_and_the_next_one_works(source, target, slow):
    process = slow(source, target)
    process.kill()
    process.communicate()
    assert [path.name for path in target.parent.iterdir()] == [".ours.partial"]
    run(source, target)
    assert [path.name for path in target.parent.iterdir()] == ["ours"]
    assert nanomodels.load(target)


def test_two_runs_do_not_meet(source, target, slow, capsys):
    process = slow(source, target)
    assert convert_hf.main([str(source), str(target)]) == 2
    assert "is being written by another" in capsys.readouterr().err
    process.terminate()
    process.communicate()


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_run_that_is_stopped_leaves_nothing(source, target, slow, name, status):
    process = slow(source, target)
    process.send_signal(getattr(signal, name))
    _, error = process.communicate()
    assert process.returncode == status
    assert error == ""
    assert not list(target.parent.iterdir())


def test_ctrl_c_while_torch_is_imported_is_quiet(source, target):
    command = [sys.executable, "convert_hf.py", source, target]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert (process.returncode, error) == (130, "")


def edit_index(source, change):
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_damaged_sources_are_refused(source, target, refused):
    shards = sorted(source.glob("*.safetensors"))
    whole = shards[0].read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        shards[0].write_bytes(whole[:cut])
        refused(source, target, words=[shards[0], "not a whole safetensors file"])
    shards[0].unlink()
    refused(source, target, words=[shards[0], "no such file"])
    shards[0].write_bytes(whole)
    tensors, others = load_file(shards[0]), load_file(shards[1])
    name, tensor = next(iter(others.items()))
    save_file(tensors | {name: tensor}, shards[0], {"format": "pt"})
    refused(source, target, words=[shards[0], f"holds {name}"])
    shards[0].write_bytes(whole)
    edit_index(source, lambda names: names.update({name: "../elsewhere.safetensors"}))
    refused(source, target, words=[name, "../elsewhere.safetensors", "of this folder"])
    edit_index(source, lambda names: names.update({name: str(target / "x.safetensors")}))
    refused(source, target, words=[name, "of this folder"])


def test_a_tensor_under_two_names_is_refused(target, refused, tmp_path):
    random_nemotron_h(3).save_pretrained(tmp_path / "hub", save_original_format=True)
    file = tmp_path / "hub" / "model.safetensors"
    tensors = load_file(file)
    norm = tensors["backbone.norm_f.weight"].clone()
    save_file(tensors | {"model.norm_f.weight": norm}, file, {"format": "pt"})
    refused(tmp_path / "hub", target, words=["is there twice", "backbone.norm_f.weight"])


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("was-run"),)


@pytest.mark.parametrize("older", [False, True])
def test_a_pickle_with_code_is_not_run(source, target, refused, tmp_path, monkeypatch, older):
    monkeypatch.chdir(tmp_path)
    legacy = tmp_path / "bin"
    legacy.mkdir()
    shutil.copy(source / "config.json", legacy)
    run = tmp_path / "run"
    shutil.copytree(DATA / NATIVE[0], run)
    for path in (legacy / "pytorch_model.bin", run / "model_000010.pt"):
        path.unlink(missing_ok=True)
        for content in ({"x": Evil()}, Evil()):
            torch.save(content, path, _use_new_zipfile_serialization=not older)
            refused(path.parent, target, words=[path, "not a whole file of plain tensors"])
            path.write_bytes(pickle.dumps(content))
            refused(path.parent, target, words=[path, "not a whole file of plain tensors"])
    run = tmp_path / "run2"
    shutil.copytree(DATA / NATIVE[0], run)
    (run / "tokenizer.pkl").chmod(0o644)
    (run / "tokenizer.pkl").write_bytes(pickle.dumps(Evil()))
    refused(run, target, words=["tokenizer.pkl", "nothing in it was run"])
    assert not Path("was-run").exists()


def test_a_terminal_sees_how_far_it_is(monkeypatch, source, target):
    import io

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(writing.Progress, "PAUSE", 0.0)
    run(source, target)
    said = terminal.getvalue()
    assert "GB/s" in said
    assert "s left" in said
    assert said.endswith("\r\033[K")


def test_help_and_mistakes(capsys):
    with pytest.raises(SystemExit) as raised:
        convert_hf.main(["--help"])
    assert raised.value.code == 0
    assert "--dry-run" in capsys.readouterr().out
    with pytest.raises(SystemExit) as raised:
        convert_hf.main(["x", "--to", "gguf"])
    assert raised.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", True),
        ("architectures", [[]]),
        ("architectures", {"a": 1}),
        ("nanomodels", "yes"),
        ("nanomodels", {"quantize": ["int4"]}),
        ("quantization_config", 5),
    ],
)
def test_odd_values_in_the_config_are_refused(source, target, refused, key, value):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused(source, target)


@pytest.mark.parametrize("value", [5, True, "x", [[]]])
def test_odd_values_in_the_meta_are_refused(tmp_path, refused, value):
    shutil.copytree(DATA / NATIVE[1], tmp_path / "run")
    (tmp_path / "run" / "meta_000010.json").chmod(0o644)
    (tmp_path / "run" / "meta_000010.json").write_text(json.dumps({"model_config": value}))
    refused(tmp_path / "run", tmp_path / "ours", words=["model_config"])
