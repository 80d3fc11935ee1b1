"""The cache under random operations: after each, every row continues as if it were fed alone.

A machine holds a few caches of one model, and for each the text that it should hold. Each step
changes one cache. Then all caches are compared: a copy of the cache is fed one more token a row,
and the logits must be those of the row alone, without a cache. All models are in float32.
"""

from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial

import hypothesis
import pytest
import torch
from compare import SAMPLING
from effort import THOROUGH
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from reference import LATEST, random_nanochat, random_nemotron, random_nemotron_h

import nanomodels

# The rope types dynamic and longrope depend on the cache's length, so no seed has them.
MAKE = {
    "nanochat": partial(random_nanochat, 3),
    "nemotron": partial(random_nemotron, 5),
    "nemotron_h": partial(random_nemotron_h, 8),
    "nanochat_2026": None,
}
LIMIT = 1e-5  # of the largest logit
SLOTS = 48  # of the largest cache
MOST_CACHES, MOST_ROWS, MOST_TOKENS = 3, 4, 7
# At most 40 steps an example; thorough, more than 20,000 steps in all.
SETTINGS = {
    "max_examples": 180 if THOROUGH else 8,
    "stateful_step_count": 40,
    "derandomize": True,
    "deadline": None,
    "print_blob": False,
    "suppress_health_check": list(HealthCheck),
}
token_ids = st.integers(0, 2**31)  # taken modulo the vocabulary
sizes = st.integers(1, MOST_TOKENS)


@pytest.fixture(scope="module", params=MAKE)
def model(request, tmp_path_factory):
    folder, make = LATEST, MAKE[request.param]
    if make is not None:
        folder = tmp_path_factory.mktemp(request.param)
        make().save_pretrained(folder)
    return nanomodels.load(folder, dtype=torch.float32)


@dataclass
class Held:
    """A cache, and what it should hold."""

    cache: object
    rows: list  # the ids of each row
    savepoint: tuple | None = None  # (the valid savepoint, rows)
    invalid: list = field(default_factory=list)  # other savepoints
    marks: set = field(default_factory=set)  # lengths

    def invalidate(self):
        if self.savepoint is not None:
            self.invalid = [*self.invalid[-2:], self.savepoint[0]]
            self.savepoint = None


class Alone:
    """What the model computes for a row alone, and the largest difference from that so far."""

    def __init__(self, model):
        self.model, self.largest, self.steps = model, 0.0, 0
        self.logits = lru_cache(20_000)(self.logits)

    def logits(self, row):
        """Logits (tokens, vocab) of a tuple of ids, without a cache."""
        return self.model(torch.tensor([row]))[0]

    def compare(self, found, row):
        """found (t, vocab) are the logits after the last t tokens of the row."""
        if len(found):
            expected = self.logits(tuple(row))[-len(found) :]
            difference = ((found - expected).abs().max() / expected.abs().max()).item()
            assert difference <= LIMIT
            self.largest = max(self.largest, difference)


def layers(model):
    return getattr(model, "model", model).layers


