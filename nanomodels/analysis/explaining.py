"""One HTML page that shows what happened inside a model while it wrote an answer.

The text is read once more with a trace; the page draws what that recorded, and nothing else. It is
one file without a network: explain.html beside this file, with the numbers packed into it.
"""

import base64
import html
import json
import statistics
import sys
import zlib
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch

from nanomodels.analysis.lines import shape_comments, tensors_of, watch_lines
from nanomodels.analysis.tracing import is_layer, known_names, trace
from nanomodels.generation.decoding import generate, prefill

SHOWN = 400  # tokens at the end of the text whose insides are shown
TIMED = 16  # steps that are timed
TOP = 10  # alternatives of each token
LENS = 3  # tokens of the lens
ROADS, ROAD = 3, 12  # close calls, and tokens of what would have followed
EXPERTS = 8  # of each token, the best ones
SURE = 0.5  # share of a head's attention from which on it looks at one token
KEYS_BYTES = 1_200_000  # of all attention and memory rows, before they are compressed
MANY = (16, 8, 4, 2)  # heaviest keys of a row that are kept
LETTERS = {"Mamba": "M", "Attention": "*", "MoE": "E", "MLP": "-"}


@torch.inference_mode()
def explain(model, tokenizer, prompt, answer, about, progress=None):
    """The page, as text. prompt and answer are lists of ids; about: what the page says of itself.

    progress(done, total) is called as the model reads the text again, several times.
    Raises ValueError for a text that the model's context does not hold.
    """
    ids = [*prompt, *answer]
    if not len(ids) <= model.context_length:
        raise ValueError(
            f"the text has {len(ids)} tokens; the context holds {model.context_length}"
        )
    first = max(0, len(ids) - SHOWN)
    shown = len(ids) - first
    most = first + 2 * shown + min(TIMED, shown) + ROADS * (shown + ROAD)
    with counted_tokens(model, most, progress):
        start = model.new_cache(1, min(len(ids) + ROAD, model.context_length))
        if first:
            prefill(model, [ids[:first]], start)
        return make_page(model, tokenizer, ids, len(prompt), start, about)


def make_page(model, tokenizer, ids, prompt, start, about):
    """The page; prompt is a number of tokens, and the cache `start` holds those not shown."""
    first, known = start.length, min(tokenizer.vocab_size, model.config.vocab_size)
    records = record(model, ids, start)
    layers = [name for name in records.names() if is_layer(name)]
    numbers = Numbers()
    logits = records["logits"][0, :, :known]  # (t, v)
    page = {
        "about": about,
        "first": first,
        "prompt": prompt,
        "tokens": [token_text(tokenizer, i) for i in ids],
        "ids": ids,
        "alternatives": alternatives(tokenizer, logits, ids, first),
        "lens": lens_rows(model, tokenizer, records, layers, ids[first + 1 :], numbers),
        "layers": describe(model, records, layers, ids, start),
        "copies": copies(records, layers, ids, max(first, prompt - 1), first),
        "roads": roads(model, tokenizer, logits, ids, max(first, prompt - 1), start),
        "bytes": state_bytes(model),
    }
    pack_streams(records, layers, numbers)
    numbers.add("share", shares_of_logits(model, records, layers, ids[first + 1 :]))
    page["rows"] = pack_rows(records, layers, numbers)
    page["mamba"] = pack_mamba(records, layers, numbers)
    page["experts"] = pack_experts(model, records, layers, numbers)
    page["source"] = pack_lines(model, ids, start, layers, numbers)
    page["numbers"] = numbers.directory
    return fill_in(page, numbers.data())


@contextmanager
def counted_tokens(model, most, progress):
    """Call progress(done, most) with the tokens that the model has read; at the end it is done."""
    if progress is None:
        yield
        return
    done = 0

    def count(module, args, output):
        nonlocal done
        done += args[0].shape[1]
        progress(min(done, most - 1), most)

    progress(0, most)
    hook = model.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()
    progress(most, most)


def read_shown(model, ids, start):
    """Read the shown tokens in one call."""
    shown = torch.tensor([ids[start.length :]], device=start.positions.device)
    return model(shown, cache=start.clone())


def record(model, ids, start):
    """The records of the shown tokens."""
    known = ("attention", "dt", "decay", "x", "B", "C", "scores", "chosen", "weights")
    wanted = {"logits"}
    for name in known_names(model):
        if is_layer(name) or name.rpartition(".")[2] in (*known, "state_norm", "in"):
            wanted.add(name)
    with trace(model, *sorted(wanted), keep=keep_heaviest) as records:
        read_shown(model, ids, start)
    return records


