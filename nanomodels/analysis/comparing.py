"""Does this project compute the same as transformers, and if not, where does it begin?

Two questions, apart:

    the same mathematics?  Both models run in float64, with the same weights. Each of our blocks is
                           given what the other side's block was given ("own"), so a fault stays in
                           its block. Where both are right the difference is about 1e-15.
    rounded as well?       In the checkpoint's dtype each block is given the same input on both
                           sides; whose output is nearer to float64's? Experts are those that
                           float64 chooses, because one other expert changes all.

In the first block that differs, the steps are compared one by one: the inputs and outputs of the
modules that both sides have under one name, and what goes into attention and the scan.
"""

import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from nanomodels.analysis import tracing
from nanomodels.rope import frequencies
from nanomodels.text.files import one_line

EQUAL = 1e-9  # in float64: right code differs by 1e-15, an eps of 1e-5 for 1e-6 by 3e-10 or more
NARROW = 1e-5  # float32 differs from float64 by 1e-7, bfloat16 by 4e-3
WORSE = 2.0  # times the other side's error; more is called worse rounding
TEXT = """The old mill stood by the river. In 1874 it had 12 rooms, 3 cats and one clock that was
always late. "Who is there?" asked Mia. Nobody answered, but the door opened by itself, and a cold
wind blew out the lamp. She counted: one, two, three, four. Then she heard it again: tick, tick.
"""


class Double(TorchFunctionMode):
    """float32 means float64: .float() and dtype=torch.float32 keep all digits."""

    def __enter__(self):
        frequencies.cache_clear()  # it may have them in float32
        return super().__enter__()

    def __exit__(self, *error):
        frequencies.cache_clear()
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = [torch.float64 if arg is torch.float32 else arg for arg in args]
        kwargs = {
            name: torch.float64 if arg is torch.float32 else arg
            for name, arg in (kwargs or {}).items()
        }
        return function(*args, **kwargs)


@dataclass
class Step:
    """What one step of a block made, and the line of code that asked for it."""

    tensor: torch.Tensor
    line: str


@dataclass
class Block:
    """How far one block is from the other side's, relative to its largest output."""

    index: int
    kind: str
    own: float  # given the other side's input
    carried: float  # as it ran
    ratio: float | None = None  # of the errors by rounding, ours / theirs


@dataclass
class Report:
    """What a comparison found."""

    name: str
    tokens: int
    dtype: str  # of `rounding` and `greedy`
    blocks: list = field(default_factory=list)
    start: float = 0.0  # what the first block is given
    head: float = 0.0  # the logits from the other side's last hidden states
    logits: float = 0.0  # as they came
    steps: list = field(default_factory=list)  # of the first block that differs
    worst: dict | None = None  # the largest difference in the first step that differs
    # A block in which another way of reading the text gives something else: {way: Block}.
    ways: dict = field(default_factory=dict)
    narrow: list = field(default_factory=list)  # (block, step) that is not float32 in `dtype`
    flips: dict | None = None  # choices of experts that rounding changes
    greedy: dict | None = None
    known: list = field(default_factory=list)  # faults of transformers that explain it
    agreement: dict | None = None  # of two of our own

    @property
    def different(self):
        """The blocks that do not compute the same; nan is different."""
        return [block for block in self.blocks if not block.own <= EQUAL]

    @property
    def rounded_worse(self):
        return [b for b in self.blocks if b.ratio is not None and not b.ratio <= WORSE]

    @property
    def same(self):
        """Whether both compute the same; of two of our own: choose the same tokens."""
        if self.agreement is not None:
            return self.agreement["same_token"] == 1
        ends_agree = self.start <= EQUAL and self.head <= EQUAL
        faults = self.different or self.ways or self.narrow or self.rounded_worse
        return ends_agree and not faults


# --- Running one side ---


def layers_of(model):
    return getattr(model, "model", model).layers


