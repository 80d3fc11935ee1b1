"""The sides: nanomodels, transformers and llama.cpp. Each has the same methods:

    load(), close()      the model of `folder`
    prepack()            prepack the large linears in the next call at the latest
    start(ids, room)     read prompts (b, t): logits of the last tokens (b, vocab), and a cache with
                         room for more tokens
    step(ids, cache)     the same after more tokens (b, t)

Libraries are imported by the methods that need them: a child process has one side alone.
"""

import ctypes
import sys

from benchmark.machine import DEVICE

OURS, THEIRS, INT4 = "ours", "transformers", "ours int4"
LLAMA, LLAMA_4 = "llama.cpp", "llama.cpp Q4_0"
# The other side, by which a comparison is named -> what is compared, the new one first.
PAIRS = {
    THEIRS: (OURS, THEIRS),
    INT4: (INT4, OURS),
    LLAMA: (OURS, LLAMA),
    LLAMA_4: (INT4, LLAMA_4),
}
PIECE = 512  # tokens of a call in prefill


class Ours:
    def load(self):
        import nanomodels
        from nanomodels.linears import memory

        if DEVICE == "cpu":
            memory.keep_memory()  # as generate.py does
        self.model = nanomodels.load(self.folder, DEVICE)

    def close(self):
        self.model = None

    def prepack(self):
        """Have the large linears prepack their weights in the next call at the latest."""
        for module in self.model.modules():
            if hasattr(module, "wait"):  # prepacked.FastLinear
                module.wait = 1

    def start(self, ids, room):
        cache = self.model.new_cache(len(ids), ids.shape[1] + room)
        for piece in ids.split(PIECE, dim=1):
            logits, cache = self.step(piece, cache)
        return logits, cache

    def step(self, ids, cache):
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

    def prepack(self):
        pass

    def start(self, ids, room):
        return self.step(ids, None)

    def step(self, ids, cache):
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values


def llama_api():
    """The module llama_cpp, made to print errors alone."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def log(level, text, _):
        if level == 4:  # GGML_LOG_LEVEL_ERROR; llama_cpp 0.3.36 itself takes 3 for that
            print(text.decode().rstrip(), file=sys.stderr, flush=True)

    llama_cpp.llama_log_set(log, None)
    llama_cpp.log = log  # else it would be freed
    return llama_cpp


class Llama:
    """llama.cpp by the low-level API of llama-cpp-python; a cache is the number of tokens read."""

    file = "bf16.gguf"
    model = context = shape = None

    def __init__(self):
        import torch

        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)  # else they would spin beside llama.cpp's
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

    def prepack(self):
        pass

    def start(self, ids, room):
        shape = len(ids), ids.shape[1] + room
        if shape != self.shape:  # else the last context fits
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
        """Read the next tokens of all rows in one call; keep the logits of each row's last."""
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
