"""The hand-written cache: what a decoder remembers of the tokens that it has seen.

The caller owns it: `cache = model.new_cache(batch, max_length)`, then `model(ids, cache=cache)` as
often as wanted, with any number of tokens each time. It is allocated once, written in place, and
moved on once, at the end of the model's forward; a forward that is interrupted leaves it as it was.

A call's tokens take the next `t` columns of every row. Rows may be ragged: a column can be padding
in one row and a token in another, so `positions` says for each row which token of that row stands
in a column, or -1. All masking follows from these numbers, in `place`.

It is made for inference: fill it under torch.inference_mode() or torch.no_grad(), and make it
outside inference_mode if it is to be used outside.

b batch, t tokens in this call, s columns seen so far, g key/value heads, d head width.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

PADDING = -1


@dataclass
class KV:
    """Keys and values of one attention block: k, v (b, g, max_length, d)."""

    k: torch.Tensor
    v: torch.Tensor

    def extend(self, k, v, start):
        """Write k, v (b, g, t, d) at column `start`; return views of all so far (b, g, s, d)."""
        end = start + k.shape[2]
        self.k[:, :, start:end] = k
        self.v[:, :, start:end] = v
        return self.k[:, :, :end], self.v[:, :, :end]

    def held(self, length):
        """Views of the first `length` columns, by name."""
        return {"k": self.k[:, :, :length], "v": self.v[:, :, :length]}

    def reorder(self, rows):
        self.k, self.v = self.k[rows], self.v[rows]


@dataclass
class Ids:
    """The tokens themselves, for a model that looks them up again: ids (b, max_length)."""

    ids: torch.Tensor

    def extend(self, ids, start):
        """Write ids (b, t) at column `start`; return a view of all so far (b, s)."""
        end = start + ids.shape[1]
        self.ids[:, start:end] = ids
        return self.ids[:, :end]

    def held(self, length):
        """A view of the first `length` columns, by name."""
        return {"ids": self.ids[:, :length]}

    def reorder(self, rows):
        self.ids = self.ids[rows]


@dataclass
class SSM:
    """What one Mamba-2 block keeps of a row: the last inputs of its convolution, and its state.

    window (b, w-1, c), state (b, h, p, n) float32. A call makes new ones, so that one which is
    interrupted leaves these as they were.
    """

    window: torch.Tensor
    state: torch.Tensor
    next: tuple | None = None  # both of them after the call that is under way

    def follow(self, window, state):
        """Note what comes after this call's tokens; it holds once the whole call is done."""
        self.next = window, state

    def commit(self):
        (self.window, self.state), self.next = self.next, None

    def held(self, _):
        """Window and state, by name; they are of one size for any number of tokens."""
        return {"window": self.window, "state": self.state}

    def reorder(self, rows):
        self.window, self.state = self.window[rows], self.state[rows]


@dataclass(frozen=True)
class Step:
    """Where the tokens of one call stand, and what each of them may look at."""

    start: int  # the first column that they take; in a cuda_graph.Static a tensor (1,)
    positions: torch.Tensor  # (b, t) number of the token in its row; -1 for padding
    # (b, 1, t, s) True where a token may look; None: each at all before it and at itself.
    mask: torch.Tensor | None
    real: torch.Tensor | None  # (b, t) False for padding; None: all are tokens


@dataclass(frozen=True)
class Mark:
    """Where a cache stood once: what `Cache.mark` gives and `Cache.back` takes."""

    history: object  # the cache's own then
    length: int
    ragged: bool
    tokens: torch.Tensor
    states: list  # window and state of each Mamba-2 block