def logits_of(output):
    return getattr(output, "logits", output)


def first_tensor(value):
    """The tensor that a module was given or returned, or None."""
    for each in value if isinstance(value, tuple | list) else [value]:
        if isinstance(each, torch.Tensor):
            return each
    return None


@torch.inference_mode()
def run(model, ids, inputs=None, last=None, **options):
    """Run a model: (inputs, outputs, logits), the first two of each block.

    inputs replace what the blocks are given, last what the last block returns. options are for the
    model.
    """
    given, made = [], []

    def begin(module, args, kwargs):
        i = len(given)
        given.append(args[0] if args else kwargs["hidden_states"])
        if inputs is None:
            return None
        if args:
            return (inputs[i], *args[1:]), kwargs
        return args, kwargs | {"hidden_states": inputs[i]}

    def end(module, args, output):
        output = first_tensor(output)
        made.append(output)
        return last if last is not None and len(made) == len(layers_of(model)) else None

    with ExitStack() as undo:
        for layer in layers_of(model):
            undo.callback(layer.register_forward_pre_hook(begin, with_kwargs=True).remove)
            undo.callback(layer.register_forward_hook(end).remove)
        logits = logits_of(model(ids, **options))
    return given, made, logits


def relative(found, expected):
    """The largest difference, relative to the largest expected number; nan stays nan."""
    scale = expected.abs().max().item() or 1.0
    return ((found.double() - expected.double()).abs().max() / scale).item()


# --- Step by step ---


def line_of(model):
    """The line of the model's own file that is running now: "nemotron_h.py:266"."""
    file = sys.modules[type(model).__module__].__file__
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    return "" if frame is None else f"{file.rpartition('/')[2]}:{frame.f_lineno}"


@torch.inference_mode()
def steps_of(model, ids, index, inputs):
    """What happens in block `index` when all blocks are given `inputs`: {name: Step}, in order."""
    layer, steps, inside = layers_of(model)[index], {}, []

    def keep(name, tensor):
        if tensor is not None and inside:
            steps[name] = Step(tensor.detach().clone(), line_of(model))

    with ExitStack() as undo:
        undo.callback(layer.register_forward_pre_hook(lambda *_: inside.append(1)).remove)
        undo.callback(layer.register_forward_hook(lambda *_: inside.clear()).remove)
        for path, module in layer.named_modules():
            if path and ".experts" not in path:
                begin, end = module_hooks(path, keep)
                undo.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
                undo.callback(module.register_forward_hook(end).remove)
        undo.enter_context(watched_functions(model, layer, inside, keep))
        run(model, ids, inputs)
    return steps


def module_hooks(path, keep):
    def begin(module, args, kwargs):
        keep(f"input of {path}", first_tensor([*args, *kwargs.values()]))

    def end(module, args, output):
        if type(module).__name__.endswith("Router"):
            keep(path, routing(module, args[0], output))
        else:
            keep(path, first_tensor(output))

    return begin, end


def routing(module, x, output):
    """The weight of each expert for each token (r, e), 0 if it is not chosen.

    Ours returns (chosen, weights), transformers (logits, weights, chosen).
    """
    chosen, weights = output if len(output) == 2 else (output[2], output[1])
    return weights.new_zeros(len(chosen), len(module.weight)).scatter(1, chosen, weights)