@contextmanager
def interrupted(model, calls):
    """Raise KeyboardInterrupt after the given number of calls of layers; 0: never."""
    left = calls

    def hook(*_):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    hooks = [layer.register_forward_hook(hook) for layer in layers(model)] if calls else []
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def machine(model, alone, folder):
    """The class of machines for a model; files are written to `folder`."""
    vocab = model.config.vocab_size

    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.held, self.snapshots = [], []  # of Held, of (snapshot, rows)
            self.no_gradients = torch.inference_mode()
            self.no_gradients.__enter__()

        def teardown(self):
            self.no_gradients.__exit__(None, None, None)

        def pick(self, data):
            """One of the caches."""
            return self.held[data.draw(st.integers(0, len(self.held) - 1), "cache")]

        def interrupt(self, data, times=1):
            """After how many calls of layers to interrupt."""
            return data.draw(st.integers(1, times * len(layers(model))), "calls of layers")

        def piece(self, data, held):
            """ids (b, t), attention_mask or None, and the new tokens of each row."""
            b, room = len(held.rows), held.cache.max_length - held.cache.length
            t = min(data.draw(sizes, "tokens"), room)
            ids = data.draw(st.lists(token_ids, min_size=b * t, max_size=b * t), "ids")
            ids = torch.tensor(ids).view(b, t) % vocab
            kind = data.draw(st.sampled_from(["none", "left", "right", "middle", "any"]), "padding")
            if kind == "none":
                return ids, None, ids.tolist()
            counts = data.draw(st.lists(st.integers(0, t), min_size=b, max_size=b), "counts")
            n, slots = torch.tensor(counts)[:, None], torch.arange(t)
            masks = {"left": slots >= t - n, "right": slots < n}
            masks["middle"] = (slots < (n + 1) // 2) | (slots >= t - n // 2)
            masks["any"] = ids % 3 > 0
            mask = masks[kind]
            return ids, mask, [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]

        def feed(self, data, held):
            """Feed a piece, and compare its logits."""
            ids, mask, new = self.piece(data, held)
            logits = model(ids, cache=held.cache, attention_mask=mask)
            held.rows = [row + more for row, more in zip(held.rows, new, strict=True)]
            for i, row in enumerate(held.rows):
                alone.compare(logits[i] if mask is None else logits[i][mask[i]], row)

        @initialize(batch=st.integers(1, MOST_ROWS), slots=st.integers(8, SLOTS))
        def begin(self, batch, slots):
            self.held = [Held(model.new_cache(batch, slots), [[] for _ in range(batch)])]

        @rule(data=st.data())
        def new_cache(self, data):
            batch = data.draw(st.sampled_from([1, 1, 2, 3]), "rows")
            slots = data.draw(st.integers(8, SLOTS), "slots")
            self.held.append(Held(model.new_cache(batch, slots), [[] for _ in range(batch)]))
            del self.held[:-MOST_CACHES]

        @rule(data=st.data())
        def feed_a_piece(self, data):
            held = self.pick(data)
            if held.cache.length < held.cache.max_length:
                self.feed(data, held)

        @rule(data=st.data())
        def feed_an_interrupted_piece(self, data):
            held = self.pick(data)
            if held.cache.length < held.cache.max_length:
                ids, mask, _ = self.piece(data, held)
                before = held.cache.length, held.cache.has_padding, held.cache.counts.tolist()
                calls = self.interrupt(data)
                with interrupted(model, calls), pytest.raises(KeyboardInterrupt):
                    model(ids, cache=held.cache, attention_mask=mask)
                after = held.cache.length, held.cache.has_padding, held.cache.counts.tolist()
                assert before == after

        @rule(data=st.data())
        def feed_too_much(self, data):
            held = self.pick(data)
            b, t = len(held.rows), held.cache.max_length - held.cache.length + 1
            with pytest.raises(ValueError, match="slots a row"):
                model(torch.zeros(b, t, dtype=torch.long), cache=held.cache)

        @rule(data=st.data())
        def clone(self, data):
            held = self.pick(data)
            self.held.append(Held(held.cache.clone(), held.rows, marks={*held.marks}))
            self.held[-1].invalid = [held.savepoint[0]] if held.savepoint else []
            del self.held[:-MOST_CACHES]

        @rule(data=st.data())
        def reorder(self, data):
            held = self.pick(data)
            row = st.integers(0, len(held.rows) - 1)
            order = data.draw(st.lists(row, min_size=1, max_size=MOST_ROWS), "order")
            held.cache.reorder(order)
            held.rows, held.marks = [held.rows[i] for i in order], set()
            held.invalidate()

        @rule(data=st.data())
        def mark(self, data):
            held = self.pick(data)
            if held.cache.has_padding:
                with pytest.raises(ValueError, match="padding cannot have marks"):
                    held.cache.mark()
            else:
                held.cache.mark()
                held.marks.add(held.cache.length)

        @rule(data=st.data())
        def grow(self, data):
            held = self.pick(data)
            slots = data.draw(st.integers(1, SLOTS), "slots")
            before = held.cache.max_length
            held.cache.grow(slots)
            assert held.cache.max_length == max(before, slots)

        @rule(data=st.data())
        def truncate(self, data):
            held = self.pick(data)
            lengths = st.integers(0, max(map(len, held.rows)))
            if held.marks:
                lengths |= st.sampled_from(sorted(held.marks))
            length = data.draw(lengths, "length")
            if held.cache.has_ssm and length not in held.marks:
                with pytest.raises(ValueError, match="cannot be truncated"):
                    held.cache.truncate(length)
            else:
                held.cache.truncate(length)
                held.rows = [row[:length] for row in held.rows]
                held.marks = {n for n in held.marks if n <= length}
                held.invalidate()

        @rule(data=st.data())
        def snapshot(self, data):
            held = self.pick(data)
            self.snapshots = [*self.snapshots[-2:], (held.cache.snapshot(), held.rows)]

        @precondition(lambda self: self.snapshots)
        @rule(data=st.data())
        def restore(self, data):
            held = self.pick(data)
            snapshot, rows = self.snapshots[
                data.draw(st.integers(0, len(self.snapshots) - 1), "snapshot")
            ]
            fits = snapshot["positions"].shape[1] <= held.cache.max_length
            if fits and len(rows) == len(held.rows):
                held.cache.restore(snapshot)
                held.rows, held.marks = rows, set()
                held.invalidate()
            else:
                with pytest.raises(ValueError, match="the snapshot"):
                    held.cache.restore(snapshot)

        @rule(data=st.data())
        def save_and_load(self, data):
            held, more = self.pick(data), data.draw(st.integers(0, 9), "more slots")
            held.cache.save(folder / "saved", held.rows)
            cache = model.new_cache(len(held.rows), held.cache.length + more)
            assert cache.load(folder / "saved") == held.rows
            self.held.append(Held(cache, held.rows))
            del self.held[:-MOST_CACHES]

        @rule(data=st.data())
        def savepoint(self, data):
            held = self.pick(data)
            held.invalidate()
            held.savepoint = held.cache.savepoint(), held.rows

        @rule(data=st.data())
        def rollback(self, data):
            held = self.pick(data)
            if held.savepoint is not None:
                held.cache.rollback(held.savepoint[0])
                held.rows = held.savepoint[1]
                held.marks = {n for n in held.marks if n <= held.cache.length}
            for savepoint in held.invalid:
                with pytest.raises(ValueError, match="the savepoint is not valid"):
                    held.cache.rollback(savepoint)

        @rule(data=st.data())
        def generate(self, data):
            """With and without drafts; to the end, closed early, or interrupted."""
            held = next((h for h in self.held if len(h.rows) == 1 and not h.cache.has_padding), 0)
            room = held and held.cache.max_length - held.cache.length
            if room < 2:
                return
            row = held.rows[0]
            new = data.draw(st.lists(token_ids, min_size=1, max_size=min(6, room - 1)), "ids")
            new = [i % vocab for i in new]
            repeat = data.draw(st.booleans(), "repeat")  # then a draft is found
            prompt = row + (row[: len(new)] if repeat and row else new)
            most = min(data.draw(st.integers(1, 8), "new tokens"), room - len(prompt) + len(row))
            options = SAMPLING[data.draw(st.sampled_from(sorted(SAMPLING)), "sampling")]
            options = {"max_new_tokens": most, "seed": 5, "stop_ids": [], **options}
            expected = list(nanomodels.generate(model, prompt, **options))
            if data.draw(st.booleans(), "stop"):
                stop = expected[data.draw(st.integers(0, most - 1), "which")]
                options["stop_ids"], expected = [stop], expected[: expected.index(stop)]
            options["draft_lookup"] = data.draw(st.sampled_from([0, 1, 4]), "drafts")
            end = data.draw(st.sampled_from(["end", "close", "interrupt"]), "end")
            calls = self.interrupt(data, most) if end == "interrupt" else 0
            found, ended = [], False
            with interrupted(model, calls), suppress(KeyboardInterrupt):
                rows = nanomodels.generate_batch(model, [prompt], cache=held.cache, **options)
                with closing(rows):
                    for (token,) in rows:
                        if token is not None:
                            found.append(token)
                        if end == "close" and len(found) == 2:
                            break
                    else:
                        ended = True
            assert found == (expected if ended else expected[: len(found)])
            text, length = prompt + found, held.cache.length
            if end == "end":
                assert length == len(text) - (not options["stop_ids"] or len(found) == most)
            assert length <= len(text)
            held.rows = [text[:length]]
            if options["draft_lookup"]:  # the drafts may have taken savepoints of their own
                held.savepoint, held.invalid = None, []

        @invariant()
        def each_row_continues_as_if_it_were_alone(self):
            alone.steps += 1
            for held in self.held:
                assert held.cache.counts[:, 0].tolist() == [len(row) for row in held.rows]
                assert {*held.cache.marks} == held.marks
                if held.cache.length < held.cache.max_length:
                    copy = held.cache.clone()
                else:
                    copy = model.new_cache(len(held.rows), held.cache.length + 1)
                    copy.restore(held.cache.snapshot())
                logits = model(torch.ones(len(held.rows), 1, dtype=torch.long), cache=copy)
                for row, found in zip(held.rows, logits, strict=True):
                    alone.compare(found, [*row, 1])

    return Machine


def test_after_any_operations_each_row_continues_as_if_it_were_alone(model, tmp_path):
    alone = Alone(model)
    settings = hypothesis.settings(**SETTINGS)
    run_state_machine_as_test(machine(model, alone, tmp_path), settings=settings)
    print(f"{alone.steps} steps, largest difference {alone.largest:.1e} of the largest logit")
    assert alone.steps >= SETTINGS["max_examples"] * 20
    assert alone.largest > 0
