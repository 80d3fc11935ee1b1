"""A weight that a checkpoint stores in several tensors, as codes with their scales."""

import torch


class StoredWeight:
    """A weight (n, k) as a file stores it. Like a tensor, it has shape, dtype, nbytes and to().

    A subclass is made from its parts alone. Its dequantise(device, dtype) yields (slice of rows,
    their values); `to` rounds values of a wider dtype to `dtype`. Its cut(dim, pieces) is the same
    class with some slices of the rows (dim 0) or columns (dim 1); None where a slice would end
    among numbers that are stored together.
    """

    dtype = torch.bfloat16  # what it counts as beside plain tensors

    def __init__(self, shape, *parts):
        self.shape = torch.Size(shape)
        self.parts = parts  # tensors, as stored
        self.nbytes = sum(part.nbytes for part in parts)

    def dim(self):
        return len(self.shape)

    def numel(self):
        return self.shape.numel()

    def to(self, device, dtype):
        """The weight as a plain tensor (n, k)."""
        w = torch.empty(self.shape, dtype=dtype, device=device)
        for rows, values in self.dequantise(device, dtype):
            w[rows] = values
        return w


def take(tensor, dim, pieces):
    """Slices of a dimension of a tensor, joined; contiguous."""
    taken = [tensor.narrow(dim, piece.start, piece.stop - piece.start) for piece in pieces]
    return taken[0].contiguous() if len(taken) == 1 else torch.cat(taken, dim)


def divide(pieces, unit):
    """Slices in units of `unit` numbers; None if one does not begin or end at a unit."""
    if any(piece.start % unit or piece.stop % unit for piece in pieces):
        return None
    return [slice(piece.start // unit, piece.stop // unit) for piece in pieces]
