"""The calls of a CUDA graph, made on the CPU: same numbers, and nothing is read back."""

import copy
from pathlib import Path

import pytest
import torch
from compare import SAMPLING, close, same_cache
from reference import FAMILIES, LATEST

import nanomodels
from nanomodels import experts
from nanomodels.generation import cuda_graph

KINDS = [*FAMILIES, "nanochat_2026"]
TINY = Path(__file__).parent.parent / "weights" / "nemotron-h-tiny"


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    if kind == "nanochat_2026":
        folder = LATEST
    else:
        FAMILIES[kind](3).save_pretrained(folder)
    return nanomodels.load(folder, dtype=torch.float32)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """The experts of a step are called at once; those of a prompt by the loop."""
    monkeypatch.setattr(experts, "can_stack", lambda _, x: x.shape[1] == 1)


@torch.inference_mode()
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("prompt", [1, 9])
def test_the_calls_give_the_same_logits_and_cache(model, monkeypatch, prompt, ragged):
    monkeypatch.setattr(cuda_graph, "SLOTS", 4)  # another graph after 4, 8, 16 and 32
    rng = torch.Generator().manual_seed(prompt)
    ids = torch.randint(model.config.vocab_size, (3, prompt + 40), generator=rng)
    mask = torch.arange(prompt) >= torch.tensor([[0], [prompt // 2], [prompt - 1]])
    plain = model.new_cache(3, prompt + 40)
    model(ids[:, :prompt], cache=plain, attention_mask=mask if ragged else None)
    cache = plain.clone()
    steps, captures = cuda_graph.GraphDecoder(model, cache), []
    capture = steps.capture
    monkeypatch.setattr(steps, "capture", lambda: (captures.append(cache.length), capture()))
    for n in range(prompt, prompt + 35):
        expected = model(ids[:, n : n + 1], cache=plain)
        close(steps(ids[:, n : n + 1]).cpu(), expected)
        same_cache(cache, plain)
    assert captures == [n for n in (prompt, 4, 8, 16, 32) if n >= prompt]
    rest = ids[:, -5:]
    close(model(rest, cache=cache), model(rest, cache=plain))
    with pytest.raises(ValueError, match="all are used"):
        steps(ids[:, :1])


def test_a_call_reads_nothing_back(model):
    """On the meta device no number can be read, and reading one would end a capture."""
    model = copy.deepcopy(model).to("meta")
    steps = cuda_graph.GraphDecoder(model, model.new_cache(2, 64))
    for _ in range(3):
        assert steps(torch.zeros(2, 1, dtype=torch.long, device="meta")).shape[:2] == (2, 1)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_text_is_the_same(model, monkeypatch, sampling):
    monkeypatch.setattr(cuda_graph, "check", lambda model: None)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    kwargs = {"max_new_tokens": 20, "seed": 4, "stop_ids": [], "num_samples": 2}
    expected = list(nanomodels.generate_batch(model, prompts, **kwargs, **SAMPLING[sampling]))
    kwargs["cuda_graph"] = True
    assert (
        list(nanomodels.generate_batch(model, prompts, **kwargs, **SAMPLING[sampling])) == expected
    )


@torch.inference_mode()
def test_what_was_rolled_back_is_not_seen(model):
    """A restored cache gives the same as one without the undone calls."""
    ids = torch.arange(20)[None] * 3 % model.config.vocab_size
    cache, fresh = model.new_cache(1, 64), model.new_cache(1, 64)
    model(ids[:, :5], cache=cache)
    model(ids[:, :5], cache=fresh)
    snapshot, savepoint = cache.snapshot(), cache.savepoint()
    model(ids[:, 5:], cache=cache)
    cache.restore(snapshot)
    cache.mark()
    steps = cuda_graph.GraphDecoder(model, cache)
    for token in (7, 8):
        token = torch.tensor([[token]])
        close(steps(token).cpu(), model(token, cache=fresh))
    same_cache(cache, fresh)
    with pytest.raises(ValueError, match="the savepoint is not valid"):
        cache.rollback(savepoint)
    cache.truncate(5)
    token = torch.tensor([[7]])
    expected = model(torch.cat((ids[:, :5].cpu(), token), 1))[:, -1:]
    found = model(token, cache=cache)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), "the mark is as it was"


@torch.inference_mode()
@pytest.mark.parametrize("runs", [False, True], ids=["before", "after"])
def test_an_interrupt_around_a_step_leaves_the_cache_before_or_after_it(model, monkeypatch, runs):
    """Ctrl-C while a graph runs is raised once it has been launched, so its token counts."""
    cache, plain = model.new_cache(1, 64), model.new_cache(1, 64)
    steps = cuda_graph.GraphDecoder(model, cache)
    for token in ([[1]], [[2]]):
        steps(torch.tensor(token))
        model(torch.tensor(token), cache=plain)
    replay = steps.replay

    def interrupted():
        if runs:
            replay()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(steps, "replay", interrupted)
        steps(torch.tensor([[3]]))
    if runs:
        model(torch.tensor([[3]]), cache=plain)
    same_cache(cache, plain)
    close(steps(torch.tensor([[4]])).cpu(), model(torch.tensor([[4]]), cache=plain))
    same_cache(cache, plain)


class Stub:
    """Stands in for torch.cuda's classes and contexts, and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def wait_stream(self, other):
        pass

    def replay(self):
        pass


@torch.inference_mode()
def test_a_capture_leaves_the_cache_alone_and_keeps_what_the_graph_uses(model, monkeypatch):
    """All but CUDA itself. Here the captured call runs once; on CUDA it would not."""
    for name in ("Stream", "stream", "current_stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, Stub)
    cache = model.new_cache(1, 64)
    model(torch.tensor([[1, 2, 3]]), cache=cache)
    steps, calls = cuda_graph.GraphDecoder(model, cache), []
    steps.static = cuda_graph.StaticCache(cache, 32)
    before = {name: tensor.clone() for name, tensor in cache.tensors(3).items()}

    def call():
        now = cache.tensors(3)
        assert all(torch.equal(now[name], before[name]) for name in before)
        assert steps.static.next_slot.tolist() == [3]
        calls.append(None)
        model(torch.tensor([[4]]), cache=steps.static)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(steps, "call", call)
    with pytest.raises(KeyboardInterrupt):
        steps.captured()
    now = cache.tensors(3)
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert steps.captured().__name__ == "replay"
    assert len(calls) == 5  # twice to warm up, and once to capture


def test_what_cannot_be_a_graph_is_refused(model, monkeypatch):
    with pytest.raises(ValueError, match="is for a model on CUDA"):
        nanomodels.generate(copy.deepcopy(model).cpu(), [1], cuda_graph=True)
    quantised = nanomodels.load(TINY, quantize="int8")
    with pytest.raises(ValueError, match="is for a model whose experts are not quantised"):
        nanomodels.generate(quantised, [1], cuda_graph=True)
    monkeypatch.setattr(cuda_graph, "check", lambda model: None)
    with pytest.raises(ValueError, match="cuda_graph and draft_lookup do not go together"):
        nanomodels.generate(model, [1], cuda_graph=True, draft_lookup=2)
