"""nanomodels compare: equal models are called equal, and each fault is named where it is."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from compare import random_ids
from effort import THOROUGH
from reference import FAMILIES, LATEST

import convert_hf
import nanomodels
from nanomodels import attention, nanochat, nemotron, nemotron_h
from nanomodels.analysis import comparing
from nanomodels.cli import compare as command

WEIGHTS = Path(__file__).parent.parent / "weights"
SEEDS = range(10 if THOROUGH else 1)
DTYPES = ("bfloat16", "float16", "float32") if THOROUGH else ("bfloat16",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a random checkpoint of transformers: folder(family, seed)."""
    folders = {}

    def folder(family, seed, **fixed):
        if (family, seed) not in folders:
            folders[family, seed] = tmp_path_factory.mktemp(family)
            FAMILIES[family](seed, **fixed).save_pretrained(folders[family, seed])
        return folders[family, seed]

    return folder


def compare(folder, tokens=40, **options):
    ids = random_ids(nanomodels.load(folder), 1, tokens)[0].tolist()
    return comparing.compare(folder, ids, patch_known=True, **options)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_false_alarm(folder, family, seed, dtype):
    report = compare(folder(family, seed), dtype=getattr(torch, dtype))
    assert report.different == [] and report.head <= comparing.EQUAL
    assert max(block.own for block in report.blocks) <= 1e-12
    assert report.dtype == dtype
    # Random blocks are as wide as 20 numbers, so a ratio is a matter of chance in float32.
    if dtype != "float32":
        assert all(0.3 < block.ratio <= comparing.WORSE for block in report.blocks)
        assert report.same


def rounded_keys(attend):
    return lambda q, k, v, mask: attend(q, k.bfloat16().type_as(k), v, mask)


def other_eps(module, attribute, factor):
    """A module's class whose eps is larger."""

    class Other(module):
        def __init__(self, *args):
            super().__init__(*args)
            setattr(self, attribute, getattr(self, attribute) * factor)

    return Other


class BiasedRouter(nemotron_h.Router):
    def forward(self, x):
        chosen, weights = super().forward(x)
        return chosen, weights * (1 + self.e_score_correction_bias[chosen].float())


class MLP(nemotron_h.MLP):
    def forward(self, x):
        return self.down_proj(nemotron_h.F.relu(self.up_proj(x)))


def turned(rotate):
    return lambda x, cos, sin: rotate(x, cos, -sin)


def lost(ssd):
    """The state's decay is lost."""
    return lambda x, dt, A, B, C, state, chunk: ssd(x, dt, A * 0.99, B, C, state, chunk)