class Cache:
    """One entry per block, at the block's index, and the one position that all of them share.

    An entry is a KV, an SSM, or None for a block that keeps nothing; Ids may stand behind them all.
    """

    static = False  # a cuda_graph.Static places its tokens itself

    def __init__(self, entries, batch, max_length, device):
        self.entries = entries
        self.max_length = max_length
        self.length = 0  # columns in use
        self.ragged = False  # whether any column may be padding
        self.positions = torch.full((batch, max_length), PADDING, device=device)
        self.tokens = torch.zeros((batch, 1), dtype=torch.long, device=device)  # seen, per row
        self.history = object()  # another one after each change that is not a forward's

    def extend_by(self, step):
        """Move on over the tokens of `step`; the last thing that a model's forward does."""
        self.length = step.start + step.positions.shape[1]
        self.tokens = torch.maximum(self.tokens, step.positions.amax(1, keepdim=True) + 1)
        for entry in self.entries:
            if isinstance(entry, SSM):
                entry.commit()

    def clone(self):
        """A cache of its own memory that goes on from here; neither ever touches the other."""
        return copy.deepcopy(self)

    def reorder(self, rows):
        """Keep the rows named, in that order; a row may be named several times, or not at all."""
        rows = torch.as_tensor(rows, device=self.positions.device)
        self.history = object()
        self.positions, self.tokens = self.positions[rows], self.tokens[rows]
        for entry in self.entries:
            if entry is not None:
                entry.reorder(rows)

    @property
    def recurrent(self):
        """Whether there is a Mamba-2 block: what its state has taken in, it cannot give back."""
        return any(isinstance(entry, SSM) for entry in self.entries)

    def mark(self):
        """Where the cache stands now, for `back`; nothing is copied.

        A call writes its keys behind those that are there, and replaces each Mamba-2 state by
        another, so that lengths and the states themselves are all there is to remember.
        """
        states = [(entry.window, entry.state) for entry in self.entries if isinstance(entry, SSM)]
        return Mark(self.history, self.length, self.ragged, self.tokens, states)

    @torch.inference_mode()
    def back(self, mark):
        """Forget all calls since the mark; all but these calls makes it worthless.

        Raises ValueError if the cache was truncated, reordered or restored since, or is another.
        """
        if mark.history is not self.history or mark.length > self.length:
            raise ValueError("the mark is of another cache, or from before it was changed by hand")
        self.length, self.ragged, self.tokens = mark.length, mark.ragged, mark.tokens
        self.positions[:, self.length :] = PADDING
        recurrent = [entry for entry in self.entries if isinstance(entry, SSM)]
        for entry, (window, state) in zip(recurrent, mark.states, strict=True):
            entry.window, entry.state = window, state

    @torch.inference_mode()
    def truncate(self, length):
        """Forget all but the first `length` tokens of every row.

        Raises ValueError if length is negative or more than the longest row has, or if the cache is
        recurrent.
        """
        if self.recurrent:
            raise ValueError(
                "a cache with Mamba-2 states cannot be truncated; take a snapshot() where it may "
                "have to go back to, and restore() that"
            )
        longest = int(self.tokens.max())
        if not 0 <= length <= longest:
            raise ValueError(f"cannot truncate a cache of {longest} tokens a row to {length}")
        self.history = object()
        self.positions[self.positions >= length] = PADDING
        self.tokens = self.tokens.clamp(max=length)
        used = (self.positions[:, : self.length] != PADDING).any(0).nonzero()
        self.length = int(used[-1]) + 1 if len(used) else 0

    def held(self, length):
        """Views of all that `length` columns are, by name."""
        views = {"positions": self.positions[:, :length], "tokens": self.tokens}
        for i, entry in enumerate(self.entries):
            if entry is not None:
                views |= {f"entries.{i}.{name}": view for name, view in entry.held(length).items()}
        return views

    def snapshot(self):
        """All that the cache holds now, in memory of its own: {name: tensor}."""
        views = self.held(self.length).items()
        return {name: view.clone(memory_format=torch.contiguous_format) for name, view in views}

    @torch.inference_mode()
    def restore(self, snapshot):
        """Go back to a snapshot: of this cache, or of another with such blocks and as many rows.

        Raises ValueError if the snapshot does not fit, and then changes nothing.
        """
        length = snapshot["positions"].shape[1] if "positions" in snapshot else 0
        if length > self.max_length:
            raise ValueError(f"the snapshot has {length} columns, the cache {self.max_length}")
        views = self.held(length)
        found, wanted = (
            {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
            for tensors in (snapshot, views)
        )
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"the snapshot is of another model or batch: {name} is {found.get(name)}, "
                    f"not {wanted.get(name)}"
                )
        self.history = object()
        for name, view in views.items():
            view.copy_(snapshot[name])
        self.length = length
        self.ragged = bool((self.positions[:, :length] == PADDING).any())

    def save(self, path, ids):
        """Write what the cache holds to a safetensors file, with the ids that it stands for.

        ids has a list of token ids for each row. Raises ValueError if their number is not the
        cache's. The file appears only once it is whole.
        """
        given, held = [len(row) for row in ids], self.tokens[:, 0].tolist()
        if given != held:
            raise ValueError(f"ids has {given} tokens in its rows; the cache holds {held}")
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            ids = json.dumps([list(map(int, row)) for row in ids])
            save_file(self.snapshot(), partial, metadata={"ids": ids})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def load(self, path):
        """Take over what `save` wrote, for the same model; returns its ids, a list for each row.

        Raises FileNotFoundError, or ValueError for a file that is not whole or does not fit.
        """
        try:
            with safe_open(path, framework="pt") as file:
                ids = json.loads((file.metadata() or {})["ids"])
                snapshot = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if [len(row) for row in ids] != snapshot["tokens"][:, 0].tolist():
                raise ValueError("its ids are not those that it holds")
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a cache that was saved whole ({error})") from None
        try:
            self.restore(snapshot)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return ids


