"""A cache that keeps what the next prompt repeats.

The prompts of a conversation begin alike. Usually the next one begins with all that the cache holds
and only the rest is read. But a template may drop the reasoning of earlier answers, or an answer
may be encoded as other tokens than the model's, or the user takes a turn back. Then the cache goes
back to the longest prefix that is still right. Keys and values are cut at any token. The states of
Mamba-2 layers cannot be cut; the cache keeps them at marks.
"""

import copy
from contextlib import closing

import torch

from nanomodels.generation.decoding import generate_batch, prefill
from nanomodels.generation.prompts import shared

STATES = 1 << 30  # most bytes of Mamba-2 states at marks


class PrefixCache:
    """The cache of one conversation.

    It holds the first `cache.length` of `ids`, whatever is interrupted. With Mamba-2 layers it has
    marks: at the places that `answer` is given and at the end of each answer. Together they have at
    most `most_bytes`. The oldest are dropped first, but the first of all, which is the end of the
    system message, is dropped last.
    """

    def __init__(self, model, most_bytes=STATES):
        self.model, self.cache = model, model.new_cache(1, 0)
        self.ids, self.most_bytes = [], most_bytes

    def clone(self):
        """A second one of the same model. Neither ever changes the other."""
        other = copy.copy(self)
        other.cache, other.ids = self.cache.clone(), self.ids[:]
        return other

    @torch.inference_mode()
    def prepare(self, ids, max_length):
        """Go back to what `ids` begin with, and make room for max_length tokens.

        At least one token of ids is left to read. Returns the number of tokens that are reused.
        """
        length = shared(self.ids, ids[:-1])
        if length < self.cache.length:
            self.go_back(length)
        if max_length > self.cache.max_length:
            self.make_room(max_length)
        self.ids = list(ids)
        return self.cache.length

    def go_back(self, length):
        """Keep at most `length` tokens."""
        if not self.cache.has_ssm:
            self.cache.truncate(length)
        elif marks := [n for n in self.cache.marks if n <= length]:
            self.cache.truncate(max(marks))
        else:
            self.cache = self.model.new_cache(1, self.cache.max_length)

    def make_room(self, max_length):
        """Grow, to twice what is needed now, so that it is not needed often."""
        slots = max(max_length, min(2 * max_length, self.model.context_length))
        rope = getattr(self.model.config, "rope", None)
        if rope is not None and rope.depends_on_length:
            self.cache = self.model.new_cache(1, slots)  # its keys depend on max_length
        else:
            self.cache.grow(slots)

    def read(self, places, progress=None):
        """Read `ids` up to each of these lengths, and mark it.

        progress(done, total), if given, is called after each piece.
        """
        report = progress and (lambda done, _: progress(done, len(self.ids)))
        for length in sorted(places):
            if self.cache.length < length <= len(self.ids):
                prefill(self.model, [self.ids[:length]], self.cache, report)
                self.mark()

    def read_ahead(self, ids, places, progress=None):
        """Read `ids`, which the next prompt will begin with, and mark their end and the places."""
        if self.ids[: self.cache.length] != ids:
            self.prepare(ids, len(ids))
            self.read([*places, len(ids)], progress)

    def answer(self, places, settings, progress=None, on_draft=None):
        """What generate_batch yields for the `ids` that were prepared.

        places are lengths to go back to. Close the iterator before the next call.
        """
        prompt = self.ids[:]
        try:
            self.read([length for length in places if length < len(prompt)], progress)
            rows = generate_batch(
                self.model, [prompt], settings,
                cache=self.cache, progress=progress, on_draft=on_draft,
            )  # fmt: skip
            with closing(rows):
                for row in rows:
                    self.ids += [token for token in row if token is not None]
                    yield row
        finally:
            self.mark()

    def mark(self):
        """Set a mark here, and delete those that are too many."""
        if not self.cache.has_ssm:
            return
        self.cache.mark()
        marks, most = sorted(self.cache.marks), self.most_bytes // self.cache.state_bytes
        first = 1 if most > 1 else 0
        for length in marks[first : first + max(0, len(marks) - most)]:
            del self.cache.marks[length]
