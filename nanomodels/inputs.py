"""What every decoder checks of the arguments of its forward pass."""

from numbers import Integral

import torch


def check_inputs(input_ids, inputs_embeds, logits_to_keep):
    """Raise ValueError for anything but ids (b, t), or embeddings (b, t, m) instead.

    b must be 1 or more; the cache refuses t = 0. logits_to_keep is a whole number, 0 or more.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    if input_ids is None:
        name, x, letters, kind = "inputs_embeds", inputs_embeds, "b, t, m", "float"
    else:
        name, x, letters, kind = "input_ids", input_ids, "b, t", "int64 or int32"
    wanted = f"it must be {kind} of shape ({letters}) with at least one row"
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{name} is {x!r:.80}, which is no tensor; {wanted}")
    is_kind = x.is_floating_point() if kind == "float" else x.dtype in (torch.int64, torch.int32)
    if not is_kind or x.dim() != len(letters.split()) or len(x) == 0:
        raise ValueError(f"{name} is {x.dtype} of shape {list(x.shape)}; {wanted}")
    keep = logits_to_keep
    if not isinstance(keep, Integral) or isinstance(keep, bool) or keep < 0:
        raise ValueError(f"logits_to_keep is {keep!r}; it must be a whole number, 0 (all) or more")
