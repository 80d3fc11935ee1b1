"""Damaged files and command lines: each must end in one clear line, soon, and leave nothing behind.

    python tests/fuzz.py [--seconds 60] [--seed N] [--keep FOLDER]

Each case copies a small checkpoint, changes a file of it, and runs generate.py or convert_hf.py in
a process of its own, with limits of time and memory. The seed of a case decides all of it:
`--seed N --cases 1` runs case N again. torch is imported once; each case is a fork of this process.

What is a finding: see `judge`. Exit status: 0, or 1 if there are findings.
"""

import argparse
import faulthandler
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import convert_hf  # noqa: E402
import generate  # noqa: E402
import nanomodels  # noqa: E402
from nanomodels.checkpoint import convert, modelopt, writing  # noqa: E402, F401 (before the forks)
from nanomodels.cli.command import exit_status  # noqa: E402

DATA = ROOT / "tests" / "data"
SECONDS, GIGABYTES, CHARACTERS = 10, 2, 2000  # at most; of a message's characters
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Case:
    """What one process is to do, and where."""

    seed: int
    folder: Path  # with SRC, the checkpoint, and whatever else the command reads
    command: str  # "generate", "convert" or "cache"
    argv: list
    changed: str = ""  # what was changed, in words


@dataclass
class Result:
    """How it ended."""

    status: int  # negative: a signal
    stdout: str
    stderr: str
    seconds: float = 0.0
    gigabytes: float = 0.0
    left: list = field(default_factory=list)  # files that are there now and were not before
    gone: list = field(default_factory=list)


def judge(case, result):
    """What is wrong, as a list of kinds; an empty list: nothing."""
    kinds, lines = [], result.stderr.splitlines()
    if "Traceback (most recent" in result.stderr:
        places = re.findall(r'File ".*/nanomodels/(.*)\.py", line (\d+)', result.stderr)
        module, line = places[-1] if places else ("?", "?")
        kinds.append(f"traceback: {lines[-1].split(':')[0][:60]} in {module} line {line}")
    elif result.seconds > SECONDS:
        kinds.append(f"more than {SECONDS} s")
    elif result.status < 0:
        kinds.append(f"signal {signal.Signals(-result.status).name}")
    elif result.status not in (0, 2, 130):
        kinds.append(f"exit status {result.status}")
    elif result.status == 2:
        # Without --quiet there may be figures before the error.
        errors = [line for line in lines if re.match(r"\w+(\.py)?: error: ", line)]
        if len(errors) != 1 or ("--quiet" in case.argv and len(lines) != 1):
            kinds.append(f"{len(lines)} lines on stderr")
    if result.gigabytes > GIGABYTES:
        kinds.append(f"more than {GIGABYTES} GB")
    told = lines + (result.stdout.splitlines() if case.command == "convert" else [])
    if not kinds and any(map(CONTROL.search, told)):
        kinds.append("control characters")
    if not kinds and max(map(len, told), default=0) > CHARACTERS:
        kinds.append(f"a message of more than {CHARACTERS} characters")
    if result.left or result.gone:
        kinds.append(f"files left behind: {', '.join(result.left + result.gone)[:80]}")
    return kinds


# --- One case in a process of its own ---


def run(case, work, lines=None, seconds=SECONDS):
    """Run work(case), which returns an exit status, in a fork; returns a Result.

    lines is a file for the numbers of the lines reached; None: they are not counted.
    """
    base = memory_in_use()  # the fork starts with that
    before, temporary = names(case.folder), case.folder.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    streams = [case.folder.parent / name for name in ("stdout", "stderr")]
    began = time.monotonic()
    if (pid := os.fork()) == 0:
        inside(case, work, streams, temporary, lines)
    try:
        status, usage, took = wait(pid, began, seconds)
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise
    after, dst = names(case.folder), {"DST"} if status == 0 else set()
    left = sorted(name for name in after - before if name.split("/")[0] not in dst)
    left += [f"tmp/{name}" for name in sorted(names(temporary))]
    shutil.rmtree(temporary)
    gigabytes = (usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) - base) / 1e9
    out, err = (stream.read_bytes()[:4_000_000].decode(errors="replace") for stream in streams)
    return Result(status, out, err, took, gigabytes, left, sorted(before - after))


