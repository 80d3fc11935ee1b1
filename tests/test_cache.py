"""The cache: clones, reordering, truncation, snapshots, files, and what it refuses."""

import json
import os
import stat
import subprocess
import sys
import threading

import pytest
import torch
from compare import close, random_ids
from interrupt import Interrupt
from reference import LATEST, random_nanochat, random_nemotron_h
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import nanomodels
from nanomodels.cache import KV, SSM, Cache

MAKE = {"nanochat": random_nanochat, "nemotron_h": random_nemotron_h}


@pytest.fixture(scope="module", params=MAKE)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    MAKE[request.param](8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """A model whose cache has keys and values alone, and one with Mamba-2 states as well."""
    return nanomodels.load(folder)


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    """A model of attention alone, whose cache can be truncated."""
    folder = tmp_path_factory.mktemp("attention")
    random_nanochat(8).save_pretrained(folder)
    return nanomodels.load(folder)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """A model with Mamba-2 layers."""
    folder = tmp_path_factory.mktemp("hybrid")
    random_nemotron_h(8).save_pretrained(folder)
    return nanomodels.load(folder)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def ragged(model):
    """A cache of three rows with 9, 4 and 1 tokens, padded on the left; and the rows."""
    ids, lengths = random_ids(model, 3, 9), [9, 4, 1]
    cache = model.new_cache(3, 30)
    mask = torch.arange(9) >= 9 - torch.tensor(lengths)[:, None]
    model(ids, cache=cache, attention_mask=mask)
    return cache, [row[9 - n :] for row, n in zip(ids, lengths, strict=True)]


def test_a_cache_is_allocated_once_at_the_length_asked_for(model):
    cache = model.new_cache(2, 50)
    entries = [entry for entry in cache.entries if isinstance(entry, KV)]
    addresses = [entry.k.data_ptr() for entry in entries]
    for _ in range(5):
        model(random_ids(model, 2, 10), cache=cache)
    assert [entry.k.data_ptr() for entry in entries] == addresses
    assert {entry.v.shape[2] for entry in entries} == {50}
    assert cache.length == 50


def test_a_clone_and_its_original_never_change_each_other(model):
    original, more = model.new_cache(1, 40), random_ids(model, 2, 8, seed=1)
    ids = random_ids(model, 1, 12)
    model(ids, cache=original)
    clone, found = original.clone(), [[], []]
    for piece in more.split(2, dim=1):  # in turn, so that shared memory would show
        found[0].append(model(piece[:1], cache=clone))
        found[1].append(model(piece[1:], cache=original))
    for logits, row in zip(found, more, strict=True):
        close(torch.cat(logits, 1), model(torch.cat((ids, row[None]), 1), logits_to_keep=8))


def test_reordered_rows_continue_their_own_texts(model):
    """H20: with a row given twice; of Mamba-2, its window and its state."""
    cache, rows = ragged(model)
    order = [2, 0, 0, 1, 2]
    cache.reorder(order)
    more = random_ids(model, 5, 3, seed=2)
    found = model(more, cache=cache)
    for i, source in enumerate(order):
        alone = model(torch.cat((rows[source], more[i]))[None], logits_to_keep=3)
        close(found[i], alone[0])


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 9])
def test_a_truncated_cache_continues_from_there(attention, length):
    cache, rows = ragged(attention)
    cache.truncate(length)
    more = random_ids(attention, 3, 4, seed=3)
    found = attention(more, cache=cache)
    for i, row in enumerate(rows):
        close(found[i], attention(torch.cat((row[:length], more[i]))[None], logits_to_keep=4)[0])


def test_truncating_frees_slots(attention):
    cache, ids = attention.new_cache(1, 20), random_ids(attention, 1, 20)
    full = attention(ids, cache=cache)
    cache.truncate(6)
    assert cache.length == 6
    close(attention(ids[:, 6:], cache=cache), full[:, 6:])
    for length in (-1, 21):
        with pytest.raises(ValueError, match=f"to {length}: the longest row has 20"):
            cache.truncate(length)


