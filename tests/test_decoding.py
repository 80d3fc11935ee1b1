"""Sampling and the decode loop: what is drawn, what is fed, when it ends."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from effort import examples
from hypothesis import given, settings
from reference import random_nanochat
from small_tokenizers import family_131072
from transformers.generation import logits_process as theirs

import nanomodels
from nanomodels.generation.sampling import Sampler, draw
from nanomodels.generation.settings import GenerationSettings
from nanomodels.generation.stream import ReasoningSplitter, TextStream
from nanomodels.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "data" / "nanochat-2025-10-16"


@pytest.fixture(scope="module")
def model():
    return nanomodels.load(GOLDEN)


@pytest.fixture
def fed(model, monkeypatch):
    """The shapes of the ids that each forward of the model was given."""
    shapes, forward = [], model.forward

    def spy(ids, **kwargs):
        shapes.append(tuple(ids.shape))
        return forward(ids, **kwargs)

    monkeypatch.setattr(model, "forward", spy)
    return shapes


def uncached(model, ids, new_tokens):
    """Greedy continuation by full passes over everything, without a cache."""
    ids = list(ids)
    for _ in range(new_tokens):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-new_tokens:]


def test_cached_decoding_feeds_the_prompt_once_then_single_tokens(model, fed):
    ids = [5, 17, 300, 41, 8, 8, 9]
    found = list(nanomodels.generate(model, ids, max_new_tokens=20, stop_ids=[]))
    assert fed == [(1, 7)] + [(1, 1)] * 19
    assert found == uncached(model, ids, 20)


def test_generation_ends_before_the_first_stop_id(model):
    ids = [1, 2, 3]
    free = list(nanomodels.generate(model, ids, max_new_tokens=30, stop_ids=[]))
    stop = free[11]
    first = free.index(stop)
    assert list(nanomodels.generate(model, ids, max_new_tokens=30, stop_ids=[stop])) == free[:first]
    model.stop_ids, kept = (stop,), model.stop_ids
    try:
        assert list(nanomodels.generate(model, ids, max_new_tokens=30)) == free[:first]
    finally:
        model.stop_ids = kept


def test_generation_ends_where_the_context_is_full(model, fed):
    ids = list(range(390)) + list(range(115))
    assert model.context_length == 512
    assert len(list(nanomodels.generate(model, ids, max_new_tokens=50, stop_ids=[]))) == 8
    assert sum(tokens for _, tokens in fed) == 512


def test_a_row_beside_a_prompt_that_fills_the_context_is_as_long_as_alone(model):
    prompts = [[5], [7, 8] * 250, [9] * 512]
    kwargs = {"max_new_tokens": 40, "stop_ids": []}
    rows = zip(*nanomodels.generate_batch(model, prompts, **kwargs), strict=True)
    for row, ids, length in zip(rows, prompts, (40, 13, 1), strict=True):
        alone = list(nanomodels.generate(model, ids, **kwargs))
        assert len(alone) == length
        assert [i for i in row if i is not None] == alone


def test_settings_may_be_an_object_and_keywords_replace_its_fields(model):
    settings = GenerationSettings(max_new_tokens=9, stop_ids=(), temperature=1.0, seed=3)
    kwargs = {"max_new_tokens": 9, "stop_ids": [], "temperature": 1.0, "seed": 3}
    expected = list(nanomodels.generate(model, [1, 2], **kwargs))
    assert list(nanomodels.generate(model, [1, 2], settings)) == expected
    assert list(nanomodels.generate(model, [1, 2], settings, max_new_tokens=4)) == expected[:4]
    with pytest.raises(ValueError, match="top_k is -2"):
        GenerationSettings(top_k=-2)


def test_no_id_beyond_the_real_vocabulary_is_yielded(model):
    kwargs = {"max_new_tokens": 60, "stop_ids": [], "temperature": 3.0, "seed": 1}
    assert max(nanomodels.generate(model, [1], **kwargs)) >= 50
    assert max(nanomodels.generate(model, [1, 399], vocab_size=50, **kwargs)) < 50


@pytest.mark.parametrize("samples", [1, 2])
def test_repetition_penalty_matches_transformers(tmp_path, samples):
    reference = random_nanochat(7)
    reference.save_pretrained(tmp_path)
    model = nanomodels.load(tmp_path)
    # Prompts made of what the model likes to say, so that the penalty matters from the first token.
    prompts = [list(nanomodels.generate(model, [i], max_new_tokens=40)) for i in (5, 9)]
    kwargs = {"max_new_tokens": 60, "repetition_penalty": 3.0}
    rows = zip(
        *nanomodels.generate_batch(model, prompts, num_samples=samples, **kwargs), strict=True
    )
    for n, row in enumerate(rows):
        ids = torch.tensor([prompts[n // samples]])
        with torch.inference_mode():
            expected = reference.generate(
                ids, max_new_tokens=60, do_sample=False, repetition_penalty=3.0
            )
        assert list(row) == expected[0, 40:].tolist()


@settings(max_examples=examples(20), deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 399), min_size=1, max_size=30), min_size=1, max_size=4))
def test_a_row_of_a_batch_is_what_its_prompt_alone_gives(model, prompts):
    for sampling in ({}, {"temperature": 0.9, "top_k": 50, "repetition_penalty": 1.2}):
        kwargs = {"max_new_tokens": 12, "seed": 3, "stop_ids": [], **sampling}
        rows = list(zip(*nanomodels.generate_batch(model, prompts, **kwargs), strict=True))
        for row, ids in zip(rows, prompts, strict=True):
            assert list(row) == list(nanomodels.generate(model, ids, **kwargs))


def test_rows_end_on_their_own_stop_ids_and_then_give_none(model):
    prompts = [[1, 2, 3], [7], [50, 60]]
    free = [list(nanomodels.generate(model, p, max_new_tokens=15, stop_ids=[])) for p in prompts]
    stops = [free[0][2], free[1][6]]
    rows = zip(
        *nanomodels.generate_batch(model, prompts, max_new_tokens=15, stop_ids=stops), strict=True
    )
    for row, tokens in zip(rows, free, strict=True):
        end = min([tokens.index(s) for s in stops if s in tokens], default=15)
        assert [i for i in row if i is not None] == tokens[:end]
        assert all(i is None for i in row[end:])


def test_samples_share_one_prefill_differ_and_are_reproducible(model, fed):
    kwargs = {"max_new_tokens": 8, "temperature": 1.0, "seed": 11, "stop_ids": []}
    prompts = [[1, 2, 3, 4], [9]]
    rows = list(
        zip(*nanomodels.generate_batch(model, prompts, num_samples=6, **kwargs), strict=True)
    )
    assert fed == [(2, 4)] + [(12, 1)] * 7
    assert len({row[0] for row in rows[:6]}) > 1, "the first token is drawn for each sample"
    assert len(set(rows)) > 10
    for j in (0, 5):  # sample j is what seed + j draws alone
        alone = nanomodels.generate(model, prompts[1], **(kwargs | {"seed": 11 + j}))
        assert list(alone) == list(rows[6 + j])
    other = list(nanomodels.generate(model, prompts[0], **(kwargs | {"seed": 99})))
    assert other != list(rows[0])


def test_a_cache_that_holds_the_beginning_is_fed_only_the_rest(model, fed):
    ids = list(range(20))
    expected = list(nanomodels.generate(model, ids, max_new_tokens=6, stop_ids=[]))
    cache = model.new_cache(1, 64)
    with torch.inference_mode():
        model(torch.tensor([[*ids[:13], 300, 301]]), cache=cache)
    cache.truncate(13)
    fed.clear()
    found = list(nanomodels.generate(model, ids, max_new_tokens=6, stop_ids=[], cache=cache))
    assert fed == [(1, 7)] + [(1, 1)] * 5
    assert found == expected
    assert cache.length == 25
    with pytest.raises(ValueError, match="the cache holds 25 tokens"):
        nanomodels.generate(model, ids, cache=cache)
    with pytest.raises(ValueError, match="one prompt, one sample"):
        nanomodels.generate_batch(model, [ids * 2], num_samples=2, cache=cache)
    cache.has_padding = True
    with pytest.raises(ValueError, match="no padding in it"):
        nanomodels.generate(model, ids * 2, cache=cache)


def test_a_seeded_model_without_a_checkpoint_generates(tmp_path):
    random_nanochat(2).save_pretrained(tmp_path)
    model = nanomodels.load(tmp_path)
    assert model.stop_ids == ()
    assert len(list(nanomodels.generate(model, [1], max_new_tokens=3))) == 3
    assert list(nanomodels.generate(model, [1], max_new_tokens=0)) == []


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"ids": []}, "a prompt is empty"),
        ({"ids": [1] * 513}, "513 tokens; the model's context holds 512"),
        ({"ids": [400]}, "not in the vocabulary of 400"),
        ({"ids": [-1]}, "not in the vocabulary"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": float("inf")}, "top_k is inf"),
        ({"temperature": "0.6"}, "temperature is '0.6'"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"top_p": 2}, "top_p is 2; it must be 1e-09 to 1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_runs(model, kwargs, words):
    with pytest.raises(ValueError, match=words):
        nanomodels.generate(model, kwargs.pop("ids", [1]), **kwargs)


@settings(max_examples=examples(150), deadline=None, derandomize=True)
@given(st.data())
def test_probabilities_are_those_of_transformers(device, data):
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    size = data.draw(st.integers(2, 60))
    logits = torch.randn(3, size, generator=rng) * data.draw(st.floats(0.1, 9))
    temperature = data.draw(st.floats(0.05, 5))
    top_k = data.draw(st.integers(0, size + 3))
    top_p = data.draw(st.floats(0.01, 1))
    min_p = data.draw(st.floats(0, 1))
    penalty = data.draw(st.sampled_from([1.0, 1.3, 0.7]))
    text = torch.randint(size, (3, 4), generator=rng)

    scores = logits.clone()
    if penalty != 1:
        scores = theirs.RepetitionPenaltyLogitsProcessor(penalty)(text, scores)
    scores = theirs.TemperatureLogitsWarper(temperature)(text, scores)
    if top_k:
        scores = theirs.TopKLogitsWarper(top_k)(text, scores)
    scores = theirs.TopPLogitsWarper(top_p)(text, scores)
    scores = theirs.MinPLogitsWarper(min_p)(text, scores)

    settings = GenerationSettings(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        seed=0,
        vocab_size=size,
    )
    sampler = Sampler(settings, text.tolist(), device)
    found = sampler.probabilities(sampler.penalise(logits.to(device))).cpu()
    torch.testing.assert_close(found, scores.softmax(-1), rtol=1e-4, atol=1e-6)


def test_tokens_are_drawn_with_their_probabilities(device):
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]])
    generator = [torch.Generator().manual_seed(0)]
    counts, there = torch.zeros(6), probabilities.to(device)
    for _ in range(20000):
        counts[draw(there, generator).cpu()] += 1
    assert counts[[0, 2, 5]].sum() == 0
    assert (counts / 20000 - probabilities[0]).abs().max() < 0.015  # four standard deviations


def test_a_tiny_temperature_is_greedy_and_never_overflows():
    logits = torch.tensor([[1.0, 30.0, 29.9, -5.0]])
    for temperature in (1e-3, 1e-6, 1e-30, 1e-46, 1e-300):
        settings = GenerationSettings(temperature=temperature, seed=0)
        assert Sampler(settings, [[]])(logits).tolist() == [1]


class Texts:
    """A tokenizer whose tokens are their own texts."""

    def __init__(self):
        self.special_ids = {}

    def stream(self, keep):
        return self

    def push(self, token):
        return token

    def finish(self):
        return ""


ABC = st.text("abc", min_size=1, max_size=4)


@settings(max_examples=examples(400), deadline=None, derandomize=True)
@given(st.lists(ABC, max_size=12), st.lists(ABC, max_size=3))
def test_text_ends_before_the_first_stop_string_and_never_shows_part_of_it(tokens, stop):
    stream, so_far, expected, shown = TextStream(Texts(), stop), "", None, ""
    for token in tokens:
        so_far += token
        starts = [so_far.find(s) for s in stop if s in so_far]
        if starts and expected is None:  # the first token that completes any of them
            expected = so_far[: min(starts)]
        shown += stream.push(token)
        assert (so_far if expected is None else expected).startswith(shown)
    shown += stream.finish()
    assert stream.stopped == (expected is not None)
    assert shown == (expected if stream.stopped else so_far)


def split(text, opened):
    """(reasoning, answer, whether there is an answer) of a whole text."""
    if not opened:
        if not text.lstrip().startswith("<think>"):
            return "", text, True
        text = text.lstrip().removeprefix("<think>")
    reasoning, mark, answer = text.partition("</think>")
    return reasoning, answer.lstrip(), mark != ""


MARKS = ["<think>", "</think>", "<", "</", "thi", "nk>", " ", "\n", "a", "é🙂", "<tool_call>"]


@settings(max_examples=examples(1000), deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(MARKS), max_size=12).map("".join), st.booleans(), st.data())
def test_reasoning_is_split_from_the_answer_wherever_the_text_is_cut(text, opened, data):
    reasoning, answer, answered = split(text, opened)
    splitter, shown, rest = ReasoningSplitter(opened), "", text
    while rest:
        size = data.draw(st.integers(1, 4))
        shown += splitter.push(rest[:size])
        rest = rest[size:]
        assert answer.startswith(shown)
        assert reasoning.startswith(splitter.reasoning)
    shown += splitter.finish()
    assert (splitter.reasoning, shown, splitter.state != "reasoning") == (
        reasoning, answer, answered
    )  # fmt: skip


def test_reasoning_and_answer_come_as_soon_as_they_are_certain():
    splitter = ReasoningSplitter(opened=True)
    said = []
    for piece in ("ab", "c<", "/th", "x ", "</thin", "k>", "\n", " d", " </think>"):
        said.append((splitter.push(piece), splitter.reasoning))
    assert [answer for answer, _ in said] == ["", "", "", "", "", "", "", "d", " </think>"]
    thought = ["ab", "abc", "abc", "abc</thx ", *["abc</thx "] * 5]
    assert [reasoning for _, reasoning in said] == thought
    splitter = ReasoningSplitter()
    assert [splitter.push(piece) for piece in (" ", "<th", "at", "<think>")] == [
        "", "", " <that", "<think>"
    ]  # fmt: skip


def test_a_stop_string_counts_in_the_answer_alone():
    stream = TextStream(Texts(), ["."], ReasoningSplitter(opened=True))
    text = "".join(stream.push(letter) for letter in "One. Two.</think> Three. Four.")
    assert (text, stream.splitter.reasoning, stream.stopped) == ("Three", "One. Two.", True)


def test_a_text_that_ends_within_a_mark_keeps_it():
    for opened, text, reasoning, answer in (
        (False, " <thi", "", " <thi"),
        (True, "a</th", "a</th", ""),
    ):
        stream = TextStream(Texts(), ["x"], ReasoningSplitter(opened))
        assert "".join(map(stream.push, text)) == ""
        assert (stream.finish(), stream.splitter.reasoning) == (answer, reasoning)


@pytest.mark.parametrize("special", [True, False])
def test_the_end_of_reasoning_is_seen_as_one_token_or_as_several(tmp_path, special):
    tokenizer = Tokenizer.load(family_131072(tmp_path, "nemotron-3"))
    ids = tokenizer.encode("é<SPECIAL_99></think>\n\n日本<tool_call>x", special=special)
    assert (13 in ids) == special
    stream = TextStream(tokenizer, (), ReasoningSplitter(opened=True))
    text = "".join([*map(stream.push, ids), stream.finish()])
    assert text == "日本<tool_call>x"
    assert stream.splitter.reasoning == ("é" if special else "é<SPECIAL_99>")


def test_a_long_prompt_is_fed_in_pieces_and_says_how_far(model, monkeypatch):
    monkeypatch.setattr(nanomodels.generation.decoding, "PIECE", 7)
    ids = list(range(1, 31))
    told, lengths = [], []
    hook = model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    rows = nanomodels.generate_batch(
        model, [ids, ids[:3]], max_new_tokens=3, stop_ids=[], progress=lambda *n: told.append(n)
    )
    in_pieces = list(rows)
    hook.remove()
    assert lengths == [7, 7, 7, 7, 2, 1, 1]
    assert told == [(0, 30), (7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]
    monkeypatch.undo()
    for i, prompt in enumerate((ids, ids[:3])):
        alone = nanomodels.generate(model, prompt, max_new_tokens=3, stop_ids=[])
        assert [row[i] for row in in_pieces] == list(alone)
