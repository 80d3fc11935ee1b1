"""One model over several processes: the same logits and text, each weight in its place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch
from effort import THOROUGH
from torch import multiprocessing

from nanomodels import nanochat, nemotron_h
from nanomodels.checkpoint import loading, modelopt
from nanomodels.linears import quantized
from nanomodels.linears.parallel import Cut, Ranks, check_sizes, cut_model, local_config

pytestmark = pytest.mark.cpu
ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "tests" / "data" / "configs").glob("*.json"))


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_compute_what_one_does(tmp_path, count, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    seeds = 10 if THOROUGH else 1
    multiprocessing.spawn(ranks.work, (count, tmp_path / "meeting", seeds), count)


# --------------------------------------------------------------------------------------------------
# Cutting and joining, without processes


def parts_of(model, count):
    """For each rank {parameter: its numbers}; experts by their numbers in the whole model."""
    named = {name: [(name, tensor)] for name, tensor in model.state_dict().items()}
    for rank in range(count):
        part = loading.build(type(model), local_config(model.config, count))
        cut = cut_model(part, model.config, named, Ranks(rank, count))
        assert cut.keys() == part.state_dict().keys()
        tensors = {}
        for local, [(name, tensor)] in cut.items():
            tensors[name] = tensor.to("cpu", tensor.dtype)
            assert tensors[name].shape == part.state_dict()[local].shape, name
        yield tensors


@pytest.mark.parametrize("module", ranks.DECODERS, ids=lambda module: module.__name__[11:])
@pytest.mark.parametrize("count", [2, 4])
def test_each_number_is_held_once_or_by_all(module, count):
    """Or by the ranks that share a key/value head; a bias that is added once is 0 elsewhere."""
    for seed in range(6):
        model = ranks.random_model(module, seed)
        state, first = model.state_dict(), 1
        for tensor in state.values():  # each number is there once
            numbers = torch.arange(first, first + tensor.numel(), dtype=torch.float64)
            tensor.data = numbers.view(tensor.shape)
            first += tensor.numel()
        if getattr(model.config, "tie_word_embeddings", False):
            state["lm_head.weight"].data = next(iter(state.values()))
        for name, parameter in model.named_parameters(remove_duplicate=False):
            parameter.data = state[name]
        held = torch.zeros(first, dtype=torch.long)
        for tensors in parts_of(model, count):
            numbers = torch.cat([tensor.flatten() for tensor in tensors.values()]).long()
            held.index_add_(0, numbers, torch.ones_like(numbers))
        shared = max(1, count // model.config.num_key_value_heads)
        tied = 2 if getattr(model.config, "tie_word_embeddings", False) else 1
        assert {*held[1:].tolist()} <= {0, 1, shared, count, tied}
        assert (held[1:] > 0).all() or tied == 2


def config_of(path):
    hub = json.loads(path.read_text())
    return loading.read_config(path, loading.language_config(hub))[2]


def test_every_published_config_can_be_cut_or_says_for_how_many_processes():
    """As in the table of NVIDIA's own guides: the groups of Mamba-2 allow 8 at most."""
    most = {}
    for path in CONFIGS:
        config, works = config_of(path), []
        for count in (1, 2, 4, 8, 16):
            try:
                check_sizes(config, count)
                works.append(count)
            except ValueError as error:
                assert f"cannot be cut for {count} processes; numbers of" in str(error)
        most[path.stem] = max(works)
        assert works[:2] == [1, 2]
        if isinstance(config, nemotron_h.Config):
            assert max(works) == 8, path
    assert most["Nemotron-4-340B-Base-hf.mgoin"] == 16
    assert most["Minitron-4B-Base"] == 8


