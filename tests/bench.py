#!/usr/bin/env python3
"""The machine's limits, and how near to them nanomodels and transformers come. For Linux, on CPUs.

For each model random bf16 weights are written in the Hub's layout, and both sides load these files.
Each side is a process that stays alive; they are asked in turn, one at a time: ours, theirs, ours,
theirs, ... once untimed, then --repeats times. Figures are medians (least-most); a gain is how many
times faster, or smaller, the first side is. int4 and bf16 take turns, too, once theirs is gone;
int4 is what convert_hf.py --quantize int4 --quantize-head writes. Ours has its large linears in
order, as after a text's first tokens (nanomodels/linears/prepacked.py), but in `load`.

    read      the best rate, of several ways, at which 1 GB is read once
    matrix    the best rate of a bf16 product as in a prefill of 512 tokens. Both are measured
              before and after each model; the better one is that model's limit
    load      s, of files that are in memory. Ours maps them and reads them at the first pass, so
              there is a second figure, with 32 tokens read
    prefill   tokens/s of a prompt, with the logits of its last token; ours in pieces of 512 as
              generate.py does it, theirs at once. Limit: the matrix rate over 2 operations for each
              weight that a token passes, those of the head once; attention and scan are not counted
    decode    tokens/s of 16 greedy steps after a prompt of 32 tokens and 2 steps untimed, batch 8
              with 8 prompts. transformers with its own cache in a plain loop; its generate() is
              slower still
    GB/s      of the weights that these steps read: no embeddings, and only the experts chosen
              (counted in a step of ours). Limit: the read rate
    memory    GB, the most that a fresh process holds, mapped files included, which loads, reads
              512 tokens and decodes
    context   two Mamba layers: time per token and peak memory by the prompt's length; ours alone,
              as transformers 5.23.0 has no cache for a model without attention
    drafts    d20 with --draft-lookup and without, batch 1, bf16: tokens/s of a text that copies its
              prompt, and of one that never says the same again. Random weights say neither, so the
              text is laid down: each call computes its logits, and then others take their place
    start     s from starting a command to the first byte of its answer, its files in memory
    large     Nemotron-3-Nano-30B-A3B whole, in int4 with random codes: 18.3 GB, written to the
              temporary folder first. Only where --models names it; ours alone

--llama adds llama.cpp for the models that it has, Nemotron and Nemotron-H: in bf16 beside ours, and
in Q4_0, head included, beside ours in int4. It reads the same weights from GGUF files, mapped, and
has as many threads as torch, batches of up to 512 tokens, and its own defaults for the rest. The
time in which it makes a context counts in `load` alone. Its memory includes torch, which the tasks
need. It makes no use of AMX: for bf16 it has no code, and its code for Q4_0 crashes in many builds.

--device cuda measures the four models there, and --graph (ours as with --cuda-graph beside ours
without). Limits are the rate of a copy and of products, memory is the most allocated. There is no
int4 side, and no context, drafts and start unless --models names them.

--full takes a larger cut of nemotron-3, prompts of 4096 and contexts up to 128k: half an hour.
Exit status: 0, 2 if a side fails, 130 after Ctrl-C.
"""

import argparse
import ctypes
import gc
import html
import json
import math
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, groupby
from pathlib import Path
from statistics import correlation, mean, median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for nanomodels, where it is not installed
OURS, THEIRS, INT4 = "ours", "transformers", "ours int4"
LLAMA, LLAMA_4 = "llama.cpp", "llama.cpp Q4_0"
# The other side, by which a comparison is named -> what is compared, the new one first.
PAIRS = {
    THEIRS: (OURS, THEIRS),
    INT4: (INT4, OURS),
    LLAMA: (OURS, LLAMA),
    LLAMA_4: (INT4, LLAMA_4),
}
PLAIN, DRAFTS = "without", "with drafts"
PIECE, PROMPT, WARM, STEPS, BATCHES = 512, 32, 2, 16, (1, 8)
DRAFT = 10  # tokens, as --draft-lookup
GRAPH = "with graph"
DEVICE = os.environ.get("NANOMODELS_BENCH_DEVICE", "cpu")  # main sets it, for child processes

