"""The cache: what a decoder keeps of the tokens that it has seen.

The caller owns it: `cache = model.new_cache(batch, max_length)`, then `model(ids, cache=cache)` as
often as wanted, with any number of tokens each time. Keys and values are allocated once.

Each forward call is a transaction:

    call = cache.begin(b, t)       the next t slots of every row are this call's
    kv.extend(k, v, ...)           a layer writes its keys and values into these slots
    ssm.stage(window, state)       a Mamba-2 layer stages its new state beside the old one
    cache.commit(call)             the call's tokens become part of the cache

A call that is interrupted before its commit changes nothing. Slots at or after `length` are free,
so what is written there does not count.

A slot holds one token or padding of each row: `positions[row, slot]` is the index of the token in
its row, or -1 for padding. `begin` computes the mask from these numbers.

Five ways to keep a state and go back to it:

    savepoint, rollback    undo all calls since the last savepoint; copies nothing
    mark, truncate         keep the first n tokens of each row; with Mamba-2 states, n has a mark
    snapshot, restore      copy all that is held, as often as wanted; also into another cache
    save, load             a snapshot in a file, with the token ids
    clone                  a second cache; copies all memory, the free slots too

Fill a cache under torch.inference_mode() or torch.no_grad(). If it is used outside inference_mode,
make it outside, too. There is no gradient through a cache: train without one.

Shapes: b batch, t tokens in this call, s cache slots with this call's, g key/value heads, d head
width; of Mamba-2: w convolution width, c channels, h heads, p head width, n state width."""

import copy
import json
import tempfile
from collections.abc import Collection, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

PADDING = -1
# What a file that is no cache, or a changed one, can raise.
READING_ERRORS = (
    SafetensorError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
    ArithmeticError,
)


@dataclass
class KV:
    """Keys and values of one attention layer: k, v (b, g, max_length, d)."""

    k: torch.Tensor
    v: torch.Tensor

    def extend(self, k, v, first_slot):
        """Write k, v (b, g, t, d) from `first_slot` on; return views of all so far (b, g, s, d)."""
        end = first_slot + k.shape[2]
        self.k[:, :, first_slot:end] = k
        self.v[:, :, first_slot:end] = v
        return self.k[:, :, :end], self.v[:, :, :end]

    def tensors(self, length):
        """Views of the first `length` slots, by name."""
        return {"k": self.k[:, :, :length], "v": self.v[:, :, :length]}

    def reorder(self, rows):
        self.k, self.v = self.k[rows], self.v[rows]

    def joined(self, parts, max_length):
        """An entry with rows of several, as `Cache.joined`; parts: (entry, rows, slots)."""
        k, v = (
            join([(getattr(entry, name), *where) for entry, *where in parts], max_length)
            for name in ("k", "v")
        )
        return KV(k, v)

    def grow(self, slots):
        """Add free slots."""
        self.k = F.pad(self.k, (0, 0, 0, slots))
        self.v = F.pad(self.v, (0, 0, 0, slots))


@dataclass
class Ids:
    """Token ids, for a model that needs the earlier ones again: ids (b, max_length)."""

    ids: torch.Tensor
    vocab_size: int

    def check(self, ids):
        """Raise ValueError for ids that are not in the vocabulary."""
        if not ((ids >= 0) & (ids < self.vocab_size)).all():
            raise ValueError(
                f"the snapshot has ids that are not in the vocabulary of {self.vocab_size}"
            )

    def extend(self, ids, first_slot):
        """Write ids (b, t) from `first_slot` on; return a view of all so far (b, s)."""
        end = first_slot + ids.shape[1]
        self.ids[:, first_slot:end] = ids
        return self.ids[:, :end]

    def tensors(self, length):
        """A view of the first `length` slots, by name."""
        return {"ids": self.ids[:, :length]}

    def reorder(self, rows):
        self.ids = self.ids[rows]

    def joined(self, parts, max_length):
        """An entry with rows of several, as of KV."""
        parts = [(entry.ids[:, None, :, None], rows, slots) for entry, rows, slots in parts]
        return Ids(join(parts, max_length)[:, 0, :, 0], self.vocab_size)

    def grow(self, slots):
        """Add free slots."""
        self.ids = F.pad(self.ids, (0, slots))


