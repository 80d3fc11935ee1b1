"""Loading: strict about tensors, plain about errors, careful with files."""

import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from reference import random_nanochat
from safetensors.torch import load_file, save_file

import nanomodels
from nanomodels.analysis.tracing import load_records
from nanomodels.cache import read_saved

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "data" / "nanochat-2025-10-16"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint in one file."""
    random_nanochat(3).save_pretrained(tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture
def shards(tmp_path):
    random_nanochat(3).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    return tmp_path / "shards"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(folder, *words, error=ValueError):
    with pytest.raises(error) as raised:
        nanomodels.load(folder)
    message = str(raised.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message
    return message


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.pop(Q_PROJ))
    refused(folder, "missing tensors: layers.0.self_attn.q_proj.weight")


def test_an_extra_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"resid_lambdas": torch.ones(2)}))
    refused(folder, "unexpected tensors: resid_lambdas")


def test_a_tensor_of_a_layer_too_many_is_named(folder):
    extra = "model.layers.9.mlp.fc1.weight"
    rewrite(folder, lambda tensors: tensors.update({extra: torch.ones(2)}))
    refused(folder, f"unexpected tensors: {extra}")


def test_a_wrong_shape_is_named_with_both_shapes(folder):
    rewrite(folder, lambda tensors: tensors.update({Q_PROJ: torch.ones(3, 5)}))
    refused(folder, Q_PROJ, "[3, 5]", "the config asks for")


def test_a_quantised_tensor_is_refused(folder):
    rewrite(folder, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.float8_e4m3fn)}))
    refused(folder, Q_PROJ, "float8_e4m3fn", "supported: float32, bfloat16, float16")
    edit(folder / "config.json", lambda c: c.update(quantization_config={"quant_algo": "FP8"}))
    refused(folder, "quantization_config")


def test_many_names_are_cut_short(folder):
    rewrite(folder, lambda tensors: tensors.update({f"x{i}": torch.ones(1) for i in range(9)}))
    refused(folder, "x0, x1, x2, x3, x4 and 4 more")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_cut_off_file_is_refused(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "model.safetensors", "not a whole safetensors file")


def test_a_file_that_must_not_be_read_is_not_said_to_be_missing(folder, monkeypatch):
    """Of a checkpoint, a cache and a trace. Root may read all, so `open` refuses here."""
    path, opened = folder / "model.safetensors", Path.open

    def forbidden(self, *args, **kwargs):
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", forbidden)
    for read, what in ((nanomodels.load, folder), (read_saved, path), (load_records, path)):
        with pytest.raises(PermissionError, match="model.safetensors"):
            read(what)
        with pytest.raises(FileNotFoundError, match="nothing: no such f"):
            read(folder / "nothing")


def test_shards_are_checked_against_their_index(shards):
    index = shards / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    # A tensor that is not alone in its shard.
    name, file = next((n, f) for n, f in files.items() if list(files.values()).count(f) > 1)
    (shards / file).rename(shards / "elsewhere")
    refused(shards, file, "no such file", error=FileNotFoundError)
    (shards / "elsewhere").rename(shards / file)
    edit(index, lambda content: content["weight_map"].pop(name))
    refused(shards, file, f"holds {name}, which model.safetensors.index.json does not say")
    edit(index, lambda content: content["weight_map"].update({name: file, "ghost": file}))
    refused(shards, "lacks ghost")
    edit(index, lambda content: content.pop("weight_map"))
    refused(shards, "lacks weight_map")


@pytest.mark.parametrize("path", ["../elsewhere.safetensors", "/etc/passwd", 5, ["a"]])
def test_a_shard_outside_the_folder_is_refused(shards, path):
    index = shards / "model.safetensors.index.json"
    edit(index, lambda content: content["weight_map"].update({Q_PROJ: path}))
    refused(shards, f"{Q_PROJ} is in {path!r}; it must be a file of this folder")


def test_folders_without_a_checkpoint_are_refused(tmp_path, folder):
    refused(tmp_path / "nowhere", "no such folder", error=FileNotFoundError)
    refused(tmp_path, "no checkpoint here", error=FileNotFoundError)
    (folder / "model.safetensors").unlink()
    refused(folder, "has neither model.safetensors nor", error=FileNotFoundError)


def test_bad_config_files_are_refused(folder):
    path = folder / "config.json"
    edit(path, lambda c: c.update(model_type="llama"))
    refused(folder, "config.json: model_type 'llama' is unknown; supported: nanochat")
    edit(path, lambda c: c.update(model_type="nanochat", hidden_act="gelu"))
    refused(folder, "config.json: hidden_act 'gelu'")
    path.write_text("[1, 2]")
    refused(folder, "must hold a JSON object")
    path.write_bytes(b'{"model_type": \xff')
    refused(folder, "not UTF-8 text")
    path.write_text("{,}")
    refused(folder, "not valid JSON")
    path.write_text("[" * 100_000)
    refused(folder, "not valid JSON")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id 'x'"),
        ("generation_config.json", {"eos_token_id": [1.5]}, "eos_token_id 1.5"),
        ("tokenizer_config.json", {"eos_token": ["a"]}, "is not laid out as"),
        ("tokenizer_config.json", {"eos_token": "a", "added_tokens_decoder": [1]}, "laid out"),
        ("tokenizer_config.json", {"eos_token": "a", "added_tokens_decoder": {"1": {}}}, "laid"),
    ],
)
def test_files_beside_the_config_are_refused_where_they_say_nonsense(folder, file, content, words):
    (folder / file).write_text(json.dumps(content))
    refused(folder, words)


def test_tied_weights_may_stand_twice_but_must_agree(folder):
    edit(folder / "config.json", lambda c: c.update(tie_word_embeddings=True))
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    rewrite(folder, lambda t: t.update({head: t[embedding] + 1}))
    refused(folder, "are one parameter, but differ")
    rewrite(folder, lambda t: t.update({head: t[embedding].clone()}))
    model = nanomodels.load(folder)
    assert model.lm_head.weight is model.embed_tokens.weight
    for only in (head, embedding):  # either of the two will do
        rewrite(folder, lambda t, only=only: t.update({only: t.pop(head, t.get(embedding))}))
        assert nanomodels.load(folder).lm_head.weight is not None


def test_stop_ids_are_the_union_of_all_files(folder):
    edit(folder / "config.json", lambda c: c.update(eos_token_id=7))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 11]}')
    tokenizer = {"eos_token": "<end>", "added_tokens_decoder": {"5": {"content": "<end>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert nanomodels.load(folder).stop_ids == (2, 5, 7, 11)
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    (folder / "tokenizer.json").write_text('{"added_tokens": [{"id": 9, "content": "<end>"}]}')
    assert nanomodels.load(folder).stop_ids == (2, 7, 9, 11)
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    assert nanomodels.load(folder).stop_ids == (7,)


def test_stop_ids_are_named_in_any_of_the_tokenizers_files(folder):
    edit(folder / "config.json", lambda c: c.update(eos_token_id=None, text_config=None))
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<end>"}}')
    model = {"vocab": {"a": 0, "<end>": 4}}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert nanomodels.load(folder).stop_ids == (4,)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": [["<end>", -1.5]]}}')
    assert nanomodels.load(folder).stop_ids == ()
    # transformers reads the older file only if the newer one lists no tokens.
    tokenizer = {"added_tokens_decoder": {"5": {"content": "<end>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert nanomodels.load(folder).stop_ids == ()


@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json"])
def test_nanochat_stops_at_both_of_its_tokens(folder, where):
    edit(folder / "config.json", lambda c: c.update(eos_token_id=None))
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens = {"<|bos|>": 7, "<|user_start|>": 8, "<|assistant_end|>": 11}
    added = [{"id": i, "content": name} for name, i in tokens.items()]
    decoder = {str(token["id"]): {"content": token["content"]} for token in added}
    content = {"added_tokens": added, "added_tokens_decoder": decoder}
    (folder / where).write_text(json.dumps(content))
    assert nanomodels.load(folder).stop_ids == (7, 11)


def test_stop_ids_are_those_of_a_sentencepiece_model(folder):
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b ab abc", "aaaa bc cab"] * 20),
        model_writer=content,
        model_type="bpe",
        byte_fallback=True,
        vocab_size=270,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    edit(folder / "config.json", lambda c: c.update(eos_token_id=50))
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "tokenizer.model").write_bytes(content.getvalue())
    assert nanomodels.load(folder).stop_ids == (2, 50)
    (folder / "tokenizer.model").write_bytes(content.getvalue()[:100])  # the model loads without
    assert nanomodels.load(folder).stop_ids == (50,)


@pytest.mark.parametrize("source", [*(ROOT / "weights").glob("*-tiny"), GOLDEN])
def test_the_model_stops_wherever_its_tokenizer_does(source):
    stops = nanomodels.Tokenizer.load(source)
    names = {"<|assistant_end|>", "<|bos|>"} if "<|assistant_end|>" in stops.special_ids else set()
    expected = {stops.eos_id} | {stops.special_ids[name] for name in names}
    assert expected <= set(nanomodels.load(source).stop_ids)


def test_a_dtype_asked_for_is_given_and_others_refused(folder):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert {p.dtype for p in nanomodels.load(folder, dtype=dtype).parameters()} == {dtype}
    with pytest.raises(ValueError, match="supported: float32"):
        nanomodels.load(folder, dtype=torch.int8)


def test_mixed_dtypes_become_the_one_that_most_numbers_have(folder):
    name = "model.embed_tokens.weight"
    rewrite(folder, lambda t: t.update({name: t[name].bfloat16()}))
    assert {p.dtype for p in nanomodels.load(folder).parameters()} == {torch.float32}


def test_progress_is_told_in_bytes(folder):
    calls = []
    model = nanomodels.load(folder, progress=lambda *call: calls.append(call))
    size = sum(p.nbytes for p in model.parameters())
    assert calls[0] == (0, size)
    assert calls[-1] == (size, size)
    assert calls == sorted(calls)


def test_both_layouts_of_nanochat_give_the_same_model(tmp_path):
    native = nanomodels.load(GOLDEN)
    config = {
        "model_type": "nanochat", "vocab_size": 400, "hidden_size": 32, "intermediate_size": None,
        "num_hidden_layers": 5, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 512, "rms_norm_eps": torch.finfo(torch.float32).eps,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    named = {
        name if name.startswith("lm_head") else f"model.{name}": tensor.clone()
        for name, tensor in native.state_dict().items()
    }
    save_file(named, tmp_path / "model.safetensors")
    hub, ids = nanomodels.load(tmp_path), torch.arange(50)[None]
    assert hub.config == native.config
    assert torch.equal(hub(ids), native(ids))


def test_the_highest_step_of_a_training_folder_is_loaded(tmp_path):
    for step, scale in ((9, 1.0), (10, 2.0)):
        tensors = torch.load(GOLDEN / "model_000010.pt", weights_only=True)
        tensors["_orig_mod.lm_head.weight"] *= scale
        torch.save(tensors, tmp_path / f"model_{step:06}.pt")
        shutil.copy(GOLDEN / "meta_000010.json", tmp_path / f"meta_{step:06}.json")
    expected = 2 * nanomodels.load(GOLDEN).lm_head.weight
    assert torch.equal(nanomodels.load(tmp_path).lm_head.weight, expected)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("was-run"),)


def test_a_training_file_is_never_unpickled_beyond_tensors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model_000010.pt"
    shutil.copy(GOLDEN / "meta_000010.json", tmp_path)
    torch.save({"transformer.wte.weight": Evil()}, path)
    refused(tmp_path, "model_000010.pt", "not a whole file of plain tensors")
    path.write_bytes(pickle.dumps(Evil()))
    refused(tmp_path, "not a whole file of plain tensors")
    assert not Path("was-run").exists()


def test_bad_training_folders_are_refused(tmp_path):
    shutil.copy(GOLDEN / "model_000010.pt", tmp_path)
    refused(tmp_path, "meta_000010.json", "no such file", error=FileNotFoundError)
    meta = tmp_path / "meta_000010.json"
    shutil.copy(GOLDEN / "meta_000010.json", meta)
    edit(meta, lambda content: content["model_config"].pop("n_embd"))
    refused(tmp_path, "meta_000010.json: model_config lacks n_embd")
    edit(meta, lambda content: content["model_config"].update(n_embd=32, vocab_size=300))
    refused(tmp_path, "vocab_size is 300, but the embedding has 400 rows")
    whole = (GOLDEN / "model_000010.pt").read_bytes()
    (tmp_path / "model_000010.pt").chmod(0o644)
    (tmp_path / "model_000010.pt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "not a whole file of plain tensors")
    wte = "transformer.wte.weight"
    for content, words in (
        ({"lm_head.weight": torch.ones(2)}, "lacks transformer.wte.weight"),
        ({wte: torch.tensor(1.0)}, "lacks transformer.wte.weight"),
        ({wte: torch.ones(2, 2), f"_orig_mod.{wte}": torch.ones(2, 2)}, "has a tensor twice"),
        ({wte: 3}, "must hold tensors by name"),
        (torch.ones(3), "must hold tensors by name"),
    ):
        torch.save(content, tmp_path / "model_000010.pt")
        refused(tmp_path, words)


def test_tensors_of_no_known_nanochat_are_refused_by_name(tmp_path):
    tensors = torch.load(GOLDEN / "model_000010.pt", weights_only=True)
    torch.save(tensors | {"smear_lambda": torch.ones(1)}, tmp_path / "model_000010.pt")
    shutil.copy(GOLDEN / "meta_000010.json", tmp_path)
    refused(tmp_path, "unexpected tensors: smear_lambda")
