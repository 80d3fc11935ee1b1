"""Log-probabilities: how likely the model found each token of its text.

They are of the model's own distribution: log_softmax of its float32 logits over the first
vocab_size ids, before repetition penalty, temperature, top-k, top-p and min-p.

Shapes: b rows, v vocabulary.
"""


class Token(int):
    """A token id with its log-probability.

    logprob: log of the probability of this id. top: [(id, logprob), ...] of the likeliest ids, the
    likeliest first.
    """

    logprob: float
    top: list


def with_logprobs(tokens, logits, count):
    """The ids tokens (b,), chosen from logits (b, v): a list of Tokens, or of ints for count None.

    count: how many of the likeliest ids each Token lists.
    """
    if count is None:
        return tokens.tolist()
    logprobs = logits.log_softmax(-1)  # (b, v)
    own = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    values, ids = (part.tolist() for part in logprobs.topk(count))
    rows = [Token(token) for token in tokens.tolist()]
    for n, token in enumerate(rows):
        token.logprob, token.top = own[n], list(zip(ids[n], values[n], strict=True))
    return rows