@dataclass
class SSM:
    """What one Mamba-2 layer keeps: the last inputs of its convolution, and its state.

    window (b, w-1, c) in the model's dtype, state (b, h, p, n) in float32. Their size does not
    depend on the number of tokens.
    """

    window: torch.Tensor
    state: torch.Tensor
    staged: tuple | None = None  # the window and state of a call that is not committed

    def stage(self, window, state):
        """Keep the new window and state aside, for commit()."""
        self.staged = window, state

    def commit(self):
        """The entry after the call, with what is staged. This one keeps its window and state."""
        committed, self.staged = SSM(*self.staged), None
        return committed

    def tensors(self, _):
        """Window and state, by name."""
        return {"window": self.window, "state": self.state}

    def reorder(self, rows):
        self.window, self.state = self.window[rows], self.state[rows]

    def joined(self, parts, max_length):
        """An entry with rows of several, as of KV."""
        windows, states = zip(
            *((e.window[rows], e.state[rows]) for e, rows, _ in parts), strict=True
        )
        return SSM(torch.cat(windows), torch.cat(states))


@dataclass(frozen=True)
class Call:
    """One forward call: the slots and positions of its tokens, and what each of them may see."""

    first_slot: int
    positions: torch.Tensor  # (b, t) index of each token in its row; -1 for padding
    # (b, 1, t, s), True where a token may look. None: each sees itself and all before it.
    mask: torch.Tensor | None
    is_token: torch.Tensor | None  # (b, t), False for padding; None: all are tokens
    max_length: int  # slots of the cache; without a cache, t

    @cached_property
    def packing(self):
        """(b, t) the order of `pack`: a row's tokens first, its padding last; None: no padding."""
        return None if self.is_token is None else (~self.is_token).argsort(dim=1, stable=True)

    def pack(self, x):
        """x (b, t, c) with each row's tokens first and zeros after them."""
        if self.is_token is None:
            return x
        return (x * self.is_token[..., None]).take_along_dim(self.packing[..., None], 1)

    def unpack(self, x):
        """The inverse of `pack`, for the tokens of x (b, t, c)."""
        if self.is_token is None:
            return x
        return x.take_along_dim(self.packing.argsort(1)[..., None], 1)

    def last(self, x, count):
        """The last `count` convolution inputs of each row (b, count, c), without padding.

        x (b, count + t, c): `count` inputs from before this call, then this call's, packed.
        """
        if self.is_token is None:
            return x[:, x.shape[1] - count :].clone()
        index = self.is_token.sum(1, keepdim=True) + torch.arange(count, device=x.device)
        return x.take_along_dim(index[..., None], 1)


class NoCache:
    """Used if no cache is given: the call starts at slot 0, and nothing is kept."""

    def __init__(self, layers, device):
        self.entries, self.device = [None] * layers, device

    def begin(self, batch, tokens, attention_mask=None):
        """As Cache.begin."""
        check_call(batch, tokens, attention_mask)
        positions, is_token = number_tokens(0, batch, tokens, attention_mask, self.device)
        mask = None if is_token is None else causal_mask(positions, positions)
        return Call(0, positions, mask, is_token, tokens)

    def commit(self, call):
        pass


