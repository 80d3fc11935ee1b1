"""Many prompts in one batch: rows that have ended leave it, and new ones take their place.

    repeat:  add rows for the next prompts         one prefill for some of them, then a joined cache
             token = sample(logits)                of each row
             logits = model(token, cache=cache)

A row is what `generate` gives for its prompt alone, because rows of a batch do not depend on each
other: in float32 to rounding, in bfloat16 a near tie can go the other way.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Unpack

import torch

from nanomodels.generation.decoding import check, prefill
from nanomodels.generation.logprobs import with_logprobs
from nanomodels.generation.sampling import Sampler
from nanomodels.generation.settings import BatchSettings, GenerationSettings
from nanomodels.text.ids import list_of_ids

if TYPE_CHECKING:
    from nanomodels.checkpoint.loading import Model

MOST_BYTES = 2**30  # of the cache; while rows are added there are two
MOST_ROWS = 64
GROUP = 16  # prompts of one prefill
WINDOW = 256  # prompts that are sorted by length: those that are read together need little padding


def generate_many(
    model: "Model",
    prompts: Iterable[Iterable[int]],
    settings: GenerationSettings | None = None,
    *,
    most_bytes: int = MOST_BYTES,
    **changes: Unpack[BatchSettings],
) -> Iterator[tuple[int, int, list[int]]]:
    """Continue any number of prompts: an iterator of (prompt's number, sample, new ids).

    Each comes when it is complete, so not in the order of the prompts. prompts is a list of lists
    of ids. The cache has at most `most_bytes`, or one row. The rest is as in `generate_batch`.
    """
    settings = replace(settings or GenerationSettings(), **changes)
    prompts = [list_of_ids("a prompt", ids) for ids in prompts]
    samples = range(settings.num_samples)
    texts, complete = {}, []
    if settings.max_new_tokens == 0:
        return iter([(number, sample, []) for number in range(len(prompts)) for sample in samples])

    def take(number, sample, token):
        text = texts.setdefault((number, sample), [])
        if token is not None:
            text.append(token)
        if token is None or len(text) == limit_of(model, prompts[number], settings):
            complete.append((number, sample, texts.pop((number, sample))))
            return False
        return True

    steps = decode_many(model, prompts, settings, take, most_bytes)
    return (complete.pop(0) for _ in steps for _ in range(len(complete)))


def limit_of(model, ids, settings):
    """The most tokens that a prompt can be continued with."""
    return min(settings.max_new_tokens, model.context_length - len(ids) + 1)


@dataclass
class Row:
    """A text that is being generated."""

    number: int  # of the prompt
    sample: int
    left: int  # tokens that may come
    ended: bool = False


def decode_many(
    model: "Model",
    prompts: list[list[int]],
    settings: GenerationSettings,
    take: Callable[[int, int, int | None], bool],
    most_bytes: int = MOST_BYTES,
) -> Iterator[None]:
    """Continue prompts; yields after each decode step.

    take(number, sample, token) is given each new token, None at a stop id, and returns whether the
    text goes on. max_new_tokens must not be 0. Raises ValueError as `generate_batch` does.
    """
    settings = settings.for_model(model)
    if prompts:
        check(model, prompts, settings, None)
    if settings.draft_lookup or settings.cuda_graph:
        raise ValueError("draft_lookup and cuda_graph go with one prompt and one sample")
    return decode(Batch(model, settings, take, most_bytes), prompts)


def decode(batch, prompts):
    """The loop of `decode_many`, which has checked the arguments."""
    waiting = deque()
    for first in range(0, len(prompts), WINDOW):
        window = range(first, min(first + WINDOW, len(prompts)))
        waiting += sorted(window, key=lambda number: -len(prompts[number]))
    while waiting or batch.live:
        with torch.inference_mode():
            if len(batch.live) <= len(batch.rows) * 3 // 4:
                batch.refill(prompts, waiting)
            batch.step()
        yield


class Batch:
    """The rows that run at the same time, and their cache."""

    def __init__(self, model, settings, take, most_bytes):
        self.model, self.settings, self.take = model, settings, take
        self.most_bytes, self.rows = most_bytes, []
        self.cache = self.sampler = self.logits = None
        probe = model.new_cache(1, 1)
        self.state_bytes = probe.state_bytes
        total = sum(tensor.nbytes for tensor in probe.tensors(1).values())
        self.slot_bytes = total - self.state_bytes
        rope = getattr(getattr(model, "model", model), "rope", None)
        # Where keys depend on the cache's size, a row cannot move to another.
        self.can_join = rope is None or not rope.depends_on_length

    @property
    def live(self):
        """The numbers of the rows that have not ended."""
        return [i for i, row in enumerate(self.rows) if not row.ended]

    def refill(self, prompts, waiting):
        """Drop the rows that have ended, and add rows for prompts that wait, as many as fit."""
        while waiting and (self.can_join or not self.live):
            numbers = self.next_group(prompts, waiting)
            if not numbers:
                break
            self.add([(number, prompts[number]) for number in numbers])
            if len(self.live) + self.settings.num_samples > MOST_ROWS:
                break
        if len(self.live) <= len(self.rows) // 2:
            self.drop()

    def next_group(self, prompts, waiting):
        """Take the next prompts for which there is room; one if there are no rows."""
        numbers, samples = [], self.settings.num_samples
        live = self.live
        used = max((self.used(i) for i in live), default=0)
        left = max((self.rows[i].left for i in live), default=0)
        while waiting and len(numbers) < GROUP:
            ids = prompts[waiting[0]]
            used = max(used, len(ids))
            left = max(left, limit_of(self.model, ids, self.settings))
            count = len(live) + (len(numbers) + 1) * samples
            size = count * ((used + left) * self.slot_bytes + self.state_bytes)
            if count > samples and (count > MOST_ROWS or size > self.most_bytes):
                break
            numbers.append(waiting.popleft())
        return numbers

    def used(self, i):
        """The tokens in the cache of a row."""
        return int(self.cache.counts[i])

    def add(self, group):
        """Read some prompts, and add their rows; group: (number, ids)."""
        model, samples, live = self.model, self.settings.num_samples, self.live
        prompts = [ids for _, ids in group]
        limits = [limit_of(model, ids, self.settings) for ids in prompts]
        new = [
            Row(number, sample, limit)
            for (number, _), limit in zip(group, limits, strict=True)
            for sample in range(samples)
        ]
        longest = max(map(len, prompts))
        copies = [i for i in range(len(group)) for _ in range(samples)]
        cache = model.new_cache(len(group), longest + (0 if live else max(limits)))
        logits = prefill(model, prompts, cache)[copies, : self.settings.vocab_size]
        sampler = Sampler(self.settings, prompts, logits.device, getattr(model, "share", None))
        if live:
            used = max(longest, *(self.used(i) for i in live))
            left = max(row.left for row in [*new, *(self.rows[i] for i in live)])
            cache = self.cache.joined(live, cache, copies, used + left)
            logits = torch.cat((self.logits[live], logits))
            sampler = self.sampler.joined(live, sampler)
        elif samples > 1:
            cache.reorder(copies)
        self.rows = [self.rows[i] for i in live] + new
        self.cache, self.logits, self.sampler = cache, logits, sampler

    def drop(self):
        """Drop the rows that have ended."""
        live = self.live
        if live and len(live) < len(self.rows):
            self.cache.reorder(live)
            self.logits, self.sampler = self.logits[live], self.sampler.kept(live)
        self.rows = [self.rows[i] for i in live]

    def step(self):
        """Sample a token for each row; compute the next logits if any row goes on."""
        settings, tokens = self.settings, self.sampler(self.logits)  # (b,)
        ids = with_logprobs(tokens, self.logits, settings.logprobs)
        for row, token in zip(self.rows, ids, strict=True):
            if row.ended:
                continue
            row.left -= 1
            is_end = token in settings.stop_ids
            goes_on = self.take(row.number, row.sample, None if is_end else token)
            row.ended = is_end or not goes_on or not row.left
        if self.live:
            logits = self.model(tokens[:, None], cache=self.cache, logits_to_keep=1)
            self.logits = logits[:, -1, : settings.vocab_size]