def names(folder):
    """Paths of all that is in a folder; links are not followed."""
    found = set()
    for at, folders, files in os.walk(folder):
        found |= {os.path.relpath(os.path.join(at, name), folder) for name in folders + files}
    return found


def wait(pid, began, seconds):
    """The exit status, the resources and the time of a process, killed after some seconds."""
    pause = 0.001
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        took = time.monotonic() - began
        if done:
            return os.waitstatus_to_exitcode(status), usage, took
        if took > seconds + 0.5:
            os.kill(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def inside(case, work, streams, temporary, lines):
    """What the fork does; it never returns."""
    status = 1
    try:
        os.setsid()
        faulthandler.disable()  # pytest's would show where a signal struck
        for number, path in zip((0, 1, 2), (os.devnull, *streams), strict=True):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags, 0o600), number)
        for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        os.chdir(case.folder)
        # Of virtual memory: what this process has, and twice what a case may take.
        held = virtual_memory()
        if held:
            limit = held + int(2 * GIGABYTES * 10**9)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tracer = Lines() if lines else None
        sys.settrace(tracer)
        try:
            status = work(case)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            sys.settrace(None)
            if tracer:
                Path(lines).write_text("\n".join(tracer.found))
    except BaseException:
        traceback.print_exc()
    with suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def virtual_memory():
    """Bytes of address space that this process has; None where the system does not tell."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def memory_in_use():
    """Bytes of memory that this process has; 0 where the system does not tell."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