def test_sizes_that_do_not_divide_are_named():
    config = nanochat.Config(num_attention_heads=17, num_key_value_heads=17, vocab_size=34)
    with pytest.raises(ValueError, match="num_attention_heads 17 and num_key_value_heads 17 can"):
        check_sizes(config, 2)
    with pytest.raises(ValueError, match="vocab_size 34 .* 4 processes; .* that work: 1, 2$"):
        check_sizes(nanochat.Config(vocab_size=34), 4)
    with pytest.raises(ValueError, match="n_groups 2 cannot be cut for 4 processes; .*: 1, 2$"):
        check_sizes(nemotron_h.Config(layers="M"), 4)
    check_sizes(nemotron_h.Config(layers="-*", n_groups=3, n_routed_experts=5), 2)  # are not used


def test_a_tensor_of_another_size_is_named():
    model = ranks.random_model(nemotron_h, 0)
    for name in model.state_dict():
        leaf = name.split(".")[-2]
        if leaf in ("in_proj", "conv1d", "k_proj", "up_proj") and ".experts." not in name:
            named = {n: [(n, tensor)] for n, tensor in model.state_dict().items()}
            [(_, tensor)] = named[name]
            named[name] = [(name, tensor[:-1])]
            part = loading.build(type(model), local_config(model.config, 2))
            with pytest.raises(ValueError, match=f"{name} is .* asks for another size"):
                cut_model(part, model.config, named, Ranks(1, 2))


@pytest.mark.parametrize("scheme", ["int4", "int8", "fp8", "nvfp4"])
def test_a_stored_weight_is_cut_to_the_bit(scheme):
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 192, generator=rng)
    if scheme in quantized.SCHEMES:
        stored = quantized.quantize(weight, scheme)
    elif scheme == "fp8":
        stored = modelopt.FP8(weight.to(torch.float8_e4m3fn), torch.tensor(0.7))
    else:
        codes = torch.randint(256, (256, 96), generator=rng, dtype=torch.uint8)
        scale = torch.rand(256, 12, generator=rng).to(torch.float8_e4m3fn)
        stored = modelopt.NVFP4(codes, scale, torch.tensor(0.3))
    whole = stored.to("cpu", torch.float32)
    for dim, pieces in (
        (0, [slice(64, 128)]),
        (0, [slice(3, 35), slice(100, 132)]),
        (0, [slice(1, 8)]),
        (1, [slice(64, 128)]),
        (1, [slice(16, 32)]),
        (1, [slice(5, 9)]),
    ):
        cut = Cut(stored, dim, pieces)
        expected = torch.cat([whole.movedim(dim, 0)[piece] for piece in pieces]).movedim(0, dim)
        assert cut.shape == expected.shape
        assert torch.equal(cut.to("cpu", torch.float32), expected), (dim, pieces)
        aligned = pieces[0].stop % 64 == 0 and dim == 1
        read = cut.read(torch.float32)
        assert isinstance(read, type(stored)) or not aligned


# --------------------------------------------------------------------------------------------------
# torchrun


def torchrun(count, *args, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), "generate.py", *args]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, **options
    )


def test_generate_under_torchrun_says_what_it_says_alone():
    """The prompt is piped to rank 0; the text is there once, and so is each line of figures."""
    args = ["--dtype", "float32", "--temperature", "0.9", "--seed", "4", "--max-new-tokens", "30"]
    alone = subprocess.run(
        [sys.executable, "generate.py", *args],
        cwd=ROOT, input="Tell me about Italy.", capture_output=True, text=True,
    )  # fmt: skip
    both = torchrun(2, *args, input="Tell me about Italy.")
    assert both.returncode == 0, both.stderr
    assert both.stdout == alone.stdout != ""
    assert both.stderr.count("1 of 2 processes") == both.stderr.count("MB peak") == 1


@pytest.mark.slow
def test_a_number_of_processes_that_does_not_work_is_one_line():
    result = torchrun(3, "Hi")
    assert result.returncode == 1  # torchrun's
    [line] = [line for line in result.stderr.splitlines() if "generate.py: error" in line]
    assert "cannot be cut for 3 processes; numbers of processes that work: 1, 2, 4" in line
    assert "Traceback" not in result.stderr.split("torch/distributed")[0]
