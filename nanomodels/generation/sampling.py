"""Logits to the next token: greedy, or sampled with temperature, top-k, top-p and min-p.

The order of the steps, and what each keeps, is that of transformers 5.23.0: repetition penalty,
temperature, top-k, top-p, min-p (generation/logits_process.py). Each row has its own random
generator and draws one number a token, so its text does not depend on the other rows.

Shapes: b rows, v vocabulary.
"""

import copy
import math

import torch


class Sampler:
    """Chooses the next token of each row.

    It holds what belongs to the rows: a random generator each, a calculator's state and, for the
    repetition penalty, the tokens that each text already has. Rows are in the order of
    `generate_batch`. seed and vocab_size of the settings must not be None. share(tokens), if given,
    returns the tokens that rank 0 has chosen (linears/parallel.py).
    """

    def __init__(self, settings, prompts, device="cpu", share=None):
        samples = range(settings.num_samples)
        seeds = [settings.seed + j for _ in prompts for j in samples]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.settings, self.share = settings, share
        calculator = settings.calculator
        self.calculations = [calculator.row() for _ in seeds] if calculator else None
        # Below a millionth, a difference of 0.0001 between logits is 100 nats: that is greedy.
        self.temperature = settings.temperature if settings.temperature >= 1e-6 else 0
        self.seen = None  # (b, v), True for the tokens of the text
        if settings.repetition_penalty != 1:
            seen = torch.zeros(len(prompts), settings.vocab_size, dtype=torch.bool)
            for row, ids in zip(seen, prompts, strict=True):
                row[[i for i in ids if i < settings.vocab_size]] = True
            self.seen = seen.repeat_interleave(settings.num_samples, 0).to(device)

    def __call__(self, logits):
        """Choose the next tokens (b,) from logits (b, v) float32, and add them to the texts."""
        logits = self.penalise(logits)
        if self.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            tokens = draw(self.probabilities(logits), self.generators)
        if self.share is not None:
            tokens = self.share(tokens)
        if self.calculations:
            pairs = zip(self.calculations, tokens.tolist(), strict=True)
            tokens = tokens.new_tensor([row.next(token) for row, token in pairs])
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        return tokens

    def kept(self, rows):
        """A Sampler with some of the rows, as they are now."""
        new = copy.copy(self)
        new.generators = [self.generators[i] for i in rows]
        new.calculations = self.calculations and [self.calculations[i] for i in rows]
        new.seen = None if self.seen is None else self.seen[rows]
        return new

    def joined(self, rows, other):
        """A Sampler with some of the rows, and then all of another's."""
        new = self.kept(rows)
        new.generators += other.generators
        if new.calculations is not None:
            new.calculations += other.calculations
        if new.seen is not None:
            new.seen = torch.cat((new.seen, other.seen))
        return new

    def penalise(self, logits):
        """Lower the logits of tokens that the text already has, arXiv 1909.05858 section 4.1."""
        if self.seen is None:
            return logits
        penalty = self.settings.repetition_penalty
        penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
        return torch.where(self.seen, penalised, logits)

    def probabilities(self, logits):
        """The probabilities (b, v) float32 to draw from; each row sums to 1."""
        top_k, top_p, min_p = self.settings.top_k, self.settings.top_p, self.settings.min_p
        # Relative to the largest, so that nothing overflows.
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if 0 < top_k < logits.shape[-1]:
            least = logits.topk(top_k).values[:, -1:]  # (b, 1)
            logits = logits.masked_fill(logits < least, -math.inf)
        if top_p < 1:
            ascending, order = logits.sort(dim=-1)
            tail = ascending.softmax(-1).cumsum(-1) <= 1 - top_p  # (b, v)
            tail[:, -1] = False
            logits = logits.masked_fill(tail.scatter(-1, order, tail), -math.inf)
        probabilities = logits.softmax(-1)
        if min_p > 0:
            least = min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < least, 0)
        return probabilities / probabilities.sum(-1, keepdim=True)


def draw(probabilities, generators):
    """One token of each row (b,): invert the cumulative distribution at one random number."""
    drawn = torch.stack([torch.rand(1, dtype=torch.float64, generator=g) for g in generators])
    cumulative = probabilities.double().cumsum(-1)  # (b, v)
    threshold = drawn.to(cumulative.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative[:, :-1].contiguous(), threshold, right=True)[:, 0]
