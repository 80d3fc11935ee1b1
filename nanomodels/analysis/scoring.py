"""How likely a model finds a text: the log-probability of each token, given all before it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nanomodels.text.ids import list_of_ids

if TYPE_CHECKING:
    from nanomodels.checkpoint.loading import Model

ROWS = 16  # texts that are read at the same time
PIECE = 512  # tokens that one call is given, at most
LOGITS = 1 << 26  # numbers that the logits of one call have, at most


@dataclass
class Score:
    """The scored tokens of one text.

    ids are those after the `given` first ones. logprobs has the natural logarithm of the
    probability of each. top has for each the likeliest tokens at its place, as (id, logprob).
    """

    ids: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]

    @property
    def loss(self) -> float:
        """The mean of -logprob, as a transformers model returns it for labels."""
        return -math.fsum(self.logprobs) / len(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp(loss): 1 if each token was certain, the size of the vocabulary for a blind guess."""
        return math.exp(self.loss)


def score(
    model: "Model", texts: Iterable[Iterable[int]], *, given: int = 1, top: int = 0
) -> list[Score]:
    """Score texts, each a list of token ids: a list of Score, in their order.

    The first `given` tokens of each text are not scored, only read: 1, because nothing comes before
    the first token, or the length of a prompt. top is the number of alternatives for each token.
    The probabilities are the model's own, of its whole vocabulary.

    Raises ValueError for a text without a token to score, longer than the model's context, or with
    ids outside the vocabulary.
    """
    texts = [list_of_ids("a text", ids) for ids in texts]
    known, context = model.config.vocab_size, model.context_length
    if given < 1 or not 0 <= top <= known:
        raise ValueError(f"given is {given} and top {top}; 1 or more, and 0 to {known}")
    for number, ids in enumerate(texts, 1):
        if not given < len(ids) <= context:
            raise ValueError(
                f"text {number} has {len(ids)} tokens; it needs {given + 1} at least, and the "
                f"model's context holds {context}"
            )
        if not all(0 <= i < known for i in ids):
            raise ValueError(f"text {number} has ids that are not in the vocabulary of {known}")
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))  # little padding
    scores = {}
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        scores |= zip(rows, score_rows(model, [texts[n] for n in rows], given, top), strict=True)
    return [scores[n] for n in range(len(texts))]


@torch.inference_mode()
def score_rows(model, texts, given, top):
    """The Score of each of some texts, read as one padded batch."""
    b, longest = len(texts), max(map(len, texts)) - 1  # the last token is only predicted
    device = next(model.parameters()).device
    ids = torch.tensor([text + [0] * (longest + 1 - len(text)) for text in texts], device=device)
    is_token = torch.arange(longest) < torch.tensor([[len(text) - 1] for text in texts])  # (b, t)
    mask = None if is_token.all() else is_token.to(device)
    piece = max(1, min(PIECE, LOGITS // (b * model.config.vocab_size)))
    cache = model.new_cache(b, longest)
    logprobs, best = [], []
    for start in range(0, longest, piece):
        here = slice(start, min(start + piece, longest))
        some = None if mask is None else mask[:, here]
        logits = model(ids[:, here], cache=cache, attention_mask=some)  # (b, t, v)
        total = logits.logsumexp(-1, keepdim=True)  # (b, t, 1)
        following = ids[:, here.start + 1 : here.stop + 1, None]
        logprobs.append((logits.gather(-1, following) - total)[..., 0].cpu())
        values, tokens = logits.topk(top, -1)
        best.append((tokens.cpu(), (values - total).cpu()))
    logprobs = torch.cat(logprobs, 1)  # (b, t)
    tokens, values = (torch.cat(each, 1) for each in zip(*best, strict=True))  # (b, t, top)
    scores = []
    for row, text in enumerate(texts):
        places = slice(given - 1, len(text) - 1)
        pairs = zip(tokens[row, places].tolist(), values[row, places].tolist(), strict=True)
        scores.append(
            Score(
                text[given:],
                logprobs[row, places].tolist(),
                [[*zip(*pair, strict=True)] for pair in pairs],
            )
        )
    return scores
