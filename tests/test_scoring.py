"""nanomodels.score: transformers' loss, in any batch, and the alternatives of each token."""

import math
from pathlib import Path

import pytest
import torch
from compare import random_ids
from reference import FAMILIES, LATEST
from transformers import AutoModelForCausalLM

import nanomodels
from nanomodels.analysis import scoring

WEIGHTS = Path(__file__).parent.parent / "weights"


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    theirs = FAMILIES[request.param](5)
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs.save_pretrained(folder)
    return theirs, nanomodels.load(folder)


@torch.inference_mode()
def test_the_loss_is_that_of_transformers_with_labels(pair, monkeypatch):
    theirs, ours = pair
    monkeypatch.setattr(scoring, "ROWS", 3)
    lengths = [40, 2, 23, 40, 31, 7, 3]
    texts = [random_ids(ours, 1, n, seed=n)[0].tolist() for n in lengths]
    for text, found in zip(texts, nanomodels.score(ours, texts), strict=True):
        ids = torch.tensor([text])
        assert found.loss == pytest.approx(theirs(ids, labels=ids).loss.item(), rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(found.loss))
        assert found.ids == text[1:]


@pytest.mark.parametrize("name", ["nanochat-tiny", "nemotron-tiny"])
@torch.inference_mode()
def test_the_loss_of_a_text_by_the_shipped_models(name):
    theirs = AutoModelForCausalLM.from_pretrained(WEIGHTS / name, dtype=torch.float32)
    ours = nanomodels.load(WEIGHTS / name, dtype=torch.float32)
    text = "Once upon a time, there was a little girl named Mia. What is the capital of France?"
    text = nanomodels.Tokenizer.load(WEIGHTS / name).encode(text)
    ids = torch.tensor([text])
    (found,) = nanomodels.score(ours, [text])
    assert found.loss == pytest.approx(theirs(ids, labels=ids).loss.item(), rel=1e-5)


@pytest.fixture(scope="module", params=[*FAMILIES, "nanochat_2026"])
def model(request, tmp_path_factory):
    if request.param == "nanochat_2026":
        return nanomodels.load(LATEST)
    folder = tmp_path_factory.mktemp("checkpoint")
    FAMILIES[request.param](3).save_pretrained(folder)
    return nanomodels.load(folder)


@torch.inference_mode()
def test_each_token_and_its_alternatives_are_those_of_one_pass(model, monkeypatch):
    """After a prompt, with calls of a few tokens."""
    texts = [random_ids(model, 1, n, seed=n)[0].tolist() for n in (30, 12, 27)]
    monkeypatch.setattr(scoring, "LOGITS", 3 * 7 * model.config.vocab_size)
    for text, found in zip(texts, nanomodels.score(model, texts, given=9, top=4), strict=True):
        logprobs = model(torch.tensor([text]))[0].log_softmax(-1)[8:-1]
        expected = logprobs.gather(1, torch.tensor(text[9:])[:, None])[:, 0]
        assert found.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        values, ids = logprobs.topk(4)
        assert [[i for i, _ in each] for each in found.top] == ids.tolist()
        assert [[p for _, p in each] for each in found.top] == [
            pytest.approx(each, abs=1e-4) for each in values.tolist()
        ]


def test_bad_texts_are_refused(model):
    size, context = model.config.vocab_size, model.context_length
    assert nanomodels.score(model, []) == []
    for text, words in (
        ([1], "text 2 has 1 tokens; it needs 2 at least"),
        ([], "text 2 has 0 tokens"),
        ([1] * (context + 1), f"text 2 has {context + 1} tokens; .* context holds {context}"),
        ([1, size], f"text 2 has ids that are not in the vocabulary of {size}"),
        ("12", "a text is '12'; it must be a list of token ids"),
    ):
        with pytest.raises(ValueError, match=words):
            nanomodels.score(model, [[1, 2], text])
    for wrong in ({"given": 0}, {"top": -1}, {"top": size + 1}):
        with pytest.raises(ValueError, match="given is"):
            nanomodels.score(model, [[1, 2]], **wrong)
