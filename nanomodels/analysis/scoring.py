"""How likely a model finds a text: the log-probability of each token, given all before it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nanomodels.generation.logprobs import Token, with_logprobs
from nanomodels.text.ids import list_of_ids

if TYPE_CHECKING:
    from nanomodels.checkpoint.loading import Model

ROWS = 16  # texts that are read at the same time
PIECE = 512  # tokens that one call is given, at most
LOGITS = 1 << 26  # numbers that the logits of one call have, at most


@dataclass
class Score:
    """The scored tokens of one text: those after the `given` first ones.

    Each token is an id with its logprob, the natural logarithm of its probability, and with top,
    the likeliest tokens at its place: [(id, logprob), ...].
    """

    tokens: list[Token]

    @property
    def loss(self) -> float:
        """The mean of -logprob, as a transformers model returns it for labels."""
        return -math.fsum(token.logprob for token in self.tokens) / len(self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(loss): 1 if each token was certain, the size of the vocabulary for a blind guess."""
        return math.exp(min(self.loss, 700))  # above that it is no float


def score(
    model: "Model",
    texts: Iterable[Iterable[int]],
    *,
    given: int | Sequence[int] = 1,
    top: int = 0,
) -> list[Score]:
    """Score texts, each a list of token ids: a list of Score, in their order.

    The first `given` tokens of each text are not scored, only read: 1, because nothing comes before
    the first token, or the length of a prompt; or a list with one number for each text. top is the
    number of alternatives for each token. The probabilities are the model's own, of its whole
    vocabulary.

    The loss of a transformers model for `labels` is `score(model, [ids])[0].loss`. To train, use
    F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()), for each family.

    Raises ValueError for a text without a token to score, longer than the model's context, or with
    ids outside the vocabulary.
    """
    texts = [list_of_ids("a text", ids) for ids in texts]
    given = [given] * len(texts) if isinstance(given, int) else list(given)
    known = model.config.vocab_size
    if len(given) != len(texts) or not all(n >= 1 for n in given):
        raise ValueError(f"given is {given}; it must be 1 or more, or so for each text")
    if not 0 <= top <= known:
        raise ValueError(f"top is {top}; it must be 0 to {known}")
    for number, pair in enumerate(zip(texts, given, strict=True), 1):
        if wrong := fault(model, *pair):
            raise ValueError(f"text {number} {wrong}")
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))  # little padding
    scores = {}
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        found = score_rows(model, [texts[n] for n in rows], [given[n] for n in rows], top)
        scores |= zip(rows, found, strict=True)
    return [scores[n] for n in range(len(texts))]


def fault(model, ids, given):
    """Why a text cannot be scored, or None."""
    known, context = model.config.vocab_size, model.context_length
    if not given < len(ids) <= context:
        return (
            f"has {len(ids)} tokens; it needs {given + 1} at least, and the model's context "
            f"holds {context}"
        )
    if not all(0 <= i < known for i in ids):
        return f"has ids that are not in the vocabulary of {known}"
    return None


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
    scores = [Score([]) for _ in texts]
    for start in range(0, longest, piece):
        here = slice(start, start + piece)
        some = None if mask is None else mask[:, here]
        logits = model(ids[:, :longest][:, here], cache=cache, attention_mask=some)  # (b, t, v)
        for row, text in enumerate(texts):
            begin, end = max(start, given[row] - 1), min(start + piece, len(text) - 1)
            if begin < end:
                following = ids[row, begin + 1 : end + 1]
                places = logits[row, begin - start : end - start]
                scores[row].tokens += with_logprobs(following, places, top)
    return scores