def test_a_cache_with_mamba_states_is_truncated_to_marks_only(hybrid):
    """H21: keys of 8 tokens beside a state of 12 would be the cache of no text."""
    cache, ids = hybrid.new_cache(1, 20), random_ids(hybrid, 1, 12)
    hybrid(ids[:, :5], cache=cache)
    with pytest.raises(ValueError, match="to 3, only to a mark: there is none; set one with mark"):
        cache.truncate(3)
    cache.mark()
    clone = cache.clone()
    hybrid(ids[:, 5:], cache=cache)
    cache.mark()
    with pytest.raises(ValueError, match=r"to 8, only to a mark: \[5, 12\]"):
        cache.truncate(8)
    more = random_ids(hybrid, 1, 3, seed=1)
    for again in (cache, cache, clone):
        again.truncate(5)
        close(hybrid(more, cache=again), hybrid(torch.cat((ids[:, :5], more), 1), logits_to_keep=3))
        assert list(again.marks) == [5], "the other was later"


def test_a_cache_that_is_restored_has_no_marks_of_the_text_before(hybrid):
    """What lies at a mark is the state of other tokens."""
    cache, other = hybrid.new_cache(1, 20), hybrid.new_cache(1, 20)
    hybrid(random_ids(hybrid, 1, 5), cache=cache)
    cache.mark()
    hybrid(random_ids(hybrid, 1, 9, seed=1), cache=other)
    cache.restore(other.snapshot())
    with pytest.raises(ValueError, match="to 5, only to a mark: there is none"):
        cache.truncate(5)


def test_a_mark_keeps_only_the_states(hybrid):
    """Of the keys and values there is one copy, however many marks."""
    cache = hybrid.new_cache(1, 20)
    keys = [entry.k.data_ptr() for entry in cache.entries if isinstance(entry, KV)]
    for token in random_ids(hybrid, 1, 6).split(1, dim=1):
        hybrid(token, cache=cache)
        cache.mark()
    states = {}
    for entries in cache.marks.values():
        assert [entry.k.data_ptr() for entry in entries if isinstance(entry, KV)] == keys
        layers = [entry for entry in entries if isinstance(entry, SSM)]
        states |= {t.data_ptr(): t.nbytes for e in layers for t in (e.window, e.state)}
    assert sum(states.values()) == 6 * cache.state_bytes > 0


def test_a_cache_that_grows_goes_on_and_keeps_its_marks(model):
    ids = random_ids(model, 1, 30)
    cache = model.new_cache(1, 6)
    model(ids[:, :4], cache=cache)
    cache.mark()
    model(ids[:, 4:6], cache=cache)
    savepoint = cache.savepoint()
    cache.grow(5)
    assert cache.max_length == 6, "it never shrinks"
    cache.grow(30)
    full = model(ids)
    close(model(ids[:, 6:], cache=cache), full[:, 6:])
    cache.mark()
    cache.rollback(savepoint)
    assert list(cache.marks) == [4], "the other was later"
    close(model(ids[:, 6:], cache=cache), full[:, 6:])
    cache.truncate(4)
    close(model(ids[:, 4:], cache=cache), full[:, 4:])
    with pytest.raises(ValueError, match="30 are used and 1 more"):
        model(ids[:, :1], cache=cache)


@pytest.mark.parametrize("suffix", [1, 2, 9])
def test_conversations_from_one_snapshot_never_change_each_other(model, suffix):
    """H22: restored several times; also with suffixes that are shorter than the convolution."""
    cache, rows = ragged(model)
    snapshot = cache.snapshot()
    kept = {name: tensor.clone() for name, tensor in snapshot.items()}
    other = model.new_cache(3, 70)
    for seed, target in ((1, cache), (2, cache), (3, other), (1, cache)):
        more = random_ids(model, 3, suffix, seed=seed)
        target.restore(snapshot)
        found = model(more, cache=target)
        for i, row in enumerate(rows):
            alone = model(torch.cat((row, more[i]))[None], logits_to_keep=suffix)[0]
            close(found[i], alone)
    assert all(torch.equal(snapshot[name], kept[name]) for name in kept)


def test_a_snapshot_is_restored_after_rows_were_reordered(model):
    cache, rows = ragged(model)
    snapshot, more = cache.snapshot(), random_ids(model, 3, 4)
    cache.reorder([2, 2, 0])
    model(more, cache=cache)
    cache.restore(snapshot)
    assert cache.length == 9 and cache.has_padding
    found = model(more, cache=cache)
    for i, row in enumerate(rows):
        close(found[i], model(torch.cat((row, more[i]))[None], logits_to_keep=4)[0])


