"""torch.compile and torch.export: one graph without breaks, and the numbers of the plain call."""

import copy

import pytest
import torch
from compare import close, random_ids
from effort import THOROUGH

from nanomodels import nanochat, nanochat_2026, nemotron, nemotron_h, rope

DENSE = {
    "nanochat": (nanochat.NanoChat, nanochat.Config(num_hidden_layers=2)),
    "nanochat_2026": (
        nanochat_2026.NanoChat2026,
        nanochat_2026.Config(num_hidden_layers=2, windows=(16, 256)),
    ),
    "nemotron": (nemotron.Nemotron, nemotron.Config(num_hidden_layers=2)),
}
HYBRIDS = {
    "nemotron_h": {},
    "groups of experts": {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    "latent experts": {"moe_latent_size": 48, "norm_topk_prob": False},
}
MODELS = DENSE | {
    name: (nemotron_h.NemotronH, nemotron_h.Config(layers="ME*", chunk_size=16, **changes))
    for name, changes in HYBRIDS.items()
}
QUICK = [*MODELS] if THOROUGH else ["nemotron_h"]


def built(name):
    model_class, config = MODELS[name]
    torch.manual_seed(0)
    return model_class(config).requires_grad_(False)


@pytest.mark.parametrize("name", QUICK)
def test_a_decode_step_is_one_graph(name):
    """Called with other experts in each step; fullgraph makes a break of the graph an error."""
    model, graphs = built(name), []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    step = torch.compile(model, fullgraph=True, backend=keep)
    ids, plain = random_ids(model, 2, 24), model.new_cache(2, 30)
    model(ids[:, :18], cache=plain)  # beyond the window of 2026
    cache = plain.clone()
    for n in range(18, 24):
        close(step(ids[:, n : n + 1], cache=cache), model(ids[:, n : n + 1], cache=plain))
    assert len(graphs) <= 2, "the second is for any number of tokens in the cache"


@pytest.mark.parametrize("name", QUICK)
def test_an_exported_decoder_gives_the_logits_for_other_ids(name):
    model = built(name)
    exported = torch.export.export(model, (random_ids(model, 2, 20),)).module()
    for seed in (1, 2):
        ids = random_ids(model, 2, 20, seed)
        close(exported(ids), model(ids))


@pytest.mark.parametrize("name", DENSE if THOROUGH else ["nanochat"])
def test_an_exported_decoder_without_mamba_layers_takes_any_length(name):
    """Nor is anything kept of the export: a later call computes its own rotation."""
    model = built(name)
    rope.frequencies.cache_clear()
    lengths = {"input_ids": {1: torch.export.Dim("t", min=2, max=200)}}
    example = random_ids(model, 2, 20)
    exported = torch.export.export(model, (example,), dynamic_shapes=lengths).module()
    assert rope.frequencies.cache_info().currsize == 0
    for tokens in (2, 20, 33, 200):
        ids = random_ids(model, 2, tokens, seed=tokens)
        close(exported(ids), model(ids))


@pytest.mark.slow
def test_a_compiled_hybrid_learns_as_the_plain_one():
    model = built("nemotron_h").requires_grad_()
    other, ids = copy.deepcopy(model), random_ids(model, 2, 20)
    torch.compile(model, fullgraph=True, backend="aot_eager")(ids).square().mean().backward()
    other(ids).square().mean().backward()
    for (name, parameter), plain in zip(model.named_parameters(), other.parameters(), strict=True):
        if plain.grad is not None:
            difference = (parameter.grad - plain.grad).abs().max()
            assert difference <= 1e-4 * plain.grad.abs().max(), name
