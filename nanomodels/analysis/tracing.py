"""Record what a model computes inside: `with trace(model) as records: model(ids)`.

A decoder's code does not change. Modules are watched with torch's hooks. What is no module's output
passes through functions that the decoders call by name, `attend` and `ssd`; while a trace is
active, a watching function is in their place in the architecture's file.

    layers.N.in, layers.N          b t m     what a layer is given and returns
    layers.N.<path of a module>    b t *     what the module returns
    layers.N.q                     b h t d   as attention gets it: rotated, normed
    layers.N.k, .v                 b g t d   of this call's tokens
    layers.N.attention             b h t s   softmax(q k^T / sqrt(d)), float32; computed again
    layers.N.x                     b t h p   of Mamba-2, all float32: after the convolution
    layers.N.dt, .decay            b t h     the time step, exp(A dt)
    layers.N.B, .C                 b t g n
    layers.N.state                 b t h p n after each token; large, and slow for a long prompt
    layers.N.state_norm            b t h     its length; slow for a long prompt
    layers.N.router_logits         b t e     of experts, all float32
    layers.N.scores                b t e     sigmoid(router_logits)
    layers.N.chosen, .weights      b t k     the chosen experts, and how much they count
    logits                         b t v     of the tokens that the call keeps
    seconds                                  of each module and call; only alone

Names are the paths of modules, so for Nemotron the first four letters are "model.layers.N". Calls
are joined along t, in the order of slots; what padding has means nothing.
"""

import difflib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nanomodels.cache import Call, check_source, write_tensors

SHAPES = {
    "in": "b t m",
    "q": "b h t d",
    "k": "b g t d",
    "v": "b g t d",
    "attention": "b h t s",
    "x": "b t h p",
    "dt": "b t h",
    "decay": "b t h",
    "B": "b t g n",
    "C": "b t g n",
    "state": "b t h p n",
    "state_norm": "b t h",
    "router_logits": "b t e",
    "scores": "b t e",
    "chosen": "b t k",
    "weights": "b t k",
}
# Class in the architecture's file -> what can be recorded of a layer that has such a module.
INSIDE = {
    "Attention": ("q", "k", "v", "attention"),
    "Mamba": ("x", "dt", "decay", "B", "C", "state", "state_norm"),
    "Router": ("router_logits", "scores", "chosen", "weights"),
}
ON_REQUEST = ("state", "state_norm")
active = threading.Lock()  # held by the one trace that is active


@contextmanager
def trace(
    model: nn.Module, *names: str, keep: Callable[[str, Tensor], Tensor] | None = None
) -> Iterator["Records"]:
    """Record the named quantities of all calls of the model inside the `with`. Yields a Records.

    names may have `*` for any part between dots: "layers.*.dt". Without names, all are recorded
    except states and seconds. keep(name, tensor) -> tensor can make a record smaller before it is
    kept, such as a mean over the last dimension; the dimensions up to t must stay. Tensors are
    copied to the CPU in their own dtype. The results of the model are the same to the bit.

    Raises ValueError for an unknown name, for a trace within a trace, and for a call that a CUDA
    graph captures.
    """
    wanted = choose(names, known_names(model))
    if not active.acquire(blocking=False):
        raise ValueError("another trace is active; end it first")
    records = Records(keep)
    with ExitStack() as undo:
        undo.callback(active.release)
        if wanted == {"seconds"}:
            watch_seconds(model, records, undo)
        else:
            Watcher(model, wanted, records).attach(undo)
        yield records


def known_names(model):
    """All names that can be recorded: {name: shape in letters}."""
    architecture = sys.modules[type(model).__module__]
    names = {"logits": "b t v", "seconds": ""}
    for path, module in called_modules(model):
        names[path] = "b t m" if is_layer(path) else "b t *"
        if is_layer(path):
            inside = ["in"]
            for class_name, parts in INSIDE.items():
                kind = getattr(architecture, class_name, ())
                if any(isinstance(part, kind) for part in module.modules()):
                    inside += parts
            names |= {f"{path}.{part}": SHAPES[part] for part in inside}
        elif isinstance(module, getattr(architecture, "Router", ())):
            del names[path]  # it returns `chosen` and `weights`
    return names


def called_modules(model):
    """(path, module) of each module that is called once, and with all tokens."""
    for path, module in model.named_modules():
        unused = isinstance(module, nn.ModuleList | nn.Conv1d)  # the weight is used elsewhere
        some_tokens = ".experts." in path
        twice = path == "embed_tokens" and hasattr(model, "smear_gate")
        if path and not (unused or some_tokens or twice):
            yield path, module


def is_layer(path):
    before, _, number = path.rpartition(".")
    return number.isdecimal() and before.split(".")[-1] == "layers"


