"""Measuring: one child process for each side, asked in turn."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from statistics import correlation, median

from benchmark.checkpoints import ROOT
from benchmark.machine import limits
from benchmark.show import say
from benchmark.sides import INT4, LLAMA, LLAMA_4, OURS, SIDES, THEIRS
from benchmark.tasks import (
    context,
    decode,
    decode_graph,
    drafts,
    file_read,
    last_logits,
    load,
    make_gguf,
    prefill,
    weights_read,
    whole_run,
)

PLAIN, DRAFTS = "without", "with drafts"
GRAPH = "with graph"
BATCHES = (1, 8)
DRAFT = 10  # tokens, as --draft-lookup

QUESTION = "What is the capital of France?"
THEIR_COMMAND = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, question = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True,
)
ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:]), flush=True)
"""


def serve(pipe, name, folder):
    """A child process: does one (task, arguments) after the other until it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent kills this process
    import torch

    side = SIDES[name]() if name else None
    if side:
        side.folder = folder
    with torch.inference_mode(), suppress(EOFError):  # EOFError: the parent was killed
        while True:
            task, arguments = pipe.recv()
            try:
                pipe.send(task(side, *arguments))
            except ValueError as error:
                pipe.send(error)


@contextmanager
def child(name=None, folder=None):
    """A new process for a side, as a function that has it do a task and returns the result."""
    spawn = multiprocessing.get_context("spawn")
    pipe, far = spawn.Pipe()
    process = spawn.Process(target=serve, args=(far, name, folder), daemon=True)

    def ask(task, *arguments):
        pipe.send((task, arguments))
        try:
            found = pipe.recv()
            if isinstance(found, ValueError):
                raise found
            return found
        except EOFError:
            process.join()
            status = process.exitcode
            raise ChildProcessError(f"{name} ended with {status} at {task.__name__}") from None

    try:
        # Ctrl-C waits until the child has all its data; with half of it, it would print an error.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
        far.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield ask
    finally:
        process.kill()
        process.join()


def in_turn(asks, repeats, task, *arguments):
    """Ask each side in turn, once untimed and then `repeats` times: {label: {side: figure}}."""
    say(" ", task, *arguments)
    found = {}
    for n in range(repeats + 1):
        for side, ask in asks.items():
            time.sleep(0.05)  # the other side's threads stop spinning meanwhile
            figures = ask(task, *arguments)
            for label, value in figures.items() if n else ():
                found.setdefault(label, {}).setdefault(side, []).append(value)
    return summarised(found)


def summarised(figures):
    """{label: {side: [figure, ...]}} with median, least and greatest in place of the list."""
    return {
        label: {s: {"median": median(v), "min": min(v), "max": max(v)} for s, v in sides.items()}
        for label, sides in figures.items()
    }


def measure_limits(tiny):
    """The machine's limits, measured in a process of its own."""
    say("limits")
    with child() as ask:
        return ask(limits, tiny)


def measure_model(folder, tasks, repeats, llama):
    """All figures of one checkpoint: {other side: {label: {side: figure}}} and more."""
    peaks, read, figures, alike = {}, {}, {}, {}
    folders = {side: folder for side in SIDES} | {INT4: folder.with_name(f"{folder.name}-int4")}
    int4 = os.environ["NANOMODELS_BENCH_DEVICE"] == "cpu"
    if int4:
        convert(folder, folders[INT4])
    if llama:
        say("  convert to GGUF")
        with child() as ask:
            ask(make_gguf, folder)

    def compare(ours, base, other):
        """Measure two sides; `ours` is the child process of `base`."""
        say(f"  {base},", other)
        with child(other, folders[other]) as ask:
            peaks[other] = ask(whole_run)
            asks, table = {base: ours, other: ask}, {}
            for task in tasks:
                if other != INT4 or task not in ((prefill, 32), (prefill, 4096)):
                    table |= in_turn(asks, repeats, *task)
            alike[other] = correlation(ours(last_logits), ask(last_logits))
            if other == INT4:
                read[INT4] = {batch: ask(weights_read, batch) for batch in BATCHES}
            elif other in (LLAMA, LLAMA_4):
                shares = {batch: read[OURS][batch]["share of experts"] for batch in BATCHES}
                read[other] = {batch: ask(file_read, shares[batch]) for batch in BATCHES}
        peak = {"memory, GB": {side: [peaks[side]] for side in asks}}
        figures[other] = table | summarised(peak)

    with child(OURS, folder) as ours:  # never three at a time, to save memory
        peaks[OURS] = ours(whole_run)
        read[OURS] = read[THEIRS] = {batch: ours(weights_read, batch) for batch in BATCHES}
        for other in [THEIRS] + [INT4] * int4 + [LLAMA] * llama:
            compare(ours, OURS, other)
    if llama:
        with child(INT4, folders[INT4]) as ours:
            ours(whole_run)
            compare(ours, INT4, LLAMA_4)
    shutil.rmtree(folders[INT4], ignore_errors=True)
    return {"figures": figures, "correlation of logits": alike, "read": read}


