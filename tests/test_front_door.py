"""What `import nanomodels` offers: names, types, plain errors and reprs."""

import ast
import functools
import inspect
import math
import operator
import tomllib
import typing
from pathlib import Path

import pytest
import torch
from compare import close, random_ids
from test_decoders import DECODERS, built, name_of

import nanomodels
from nanomodels import nemotron, nemotron_h
from nanomodels.analysis.tracing import Records
from nanomodels.cache import Cache
from nanomodels.checkpoint import loading
from nanomodels.config import parameter_count
from nanomodels.generation.conversation import Reply
from nanomodels.generation.settings import BatchSettings, GenerationSettings, TextSettings

ROOT = Path(__file__).parent.parent
TINY = ROOT / "weights" / "nanochat-tiny"
PACKAGE = ROOT / "nanomodels"


@pytest.fixture(params=DECODERS, ids=name_of)
def model(request):
    return built(request.param).requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer():
    return nanomodels.Tokenizer.load(TINY)


# --- Names and types ---


def test_tab_completion_and_type_checkers_see_the_public_names():
    source = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.asname: node.module
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module.startswith("nanomodels.")
    }
    assert typed == nanomodels._LAZY
    assert {"load", "Tokenizer", "generate", "generate_batch"} <= {*nanomodels.__all__}
    assert {*nanomodels.__all__, "nemotron_h"} <= {*dir(nanomodels)}
    assert not {"importlib", "sys", "TYPE_CHECKING"} & {*dir(nanomodels)}
    for name in nanomodels.__all__:
        assert getattr(nanomodels, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        nanomodels.lode  # noqa: B018


def test_the_package_says_that_it_has_types():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["nanomodels"]
    assert (PACKAGE / "py.typed").read_text() == ""


def public_functions():
    yield from (nanomodels.load, nanomodels.generate, nanomodels.generate_batch)
    yield from (nanomodels.score, nanomodels.trace)
    for module, decoder in DECODERS.items():
        yield from (module.config_from_hub, decoder.forward, decoder.hidden, decoder.new_cache)
        yield decoder.context_length.fget
    yield from (model_class.forward for model_class in nemotron.ARCHITECTURES.values())
    yield nanomodels.Chat.__init__
    for each in (nanomodels.Tokenizer, Cache, nanomodels.Chat, Reply, Records):
        for name, value in vars(each).items():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            public = not name.startswith("_") or name in ("__iter__", "__str__", "__getitem__")
            if inspect.isfunction(function) and public:
                yield function


# Helpers that take no part in using a Cache, a Chat, a Reply or Records.
UNTYPED = {
    *("Cache.assign", "Cache.marks_to", "Chat.start", "Chat.fit", "Chat.end"),
    *("Reply.run", "Reply.settle", "Reply.whole", "Reply.count", "Records.add", "Records.check"),
}


def test_public_functions_have_types_that_exist():
    names = {model_class.__name__: model_class for model_class in DECODERS.values()}
    names["Model"] = functools.reduce(operator.or_, names.values())
    for function in public_functions():
        if function.__qualname__ in UNTYPED:
            continue
        parameters = {*inspect.signature(function).parameters} - {"self"}
        hints = typing.get_type_hints(inspect.unwrap(function), localns=names)
        assert hints.keys() == parameters | {"return"}, function.__qualname__


def test_load_is_said_to_return_what_makes_text():
    source = inspect.getsource(loading).partition("    Model = ")[2].partition("\n")[0]
    assert {*source.split(" | ")} == {each.__name__ for each in DECODERS.values()}


def test_the_keywords_of_generate_are_the_fields_of_the_settings():
    fields = typing.get_type_hints(GenerationSettings)
    assert typing.get_type_hints(BatchSettings) == fields
    assert fields.keys() - typing.get_type_hints(TextSettings).keys() == {"num_samples"}
    words = inspect.getdoc(nanomodels.generate).replace(",", " ").replace(";", " ").split()
    assert typing.get_type_hints(TextSettings).keys() <= {*words}


# --- Arguments ---


def test_dtype_and_device_may_be_strings():
    for dtype in ("bfloat16", "torch.bfloat16", torch.bfloat16):
        model = nanomodels.load(TINY, device="cpu", dtype=dtype)
        assert model.embed_tokens.weight.dtype == torch.bfloat16
    for dtype in ("float8", "int8", torch.float64, 5):
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(ValueError, match=f"dtype {name} is not supported; supported: float32"):
            nanomodels.load(TINY, dtype=dtype)


@pytest.mark.cpu
@pytest.mark.parametrize("device", ["gpu", "cuda", "mps", -3], ids=str)
def test_a_device_that_is_not_here_is_refused_in_one_line(device):
    with pytest.raises(ValueError, match=f"^device {device!r} cannot be used: .") as error:
        nanomodels.load(TINY, device=device)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [5, b"x", ["a"], None], ids=str)
