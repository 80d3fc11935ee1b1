#!/usr/bin/env python3
"""Measure the machine's limits, and how close nanomodels and transformers come. For Linux, on CPUs.

For each model, random bf16 weights are written in the Hub's layout, and both sides load the files.
Each side is a process of its own. They are asked in turn, one at a time (ours, theirs, ours, ...),
once untimed and then --repeats times. Figures are medians (least-most). A gain is how many times
faster, or smaller, the first side is. After theirs has ended, int4 and bf16 of ours take turns:
int4 is what convert_hf.py --quantize int4 --quantize-head writes. Ours has its large linears
prepacked, as after the first tokens of a text (nanomodels/linears/prepacked.py), but not in `load`.

    read      the best rate, of several ways, at which 1 GB is read once
    matrix    the best rate of a bf16 product as in a prefill of 512 tokens. Both are measured
              before and after each model, and the better figure is that model's limit
    load      s; the files are in memory. Ours maps them and reads them in the first pass, so there
              is a second figure, which includes 32 tokens
    prefill   tokens/s of a prompt, with the logits of its last token; ours in pieces of 512 tokens,
              as generate.py does it, theirs in one. Limit: the matrix rate, with 2 operations for
              each weight that a token passes (of the head only once). Attention and scan do not
              count
    decode    tokens/s of 16 greedy steps after a prompt of 32 tokens and 2 untimed steps; batch 8
              has 8 prompts. transformers uses its own cache in a plain loop, because its generate()
              is slower
    GB/s      of the weights that these steps read: no embeddings, and only the experts chosen
              (counted in a step of ours). Limit: the read rate
    memory    GB, mapped files included: the most that a fresh process holds while it loads, reads
              512 tokens and decodes
    context   two Mamba layers: time per token and peak memory by the length of the prompt. Ours
              alone, because transformers 5.23.0 has no cache for a model without attention
    drafts    d20 with --draft-lookup and without, batch 1, bf16: tokens/s of a text that copies its
              prompt, and of one that never repeats itself. Random weights write neither, so the
              text is prescribed: each call computes its logits, and then they are changed
    start     s from the start of a command to the first byte of its answer; its files are in memory
    large     the whole Nemotron-3-Nano-30B-A3B in int4 with random codes, ours alone: 18.3 GB,
              first written to the temporary folder. Only if --models names it

--llama adds llama.cpp for the models that it has, Nemotron and Nemotron-H: in bf16 beside ours, and
in Q4_0, head included, beside ours in int4. It reads the same weights from mapped GGUF files, has
as many threads as torch, batches of up to 512 tokens, and otherwise its defaults. The time to make
a context counts in `load` alone. Its memory includes torch, which the measurements need. It does
not use AMX: it has no such code for bf16, and its code for Q4_0 crashes in many builds.

--device cuda measures the four models on a GPU, and turns on --graph, which compares our decode
steps with --cuda-graph and without. The limits are the rates of a copy and of products; memory is
the most that is allocated. There is no int4 side, and context, drafts and start run only if
--models names them.

--full takes more layers of nemotron-3, prompts of 4096 tokens, contexts up to 128k: half an hour.
Exit status: 0, 2 if a side fails, 130 after Ctrl-C.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmark.checkpoints import CONTEXT, FULL, LARGE, MODELS, ROOT, Skipped, write_checkpoint
from benchmark.measure import (
    BATCHES,
    DRAFT,
    DRAFTS,
    GRAPH,
    PLAIN,
    add_limits,
    child,
    measure_context,
    measure_drafts,
    measure_graph,
    measure_limits,
    measure_model,
    measure_start,
)
from benchmark.show import comparison, draw, print_context, print_model, print_table, say, short
from benchmark.sides import LLAMA, OURS, THEIRS
from benchmark.tasks import about_llama, decode, large_run, load, prefill

sys.path.insert(0, str(ROOT))  # for nanomodels, where it is not installed


def parse_arguments(argv):
    names = [*MODELS, "context", "drafts", "start", "large"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--full", action="store_true", help="large shapes, too")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the shares of the limit")
    add("--models", metavar="NAMES", help=f"some of {', '.join(names)}")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="[cpu]")
    add("--graph", action="store_true", help="decoding by CUDA graphs, too [on with cuda]")
    add("--threads", type=int, metavar="N", help="[as many as torch takes]")
    add("--repeats", type=int, default=5, metavar="N", help="of each measurement [5]")
    add("--llama", action="store_true", help="beside llama.cpp, too")
    add("--tiny", action="store_true", help="tiny shapes, to see whether this program works")
    args = parser.parse_args(argv)
    args.graph |= args.device == "cuda"
    default = names[:4] if args.device == "cuda" else names[:-1]
    args.models = args.models.split(",") if args.models else default
    if args.device == "cuda" and args.llama:
        parser.error("--llama goes with --device cpu")
    if unknown := set(args.models) - set(names):
        parser.error(f"--models: unknown: {', '.join(unknown)}; known: {', '.join(names)}")
    if args.repeats < 1 or args.threads not in (None, *range(1, 1025)):
        parser.error("--repeats and --threads must be 1 or more (threads: up to 1024)")
    if args.llama and not (find_spec("llama_cpp") and find_spec("gguf")):
        install = f"{sys.executable} -m pip install llama-cpp-python==0.3.36 gguf==0.19.0"
        parser.exit(2, f"bench.py: error: --llama needs two packages more: {install}\n")
    return args


def run(args, temp):
    """Measure, print and write what was asked for; checkpoints are written below `temp`."""
    cpu = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].split("\n")[0]
    first = measure_limits(args.tiny)
    machine = (
        f"{cpu or platform.machine()}, {first['threads']} threads, {args.device}; "
        f"torch {version('torch')}, transformers {version('transformers')}; "
        f"{time.strftime('%Y-%m-%d %H:%M')}"
    )
    print(f"# {machine}; load {os.getloadavg()[0]:.1f}, medians of {args.repeats}", flush=True)
    results = {
        "machine": machine,
        "repeats": args.repeats,
        "limits": [first],
        "models": {},
        "skipped": {},
    }
    if args.llama:
        with child() as ask:
            results["llama.cpp"] = ask(about_llama)
    tasks = [(load,), (prefill, 32), (prefill, 512)]
    tasks += [(prefill, 4096)] if args.full else []
    tasks += [(decode, batch) for batch in BATCHES]
    for name in args.models:
        say(name)
        if name == "start":
            results["start"] = measure_start(args.repeats)
            rows = list(comparison(results["start"], OURS, THEIRS))
            print_table("## start: nanochat-tiny, from the command to the first token", rows)
            continue
        parts = MODELS | {"context": CONTEXT, "drafts": MODELS["d20"], "large": LARGE}
        what, *config = FULL if args.full and name == "nemotron-3" else parts[name]
        folder = temp / name
        llama = args.llama and name in MODELS and name != "d20"
        try:
            size = write_checkpoint(folder, *config, args.tiny, llama)
        except Skipped as reason:
            results["skipped"][name] = str(reason)
            print(f"\n## {name}: skipped, {reason}", flush=True)
            continue
        if name == "context":
            last = 12 if args.tiny else 17 if args.full else 14
            lengths = [1 << n for n in range(10, last + 1)]
            results["context"] = measure_context(folder, lengths, args.repeats)
            print_context(results["context"])
        elif name == "large":
            with child(OURS, folder) as ask:
                found = ask(large_run)
            results["large"] = found | {"file, GB": size / 1e9}
            rows = [["", OURS], *([label, short(value)] for label, value in found.items())]
            print_table(f"## large: {what}, {size / 1e9:.1f} GB", rows)
        elif name == "drafts":
            results["drafts"] = measure_drafts(folder, args.repeats)
            rows = list(comparison(results["drafts"], DRAFTS, PLAIN))
            print_table(f"## drafts: {what}, drafts of up to {DRAFT} tokens; {OURS}", rows)
        else:
            found = measure_model(folder, tasks, args.repeats, llama)
            results["limits"].append(measure_limits(args.tiny))
            units = ("GB/s", "bfloat16 TFLOP/s", "float32 TFLOP/s")
            limit = {unit: max(one[unit] for one in results["limits"][-2:]) for unit in units}
            add_limits(found, limit)
            found |= {"what": what, "GB": size / 1e9, "limit": limit}
            results["models"][name] = found
            print_model(name, found, results.get("llama.cpp"))
            if args.graph:
                found["graph"] = measure_graph(folder, args.repeats)
                rows = list(comparison(found["graph"], GRAPH, PLAIN))
                print_table(f"## {name}: {OURS}, {GRAPH} and {PLAIN}", rows)
            if args.llama and not llama:
                results["skipped"][f"{name}, {LLAMA}"] = "it has no nanochat"
                print(f"\n## {name}, {LLAMA}: skipped, it has no nanochat", flush=True)
        shutil.rmtree(folder)
        write(args, results)
    write(args, results)


def write(args, results):
    """Called after each part, so that nothing is lost if a later one fails."""
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.plot:
        args.plot.write_text(draw(results["models"], results["machine"]))


def main(argv=None):
    args = parse_arguments(argv)
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # before torch is imported
    os.environ["NANOMODELS_BENCH_DEVICE"] = args.device
    os.environ["HF_HUB_OFFLINE"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # removes the temporary files
    try:
        with tempfile.TemporaryDirectory(prefix="nanomodels-bench-") as temp:
            run(args, Path(temp))
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        say("bench.py: error:", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
