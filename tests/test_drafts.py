"""Drafts from the text itself: fewer calls, and the same tokens and cache as without."""

import random

import hypothesis.strategies as st
import pytest
import torch
from compare import SAMPLING, same_cache
from effort import THOROUGH, examples
from hypothesis import given, settings
from reference import FAMILIES, LATEST, ROPE_TYPES, ROTATING, random_nanochat, random_nemotron_h

import nanomodels
from nanomodels.generation import decoding
from nanomodels.generation.drafts import PromptLookup

KINDS = [*FAMILIES, "nanochat_2026"]


def load(kind, folder, seed):
    if kind == "nanochat_2026":
        return nanomodels.load(LATEST, dtype=torch.float32)
    FAMILIES[kind](seed).save_pretrained(folder)
    return nanomodels.load(folder)


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp(request.param), 8)


def spied(model, monkeypatch):
    """The number of tokens in each call of the model from now on."""
    lengths, forward = [], model.forward

    def spy(ids, **kwargs):
        lengths.append(ids.shape[1])
        return forward(ids, **kwargs)

    monkeypatch.setattr(model, "forward", spy)
    return lengths


def repetitive(rng, vocab):
    """A prompt of few different tokens, with pieces that repeat."""
    letters = rng.sample(range(vocab), rng.choice([2, 5, 40]))
    pieces = [[rng.choice(letters) for _ in range(rng.randint(1, 9))] for _ in range(3)]
    return [token for _ in range(rng.randint(1, 6)) for token in rng.choice(pieces)]


class Teacher(PromptLookup):
    """A draft of random length at each step, right up to a random token."""

    def __init__(self, truth, seed):
        self.truth, self.rng = truth, random.Random(seed)

    def __call__(self, ids, most, on_draft):
        super().__init__(ids, most, on_draft)
        return self

    def draft(self, room):
        here = len(self.text)
        draft = self.truth[here : here + min(self.most, self.rng.randint(0, 9), max(room, 0))]
        wrong = self.rng.choice([0, 1, 2, 3, 99, 99])
        return [abs(token - (i >= wrong)) for i, token in enumerate(draft)]


def taught(model, monkeypatch, ids, lesson=0, most=8, **kwargs):
    """Tokens and cache without drafts and with a Teacher's, and (drafted, accepted) of each."""
    plain, ahead, far = (model.new_cache(1, model.context_length) for _ in range(3))
    expected = list(nanomodels.generate(model, ids, cache=plain, **kwargs))
    longer = kwargs | {"max_new_tokens": kwargs.get("max_new_tokens", 256) + most, "stop_ids": []}
    truth = ids + list(nanomodels.generate(model, ids, cache=far, **longer))
    drafts = []
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "PromptLookup", Teacher(truth, lesson))
        found = list(
            nanomodels.generate(
                model,
                ids,
                cache=ahead,
                draft_lookup=most,
                on_draft=lambda *counts: drafts.append(counts),
                **kwargs,
            )
        )
    assert found == expected
    same_cache(ahead, plain)
    return found, drafts


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_the_same_in_fewer_calls(kind, tmp_path, monkeypatch):
    rng, new, drafts = random.Random(kind), 16, []
    for seed in range(5):
        model = load(kind, tmp_path, seed)
        prompts = [repetitive(rng, model.config.vocab_size) for _ in range(examples(40))]
        kwargs = {"max_new_tokens": new, "stop_ids": []}
        if kind in ROTATING and ROPE_TYPES[seed] in ("dynamic", "longrope"):
            # A batch's rows turn by other angles.
            expected = [tuple(nanomodels.generate(model, ids, **kwargs)) for ids in prompts]
        else:
            expected = zip(*nanomodels.generate_batch(model, prompts, **kwargs), strict=True)
        lengths = spied(model, monkeypatch)
        for ids, row in zip(prompts, expected, strict=True):
            if ids is prompts[0]:
                assert tuple(nanomodels.generate(model, ids, **kwargs)) == row
                assert lengths == [len(ids)] + [1] * (new - 1)
                lengths.clear()
            mine = []
            told = {"on_draft": lambda *counts, to=mine: to.append(counts)}
            found = nanomodels.generate(model, ids, draft_lookup=6, **kwargs, **told)
            assert tuple(found) == row
            # A token that was drafted right saves a call; a state that went back may need a last.
            saved = new - sum(accepted for _, accepted in mine)
            recurrent = model.new_cache(1, 1).has_ssm
            assert len(lengths) in ((saved, saved + 1) if recurrent else (saved,))
            assert max(lengths[1:]) <= 7
            drafts += mine
            lengths.clear()
    assert sum(accepted for _, accepted in drafts) > (100 if THOROUGH else 5)
    assert sum(accepted < drafted for drafted, accepted in drafts) > (50 if THOROUGH else 5)
    assert sum(0 < accepted < drafted for drafted, accepted in drafts) > (10 if THOROUGH else 1)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_text_and_cache_are_the_same_whatever_is_drafted(model, monkeypatch, sampling):
    rng, drafts = random.Random(1), []
    for seed in range(8):
        ids = repetitive(rng, model.config.vocab_size)
        kwargs = {"max_new_tokens": rng.randint(20, 40), "seed": seed, "stop_ids": []}
        drafts += taught(model, monkeypatch, ids, seed, **kwargs, **SAMPLING[sampling])[1]
    kept = [accepted for drafted, accepted in drafts if accepted < drafted]
    assert {0, 1, 2, 3} <= set(kept), "drafts ended at each length"
    assert max(accepted for _, accepted in drafts) >= 7


