"""Broken code must fail the tests: each mutant is a mistake that somebody made, or easily could.

For each mutant the tests run over a copy of the project with one change. `make test-slow` runs it.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("decoders", "nanochat", "nanochat_2026", "nemotron_h", "cache", "decoding")
NUMBERS = [f"tests/test_{name}.py" for name in NAMES]
SECONDS = 600  # for the tests of one mutant; a mutant may hang

# file: its tests, where they have other names
TESTS = {
    "ids": ["inputs", "decoding"],
    "scoring": ["scoring"],
    "score": ["scoring"],
    "explaining": ["explaining"],
    "comparing": ["comparing"],
    "tracing": ["tracing"],
    "rows": ["batches", "generate"],
    "batch": ["batches", "generate"],
    "states": ["states"],
    "prompts": ["conversation", "generate"],
    "reuse": ["conversation", "states"],
    "cache": ["front_door", "cache", "drafts", "conversation", "batches", "generate"],
    "loading": ["front_door", "loading", "memory", "config", "convert"],
    "nanochat_folder": ["loading", "convert"],
    "tensors": ["loading", "hostile_files"],
    "pickles": ["hostile_files"],
    "files": ["hostile_files"],
    "convert": ["handover", "convert", "hostile_files"],
    "portable": ["handover"],
    "planning": ["planning"],
    "plan": ["planning"],
    "chat_template": ["handover", "chat_template"],
    "writing": ["convert"],
    "settings": ["inputs", "decoding"],
    "command": ["generate", "program"],
    "downloading": ["finding"],
    "nanochat_pickle": ["tokenizer"],
    "bpe": ["tokenizer"],
    "sandbox": ["chat_template"],
    "hub_json": ["tokenizer"],
    "tokenizer": ["front_door", "plain_chat", "tokenizer"],
    "experts": ["experts", "compile"],
    "attention": ["attention", "compile"],
    "tokenizer_config": ["tokenizer", "chat_template"],
    "decoding": ["decoding", "logprobs"],
    "nemotron_h": ["nemotron_h", "experts", "front_door"],
    "config": ["config", "front_door", "quantized"],
    "names": ["loading"],
    "stop_ids": ["loading"],
    "rope": ["rope", "config", "compile"],
    "conversation": ["conversation", "generate"],
    "chat": ["chat"],
    "generate": ["generate"],
    "start": ["generate"],
    "terminal": ["generate", "chat"],
    "sizes": ["generate", "experts"],
    "stored": ["modelopt", "quantized"],
    "quantized": ["quantized", "parallel"],
    "continuous": ["batches"],
    "output": ["batches"],
    "cpu": ["prepacked", "attention"],
    "sampling": ["decoding", "calculator", "logprobs"],
    "stream": ["decoding", "calculator", "generate"],
    "drafts": ["drafts", "logprobs"],
    "commands": ["chat"],
}

# what is wrong: (file, the correct code, the wrong code)
MUTANTS = {
    "hand-over: no class": ("portable.py", 'config["architectures"] = [', "_ = ["),
    "hand-over: theta at one place": ("portable.py", 'config["rope_theta"] = rope', "_ = rope"),
    "hand-over: half of a head is rotated": (
        "portable.py",
        "parts[0] if parts else 0.5",
        "0.5",
    ),
    "hand-over: a scaled rotation in one place": (
        "portable.py",
        "if rope.rope_type in TWO_KEYS:",
        "if False:",
    ),
    "hand-over: an unknown rotation is not told": (
        "portable.py",
        'elif rope.rope_type != "default":',
        "elif False:",
    ),
    "hand-over: a list of layers": ("portable.py", '("layers_block_type", "layer_types", ', "("),
    "hand-over: keys of experts that are not there": (
        "portable.py",
        'if "E" not in model_config.layers:',
        "if False:",
    ),
    "hand-over: another bias of Mamba": (
        "portable.py",
        'config["mamba_proj_bias"] = model_config.use_bias',
        "pass",
    ),
    "hand-over: eight groups in SGLang": (
        "portable.py",
        'config["mamba_n_groups"] = model_config.n_groups',
        "pass",
    ),
    "hand-over: a draft head that is not there": (
        "portable.py",
        "if not has_draft_head:",
        "if False:",
    ),
    "hand-over: the draft head is left behind": (
        "checkpoint/convert.py",
        "ordered += plan_draft_head(source, matches, dtype)",
        "pass",
    ),
    "hand-over: the draft head keeps its prefix": (
        "checkpoint/convert.py",
        "name = name.removeprefix(loading.LANGUAGE_MODEL)",
        "pass",
    ),
    "hand-over: a cast of the draft head's router": (
        "checkpoint/convert.py",
        "if dtype is None or keeps else",
        "if dtype is None else",
    ),
    "hand-over: any BOS": ("portable.py", 'config["add_bos_token"] = bool(before)', "pass"),
    "hand-over: other tokens before a text": (
        "portable.py",
        "if before in ([], [tokenizer.bos_id]):",
        "if True:",
    ),
    "template: loop.cycle": (
        "chat_template.py",
        "('assistant' if loop.index0 % 2 else 'user')",
        "loop.cycle('user', 'assistant')",
    ),
    "plan: weights without a cut": ("planning.py", "if count == 1:", "if True:"),
    "plan: all of a GPU": ("planning.py", "size * (1 - FREE):", "size:"),
    "plan: no room while loading": ("planning.py", "sum(each) + max(each)", "sum(each)"),
    "plan: a float32 cache": ("planning.py", "    model.to(torch.bfloat16)\n", ""),
    "plan: states for each token": ("planning.py", "2 * one - two", "one"),
    "pickle: any opcode": (
        "nanochat_pickle.py",
        "if opcode.name not in OPCODES:",
        "if False:",
    ),
    "regex: an empty match is a piece": ("bpe.py", "if self.empty in ranks:", "if False:"),
    "normalizer: a text of any length": (
        "sentencepiece.py",
        "if len(new) > 1 and len(text)",
        "if False and len(text)",
    ),
    "a .model of any size": ("sentencepiece.py", "check_file(path, LARGEST)", "check_file(path)"),
    "chat: names in contents become tokens": (
        "plain_chat.py",
        "return name if name in keep else",
        "return name if True else",
    ),
    "chat: names that grow out of parts become tokens": (
        "plain_chat.py",
        "return text.translate(self.edges)",
        "return self.hide_names(text)",
    ),
    "chat: no name in an answer is looked for": (
        "plain_chat.py",
        "keep.add(name)",
        "pass",
    ),
    "template: no end to time": ("sandbox.py", "time.thread_time() > self.now.end", "False"),
    "template: no end to memory": ("sandbox.py", "if self.now.room < 0:", "if False:"),
    "template: a list is counted without what is in it": (
        "sandbox.py",
        "rest += value\n",
        "pass\n",
    ),
    "NanoChat: rotation by plus the angle": (
        "nanochat.py",
        "(x1 * cos + x2 * sin, x2 * cos - x1 * sin)",
        "(x1 * cos - x2 * sin, x2 * cos + x1 * sin)",
    ),
    "NanoChat: logits capped before the cast to float32": (
        "nanochat.py",
        ".float()\n        cap = self.config.final_logit_softcapping\n"
        "        return logits if cap is None else cap * torch.tanh(logits / cap)",
        "\n        cap = self.config.final_logit_softcapping\n"
        "        return (logits if cap is None else cap * torch.tanh(logits / cap)).float()",
    ),
    "NanoChat: no norm after the embedding": (
        "nanochat.py",
        "        x = rms_norm(x, self.config.rms_norm_eps)\n        for",
        "        for",
    ),
    "NanoChat: keys not normalised": (
        "nanochat.py",
        "k = rms_norm(rotate(k.float(), cos, sin), self.eps)",
        "k = rotate(k.float(), cos, sin)",
    ),
    "NanoChat: attention sees only the tokens of the call": (
        "nanochat.py",
        "k, v = kv.extend(k, v, call.first_slot)",
        "kv.extend(k, v, call.first_slot)",
    ),
    "the padded vocabulary not cut": ("nanochat_folder.py", "tensor[:rows]", "tensor"),
    "cache: a token does not see itself": ("cache.py", "(key <= query)", "(key < query)"),
    "cache: a token sees the next one": ("cache.py", "(key <= query)", "(key <= query + 1)"),
    "attention: is_causal for a later piece of a prompt": (
        "attention.py",
        "mask is None and s > t",
        "False",
    ),
    "attention: a block sees later tokens": (
        "attention.py",
        "scores[..., -n:] +=",
        "scores[..., -n:] + ",
    ),
    "attention: each block has the mask of the first": (
        "attention.py",
        "~mask[:, :, None, rows]",
        "~mask[:, :, None, :n]",
    ),
    "attention: keys rounded to bfloat16": (
        "attention.py",
        "k.float().mT",
        "k.float().mT.bfloat16().float()",
    ),
    "attention: a block misses keys of earlier calls": (
        "attention.py",
        "else s - t + rows.stop",
        "else rows.stop",
    ),
    "an input that learns nothing": (
        "prepacked.py", "(x.requires_grad and torch.is_grad_enabled())", "False"
    ),
    "a weight remembered though trained": (
        "prepacked.py",
        "            self.unpack()\n        elif",
        "            pass\n        elif",
    ),
    "Nemotron-H: no decay of the state in a decode step": (
        "nemotron_h.py",
        "S = (state * decay).view(b, g, -1, n)",
        "S = state.clone().view(b, g, -1, n)",
    ),
    "Nemotron-H: a decode step reads the state before its token": (
        "nemotron_h.py",
        "y = C.view(b, g, 1, n) @ S.mT",
        "y = C.view(b, g, 1, n) @ state.view(b, g, -1, n).mT",
    ),
    "a graph that looks at what is to come": ("cuda_graph.py", "self.positions != PADDING",
                                              "self.positions < 10**6"),
    "a graph that sees what was taken back": (
        "cuda_graph.py",
        "cache.positions[:, cache.length :] = PADDING",
        "pass",
    ),
    "a capture that moves the cache": ("cuda_graph.py", "tensor.copy_(was)", "pass"),
    "a graph whose state stands still": ("cuda_graph.py", "tensor.copy_(new)", "pass"),
    "a graph that writes over one slot": ("cuda_graph.py", "        self.next_slot += 1\n", ""),
    "Nemotron: the head gets strided rows": (
        "nemotron.py",
        "self.norm(x[:, -logits_to_keep:])",
        "self.norm(x)[:, -logits_to_keep:]",
    ),
    "cache: tokens see padding": ("cache.py", "(key <= query) & (key != PADDING)", "key <= query"),
    "cache: positions count padding": (
        "cache.py",
        "is_token.cumsum(1) - 1",
        "torch.arange(tokens, device=device)",
    ),
    "cache: a clone shares its tensors with the original": (
        "cache.py",
        "copy.deepcopy(self)",
        "copy.copy(self)",
    ),
    "cache: rows reordered without their positions": (
        "cache.py",
        "self.positions, self.counts = self.positions[rows], self.counts[rows]",
        "self.counts = self.counts[rows]\n        self.positions = self.positions[:1].repeat("
        "len(rows), 1)",
    ),
    "the whole text fed for each token": (
        "decoding.py",
        "logits = decode_step(tokens[:, None])[:, -1, :vocab_size]",
        "prompts = [row + [i] for row, i in zip(prompts, ids, strict=True)]\n"
        "            logits = model(torch.tensor(prompts), logits_to_keep=1)[:, -1, :vocab_size]",
    ),
    "one first token for all samples": (
        "sampling.py",
        "seed + j for _",
        "seed + 0 * j for _",
    ),
    "a short row ended with the longest": ("decoding.py", "n < limit", "n < min(limits)"),
    "a penalty that forgets": (
        "sampling.py",
        "self.seen.scatter_(1, tokens[:, None], True)",
        "pass",
    ),
    "a penalty without the prompt": (
        "sampling.py",
        "row[[i for i in ids if i < settings.vocab_size]] = True",
        "pass",
    ),
    "Nemotron: the stored weight taken for the gain": (
        "nemotron.py",
        "self.weight.float() + 1",
        "self.weight.float()",
    ),
    "Nemotron: rotation by minus the angle": (
        "nemotron.py",
        "(x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest)",
        "(x1 * cos + x2 * sin, x2 * cos - x1 * sin, rest)",
    ),
    "Nemotron-H: the gated norm over one group": (
        "nemotron_h.py",
        ".unflatten(-1, (self.groups, -1))  # (b, t, g, h p / g)",
        ".unflatten(-1, (1, -1))",
    ),
    "Nemotron-H: the gate after the norm": (
        "nemotron_h.py",
        """(y * F.silu(z.float())).unflatten(-1, (self.groups, -1))  # (b, t, g, h p / g)
        return F.rms_norm(y, y.shape[-1:], eps=self.eps).flatten(-2) * self.weight.float()""",
        """y.unflatten(-1, (self.groups, -1))
        y = F.rms_norm(y, y.shape[-1:], eps=self.eps).flatten(-2) * self.weight.float()
        return y * F.silu(z.float())""",
    ),
    "Nemotron-H: the bias added to the weights": (
        "nemotron_h.py",
        "weights = scores.gather(1, chosen)",
        "weights = (scores + self.e_score_correction_bias).gather(1, chosen)",
    ),
    "Nemotron-H: other groups of experts masked with 0": (
        "nemotron_h.py",
        "others[..., None], -math.inf)",
        "others[..., None], 0.0)",
    ),
    "Nemotron-H: the router's product in the model's dtype": (
        "nemotron_h.py",
        "scores = F.linear(x.float(), self.weight.float()).sigmoid()",
        "scores = F.linear(x, self.weight.type_as(x)).float().sigmoid()",
    ),
    "Nemotron-H: dt in bf16, cast to float32 afterwards": (
        "nemotron_h.py",
        "F.softplus(dt.float() + self.dt_bias.float())",
        "F.softplus(dt + self.dt_bias.type_as(dt)).float()",
    ),
    "Nemotron-H: B and C repeated for each head": (
        "nemotron_h.py",
        "    pieces = []\n    for start in range(0, x.shape[1], chunk):",
        "    r = x.shape[2] // B.shape[2]\n"
        "    B, C = B.repeat_interleave(r, 2), C.repeat_interleave(r, 2)\n"
        "    pieces = []\n    for start in range(0, x.shape[1], chunk):",
    ),
    "Nemotron-H: the router's scores and bias in bf16": (
        "nemotron_h.py",
        "scores + self.e_score_correction_bias.float()",
        "scores.bfloat16() + self.e_score_correction_bias.bfloat16()",
    ),
    "Nemotron-H: float32 parameters cast with the model": (
        "nemotron_h.py",
        "parameter.data = data.to(parameter.device)",
        "pass",
    ),
    "Nemotron-H: its exact parameters loaded in bf16": (
        "loading.py",
        "torch.float32 if place.keeps_float32 else wanted",
        "wanted",
    ),
    "Nemotron-H: rotary positions in attention": (
        "nemotron_h.py",
        "        if kv is not None:\n            k, v = kv.extend(k, v, call.first_slot)",
        """        angle = call.positions.clamp(min=0)[:, None, :, None] / 10.0
        q, k = (
            torch.cat(
                (
                    x[..., ::2] * angle.cos() - x[..., 1::2] * angle.sin(),
                    x[..., ::2] * angle.sin() + x[..., 1::2] * angle.cos(),
                ),
                -1,
            )
            for x in (q, k)
        )
        if kv is not None:
            k, v = kv.extend(k, v, call.first_slot)""",
    ),
    "Nemotron-H: dt clamped in prefill only": (
        "nemotron_h.py",
        ".clamp(*self.time_step_limit)",
        ".clamp(*(self.time_step_limit if x.shape[1] > 1 else (0.0, math.inf)))",
    ),
    "Nemotron-H: dt clamped in decode steps only": (
        "nemotron_h.py",
        ".clamp(*self.time_step_limit)",
        ".clamp(*(self.time_step_limit if x.shape[1] == 1 else (0.0, math.inf)))",
    ),
    "Nemotron-H: dt at least 0.001, as in transformers": (
        "nemotron_h.py",
        ".clamp(*self.time_step_limit)",
        ".clamp(1e-3)",
    ),
    "Nemotron-H: dt in bf16": (
        "nemotron_h.py",
        "F.softplus(dt.float() + self.dt_bias.float())",
        "F.softplus(dt + self.dt_bias.type_as(dt))",
    ),
    "Nemotron-H: the state rounded to bf16": (
        "nemotron_h.py",
        "ssm.stage(window, S)",
        "ssm.stage(window, S.bfloat16().float())",
    ),
    "Nemotron-H: the state kept in the model's dtype": (
        "nemotron_h.py",
        "ssm.stage(window, S)",
        "ssm.stage(window, S.type_as(z))",
    ),
    "Nemotron-H: the window of a padded row holds padding": (
        "nemotron_h.py",
        "window = call.last(xBC, old.window.shape[1])",
        "window = xBC[:, x.shape[1] :].clone()",
    ),
    "Nemotron-H: padding changes the state": (
        "cache.py",
        "(x * self.is_token[..., None]).take_along_dim",
        "x.take_along_dim",
    ),
    "Nemotron-H: padding enters the convolution": (
        "nemotron_h.py",
        "xBC, dt = call.pack(xBC), call.pack(dt)",
        "dt = call.pack(dt)",
    ),
    "Nemotron-H: no state reaches the next chunk": (
        "nemotron_h.py",
        "y, state = ssd_chunk(x[:, piece], dt[:, piece], A, B[:, piece], C[:, piece], state)",
        "y, state = ssd_chunk(x[:, piece], dt[:, piece], A, B[:, piece], C[:, piece], state * 0)",
    ),
    "Nemotron-H: dt summed in float32": ("nemotron_h.py", "(dt.double() * A", "(dt * A"),
    "Nemotron-H: a token sees the next one of its chunk": ("nemotron_h.py", ".triu(1)", ".triu(2)"),
    "Nemotron-H: no D x in the output": ("nemotron_h.py", "y + x * self.D.float()[:, None]", "y"),
    "Nemotron-H: the experts' weights not normalised": (
        "nemotron_h.py",
        "if config.norm_topk_prob:",
        "if False:",
    ),
    "Nemotron-H: the router sees the latent": (
        "nemotron_h.py",
        "chosen, weights = self.gate(rows)\n        latent = self.fc1_latent_proj(rows)",
        "latent = self.fc1_latent_proj(rows)\n"
        "        padded = F.pad(latent, (0, rows.shape[1] - latent.shape[1]))\n"
        "        chosen, weights = self.gate(padded)",
    ),
    "experts: rows in another order": ("experts.py", "[order.argsort()]", ""),
    "experts: each loses its first row": ("experts.py", "right=True", "right=False"),
    "experts: at once also where weights are trained": (
        "experts.py",
        "torch.is_grad_enabled() and",
        "False and",
    ),
    "experts: stacked again in each call": ("experts.py", "linear.weight.data = weight", "pass"),
    "Nemotron-H: tokens left in packed order": (
        "nemotron_h.py",
        "self.norm(call.unpack(y), z)",
        "self.norm(y, z)",
    ),
    "cache: an interrupted call sets has_padding": (
        "cache.py",
        "padded = self.has_padding or is_token is not None",
        "padded = self.has_padding = self.has_padding or is_token is not None",
    ),
    "cache: has_padding is never set": (
        "cache.py",
        "has_padding=self.has_padding or call.is_token is not None",
        "has_padding=self.has_padding",
    ),
    "NanoChat 2026: lambdas cast with the model": (
        "nanochat_2026.py",
        "parameter.data = data.to(parameter.device)",
        "pass",
    ),
    "NanoChat 2026: windows one token too short": (
        "nanochat_2026.py",
        "(key >= query - window)",
        "(key > query - window)",
    ),
    "NanoChat 2026: the gate scale of another era": (
        "nanochat_2026.py",
        "self.gate_scale * self.ve_gate",
        "2.0 * self.ve_gate",
    ),
    "NanoChat 2026: smear forgets the token before the call": (
        "nanochat_2026.py",
        "previous_ids(all_ids, all_positions, call.positions)",
        "previous_ids(input_ids, call.positions, call.positions)",
    ),
    "NanoChat 2026: backout from a layer too early": (
        "nanochat_2026.py",
        "if i == self.config.num_hidden_layers // 2:",
        "if i == self.config.num_hidden_layers // 2 - 1:",
    ),
    "cache: a savepoint stays valid after a later one": (
        "cache.py",
        "        self.version = object()\n        return Savepoint(",
        "        return Savepoint(",
    ),
    "cache: a commit in several steps": (
        "cache.py",
        "        vars(self).update(attributes)",
        "        for name, value in attributes.items():\n            setattr(self, name, value)",
    ),
    "cache: rollback keeps the new SSM states": (
        "cache.py",
        "            entries=savepoint.entries,\n",
        "",
    ),
    "cache: truncate keeps the new SSM states": (
        "cache.py",
        "            entries=self.marks.get(length, self.entries),\n",
        "",
    ),
    "cache: truncate keeps later marks": (
        "cache.py",
        "            marks=self.marks_to(length),\n",
        "",
    ),
    "cache: rollback keeps later marks": (
        "cache.py",
        "            marks=self.marks_to(savepoint.length),\n",
        "",
    ),
    "cache: restore keeps the marks of another text": (
        "cache.py",
        "        self.version, self.marks = object(), {}\n        for name",
        "        self.version = object()\n        for name",
    ),
    "cache: a cache that grows loses its values": (
        "cache.py",
        "self.v = F.pad(self.v, (0, 0, 0, slots))",
        "self.v = F.pad(self.v[:, :, :0], (0, 0, 0, slots + self.v.shape[2]))",
    ),
    "a CUDA graph writes into marks": (
        "cuda_graph.py",
        "[copy.deepcopy(e) if isinstance(e, SSM) else e for e in cache.entries]",
        "cache.entries",
    ),
    "reuse: no token is left to read": ("reuse.py", "shared(self.ids, ids[:-1])",
                                        "shared(self.ids, ids)"),
    "reuse: states without a bound": ("reuse.py", "            del self.cache.marks[length]",
                                      "            pass"),
    "reuse: the system message's state goes first": ("reuse.py", "first = 1 if most > 1 else 0",
                                                     "first = 0"),
    "reuse: the first mark for the last": ("reuse.py", "self.cache.truncate(max(marks))",
                                           "self.cache.truncate(min(marks))"),
    "reuse: no mark after the answer": (
        "reuse.py",
        "        finally:\n            self.mark()",
        "        finally:\n            pass",
    ),
    "reuse: keys of another size": (
        "reuse.py",
        "rope is not None and rope.depends_on_length",
        "False",
    ),
    "a fork with its parent's cache": ("conversation.py", "self.prefix.clone()", "self.prefix"),
    "a fork with its parent's turns": (
        "conversation.py",
        "copy.deepcopy(self.turns)",
        "self.turns",
    ),
    "turns forgotten one by one": (
        "conversation.py",
        "most = min(context, (alone + room + context) // 2)",
        "most = context",
    ),
    "an empty answer that stays": ("conversation.py", "if taken_back:", "if False:"),
    "an answer that is lost with Ctrl-C": (
        "conversation.py",
        "        taken_back = said.finish_reason is None and not said.tokens",
        "        taken_back = said.finish_reason is None",
    ),
    "an answer that nobody reads is lost": (
        "conversation.py",
        "            self.reply.whole()",
        "            self.reply.close()",
    ),
    "raw text goes on behind a stop string": ("conversation.py", "if said.stream.stopped:",
                                              "if False:"),
    "raw text with a BOS in its middle": ("prompts.py", "add_bos=False if ids else None",
                                          "add_bos=None"),
    "a state of any weights": (
        "states.py",
        "digest(sample(weight) for weight in weights(model))",
        "digest([])",
    ),
    "a state of any scales": (
        "states.py",
        'if name.endswith("scales")',
        'if name.endswith("nothing")',
    ),
    "a state of any tokenizer": ("states.py", '"tokenizer": tokenizer.fingerprint()',
                                 '"tokenizer": ""'),
    "a state that is damaged": ("states.py", "if crc32 != checksum(saved.snapshot) or",
                                "if"),
    "a state that is saved with dropped reasoning": ("conversation.py", "        self.read()\n",
                                                     "        self.end()\n"),
    "cache: a pipe replaced by a file": (
        "cache.py",
        "if path.exists() and not path.is_file():",
        "if False:",
    ),
    "cache: two savers share a file": (
        "cache.py",
        "partial = Path(folder) / path.name",
        'partial = path.with_name(path.name + ".partial")',
    ),
    "cache: positions of a file believed": (
        "cache.py",
        '        check_positions(snapshot["positions"], snapshot["counts"])\n',
        "",
    ),
    "cache: a snapshot of views": (
        "cache.py",
        "view.clone(memory_format=torch.contiguous_format)",
        "view",
    ),
    "cache: restore keeps the old length": (
        "cache.py",
        "        self.length = length\n        self.has_padding",
        "        self.has_padding",
    ),
    "cache: an interrupted call replaces the state": (
        "cache.py",
        "        self.staged = window, state",
        "        self.staged = self.window, self.state = window, state",
    ),
    "cache: rows reordered without their SSM states": (
        "cache.py",
        "self.window, self.state = self.window[rows], self.state[rows]",
        "self.window = self.window[rows]\n        self.state = self.state[:1].repeat("
        "len(rows), 1, 1, 1)",
    ),
    "the stop id given out": ("decoding.py", "on and i not in settings.stop_ids", "on"),
    "top-p that keeps too few": ("sampling.py", "<= 1 - top_p", "<= 1.05 - top_p"),
    "rope: longrope never uses its long factors": (
        "rope.py",
        "if length > trained",
        "if length > 10**9",
    ),
    "rope: yarn without its scale": ("rope.py", "keep, yarn_scale(rope)", "keep, 1.0"),
    "rope: frequencies of each length kept for types that have only one": (
        "rope.py",
        "    length = length if rope.depends_on_length else None\n",
        "",
    ),
    "a text taken for ids": ("text/ids.py", "isinstance(ids, (str, bytes))", "False"),
    "a fraction taken for an id": ("text/ids.py", "operator.index(i) for i", "int(i) for i"),
    "a negative count of logits": ("inputs.py", " or keep < 0", ""),
    "a fault with its whole trace": (
        "command.py",
        'if os.environ.get("NANOMODELS_TRACEBACK"):',
        "if True:",
    ),
    "a panic that nobody catches": ("command.py", "except BaseException as", "except Exception as"),
    "a byte order mark in the prompt": (
        "rows.py",
        r'text.removeprefix("\ufeff").rstrip(',
        "text.rstrip(",
    ),
    "a lone carriage return that ends a prompt": (
        "rows.py",
        "keep_returns=True",
        "keep_returns=False",
    ),
    "rope: a rotation that is not tried at load": (
        "rope.py",
        "    check_rotation(rope, given)\n",
        "",
    ),
    "config: numbers that overflow": ("config.py", "LEAST <= abs(value) <= MOST", "True"),
    "config: a width that overflows": ("config.py", "> LARGEST_SIZE:", "> LARGEST_SIZE**3:"),
    "config: modules without end": ("config.py", "layers + experts > tensors", "layers < 0"),
    "config: modules are counted too late": (
        "loading.py",
        "        check_counts(model_config, len(named))\n",
        "        build(model_class, model_config)\n"
        "        check_counts(model_config, len(named))\n",
    ),
    "NanoChat 2026: hidden before the last norm": (
        "nanochat_2026.py",
        "        return rms_norm(x[:, -logits_to_keep:], eps)",
        "        return x[:, -logits_to_keep:]",
    ),
    "the high half of a byte first": (
        "modelopt.py",
        "(e2m1.repeat(16), e2m1.repeat_interleave(16))",
        "(e2m1.repeat_interleave(16), e2m1.repeat(16))",
    ),
    "a second scale that is lost": ("modelopt.py", ".mul_(self.scale_2.to(device))", ""),
    "a product rounded twice": (
        "modelopt.py",
        "w.mul_(scale.float()[..., None]).mul_(self.scale_2.to(device))",
        "w.mul_(scale.float()[..., None] * self.scale_2.to(device))",
    ),
    "codes that miss the zero": (
        "quantized.py",
        "torch.addcmul(zero[some], weight, scale[some], out=weight)",
        "torch.mul(weight, scale[some], out=weight)",
    ),
    "codes left as they are for AVX2": ("quantized.py", "if block == BLOCK:", "if True:"),
    "scalar code for float32": ("quantized.py", " and x.dtype == torch.bfloat16", ""),
    "a kernel for other codes": ("quantized.py", "return codes.shape[2] * 2 == kernel_block()",
                                 "return kernel_block() is not None"),
    "many rows in a slow dtype": ("quantized.py", "rows.to(cpu.product_dtype(x.dtype, x.device))",
                                  "rows"),
    "attention: values in a dtype that the CPU multiplies slowly": (
        "attention.py",
        "v = v.to(cpu.product_dtype(v.dtype, v.device))",
        "v = v",
    ),
    "attention: heads in another order": (
        "attention.py",
        "return torch.cat(y, dim=1)",
        "return torch.cat(y[::-1], dim=1)",
    ),
    "a float16 that overflows": ("prepacked.py", "(largest <= torch.finfo(torch.float16).max) & ",
                                 ""),
    "a float16 of small numbers": ("prepacked.py", "(largest >= 2**-13)", "(largest >= 2**-30)"),
    "packed rows in another order": ("prepacked.py", "torch.cat(y, -1)", "torch.cat(y[::-1], -1)"),
    "a bias that is lost": ("prepacked.py", "y if bias is None else y + bias", "y"),
    "float32 into bfloat16's kernel": ("prepacked.py", "or x.dtype != self.weight.dtype", ""),
    "a prompt that waits for the kernel": ("prepacked.py", "return rows\n", "return 1\n"),
    "written pages given back": ("memory.py", "| (flags & 1 == 1)", "| (flags & 1 < 2)"),
    "memory that is not asked for": ("loading.py", "or needed <= available", "or True"),
    "the embedding counted as small": ("loading.py", "id(place.module) in to_quantise", "scheme"),
    "steps that are too wide": ("quantized.py", "zero / 8 - low / 8, high / 7 - zero / 7",
                                "zero / 7 - low / 7, high / 6 - zero / 6"),
    "rows packed in another order": ("quantized.py", "(low | high << 4)", "(high | low << 4)"),
    "tensors that begin anywhere": ("writing.py", "gaps.append(-offset % alignment)",
                                    "gaps.append(0)"),
    "a router that is rounded": (
        "checkpoint/convert.py",
        "torch.float32 if place.keeps_float32 else getattr(torch, dtype)",
        "getattr(torch, dtype)",
    ),
    "transformers' names for the Hub's": ("checkpoint/convert.py", "names.setdefault(ours, hub)",
                                          "names[ours] = hub"),
    "a source that may change": ("writing.py", "if state_of(path) != state:", "if False:"),
    "convert: a foreign hidden folder is emptied": (
        "writing.py",
        "if not (is_new or is_ours(folder) or is_empty(folder)):",
        "if False:",
    ),
    "convert: a foreign old folder is removed": ("writing.py", "if not is_ours(old):", "if False:"),
    "convert: a target that fills meanwhile is replaced": (
        "writing.py",
        "replaces = check()",
        "replaces = dst.exists()",
    ),
    "pickles: tuples of any size": ("pickles.py", "if size > LARGEST_TUPLE:", "if False:"),
    "pickles: any function is called": ("pickles.py", "if function not in CALLS or", "if"),
    "pickles: the older format is not checked": (
        "pickles.py",
        "            for _ in range(OLDER_PICKLES):",
        "            for _ in range(3):",
    ),
    "the bit for negative numbers is lost": ("tensors.py", ".resolve_neg()", ""),
    "tensors of numbers that are not there": (
        "tensors.py",
        "if tensor.untyped_storage().nbytes() < tensor.nbytes:",
        "if False:",
    ),
    "convert: links out of the folder are copied": (
        "checkpoint/convert.py",
        "if not any(each in file.parents for each in folders):",
        "if False:",
    ),
    "files: pipes and devices are read": (
        "files.py",
        "if not stat.S_ISREG(state.st_mode):",
        "if False:",
    ),
    "terminal: control characters are written": (
        "files.py",
        "c if c.isprintable() else",
        "c if True else",
    ),
    "terminal: an answer controls it": ("terminal.py", "Output(sys.stdout), Output(sys.stderr)",
                                        "Output(None), Output(None)"),
    "terminal: one byte that begins a sequence": ("wrap.py", r"\x7f-\x9f]", r"\x7f]"),
    "wrap: the space before a word has no width": (
        "wrap.py",
        "if self.column + len(space) + size > self.edge",
        "if self.column + size > self.edge",
    ),
    "wrap: a word in two pieces": ("wrap.py", "if self.begins_word(character) else",
                                   "if True else"),
    "paste: lines are messages": ("line_input.py", "while not self.marks and", "while False and"),
    "the shell gets what is not read": (
        "line_input.py",
        "termios.tcflush(self.terminal, termios.TCIFLUSH)",
        "pass",
    ),
    "the terminal stays silent": ("line_input.py", "            self.set_modes(self.modes)\n"
                                  "            if self.marks:", "            if self.marks:"),
    "keys are shown in an answer": ("line_input.py", "~(termios.ECHO | termios.ICANON)",
                                    "~termios.ICANON"),
    "history: others can read it": ("history.py", "0o600", "0o644"),
    "history: without a bound": ("history.py", "texts = texts[-MOST:]", "pass"),
    "chat: an unknown command is a message": ("chat.py", "if is_command(text):",
                                              "if is_command(text) and len(text) < 8:"),
    "chat: a file goes before every message": (
        "chat.py",
        "self.before.clear()\n        if self.raw",
        "if self.raw",
    ),
    "chat: text is said that was not shown": ("chat.py", "completion.text[shown:]", '""'),
    "chat: any file is replaced": ("commands.py", "if path.exists() and", "if False and"),
    "chat: the same answer again": ("commands.py", "(chat.settings.seed + 1)",
                                    "(chat.settings.seed + 0)"),
    "a target that is there too early": ("writing.py", 'f".{dst.name}.{what}"', "dst.name"),
    "another step than the one asked for": ("nanochat_folder.py",
                                            "if step is None else step", ""),
    "a graph whose last token is lost at Ctrl-C": (
        "cuda_graph.py",
        "self.cache.length = int(self.static.next_slot)",
        "pass",
    ),
    "drafts: a wrong token stays in the cache": (
        "drafts.py",
        "rollback_to(cache, savepoint, len(text) - 1)",
        "rollback_to(cache, savepoint, len(text))",
    ),
    "drafts: a refused token counts as right": (
        "drafts.py",
        "if draft[accepted : accepted + 1] == [token]:",
        "if draft[accepted:]:",
    ),
    "drafts: one token more than the context holds": (
        "drafts.py",
        "cache.max_length - len(text), ",
        "",
    ),
    "drafts: a copy that does not continue into itself": ("drafts.py", "i % period", "i"),
    "a stop string that comes second ends the text": ("stream.py", "min(starts)", "max(starts)"),
    "a stop string of which a part is shown": (
        "stream.py",
        "for n in range(1, len(mark))",
        "for n in range(2, len(mark))",
    ),
    "reasoning that is split at the first <": (
        "stream.py",
        "elif not OPEN.startswith(start):",
        'elif not "<".startswith(start):',
    ),
    "a conversation that never goes back": (
        "reuse.py",
        "if length < self.cache.length:",
        "if False:",
    ),
    "a conversation that begins anew each time": (
        "reuse.py",
        "length = shared(",
        "length = 0 * shared(",
    ),
    "the switch for the reasoning in the first message": (
        "prompts.py",
        'asked["content"] += self.switch',
        "pass",
    ),
    "a chat without the answers": (
        "conversation.py",
        '"content": parts or said.text',
        '"content": ""',
    ),
    "a chat that forgets the newest turn": (
        "conversation.py",
        "turns = turns[1:]",
        "turns = turns[:-1]",
    ),
    "ids beyond the tokenizer are drawn": (
        "cli/generate.py",
        'given = {"vocab_size": tokenizer.vocab_size, ',
        "given = {",
    ),
    "the seed of the first sample for all": (
        "batch.py",
        "settings.seed + sample if",
        "settings.seed if",
    ),
    "a prompt longer than the context": (
        "conversation.py",
        "if alone > context:",
        "if False:",
    ),
    "convert: SIGTERM leaves the work": (
        "cli/convert.py",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))",
        "pass",
    ),
    "Ctrl-C during an import is an exception": ("start.py", "os._exit(130)", "sys.exit(130)"),
    "Ctrl-C that is ignored is caught": (
        "start.py",
        "if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):",
        "if True:",
    ),
    "a text that fills the context has no reason": (
        "batch.py",
        "elif len(completion.tokens) == completion.room:",
        "elif len(completion.tokens) > completion.room:",
    ),
    "a rate with the first token in it": (
        "terminal.py",
        "new_tokens * steps / (steps + 1) / (",
        "new_tokens / (",
    ),
    "reasoning shown in one piece": (
        "terminal.py",
        "self.thought.push(so_far[self.shown :])",
        "self.thought.push(so_far)",
    ),
    "all experts counted as read": (
        "sizes.py",
        "experts *= 1 - model.config.num_experts_per_tok / model.config.n_routed_experts",
        "experts = 0",
    ),
    "a stored weight whose last rows are missing": (
        "stored.py",
        "w[rows] = values",
        "w[rows][:-1] = values[:-1]",
    ),
    "products in a dtype that is slow": (
        "cpu.py",
        'if device.type != "cpu" or (dtype == torch.bfloat16 and has_bf16()):',
        "if True:",
    ),
    "x86 kernels on another processor": (
        "cpu.py",
        'return is_x86() and "fbgemm" in',
        'return "fbgemm" in',
    ),
    "names: every unknown tensor is skipped": (
        "names.py",
        "known = kind in table or name.startswith(skipped_prefixes)",
        "known = True",
    ),
    "names: stacked experts in another order": (
        "names.py",
        "enumerate(tensor)",
        "enumerate(tensor.flip(0))",
    ),
    "stop ids: one of nanochat's two": (
        "stop_ids.py",
        'stops += ["<|assistant_end|>", "<|bos|>"]',
        'stops += ["<|assistant_end|>"]',
    ),
    "stop ids: none of generation_config.json": (
        "stop_ids.py",
        'named.append(read_json(path).get("eos_token_id"))',
        "pass",
    ),
    "chat template: of any length": (
        "chat_template.py",
        "if len(template) > LONGEST_TEMPLATE:",
        "if False:",
    ),
    "convert: companions of any size": ("checkpoint/convert.py", "if size > most:", "if False:"),
    "chat template: letters written as escapes": (
        "chat_template.py",
        "def tojson(value, ensure_ascii=False",
        "def tojson(value, ensure_ascii=True",
    ),
    "chat template: the config's, though there is a file": (
        "chat_template.py",
        "    if files:\n",
        '    if files and "chat_template" not in config:\n',
    ),
    "chat template: reasoning under one name": (
        "chat_template.py",
        'return {"thinking": found[0], **message, "reasoning_content": found[0]}',
        "return message",
    ),
    "tokenizer: text between pieces is dropped": (
        "hub_json.py",
        'return rf"{pattern}|(?:(?!{pattern})[\\s\\S])+", False',
        "return pattern, False",
    ),
    "tokenizer: ids of another order": (
        "hub_json.py",
        "ids_of_ranks=None if ordered else ids_of_ranks,",
        "ids_of_ranks=None,",
    ),
    "tokenizer: spaces stay beside tokens that take them": (
        "tokenizer.py",
        'if token.get("lstrip"):',
        "if False:",
    ),
    "tokenizer: BOS twice": ("tokenizer.py", "if add_bos and not ids:", "if add_bos:"),
    "chat: names in contents are pieces of a .model": (
        "tokenizer.py",
        "split_at(in_normalised, self.codec.normalise(piece))",
        "split_at(in_normalised, self.codec.normalise(reveal(piece)))",
    ),
    "tokenizer: names without end": ("tokenizer.py", "if size > LONGEST_NAMES:", "if False:"),
    "tokenizer: the older file wins": (
        "tokenizer_config.py",
        'if "added_tokens_decoder" not in config and older.is_file():',
        "if older.is_file():",
    ),
    "NanoChat 2026: the last layer's window is short": (
        "nanochat_2026.py",
        'windows=(*windows[: layers - 1], reach["L"])',
        "windows=windows[:layers]",
    ),
    "a small head forgotten": ("loading.py", "swap_linears(model, stored, head)",
                               "swap_linears(model, stored)"),
    "log-probabilities of other logits": (
        "drafts.py",
        "yield with_logprobs(chosen, row, settings.logprobs)",
        "yield with_logprobs(chosen, row / 0.8, settings.logprobs)",
    ),
    "log-probabilities of the penalised logits": (
        "decoding.py",
        "with_logprobs(tokens, logits, settings.logprobs)",
        "with_logprobs(tokens, sampler.penalise(logits), settings.logprobs)",
    ),
    "log-probabilities of another row's token": (
        "logprobs.py",
        "own[n], list(",
        "own[0], list(",
    ),
    "calculator: a long expression is parsed": (
        "calculator.py",
        "len(expression) > LONGEST or ",
        "",
    ),
    "calculator: brackets without end": (
        "calculator.py",
        ' or expression.count("(") > MOST_BRACKETS',
        "",
    ),
    "calculator: numbers without end": ("calculator.py", " or not abs(value) <= LARGEST", ""),
    "calculator: a power is computed before it is too large": (
        "calculator.py",
        "exponent > 332",
        "exponent > 10**4",
    ),
    "calculator: a complex number": (
        "calculator.py",
        "not isinstance(value, (int, float)) or",
        "value is ... or",
    ),
    "calculator: letters in arithmetic": ("calculator.py", "[0-9.+", "[0-9e_.+"),
    "calculator: an expression is not begun anew": (
        "calculator.py",
        "self.kind, self.tokens = self.starts[token], []",
        "self.kind, self.tokens = self.starts[token], self.tokens",
    ),
    "calculator: a result does not end": (
        "calculator.py",
        "add_bos=False), end]",
        "add_bos=False)]",
    ),
    "calculator: a result with <|bos|>": (
        "calculator.py",
        "str(value), add_bos=False)",
        "str(value))",
    ),
    "calculator: one state for all rows": (
        "sampling.py",
        "[calculator.row() for _ in seeds]",
        "[calculator.row()] * len(seeds)",
    ),
    "calculator: the penalty counts what the model would have said": (
        "sampling.py",
        "tokens = tokens.new_tensor([row.next(token) for row, token in pairs])",
        "self.seen is None or self.seen.scatter_(1, tokens[:, None], True)\n"
        "            tokens = tokens.new_tensor([row.next(token) for row, token in pairs])",
    ),
    "calculator: a stop string reaches across a calculation": (
        "stream.py",
        "        text = self.finish()\n",
        '        text = ""\n',
    ),
    "tool calls: half of a surrogate pair": (
        "tool_calls.py",
        "ensure_ascii=False).encode()",
        "ensure_ascii=False)",
    ),
    "tool calls: a number that JSON does not have": (
        "tool_calls.py",
        "allow_nan=False, ",
        "",
    ),
    "tool calls: text that looks like a number": (
        "tool_calls.py",
        'if "string" in allowed or not allowed:',
        "if False:",
    ),
    "tool calls: all white space around a value is lost": (
        "tool_calls.py",
        r">\n?(.*?)\n?</parameter>",
        r">\s*(.*?)\s*</parameter>",
    ),
    "tool calls: an end inside a string": (
        "tool_calls.py",
        "json.JSONDecoder().raw_decode(text, ",
        "json.JSONDecoder().raw_decode(text[: text.find(mark, at)], ",
    ),
    "tool calls: parameters that are not read": (
        "tool_calls.py",
        "if body[at:].strip():",
        "if False:",
    ),
    "names: a snapshot whose download has not ended is used": (
        "finding.py",
        "        if missing is None:\n",
        "        if True:\n",
    ),
    "names: a file of the cache names any folder": (
        "finding.py",
        r're.fullmatch(r"\w+", commit) and ',
        "",
    ),
    "names: the first step of a nanochat run": (
        "finding.py",
        "steps[max(steps)]",
        "steps[min(steps)]",
    ),
    "download: each file of the newest commit": (
        "downloading.py",
        "folder.name if folder else revision",
        "revision",
    ),
    "download: weights before it is known whether they can be loaded": (
        "downloading.py",
        "if folder and file == shards[0]:",
        "if False:",
    ),
    "download: what is in the cache counts as missing": (
        "downloading.py",
        "if not (blobs / blob).exists()",
        "if True",
    ),
    "trace: keys of the whole cache": ("tracing.py", "k[:, :, -t:]", "k[:, :, :t]"),
    "trace: records that are views of the cache": (
        "tracing.py",
        "copy=not fresh",
        "copy=False",
    ),
    "trace: a Mamba layer's padding is taken for its tokens": (
        "tracing.py",
        "return call.unpack(x.flatten(2)).view_as(x)",
        "return x",
    ),
    "compare: blocks are given our own input": (
        "comparing.py",
        "_, own, head = run(ours, ids, inputs, expected[-1])",
        "_, own, head = run(ours, ids)",
    ),
    "compare: float32 stays float32": (
        "comparing.py",
        "if function is torch.Tensor.float:",
        "if False:",
    ),
    "compare: a step that is not float32": (
        "comparing.py",
        'if not relative(of["dt"], dt) <= NARROW:',
        "if False:",
    ),
    "compare: all experts are those of the first piece": (
        "comparing.py",
        "wanted[number][len(before) : len(chosen[number])]",
        "wanted[number][: len(mine)]",
    ),
    "score: padding counts": (
        "scoring.py",
        "min(start + piece, len(text) - 1)",
        "start + piece",
    ),
    "score: each token's own place": (
        "scoring.py",
        "ids[row, begin + 1 : end + 1]",
        "ids[row, begin:end]",
    ),
    "score: the prompt is scored": ("scoring.py", "max(start, given[row] - 1)", "start"),
    "score: a prompt that is not read": (
        "score.py",
        "return [*prompt, *tokenizer.encode(row.text, add_bos=False)], len(prompt)",
        "return tokenizer.encode(row.text), 1",
    ),
    "save: the place is looked at too late": (
        "cache.py",
        "tempfile.TemporaryFile(dir=path.parent).close()",
        "pass",
    ),
    "explain: what is not shown is not read": (
        "explaining.py",
        "prefill(model, [ids[:first]], start)",
        "start.length = first",
    ),
    "explain: whatever a head looks at is a copy": (
        "explaining.py",
        "if look[0] >= SURE and ids[look[3]] == ids[i + 1]]",
        "if look[0] >= SURE]",
    ),
    "explain: a lens without the last norm": (
        "explaining.py",
        "model.lm_head(last_norm(model)(x))",
        "model.lm_head(x)",
    ),
    "explain: a share without the mean taken off": (
        "explaining.py",
        "part - part.mean(-1, keepdim=True)",
        "part",
    ),
    "compile: a graph that depends on the experts chosen": (
        "experts.py",
        "if torch.compiler.is_compiling():\n        return [",
        "if False:\n        return [",
    ),
    "compile: a graph of so many blocks": (
        "attention.py",
        "if fast or torch.compiler.is_compiling():",
        "if fast:",
    ),
    "compile: kernels that a graph cannot have": (
        "prepacked.py",
        "if torch.compiler.is_compiling():",
        "if False:",
    ),
    "compile: frequencies of an export are kept": (
        "rope.py",
        "frequencies.__wrapped__ if torch.compiler.is_compiling() else frequencies",
        "frequencies",
    ),
    "cache: another model's is taken": ("cache.py", "and cache.config != config:", "and False:"),
    "cache: only the same object's is taken": (
        "cache.py",
        "and cache.config != config:",
        "and True:",
    ),
    "cache: an error names a partial file": (
        "cache.py",
        'getattr(error, "strerror", None) or error',
        "error",
    ),
    "load: a file that must not be read is said to be missing": (
        "tensors.py",
        'path.open("rb").close()',
        "pass",
    ),
    "a Python without torch is our fault": (
        "command.py",
        "except ModuleNotFoundError as error:",
        "except ZeroDivisionError as error:",
    ),
    "cache: another dtype is taken": ("cache.py", "if made != wanted:", "if False:"),
    "cache: torch says that it is of inference_mode": (
        "cache.py",
        "if tensor.is_inference() and not torch.is_inference_mode_enabled():",
        "if False:",
    ),
    "cache: grown, it is of inference_mode": (
        "cache.py",
        "@torch.no_grad()\n    def grow",
        "@torch.inference_mode()\n    def grow",
    ),
    "decode: a tensor's ids are unknown": (
        "tokenizer.py",
        'ids = list_of_ids("ids", ids)',
        "pass",
    ),
    "Nemotron-H: float64 experts are refused": (
        "nemotron_h.py",
        "dtype=torch.promote_types(x.dtype, weights.dtype)",
        "dtype=weights.dtype",
    ),
    "Nemotron-H: a random router is blind": (
        "nemotron_h.py",
        "nn.init.normal_(self.weight, std=m**-0.5)",
        "pass",
    ),
    "Nemotron-H: all heads of a random model forget alike": (
        "nemotron_h.py",
        "nn.init.uniform_(self.A_log, 0, math.log(16))",
        "pass",
    ),
    "load: a string is no dtype": ("loading.py", 'str(dtype).removeprefix("torch.")', "dtype"),
    "print(model): quantised weights do not count": (
        "config.py",
        "return count + sum(",
        "return sum(",
    ),
    "parallel: a mixer is not added up": (
        "parallel.py",
        'if last in ("self_attn", "mlp", "mixer"):',
        'if last in ("self_attn", "mlp"):',
    ),
    "parallel: a bias on every rank": (
        "parallel.py",
        "return Once(tensor) if ranks.rank else tensor",
        "return tensor",
    ),
    "parallel: key/value heads in turns": (
        "parallel.py",
        "first = ranks.rank * heads // ranks.count",
        "first = ranks.rank % heads",
    ),
    "parallel: z and x as one block": (
        "parallel.py",
        "(inner, *xBC, config.mamba_num_heads)",
        "(2 * inner, *xBC[1:], config.mamba_num_heads)",
    ),
    "parallel: C and dt as one block": (
        "parallel.py",
        "(inner, *xBC, config.mamba_num_heads)",
        "(inner, *xBC[:2], xBC[2] + config.mamba_num_heads)",
    ),
    "parallel: the scaling factor twice": (
        "parallel.py",
        "(chosen >= count), count), weights",
        "(chosen >= count), count), weights * router.config.routed_scaling_factor",
    ),
    "parallel: experts of others by number": (
        "parallel.py",
        "chosen, weights = output[0] - first, output[1]",
        "chosen, weights = output",
    ),
    "parallel: ids of others have a row": (
        "parallel.py",
        "others[..., None], 0))",
        "others[..., None], 1))",
    ),
    "parallel: logits in another order": (
        "parallel.py",
        "torch.cat(parts, dim=-1)",
        "torch.cat(parts[::-1], dim=-1)",
    ),
    "parallel: int4 scales of other groups": (
        "quantized.py",
        "take(self.scales, 0, groups)",
        "self.scales[: sum(g.stop - g.start for g in groups)]",
    ),
    "continuous: the sampler keeps other rows": (
        "continuous.py",
        "sampler = self.sampler.joined(live, sampler)",
        "sampler = self.sampler.joined([*range(len(live))], sampler)",
    ),
    "continuous: logits of other rows": (
        "continuous.py",
        "torch.cat((self.logits[live], logits))",
        "torch.cat((self.logits[: len(live)], logits))",
    ),
    "continuous: rows beyond the bound": (
        "continuous.py",
        "count = len(live) + (len(numbers) + 1) * samples",
        "count = (len(numbers) + 1) * samples",
    ),
    "continuous: no room for what is left": (
        "continuous.py",
        "size = count * ((used + left) * self.slot_bytes",
        "size = count * (used * self.slot_bytes",
    ),
    "continuous: ended rows go on": ("continuous.py", "is_end or not goes_on or", "is_end or"),
    "cache: joined rows by slot": (
        "cache.py",
        "order = (positions == PADDING).byte()",
        "order = (positions != positions).byte()",
    ),
    "cache: joined rows have no padding": (
        "cache.py",
        "new.has_padding = bool((new.counts < new.length).any())",
        "new.has_padding = False",
    ),
    "output: a torn line stays": (
        "output.py",
        "self.file.truncate(self.size)",
        "self.size = self.file.seek(0, 2)",
    ),
    "output: another run's lines are taken": (
        "output.py",
        'and found["prompt"] == row.messages[-1]["content"]',
        "and True",
    ),
    "rows: shards overlap": (
        "rows.py",
        "(number - 1) * len(rows) // count : number",
        "(number - 1) * (len(rows) - 1) // count : number",
    ),
}  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    """A copy of the project."""
    hidden = shutil.ignore_patterns(".*", "weights", "build", "*.egg-info")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=hidden)
    (tmp_path / "copy" / "weights").symlink_to(ROOT / "weights")
    return tmp_path / "copy"


def own_tests(stem):
    """The test files of a file of the package."""
    own = [f"tests/test_{name}.py" for name in TESTS.get(stem, [stem])]
    return [test for test in own if (ROOT / test).exists()]


def run(folder, tests, seconds):
    """Exit status and output of pytest."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # and what the tests have started
    return process.returncode, said


@pytest.mark.slow
def test_without_a_mutant_all_tests_pass(copy):
    """Else a mutant could fail for another reason than its mistake."""
    stems = {Path(file).stem for file, _, _ in MUTANTS.values()}
    tests = sorted({*NUMBERS, *(test for stem in stems for test in own_tests(stem))})
    status, said = run(copy, tests, 3 * SECONDS)
    assert status == 0, said[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fails(copy, name):
    file, old, new = MUTANTS[name]
    (path,) = (copy / "nanomodels").rglob(file)
    code = path.read_text()
    assert code.count(old) == 1, f"{old!r} is {code.count(old)} times in {file}"
    path.write_text(code.replace(old, new))
    own = own_tests(path.stem)  # there it fails the soonest
    status, said = run(copy, own, SECONDS) if own else (0, "")
    if status == 0:
        status, said = run(copy, NUMBERS, SECONDS)
    assert status == 1, said[-2000:]
    print(name, "->", next(x for x in said.splitlines() if x.startswith("FAILED")))