class Lines:
    """A trace function that notes which lines of nanomodels are reached."""

    def __init__(self):
        self.found = set()

    def __call__(self, frame, event, _):
        name = frame.f_code.co_filename
        return self.line if "/nanomodels/" in name else None

    def line(self, frame, event, _):
        self.found.add(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return self.line


def work(case):
    """Run the command of a case; returns its exit status."""
    if case.command == "cache":
        return exit_status("cache", lambda: continue_cache(case))
    return {"generate": generate, "convert": convert_hf}[case.command].main(case.argv)


def continue_cache(case):
    """Load a cache file, and use it if it is taken."""
    model = MODELS[case.argv[0]]
    cache = model.new_cache(2, 24)
    rows = cache.load(case.folder / "saved")
    with torch.inference_mode():
        model(torch.zeros(2, 4, dtype=torch.long), cache=cache)
    assert all(type(i) is int for row in rows for i in row)


# --- Undamaged checkpoints ---

MODELS = {}  # for cache files: the name of a checkpoint: the model


def originals(folder):
    """Write small checkpoints of each layout to a folder; returns their paths, by name."""
    found = {}
    sources = [ROOT / "weights" / name for name in TINY] + [DATA / name for name in NATIVE]
    for source in sources:
        found[source.name] = folder / source.name
        shutil.copytree(source, found[source.name], ignore=shutil.ignore_patterns("*expected*"))
    source = found["nemotron-tiny"]
    tensors = load_file(source / "model.safetensors")
    rest = shutil.ignore_patterns("model.safetensors")
    for name in ("sharded", "bin", "legacy", "model"):
        found[name] = folder / name
        shutil.copytree(source, found[name], ignore=rest)
    halves = list(tensors)[::2], list(tensors)[1::2]
    for n, half in enumerate(halves):
        save_file({name: tensors[name] for name in half}, found["sharded"] / f"{n}.safetensors")
    index = {name: f"{n}.safetensors" for n, half in enumerate(halves) for name in half}
    index = json.dumps({"metadata": {}, "weight_map": index})
    (found["sharded"] / "model.safetensors.index.json").write_text(index)
    torch.save(tensors, found["bin"] / "pytorch_model.bin")
    old = {"_use_new_zipfile_serialization": False}
    torch.save(tensors, found["legacy"] / "pytorch_model.bin", **old)
    save_file(tensors, found["model"] / "model.safetensors")
    (found["model"] / "tokenizer.json").unlink()
    (found["model"] / "tokenizer_config.json").unlink()
    (found["model"] / "tokenizer.model").write_bytes(sentencepiece_model())
    found["cache"] = folder / "cache"
    found["cache"].mkdir()
    for name in ("nanochat-tiny", "nemotron-h-tiny", "nanochat-2026-07-03"):
        MODELS[name] = model = nanomodels.load(found[name])
        nanomodels.Tokenizer.load(found[name])  # imports what the cases need
        cache = model.new_cache(2, 20)
        ids = torch.arange(10).view(2, 5)
        with torch.inference_mode():
            model(ids, cache=cache, attention_mask=torch.tensor([[1] * 5, [0, 0, 1, 1, 1]]))
        cache.save(found["cache"] / name, [ids[0].tolist(), ids[1, 2:].tolist()])
    return found


TINY = ("nanochat-tiny", "nemotron-tiny", "nemotron-h-tiny")
NATIVE = ("nanochat-2025-10-16", "nanochat-2026-01-18", "nanochat-2026-07-03")


def sentencepiece_model():
    """A small .model file, trained on this source."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(Path(__file__).read_text().splitlines()),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",  # others are refused
        minloglevel=2,
    )
    return model.getvalue()


# --- Damage ---

DEEP = "[" * 3000 + "]" * 3000
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**24, 2**31, 2**63, 10**400, 0.5, -0.5, 1e-320,
    1e-30, 1e30, 1e308, float("nan"), float("inf"), "", "x", "<s>", "\x1b]0;x\x07\x1b[2J", "\u202e",
    "a" * 3000, "A" * 10**6, "../../etc/passwd", "\ud800", "\x00", [], {}, [[]], [None], [1], [1.5],
    ["a"], {"a": 1}, {"__float__": []}, {"content": 5}, [{}],
]  # fmt: skip
PATTERNS = [
    "",
    "x*",
    "h*?",
    "(?:h|h)+(?!b)Q|.",
    "(?:)",
    "(a+)+$",
    "[",
    "\\p{Z",
    "(?<n>a)\\k<n>",
    ".",
]
TEMPLATES = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * (3 * 10**9) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:>3000000000}'.format(1) }}",
    "{{ 'a'.zfill(3000000000) }}",
    "{{ messages|tojson(indent=2000000000) }}",
    "{{ 7**(10**8) }}",
    "{{ lipsum(n=10**6) }}",
    "{% set ns = namespace(x=1) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}{{ ns.x }}",
    "{{ cycler() }}",
    "{% break %}",
    "{% for i in [1] %}" * 21 + "{% endfor %}" * 21,
    "{{ raise_exception('\\x1b[2J') }}",
    "{{ raise_exception('a' * 100000) }}",
    "{{ messages[0].content.__class__ }}",
    "{{ undefined.x }}",
    "{% include 'x' %}",
    "{{ messages|map('upper')|list }}",
    "{{ 1 // 0 }}",
    "{{ 'a'|int('x') }}",
    "{{ strftime_now('%' * 100000) }}",
]
TUPLES = b"".join(b"\x94" + b"0h" + bytes([n]) * 2 + b"\x86" for n in range(60))
PICKLES = [
    b"\x80\x04})" + b"\x85" * 200_000 + b"K\x01s.",
    b"\x80\x04})" + TUPLES + b"K\x01s.",
    b"\x80\x02X\x01",
    b"\x80\x04\x96" + (2**40).to_bytes(8, "little") + b".",
    b"\x80\x04cos\nsystem\n\x8c\x04true\x85R.",
    pickle.dumps({"mergeable_ranks": {b"a": 0}, "pat_str": "", "special_tokens": {}, "name": "x"}),
    b"\x80\x04(lp0\n0" + b"g0\n" * 3 + b".",
    b"\x80\x04\x8a\xff" + b"\xff" * 255 + b".",
]


def damage_bytes(rng, data):
    """Flip, cut, repeat or insert a few bytes; more often near the beginning and the end."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        size = len(data)
        reach = min(size, rng.choice((16, 300, 5000, size)))
        at = rng.randrange(reach + 1)
        at = size - at if rng.random() < 0.3 else at
        kind, n = rng.randrange(6), rng.choice((1, 1, 2, 4, 8, 100))
        if kind < 2 and at < size:
            data[at] = rng.choice((0, 1, 127, 128, 255, data[at] ^ 1 << rng.randrange(8)))
        elif kind == 2:
            del data[at : at + n]
        elif kind == 3:
            data[at:at] = data[at : at + n] * rng.choice((1, 2, 50))
        elif kind == 4:
            data[at : at + n] = rng.randbytes(n)
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def damage_text(rng, text, words):
    """Insert words of a language at random places, or cut out or repeat some of the text."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, n = rng.randrange(len(text) + 1), rng.choice((1, 3, 20, 200))
        kind = rng.randrange(4)
        if kind < 2:
            text = text[:at] + rng.choice(words) + text[at:]
        elif kind == 2:
            text = text[:at] + text[at + n :]
        else:
            text = text[:at] + text[at : at + n] * rng.choice((1, 30)) + text[at:]
    return text


# Keys of any JSON file whose values did harm, and such values.
SIZES, NUMBERS = [2**24, 10**6, 2**62], [10**400, 1e308, 1e-320, 1e30, 0]
REPLACE = {"type": "Replace", "pattern": {"String": "h"}, "content": "h" * 100}
HARMFUL = {
    "num_hidden_layers": SIZES,
    "n_layer": SIZES,
    "n_routed_experts": SIZES,
    "vocab_size": SIZES,
    "hidden_size": SIZES,
    "head_dim": SIZES,
    "rope_theta": NUMBERS,
    "factor": NUMBERS,
    "norm_eps": NUMBERS,
    "layer_norm_epsilon": NUMBERS,
    "temperature": NUMBERS,
    "hybrid_override_pattern": ["M" * 10**6, "*" * 10**6, "\x1b[2J"],
    "time_step_limit": [[{"__float__": []}, 1], [0, "Infinity"]],
    "chat_template": [*TEMPLATES, 5, [5], [{}]],
    "Regex": PATTERNS,
    "normalizer": [{"type": "Sequence", "normalizers": [REPLACE] * 5}],
    "ids": [[[1]], [None], ["a"], [1.5]],
    "added_tokens_decoder": [{"x": {}}],
    "shape": [[2**63, 0], [2**24, 2**24], [0] * 5000],
}


def entries(content, key):
    """All dicts in a JSON content that have a key."""
    if isinstance(content, dict | list):
        if isinstance(content, dict) and key in content:
            yield content
        for child in content.values() if isinstance(content, dict) else content:
            yield from entries(child, key)


def damage_json(rng, content):
    """Change some values in a JSON content, in place; returns what was done, in words."""
    told = []
    if rng.random() < 0.2:
        there = [key for key in HARMFUL if next(entries(content, key), None) is not None]
        if there:
            key = rng.choice(there)
            value = deepcopy(rng.choice(HARMFUL[key]))
            rng.choice(list(entries(content, key)))[key] = value
            return f"{key} = {value!r:.60}"
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        parent, path = content, []
        while True:
            keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
            if not keys:
                break
            key = rng.choice(keys)
            path.append(str(key)[:40])
            child = parent[key]
            if not isinstance(child, dict | list) or not child or rng.random() < 0.25:
                break
            parent = child
        if not keys:
            continue
        kind, value = rng.randrange(10), deepcopy(rng.choice(VALUES))
        if kind == 0:
            del parent[key]
            value = "deleted"
        elif kind == 1 and isinstance(parent, dict):
            parent[str(rng.choice(VALUES))[:300]] = parent.pop(key)
            value = "renamed"
        elif kind == 2:
            value = parent[key] = rng.choice(([child], {"a": child}, str(child)[:10_000]))
        elif kind == 3 and isinstance(child, int | float) and abs(child) < 1e300:
            value = parent[key] = rng.choice(
                (-child, child + 1, child * 2, child * 1000, child / 3)
            )
        elif kind == 3 and isinstance(child, list | str):
            value = parent[key] = child * rng.choice((0, 2, 100))
        elif kind == 4 and isinstance(child, str):
            value = parent[key] = rng.choice(PATTERNS + TEMPLATES)
        else:
            parent[key] = value
        told.append(f"{'.'.join(path)} = {value!r:.60}")
    return "; ".join(told)


def json_bytes(rng, data):
    """A damaged JSON file, and what was done to it."""
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice(
            (b"", b"{", b"[]", b"5", b"\xef\xbb\xbf" + data, data[:-1], DEEP.encode())
        ), ("no JSON, or another")
    if kind < 3:
        return damage_bytes(rng, data), "bytes"
    content = json.loads(data)
    told = damage_json(rng, content)
    return json.dumps(content).encode("utf-8", "surrogatepass"), told


def damage_safetensors(rng, data):
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size], data[8 + size :]
    kind = rng.randrange(8)
    if kind == 0:
        length = rng.choice((0, 1, size - 1, size + 1, 10**8, 2**63, 2**64 - 1))
        return length.to_bytes(8, "little") + data[8:], "header's length"
    if kind == 1:
        return damage_bytes(rng, data), "bytes"
    header, told = json_bytes(rng, header)
    return len(header).to_bytes(8, "little") + header + rest, told


def damage_zip(rng, data):
    """A damaged file of torch: its pickle, or any byte."""
    if data[:2] != b"PK" or rng.random() < 0.2:
        if rng.random() < 0.3:
            return rng.choice(PICKLES), "a hostile pickle"
        return damage_bytes(rng, data), "bytes"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    target = io.BytesIO()
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    entries[pickled] = damage_pickle(rng, entries[pickled])
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)  # without the time
    return target.getvalue(), "data.pkl"


def damage_pickle(rng, data):
    if rng.random() < 0.2:
        return rng.choice(PICKLES)
    data = bytearray(damage_bytes(rng, data))
    for _ in range(rng.choice((0, 1, 3))):
        at = rng.randrange(len(data) + 1)
        data[at:at] = bytes([rng.choice(b"()}]t\x85\x86\x87\x8fRbcisuajh0N\x94.2e\x81\x93Q")])
    return bytes(data)


JINJA = [
    *TEMPLATES, "{{", "}}", "{%", "%}", "{#", "{% if x %}", "{% endif %}", "{% endfor %}", "\x00",
    "{% set x = x %}", "{{ messages }}", "{{ messages[9] }}", "{{ x.y.z }}", "{{ 1 + 'a' }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% raw %}", "{% generation %}", "\x1b[2J",
    "{{ bos_token * 9 }}",
]  # fmt: skip


def damage(rng, name, data):
    """The damaged content of a file, and what was done, in words."""
    if name.endswith(".json"):
        return json_bytes(rng, data)
    if name.endswith(".safetensors") or "." not in name or name.startswith("nanochat-2026"):
        return damage_safetensors(rng, data)
    if name.endswith((".bin", ".pt")):
        return damage_zip(rng, data)
    if name.endswith(".pkl"):
        return damage_pickle(rng, data), "pickle"
    if name.endswith(".jinja"):
        return damage_text(rng, data.decode(), JINJA).encode(), "template"
    return damage_bytes(rng, data), "bytes"


def replace(rng, path):
    """Put something else than a file at a path; returns what, in words."""
    path.unlink()
    kind = rng.choice(("nothing", "folder", "pipe", "link to nothing", "/dev/zero", "/dev/full"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    elif kind != "nothing":
        path.symlink_to(kind)
    return kind


OPTIONS = {
    "--system": ["", "You are a fish.", "<|bos|>", "\x1b[2J", "a" * 3000],
    "--think": None,
    "--no-think": None,
    "--raw": None,
    "--json": None,
    "--quiet": None,
    "--tools": ["tools.json", "nowhere", ".", "/dev/full"],
    "--prompt-file": ["prompts.txt", "nowhere", ".", "SRC/config.json"],
    "--max-new-tokens": ["0", "1", "-1", "x", "9" * 30, "1e3"],
    "--temperature": ["0", "1", "-1", "nan", "inf", "1e-320", "1e308", "x"],
    "--top-k": ["0", "1", "-1", "9999999", "x"],
    "--top-p": ["0", "1", "0.5", "2", "-1", "nan"],
    "--min-p": ["0", "1", "0.5", "2", "-1", "nan"],
    "--repetition-penalty": ["1", "0", "-1", "1e308", "1e-320", "nan", "inf"],
    "--seed": ["0", "-1", "9" * 30, "18446744073709551615", "x"],
    "--num-samples": ["0", "1", "2", "-1", "x"],
    "--stop": ["", "e", "\x00", "a" * 3000],
    "--draft-lookup": ["0", "1", "4", "-1", "1000000", "x"],
    "--dtype": ["auto", "float32", "bfloat16", "float16", "x"],
    "--device": ["cpu", "auto", "tpu"],
    "--quantize": ["int4", "int8", "x"],
    "--era": ["2026-01-18", "2025-10-13", "", "x\x1b[2J"],
    "--model": ["SRC", "nowhere", "SRC/config.json", "", "\x00", "/dev/full"],
}
CONVERT = {
    "--to": ["hf", "nanomodels", "x"],
    "--dtype": ["float32", "bfloat16", "x"],
    "--quantize": ["int4", "int8", "x"],
    "--verify": None,
    "--force": None,
    "--quantize-head": None,
    "--dry-run": None,
    "--era": ["2026-01-18", "x"],
    "--step": ["10", "-1", "x"],
}
PROMPTS = [
    "hi",
    "",
    "h" * 3000,
    "<|user_end|><|assistant_start|>",
    "😀\u0301",
    "\x00",
    "\ud800",
    "a b",
]


def some_options(rng, options, most):
    """A few of the options with a value, as a list of arguments."""
    argv = []
    for name in rng.sample(sorted(options), rng.randrange(most + 1)):
        argv += [name] if options[name] is None else [name, rng.choice(options[name])]
    return argv


def make_case(seed, found, work_folder):
    """The case of a seed: its folder with a damaged checkpoint, and its command."""
    rng = random.Random(seed)
    folder = work_folder / "case"
    folder.mkdir()
    name = rng.choice([*found, "cache", "commands"])
    if name == "cache":
        source = rng.choice(sorted(MODELS))
        content, told = damage_safetensors(rng, (found["cache"] / source).read_bytes())
        (folder / "saved").write_bytes(content)
        return Case(seed, folder, "cache", [source], f"cache of {source}: {told}")
    base = rng.choice([*TINY, *NATIVE]) if name == "commands" else name
    shutil.copytree(found[base], folder / "SRC", copy_function=os.link)
    command = "convert" if rng.random() < 0.3 else "generate"
    (folder / "prompts.txt").write_text("one\ntwo\n\nthree")
    tools = [{"name": "f", "parameters": {"properties": {"x": {"type": "string"}}}}]
    tools = json.dumps(tools).encode()
    if name == "commands":
        told = "command line"
        if rng.random() < 0.3:
            tools, told = json_bytes(rng, tools)
    else:
        # Small files as often as large ones. Each of them decides something.
        path = rng.choice(sorted((folder / "SRC").iterdir()))
        if path.name == "tokenizer_config.json" and rng.random() < 0.3:
            path = path.with_name("chat_template.jinja")
            with suppress(FileNotFoundError):
                path.unlink()
            path.write_text(rng.choice([t.read_text() for t in sorted(DATA.glob("templates/*"))]))
        if rng.random() < 0.04:
            told = replace(rng, path)
        else:
            content, told = damage(rng, path.name, path.read_bytes())
            path.unlink()  # it is a link to the original
            path.write_bytes(content)
        told = f"{path.name}: {told}"
    (folder / "tools.json").write_bytes(tools)
    if command == "convert":
        argv = ["SRC", "DST", *some_options(rng, CONVERT, 5 if name == "commands" else 1)]
    else:
        argv = [*some_options(rng, OPTIONS, 5 if name == "commands" else 1)]
        argv = ["--model", "SRC", "--max-new-tokens", "3", "--quiet", "--device", "cpu", *argv]
        argv += [rng.choice(PROMPTS if name == "commands" else PROMPTS[:1])]
    return Case(seed, folder, command, argv, f"{base}: {told}")


# --- All cases ---


def keep_input(case, result, kinds, folder):
    """Copy a case to a folder, with what it said."""
    target = folder / str(case.seed)
    shutil.rmtree(target, ignore_errors=True)

    def ignore(at, names):  # pipes and devices
        paths = [Path(at, name) for name in names]
        return [path.name for path in paths if not (path.is_file() or path.is_dir())]

    shutil.copytree(case.folder, target, ignore=ignore, symlinks=True)
    told = [f"{case.command} {case.argv!r}", case.changed, *kinds, result.stderr[-5000:]]
    (target / "finding.txt").write_text("\n".join(told), encoding="utf-8", errors="replace")


def fuzz(seconds, cases, seed, keep, count_lines):
    """Run cases until the time is over, or so many; returns {kind: number of findings}."""
    torch.set_num_threads(1)
    findings, commands, slowest, reached = Counter(), Counter(), 0.0, set()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        temporary = Path(temporary)
        found = originals(temporary / "originals")
        n = 0
        while n < cases if cases else time.monotonic() - began < seconds:
            at = temporary / "work"
            at.mkdir()
            case = make_case(seed + n, found, at)
            lines = at / "lines" if count_lines else None
            result = run(case, work, lines)
            if kinds := judge(case, result):
                argv = " ".join(case.argv)
                print(f"seed {case.seed}: {'; '.join(kinds)}", flush=True)
                print(f"    {case.command} {argv!a:.150}\n    {case.changed!a:.200}", flush=True)
                findings.update(kinds)
                if keep:
                    keep_input(case, result, kinds, keep)
            if lines and lines.exists():
                reached.update(lines.read_text().split("\n"))
            commands[case.command] += 1
            slowest = max(slowest, result.seconds)
            shutil.rmtree(at)
            n += 1
    told = ", ".join(f"{count} {name}" for name, count in sorted(commands.items()))
    print(f"{n} cases from seed {seed} in {time.monotonic() - began:.0f} s ({told})")
    print(f"slowest {slowest:.1f} s; {sum(findings.values())} findings of {len(findings)} kinds")
    if count_lines:
        print(f"{len(reached)} lines of nanomodels reached")
    for kind, count in findings.most_common():
        print(f"{count:6} {kind}")
    return findings


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=60, help="time for all cases [60]")
    add("--cases", type=int, default=0, help="number of cases [as many as the time allows]")
    add("--seed", type=int, help="seed of the first case; later ones follow it [the clock]")
    add("--keep", type=Path, metavar="FOLDER", help="copy each input with a finding there")
    add("--lines", action="store_true", help="count the lines that are reached: slower")
    args = parser.parse_args(argv)
    seed = int(time.time()) * 1000 if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    return int(bool(fuzz(args.seconds, args.cases, seed, args.keep, args.lines)))


if __name__ == "__main__":
    sys.exit(main())