def keep_heaviest(name, tensor):
    return heaviest(tensor) if name.endswith(".attention") else tensor


def heaviest(rows):
    """Of each row of weights (..., s) the heaviest k, with their keys: (..., k, 2)."""
    weights, keys = rows.topk(min(MANY[0], rows.shape[-1]))
    return torch.stack((weights, keys.float()), -1)


# --- Tokens ---


def token_text(tokenizer, token):
    """A token as it is shown: its text, or its bytes where they are no whole characters."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "⟨" + data.hex(" ") + "⟩"


def alternatives(tokenizer, logits, ids, first):
    """After each shown token: the likeliest next ones, and the probability and rank of the one that
    came. After the last token nothing came.
    """
    rows = []
    probabilities = logits.softmax(-1)
    for place, following in enumerate([*ids[first + 1 :], None]):
        values, tokens = probabilities[place].topk(min(TOP, logits.shape[-1]))
        pairs = zip(tokens.tolist(), values.tolist(), strict=True)
        row = {"top": [[token_text(tokenizer, i), round(p, 6)] for i, p in pairs]}
        if following is not None:
            p = probabilities[place, following]
            rank = int((probabilities[place] > p).sum()) + 1
            row |= {"p": round(p.item(), 6), "rank": rank}
        rows.append(row)
    return rows


def copies(records, layers, ids, begin, first):
    """Where a head looked at the very token that was written next: runs, the longest first.

    A run is `count` tokens from token `at` on, which are those from token `from` on. Heads of
    `layer` looked there, each with at least `share`; `head` is that of the first token.
    """
    runs = []
    for i in range(begin, len(ids) - 1):
        looks = []  # (share, layer, head, key)
        for layer, name in enumerate(layers):
            if f"{name}.attention" in records.shapes:
                top = records[f"{name}.attention"][0, :, i - first, 0].tolist()  # of each head
                looks += [(share, layer, head, int(key)) for head, (share, key) in enumerate(top)]
        looks = [look for look in looks if look[0] >= SURE and ids[look[3]] == ids[i + 1]]
        if runs and runs[-1]["at"] + runs[-1]["count"] == i + 1:
            last = runs[-1]
            wanted = last["layer"], last["from"] + last["count"]
            if on := [look for look in looks if (look[1], look[3]) == wanted]:
                last["count"] += 1
                last["share"] = min(last["share"], max(on)[0])
                continue
        if looks:
            share, layer, head, key = max(looks)
            run = {"at": i + 1, "from": key, "count": 1, "share": share}
            runs.append(run | {"layer": layer, "head": head})
    return sorted(runs, key=lambda run: -run["count"])


def roads(model, tokenizer, logits, ids, begin, start):
    """What the model would have written after the runner-up, where the call was closest."""
    offset, known = start.length, logits.shape[-1]
    places = range(begin - offset, len(logits) - 1)
    margins = []
    for place in places:
        values, tokens = logits[place].softmax(-1).topk(2)
        other = next(t for t in tokens.tolist() if t != ids[place + offset + 1])
        margins.append(((values[0] - values[1]).item(), place + offset + 1, other))
    found = []
    for margin, at, other in sorted(margins)[:ROADS]:
        text = [*ids[:at], other]
        more = generate(
            model, text, cache=start.clone(), max_new_tokens=ROAD, vocab_size=known, temperature=0.0
        )
        found.append({"at": at, "margin": margin, "text": tokenizer.decode([other, *more])})
    return found


# --- Layers ---


def describe(model, records, layers, ids, start):
    """What each layer is, the bytes that a token reads of it, and its seconds."""
    seconds = time_layers(model, layers, ids, start)
    modules, described = dict(model.named_modules()), []
    for name in layers:
        module = modules[name]
        mixer = type(getattr(module, "mixer", None)).__name__
        described.append(
            {
                "name": name,
                "letter": LETTERS.get(mixer, "*-"),
                "kind": {"MoE": "experts"}.get(mixer, mixer.lower())
                if mixer in LETTERS
                else "attention and MLP",
                "bytes": read_bytes(model, module),
                "ms": 1000 * seconds.get(name, 0.0),
            }
        )
    return described


def time_layers(model, layers, ids, start):
    """The median seconds of each layer in a decode step, over the first shown tokens."""
    cache = start.clone()
    with trace(model, "seconds") as records:
        for i in ids[start.length :][:TIMED]:
            model(torch.tensor([[i]], device=cache.positions.device), cache=cache)
    return {name: statistics.median(records.seconds[name]) for name in layers}


def read_bytes(model, module):
    """Bytes of weights that one token reads of a layer: of experts, those that are chosen."""
    size = 0
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        share = 1
        if ".experts." in name:
            share = model.config.num_experts_per_tok / model.config.n_routed_experts
        size += tensor.numel() * tensor.element_size() * share
    return int(size)


def state_bytes(model):
    """What the cache keeps: bytes for each token, and bytes whatever the length."""
    sizes = []
    for length in (1, 2):
        tensors = model.new_cache(1, length).tensors(length)
        sizes.append(
            sum(x.numel() * x.element_size() for n, x in tensors.items() if n.startswith("entries"))
        )
    return {"token": sizes[1] - sizes[0], "fixed": 2 * sizes[0] - sizes[1]}


# --- The lens ---


def lens(model, x, middle=None):
    """The logits as if x (b, t, m) were the last hidden states; middle: of nanochat of 2026."""
    if middle is not None:
        x = x - model.backout_lambda[0] * middle
    logits = model.lm_head(last_norm(model)(x)).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def last_norm(model):
    if hasattr(model, "norm_f"):
        return model.norm_f
    if hasattr(model, "model"):
        return model.model.norm
    rms_norm = sys.modules[type(model).__module__].rms_norm
    return lambda x: rms_norm(x, model.config.rms_norm_eps)


def shares_of_logits(model, records, layers, following):
    """What the embedding and each layer add to the logit of the token that came: (1 + l, t).

    They sum to the logit before the cap, without what the bias of the last norm adds: a norm is
    linear but for its scale, which is that of the last hidden states. With backout of nanochat of
    2026, a last row has what that adds.
    """
    x = [records[f"{layers[0]}.in"][0].double(), *(records[name][0].double() for name in layers)]
    parts = [x[0], *(after - before for before, after in pairwise(x))]
    if hasattr(model, "backout_lambda"):
        parts.append(-model.backout_lambda[0].double().cpu() * x[1 + len(layers) // 2])
    norm, gain = last_norm(model), 1.0
    if hasattr(norm, "weight"):
        gain = norm.weight.detach().double().cpu()
    if hasattr(norm, "bias"):  # a LayerNorm1P takes the mean off, and 1 from its weight
        parts, gain = [part - part.mean(-1, keepdim=True) for part in parts], gain + 1
    eps = norm.eps if hasattr(norm, "eps") else model.config.rms_norm_eps
    gain = gain * (sum(parts).square().mean(-1, keepdim=True) + eps).rsqrt()  # (t, m)
    device, dtype = model.lm_head.weight.device, records[layers[0]].dtype
    rows = []
    for part in parts:
        logits = model.lm_head((part * gain)[:-1].to(device, dtype)).float().cpu()
        rows.append(logits.gather(1, torch.tensor(following, dtype=torch.long)[:, None])[:, 0])
    return torch.stack(rows)


def lens_rows(model, tokenizer, records, layers, following, numbers):
    """The likeliest tokens after each layer: [layer][token] lists of texts; and probabilities."""
    device = model.lm_head.weight.device
    middle = None
    rows, probabilities, own = [], [], []
    for i, name in enumerate(layers):
        x = records[name].to(device)
        if hasattr(model, "backout_lambda") and i == len(layers) // 2:
            middle = x
        p = lens(model, x, middle)[0, :, : tokenizer.vocab_size].softmax(-1).cpu()
        values, tokens = p.topk(LENS)
        rows.append([[token_text(tokenizer, t) for t in each] for each in tokens.tolist()])
        probabilities.append(values)
        own.append(p[:-1].gather(1, torch.tensor(following, dtype=torch.long)[:, None])[:, 0])
    numbers.add("lens", torch.stack(probabilities), 0, 1)  # (l, t, 3)
    numbers.add("lens.own", torch.stack(own), 0, 1)  # (l, t - 1): of the token that came
    return rows


# --- Numbers ---


class Numbers:
    """Arrays of numbers in 1 byte each, between two bounds, or in 2 bytes as they are."""

    def __init__(self):
        self.directory, self.parts, self.size = {}, [], 0

    def add(self, name, tensor, low=None, high=None, log=False):
        """Add an array; with log, its logarithm to base 2 is stored, 0 as the lowest."""
        x = tensor.double()
        if log:
            least = x[x > 0].min().item() if (x > 0).any() else 1.0
            x = x.clamp(min=least).log2()
        low = (x.min().item() if x.numel() else 0.0) if low is None else low
        high = (x.max().item() if x.numel() else 0.0) if high is None else high
        step = (high - low) / 255 or 1.0
        codes = ((x - low) / step).round().clamp(0, 255).to(torch.uint8)
        self.put(name, codes, {"low": low, "step": step, "log": log})

    def add_whole(self, name, tensor):
        """Add an array of whole numbers below 65,536."""
        self.put(name, tensor.to(torch.int32).to(torch.uint16), {"whole": True})

    def put(self, name, codes, about):
        data = codes.contiguous().numpy().tobytes()
        self.directory[name] = about | {"at": self.size, "shape": list(codes.shape)}
        data += b"\0" * (-len(data) % 2)
        self.parts.append(data)
        self.size += len(data)

    def data(self):
        """All arrays, compressed (raw deflate), in base64."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return base64.b64encode(packer.compress(b"".join(self.parts)) + packer.flush()).decode()


