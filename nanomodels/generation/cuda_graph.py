"""One token a row as a CUDA graph: a whole step of decoding is launched at once.

For a GPU a step is hundreds of small kernels, and starting them takes longer than their work. A
CUDA graph starts them together, but each time the same kernels on the same memory. So the captured
call sees a `Static` cache: a fixed number of columns, of which the mask hides those to come, and
the next column as a number on the device. When the columns are used up, a graph with twice as many
takes over.

On other devices `Steps` makes the same calls without capturing them, which is how it is tested.

b rows, t = 1 token in a call, s columns.
"""

import torch

from nanomodels.cache import KV, PADDING, SSM, Cache, Ids, Step
from nanomodels.linears.quantized import QuantizedLinear

COLUMNS = 256  # of the first graph


class StaticKV(KV):
    def extend(self, k, v, start):
        """Write k, v (b, g, 1, d) at column `start` (1,), a tensor; return all columns."""
        self.k.index_copy_(2, start, k)
        self.v.index_copy_(2, start, v)
        return self.k, self.v


class StaticIds(Ids):
    def extend(self, ids, start):
        """Write ids (b, 1) at column `start` (1,), a tensor; return all columns."""
        return self.ids.index_copy_(1, start, ids)


class StaticSSM(SSM):
    def commit(self):
        """Move on within the same memory."""
        for tensor, new in zip((self.window, self.state), self.next, strict=True):
            tensor.copy_(new)
        self.next = None


class Static(Cache):
    """The first columns of a cache, in its own memory, for calls with one token a row."""

    static = True

    def __init__(self, cache, columns):
        self.entries = []
        for entry in cache.entries:
            if isinstance(entry, KV):
                entry = StaticKV(entry.k[:, :, :columns], entry.v[:, :, :columns])
            elif isinstance(entry, Ids):
                entry = StaticIds(entry.ids[:, :columns])
            elif isinstance(entry, SSM):
                entry = StaticSSM(entry.window, entry.state)
            self.entries.append(entry)
        self.max_length = cache.max_length  # some rotations turn by it
        cache.positions[:, cache.length :] = PADDING  # there may be some that were taken back
        self.positions = cache.positions[:, :columns]
        self.tokens = cache.tokens
        self.column = torch.tensor([cache.length], device=cache.positions.device)

    def place(self):
        """What cache.place gives, with nothing in it that is a number of Python's."""
        positions = self.tokens.clone()  # (b, 1)
        self.positions.index_copy_(1, self.column, positions)
        mask = self.positions != PADDING  # (b, s), columns to come are that, too
        return Step(self.column, positions, mask[:, None, None], None)

    def extend_by(self, step):
        self.column += 1
        self.tokens += 1
        for entry in self.entries:
            if isinstance(entry, SSM):
                entry.commit()

    def state(self):
        """What a call changes and does not overwrite when it is made again."""
        recurrent = [entry for entry in self.entries if isinstance(entry, SSM)]
        tensors = [tensor for entry in recurrent for tensor in (entry.window, entry.state)]
        return [self.column, self.tokens, *tensors]


def check(model):
    """Raises ValueError for a model whose steps cannot be a CUDA graph."""
    quantised = [n for n, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    if any(".experts." in name for name in quantised):
        # Which of them to call is decided on the CPU in the midst of a step.
        raise ValueError("cuda_graph is for a model whose experts are not quantised")
    if next(model.parameters()).device.type != "cuda":
        raise ValueError("cuda_graph is for a model on CUDA")


class Steps:
    """Calls of a model, one token a row, that go on in a cache; a graph where it is on CUDA.

    They write in place what other calls replace: between them the cache must not be changed in
    another way, nor marked.
    """

    def __init__(self, model, cache):
        self.model, self.cache, self.columns = model, cache, COLUMNS
        cache.history = object()
        cache.tokens = cache.tokens.clone()  # written in place from now on
        self.ids = torch.zeros_like(cache.tokens)
        self.replay = None

    def __call__(self, ids):
        """Logits (b, 1, vocab) after tokens ids (b, 1); the next call overwrites them.

        Raises ValueError where the cache is full.
        """
        if self.cache.length >= self.cache.max_length:
            raise ValueError(f"the cache holds {self.cache.max_length} tokens a row, all are used")
        if self.replay is None or self.cache.length >= self.columns:
            while self.columns <= self.cache.length:
                self.columns *= 2
            self.capture()
        self.ids.copy_(ids)
        self.replay()
        self.cache.length += 1
        return self.logits

    def capture(self):
        """Set `replay`, which calls the model with self.ids and sets self.logits."""
        # As long as the graph, which reads and writes its tensors.
        self.static = Static(self.cache, min(self.columns, self.cache.max_length))
        self.replay = self.call
        if self.ids.device.type == "cuda":
            with torch.cuda.device(self.ids.device):
                self.replay = self.captured()

    def call(self):
        self.logits = self.model(self.ids, cache=self.static, logits_to_keep=1)

    def captured(self):
        """`call` as a graph, which is not yet run."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # what libraries do once, in their first calls, must not be in it
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