class Cache:
    """One entry for each layer, at the layer's index, and the slots that all of them share.

    An entry is a KV, an SSM, or None for a layer without state. nanochat_2026 adds one more entry
    at the end, the token ids. config is the model's, and weight its embedding, whose dtype and
    device the cache has.
    """

    def __init__(self, entries, batch, max_length, config, weight):
        device = weight.device
        self.config, self.dtype = config, weight.dtype
        self.entries = entries
        self.max_length = max_length
        self.length = 0  # slots in use
        self.has_padding = False  # whether a slot in use may be padding
        self.positions = torch.full((batch, max_length), PADDING, device=device)
        self.counts = torch.zeros((batch, 1), dtype=torch.long, device=device)  # tokens of each row
        # Which savepoint is valid: the one with the same object.
        self.version = object()
        self.marks = {}  # length: the entries at that length; for `truncate` with SSM states

    def __repr__(self):
        batch, dtype = len(self.positions), str(self.dtype).removeprefix("torch.")
        size = sum(tensor.nbytes for tensor in self.tensors(self.max_length).values())
        return (
            f"<Cache: batch {batch}, {self.length} of {self.max_length} slots used, "
            f"{dtype} on {self.positions.device}, {size / 1e6:.1f} MB>"
        )

    def begin(self, batch: int, tokens: int, attention_mask: torch.Tensor | None = None) -> Call:
        """Give the tokens of a call their slots, positions and mask.

        attention_mask (b, t) is 1 for a token and 0 for padding, on either side; None: all tokens.
        Returns a Call. Raises ValueError for no tokens, a mask of another shape or dtype, another
        number of rows, too few free slots, or a cache that only inference_mode may change.
        """
        check_call(batch, tokens, attention_mask)
        check_inference_mode(self.positions)
        start, end = self.length, self.length + tokens
        if batch != len(self.positions):
            raise ValueError(f"the cache has {len(self.positions)} rows; this call has {batch}")
        if end > self.max_length:
            raise ValueError(
                f"the cache has {self.max_length} slots a row, {start} are used and {tokens} "
                f"more are needed; make it with max_length={end} or more"
            )
        device = self.positions.device
        positions, is_token = number_tokens(self.counts, batch, tokens, attention_mask, device)
        self.positions[:, start:end] = positions
        padded = self.has_padding or is_token is not None
        mask = causal_mask(positions, self.positions[:, :end]) if padded else None
        return Call(start, positions, mask, is_token, self.max_length)

    def commit(self, call: Call) -> None:
        """Make a call's tokens part of the cache, after the model's last layer."""
        self.assign(
            length=call.first_slot + call.positions.shape[1],
            has_padding=self.has_padding or call.is_token is not None,
            counts=torch.maximum(self.counts, call.positions.amax(1, keepdim=True) + 1),
            entries=[e.commit() if isinstance(e, SSM) else e for e in self.entries],
        )

    def assign(self, **attributes):
        """Set several attributes at once: an interrupt comes before all of them or after."""
        vars(self).update(attributes)  # one call of C code, which Python does not interrupt

    # --- Ways to go back ---

    @property
    def has_ssm(self) -> bool:
        """Whether any layer has an SSM state, which cannot be truncated."""
        return any(isinstance(entry, SSM) for entry in self.entries)

    def savepoint(self) -> "Savepoint":
        """A point for `rollback`, until the next savepoint. Nothing is copied.

        Later calls write their keys into later slots and replace each SSM entry by a new one. So
        the length and the list of entries are enough.
        """
        self.version = object()
        return Savepoint(self.version, self.length, self.has_padding, self.counts, self.entries)

    @torch.inference_mode()
    def rollback(self, savepoint: "Savepoint") -> None:
        """Undo all calls since the savepoint; again and again, if wanted.

        Raises ValueError if it is another cache's, if there is a newer savepoint, or if the cache
        was truncated, reordered or restored since.
        """
        if savepoint.version is not self.version:
            raise ValueError(
                "the savepoint is not valid: it is another cache's, there is a newer one, or the "
                "cache was truncated, reordered or restored"
            )
        self.assign(
            length=savepoint.length,
            has_padding=savepoint.has_padding,
            counts=savepoint.counts,
            entries=savepoint.entries,
            marks=self.marks_to(savepoint.length),
        )
        self.positions[:, self.length :] = PADDING

    @property
    def state_bytes(self) -> int:
        """Bytes of the SSM states of one length: what a mark keeps in memory."""
        layers = [entry for entry in self.entries if isinstance(entry, SSM)]
        return sum(entry.window.nbytes + entry.state.nbytes for entry in layers)

    def mark(self) -> None:
        """Keep the SSM states of this length, so that `truncate` can go back to it.

        Nothing is copied. A mark ends when it is deleted from `marks`, or when the cache goes back
        to before it, is reordered or restored. A clone has marks of its own.
        Raises ValueError if the cache has padding.
        """
        if self.has_padding:
            raise ValueError("a cache with padding cannot have marks; take a savepoint()")
        self.marks[self.length] = self.entries

    def marks_to(self, length):
        """The marks of this length and of smaller ones."""
        return {n: entries for n, entries in self.marks.items() if n <= length}

    @torch.inference_mode()
    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of every row.

        Raises ValueError if length is negative, if it is more than the longest row has, or if the
        cache has SSM states and no mark there.
        """
        if self.has_ssm and length not in self.marks:
            raise ValueError(
                f"a cache with Mamba-2 states cannot be truncated to {length}, only to a mark: "
                f"{sorted(self.marks) or 'there is none'}; set one with mark() on the way"
            )
        longest = int(self.counts.max())
        if not 0 <= length <= longest:
            raise ValueError(f"cannot truncate to {length}: the longest row has {longest} tokens")
        used = self.positions[:, : self.length]
        kept = ((used != PADDING) & (used < length)).any(0).nonzero()
        self.assign(
            version=object(),
            length=int(kept[-1]) + 1 if len(kept) else 0,
            counts=self.counts.clamp(max=length),
            entries=self.marks.get(length, self.entries),
            marks=self.marks_to(length),
        )
        self.positions[self.positions >= length] = PADDING

    def tensors(self, length: int) -> dict[str, torch.Tensor]:
        """Views of all tensors, cut to the first `length` slots, by name."""
        views = {"positions": self.positions[:, :length], "counts": self.counts}
        for i, entry in enumerate(self.entries):
            if entry is not None:
                named = entry.tensors(length)
                views |= {f"entries.{i}.{name}": view for name, view in named.items()}
        return views

    def snapshot(self) -> dict[str, torch.Tensor]:
        """A copy of all that the cache holds: {name: tensor}."""
        views = self.tensors(self.length).items()
        return {name: view.clone(memory_format=torch.contiguous_format) for name, view in views}

    @torch.inference_mode()
    def restore(self, snapshot: dict[str, torch.Tensor]) -> None:
        """Take over a snapshot of this cache, or of another of the same model and batch.

        Raises ValueError if the snapshot does not fit, and then changes nothing.
        """
        length = snapshot["positions"].shape[1] if "positions" in snapshot else 0
        if length > self.max_length:
            raise ValueError(f"the snapshot has {length} slots, the cache {self.max_length}")
        views = self.tensors(length)
        given, wanted = (
            {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
            for tensors in (snapshot, views)
        )
        for name in sorted(given.keys() | wanted.keys()):
            if given.get(name) != wanted.get(name):
                raise ValueError(
                    f"the snapshot is of another model or batch: {name[:80]!r} is "
                    f"{given.get(name)}, not {wanted.get(name)}"
                )
        check_positions(snapshot["positions"], snapshot["counts"])
        for i, entry in enumerate(self.entries):
            if isinstance(entry, Ids):
                entry.check(snapshot[f"entries.{i}.ids"])
        self.version, self.marks = object(), {}
        for name, view in views.items():
            view.copy_(snapshot[name])
        self.length = length
        self.has_padding = bool((self.positions[:, :length] == PADDING).any())

    def save(self, path: str | Path, ids: Iterable[Collection[int]], notes: str = "") -> None:
        """Write a snapshot to a safetensors file, with the token ids that it was made from.

        ids has one list for each row; notes is a text that is kept with them. The file appears only
        when it is complete; an older one is replaced. Raises ValueError if the ids are not as many
        as the cache holds, or if the path is something else than a file; OSError if the file cannot
        be written.
        """
        given, held = [len(row) for row in ids], self.counts[:, 0].tolist()
        if given != held:
            raise ValueError(f"ids has {given} tokens in its rows; the cache holds {held}")
        ids = json.dumps([list(map(int, row)) for row in ids])
        write_tensors(path, self.snapshot(), {"ids": ids, "notes": notes})

    def load(self, path: str | Path) -> list[list[int]]:
        """Restore what `save` wrote, for the same model; return its ids, one list for each row.

        Raises FileNotFoundError, or ValueError for a file that is incomplete, contradicts itself or
        does not fit; then the cache is as it was.
        """
        saved = read_saved(path)
        try:
            self.restore(saved.snapshot)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return saved.ids

    @torch.no_grad()
    def grow(self, max_length: int) -> None:
        """Make room for max_length tokens a row, if there is less. All that is held stays.

        Not for the rope types dynamic and longrope: their keys depend on max_length.
        """
        more = max_length - self.max_length
        if more <= 0:
            return
        for entry in self.entries:
            if isinstance(entry, (KV, Ids)):
                entry.grow(more)
        self.positions = F.pad(self.positions, (0, more), value=PADDING)
        self.max_length = max_length

    def clone(self) -> "Cache":
        """A deep copy. Neither cache ever changes the other."""
        return copy.deepcopy(self)

    @torch.no_grad()
    def joined(
        self, rows: list[int], other: "Cache", others: list[int], max_length: int
    ) -> "Cache":
        """A new cache with `rows` of this one, then the rows `others` of another of the same model.

        Each row's tokens are in its first slots. max_length must have room for the longest row. Not
        for the rope types dynamic and longrope, as `grow`.
        """
        parts = [(self, torch.tensor(rows)), (other, torch.tensor(others))]
        parts = [(cache, kept.to(cache.positions.device)) for cache, kept in parts]
        slots = [slots_of_tokens(cache, kept) for cache, kept in parts]
        new = copy.copy(self)
        new.counts = torch.cat([cache.counts[kept] for cache, kept in parts])
        new.length, new.max_length = int(new.counts.max()), max_length
        index = torch.arange(max_length, device=new.counts.device)
        new.positions = index.expand(len(new.counts), -1).masked_fill(index >= new.counts, PADDING)
        new.has_padding = bool((new.counts < new.length).any())
        new.version, new.marks = object(), {}
        new.entries = [
            mine
            and mine.joined(
                [(mine, parts[0][1], slots[0]), (its, parts[1][1], slots[1])], max_length
            )
            for mine, its in zip(self.entries, other.entries, strict=True)
        ]
        return new

    def reorder(self, rows: Iterable[int] | torch.Tensor) -> None:
        """Keep the given rows, in that order. A row may be given several times, or not at all."""
        rows = torch.as_tensor(rows, device=self.positions.device)
        self.version, self.marks = object(), {}
        self.positions, self.counts = self.positions[rows], self.counts[rows]
        for entry in self.entries:
            if entry is not None:
                entry.reorder(rows)


@dataclass(frozen=True)
class Savepoint:
    """What `Cache.savepoint` returns and `Cache.rollback` takes."""

    version: object  # the cache's version at that time
    length: int
    has_padding: bool
    counts: torch.Tensor
    entries: list


def slots_of_tokens(cache, rows):
    """The slots (b, s) of the tokens of some rows, in order; s tokens has the longest."""
    positions = cache.positions[rows, : cache.length]
    order = (positions == PADDING).byte().argsort(dim=1, stable=True)
    return order[:, : int(cache.counts[rows].max())]


def join(parts, max_length):
    """Rows of several tensors (b, g, s, d) with these slots first: (b, g, max_length, d).

    parts: (tensor, rows, slots (b, s) of each row).
    """
    first, rows, _ = parts[0]
    count = sum(len(rows) for _, rows, _ in parts)
    joined, start = first.new_zeros(count, first.shape[1], max_length, first.shape[3]), 0
    for tensor, rows, slots in parts:
        end, index = start + len(rows), slots[:, None, :, None]
        joined[start:end, :, : slots.shape[1]] = tensor[rows].take_along_dim(index, 2)
        start = end
    return joined


# --- What a call needs ---


def cache_for_call(cache, config, layers, weight):
    """The cache that a model uses in a call: the given one, or a NoCache if that is None.

    config and weight are the model's, as for Cache; layers is the number of its entries.
    Raises ValueError for anything but a cache that a model like this one made.
    """
    if cache is None:
        return NoCache(layers, weight.device)
    if not isinstance(cache, Cache):
        raise ValueError(
            f"cache is a {type(cache).__name__}; it must be what model.new_cache() returns"
        )
    if cache.config is not config and cache.config != config:
        here, there = vars(config), vars(cache.config)
        differ = [key for key in here | there if here.get(key) != there.get(key)]
        raise ValueError(f"the cache is of another model, which differs in {', '.join(differ):.80}")
    made, wanted = (cache.dtype, cache.positions.device), (weight.dtype, weight.device)
    if made != wanted:
        raise ValueError(
            f"the cache is {made[0]} on {made[1]}, the model {wanted[0]} on {wanted[1]}; make a "
            "new cache"
        )
    return cache


def check_inference_mode(tensor):
    """Raise ValueError for a tensor of a cache that torch does not let this call change."""
    if torch.compiler.is_compiling():  # it cannot ask
        return
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            "the cache was made or changed under torch.inference_mode(), but this call is outside; "
            "call the model under it, too, or use the cache's clone()"
        )


def check_call(batch, tokens, attention_mask):
    """Raise ValueError for a call without tokens or with a mask that cannot be read."""
    if tokens == 0:
        raise ValueError("a call needs at least one token a row")
    mask = attention_mask
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise ValueError(f"attention_mask is {mask!r:.80}; it must be a tensor")
    if mask is not None and (mask.is_floating_point() or mask.shape != (batch, tokens)):
        raise ValueError(
            f"attention_mask is {mask.dtype} of shape {tuple(mask.shape)}; it must be bool or int "
            f"of shape {(batch, tokens)}, 1 for each token of this call and 0 for padding"
        )


def number_tokens(counts, batch, tokens, attention_mask, device):
    """Positions (b, t) of a call's tokens, and is_token (b, t) or None, as in Call.

    counts (b, 1) or 0: the tokens that each row has before this call.
    """
    if attention_mask is None:
        return counts + torch.arange(tokens, device=device).expand(batch, tokens), None
    is_token = attention_mask.to(device) != 0
    return (counts + is_token.cumsum(1) - 1).masked_fill(~is_token, PADDING), is_token


def causal_mask(query_positions, key_positions):
    """(b, 1, t, s), True where a query may see a key; positions (b, t) and (b, s)."""
    query, key = query_positions[:, :, None], key_positions[:, None, :]
    mask = (key <= query) & (key != PADDING)  # (b, t, s)
    # Padding sees everything. Nobody reads its output, but a softmax over nothing would be nan.
    return (mask | (query == PADDING))[:, None]


# --- Files, and what `restore` is given ---


def check_positions(positions, counts):
    """Raise ValueError unless positions (b, s) number each row's tokens 0, 1, ... up to counts."""
    is_token = positions != PADDING
    numbered, _ = number_tokens(0, *positions.shape, is_token, positions.device)
    if not (
        torch.equal(positions, numbered) and torch.equal(counts, is_token.sum(1, keepdim=True))
    ):
        raise ValueError("the snapshot's positions do not number the tokens of each row")


