"""How the tests compare numbers and caches, and the token ids that they do it with."""

import torch


def random_ids(model, batch, tokens, seed=0):
    """Token ids (batch, tokens) of the model's vocabulary."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch, tokens), generator=rng)


def close(found, expected, tolerance=1e-5):
    """The same shape, and no number off by more than `tolerance` times the largest expected one."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