def pack_streams(records, layers, numbers):
    """The length of the stream after each layer, and of what the layer has written."""
    after = torch.stack([records[name][0].float() for name in layers])  # (l, t, m)
    before = torch.stack([records[f"{name}.in"][0].float() for name in layers])
    numbers.add("stream", after.norm(dim=-1), log=True)
    numbers.add("write", (after - before).norm(dim=-1), log=True)


def pack_rows(records, layers, numbers):
    """What each token takes from which others, the heaviest of each row: [{layer, names}, ...].

    An attention layer has a row for each head. A Mamba layer has two, over all its heads:
    "read", the shares of |C_i . B_j decay dt_j| |x_j|, and "held", the shares of
    decay dt_j |x_j| |B_j|: an upper bound of what the state has of each token.
    """
    found = []
    for i, name in enumerate(layers):
        if f"{name}.attention" in records.shapes:
            rows = records[f"{name}.attention"][0]  # (h, t, k, 2)
            found.append((i, [f"head {h}" for h in range(len(rows))], rows))
        elif f"{name}.dt" in records.shapes:
            found.append((i, ["read", "held"], heaviest(memory_rows(records, name))))
    total = sum(rows[..., 0, 0].numel() for _, _, rows in found)
    count = next((k for k in MANY if 3 * k * total <= KEYS_BYTES), MANY[-1])
    packed = []
    for i, names, rows in found:
        weights, keys = rows[..., :count, :].unbind(-1)  # (h, t, k)
        numbers.add(f"rows.{i}", weights, 0, 1)
        numbers.add_whole(f"rows.{i}.keys", keys)
        kept = weights.sum(-1)
        least = kept[kept > 0].min().item() if (kept > 0).any() else 1.0
        packed.append({"layer": i, "names": names, "keys": weights.shape[-1], "least": least})
    return packed


