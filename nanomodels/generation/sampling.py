"""Logits to the next token: greedy, or sampled with temperature, top-k, top-p and min-p.

The order of the steps, and what each keeps, is transformers 5.23.0's: repetition penalty,
temperature, top-k, top-p, min-p (generation/logits_process.py). Each row draws from a generator of
its own, one number a token, so a row's text does not depend on the rows around it.

b rows, v vocabulary.
"""

import math

import torch


class Sampler:
    """Chooses the next token of each row; holds the settings and one random generator per row.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.
    Raises ValueError naming the setting that is out of its range.
    """

    def __init__(
        self, seeds, *, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0
    ):
        for name, setting, low, high, meaning in (
            ("temperature", temperature, 0, 1e6, "0 is greedy"),
            ("top_k", top_k, 0, 2**31, "a whole number, 0 is off"),
            ("top_p", top_p, 1e-9, 1, "1 is off"),
            ("min_p", min_p, 0, 1, "0 is off"),
            ("repetition_penalty", repetition_penalty, 0.01, 100, "1 is off"),
        ):
            kinds = (int,) if name == "top_k" else (int, float)
            if type(setting) not in kinds or not low <= setting <= high:
                raise ValueError(f"{name} is {setting!r}; it must be {low} to {high} ({meaning})")
        if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds):
            raise ValueError("seed must be a whole number from 0 to 2^63 - 1")
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # Below a millionth a difference of 0.0001 between logits is 100 nats: that is greedy.
        self.temperature = temperature if temperature >= 1e-6 else 0
        self.top_k, self.top_p = top_k, top_p
        self.min_p, self.repetition_penalty = min_p, repetition_penalty

    def __call__(self, logits, seen):
        """The next tokens (b,). logits (b, v) float32; seen (b, v) True for tokens in the text.

        seen is read only where repetition_penalty is on, and may be None otherwise.
        """
        logits = self.penalise(logits, seen)
        if self.temperature == 0:
            return logits.argmax(-1)
        return draw(self.probabilities(logits), self.generators)

    def penalise(self, logits, seen):
        """Lower the logits of tokens that the text has already, arXiv 1909.05858 section 4.1."""
        if self.repetition_penalty == 1:
            return logits
        penalised = torch.where(
            logits < 0, logits * self.repetition_penalty, logits / self.repetition_penalty
        )
        return torch.where(seen, penalised, logits)

    def probabilities(self, logits):
        """What the tokens are drawn from: (b, v) float32, rows sum to 1."""
        # Relative to the largest, so that nothing overflows.
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]  # (b, 1)
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p < 1:
            ascending, order = logits.sort(dim=-1)
            tail = ascending.softmax(-1).cumsum(-1) <= 1 - self.top_p  # (b, v)
            tail[:, -1] = False
            logits = logits.masked_fill(tail.scatter(-1, order, tail), -math.inf)
        probabilities = logits.softmax(-1)
        if self.min_p > 0:
            least = self.min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < least, 0)
        return probabilities / probabilities.sum(-1, keepdim=True)


def draw(probabilities, generators):
    """One token of each row (b,) by inverting the cumulative distribution at one number per row."""
    drawn = torch.stack([torch.rand(1, dtype=torch.float64, generator=g) for g in generators])
    cumulative = probabilities.double().cumsum(-1)  # (b, v)
    threshold = drawn.to(cumulative.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative[:, :-1].contiguous(), threshold, right=True)[:, 0]