D20 = {
    "model_type": "nanochat",
    "vocab_size": 65536,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 20,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "max_position_embeddings": 4096,  # d20 has 2048; the speed does not depend on it
}
MINITRON, NANO_2 = "Minitron-4B-Base.json", "NVIDIA-Nemotron-Nano-9B-v2.partial.json"
NANO_3 = "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.json"
# Name -> what it is, its config.json or that of which it is a cut, and the layers of the cut.
MODELS = {
    "d20": ("nanochat d20", D20, {}),
    "minitron": ("8 layers of Minitron-4B", MINITRON, {"num_hidden_layers": 8}),
    "nemotron-h": ("M-M*M- of Nemotron-Nano-9B-v2", NANO_2, {"hybrid_override_pattern": "M-M*M-"}),
    "nemotron-3": ("MEM* of Nemotron-3-Nano-30B", NANO_3, {"hybrid_override_pattern": "MEM*"}),
}
FULL = ("MEMEM*EMM of Nemotron-3-Nano-30B", NANO_3, {"hybrid_override_pattern": "MEMEM*EMM"})
CONTEXT = (
    "two Mamba layers of Nemotron-3-Nano-30B",
    NANO_3,
    {"hybrid_override_pattern": "MM", "vocab_size": 1024},
)
LARGE = ("Nemotron-3-Nano-30B-A3B, int4", NANO_3, {"nanomodels": {"quantize": "int4"}})
TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "mamba_num_heads": 64,
    "mamba_head_dim": 2,
    "ssm_state_size": 16,
    "moe_intermediate_size": 64,
}
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


# --- Weights


class Skipped(Exception):
    """What a model needs and this machine has not."""


