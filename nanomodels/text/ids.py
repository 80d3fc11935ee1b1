"""Token ids as Python, numpy and torch give them."""

import operator


def list_of_ids(name, ids):
    """Token ids as a list of ints; they may be whole numbers of Python, numpy or torch.

    Raises ValueError for anything else, such as text: "12" is not the ids 1 and 2.
    """
    if hasattr(ids, "__next__"):
        ids = list(ids)  # outside of `try`: its own errors are no fault of the ids
    try:
        if isinstance(ids, (str, bytes)):
            raise TypeError
        given = ids.tolist() if hasattr(ids, "tolist") else list(ids)  # of an array or a tensor
        if any(isinstance(i, bool) for i in given):
            raise TypeError
        return [operator.index(i) for i in given]
    except TypeError:
        raise ValueError(f"{name} is {ids!r:.80}; it must be a list of token ids") from None
