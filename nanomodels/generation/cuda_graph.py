"""Decode steps as a CUDA graph: all kernels of a step are launched at once.

On a GPU a decode step is hundreds of small kernels, and launching them takes longer than their
work. A CUDA graph launches them together, but always the same kernels on the same memory. So the
captured call sees a `StaticCache`: a fixed number of slots, a mask that hides the free ones, and
the next free slot as a number on the device. When the slots are used up, a graph with twice as many
is captured.

On other devices `GraphDecoder` makes the same calls without a graph. The tests use that.

Shapes: b rows, t = 1 token in a call, s slots.
"""

import copy

import torch

from nanomodels.cache import KV, PADDING, SSM, Cache, Call, Ids
from nanomodels.linears.quantized import QuantizedLinear

SLOTS = 256  # of the first graph


class StaticKV(KV):
    def extend(self, k, v, first_slot):
        """Write k, v (b, g, 1, d) at `first_slot` (1,), a tensor; return all slots."""
        self.k.index_copy_(2, first_slot, k)
        self.v.index_copy_(2, first_slot, v)
        return self.k, self.v


class StaticIds(Ids):
    def extend(self, ids, first_slot):
        """Write ids (b, 1) at `first_slot` (1,), a tensor; return all slots."""
        return self.ids.index_copy_(1, first_slot, ids)


class StaticSSM(SSM):
    def commit(self):
        """Copy the staged window and state into the same memory."""
        for tensor, new in zip((self.window, self.state), self.staged, strict=True):
            tensor.copy_(new)
        self.staged = None


class StaticCache(Cache):
    """The first slots of a cache, in the cache's own memory, for calls with one token a row.

    Its next slot is a tensor (1,) on the device, and so is the first_slot of its Calls.
    """

    def __init__(self, cache, slots):
        self.config, self.dtype = cache.config, cache.dtype
        self.entries = []
        for entry in cache.entries:
            if isinstance(entry, KV):
                entry = StaticKV(entry.k[:, :, :slots], entry.v[:, :, :slots])
            elif isinstance(entry, Ids):
                entry = StaticIds(entry.ids[:, :slots], entry.vocab_size)
            elif isinstance(entry, SSM):
                entry = StaticSSM(entry.window, entry.state)
            self.entries.append(entry)
        self.max_length = cache.max_length  # the rope types dynamic and longrope depend on it
        cache.positions[:, cache.length :] = PADDING  # free slots may hold old positions
        self.positions = cache.positions[:, :slots]
        self.counts = cache.counts
        self.next_slot = torch.tensor([cache.length], device=cache.positions.device)

    def begin(self, batch, tokens, attention_mask=None):
        """What Cache.begin returns, computed on the device alone."""
        positions = self.counts.clone()  # (b, 1)
        self.positions.index_copy_(1, self.next_slot, positions)
        mask = self.positions != PADDING  # (b, s); free slots are PADDING, too
        return Call(self.next_slot, positions, mask[:, None, None], None, self.max_length)

    def commit(self, call):
        self.next_slot += 1
        self.counts += 1
        for entry in self.entries:
            if isinstance(entry, SSM):
                entry.commit()

    def state(self):
        """The tensors to restore after a trial call: the next one would not overwrite them."""
        layers = [entry for entry in self.entries if isinstance(entry, SSM)]
        tensors = [tensor for entry in layers for tensor in (entry.window, entry.state)]
        return [self.next_slot, self.counts, *tensors]


def check(model):
    """Raise ValueError for a model whose decode steps cannot be a CUDA graph."""
    quantised = [n for n, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    if any(".experts." in name for name in quantised):
        # The CPU decides during the step which of them to call.
        raise ValueError("cuda_graph is for a model whose experts are not quantised")
    if next(model.parameters()).device.type != "cuda":
        raise ValueError("cuda_graph is for a model on CUDA")


class GraphDecoder:
    """Decode steps of a model with a cache, one token a row; on CUDA as a CUDA graph.

    The steps write in place what other calls replace. So earlier savepoints become invalid, and
    between two steps nothing else may change the cache.
    """

    def __init__(self, model, cache):
        self.model, self.cache, self.slots = model, cache, SLOTS
        cache.version = object()
        # Written in place from now on; marks keep the states of before.
        cache.counts = cache.counts.clone()
        cache.entries = [copy.deepcopy(e) if isinstance(e, SSM) else e for e in cache.entries]
        self.ids = torch.zeros_like(cache.counts)
        self.replay = None

    def __call__(self, ids):
        """Logits (b, 1, vocab) after the tokens ids (b, 1); the next call overwrites them.

        Raises ValueError if the cache is full.
        """
        if self.cache.length >= self.cache.max_length:
            raise ValueError(f"the cache holds {self.cache.max_length} tokens a row, all are used")
        if self.replay is None or self.cache.length >= self.slots:
            while self.slots <= self.cache.length:
                self.slots *= 2
            self.capture()
        self.ids.copy_(ids)
        try:
            self.replay()
            self.cache.length += 1
        except BaseException:  # a graph that was interrupted has been launched, or has not
            self.cache.length = int(self.static.next_slot)
            raise
        return self.logits

    def capture(self):
        """Set `replay`, which calls the model with self.ids and sets self.logits."""
        # An attribute, because the graph uses its memory.
        self.static = StaticCache(self.cache, min(self.slots, self.cache.max_length))
        self.replay = self.call
        if self.ids.device.type == "cuda":
            with torch.cuda.device(self.ids.device):
                self.replay = self.captured()

    def call(self):
        self.logits = self.model(self.ids, cache=self.static, logits_to_keep=1)

    def captured(self):
        """Capture `call` as a graph, and return what replays it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # before capture: libraries do extra work in their first calls
                before = [tensor.clone() for tensor in self.static.state()]
                try:
                    self.call()
                finally:
                    for tensor, was in zip(self.static.state(), before, strict=True):
                        tensor.copy_(was)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            self.call()
        return graph.replay
