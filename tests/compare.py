"""How the tests compare numbers and caches, and with which token ids and settings."""

import torch

# Settings of generation, by name.
SAMPLING = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "sampled": {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "all": {"temperature": 1.2, "top_k": 30, "min_p": 0.02, "repetition_penalty": 0.9},
}


def random_ids(model, batch, tokens, seed=0):
    """Token ids (batch, tokens) of the model's vocabulary."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch, tokens), generator=rng)


def close(found, expected, tolerance=1e-5):
    """The same shape, and no number off by more than `tolerance` times the largest expected one."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def same_cache(found, expected):
    """The same positions, and each tensor the same to 1e-5 of its largest number."""
    assert found.length == expected.length
    assert torch.equal(found.counts, expected.counts)
    assert torch.equal(found.positions, expected.positions), "no refused draft is left"
    mine, other = found.tensors(found.length), expected.tensors(expected.length)
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        difference = (tensor.double() - other[name].double()).abs().max()
        assert difference <= 1e-5 * other[name].double().abs().max(), name