@pytest.mark.parametrize("sampling", ["sampled", "all"])
def test_sampled_text_is_the_same_for_a_seed(model, sampling):
    rng, accepted = random.Random(2), []
    for seed in range(8):
        ids = repetitive(rng, 50)
        kwargs = {"max_new_tokens": 40, "seed": seed, "stop_ids": [], **SAMPLING[sampling]}
        kwargs |= {"top_k": 3, "temperature": 0.3}  # so that it repeats itself
        expected = list(nanomodels.generate(model, ids, **kwargs))
        kwargs |= {"draft_lookup": 5, "on_draft": lambda *counts: accepted.append(counts[1])}
        assert list(nanomodels.generate(model, ids, **kwargs)) == expected
    assert sum(accepted) > 0
    assert 0 in accepted


def test_the_drafts_of_a_penalised_text_see_each_token_before_them(model, monkeypatch):
    """The penalty is so strong that no token comes twice, so repeated tokens are rejected."""
    ids = [3, 4, 3, 4, 3]
    found, _ = taught(model, monkeypatch, ids, repetition_penalty=100.0, max_new_tokens=30)
    assert len(found) >= 20


def test_a_stop_id_within_a_draft_ends_the_text(model, monkeypatch):
    ids = [1, 2, 3]
    free = list(nanomodels.generate(model, ids, max_new_tokens=20, stop_ids=[]))
    for seed, stop in enumerate(dict.fromkeys(free)):
        kwargs = {"max_new_tokens": 20, "stop_ids": [stop]}
        assert taught(model, monkeypatch, ids, seed, **kwargs)[0] == free[: free.index(stop)]


@pytest.mark.parametrize("prompt", [[7], [5, 6, 5, 6, 5, 6, 5]])
def test_no_token_more_than_asked_for(model, monkeypatch, prompt):
    for new in range(1, 6):
        for seed in range(6):
            kwargs = {"max_new_tokens": new, "stop_ids": []}
            assert len(taught(model, monkeypatch, prompt, seed, **kwargs)[0]) == new
    assert list(nanomodels.generate(model, prompt, max_new_tokens=0, draft_lookup=4)) == []


def test_no_token_more_than_the_context_holds(model, monkeypatch):
    full = model.context_length
    rng = random.Random(3)
    ids = [rng.randrange(3) for _ in range(full)]
    for room in (0, 1, 2, 3, 7):
        kwargs = {"max_new_tokens": 20, "stop_ids": []}
        assert len(taught(model, monkeypatch, ids[room:], room, **kwargs)[0]) == room + 1
        real = nanomodels.generate(model, ids[room:], draft_lookup=9, **kwargs)
        assert list(real) == list(nanomodels.generate(model, ids[room:], **kwargs))


