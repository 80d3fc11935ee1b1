"""generate.py --plan: what it says is what is then allocated, and what the guides say."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from chats import FOLDERS
from reference import LATEST, random_nemotron_h

import convert_hf
import nanomodels
from nanomodels.checkpoint import loading, planning
from nanomodels.cli import generate
from nanomodels.cli.plan import readable
from nanomodels.linears.parallel import Ranks

CONFIGS = Path(__file__).parent / "data" / "configs"
SHIPPED = FOLDERS["nemotron_h"]


def held(model):
    """Bytes of a model's weights, as they are stored."""
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def cached(model, rows, length):
    """Bytes of the entries of a new cache."""
    entries = (entry for entry in model.new_cache(rows, length).entries if entry is not None)
    return sum(tensor.nbytes for entry in entries for tensor in entry.tensors(length).values())


@pytest.mark.cpu
@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
@pytest.mark.parametrize("kind", planning.KINDS)
def test_what_the_plan_says_is_what_is_then_allocated(folder, kind):
    plan, scheme = planning.make_plan(folder), planning.as_scheme(kind)
    assert 1 in plan.weights and (2 in plan.weights) == (not plan.obstacles[2])
    if folder == LATEST:  # too narrow to be quantised
        assert [*plan.weights[1]] == ["bfloat16"]
    for count in {1, 2} & plan.weights.keys() if kind in plan.weights[1] else ():
        ranks = None if count == 1 else Ranks(1, count)
        source = loading.read(folder, quantize=scheme, ranks=ranks)
        matches = loading.match_tensors(source.model, source.tensors)
        needed = loading.memory_needed(source, matches, torch.bfloat16, scheme)
        assert plan.loading[count][kind] == needed
        model = loading.finish(source, dtype=torch.bfloat16)
        assert plan.weights[count][kind] == held(model)
        assert cached(model, 3, 7) == 3 * (7 * plan.token[count] + plan.row[count])
    assert plan.parameters == parameter_count(nanomodels.load(folder))


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


# Each process: GB of weights in bfloat16, kB of keys and values a token, MB of states a row; by
# hand from the configs. Nemotron-4-340B: 96 layers, 8 key/value heads of 192.
SIZES = [
    ("Nemotron-4-340B-Base-hf.mgoin", 8, 85.3, 73.7, 0),
    ("Nemotron-4-340B-Base-hf.mgoin", 16, 43.3, 73.7, 0),
    ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 8, 7.9, 3.1, 6.1),
    ("Nemotron-H-56B-Base-8K", 8, 14.1, 5.1, 114.1),
    ("NVIDIA-Nemotron-3-Super-120B-A12B-FP8", 8, 31.1, 4.1, 21.3),
    ("NVIDIA-Nemotron-3-Super-120B-A12B-FP8", 4, 61.1, 4.1, 42.6),
    ("NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", 8, 140.9, 6.1, 51.0),
]


@pytest.mark.parametrize(
    ("name", "count", "weights", "token", "row"),
    [
        pytest.param(*sizes, marks=[pytest.mark.slow] * ("uper" in sizes[0] or "Ultra" in sizes[0]))
        for sizes in SIZES
    ],
)
def test_published_models_take_what_is_known(
    tmp_path, monkeypatch, name, count, weights, token, row
):
    monkeypatch.setattr(planning, "COUNTS", (count,))
    (tmp_path / "config.json").write_bytes((CONFIGS / f"{name}.json").read_bytes())
    plan = planning.make_plan(tmp_path)
    assert round(plan.weights[count]["bfloat16"] / 1e9, 1) == weights
    assert round(plan.token[count] / 1e3, 1) == token
    assert round(plan.row[count] / 1e6, 1) == row


def make_plan(weights, extra=0):
    """A Plan of {number of processes: GB of each}, whose largest tensor has `extra` GB."""
    sizes = {n: {"int4": int(size * 2**30)} for n, size in weights.items()}
    peak = {n: {"int4": int((size + extra) * 2**30)} for n, size in weights.items()}
    return planning.Plan(object, 0, 0, {}, sizes, peak, {}, {})


def test_a_gpu_keeps_a_twentieth_free_and_room_for_the_largest_tensor():
    plan = make_plan({1: 76, 2: 40, 4: 21})
    assert plan.fit("int4", 80) == (1, pytest.approx(0))
    assert plan.fit("int4", 79) == (2, pytest.approx(0.95 - 40 / 79))
    assert plan.fit("int4", 24) == (4, pytest.approx(0.95 - 21 / 24))
    assert plan.fit("int4", 20) is None
    assert make_plan({1: 70, 2: 35}, extra=7).fit("int4", 80) == (2, pytest.approx(0.5125))