@dataclass(frozen=True)
class Saved:
    """What `Cache.save` wrote."""

    snapshot: dict  # name: tensor, mapped from the file
    ids: list  # one list for each row
    notes: str


def read_saved(path, what="cache"):
    """Read a file of `Cache.save`: a Saved. `what` it is for the user, in errors.

    Raises FileNotFoundError, or ValueError for a file that is incomplete or contradicts itself.
    """
    path = check_source(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            ids = json.loads(metadata["ids"])
            snapshot = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not all(type(row) is list for row in (ids, *ids)):
            raise ValueError("its ids are not one list for each row")
        if [len(row) for row in ids] != snapshot["counts"][:, 0].tolist():
            raise ValueError("its ids are not as many as its tokens")
        if not all(type(i) is int and i >= 0 for row in ids for i in row):
            raise ValueError("its ids are not all numbers from 0 on")
    except READING_ERRORS as error:
        reason = str(error)[:200]
        raise ValueError(f"{path}: not a {what} that was saved whole ({reason!r})") from None
    return Saved(snapshot, ids, metadata.get("notes", ""))


def check_target(path):
    """The path as a Path; raises an error if no file can be written there."""
    path = check_path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def check_source(path):
    """The path as a Path; raises an error if no file can be read there."""
    path = check_path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    path.open("rb").close()  # safe_open says "no such file" of one that must not be read
    return path


def check_path(path):
    """The path as a Path; raises ValueError for a folder, a device or a pipe."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is not a file; give the name of a file")
    return path


@contextmanager
def whole_file(path):
    """A path to write to; what is there appears at `path` when the `with` ends without an error.

    An older file is replaced. Raises ValueError if the path is something else than a file; OSError
    if it cannot be written.
    """
    path = check_target(path)
    try:
        # In a folder of its own, so that several processes can save to the same path.
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
            partial = Path(folder) / path.name
            yield partial
            partial.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error  # without the partial file's name
        raise OSError(f"{path}: cannot be written ({reason})") from None


def write_tensors(path, tensors, metadata):
    """Write a safetensors file, as `whole_file` does."""
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata=metadata)