def test_a_cache_is_continued_and_filled_to_its_end(model, monkeypatch):
    ids = [9, 8, 7, 9, 8, 7, 9, 8]
    truth = ids + list(nanomodels.generate(model, ids, max_new_tokens=30, stop_ids=[]))
    monkeypatch.setattr(decoding, "PromptLookup", Teacher(truth, 0))
    texts, caches = [], []
    for most in (0, 6):
        cache, text = model.new_cache(1, 20), []
        with torch.inference_mode():
            model(torch.tensor([ids[:5]]), cache=cache)
        kwargs = {"max_new_tokens": 30, "stop_ids": [], "cache": cache, "draft_lookup": most}
        with pytest.raises(ValueError, match="has 20 slots a row, 20 are used"):
            for token in nanomodels.generate(model, ids, **kwargs):
                text.append(token)
        texts.append(text), caches.append(cache)
    assert texts[0] == texts[1] == truth[8:21]
    same_cache(*caches)


def test_an_iterator_left_early_leaves_the_yielded_tokens_in_the_cache(model, monkeypatch):
    ids = [9, 8, 7, 9, 8, 7, 9, 8]
    truth = ids + list(nanomodels.generate(model, ids, max_new_tokens=30, stop_ids=[]))
    for stay in range(1, 12):
        monkeypatch.setattr(decoding, "PromptLookup", Teacher(truth, stay))
        caches = [model.new_cache(1, 50), model.new_cache(1, 50)]
        for cache, most in zip(caches, (0, 9), strict=True):
            kwargs = {"max_new_tokens": 30, "stop_ids": [], "cache": cache, "draft_lookup": most}
            rows = decoding.generate_batch(model, [ids], **kwargs)
            assert [next(rows)[0] for _ in range(stay)] == truth[8 : 8 + stay]
            rows.close()
        same_cache(*caches)


def test_an_interrupted_call_leaves_the_yielded_tokens_in_the_cache(model, monkeypatch):
    ids, calls = [9, 8, 7, 9, 8, 7, 9, 8], 0
    truth = ids + list(nanomodels.generate(model, ids, max_new_tokens=30, stop_ids=[]))

    def interrupt(*_):
        nonlocal calls
        calls += 1
        if calls == stay:
            raise KeyboardInterrupt

    hook = model.register_forward_hook(interrupt)
    for stay in range(2, 8):
        monkeypatch.setattr(decoding, "PromptLookup", Teacher(truth, stay))
        calls, text, cache = 0, [], model.new_cache(1, 50)
        kwargs = {"max_new_tokens": 30, "stop_ids": [], "cache": cache, "draft_lookup": 3}
        with pytest.raises(KeyboardInterrupt):
            for token in nanomodels.generate(model, ids, **kwargs):
                text.append(token)
        calls, plain = 99, model.new_cache(1, 50)
        with torch.inference_mode():
            model(torch.tensor([truth[: 8 + len(text) - 1]]), cache=plain)
        same_cache(cache, plain)
    hook.remove()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"draft_lookup": -1}, "draft_lookup is -1"),
        ({"draft_lookup": 2.0}, "draft_lookup is 2.0"),
        ({"draft_lookup": True}, "draft_lookup is True"),
        ({"draft_lookup": 2, "num_samples": 2}, "one prompt and one sample"),
        ({"draft_lookup": 2, "prompts": [[1], [2]]}, "one prompt and one sample"),
    ],
)
def test_drafts_that_are_not_possible_are_refused(model, kwargs, words):
    with pytest.raises(ValueError, match=words):
        nanomodels.generate_batch(model, **{"prompts": [[1]], **kwargs})


@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), max_size=60))
def test_a_guess_is_what_followed_the_last_time(text):
    lookup, source = PromptLookup([], most=100), None
    for end in range(len(text)):
        token, before = text[end], text[:end]
        lookup.push(token)
        if source is not None and before[source] == token:  # the same place goes on
            source += 1
        else:
            source = None
            for size in (2, 3):  # a scan of the whole text; the longer end counts
                for at in range(size, end + 1):
                    if text[at - size : at] == text[end + 1 - size : end + 1]:
                        source = at
        assert lookup.source == source
    lookup.wait = 0
    draft = lookup.draft(room=30)
    assert (draft == []) == (source is None)
    copied = text + draft
    assert draft == [copied[source + i] for i in range(len(draft))]