def write_checkpoint(folder, source, changes, tiny, llama=False):
    """Write random weights for a config with changes, a file for each layer. Returns bytes.

    Raises Skipped if there is no room: with llama, for GGUF files, too.
    """
    import torch
    from safetensors.torch import save_file

    from nanomodels.checkpoint import loading
    from nanomodels.checkpoint.names import numbers, pattern
    from nanomodels.linears import quantized

    if isinstance(source, str):
        source = json.loads((ROOT / "tests" / "data" / "configs" / source).read_text())
        del source["num_hidden_layers"]  # of the whole model; a hybrid's pattern says it, too
    config = source | changes | ({k: TINY[k] for k in TINY if k in source} if tiny else {})
    config |= {"dtype": "bfloat16"}
    config.pop("auto_map", None)  # code on the Hub
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    architecture, model_class, parsed = loading.read_config(folder, config)
    model = loading.build(model_class, parsed)
    scheme = config.get("nanomodels", {}).get("quantize")
    if scheme:  # as convert_hf.py writes it, with the parameters' own names
        quantized.swap_linears(model, scheme, lm_head=True)
        hub_names = {pattern(name): name for name, _ in model.named_parameters()}
        hub_names = dict(zip(hub_names, hub_names, strict=True))
    else:
        hub_names = {  # the first of several, which is the Hub's; the others are transformers 5's
            ours: hub
            for hub, ours in reversed(architecture.HUB_NAMES.items())
            if ours and ours.count("{}") == hub.count("{}")
        }
    tensors = []  # (name, shape, dtype)
    for prefix, module in model.named_modules():
        for leaf, weight in module.named_parameters(recurse=False):
            name = f"{prefix}.{leaf}"
            name = hub_names[pattern(name)].format(*numbers(name))
            if isinstance(module, quantized.QuantizedLinear) and leaf == "weight":
                parts = quantized.parts_of(scheme, weight.shape)
                tensors += [(name + end, torch.Size(shape), t) for end, (t, shape) in parts]
            else:
                exact = leaf in getattr(module, "float32", ())
                tensors.append((name, weight.shape, torch.float32 if exact else torch.bfloat16))
    size = sum(shape.numel() * dtype.itemsize for _, shape, dtype in tensors)
    free = {"disk": shutil.disk_usage(folder).free, "memory": proc("/proc/meminfo", "MemAvailable")}
    # Of memory: ours is the mapped file, theirs is a copy.
    disk = size * (3 if llama else 1) + 1e9
    for what, needed in (("disk", disk), ("memory", (1 if scheme else 2) * size + 2e9)):
        if free[what] < needed:
            raise Skipped(f"{what}: {needed / 1e9:.1f} GB needed, {free[what] / 1e9:.1f} free")
    noise, weight_map = torch.randn(1 << 24).bfloat16(), {}
    for n, (_, layer) in enumerate(groupby(tensors, lambda t: numbers(t[0])[:1])):
        file = f"model-{n:05}.safetensors"
        made = {name: random_weight(name, shape, dtype, noise) for name, shape, dtype in layer}
        save_file(made, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(made, file)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    os.sync()  # or the writing would go on beside the measurements
    return size


def random_weight(name, shape, dtype, noise):
    """Numbers of the size that a trained model has; the large ones repeat the noise."""
    import numpy
    import torch

    if name.endswith("weight_scale"):  # and zero; codes are any bytes
        size = (64 * shape[0]) ** -0.5 / 4.6  # else nan would choose the experts
        return torch.tensor([size, size / 2]).bfloat16().expand(shape).clone()
    if name.endswith("A_log"):
        return torch.linspace(0, math.log(16), *shape)
    if name.endswith("dt_bias"):
        return torch.linspace(-6, -2, *shape)
    if name.endswith((".D", "norm.weight", "norm_f.weight")):
        return torch.ones(shape)
    if dtype == torch.uint8:
        codes = numpy.random.default_rng(zlib.crc32(name.encode()))
        return torch.from_numpy(codes.integers(0, 256, shape, dtype=numpy.uint8))
    flat, half = torch.empty(math.prod(shape), dtype=noise.dtype), len(noise) // 2
    for n, piece in enumerate(flat.split(half)):
        start = (zlib.crc32(name.encode()) + n * 104729) % half
        piece.copy_(noise[start : start + len(piece)])
    return flat.mul_(shape[-1] ** -0.5).view(shape).to(dtype)


def proc(path, key):
    """A size that a file of /proc lists, in bytes."""
    lines = dict(line.split(":", 1) for line in Path(path).read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


# --- The sides: a child process has one of them


class Ours:
    def load(self):
        import nanomodels
        from nanomodels.linears import memory

        if DEVICE == "cpu":
            memory.keep_memory()  # as generate.py does
        self.model = nanomodels.load(self.folder, DEVICE)

    def close(self):
        self.model = None

    def order(self):
        """Have the large linears put their weights in order, with the next call if not before."""
        for module in self.model.modules():
            if hasattr(module, "wait"):  # prepacked.FastLinear
                module.wait = 1

    def start(self, ids, room):
        """Read prompts (b, t): logits of the last tokens (b, vocab), cache with room for more."""
        cache = self.model.new_cache(len(ids), ids.shape[1] + room)
        for piece in ids.split(PIECE, dim=1):
            logits, cache = self.step(piece, cache)
        return logits, cache

    def step(self, ids, cache):
        """The same after more tokens (b, t)."""
        return self.model(ids, cache=cache, logits_to_keep=1)[:, -1], cache


class Theirs:
    def load(self):
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar(), logging.set_verbosity_error()
        kwargs = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        model = AutoModelForCausalLM.from_pretrained(self.folder, **kwargs).eval()
        self.model = model.to(DEVICE)

    def close(self):
        self.model = None

    def order(self):
        pass

    def start(self, ids, room):
        return self.step(ids, None)

    def step(self, ids, cache):
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values


def llama_api():
    """The module llama_cpp, which then prints nothing but errors."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def log(level, text, _):
        if level == 4:  # GGML_LOG_LEVEL_ERROR; llama_cpp 0.3.36 itself takes 3 for that
            say(text.decode().rstrip())

    llama_cpp.llama_log_set(log, None)
    llama_cpp.log = log  # or it would be freed
    return llama_cpp


class Llama:
    """llama.cpp by the low-level API of llama-cpp-python; a cache is the number of tokens read."""

    file = "bf16.gguf"
    model = context = shape = None

    def __init__(self):
        import torch

        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)  # or they would spin beside llama.cpp's
        self.api = llama_api()
        self.batch = self.api.llama_batch_init(PIECE, 0, 1)

    def load(self):
        path, params = bytes(self.folder / self.file), self.model_params()
        self.model = self.api.llama_model_load_from_file(path, params)
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {self.file}")

    def model_params(self):
        params = self.api.llama_model_default_params()
        params.load_mode = self.api.LLAMA_LOAD_MODE_MMAP
        return params

    def close(self):
        if self.context:
            self.api.llama_free(self.context)
        if self.model:
            self.api.llama_model_free(self.model)
        self.model = self.context = self.shape = None

    def order(self):
        pass

    def start(self, ids, room):
        shape = len(ids), ids.shape[1] + room
        if shape != self.shape:  # else the last one will do
            self.new_context(*shape)
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)
        return self.step(ids, 0)

    def new_context(self, batch, length):
        if self.context:
            self.api.llama_free(self.context)
        params = self.api.llama_context_default_params()
        params.n_seq_max = params.n_outputs_max = batch
        params.n_ctx = batch * length
        params.n_batch = params.n_ubatch = PIECE
        params.n_threads = params.n_threads_batch = self.threads
        self.context = self.api.llama_init_from_model(self.model, params)
        if not self.context:
            raise ValueError(f"llama.cpp cannot make a context of {batch} x {length} tokens")
        self.shape = batch, length

    def step(self, ids, length):
        import numpy
        import torch

        for piece in ids.split(PIECE // len(ids), dim=1):
            self.read(piece.tolist(), length)
            length += piece.shape[1]
        vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        shape = len(ids), vocab
        logits = numpy.ctypeslib.as_array(self.api.llama_get_logits(self.context), shape)
        return torch.from_numpy(logits), length

    def read(self, rows, start):
        """One call with the rows' next tokens; llama.cpp keeps the logits of the last of each."""
        batch, n = self.batch, 0
        for row, tokens in enumerate(rows):
            for position, token in enumerate(tokens, start):
                batch.token[n], batch.pos[n], batch.logits[n] = token, position, 0
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, row
                n += 1
            batch.logits[n - 1] = 1
        batch.n_tokens = n
        if status := self.api.llama_decode(self.context, batch):
            raise ValueError(f"llama_decode returned {status}")


class Llama4(Llama):
    file = "Q4_0.gguf"
    matrices = rb"(attn_(q|k|v|output)|ffn_(up|down)\w*|ssm_(in|out)|^output)\.weight"

    def model_params(self):
        params = super().model_params()
        if b"AMX_INT8 = 1" in self.api.llama_print_system_info():
            # Its AMX code crashes in many builds (llama.cpp issue 20824): have the matrices laid
            # out for AVX, as on a CPU without AMX, by a pattern and a buffer type.
            find = ctypes.CDLL("libggml-cpu.so.0")._Z35ggml_backend_cpu_repack_buffer_typev
            find.restype = ctypes.c_void_p
            pattern = ctypes.cast(self.matrices, ctypes.c_void_p)
            self.overrides = (ctypes.c_void_p * 4)(pattern, find())  # and two zeros
            params.tensor_buft_overrides = ctypes.addressof(self.overrides)
        return params


SIDES = {OURS: Ours, THEIRS: Theirs, INT4: Ours, LLAMA: Llama, LLAMA_4: Llama4}


# --- What a child does: task(side, ...), most of them returning {label: figure}


def now():
    """Seconds, once all work is done."""
    if DEVICE == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory():
    """GB: allocated on a GPU, else of this process with its mapped files."""
    if DEVICE == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    return proc("/proc/self/status", "VmHWM") / 1e9


def load(side):
    side.close()
    gc.collect()
    began = now()
    side.load()
    loaded = now() - began
    side.start(random_ids(side, 1, 32), 0)
    return {"load, s": loaded, "load + 32 tokens, s": now() - began}


def prefill(side, tokens):
    side.order()
    ids = random_ids(side, 1, tokens)
    began = now()
    side.start(ids, 0)
    return {f"prefill {tokens}, tokens/s": tokens / (now() - began)}


def decode(side, batch):
    side.order()
    logits, cache = side.start(random_ids(side, batch, PROMPT), WARM + STEPS)
    for n in range(WARM + STEPS):
        if n == WARM:
            began = now()
        logits, cache = side.step(logits.argmax(-1, keepdim=True), cache)
    return {f"decode x {batch}, tokens/s": batch * STEPS / (now() - began)}


def decode_graph(side, batch):
    """`decode` of ours as a CUDA graph; on a CPU its calls without one."""
    from nanomodels.generation import cuda_graph

    side.order()
    logits, cache = side.start(random_ids(side, batch, PROMPT), WARM + STEPS)
    steps = cuda_graph.GraphDecoder(side.model, cache)
    for n in range(WARM + STEPS):
        if n == WARM:
            began = now()
        logits = steps(logits.argmax(-1, keepdim=True))[:, -1]
    return {f"decode x {batch}, tokens/s": batch * STEPS / (now() - began)}


def drafts(side, text, most):
    """Greedy tokens/s of a text that is laid down, with drafts of at most `most` tokens."""
    import nanomodels

    ids = random.Random(0).sample(range(side.model.config.vocab_size), 512)  # none twice
    prompt, new = ids[:256], 128
    whole = prompt + (prompt[64:] if text == "copied" else ids[256:])[: new + 1]

    def lay_down(model, args, kwargs, logits):
        """The logits of the last tokens before `end` foretell those after them."""
        end, kept = kwargs["cache"].length, logits.shape[1]
        for n, token in enumerate(whole[end - kept + 1 : end + 1]):
            logits[0, n, token] = math.inf

    side.order()
    hook = side.model.register_forward_hook(lay_down, with_kwargs=True)
    tokens = nanomodels.generate(
        side.model, prompt, max_new_tokens=new, stop_ids=[], draft_lookup=most
    )
    found = [next(tokens)]
    began = now()
    found += tokens
    seconds = now() - began
    hook.remove()
    assert found == whole[256 : 256 + new]
    return {f"{text} text, tokens/s": (new - 1) / seconds}


def whole_run(side):
    load(side), prefill(side, 512), decode(side, 1)
    return peak_memory()


def large_run(side):
    """Load, read and decode with memory and speed of each."""
    began = now()
    side.load()
    loaded = now() - began
    held = proc("/proc/self/status", "VmRSS") / 1e9
    figures = {"load, s": loaded, "memory after loading, GB": held}
    figures |= prefill(side, 512) | decode(side, 1) | decode(side, 1)
    return figures | {"peak memory, GB": peak_memory()}


def context(side, tokens):
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    [speed] = prefill(side, tokens).values()
    return {"us/token": 1e6 / speed, "GB": peak_memory()}


def last_logits(side):
    return side.start(random_ids(side, 1, 512), 0)[0][0].tolist()


def random_ids(side, batch, tokens):
    import torch

    vocab = json.loads((side.folder / "config.json").read_text())["vocab_size"]
    rng = torch.Generator().manual_seed(tokens)
    return torch.randint(vocab, (batch, tokens), generator=rng).to(DEVICE)


def weights_read(side, batch):
    """What a step with `batch` rows reads: bytes, and the numbers that these stand for."""
    model, chosen = side.model, []
    hooks = [
        module.register_forward_hook(lambda _, __, out: chosen.append(len(out[0].unique())))
        for module in model.modules()
        if type(module).__name__ == "Router"
    ]
    logits, cache = side.start(random_ids(side, batch, PROMPT), 1)
    chosen.clear()
    side.step(logits.argmax(-1, keepdim=True), cache)
    for hook in hooks:
        hook.remove()
    share = mean(chosen) / model.config.n_routed_experts if hooks else 1
    read = [
        (tensor, share if ".experts." in name else 1)
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
        if "embed" not in name
    ]
    return {
        "bytes": sum(tensor.nbytes * share for tensor, share in read),
        "numbers": sum(tensor.numel() * share for tensor, share in read),
        "numbers of the head": model.config.vocab_size * model.config.hidden_size,
        "share of experts": share,
    }


def file_read(side, share):
    """Bytes of a GGUF file that a step reads; of the experts it reads a share."""
    from gguf import GGUFReader

    tensors = GGUFReader(side.folder / side.file).tensors
    sizes = [int(t.n_bytes) * (share if "_exps" in t.name else 1) for t in tensors]
    return {"bytes": sum(s for s, t in zip(sizes, tensors, strict=True) if "embd" not in t.name)}


def make_gguf(side, folder):
    """Write the files that llama.cpp reads beside a checkpoint."""
    from gguf_writer import write_gguf

    api, files = llama_api(), [folder / side.file for side in (Llama, Llama4)]
    write_gguf(folder, files[0])
    params = api.llama_model_quantize_default_params()
    params.ftype = api.LLAMA_FTYPE_MOSTLY_Q4_0
    params.output_tensor_type = api.GGML_TYPE_Q4_0  # Q6_K otherwise; ours has the head in int4, too
    if api.llama_model_quantize(*map(bytes, files), params):
        raise ValueError(f"llama.cpp cannot quantise {Llama.file}")
    os.sync()


def about_llama(side):
    """What llama.cpp says of itself."""
    api = llama_api()
    info = api.llama_print_system_info().decode()
    return {"version": api.__version__, "system_info": info}


def limits(side, tiny):
    """The machine's: {unit: (the best rate of several kinds, which it was)}, and the threads."""
    import torch
    import torch.nn.functional as F

    from nanomodels import cpu

    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device here")
    torch.set_default_device(DEVICE)
    data = torch.full((1 << (24 if tiny else 30),), 0x3F, dtype=torch.uint8)  # 0.7 in any dtype
    bf16 = data.view(torch.bfloat16).view(-1, 1 << 13)
    float32 = data.view(torch.float32).view(-1, 1 << 12)
    reads = {
        "sum of int64": lambda: data.view(torch.int64).sum(),
        "sum of float32": lambda: float32.sum(),
        "torch.mv of bfloat16": lambda: torch.mv(bf16, bf16[0]),
        "torch.mv of float32": lambda: torch.mv(float32, float32[0]),
    }
    found = {"GB/s": max((data.nbytes / best(f) / 1e9, kind) for kind, f in reads.items())}
    if DEVICE == "cuda":  # what is read and what is written
        found = {"GB/s": (2 * data.nbytes / best(data.clone) / 1e9, "a copy")}
    for dtype in (torch.bfloat16, torch.float32):
        rates = []
        for m, k, n in [(512, 512, 512)] if tiny else [(512, 4096, 4096), (512, 4096, 16384)]:
            x, w = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
            products = {"": lambda x=x, w=w: F.linear(x, w)}
            if dtype == torch.bfloat16 and DEVICE == "cpu" and cpu.has_bf16():
                ordered = torch.ops.mkldnn._reorder_linear_weight(w, m)
                products[" ordered"] = lambda x=x, w=ordered: torch.ops.mkldnn._linear_pointwise(
                    x, w, None, "none", [], ""
                )
            rates += [
                (2 * m * n * k / best(f) / 1e12, f"{m} x {k} x {n}{way}")
                for way, f in products.items()
            ]
        found[f"{str(dtype)[6:]} TFLOP/s"] = max(rates)
    return found | {"threads": torch.get_num_threads()}


def best(call):
    times = []
    for _ in range(5):
        began = now()
        call()
        times.append(now() - began)
    return min(times)


# --- Child processes


def serve(pipe, name, folder):
    """A child: does (task, arguments) one after the other, until it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees to that
    import torch

    side = SIDES[name]() if name else None
    if side:
        side.folder = folder
    with torch.inference_mode(), suppress(EOFError):  # that is when the parent was killed
        while True:
            task, arguments = pipe.recv()
            try:
                pipe.send(task(side, *arguments))
            except ValueError as error:
                pipe.send(error)


@contextmanager
def child(name=None, folder=None):
    """A new process of a side, as a function that lets it do a task."""
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
        # A Ctrl-C waits until the child has all that it needs: half of it would be an error there.
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
            time.sleep(0.05)  # until the other side's threads have stopped spinning
            figures = ask(task, *arguments)
            for label, value in figures.items() if n else ():
                found.setdefault(label, {}).setdefault(side, []).append(value)
    return summarised(found)


def summarised(figures):
    return {
        label: {s: {"median": median(v), "min": min(v), "max": max(v)} for s, v in sides.items()}
        for label, sides in figures.items()
    }


# --- The parts


def measure_limits(tiny):
    say("limits")
    with child() as ask:
        return ask(limits, tiny)


def measure_model(folder, tasks, repeats, llama):
    """All of one checkpoint: {other side: {label: {side: figure}}}, and what belongs to it."""
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
        """Measure two sides; that of base is there, as the function ours."""
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

    with child(OURS, folder) as ours:  # never three at a time, for want of memory
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
    """Our decoding by a CUDA graph, and without: {label: {side: figure}}."""
    with child(OURS, folder) as ours:
        ours(load)
        asks = {GRAPH: partial(ours, decode_graph), PLAIN: partial(ours, decode)}
        say("  decode as a graph")
        tables = [in_turn(asks, repeats, batch) for batch in BATCHES]
    return tables[0] | tables[1]


def measure_drafts(folder, repeats):
    """Our tokens/s with drafts and without, of both kinds of text: {label: {side: figure}}."""
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
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            if process.stdout.read(1):
                return time.perf_counter() - began
            raise ChildProcessError(f"{command}: {process.stderr.read().decode()[-300:]}")
        finally:
            process.kill()


# --- What is printed and drawn


def say(*words):
    print(*(getattr(word, "__name__", word) for word in words), file=sys.stderr, flush=True)


def print_table(title, rows):
    """A Markdown table that reads well as it is."""
    print(f"\n{title}\n")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for first, *rest in (rows[0], rules, *rows[1:]):
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print("|", " | ".join((first.ljust(widths[0]), *cells)), "|", flush=True)


def comparison(table, new, old):
    """Rows of what, both sides, the gain of the new one, the shares of the machine's limit."""
    yield ["", new, old, "gain", f"{new}, of limit", f"{old}, of limit"]
    for label, sides in table.items():
        found = sides[new], sides[old]
        shares = [f"{figure['share']:.0%}" if "share" in figure else "" for figure in found]
        ratio = found[0]["median"] / found[1]["median"]
        ratio = ratio if label.endswith("/s") else 1 / ratio
        gain = "" if label.endswith("GB/s") else f"{ratio:.2f}"
        yield [label, *map(spread, found), gain, *shares]


def spread(figure):
    """Median (least-most)."""
    middle, low, high = (short(figure[key]) for key in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low}-{high})"


def short(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def print_model(name, found, llama):
    for other, table in found["figures"].items():
        new, old = PAIRS[other]
        title = f"## {name}: {found['what']}, {found['GB']:.1f} GB; {new} and {old}"
        if other in (LLAMA, LLAMA_4):
            flags = " ".join(re.findall(r"(\w+) = 1", llama["system_info"]))
            title += f" (llama-cpp-python {llama['version']}: {flags})"
        print_table(title, list(comparison(table, new, old)))
        print(
            f"\nLogits after 512 tokens correlate by {found['correlation of logits'][other]:.4f}."
        )
    rates = (f"{rate:.3g} {unit} ({kind})" for unit, (rate, kind) in found["limit"].items())
    print(f"Limits: {', '.join(rates)}.", flush=True)


def print_context(found):
    rows = [["tokens", "us/token", "memory, GB"]]
    rows += [[str(n), *(spread(t[OURS]) for t in table.values())] for n, table in found.items()]
    print_table(f"## context: {CONTEXT[0]}; {OURS}", rows)


COLOURS = {
    OURS: "#2a6f97",
    THEIRS: "#b0b0b0",
    LLAMA: "#c9a66b",
    INT4: "#74a892",
    LLAMA_4: "#e0c99a",
}


def draw(models, machine):
    """An SVG: how much of the machine's limit each side reaches, as horizontal bars."""
    y, zero, full = 84, 190, 400  # y of the last line; x of 0, and as far behind it 100 %
    parts = [text(20, 28, "Share of the machine's limit", 'font-size="16"')]
    parts += [text(20, 48 + 18 * n, words) for n, words in enumerate(machine.split("; ", 1))]
    for name, found in models.items():
        y += 32
        parts.append(text(20, y, f"{name}: {found['what']}", 'font-weight="bold"'))
        for label in ("decode x 1, tokens/s", "prefill 512, tokens/s"):
            sides = {}
            for table in reversed(found["figures"].values()):  # ours as it was beside theirs
                sides |= table[label]
            y += 6
            for side, colour in COLOURS.items():
                if side not in sides:
                    continue
                y += 16
                length, speed = full * sides[side]["share"], short(sides[side]["median"])
                parts.append(text(zero - 6, y, f"{label.split()[0]}, {side}", 'text-anchor="end"'))
                shape = f'x="{zero}" y="{y - 10}" width="{length:.1f}" height="12" fill="{colour}"'
                parts.append(f"<rect {shape}/>")
                words = f"{sides[side]['share']:.0%}, {speed} tokens/s"
                parts.append(text(zero + length + 6, y, words))
    line = f'<path d="M{zero} 94V{y + 8}m{full} 0V94" fill="none" stroke="#ccc"/>'
    parts.append(text(zero + full, 90, "100%", 'text-anchor="middle"'))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{y + 20}" font-size="12" '
        'font-family="sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join([line, *parts])
        + "\n</svg>\n"
    )


def text(x, y, words, extra=""):
    return f'<text x="{x:.0f}" y="{y}" {extra}>{html.escape(words)}</text>'


# --- Command line


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
    """Also in between, so that nothing is lost if a later part fails."""
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidy up then, too
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