@contextmanager
def watched_functions(model, layer, inside, keep):
    """Watch attention and the scan, which each side's file calls by name, inside the layer."""
    module = sys.modules[type(model).__module__]

    def attend(original):
        def watched(*args, **kwargs):
            q, k, v = args[1:4] if isinstance(args[0], torch.nn.Module) else args[:3]
            for name, tensor in zip("qkv", (q, k, v), strict=True):
                keep(name, tensor)
            return original(*args, **kwargs)

        return watched

    def ours(original):
        def watched(x, dt, A, B, C, *rest):
            for name, tensor in {"x": x, "B": B, "C": C, "dt": dt}.items():
                keep(name, tensor)
            return original(x, dt, A, B, C, *rest)

        return watched

    def theirs(original):
        def watched(x, dt, A, B, C, **kwargs):
            if inside:
                time_step = F.softplus(dt + layer.mixer.dt_bias).clamp(*kwargs["dt_limit"])
                for name, tensor in {"x": x, "B": B, "C": C, "dt": time_step}.items():
                    keep(name, tensor)
            return original(x, dt, A, B, C, **kwargs)

        return watched

    functions = {"attend": attend, "eager_attention_forward": attend}
    functions |= {"ssd": ours, "mamba2_chunk_scan": theirs}
    with ExitStack() as undo:
        for name, watch in functions.items():
            if (original := getattr(module, name, None)) is not None:
                undo.callback(setattr, module, name, original)
                setattr(module, name, watch(original))
        yield


def compare_steps(ours, theirs):
    """[(name, difference, our line, their line)] of the steps that both have, in our order."""
    rows = []
    for name, step in ours.items():
        if name in theirs and step.tensor.numel() == theirs[name].tensor.numel():
            other = theirs[name]
            difference = relative(step.tensor, other.tensor.reshape(step.tensor.shape))
            rows.append((name, difference, step.line, other.line))
    return rows


def worst_place(name, ours, theirs):
    """Where the largest difference of a step is, and both values."""
    found, expected = ours.tensor.double(), theirs.tensor.double().reshape(ours.tensor.shape)
    at = (found - expected).abs().flatten().argmax()
    place = [int(i) for i in torch.unravel_index(at, found.shape)]
    return {
        "step": name,
        "index": place,
        "shape": list(found.shape),
        "ours": found.flatten()[at].item(),
        "theirs": expected.flatten()[at].item(),
        "ours_line": ours.line,
        "theirs_line": theirs.line,
    }


# --- Other ways of reading the same text ---