def read(lookup, text):
    """The (drafted, accepted) of each call, for a model that says this text."""
    calls, at = [], 0
    while at < len(text):
        draft = lookup.draft(len(text) - at - 1)
        truth = text[at : at + len(draft)]
        wrong = [i for i, token in enumerate(draft) if token != truth[i]]
        accepted = min(wrong, default=len(draft))
        lookup.learn(len(draft), accepted)
        for token in text[at : at + accepted + 1]:
            lookup.push(token)
        at += accepted + 1
        calls.append((len(draft), accepted))
    return calls


def test_a_text_that_repeats_is_soon_drafted_at_full_length():
    calls = read(PromptLookup(list(range(50)), most=16), [*range(50)] * 20)
    assert calls[:7] == [(0, 0), (0, 0), (1, 1), (3, 3), (7, 7), (15, 15), (16, 16)]
    assert set(calls[6:-1]) == {(16, 16)}
    loop = read(PromptLookup([1, 2, 3], most=16), [1, 2, 3] * 40)  # copied from the copy
    assert loop[-2] == (16, 16)


@pytest.mark.parametrize("letters", [2, 4, 30, 1000])
def test_a_text_without_repeats_is_left_alone(letters):
    """Random letters: the last few often occurred before, but other letters followed."""
    rng = random.Random(letters)
    text = [rng.randrange(letters) for _ in range(4000)]
    calls = read(PromptLookup(text[:1000], most=16), text[1000:])
    drafted = sum(drafted for drafted, _ in calls)
    assert drafted <= (300 if letters == 2 else 50), "of 3000"


def test_drafts_begin_again_where_a_text_begins_to_repeat():
    rng = random.Random(0)
    noise, page = [rng.randrange(9) for _ in range(2000)], [*range(100, 160)]
    lookup = PromptLookup(page + noise[:1000], most=16)
    read(lookup, noise[1000:])
    assert lookup.wait > 2
    assert len(read(lookup, page * 2)) < 40  # of 120


@pytest.mark.parametrize("make", [random_nanochat, random_nemotron_h])
def test_a_cache_goes_back_to_a_savepoint_again_and_again(make, tmp_path):
    make(8).save_pretrained(tmp_path)
    model = nanomodels.load(tmp_path)
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(90, (3, 30), generator=rng)
    padded = torch.arange(9) >= torch.tensor([[0], [5], [8]])
    with torch.inference_mode():
        cache, plain = model.new_cache(3, 30), model.new_cache(3, 30)
        for each in (cache, plain):
            model(ids[:, :9], cache=each, attention_mask=padded)
        savepoint = cache.savepoint()
        for size in (1, 2, 7, 20):
            model(ids[:, -size:], cache=cache)
            cache.rollback(savepoint)
            same_cache(cache, plain)
        model(ids[:, 9:], cache=cache), model(ids[:, 9:], cache=plain)
        same_cache(cache, plain)


@pytest.mark.parametrize("change", ["reorder", "restore", "truncate", "clone", "savepoint"])
def test_a_savepoint_from_before_a_change_is_refused(change, tmp_path):
    random_nanochat(8).save_pretrained(tmp_path)
    model = nanomodels.load(tmp_path)
    cache = model.new_cache(2, 20)
    with torch.inference_mode():
        model(torch.ones(2, 5, dtype=torch.long), cache=cache)
        savepoint = cache.savepoint()
        if change == "reorder":
            cache.reorder([1, 0])
        elif change == "restore":
            cache.restore(cache.snapshot())
        elif change == "truncate":
            cache.truncate(3)
        elif change == "savepoint":
            cache.savepoint()
        else:
            cache = cache.clone()
        model(torch.ones(2, 5, dtype=torch.long), cache=cache)
    length = cache.length
    with pytest.raises(ValueError, match="the savepoint is not valid"):
        cache.rollback(savepoint)
    assert cache.length == length
