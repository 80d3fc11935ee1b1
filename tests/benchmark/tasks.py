"""What a child process does with its side: task(side, ...), most of them return {label: figure}."""

import gc
import json
import math
import os
import random
from itertools import chain
from pathlib import Path
from statistics import mean

from benchmark.machine import DEVICE, now, peak_memory, proc
from benchmark.sides import Llama, Llama4, llama_api

PROMPT, WARM, STEPS = 32, 2, 16  # tokens of decode's prompt, steps untimed, steps timed


def load(side):
    """Time to load, and to load and read 32 tokens: some files are read only when used."""
    side.close()
    gc.collect()
    began = now()
    side.load()
    loaded = now() - began
    side.start(random_ids(side, 1, 32), 0)
    return {"load, s": loaded, "load + 32 tokens, s": now() - began}


def prefill(side, tokens):
    side.prepack()
    ids = random_ids(side, 1, tokens)
    began = now()
    side.start(ids, 0)
    return {f"prefill {tokens}, tokens/s": tokens / (now() - began)}


def decode(side, batch):
    side.prepack()
    logits, cache = side.start(random_ids(side, batch, PROMPT), WARM + STEPS)
    for n in range(WARM + STEPS):
        if n == WARM:
            began = now()
        logits, cache = side.step(logits.argmax(-1, keepdim=True), cache)
    return {f"decode x {batch}, tokens/s": batch * STEPS / (now() - began)}


def decode_graph(side, batch):
    """`decode` of ours with a CUDA graph; on a CPU the same calls without one."""
    from nanomodels.generation import cuda_graph

    side.prepack()
    logits, cache = side.start(random_ids(side, batch, PROMPT), WARM + STEPS)
    steps = cuda_graph.GraphDecoder(side.model, cache)
    for n in range(WARM + STEPS):
        if n == WARM:
            began = now()
        logits = steps(logits.argmax(-1, keepdim=True))[:, -1]
    return {f"decode x {batch}, tokens/s": batch * STEPS / (now() - began)}


def drafts(side, text, most):
    """Greedy tokens/s of a prescribed text, with drafts of at most `most` tokens."""
    import nanomodels

    ids = random.Random(0).sample(range(side.model.config.vocab_size), 512)  # none twice
    prompt, new = ids[:256], 128
    whole = prompt + (prompt[64:] if text == "copied" else ids[256:])[: new + 1]

    def prescribe(model, args, kwargs, logits):
        """Have each token of the call predict the one that follows it in `whole`."""
        end, kept = kwargs["cache"].length, logits.shape[1]
        for n, token in enumerate(whole[end - kept + 1 : end + 1]):
            logits[0, n, token] = math.inf

    side.prepack()
    hook = side.model.register_forward_hook(prescribe, with_kwargs=True)
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
    """Peak memory of loading, prefill and decode."""
    load(side), prefill(side, 512), decode(side, 1)
    return peak_memory()


def large_run(side):
    """Speed and memory of loading, prefill and decode."""
    began = now()
    side.load()
    loaded = now() - began
    held = proc("/proc/self/status", "VmRSS") / 1e9
    figures = {"load, s": loaded, "memory after loading, GB": held}
    figures |= prefill(side, 512) | decode(side, 1) | decode(side, 1)
    return figures | {"peak memory, GB": peak_memory()}


def context(side, tokens):
    """Time per token and peak memory of a prompt."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    [speed] = prefill(side, tokens).values()
    return {"us/token": 1e6 / speed, "GB": peak_memory()}


def last_logits(side):
    """Logits after 512 tokens, to see that two sides compute the same."""
    return side.start(random_ids(side, 1, 512), 0)[0][0].tolist()


def random_ids(side, batch, tokens):
    """Token ids (batch, tokens), the same for each side."""
    import torch

    vocab = json.loads((side.folder / "config.json").read_text())["vocab_size"]
    rng = torch.Generator().manual_seed(tokens)
    return torch.randint(vocab, (batch, tokens), generator=rng).to(DEVICE)


def weights_read(side, batch):
    """What a decode step of `batch` rows reads: bytes, and the weights stored in them."""
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
    """Bytes of a GGUF file that a decode step reads; of the experts it reads a share."""
    from gguf import GGUFReader

    tensors = GGUFReader(side.folder / side.file).tensors
    sizes = [int(t.n_bytes) * (share if "_exps" in t.name else 1) for t in tensors]
    return {"bytes": sum(s for s, t in zip(sizes, tensors, strict=True) if "embd" not in t.name)}


def make_gguf(side, folder):
    """Write the GGUF files of a checkpoint into its folder."""
    from benchmark.gguf_writer import write_gguf

    api, files = llama_api(), [folder / side.file for side in (Llama, Llama4)]
    write_gguf(folder, files[0])
    params = api.llama_model_quantize_default_params()
    params.ftype = api.LLAMA_FTYPE_MOSTLY_Q4_0
    params.output_tensor_type = api.GGML_TYPE_Q4_0  # Q6_K otherwise; ours has the head in int4, too
    if api.llama_model_quantize(*map(bytes, files), params):
        raise ValueError(f"llama.cpp cannot quantise {Llama.file}")
    os.sync()


def about_llama(side):
    """The version of llama.cpp and the features that it was built with."""
    api = llama_api()
    info = api.llama_print_system_info().decode()
    return {"version": api.__version__, "system_info": info}