def choose(patterns, known):
    """The known names that the patterns match; ValueError for a pattern without a match."""
    if not patterns:
        return {n for n in known if n != "seconds" and n.split(".")[-1] not in ON_REQUEST}
    chosen = set()
    for pattern in patterns:
        parts = pattern.split(".")
        found = {
            name
            for name in known
            if len(split := name.split(".")) == len(parts) and all(map(fnmatchcase, split, parts))
        }
        if not found:
            near = difflib.get_close_matches(pattern, known, 5, 0.3) or [*known][:5]
            raise ValueError(f"nothing to record is called {pattern!r}; near: {', '.join(near)}")
        chosen |= found
    if "seconds" in chosen and chosen != {"seconds"}:
        raise ValueError("'seconds' goes alone: other records take time")
    return chosen


class Records:
    """What a trace has recorded: `records["layers.0.dt"]` is a tensor, all calls joined.

    With the name "seconds", `seconds` is {path of a module: [seconds of each call]}.
    """

    def __init__(self, keep: Callable[[str, Tensor], Tensor] | None = None) -> None:
        self.keep, self.seconds = keep, {}
        self.shapes = {}  # name -> letters
        self.pieces = {}  # name -> one tensor for each call

    def __repr__(self):
        return f"<Records of {len(self.shapes)} names; names() lists them>"

    def add(self, name, shape, tensor, fresh=False):
        """Keep a copy of a tensor; or the tensor, if it is fresh: made for the trace alone."""
        tensor = tensor.detach()
        if self.keep is not None:
            tensor = self.keep(name, tensor)
        self.shapes[name] = shape
        self.pieces.setdefault(name, []).append(tensor.to("cpu", copy=not fresh))

    def names(self) -> list[str]:
        """What was recorded, in the order of the first call."""
        return list(self.shapes)

    def shape(self, name: str) -> str:
        """The letters of the dimensions, as in the architecture's file."""
        self.check(name)
        return self.shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        """The record of a name, all calls joined along t.

        Raises ValueError for a name that no call has met, or if calls had other numbers of rows.
        """
        self.check(name)
        pieces, dim = self.pieces[name], self.shapes[name].split().index("t")
        if len({len(piece) for piece in pieces}) > 1:
            raise ValueError(f"{name}: the calls had other numbers of rows; trace them apart")
        if self.shapes[name] == SHAPES["attention"] and pieces[0].dim() == 4:
            slots = max(piece.shape[-1] for piece in pieces)
            pieces = [F.pad(piece, (0, slots - piece.shape[-1])) for piece in pieces]
        self.pieces[name] = [torch.cat(pieces, dim)]
        return self.pieces[name][0]

    def check(self, name):
        if name not in self.shapes:
            near = difflib.get_close_matches(name, self.shapes, 5, 0.3) or self.names()[:5]
            raise ValueError(f"{name!r} was not recorded; recorded: {', '.join(near) or 'nothing'}")

    def save(self, path: str | Path, ids: list | None = None) -> None:
        """Write all records to a safetensors file; ids: the token ids, kept beside them.

        Raises ValueError if the path is something else than a file, OSError if it cannot be
        written.
        """
        tensors = {name: self[name].contiguous() for name in self.shapes}
        about = {"shapes": self.shapes, "seconds": self.seconds, "ids": ids}
        write_tensors(path, tensors, {"trace": json.dumps(about)})


def load_records(path: str | Path) -> tuple[Records, list | None]:
    """What `Records.save` wrote: (records, ids). Raises FileNotFoundError, or ValueError."""
    path = check_source(path)
    records = Records()
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["trace"])
            records.shapes, records.seconds = dict(about["shapes"]), dict(about["seconds"])
            records.pieces = {name: [file.get_tensor(name)] for name in records.shapes}
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a trace that was saved whole ({str(error)[:200]})") from None
    return records, about["ids"]