# family: (module, name, wrong thing, kinds that differ, step)
FAULTS = {
    "eps of the gated norm": (
        nemotron_h, "GatedRMSNorm", other_eps(nemotron_h.GatedRMSNorm, "eps", 0.1), {"mamba"},
        "mixer.norm",
    ),
    "keys rounded": (
        nemotron_h, "attend", rounded_keys(attention.attend), {"attention"},
        "input of mixer.o_proj",
    ),
    "the bias weighs": (nemotron_h, "Router", BiasedRouter, {"experts"}, "mixer.gate"),
    "no square": (nemotron_h, "MLP", MLP, {"mlp", "experts"},
        "input of mixer.fc2_latent_proj"),
    "decay": (nemotron_h, "ssd", lost(nemotron_h.ssd), {"mamba"}, "input of mixer.norm"),
    "NanoChat turned the other way": (
        nanochat, "rotate", turned(nanochat.rotate), {"attention"}, "q",
    ),
    "Nemotron's norms": (
        nemotron, "LayerNorm1P", other_eps(nemotron.LayerNorm1P, "eps", 1.1), {"attention"},
        "input_layernorm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_block_and_step(folder, monkeypatch, fault):
    module, name, wrong, kinds, step = FAULTS[fault]
    family = module.__name__.split(".")[-1]
    fixed = {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]}
    path = folder(family, 4, **fixed if family == "nemotron_h" else {})
    monkeypatch.setattr(module, name, wrong)
    report = compare(path)
    assert {block.kind for block in report.different} == kinds
    assert not report.same
    found = [block.kind for block in report.blocks].index(report.different[0].kind)
    assert report.different[0].index == found
    assert report.worst["step"] == step
    assert report.worst["ours_line"].startswith(family)
    assert report.worst["theirs_line"].startswith(f"modeling_{family}")


def alone(extend):
    """Attention that sees no tokens of earlier calls, but as many slots."""
    return lambda self, k, v, first: [
        x * (torch.arange(x.shape[2]) >= first)[:, None] for x in extend(self, k, v, first)
    ]


def forgetful(ssd_step):
    """A decode step that forgets the state before it."""
    return lambda x, dt, A, B, C, state: ssd_step(x, dt, A, B, C, torch.zeros_like(state))


def unpacked(pack):
    """Padding stays where it is."""
    return lambda self, x: x if x.shape[-1] > 12 else pack(self, x)


def replace(monkeypatch, place, wrong):
    """Put wrong(what is right) in a place of nanomodels."""
    *names, last = place.split(".")
    owner = importlib.import_module(f"nanomodels.{names[0]}")
    for name in names[1:]:
        owner = getattr(owner, name)
    monkeypatch.setattr(owner, last, wrong(getattr(owner, last)))


WAYS = {
    "a decode step": ("nemotron_h", "nemotron_h.ssd_step", forgetful, "in pieces", "mamba"),
    "keys of the call alone": ("nanochat", "cache.KV.extend", alone, "in pieces", "attention"),
    "padding": ("nemotron_h", "cache.Call.pack", unpacked, "padded", "mamba"),
}


@pytest.mark.parametrize("fault", WAYS)
def test_a_fault_of_another_way_is_named(folder, monkeypatch, fault):
    """One pass is right, so transformers has nothing to say."""
    family, place, wrong, way, kind = WAYS[fault]
    replace(monkeypatch, place, wrong)
    report = compare(folder(family, 4))
    assert report.different == [] and not report.same
    assert report.ways[way].kind == kind
    assert command.verdict(report).startswith("not the same: ours gives something else")


def rounded(x):
    """To bfloat16, but in float64 as it is."""
    return x.bfloat16().float() if x.dtype == torch.float32 else x


class NarrowRouter(nemotron_h.Router):
    def forward(self, x):
        chosen, weights = super().forward(x)
        return chosen, rounded(weights)


def rounded_dt(softplus):
    return lambda x: rounded(softplus(x))


def rounded_state(stage):
    """A cache whose states are as wide as keys and values."""
    return lambda self, window, state: stage(self, window, state.type_as(window).type_as(state))


NARROW = {
    "mixer.gate": ("nemotron_h.Router", lambda router: NarrowRouter),
    "dt": ("nemotron_h.F.softplus", rounded_dt),
    "state": ("cache.SSM.stage", rounded_state),
}


@pytest.mark.parametrize("step", NARROW)
def test_what_is_not_float32_in_bfloat16_is_named(folder, monkeypatch, step):
    place, wrong = NARROW[step]
    path = folder("nemotron_h", 3)
    replace(monkeypatch, place, wrong)
    report = compare(path, dtype=torch.bfloat16)
    kind = "experts" if step == "mixer.gate" else "mamba"
    blocks = [block.index for block in report.blocks if block.kind == kind]
    assert report.different == [] and not report.same
    assert report.narrow == [(index, step) for index in blocks]
    assert f"{step} of block {blocks[0]} is not float32 in bfloat16" in command.verdict(report)


@pytest.mark.parametrize(("name", "module"), [("embedding", "embeddings"), ("head", "lm_head")])
def test_a_fault_before_or_after_the_blocks_is_named(folder, monkeypatch, name, module):
    load = comparing.load_ours

    def wrong(*args):
        model = load(*args)
        weight = getattr(model, module).weight
        getattr(model, module).weight = torch.nn.Parameter(1.001 * weight.detach())
        return model

    monkeypatch.setattr(comparing, "load_ours", wrong)
    report = compare(folder("nemotron_h", 4))
    assert report.different == [] and not report.same
    assert command.verdict(report) == f"not the same: the {name} differs"


def test_what_is_known_of_transformers_is_named(capsys):
    folder = str(WEIGHTS / "nemotron-h-tiny")
    assert command.main([folder]) == 1
    said = capsys.readouterr().out
    assert "0 mamba" in said and "<- first that differs" in said
    assert "known: transformers 5.23.0 ignores time_step_limit" in said
    assert said.endswith("not the same: 4 of 10 blocks differ (mamba)\n")
    assert command.main([folder, "--patch-known"]) == 0
    said = capsys.readouterr().out
    assert "experts in bfloat16: of 320 choices" in said
    assert said.endswith("\nthe same\n")


@pytest.mark.parametrize("name", ["nanochat-tiny", "nemotron-tiny"])
def test_the_shipped_models_are_the_same(capsys, name):
    assert command.main([str(WEIGHTS / name), "--json", "--tokens", "40"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["same"] is True
    assert report["tokens"] == 40
    assert max(block["own"] for block in report["blocks"]) <= 1e-12
    # On some CPUs a tie falls the other way: two logits of 8 to 16 that rounding brings together.
    greedy = report["greedy"]
    assert greedy["tokens"] == 32 and greedy["same"] > 8
    assert greedy["same"] == 32 or greedy["margin"] <= 2 * 2**-4


def test_the_first_layers_alone(capsys):
    assert command.main([str(WEIGHTS / "nemotron-h-tiny"), "--first", "2", "--patch-known"]) == 0
    said = capsys.readouterr().out
    assert "1 experts" in said and "2 mamba" not in said


def test_two_of_our_own(tmp_path, capsys):
    source, small = WEIGHTS / "nanochat-tiny", tmp_path / "small"
    assert convert_hf.main([str(source), str(small), "--quantize", "int8"]) == 0
    capsys.readouterr()
    assert command.main([str(source), str(source)]) == 0
    assert "the same: 100.0% of the likeliest tokens agree" in capsys.readouterr().out
    assert command.main([str(small), str(source), "--json"]) in (0, 1)
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["agreement"]["kl"] < 0.1
    assert all(0 < block["own"] < 0.1 for block in report["blocks"])
    assert command.main([str(source), str(WEIGHTS / "nemotron-tiny")]) == 2
    assert "are of other architectures or sizes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], "nowhere"),
        ([str(WEIGHTS / "nanochat-tiny"), "--tokens", "0"], "--tokens is 0; it must be 1 or more"),
        ([str(WEIGHTS / "nanochat-tiny")] * 2 + ["--first", "1"], "--first goes with one"),
        ([str(LATEST)],
         "transformers cannot read it"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(capsys, args, words):
    assert command.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("nanomodels compare: error: ") and error.count("\n") == 1
    assert words in error


def test_without_transformers_it_says_so(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert command.main([str(WEIGHTS / "nanochat-tiny")]) == 2
    assert "transformers is not installed" in capsys.readouterr().err
