"""Rotation: what it depends on, for every rope type."""

import pytest
import torch
from reference import ROPE_TYPES, random_rope

from nanomodels import rope

DEPENDS_ON_LENGTH = ("dynamic", "longrope")


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_only_dynamic_and_longrope_depend_on_the_length(rope_type):
    """Bit-equal for the other types, whose frequencies are computed once for all lengths."""
    rng = torch.Generator().manual_seed(0)
    given = random_rope(rng, rope_type, 16, 256)
    if rope_type == "longrope":
        given["original_max_position_embeddings"] = 24
    hub = {"max_position_embeddings": 256, "rope_parameters": given}
    config = rope.rope_from_hub(hub, 16)
    positions = torch.arange(40).expand(2, 40)
    rope.frequencies.cache_clear()
    short, *longer = (rope.rotation(config, positions, length) for length in (8, 256, 300, 5000))
    computed = rope.frequencies.cache_info().currsize
    same = [all(map(torch.equal, short, rotated)) for rotated in longer]
    if rope_type in DEPENDS_ON_LENGTH:
        assert not same[-1] and computed == 4
    else:
        assert all(same) and computed == 1


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_a_rotation_does_not_depend_on_the_other_tokens_of_the_call(rope_type):
    """Bit-equal for a token alone, in another row, or after others."""
    rng = torch.Generator().manual_seed(1)
    hub = {"max_position_embeddings": 256, "rope_parameters": random_rope(rng, rope_type, 8, 256)}
    config = rope.rope_from_hub(hub, 8)
    whole = rope.rotation(config, torch.arange(30).view(2, 15), 256)
    for i in (0, 7, 29):
        for alone, part in zip(rope.rotation(config, torch.tensor([[i]]), 256), whole, strict=True):
            assert torch.equal(alone[0, 0], part.flatten(0, 1)[i])