class Watcher:
    """Puts hooks on a model, and watching functions in the place of `attend` and `ssd`."""

    def __init__(self, model, wanted, records):
        self.model, self.wanted, self.records = model, wanted, records
        self.architecture = sys.modules[type(model).__module__]
        self.running = threading.local()  # .layer: (path, Call or None, b, t) while one runs

    def attach(self, undo):
        """Begin to watch; `undo`, an ExitStack, takes back what this does."""
        router = getattr(self.architecture, "Router", ())
        for path, module in called_modules(self.model):
            if is_layer(path):
                begin, end = self.layer_hooks(path)
                undo.callback(module.register_forward_pre_hook(begin).remove)
                undo.callback(module.register_forward_hook(end, always_call=True).remove)
            elif isinstance(module, router):
                undo.callback(module.register_forward_hook(self.route).remove)
            elif path in self.wanted:
                undo.callback(module.register_forward_hook(self.module_hook(path)).remove)
        if "logits" in self.wanted:
            undo.callback(self.model.register_forward_hook(self.keep_logits).remove)
        for name, watch in (("attend", self.watch_attend), ("ssd", self.watch_ssd)):
            if hasattr(self.architecture, name):
                original = getattr(self.architecture, name)
                undo.callback(setattr, self.architecture, name, original)
                setattr(self.architecture, name, watch(original))

    def layer_hooks(self, path):
        def begin(module, args):
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise ValueError("a CUDA graph is captured: its steps cannot be traced")
            call = next((arg for arg in args if isinstance(arg, Call)), None)
            self.running.layer = (path, call, *args[0].shape[:2])
            self.add("in", args[0])

        def end(module, args, output):
            self.running.layer = None
            if path in self.wanted and output is not None:
                self.records.add(path, "b t m", output)

        return begin, end

    def module_hook(self, path):
        def keep(module, args, output):
            layer = getattr(self.running, "layer", None)
            if layer is not None and output.dim() == 2:  # (r, *), as experts have it
                output = output.unflatten(0, layer[2:])
            self.records.add(path, "b t *", output)

        return keep

    def keep_logits(self, module, args, output):
        self.records.add("logits", "b t v", output)

    def wants(self, *parts):
        """Whether any of these is to be recorded of the layer that runs in this thread."""
        layer = getattr(self.running, "layer", None)
        return layer is not None and any(f"{layer[0]}.{part}" in self.wanted for part in parts)

    def add(self, part, tensor, fresh=False):
        """Record a part of the running layer, if it is wanted."""
        if self.wants(part):
            self.records.add(f"{self.running.layer[0]}.{part}", SHAPES[part], tensor, fresh)

    def watch_attend(self, attend):
        def watched(q, k, v, mask):
            t = q.shape[2]
            self.add("q", q)
            self.add("k", k[:, :, -t:])
            self.add("v", v[:, :, -t:])
            if self.wants("attention"):
                self.add("attention", attention_weights(q.detach(), k.detach(), mask), fresh=True)
            return attend(q, k, v, mask)

        return watched

    def watch_ssd(self, ssd):
        def watched(x, dt, A, B, C, state, chunk):
            y, new = ssd(x, dt, A, B, C, state, chunk)
            for part, tensor in {"x": x, "dt": dt, "B": B, "C": C}.items():
                self.add(part, self.in_slots(tensor))
            if self.wants("decay"):
                self.add("decay", self.in_slots((dt * A).exp()))
            if self.wants("state", "state_norm"):
                states = new[:, None] if x.shape[1] == 1 else self.states(x, dt, A, B, C, state)
                states = self.in_slots(states)  # (b, t, h, p, n)
                self.add("state", states)
                self.add("state_norm", states.flatten(-2).norm(dim=-1))
            return y, new

        return watched

    def states(self, x, dt, A, B, C, state):
        """The state after each token (b, t, h, p, n)."""
        states = []
        for i in range(x.shape[1]):
            one = slice(i, i + 1)
            _, state = self.architecture.ssd_step(
                x[:, one], dt[:, one], A, B[:, one], C[:, one], state
            )
            states.append(state)
        return torch.stack(states, 1)

    def in_slots(self, x):
        """x (b, t, ...) in the order of slots: a Mamba layer has tokens first, padding last."""
        call = self.running.layer[1] if self.wants(*INSIDE["Mamba"]) else None
        if call is None or call.is_token is None:
            return x
        return call.unpack(x.flatten(2)).view_as(x)

    def route(self, router, args, output):
        x, (chosen, weights) = args[0], output
        b, t = self.running.layer[2:]
        for part, tensor in {"chosen": chosen, "weights": weights}.items():
            self.add(part, tensor.unflatten(0, (b, t)))
        if self.wants("router_logits", "scores"):
            logits = F.linear(x.float(), router.weight.float()).unflatten(0, (b, t))
            self.add("router_logits", logits)
            self.add("scores", logits.sigmoid())


def attention_weights(q, k, mask):
    """softmax(q k^T / sqrt(d)) of what `attend` is given: (b, h, t, s) float32."""
    b, h, t, d = q.shape
    g, s = k.shape[1:3]
    scores = (q.float().reshape(b, g, -1, d) * d**-0.5 @ k.float().mT).view(b, h, t, s)
    if mask is None:
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)
    scores.masked_fill_(~mask, -torch.inf)
    return torch.softmax(scores, -1, out=scores)


def watch_seconds(model, records, undo):
    """Time each module; on a GPU the clock waits for it."""
    on_gpu = next(model.parameters()).is_cuda
    began = {}

    def clock():
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def hooks(path):
        def begin(module, args):
            began[path] = clock()

        def end(module, args, output):
            records.seconds.setdefault(path, []).append(clock() - began[path])

        return begin, end

    for path, module in called_modules(model):
        begin, end = hooks(path)
        undo.callback(module.register_forward_pre_hook(begin).remove)
        undo.callback(module.register_forward_hook(end).remove)