def test_what_is_no_text_is_not_encoded(tokenizer, text):
    with pytest.raises(ValueError, match="the text is .*; it must be a string"):
        tokenizer.encode(text)
    with pytest.raises(ValueError, match="messages must be a list"):
        tokenizer.encode_chat(text)


@pytest.mark.parametrize(
    "ids", ["abc", 5, ["a"], [1.5], None, [[1]], torch.tensor(5), torch.ones(1, 2).long()], ids=str
)
def test_what_is_no_list_of_ids_is_not_decoded(tokenizer, ids):
    with pytest.raises(ValueError, match="ids is .*; it must be a list of token ids"):
        tokenizer.decode(ids)


def test_a_tensor_and_an_iterator_of_ids_are_decoded_as_the_list(tokenizer):
    ids = tokenizer.encode("Hello, world", add_bos=False)
    assert tokenizer.decode(torch.tensor(ids)) == tokenizer.decode(iter(ids)) == "Hello, world"


@pytest.mark.parametrize("ids", ["hello", [[1, 2]], 5], ids=str)
def test_a_model_is_given_tensors(model, ids):
    with pytest.raises(ValueError, match="input_ids is .*, which is no tensor; it must be int64"):
        model(ids)
    with pytest.raises(ValueError, match="attention_mask is .*; it must be a tensor"):
        model(torch.ones(1, 2).long(), attention_mask=ids)


# --- Caches of others ---


def refused(model, cache, words):
    """Check that a call with the cache is refused, and that the cache is as it was."""
    before = cache.snapshot() if isinstance(cache, Cache) else {}
    with pytest.raises(ValueError, match=words), torch.no_grad():
        model(random_ids(model, 1, 3), cache=cache)
    after = cache.snapshot() if isinstance(cache, Cache) else {}
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_cache_of_another_model_is_refused(model):
    other = next(module for module in DECODERS if not isinstance(model, DECODERS[module]))
    refused(model, built(other).new_cache(1, 8), "the cache is of another model, which differs in ")
    module = next(module for module in DECODERS if isinstance(model, DECODERS[module]))
    wider = built(module, hidden_size=256)
    refused(model, wider.new_cache(1, 8), "another model, which differs in hidden_size$")
    refused(model, model.new_cache(2, 8), "the cache has 2 rows; this call has 1")
    for wrong in ({}, True, "cache"):
        refused(model, wrong, f"cache is a {type(wrong).__name__}; it must be what model.new_cache")


def test_a_cache_of_another_dtype_is_refused(model):
    cache = model.new_cache(1, 8)
    refused(model.bfloat16(), cache, "the cache is torch.float32 on cpu, the model torch.bfloat16")


def test_a_cache_of_an_equal_model_is_taken(model):
    """Config is compared, not the object: of a copy, for example."""
    twin = type(model)(type(model.config)(**vars(model.config)))
    ids = random_ids(model, 1, 3)
    with torch.no_grad():
        close(model(ids, cache=twin.new_cache(1, 8).clone()), model(ids))


def test_a_cache_of_inference_mode_is_refused_outside_and_its_clone_is_not(model):
    ids = random_ids(model, 1, 3)
    outside = model.new_cache(1, 8)
    with torch.inference_mode():
        inside = model.new_cache(1, 8)
        expected = model(ids)
        close(model(ids, cache=inside), expected)
        close(model(ids, cache=outside), expected)
    refused(model, inside, "the cache was made or changed under torch.inference_mode")
    with torch.no_grad():
        close(model(ids, cache=inside.clone()), model(torch.cat((ids, ids), 1))[:, 3:])
    outside.grow(9)
    with torch.no_grad():
        model(ids, cache=outside)
    assert outside.length == 6


