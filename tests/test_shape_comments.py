"""Each shape comment of a decoder, such as `# (b, h, t, d)`, is what its line makes.

The decoder's file is compiled with a call behind each commented statement, which compares. Every
letter has a size of its own, so that no two can be mistaken for each other.
"""

import itertools
import re
from pathlib import Path

import pytest
import torch

import nanomodels
from nanomodels.analysis import lines

FOLDER = Path(nanomodels.__file__).parent
B, T, EARLIER = 2, 11, 3  # rows, tokens of the calls, and of a call before the last
ATTENTION = {"h": {6}, "g": {3}, "d": {20}}
MAMBA = {"h": {12}, "g": {4}, "p": {9}, "n": {7}, "w": {5}, "c": {12 * 9 + 2 * 4 * 7}}
SIZES = {"vocab_size": 97, "hidden_size": 26, "num_attention_heads": 6, "num_key_value_heads": 3}
SIZES |= {"head_dim": 20, "intermediate_size": 46}
NANOCHAT_2026 = {"windows": (4, 40, 40, 40), "num_hidden_layers": 4, "value_gate": (12, 3.0)}
HYBRID = {
    "layers": "ME*-",
    "mamba_num_heads": 12,
    "mamba_head_dim": 9,
    "ssm_state_size": 7,
    "n_groups": 4,
    "conv_kernel": 5,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 17,
    "moe_shared_expert_intermediate_size": 19,
    "moe_latent_size": None,
    "n_group": 2,
}
NEMOTRON = {"num_hidden_layers": 2, "pad_token_id": 0}
# Letters that mean something else in a class or function.
PLACES = {
    "NanoChat2026": {"s": {T, EARLIER, 1}},  # before the cache adds the earlier ones
    "rotate": {"h": {6, 3}, "r": {10}},  # queries and keys
    "GatedRMSNorm": MAMBA,
    "Mamba": MAMBA,
    "ssd_step": MAMBA,
    "ssd_chunk": MAMBA | {"l": {T, EARLIER}, "s": {T, EARLIER}},
    "convolve": MAMBA,
    "Router": {"r": {B * T, B * EARLIER, B}, "e": {8}, "k": {3}, "groups": {2}},
    "MoE": {"r": {B * T, B * EARLIER, B}},
}
MODELS = {
    "nanochat": ("NanoChat", {"num_hidden_layers": 2}),
    "nanochat_2026": ("NanoChat2026", NANOCHAT_2026),
    "nemotron": ("NemotronForSequenceClassification", NEMOTRON),
    "nemotron_h": ("NemotronH", HYBRID),
}


def size(text, letters):
    """The size that a dimension's text has, such as `h/g p` or `w-1 + t`."""
    value = eval(re.sub(r"(?<=\w) (?=\w)", "*", text), {}, letters)
    assert value == int(value), text
    return int(value)


def fits(shape, comment, place):
    """Whether a tensor's shape is what the comment says."""
    letters = {"b": {B}, "t": {T, EARLIER, 1}, "m": {26}, "s": {T, T + EARLIER, T + EARLIER + 1}}
    letters |= ATTENTION | PLACES.get(place, {})
    parts = [part.strip() for part in comment.strip("()").split(",") if part.strip()]
    used = sorted({name for part in parts for name in re.findall("[a-z]+", part)})
    return any(
        tuple(shape) == tuple(size(part, dict(zip(used, values, strict=True))) for part in parts)
        for values in itertools.product(*(letters[name] for name in used))
    )


@pytest.fixture
def compiled():
    """A decoder's file as a module that checks its comments: (module, comments, lines seen)."""

    def compiled(name, change=lambda code: code):
        code = change((FOLDER / f"{name}.py").read_text())
        comments, seen = lines.shape_comments(code), set()

        def made(line, place, value):
            for tensor, text in lines.tensors_of(value, comments[line]):
                said = f"{name}.py:{line}: {list(tensor.shape)} is called {text}"
                assert fits(tensor.shape, text, place), said
            seen.add(line)

        return lines.compile_watched(f"checked {name}", code, made), comments, seen

    return compiled


@torch.no_grad()
def run(module, name):
    """Call the decoder in one pass, in pieces, token by token, and with padding."""
    class_name, sizes = MODELS[name]
    model = getattr(module, class_name)(module.Config(**SIZES | sizes))
    ids = torch.randint(97, (B, T + EARLIER + 1))
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, :2] = False
    model(ids[:, :T], attention_mask=mask)
    model = module.Nemotron(model.config) if name == "nemotron" else model
    cache = model.new_cache(B, T + EARLIER + 1)
    for piece in ids.split([T, EARLIER, 1], 1):
        model(piece, cache=cache)


@pytest.mark.parametrize("name", MODELS)
def test_each_shape_comment_is_true(compiled, name):
    module, comments, seen = compiled(name)
    run(module, name)
    missed = [n for n in sorted(comments.keys() - seen)]
    assert missed == [], "these lines were not run, or are no statements that make tensors"
    assert len(seen) > 8


@pytest.mark.parametrize(
    ("name", "true", "false"),
    [
        ("nanochat", "transpose(1, 2)  # (b, g, t, d)", "transpose(1, 2)  # (b, h, t, d)"),
        ("nanochat", "# (b, 1, t, d/2)", "# (b, t, 1, d/2)"),
        ("nemotron_h", "# (b, g, h/g p, n)", "# (b, g, p, n)"),
        ("nemotron_h", "# (b, w-1 + t, c)", "# (b, t, c)"),
    ],
)
def test_a_wrong_comment_is_found(compiled, name, true, false):
    module, _, _ = compiled(name, lambda code: code.replace(true, false))
    with pytest.raises(AssertionError, match="is called"):
        run(module, name)