# --------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def run(monkeypatch, capsys):
    """Run generate.py --plan in this process; gives stdout, or with status=2 stderr."""

    def run(*args, status=0):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        monkeypatch.setattr(generate, "discard_stdout", lambda: None)
        capsys.readouterr()
        assert generate.main(["--plan", *map(str, args)]) == status
        said, error = capsys.readouterr()
        assert (error if status == 0 else said) == ""
        return error if status else said

    return run


def test_a_config_alone_is_enough(tmp_path, run):
    (tmp_path / "config.json").write_bytes((SHIPPED / "config.json").read_bytes())
    alone = run("--model", tmp_path).replace(tmp_path.name, "NAME")
    assert alone == run("--model", SHIPPED).replace(SHIPPED.name, "NAME")
    lines = alone.splitlines()
    assert lines[0] == "NAME: NemotronH, 3.4M parameters, context 4,096 tokens"
    assert lines[2].split() == ["processes", "bfloat16", "int8", "int4", "a", "token", "a", "row"]
    # 2 layers with 2 heads of 64; 4 with a window of 3 x 512 and a state of 12 x 32 x 32 float32
    assert lines[3].split()[-4:] == ["1.0", "kB", "208.9", "kB"]
    assert lines[5] == "        4  cannot be cut: n_groups 2"
    assert "141 GB" in alone and "5% of a GPU are kept free" in alone


def test_json_says_the_same(run):
    plan, found = (
        planning.make_plan(SHIPPED),
        json.loads(run("--model", SHIPPED, "--json")),
    )
    assert found["parameters"] == plan.parameters and found["cannot_be_cut"]["4"] == ["n_groups 2"]
    for entry in found["bytes"]:
        count = entry["processes"]
        assert entry["weights"] == plan.weights[count]
        assert entry["while_loading"] == plan.loading[count]
        assert (entry["key_value_per_token"], entry["state_per_row"]) == (
            *(plan.token[count], plan.row[count]),
        )
    fits = found["gpus"]["24 GB"]["int4"]
    assert fits == {"count": 1, "left_for_cache": pytest.approx(0.95, abs=1e-3)}


def test_weights_that_are_quantised_already_have_no_other_kind(tmp_path, run):
    for head in ([], ["--quantize-head"]):
        target = tmp_path / f"int4{len(head)}"
        args = [str(SHIPPED), str(target), "--quantize", "int4", *head]
        assert convert_hf.main(args) == 0
        plan = planning.make_plan(target)
        assert plan.weights[1] == {"int4": held(nanomodels.load(target))}
    assert "bfloat16 " not in run("--model", target).splitlines()[2]


def test_a_training_folder_of_nanochat_has_a_plan(run):
    assert "NanoChat2026" in run("--model", LATEST)


def test_what_has_no_plan_is_one_line(tmp_path, run):
    hub = json.loads((FOLDERS["nemotron"] / "config.json").read_text())
    for changes, message in (
        ({"architectures": ["NemotronForSequenceClassification"]}, "makes no text"),
        ({"model_type": "llama"}, "model_type 'llama' is unknown"),
        ({"num_hidden_layers": 10**7}, "10000000 layers"),
        ({"nanomodels": {"quantize": "int3"}}, "scheme 'int3' is unknown"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(hub | changes))
        error = run("--model", tmp_path, status=2)
        assert message in error and error.count("\n") == 1
    assert "no such folder" in run("--model", tmp_path / "absent", status=2)
    with pytest.raises(SystemExit, match="2"):
        run("Hello")


def test_sizes_are_readable():
    found = [readable(n) for n in (None, 0, 999, 1000, 73_728, 51 * 10**6, 1_099_000_000_000)]
    assert found == ["-", "0 B", "999 B", "1.0 kB", "73.7 kB", "51.0 MB", "1,099.0 GB"]


def test_experts_are_counted_once_wherever_they_are(tmp_path):
    """Of 8 experts, each of two processes has four; the latent projections are on both."""
    random_nemotron_h(
        2, vocab_size=96, layers_block_type=["moe"], moe_latent_size=10
    ).save_pretrained(tmp_path)
    plan = planning.make_plan(tmp_path)
    whole, half = (plan.weights[count]["bfloat16"] for count in (1, 2))
    experts = loading.read(tmp_path).tensors
    size = sum(t.numel() for n, [(_, t)] in experts.items() if ".experts." in n)
    assert whole - half > size  # bfloat16: half of them, 2 bytes each
