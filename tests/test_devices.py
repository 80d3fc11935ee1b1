"""Layers spread over several devices, on twins: a second CPU in name, and the meta device."""

import pytest
import torch
from compare import close, random_ids
from ranks import random_model

import nanomodels
from nanomodels import experts, nanochat, nanochat_2026, nemotron, nemotron_h
from nanomodels.checkpoint import loading

CPU, META = torch.device("cpu"), torch.device("meta")


def spread(module, devices, seed=0):
    """A random model on one device, and the same with its layers on several."""
    model = random_model(module, seed)
    named = {name: [(name, tensor)] for name, tensor in model.state_dict().items()}
    part = loading.build(type(model), model.config)
    source = loading.Source(None, "hub", None, part, {}, named, {}, {}, None)
    return model, loading.finish(source, devices)


@pytest.mark.parametrize("module", [nanochat, nemotron, nemotron_h], ids=lambda m: m.__name__[11:])
@torch.inference_mode()
def test_what_a_module_gets_lies_on_its_device(module, monkeypatch):
    """The meta device refuses tensors of another, and what it makes is on it."""
    # Which experts are chosen is not known there; here each token chooses the first.
    monkeypatch.setattr(
        experts, "by_expert", lambda chosen, _: [(0, torch.zeros_like(chosen[:, 0]))]
    )
    for seed in range(6):
        if is_tied(random_model(module, seed)):
            continue  # the head is the embedding, and from meta nothing comes back
        _, model = spread(module, [CPU, META], seed)
        devices = [next(layer.parameters()).device.type for layer in layers_of(model)]
        assert devices == sorted(devices) and {*devices} == {"cpu", "meta"}
        mask = torch.arange(9) >= torch.tensor([[0], [4]])
        cache = model.new_cache(2, 20)
        for columns in (slice(0, 8), slice(8, 9)):
            ids = random_ids(model, 2, 9)[:, columns]
            logits = model(ids, cache=cache, attention_mask=mask[:, columns], logits_to_keep=1)
            assert logits.device.type == "meta"
        places = {
            layer: entry for layer, entry in zip(devices, cache.entries, strict=True) if entry
        }
        for device, entry in places.items():
            assert {x.device.type for x in entry.tensors(1).values()} == {device}
        cache.reorder([1, 0, 1])
        cache.joined([0, 2], model.new_cache(1, 4), [0], 30)


def layers_of(model):
    return getattr(model, "model", model).layers


def is_tied(model):
    return getattr(model.config, "tie_word_embeddings", False)


@pytest.mark.parametrize("module", [nanochat, nemotron, nemotron_h], ids=lambda m: m.__name__[11:])
@torch.inference_mode()
def test_hooks_change_no_number(module):
    model, twin = spread(module, [CPU, CPU])
    ids = random_ids(model, 2, 30)
    close(twin(ids), model(ids))
    options = {"max_new_tokens": 12, "stop_ids": []}
    texts = [list(nanomodels.generate(each, ids[0].tolist(), **options)) for each in (model, twin)]
    assert texts[0] == texts[1]


def test_what_cannot_be_spread_is_refused():
    with pytest.raises(ValueError, match="goes on one device"):
        spread(nanochat_2026, [CPU, META])
    with pytest.raises(ValueError, match="4 layers do not go on 5 devices"):
        spread(nanochat, [CPU] * 5)
    with pytest.raises(ValueError, match="device 'cpu,nowhere' cannot be used"):
        nanomodels.load("nanochat-tiny", device="cpu,nowhere")