def memory_rows(records, name):
    """ "read" and "held" of a Mamba layer (2, t, t), each row with the sum 1."""
    x, dt, decay, B, C = (
        records[f"{name}.{n}"][0].double() for n in ("x", "dt", "decay", "B", "C")
    )
    t, h, _ = x.shape
    a = decay.clamp(min=1e-300).log().cumsum(0)  # (t, h)
    kept = (a[:, None] - a[None]).clamp(max=0).exp()  # (t, s, h)
    kept = kept * torch.ones(t, t, dtype=torch.double).tril()[..., None]
    B, C = (each.repeat_interleave(h // each.shape[1], 1) for each in (B, C))  # (t, h, n)
    written = kept * (dt * x.norm(dim=-1))[None]  # (t, s, h)
    scores = torch.einsum("thn,shn->tsh", C, B).abs()
    rows = torch.stack(((written * scores).sum(-1), (written * B.norm(dim=-1)[None]).sum(-1)))
    return (rows / rows.sum(-1, keepdim=True).clamp(min=1e-300)).float()


def pack_mamba(records, layers, numbers):
    """dt, the state's length and the half-life of each head of each Mamba layer."""
    packed = []
    for i, name in enumerate(layers):
        if f"{name}.dt" not in records.shapes:
            continue
        decay = records[f"{name}.decay"][0].double()  # (t, h)
        numbers.add(f"dt.{i}", records[f"{name}.dt"][0], log=True)
        numbers.add(f"norm.{i}", records[f"{name}.state_norm"][0], log=True)
        mean = decay.clamp(min=1e-300).log().mean(0)  # of a token
        half = (-0.6931471805599453 / mean.clamp(max=-1e-12)).tolist()
        packed.append({"layer": i, "half": [round(each, 4) for each in half]})
    return packed


def pack_experts(model, records, layers, numbers):
    """Of each token the experts with the best choice, score plus bias."""
    modules, packed = dict(model.named_modules()), []
    for i, name in enumerate(layers):
        if f"{name}.scores" not in records.shapes:
            continue
        router = next(m for m in modules[name].modules() if type(m).__name__ == "Router")
        scores = records[f"{name}.scores"][0]  # (t, e)
        bias = router.e_score_correction_bias.float().cpu()
        chosen, weights = records[f"{name}.chosen"][0], records[f"{name}.weights"][0]
        weight = torch.zeros_like(scores).scatter(1, chosen, weights)
        picked = torch.zeros_like(scores).scatter(1, chosen, 1.0)
        best = (scores + bias + 10 * picked).topk(min(EXPERTS, scores.shape[-1])).indices
        numbers.add_whole(f"experts.{i}", best)
        for part, values in (
            ("score", scores),
            ("bias", bias.expand_as(scores)),
            ("weight", weight),
        ):
            numbers.add(f"experts.{i}.{part}", values.gather(1, best))
        used = torch.bincount(chosen.flatten(), minlength=scores.shape[-1]).tolist()
        packed.append({"layer": i, "chosen": chosen.shape[-1], "used": used})
    return packed


def pack_lines(model, ids, start, layers, numbers):
    """What the lines of the decoder's file make, of each layer and token: the root mean square.

    Only of lines with a shape comment that has tokens in it: t, l of a chunk, or rows r.
    """
    code = Path(sys.modules[type(model).__module__].__file__).read_text(encoding="utf-8")
    comments, modules = shape_comments(code), dict(model.named_modules())
    seen, running = {name: {} for name in layers}, []

    def made(line, place, value):
        for tensor, comment in tensors_of(value, comments[line]):
            letters = comment.strip("()").split(", ")
            dim = next((i for i, letter in enumerate(letters) if letter in "tlr"), None)
            if not running or dim is None:
                continue
            square = tensor.detach().float().square().movedim(dim, 0).flatten(1).mean(1)
            pieces, _ = seen[running[0]].setdefault(line, ([], list(tensor.shape)))
            pieces.append(square.sqrt().cpu())

    hooks = []
    for name in layers:
        begin = modules[name].register_forward_pre_hook(lambda *_, name=name: running.append(name))
        hooks += [begin, modules[name].register_forward_hook(lambda *_: running.clear())]
    with watch_lines(model, made):
        read_shown(model, ids, start)
    for hook in hooks:
        hook.remove()
    found = []
    for i, name in enumerate(layers):
        tokens = len(ids) - start.length
        rows = {n: (torch.cat(some), s) for n, (some, s) in sorted(seen[name].items())}
        # Not the line whose -inf hides later tokens.
        rows = {n: row for n, row in rows.items() if row[0].isfinite().all()}
        if rows:  # a line that runs twice, as `rotate` does for q and k, as it ran first
            first_runs = torch.stack([row[:tokens] for row, _ in rows.values()])
            numbers.add(f"lines.{i}", first_runs, log=True)  # (lines, t)
        found.append([[n, shape] for n, (_, shape) in rows.items()])
    name = type(model).__module__.rpartition(".")[2] + ".py"
    return {"name": name, "code": code.splitlines(), "lines": found}


# --- The page ---


def fill_in(page, data):
    """explain.html with the page's content."""
    content = json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":  # so that no text ends the script
        content = content.replace(character, f"\\u{ord(character):04x}")
    template = (Path(__file__).parent / "explain.html").read_text(encoding="utf-8")
    text = "".join(page["tokens"])
    parts = {"TEXT": html.escape(text), "CONTENT": content, "DATA": data}
    before, *rest = template.split("<!--PART ")
    return before + "".join(
        parts[name] + after for name, after in (part.split("-->", 1) for part in rest)
    )
