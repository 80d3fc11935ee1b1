"""A model without weights, for tests of what is fed to a model and what is made of its text."""

from types import SimpleNamespace

import torch

from nanomodels.cache import KV, Cache

# What a template ends a prompt with, in tests/data/templates.
BEGINNINGS = [
    *("<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think></think>"),
    *("<SPECIAL_11>Assistant\n<think>\n\n", "<SPECIAL_11>Assistant\n<think></think>"),
]


class Scripted(torch.nn.Module):
    """A model that answers each new prompt with the next of `replies`, then its stop id."""

    def __init__(self, tokenizer, replies, context_length):
        super().__init__()
        self.embed, self.lm_head = torch.nn.Embedding(1, 1), torch.nn.Linear(1, 1)
        self.config = SimpleNamespace(vocab_size=tokenizer.vocab_size)
        self.context_length, self.stop_ids = context_length, (tokenizer.eos_id,)
        self.skipped = {}
        self.beginnings = [
            tokenizer.encode(text, add_bos=False, special=special)
            for text in BEGINNINGS
            for special in (True, False)
        ]
        self.replies = [tokenizer.encode(r, add_bos=False, special=True) for r in replies]
        self.replies = iter([[*reply, tokenizer.eos_id] for reply in self.replies])
        self.known = {}  # prompt: its reply
        self.fed = 0  # tokens

    def new_cache(self, batch, max_length):
        ids = KV(*torch.zeros(2, batch, 1, max_length, 1))
        return Cache([ids], batch, max_length, self.config, torch.zeros(1))

    def forward(self, ids, *, cache, attention_mask=None, logits_to_keep=0):
        call = cache.begin(*ids.shape, attention_mask)
        values = ids[:, None, :, None].float()
        seen, _ = cache.entries[0].extend(values, values, call.first_slot)
        cache.commit(call)
        self.fed += int((call.positions >= 0).sum())
        logits = torch.zeros(len(ids), 1, self.config.vocab_size)
        for row, all_ids, positions in zip(logits, seen, cache.positions, strict=True):
            real = positions[: cache.length] >= 0
            row[0, self.next(all_ids[0, real, 0].int().tolist())] = 1
        return logits

    def next(self, ids):
        where = [(n, b) for b in self.beginnings for n in range(len(ids)) if ids[n:][: len(b)] == b]
        end = max((n + len(b) for n, b in where), default=0)
        prompt, said = ids[:end], ids[end:]
        if not prompt or self.stop_ids[0] in said:
            return 0  # within a prompt
        if tuple(prompt) not in self.known:
            self.known[tuple(prompt)] = next(self.replies)
        return self.known[tuple(prompt)][len(said)]