# --- Training and float64 ---


def test_a_loaded_model_can_be_trained_and_its_file_stays():
    """The weights are mapped from the file, and the optimizer changes them in place."""
    file = TINY / "model.safetensors"
    before = file.read_bytes()
    model = nanomodels.load(TINY, dtype=None)
    ids = random_ids(model, 1, 5)
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(ids).sum().backward()
    assert "requires_grad_()" in inspect.getdoc(nanomodels.load)
    model.requires_grad_()
    optimizer, first = torch.optim.SGD(model.parameters(), lr=0.1), model(ids)
    first.logsumexp(-1).mean().backward()
    optimizer.step()
    assert not torch.equal(model(ids), first)
    assert file.read_bytes() == before


def test_a_float64_model_gives_the_same_logits(model):
    """Norms and the like stay float32, and so do the logits."""
    ids = random_ids(model, 2, 20)
    expected = model(ids)
    found = model.double()(ids)
    assert found.dtype == torch.float32
    close(found, expected)


# --- What is printed ---


def test_a_model_prints_its_parameters(model):
    count = sum(parameter.numel() for parameter in model.parameters())
    assert str(model).splitlines()[1].strip() == f"{count:,} parameters"
    for model_class in nemotron.ARCHITECTURES.values():
        other = model_class(nemotron.Config())
        assert str(other).splitlines()[1].strip() == f"{parameter_count(other):,} parameters"


def test_a_quantised_model_prints_as_many_parameters():
    whole, quantised = nanomodels.load(TINY), nanomodels.load(TINY, quantize="int4")
    assert str(quantised).splitlines()[1] == str(whole).splitlines()[1]


def test_reprs(model, tokenizer):
    cache = model.new_cache(2, 8)
    with torch.no_grad():
        model(random_ids(model, 2, 3), cache=cache)
    size = sum(tensor.nbytes for tensor in cache.tensors(8).values()) / 1e6
    assert repr(cache) == f"<Cache: batch 2, 3 of 8 slots used, float32 on cpu, {size:.1f} MB>"
    template = "<Tokenizer: vocab_size 1536, bos_id 1527, eos_id 1531, a chat template>"
    assert repr(tokenizer) == template
    assert "temperature=0.5" in repr(GenerationSettings(temperature=0.5))


# --- Random models ---


def test_random_tokens_choose_all_experts_about_equally():
    model, chosen = built(nemotron_h, n_routed_experts=16), []
    router = model.layers[1].mixer.gate
    router.register_forward_hook(lambda module, given, output: chosen.append(output[0]))
    with torch.no_grad():
        model(random_ids(model, 8, 100))
    counts = torch.bincount(chosen[0].flatten(), minlength=16)
    mean = 8 * 100 * 2 / 16
    assert mean / 3 < counts.min() and counts.max() < 3 * mean, counts


def test_the_heads_of_a_random_mamba_layer_forget_at_different_speeds():
    """dt from 0.001 to 0.1 and A from -16 to -1: mamba_ssm 03a38fb, modules/mamba2.py."""
    mixer = built(nemotron_h, mamba_num_heads=64, mamba_head_dim=2, n_groups=1).layers[0].mixer
    dt, A = torch.nn.functional.softplus(mixer.dt_bias), -mixer.A_log.exp()
    for found, low, high in ((dt, 1e-3, 0.1), (-A, 1, 16)):
        assert low * 0.99 <= found.min() < low * 2 and high / 2 < found.max() <= high * 1.01
        assert found.unique().numel() == 64


def test_a_token_changes_what_follows_in_a_random_model(model):
    ids = random_ids(model, 1, 30)
    other = ids.clone()
    other[0, 3] = (other[0, 3] + 1) % model.config.vocab_size
    logits = model(ids)
    assert (model(other) - logits)[0, -1].abs().max() > 1e-3
    assert 0.3 < logits.std() < 3 and math.isfinite(logits.abs().max())
