"""The cache: forks, reordering, cutting back, and what it refuses."""

import pytest
import torch
from reference import random_nanochat

import nanomodels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    random_nanochat(8).save_pretrained(folder)
    return nanomodels.load(folder)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def tokens(model, batch, length, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch, length), generator=rng)


def ragged(model):
    """A cache of three rows with 9, 4 and 1 tokens, padded on the left; and the rows."""
    ids, lengths = tokens(model, 3, 9), [9, 4, 1]
    cache = model.new_cache(3, 30)
    mask = torch.arange(9) >= 9 - torch.tensor(lengths)[:, None]
    model(ids, cache=cache, attention_mask=mask)
    return cache, [row[9 - n :] for row, n in zip(ids, lengths, strict=True)]


def close(found, expected):
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_cache_is_allocated_once_at_the_length_asked_for(model):
    cache = model.new_cache(2, 50)
    places = [entry.k.data_ptr() for entry in cache.entries]
    for _ in range(5):
        model(tokens(model, 2, 10), cache=cache)
    assert [entry.k.data_ptr() for entry in cache.entries] == places
    assert {entry.v.shape[2] for entry in cache.entries} == {50}
    assert cache.length == 50


def test_a_clone_and_its_parent_never_touch_each_other(model):
    parent, more = model.new_cache(1, 40), tokens(model, 2, 8, seed=1)
    ids = tokens(model, 1, 12)
    model(ids, cache=parent)
    fork, found = parent.clone(), [[], []]
    for piece in more.split(2, dim=1):  # in turns, so that shared memory would show
        found[0].append(model(piece[:1], cache=fork))
        found[1].append(model(piece[1:], cache=parent))
    for logits, row in zip(found, more, strict=True):
        close(torch.cat(logits, 1), model(torch.cat((ids, row[None]), 1), logits_to_keep=8))


def test_reordered_rows_go_on_as_the_rows_that_they_are(model):
    cache, rows = ragged(model)
    order = [2, 0, 0, 1, 2]
    cache.reorder(order)
    more = tokens(model, 5, 3, seed=2)
    found = model(more, cache=cache)
    for i, source in enumerate(order):
        alone = model(torch.cat((rows[source], more[i]))[None], logits_to_keep=3)
        close(found[i], alone[0])


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 9])
def test_a_truncated_cache_goes_on_from_there(model, length):
    cache, rows = ragged(model)
    cache.truncate(length)
    more = tokens(model, 3, 4, seed=3)
    found = model(more, cache=cache)
    for i, row in enumerate(rows):
        close(found[i], model(torch.cat((row[:length], more[i]))[None], logits_to_keep=4)[0])


def test_truncating_gives_back_the_room(model):
    cache, ids = model.new_cache(1, 20), tokens(model, 1, 20)
    full = model(ids, cache=cache)
    cache.truncate(6)
    assert cache.length == 6
    close(model(ids[:, 6:], cache=cache), full[:, 6:])
    for length in (-1, 21):
        with pytest.raises(ValueError, match=f"a cache of 20 tokens a row to {length}"):
            cache.truncate(length)


def test_more_tokens_than_fit_are_refused_and_change_nothing(model):
    cache, ids = model.new_cache(1, 10), tokens(model, 1, 20)
    model(ids[:, :8], cache=cache)
    with pytest.raises(ValueError, match="holds 10 tokens a row, 8 are used and 3 more"):
        model(ids[:, 8:11], cache=cache)
    close(model(ids[:, 8:10], cache=cache), model(ids[:, :10], logits_to_keep=2))


def test_an_interrupted_forward_leaves_the_cache_as_it_was(model):
    cache, ids = model.new_cache(1, 10), tokens(model, 1, 9)
    model(ids[:, :4], cache=cache)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.layers[-1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(tokens(model, 1, 3, seed=5), cache=cache)
    hook.remove()
    close(model(ids[:, 4:], cache=cache), model(ids, logits_to_keep=5))


def test_other_rows_and_other_masks_are_refused(model):
    cache = model.new_cache(2, 10)
    with pytest.raises(ValueError, match="the cache has 2 rows; this call has 3"):
        model(tokens(model, 3, 2), cache=cache)
    with pytest.raises(ValueError, match=r"attention_mask is \(2, 5\); it must be \(2, 2\)"):
        model(tokens(model, 2, 2), cache=cache, attention_mask=torch.ones(2, 5).long())
    with pytest.raises(ValueError, match="fractions"):
        model(tokens(model, 2, 2), cache=cache, attention_mask=torch.tensor([[0, -1e9]] * 2))
    with pytest.raises(ValueError, match="at least one token"):
        model(tokens(model, 2, 0), cache=cache)


def test_the_cache_has_the_dtype_of_the_model(model, tmp_path):
    random_nanochat(8).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cache = nanomodels.load(tmp_path, dtype=dtype).new_cache(1, 4)
        assert {entry.k.dtype for entry in cache.entries} == {dtype}