def place(cache, attention_mask, batch, tokens, device):
    """Give a call's tokens their columns, their positions and their mask; returns a Step.

    cache may be None: the plain full pass. attention_mask (b, t) is 1 for a token and 0 for
    padding, on either side; None is all tokens.
    Raises ValueError for no tokens, a mask of another shape or of fractions (an additive one), a
    cache with other rows or with too little room.
    """
    if tokens == 0:
        raise ValueError("a call needs at least one token a row")
    if cache is not None and cache.static:
        return cache.place()
    if attention_mask is not None and attention_mask.is_floating_point():
        raise ValueError("attention_mask holds fractions; it must be 1 for a token, 0 for padding")
    if attention_mask is not None and attention_mask.shape != (batch, tokens):
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}; it must be {(batch, tokens)}, "
            "for the tokens of this call (the cache remembers those before)"
        )
    start = 0 if cache is None else cache.length
    end = start + tokens
    if cache is not None and batch != len(cache.positions):
        raise ValueError(f"the cache has {len(cache.positions)} rows; this call has {batch}")
    if cache is not None and end > cache.max_length:
        raise ValueError(
            f"the cache holds {cache.max_length} tokens a row, {start} are used and {tokens} more "
            f"are asked for; make it with max_length={end} or more"
        )

    ragged = attention_mask is not None or (cache is not None and cache.ragged)
    before = 0 if cache is None else cache.tokens
    real = None
    if attention_mask is None:
        positions = before + torch.arange(tokens, device=device).expand(batch, tokens)  # (b, t)
    else:
        real = attention_mask.to(device) != 0
        positions = (before + real.cumsum(1) - 1).masked_fill(~real, PADDING)  # (b, t)
    if cache is not None:
        cache.ragged = ragged
        cache.positions[:, start:end] = positions
    if not ragged:
        return Step(start, positions, None, real)
    seen = (positions if cache is None else cache.positions[:, :end])[:, None, :]
    query = positions[:, :, None]
    mask = (seen <= query) & (seen != PADDING)  # (b, t, s)
    # A padding query looks at everything: its output is unread, but a softmax over nothing is nan.
    return Step(start, positions, (mask | (query == PADDING))[:, None], real)
