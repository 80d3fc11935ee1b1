"""nanomodels.trace: its records equal transformers', in any split; and it changes nothing."""

import sys

import hypothesis.strategies as st
import pytest
import torch
from compare import close, random_ids
from effort import THOROUGH, examples
from hypothesis import given, settings
from reference import FAMILIES, LATEST

import nanomodels
from nanomodels import nemotron_h
from nanomodels.analysis import tracing

SEEDS = range(10 if THOROUGH else 3)


@pytest.fixture(scope="module", params=[(f, seed) for f in FAMILIES for seed in SEEDS], ids=str)
def pair(request, tmp_path_factory):
    """transformers' model, with attention that returns its weights, and ours."""
    family, seed = request.param
    theirs = FAMILIES[family](seed)
    theirs.set_attn_implementation("eager")
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs.save_pretrained(folder)
    return theirs, nanomodels.load(folder)


def load(name, tmp_path_factory):
    if name == "nanochat_2026":
        return nanomodels.load(LATEST)
    folder = tmp_path_factory.mktemp("checkpoint")
    FAMILIES[name](3).save_pretrained(folder)
    return nanomodels.load(folder)


@pytest.fixture(scope="module", params=[*FAMILIES, "nanochat_2026"])
def model(request, tmp_path_factory):
    return load(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    return load("nemotron_h", tmp_path_factory)


def layer_names(records):
    """The paths of the layers, in order."""
    return [name for name in records.names() if tracing.is_layer(name)]


def named(records, part):
    """The records `layers.N.part` of all layers, in order."""
    return [records[name] for name in records.names() if name.split(".")[-1] == part]


@torch.inference_mode()
def test_records_equal_those_of_transformers(pair):
    theirs, ours = pair
    ids = random_ids(ours, 2, 41)
    gates = []
    for module in theirs.modules():
        if type(module).__name__ == "NemotronHTopkRouter":
            module.register_forward_hook(lambda _, __, output: gates.append(output))
    expected = theirs(ids, output_hidden_states=True, output_attentions=True)
    with nanomodels.trace(ours) as records:
        logits = ours(ids)
    assert torch.equal(records["logits"], logits)
    hidden = expected.hidden_states
    found = named(records, "in")
    first = theirs.config.model_type == "nanochat"  # its first hidden state is before a norm
    for mine, other in [*zip(found, hidden, strict=False)][first:]:
        close(mine, other)
    attentions = [each for each in expected.attentions if each is not None]
    assert len(attentions) > 0
    for mine, other in zip(named(records, "attention"), attentions, strict=True):
        close(mine, other)
    assert len(gates) == len(named(records, "scores"))
    for i, (router_logits, weights, chosen) in enumerate(gates):
        close(named(records, "router_logits")[i].flatten(0, 1), router_logits)
        close(named(records, "scores")[i].flatten(0, 1), router_logits.sigmoid())
        mine, order = named(records, "chosen")[i].flatten(0, 1).sort(-1)
        other, other_order = chosen.sort(-1)
        assert torch.equal(mine, other)
        mine = named(records, "weights")[i].flatten(0, 1).gather(1, order)
        close(mine, weights.gather(1, other_order))


@torch.inference_mode()
def test_keys_and_values_are_those_of_transformers_cache(pair):
    theirs, ours = pair
    ids = random_ids(ours, 2, 29)
    cached = theirs(ids, use_cache=True).past_key_values.layers
    cached = [layer for layer in cached if getattr(layer, "keys", None) is not None]
    with nanomodels.trace(ours) as records:
        ours(ids)
    for layer, k, v in zip(cached, named(records, "k"), named(records, "v"), strict=True):
        close(k, layer.keys)
        close(v, layer.values)


def test_dt_and_the_state_are_those_of_the_recurrence(hybrid):
    """In float64, token by token, from the recorded x, dt, B and C."""
    names = ("x", "dt", "decay", "B", "C", "state", "state_norm")
    with nanomodels.trace(hybrid, *everything(hybrid)) as records:
        hybrid(random_ids(hybrid, 2, 50))
    for i, kind in enumerate(hybrid.config.layers):
        if kind != "M":
            assert f"layers.{i}.dt" not in records.names()
            continue
        x, dt, decay, B, C, state, norm = (records[f"layers.{i}.{n}"].double() for n in names)
        mixer = hybrid.layers[i].mixer
        close(decay, (dt * -mixer.A_log.double().exp()).exp())
        B, C = (each.repeat_interleave(x.shape[2] // B.shape[2], 2) for each in (B, C))
        S, y = torch.zeros_like(state[:, 0]), []
        for t in range(x.shape[1]):
            S = decay[:, t, :, None, None] * S
            S = S + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
            y.append((S @ C[:, t, ..., None])[..., 0] + mixer.D[:, None] * x[:, t])
            close(state[:, t], S)
            close(norm[:, t], S.flatten(-2).norm(dim=-1))
        z = records[f"layers.{i}.mixer.in_proj"].split(mixer.widths, -1)[0]
        close(records[f"layers.{i}.mixer.norm"], mixer.norm(torch.stack(y, 1).flatten(2), z))


def everything(model):
    return [n for n in tracing.known_names(model) if n != "seconds"]


def same(found, expected, names):
    for name in names:
        if "chosen" in name:
            assert torch.equal(found[name], expected[name]), name
        else:
            close(found[name].float(), expected[name].float(), 2e-5)


@settings(max_examples=examples(24), deadline=None, derandomize=True)
@given(st.data())
def test_any_split_gives_the_same_records(model, data):
    """In one pass without a cache, in pieces, and token by token."""
    tokens = data.draw(st.integers(2, 45), "tokens")
    step = data.draw(st.integers(1, tokens), "step")
    ids, names = random_ids(model, 2, tokens, seed=tokens), everything(model)
    with torch.inference_mode():
        with nanomodels.trace(model, *names) as whole:
            model(ids)
        cache = model.new_cache(2, tokens + 3)
        with nanomodels.trace(model, *names) as pieces:
            for piece in ids.split(step, 1):
                model(piece, cache=cache)
    assert set(whole.names()) == set(pieces.names()) == set(names)
    same(pieces, whole, names)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_a_padded_row_has_the_records_of_the_row_alone(model, side):
    ids, names = random_ids(model, 2, 20), everything(model)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :7] = False
    if side == "right":
        mask[1] = mask[1].flip(0)
    with nanomodels.trace(model, *names) as padded:
        model(ids, attention_mask=mask)
    with nanomodels.trace(model, *names) as alone:
        model(ids[1:, mask[1]])
    for name in names:
        letters = padded.shape(name).split()
        row = padded[name][1:]
        for dim, letter in enumerate(letters):
            if letter in "ts":
                row = row.index_select(dim, mask[1].nonzero()[:, 0])
        if "chosen" in name:
            assert torch.equal(row, alone[name])
        else:
            close(row.float(), alone[name].float(), 2e-5)


@torch.inference_mode()
def test_a_trace_changes_nothing_and_leaves_nothing(model):
    architecture = sys.modules[type(model).__module__]
    before = {name: getattr(architecture, name, None) for name in ("attend", "ssd")}
    ids = random_ids(model, 1, 12)
    expected = model(ids)
    with nanomodels.trace(model, *everything(model)):
        assert torch.equal(model(ids), expected)
        text = list(nanomodels.generate(model, ids[0].tolist(), max_new_tokens=5))
    assert text == list(nanomodels.generate(model, ids[0].tolist(), max_new_tokens=5))
    with pytest.raises(KeyboardInterrupt), nanomodels.trace(model):
        model(ids)
        raise KeyboardInterrupt
    with pytest.raises(ValueError), nanomodels.trace(model):
        model(ids[:, :0])
    for name, function in before.items():
        assert getattr(architecture, name, None) is function
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_an_error_inside_a_layer_ends_the_layer(hybrid, monkeypatch):
    """What runs after it is not taken for a part of the layer."""
    with nanomodels.trace(hybrid, "layers.*.q", "layers.*.dt") as records:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(nemotron_h, "convolve", lambda *_: torch.zeros(1) @ torch.zeros(2))
            hybrid(random_ids(hybrid, 1, 3))
        nemotron_h.attend(*(torch.zeros(1, 1, 1, 4),) * 3, None)
    assert not any(name.endswith(".q") for name in records.names())


def test_another_model_is_not_recorded(hybrid):
    other = nemotron_h.NemotronH(hybrid.config)
    with nanomodels.trace(hybrid) as records:
        other(random_ids(other, 1, 3))
    assert records.names() == []


@torch.inference_mode()
def test_records_are_copies(model):
    """What overwrites the logits, the cache or a module's output changes no record."""
    ids, names = random_ids(model, 1, 9), everything(model)
    outputs, module = [], model.lm_head
    with nanomodels.trace(model, *names) as expected:
        model(ids, cache=model.new_cache(1, 9))
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    cache = model.new_cache(1, 9)
    with nanomodels.trace(model, *names) as records:
        outputs.append(model(ids, cache=cache))
    hook.remove()
    for tensor in [*outputs, *cache.tensors(9).values()]:
        tensor.fill_(7)
    assert all(torch.equal(records[name], expected[name]) for name in names)


def test_names_are_chosen_by_patterns(hybrid):
    known = tracing.known_names(hybrid)
    assert not any("conv1d" in name or ".experts." in name for name in known)
    with nanomodels.trace(hybrid, "layers.*.dt", "layers.0", "lm_head") as records:
        hybrid(random_ids(hybrid, 1, 4))
    mamba = [f"layers.{i}.dt" for i, kind in enumerate(hybrid.config.layers) if kind == "M"]
    assert set(records.names()) == {*mamba, "layers.0", "lm_head"}
    assert records.shape(mamba[0]) == "b t h"
    with pytest.raises(ValueError, match=r"called 'layers.\*.dts'; near: .*dt"):
        nanomodels.trace(hybrid, "layers.*.dts").__enter__()
    with pytest.raises(ValueError, match="'layers.0.q' was not recorded; recorded: "):
        records["layers.0.q"]


def test_a_trace_within_a_trace_is_refused(hybrid):
    with nanomodels.trace(hybrid), pytest.raises(ValueError, match="another trace is active"):
        nanomodels.trace(hybrid).__enter__()
    with nanomodels.trace(hybrid):
        pass


def test_keep_makes_records_smaller(hybrid):
    def keep(name, tensor):
        return tensor.float().norm(dim=-1)

    cache = hybrid.new_cache(1, 8)
    with nanomodels.trace(hybrid, "layers.*", "layers.*.attention", keep=keep) as records:
        for piece in random_ids(hybrid, 1, 8).split(3, 1):
            hybrid(piece, cache=cache)
    assert records["layers.0"].shape == (1, 8)
    assert all(each.shape[2:] == (8,) for each in named(records, "attention"))


def test_records_are_saved_and_loaded(hybrid, tmp_path):
    ids = random_ids(hybrid, 1, 7)
    with nanomodels.trace(hybrid) as records:
        hybrid(ids)
    records.save(tmp_path / "run.safetensors", ids.tolist())
    loaded, loaded_ids = tracing.load_records(tmp_path / "run.safetensors")
    assert loaded_ids == ids.tolist()
    assert loaded.names() == records.names()
    for name in records.names():
        assert torch.equal(loaded[name], records[name])
        assert loaded.shape(name) == records.shape(name)
    (tmp_path / "other").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="other: not a trace"):
        tracing.load_records(tmp_path / "other")


def test_seconds_of_each_module_and_call(hybrid):
    with nanomodels.trace(hybrid, "seconds") as records:
        for _ in range(3):
            hybrid(random_ids(hybrid, 1, 4))
    layers = {f"layers.{i}" for i in range(len(hybrid.config.layers))}
    assert layers | {"lm_head"} <= records.seconds.keys()
    assert all(len(calls) == 3 and min(calls) > 0 for calls in records.seconds.values())
    inside = sum(records.seconds["layers.0.mixer"])
    assert inside < sum(records.seconds["layers.0"])
    with pytest.raises(ValueError, match="'seconds' goes alone"):
        nanomodels.trace(hybrid, "seconds", "logits").__enter__()


def test_a_cuda_graph_that_is_captured_is_refused(hybrid, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with nanomodels.trace(hybrid), pytest.raises(ValueError, match="its steps cannot be traced"):
        hybrid(random_ids(hybrid, 1, 3))
    assert tracing.active.acquire(blocking=False), "the trace is over"
    tracing.active.release()
