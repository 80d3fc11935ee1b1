"""Log-probabilities: those of the model's own distribution, however the tokens are made."""

import copy
import pickle

import pytest
import torch
from compare import SAMPLING
from reference import FAMILIES, LATEST

import nanomodels
from nanomodels.generation import cuda_graph

KINDS = [*FAMILIES, "nanochat_2026"]
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]


@pytest.fixture(scope="module", params=KINDS)
def models(request, tmp_path_factory):
    """Our model, and what gives the logits (t, v) of a text without a cache."""
    if request.param == "nanochat_2026":  # transformers has no such model
        model = nanomodels.load(LATEST, dtype=torch.float32)
        return model, [lambda ids: model(torch.tensor([ids]))[0]]
    folder = tmp_path_factory.mktemp(request.param)
    reference = FAMILIES[request.param](3)
    reference.save_pretrained(folder)
    model = nanomodels.load(folder)
    return model, [
        lambda ids: model(torch.tensor([ids]))[0],
        lambda ids: reference(torch.tensor([ids])).logits[0],
    ]


@torch.inference_mode()
def check(models, prompt, tokens, top, vocab_size=None):
    """Each token's figures are those of full passes, to 1e-4."""
    for logits in models[1]:
        text = [*prompt, *map(int, tokens)]
        expected = logits(text)[len(prompt) - 1 : -1, :vocab_size].log_softmax(-1)
        for token, row in zip(tokens, expected, strict=True):
            assert abs(token.logprob - row[token]) <= 1e-4
            assert len({i for i, _ in token.top}) == len(token.top) == top
            values = torch.tensor([value for _, value in token.top])
            assert (values - row.topk(top).values).abs().max() <= 1e-4 if top else True
            assert all(abs(value - row[i]) <= 1e-4 for i, value in token.top)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("sampling", SAMPLING)
def test_log_probabilities_are_those_of_full_passes(models, monkeypatch, sampling, graph):
    monkeypatch.setattr(cuda_graph, "check", lambda model: None)  # its calls, without a GPU
    kwargs = {"max_new_tokens": 12, "seed": 4, "num_samples": 2, "stop_ids": [], "vocab_size": 90}
    kwargs |= SAMPLING[sampling] | {"cuda_graph": graph}
    plain = list(nanomodels.generate_batch(models[0], PROMPTS, **kwargs))
    found = list(nanomodels.generate_batch(models[0], PROMPTS, logprobs=3, **kwargs))
    assert found == plain
    assert {type(token) for row in plain for token in row} == {int}
    for n, row in enumerate(zip(*found, strict=True)):
        check(models, PROMPTS[n // 2], row, 3, vocab_size=90)


def test_drafts_change_no_log_probability(models):
    start, accepted = [5, 6, 7], []
    text = nanomodels.generate(models[0], start, max_new_tokens=30, stop_ids=[])
    ids = [*start, *text, *start]
    for most in (1, 6):
        kwargs = {"max_new_tokens": 30, "stop_ids": [], "draft_lookup": most}
        told = {"on_draft": lambda *counts: accepted.append(counts)}
        tokens = list(nanomodels.generate(models[0], ids, logprobs=2, **kwargs, **told))
        check(models, ids, tokens, 2)
    assert sum(right for _, right in accepted) > 0
    assert any(right < drafted for drafted, right in accepted)


def test_none_of_the_likeliest_is_listed_for_0_and_rows_that_ended_give_none(models):
    kwargs = {"max_new_tokens": 9, "stop_ids": []}
    free = list(nanomodels.generate(models[0], PROMPTS[0], **kwargs))
    kwargs["stop_ids"] = [free[4]]
    tokens = list(nanomodels.generate(models[0], PROMPTS[0], logprobs=0, **kwargs))
    assert tokens == free[: free.index(free[4])]
    check(models, PROMPTS[0], tokens, 0)
    rows = list(nanomodels.generate_batch(models[0], PROMPTS, logprobs=0, **kwargs))
    assert [row[0] for row in rows[: len(tokens) + 1]] == [*tokens, None]


def test_a_token_is_an_int_and_can_be_copied(models):
    kwargs = {"max_new_tokens": 3, "stop_ids": [], "logprobs": 2}
    for token in nanomodels.generate(models[0], [1], **kwargs):
        for other in (copy.deepcopy(token), pickle.loads(pickle.dumps(token))):
            assert (other, other.logprob, other.top) == (token, token.logprob, token.top)
        assert torch.tensor([token]).dtype == torch.long
        assert f"{token}" == str(int(token))


def test_nothing_is_computed_if_nobody_asked(models, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "log_softmax", None)
    assert len(list(nanomodels.generate(models[0], [1], max_new_tokens=3, stop_ids=[]))) == 3


def test_more_than_the_vocabulary_is_refused(models):
    with pytest.raises(ValueError, match="logprobs is 91; the vocabulary has 90 tokens"):
        nanomodels.generate(models[0], [1], vocab_size=90, logprobs=91)
    [token] = nanomodels.generate(models[0], [1], vocab_size=90, logprobs=90, max_new_tokens=1)
    assert sorted(i for i, _ in token.top) == list(range(90))