def pieces_of(tokens):
    """So many tokens has each call of a text that is read in pieces; the last ones are steps."""
    steps = min(8, tokens // 2)
    return [n for n in (tokens // 3, tokens - tokens // 3 - steps) if n] + [1] * steps


def other_ways(report, model, ids, inputs, expected):
    """Compare our blocks with themselves: from a cache, in pieces; then as a row with padding.

    inputs and expected are those of one pass. The first block that differs is kept.
    """
    tokens = ids.shape[1]
    found, _ = run_pieces(model, ids, inputs, pieces_of(tokens))
    if note_way(report, "in pieces", found, expected):
        return
    # A short row beside it, padded on both sides, then steps without padding.
    steps = min(8, tokens // 2)
    left = right = (tokens - steps) // 4
    first = tokens - steps - left - right

    def padded(x):  # (b, t, ...)
        gap = x[:, :left] * 0
        return torch.cat((gap, x[:, :first], gap, x[:, first : first + steps]), 1)

    rows, inputs = torch.cat((ids, padded(ids))), [torch.cat((x, padded(x))) for x in inputs]
    mask = torch.ones(2, tokens - steps, dtype=torch.bool)
    mask[1, :left] = mask[1, left + first :] = False
    found, _ = run_pieces(model, rows, inputs, [tokens - steps] + [1] * steps, mask)
    is_token = torch.cat((mask[1], torch.ones(steps, dtype=torch.bool)))
    found = [y[1:, is_token] for y in found]
    note_way(report, "padded", found, [y[:, : first + steps] for y in expected])


def run_pieces(model, ids, inputs, pieces, mask=None):
    """The outputs of the blocks, from calls with so many tokens each; and the cache.

    mask is the attention mask of the first call.
    """
    cache = model.new_cache(*ids.shape)
    made = []
    for some, *here in zip(
        ids.split(pieces, 1), *(x.split(pieces, 1) for x in inputs), strict=True
    ):
        made.append(run(model, some, here, cache=cache, attention_mask=None if made else mask)[1])
    return [torch.cat(each, 1) for each in zip(*made, strict=True)], cache


def note_way(report, way, found, expected):
    """Keep the first block that differs; returns whether there is one."""
    for block, mine, other in zip(report.blocks, found, expected, strict=True):
        difference = relative(mine, other)
        if not difference <= EQUAL:
            report.ways[way] = Block(block.index, block.kind, difference, difference)
            return True
    return False


# --- Loading ---


def load_ours(folder, dtype, first):
    """Our model, with its first layers only if `first` is a number."""
    from nanomodels.checkpoint.loading import load

    model = load(folder, dtype=dtype)
    if first is not None:
        layers = layers_of(model)
        del layers[first:]
    return model


def load_theirs(folder, dtype, first, patch_known):
    """transformers' model. Its attention and experts are those that work in float64."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder)
    except ValueError as error:
        raise ValueError(f"{folder}: transformers cannot read it ({one_line(error)})") from None
    if first is not None:
        config.num_hidden_layers = first
        if hasattr(config, "layers_block_type"):
            config.layers_block_type = config.layers_block_type[:first]
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation="eager"
    ).eval()
    model.config.use_cache = False
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    if patch_known:
        for module in limited(model):
            module.time_step_limit = tuple(config.time_step_limit)
    return model


def limited(model):
    """transformers' Mamba layers whose limit of dt is not the config's."""
    wanted = tuple(getattr(model.config, "time_step_limit", None) or (0.0, float("inf")))
    modules = (m for m in model.modules() if hasattr(m, "time_step_limit"))
    return [module for module in modules if tuple(module.time_step_limit) != wanted]


# --- The comparison with transformers ---


def compare(folder, ids, *, dtype=None, first=None, patch_known=False):
    """Compare our model of a checkpoint with transformers': a Report.

    ids is a list of token ids; dtype that of rounding and text, by default the checkpoint's; first
    cuts both models to so many layers. patch_known mends in transformers what is known to be wrong.
    Raises ImportError without transformers, ValueError for a checkpoint that it does not read.
    """
    ids = torch.tensor([ids])
    report = Report(folder.name, ids.shape[1], "")
    ours = load_ours(folder, None, first).double()
    with Double():
        theirs = load_theirs(folder, torch.float32, first, patch_known).double()
        inputs, expected, their_logits = run(theirs, ids)
        given, carried, our_logits = run(ours, ids)
        _, own, head = run(ours, ids, inputs, expected[-1])
        report.start = relative(given[0], inputs[0])
        for i, layer in enumerate(layers_of(ours)):
            figures = relative(own[i], expected[i]), relative(carried[i], expected[i])
            report.blocks.append(Block(i, kind_of(layer), *figures))
        report.head, report.logits = (
            relative(head, their_logits),
            relative(our_logits, their_logits),
        )
        if report.different:
            explain(report, ours, theirs, ids, inputs)
        elif first is None:
            other_ways(report, ours, ids, inputs, own)
    del theirs
    if not report.different:
        round_blocks(report, folder, ours, ids, inputs, dtype, first, patch_known)
    return report


def kind_of(layer):
    """What a block does, in a word."""
    mixer = type(getattr(layer, "mixer", layer)).__name__
    return {"Mamba": "mamba", "MoE": "experts", "MLP": "mlp"}.get(mixer, "attention")


def explain(report, ours, theirs, ids, inputs):
    """Find the step in which the first different block differs first."""
    index = report.different[0].index
    mine, other = (steps_of(model, ids, index, inputs) for model in (ours, theirs))
    report.steps = compare_steps(mine, other)
    name = next((name for name, difference, *_ in report.steps if not difference <= EQUAL), None)
    if name is not None:
        report.worst = worst_place(name, mine[name], other[name])
    if name == "dt" and limited(theirs):
        report.known.append(
            "transformers 5.23.0 ignores time_step_limit of config.json "
            "(huggingface/transformers#48989); --patch-known compares the rest"
        )


def round_blocks(report, folder, exact, ids, inputs, dtype, first, patch_known):
    """Whether our blocks are as near to float64 as transformers', in another dtype."""
    ours = load_ours(folder, dtype, first)
    dtype = next(p.dtype for p in ours.parameters() if p.dim() == 2)
    report.dtype = str(dtype).removeprefix("torch.")
    theirs = load_theirs(folder, dtype, first, patch_known)
    inputs = [x.to(dtype) for x in inputs]
    with Double(), watched_routers(exact) as (chosen, _):
        _, expected, _ = run(exact, ids, [x.double() for x in inputs])
    with watched_routers(ours, chosen) as (_, flips):
        if first is None:
            mine, _ = run_pieces(ours, ids, inputs, pieces_of(ids.shape[1]))
        else:  # a cut model has no cache
            _, mine, _ = run(ours, ids, inputs)
    with watched_routers(theirs, chosen) as (_, their_flips):
        _, other, _ = run(theirs, ids, inputs)
    made = mine, other
    for block, mine, other, right in zip(report.blocks, *made, expected, strict=True):
        errors = [(y.double() - right).square().mean().sqrt().item() for y in (mine, other)]
        block.ratio = errors[0] / errors[1] if errors[1] else float(errors[0] > 0) or 1.0
    if chosen:
        total = sum(each.numel() for each in chosen.values())
        report.flips = {"choices": total, "ours": sum(flips), "theirs": sum(their_flips)}
    if first is None and hasattr(exact, "norm_f"):  # Nemotron-H
        report.narrow = narrow_steps(ours, exact, ids, inputs)
    report.greedy = compare_greedy(ours, theirs, ids[0].tolist(), first)


@contextmanager
def watched_routers(model, wanted=None):
    """Collect what the routers choose: ({number of the router: experts (r, k)}, other choices).

    With `wanted`, the choices of a run in float64, these experts are taken, and the second, a list,
    counts how many choices were others.
    """
    chosen, other = {}, []

    def watch(number):
        def route(module, args, output):
            mine = output[0] if len(output) == 2 else output[2]
            before = chosen.get(number, mine[:0])
            chosen[number] = torch.cat((before, mine))
            if wanted is None:
                return None
            right = wanted[number][len(before) : len(chosen[number])]
            other.append(int((right[:, :, None] != mine[:, None]).all(-1).sum()))
            weights = weights_of(module, args[0], right)
            return (right, weights) if len(output) == 2 else (output[0], weights, right)

        return route

    with ExitStack() as undo:
        routers = [m for m in model.modules() if type(m).__name__.endswith("Router")]
        for number, module in enumerate(routers):
            undo.callback(module.register_forward_hook(watch(number)).remove)
        yield chosen, other


def weights_of(router, x, chosen):
    """The weights (r, k) of the chosen experts (r, k), whoever chose them."""
    scores = F.linear(x.flatten(0, -2).float(), router.weight.float()).sigmoid()
    weights = scores.gather(1, chosen)
    config = getattr(router, "config", router)
    if config.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * config.routed_scaling_factor


def narrow_steps(ours, exact, ids, inputs):
    """Where a Nemotron-H of another dtype is not float32 but must be: [(block, step), ...].

    dt and the routers' weights are compared with float64 of the same input; and the state that the
    cache holds is the one that the last step made.
    """
    parts = ("dt", "mixer.in_proj", "state", "norm", "chosen", "weights")
    names = [name for name in tracing.known_names(ours) if name.split(".", 2)[-1] in parts]
    with tracing.trace(ours, *names) as records:
        _, cache = run_pieces(ours, ids, inputs, pieces_of(ids.shape[1]))
    found = []
    with Double():
        for i, layer in enumerate(exact.layers):
            names = {part: f"layers.{i}.{part}" for part in parts}
            of = {part: records[n][0] for part, n in names.items() if n in records.shapes}
            if "dt" in of:
                mixer, heads = layer.mixer, of["dt"].shape[-1]
                dt = of["mixer.in_proj"][:, -heads:].double() + mixer.dt_bias.double()
                dt = F.softplus(dt).clamp(*mixer.time_step_limit)
                if not relative(of["dt"], dt) <= NARROW:
                    found.append((i, "dt"))
                if not torch.equal(of["state"][-1], cache.entries[i].state[0].cpu()):
                    found.append((i, "state"))
            elif "weights" in of:
                weights = weights_of(layer.mixer.gate, of["norm"].double(), of["chosen"])
                if not relative(of["weights"], weights) <= NARROW:
                    found.append((i, "mixer.gate"))
    return found


@torch.inference_mode()
def compare_greedy(ours, theirs, prompt, first):
    """How many greedy tokens are the same, and how near a tie the first other one is."""
    if first is not None:
        return None  # the text of a cut model means nothing
    from nanomodels.generation.decoding import generate

    room = ours.context_length - len(prompt)
    text = list(generate(ours, prompt, max_new_tokens=min(32, room), stop_ids=(), temperature=0.0))
    logits = logits_of(theirs(torch.tensor([prompt + text])))[0, len(prompt) - 1 : -1].float()
    choices = logits.argmax(-1).tolist()
    same = next((n for n, (a, b) in enumerate(zip(text, choices)) if a != b), len(text))  # noqa: B905
    found = {"tokens": len(text), "same": same}
    if same < len(text):
        found["margin"] = (logits[same, choices[same]] - logits[same, text[same]]).item()
    return found


# --- Two of our own ---


def compare_ours(folders, ids, *, dtypes=(None, None), devices=("cpu", "cpu")):
    """Compare two checkpoints of one architecture, each in its own dtype: a Report.

    In the report `own` and `carried` are of the first against the second, and `agreement` has the
    share of places with the same likeliest token, and the mean KL divergence in nats.
    Raises ValueError if the two have other layers or vocabularies.
    """
    from nanomodels.checkpoint.loading import load

    models = [
        load(folder, device=device, dtype=dtype)
        for folder, device, dtype in zip(folders, devices, dtypes, strict=True)
    ]
    kinds = [[kind_of(layer) for layer in layers_of(model)] for model in models]
    sizes = [(type(m), m.config.hidden_size, m.config.vocab_size) for m in models]
    if kinds[0] != kinds[1] or sizes[0] != sizes[1]:
        raise ValueError(f"{folders[0]} and {folders[1]} are of other architectures or sizes")
    report = Report(f"{folders[0].name} and {folders[1].name}", len(ids), "")
    first, second = models
    here, there = (torch.tensor([ids], device=device) for device in devices)
    inputs, expected, their_logits = run(second, there)
    last = move([expected[-1]], first)[0]
    given, carried, our_logits = run(first, here)
    report.start = relative(given[0].cpu(), inputs[0].cpu())
    _, own, head = run(first, here, move(inputs, first), last)
    for i, kind in enumerate(kinds[0]):
        figures = [relative(y[i].cpu(), expected[i].cpu()) for y in (own, carried)]
        report.blocks.append(Block(i, kind, *figures))
    head, ours, theirs = (each.cpu() for each in (head, our_logits, their_logits))
    report.head, report.logits = relative(head, theirs), relative(ours, theirs)
    logs = [each.double().log_softmax(-1) for each in (theirs, ours)]
    report.agreement = {
        "same_token": (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item(),
        "kl": (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean().item(),
    }
    return report


def move(tensors, model):
    """The tensors in the dtype and on the device of a model."""
    weight = next(p for p in model.parameters() if p.dim() == 2 and p.is_floating_point())
    return [tensor.to(weight) for tensor in tensors]
