"""A weight that a checkpoint stores in several tensors, as codes with their scales."""

import torch


class StoredWeight:
    """A weight (n, k) as a file stores it. Like a tensor, it has shape, dtype, nbytes and to().

    A subclass is made from its parts alone. Its dequantise(device, dtype) yields (slice of rows,
    their values); `to` rounds values of a wider dtype to `dtype`.
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
