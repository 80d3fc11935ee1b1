"""nanomodels compare names each numeric mutant of test_mutants.py: the kind of block, and the step.

What is not here changes no number that a CPU computes in a small model (experts at once are for a
GPU, heads one by one for long texts), or rounds as transformers does, or is nanochat of 2026, which
transformers does not have.
"""

import json
import subprocess
import sys

import pytest
from reference import FAMILIES
from test_mutants import MUTANTS, copy  # noqa: F401 (a fixture)

# name of the mutant: (checkpoint, kind of block, step; or way of reading; or what is not a block)
NAMED = {
    "NanoChat: rotation by plus the angle": ("nanochat", "attention", "q"),
    "NanoChat: no norm after the embedding": ("nanochat", "", "embedding"),
    "NanoChat: keys not normalised": ("nanochat", "attention", "k"),
    "NanoChat: attention sees only the tokens of the call": ("nanochat", "attention", "in pieces"),
    "cache: a token does not see itself": ("nanochat", "attention", "padded"),
    "cache: a token sees the next one": ("nanochat", "attention", "padded"),
    "attention: a block sees later tokens": ("nanochat", "attention", "input of self_attn.o_proj"),
    "attention: each block has the mask of the first": ("nanochat", "attention", "padded"),
    "attention: keys rounded to bfloat16": ("nemotron_h", "attention", "input of mixer.o_proj"),
    "attention: a block misses keys of earlier calls": ("nanochat", "attention", "in pieces"),
    "Nemotron-H: no decay of the state in a decode step": ("nemotron_h", "mamba", "in pieces"),
    "Nemotron-H: a decode step reads the state before its token": (
        "nemotron_h", "mamba", "in pieces",
    ),
    "cache: tokens see padding": ("nemotron", "attention", "padded"),
    "Nemotron: the stored weight taken for the gain": ("nemotron", "attention", "input_layernorm"),
    "Nemotron: rotation by minus the angle": ("nemotron", "attention", "q"),
    "Nemotron-H: the gated norm over one group": ("nemotron_h", "mamba", "mixer.norm"),
    "Nemotron-H: the gate after the norm": ("nemotron_h", "mamba", "mixer.norm"),
    "Nemotron-H: the bias added to the weights": ("nemotron_h", "experts", "mixer.gate"),
    "Nemotron-H: other groups of experts masked with 0": ("nemotron_h", "experts", "mixer.gate"),
    "Nemotron-H: the router's product in the model's dtype": (
        "nemotron_h", "experts", "narrow mixer.gate",
    ),
    "Nemotron-H: dt in bf16, cast to float32 afterwards": ("nemotron_h", "mamba", "narrow dt"),
    "Nemotron-H: dt in bf16": ("nemotron_h", "mamba", "narrow dt"),
    "Nemotron-H: the router's scores and bias in bf16": ("nemotron_h", "experts", "mixer.gate"),
    "Nemotron-H: its exact parameters loaded in bf16": ("nemotron_h", "mamba", "narrow dt"),
    "Nemotron-H: rotary positions in attention": ("nemotron_h", "attention", "q"),
    "Nemotron-H: dt clamped in prefill only": ("nemotron_h", "mamba", "in pieces"),
    "Nemotron-H: dt clamped in decode steps only": ("nemotron_h", "mamba", "dt"),
    "Nemotron-H: dt at least 0.001, as in transformers": ("nemotron_h", "mamba", "dt"),
    "Nemotron-H: the state rounded to bf16": ("nemotron_h", "mamba", "in pieces"),
    "Nemotron-H: the window of a padded row holds padding": ("nemotron_h", "mamba", "padded"),
    "Nemotron-H: padding changes the state": ("nemotron_h", "mamba", "padded"),
    "Nemotron-H: padding enters the convolution": ("nemotron_h", "mamba", "padded"),
    "Nemotron-H: no state reaches the next chunk": ("nemotron_h", "mamba", "input of mixer.norm"),
    "Nemotron-H: a token sees the next one of its chunk": (
        "nemotron_h", "mamba", "input of mixer.norm",
    ),
    "Nemotron-H: no D x in the output": ("nemotron_h", "mamba", "input of mixer.norm"),
    "Nemotron-H: the experts' weights not normalised": ("nemotron_h", "experts", "mixer.gate"),
    "Nemotron-H: the router sees the latent": ("nemotron_h", "experts", "input of mixer.gate"),
    "Nemotron-H: tokens left in packed order": ("nemotron_h", "mamba", "padded"),
    "cache: has_padding is never set": ("nemotron_h", "attention", "padded"),
    "rope: longrope never uses its long factors": ("longrope", "attention", "q"),
    "rope: yarn without its scale": ("yarn", "attention", "q"),
}  # fmt: skip
# family, seed, fields of the config
CHECKPOINTS = {
    "nanochat": ("nanochat", 1, {}),
    "yarn": ("nanochat", 3, {}),
    "longrope": ("nanochat", 10, {}),  # trained with fewer tokens than are read
    "nemotron": ("nemotron", 4, {}),
    "nemotron_h": ("nemotron_h", 4, {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "time_step_limit": (0.05, 0.8), "n_groups": 2, "mamba_num_heads": 6, "chunk_size": 16,
        "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "moe_latent_size": 10,
        "norm_topk_prob": True, "num_attention_heads": 4, "num_key_value_heads": 2,
    }),
}  # fmt: skip
COMPARE = """
import dataclasses, json, pathlib, sys, torch, nanomodels
from nanomodels.analysis import comparing
folder = pathlib.Path(sys.argv[1])
vocabulary = nanomodels.load(folder).config.vocab_size
ids = torch.randint(vocabulary, (100,), generator=torch.Generator().manual_seed(0)).tolist()
report = comparing.compare(folder, ids, dtype=torch.bfloat16, patch_known=True)
different = [(block.index, block.kind) for block in report.different]
print(json.dumps(dataclasses.asdict(report) | {"different": different, "same": report.same}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folders = {}

    def checkpoint(name):
        if name not in folders:
            family, seed, fixed = CHECKPOINTS[name]
            folders[name] = tmp_path_factory.mktemp(name)
            model = FAMILIES[family](seed, **fixed)
            for key, buffer in model.state_dict().items():
                if key.endswith("e_score_correction_bias"):
                    buffer.sub_(1.0)  # so that 0 is more than a choice
            model.save_pretrained(folders[name])
        return folders[name]

    return checkpoint


def compare(folder, checkpoint):
    """The report as a dict, of the code in a folder."""
    command = [sys.executable, "-c", COMPARE, str(checkpoint)]
    result = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(folder)}, check=True, capture_output=True
    )
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_without_a_mutant_they_are_the_same(copy, checkpoint, name):  # noqa: F811
    assert compare(copy, checkpoint(name))["same"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_a_mutant_is_named(copy, checkpoint, name):  # noqa: F811
    file, old, new = MUTANTS[name]
    (path,) = (copy / "nanomodels").rglob(file)
    path.write_text(path.read_text().replace(old, new))
    model, kind, where = NAMED[name]
    report = compare(copy, checkpoint(model))
    assert not report["same"]
    kinds = {kind for _, kind in report["different"]}
    if where == "embedding":
        assert report["start"] > 1e-9
    elif where in ("in pieces", "padded"):
        assert report["ways"][where]["kind"] == kind and not kinds
    elif where.startswith("narrow "):
        blocks = [block["index"] for block in report["blocks"] if block["kind"] == kind]
        assert all([i, where.removeprefix("narrow ")] in report["narrow"] for i in blocks)
    else:
        assert kinds == {kind} and report["worst"]["step"] == where


def test_the_names_are_those_of_mutants():
    assert NAMED.keys() <= MUTANTS.keys()