def convert(folder, target):
    """Quantise a checkpoint to int4 by convert_hf.py."""
    """Write the folder's model in int4."""
    say("  convert to int4")
    options = ["--quantize", "int4", "--quantize-head"]
    command = [sys.executable, ROOT / "convert_hf.py", folder, target, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.sync()


def add_limits(found, limit):
    """Add GB/s beside tokens/s, and each figure's share of what the machine allows."""
    params = found["read"][OURS][1]["numbers"]
    head = found["read"][OURS][1]["numbers of the head"]
    for other, table in found["figures"].items():
        found["figures"][other] = whole = {}
        for label, sides in table.items():
            whole[label] = sides
            if label.startswith("prefill"):
                tokens = int(label.split()[1].strip(","))
                work = 2 * (tokens * (params - head) + head) / 1e12
                for figure in sides.values():
                    figure["share"] = (
                        figure["median"] * work / tokens / limit["bfloat16 TFLOP/s"][0]
                    )
            elif label.startswith("decode"):
                batch = int(label.split()[2].strip(","))
                whole[f"decode x {batch}, GB/s"] = rates = {}
                for side, figure in sides.items():
                    size = found["read"][side][batch]["bytes"] / batch / 1e9  # GB a token
                    rates[side] = {key: value * size for key, value in figure.items()}
                    rates[side]["share"] = rates[side]["median"] / limit["GB/s"][0]
                    figure["share"] = rates[side]["share"]


def measure_graph(folder, repeats):
    """Our decode steps with a CUDA graph and without: {label: {side: figure}}."""
    with child(OURS, folder) as ours:
        ours(load)
        asks = {GRAPH: partial(ours, decode_graph), PLAIN: partial(ours, decode)}
        say("  decode as a graph")
        tables = [in_turn(asks, repeats, batch) for batch in BATCHES]
    return tables[0] | tables[1]


def measure_drafts(folder, repeats):
    """Our tokens/s with drafts and without, for both kinds of text: {label: {side: figure}}."""
    with child(OURS, folder) as ours:
        ours(load)
        found = {}
        for kind in ("copied", "fresh"):
            say("  drafts", kind)
            for n in range(repeats + 1):
                for side, most in ((DRAFTS, DRAFT), (PLAIN, 0)):
                    for label, value in ours(drafts, kind, most).items() if n else ():
                        found.setdefault(label, {}).setdefault(side, []).append(value)
    return summarised(found)


def measure_context(folder, lengths, repeats):
    """Time per token and peak memory of ours, by the length of the prompt."""
    with child(OURS, folder) as ours:
        ours(load)
        return {tokens: in_turn({OURS: ours}, repeats, context, tokens) for tokens in lengths}


def measure_start(repeats):
    """Seconds from the start of a command to its first byte: {label: {side: figure}}."""
    folder = ROOT / "weights" / "nanochat-tiny"
    options = ["--quiet", "--temperature", "0", "--max-new-tokens", "1", "--model", folder]
    commands = {
        OURS: [ROOT / "generate.py", *options, QUESTION],
        THEIRS: ["-c", THEIR_COMMAND, folder, QUESTION],
    }
    times = {side: [] for side in commands}
    for n in range(repeats + 1):
        for side, command in commands.items():
            seconds = first_byte([sys.executable, *map(str, command)])
            times[side] += [seconds] if n else []
    return summarised({"first token, s": times})


def first_byte(command):
    """Seconds from the start of a command to the first byte that it prints."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            if process.stdout.read(1):
                return time.perf_counter() - began
            raise ChildProcessError(f"{command}: {process.stderr.read().decode()[-300:]}")
        finally:
            process.kill()