def test_a_snapshot_that_does_not_fit_is_refused_and_changes_nothing(model, attention, tmp_path):
    cache, ids = model.new_cache(1, 12), random_ids(model, 1, 12)
    model(ids[:, :7], cache=cache)
    long, two = model.new_cache(1, 30), model.new_cache(2, 12)
    model(random_ids(model, 1, 20), cache=long)
    model(random_ids(model, 2, 7), cache=two)
    random_nanochat(11).save_pretrained(tmp_path)
    stranger = nanomodels.load(tmp_path)
    other = stranger.new_cache(1, 12)
    stranger(random_ids(stranger, 1, 7), cache=other)
    for snapshot, message in (
        (long.snapshot(), "has 20 slots, the cache 12"),
        (two.snapshot(), "is of another model or batch"),
        (other.snapshot(), "is of another model or batch"),
        ({}, "is of another model or batch"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.restore(snapshot)
    close(model(ids[:, 7:], cache=cache), model(ids, logits_to_keep=5))


READER = """
import sys, torch, nanomodels
from safetensors.torch import save_file
folder, saved, out = sys.argv[1:]
model = nanomodels.load(folder)
cache = model.new_cache(3, 30)
ids = cache.load(saved)
with torch.inference_mode():
    save_file({"logits": model(torch.tensor([[5], [6], [7]]), cache=cache)}, out)
print(ids)
"""


def test_a_saved_cache_continues_in_another_process(model, folder, tmp_path):
    cache, rows = ragged(model)
    ids = [row.tolist() for row in rows]
    cache.save(tmp_path / "saved", ids)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    command = [sys.executable, "-c", READER, folder, tmp_path / "saved", tmp_path / "out"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(ids)
    found = load_file(tmp_path / "out")["logits"]
    for i, row in enumerate(rows):
        close(found[i], model(torch.cat((row, torch.tensor([5 + i])))[None], logits_to_keep=1)[0])


def test_an_incomplete_cache_file_is_refused_and_changes_nothing(model, tmp_path):
    cache, ids = model.new_cache(1, 12), random_ids(model, 1, 12)
    model(ids[:, :7], cache=cache)
    path = tmp_path / "saved"
    with pytest.raises(
        ValueError, match=r"ids has \[6\] tokens in its rows; the cache holds \[7\]"
    ):
        cache.save(path, [[1] * 6])
    assert not list(tmp_path.iterdir())
    cache.save(path, ids[:, :7].tolist())
    whole = path.read_bytes()
    tensors, ids_of_six = load_file(path), ids[:, :6].tolist()
    save_file(tensors, path, metadata={"ids": str(ids_of_six)})
    fewer = path.read_bytes()
    for wrong in (whole[:-9], whole[:20], b"", whole.replace(b'"ids"', b'"idz"'), fewer):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="saved: not a cache that was saved whole"):
            cache.load(path)
    with pytest.raises(FileNotFoundError):
        cache.load(tmp_path / "nothing")
    path.write_bytes(whole)
    small = model.new_cache(1, 5)
    with pytest.raises(ValueError, match="saved: the snapshot has 7 slots, the cache 5"):
        small.load(path)
    close(model(ids[:, 7:], cache=cache), model(ids, logits_to_keep=5))


def test_a_save_that_fails_leaves_the_old_file(model, tmp_path, monkeypatch):
    cache, ids = model.new_cache(1, 12), random_ids(model, 1, 7)
    model(ids, cache=cache)
    path = tmp_path / "saved"
    cache.save(path, ids.tolist())
    before = path.read_bytes()

    def fail(tensors, partial, metadata):
        partial.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("nanomodels.cache.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        cache.save(path, ids.tolist())
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]
    assert path.read_bytes() == before


def test_only_a_file_is_replaced(attention, tmp_path):
    """F12: not a pipe, a device or a folder, and not the file that a link points to."""
    cache, ids = attention.new_cache(1, 5), [[1, 2, 3]]
    attention(torch.tensor(ids), cache=cache)
    os.mkfifo(tmp_path / "pipe")
    held = os.open(tmp_path / "pipe", os.O_RDWR)  # so that nothing waits for the other end
    (tmp_path / "device").symlink_to("/dev/full")
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").write_text("other")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    for name in ("pipe", "device", "folder"):
        for call in (cache.load, lambda path: cache.save(path, ids)):
            with pytest.raises(ValueError, match=f"{name}: is not a file; give"):
                call(tmp_path / name)
    os.close(held)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "device").is_char_device()
    cache.save(tmp_path / "link", ids)
    assert (tmp_path / "other").read_text() == "other"
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        cache.save(tmp_path / "nowhere" / "saved", ids)
    cache.save(tmp_path / ("n" * 255), ids)
    assert len(list(tmp_path.iterdir())) == 6


def test_what_cannot_be_written_is_an_oserror(attention, tmp_path, monkeypatch):
    cache = attention.new_cache(1, 5)

    for function, error in (
        ("save_file", SafetensorError("I/O error: No space left on device")),
        ("tempfile.mkdtemp", OSError(28, "No space left on device", "/x/.partial-1")),
    ):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(f"nanomodels.cache.{function}", fail)
        with pytest.raises(OSError, match=r"saved: cannot be written \([^.]*No space left[^.]*\)$"):
            cache.save(tmp_path / "saved", [[]])
        assert not list(tmp_path.iterdir())


def test_two_savers_do_not_disturb_each_other(attention, tmp_path, monkeypatch):
    """F12: each waits, in the middle of its save, for the other."""
    caches, barrier, errors = (
        [attention.new_cache(1, 5) for _ in range(2)],
        threading.Barrier(2),
        [],
    )
    for n, cache in enumerate(caches, 1):
        attention(torch.tensor([[n] * n]), cache=cache)

    def slow(tensors, path, metadata):
        barrier.wait(20)
        save_file(tensors, path, metadata)
        barrier.wait(20)

    def save(n):
        try:
            caches[n - 1].save(tmp_path / "saved", [[n] * n])
        except OSError as error:
            errors.append(error)

    monkeypatch.setattr("nanomodels.cache.save_file", slow)
    threads = [threading.Thread(target=save, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert attention.new_cache(1, 5).load(tmp_path / "saved") in ([[1]], [[2, 2]])
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    "ids",
    [
        '["abc"]',
        '[{"a": 1, "b": 2, "c": 3}]',
        '[["x", "y", "z"]]',
        "[[1, 2, 3.0]]",
        "[[1, 2, true]]",
        "[[1, 2, -3]]",
        '{"abc": 1}',
        "[3]",
        "3",
        "null",
        "[" * 100_000,
        "[[" + "1" * 5000 + ", 2, 3]]",
        "\x1b]0;x\x07",
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_a_file_with_ids_that_are_none_is_refused(attention, tmp_path, ids):
    """F13: the message is one line for a terminal."""
    cache = attention.new_cache(1, 5)
    attention(torch.tensor([[1, 2, 3]]), cache=cache)
    save_file(cache.snapshot(), tmp_path / "saved", metadata={"ids": ids})
    with pytest.raises(ValueError, match="saved: not a cache that was saved whole") as caught:
        attention.new_cache(1, 5).load(tmp_path / "saved")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "positions", [[0, 1, 99], [0, 1, -5], [0, 2, 1], [1, 2, 3], [0, 0, 1], [0, 1, -1]], ids=str
)
def test_positions_that_do_not_number_the_tokens_are_refused(attention, tmp_path, positions):
    """F13: in a file and in a snapshot; and then the cache is as it was."""
    cache, ids = attention.new_cache(1, 9), random_ids(attention, 1, 7)
    attention(ids[:, :3], cache=cache)
    snapshot = cache.snapshot() | {"positions": torch.tensor([positions])}
    save_file(snapshot, tmp_path / "saved", metadata={"ids": "[[1, 2, 3]]"})
    for call in (lambda: cache.restore(snapshot), lambda: cache.load(tmp_path / "saved")):
        with pytest.raises(ValueError, match="positions do not number the tokens of each row"):
            call()
    close(attention(ids[:, 3:], cache=cache), attention(ids, logits_to_keep=4))


@pytest.mark.parametrize("wrong", [10**9, -1])
def test_ids_outside_the_vocabulary_are_refused(tmp_path, wrong):
    """F13: nanochat_2026 looks the earlier ids up again."""
    model = nanomodels.load(LATEST, dtype=torch.float32)
    cache, ids = model.new_cache(1, 9), random_ids(model, 1, 7)
    model(ids[:, :3], cache=cache)
    snapshot = cache.snapshot()
    name = next(name for name in snapshot if name.endswith(".ids"))
    snapshot[name] = torch.tensor([[1, 2, wrong]])
    save_file(snapshot, tmp_path / "saved", metadata={"ids": "[[1, 2, 3]]"})
    with pytest.raises(ValueError, match="saved: the snapshot has ids that are not in the vocab"):
        cache.load(tmp_path / "saved")
    close(model(ids[:, 3:], cache=cache), model(ids, logits_to_keep=4))


def with_header(change):
    """Bytes of a safetensors file whose header says `change` about an empty tensor."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} | change})
    return len(header).to_bytes(8, "little") + header.encode()


@pytest.mark.parametrize(
    "change",
    [{"shape": [2**63, 0]}, {"shape": [-1]}, {"dtype": "F4"}, {"data_offsets": [0, 2**60]}, {}],
    ids=str,
)
def test_a_header_that_lies_is_refused(attention, tmp_path, change):
    (tmp_path / "saved").write_bytes(with_header(change))
    with pytest.raises(ValueError, match="saved: not a cache that was saved whole"):
        attention.new_cache(1, 5).load(tmp_path / "saved")


def test_more_tokens_than_fit_are_refused_and_change_nothing(model):
    cache, ids = model.new_cache(1, 10), random_ids(model, 1, 20)
    model(ids[:, :8], cache=cache)
    with pytest.raises(ValueError, match="has 10 slots a row, 8 are used and 3 more"):
        model(ids[:, 8:11], cache=cache)
    close(model(ids[:, 8:10], cache=cache), model(ids[:, :10], logits_to_keep=2))


def test_an_interrupted_forward_leaves_the_cache_as_it_was(model):
    cache, ids = model.new_cache(1, 10), random_ids(model, 1, 9)
    model(ids[:, :4], cache=cache)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.layers[-1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(random_ids(model, 1, 3, seed=5), cache=cache)
    # With padding, too: the cache must not remember that.
    mask = torch.tensor([[0, 1, 1]])
    with pytest.raises(KeyboardInterrupt):
        model(random_ids(model, 1, 3, seed=5), cache=cache, attention_mask=mask)
    hook.remove()
    assert not cache.has_padding
    close(model(ids[:, 4:], cache=cache), model(ids, logits_to_keep=5))


@pytest.mark.parametrize("name", ["commit", "rollback", "truncate"])
def test_an_interrupt_at_any_step_leaves_all_or_nothing(model, attention, name):
    """F9: at each operation of Python's code."""
    model = attention if name == "truncate" else model
    ids, step, lengths = random_ids(model, 1, 8), 0, []
    functions = [Cache.commit, Cache.rollback, Cache.truncate, SSM.commit]
    functions += [value for value in (getattr(Cache, "assign", None),) if value]
    interrupted = True
    while interrupted:
        step += 1
        cache = model.new_cache(1, 12)
        model(ids[:, :3], cache=cache)
        savepoint = cache.savepoint()
        if name != "commit":
            model(ids[:, 3:6], cache=cache)
        call = {
            "commit": lambda cache=cache: model(ids[:, 3:6], cache=cache),
            "rollback": lambda cache=cache, savepoint=savepoint: cache.rollback(savepoint),
            "truncate": lambda cache=cache: cache.truncate(3),
        }[name]
        interrupted = Interrupt(functions, step).around(call)
        lengths.append(cache.length)
        assert cache.length in (3, 6) and cache.counts.tolist() == [[cache.length]]
        found = model(ids[:, cache.length :], cache=cache)
        close(found, model(ids, logits_to_keep=found.shape[1]))
    assert step > 10 and set(lengths) == {3, 6}


def test_a_call_that_does_not_fit_the_cache_is_refused(model):
    cache = model.new_cache(2, 10)
    with pytest.raises(ValueError, match="the cache has 2 rows; this call has 3"):
        model(random_ids(model, 3, 2), cache=cache)
    with pytest.raises(ValueError, match=r"torch.int64 of shape \(2, 5\); .* of shape \(2, 2\)"):
        model(random_ids(model, 2, 2), cache=cache, attention_mask=torch.ones(2, 5).long())
    with pytest.raises(ValueError, match="attention_mask is torch.float32"):
        model(random_ids(model, 2, 2), cache=cache, attention_mask=torch.tensor([[0, -1e9]] * 2))
    with pytest.raises(ValueError, match="at least one token"):
        model(random_ids(model, 2, 0), cache=cache)


def test_the_cache_has_the_dtype_of_the_model(folder):
    """N9: keys and values; an SSM state is float32 in every model."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cache = nanomodels.load(folder, dtype=dtype).new_cache(1, 4)
        assert {entry.k.dtype for entry in cache.entries if isinstance(entry, KV)} == {dtype}
