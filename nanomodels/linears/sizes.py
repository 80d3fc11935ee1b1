"""How large a model is, and how it is stored."""

from torch import nn

from nanomodels.linears.quantized import QuantizedLinear


def bytes_per_token(model):
    """What a decode step reads: each weight once, but no embeddings and only the chosen experts."""
    stored = dict([*model.named_parameters(), *model.named_buffers()])
    weights = {id(tensor): tensor.nbytes for tensor in stored.values()}
    for embedding in embeddings(model):
        if model.lm_head.weight is not embedding.weight:
            del weights[id(embedding.weight)]
    experts = sum(tensor.nbytes for name, tensor in stored.items() if ".experts." in name)
    if experts:
        experts *= 1 - model.config.num_experts_per_tok / model.config.n_routed_experts
    return sum(weights.values()) - experts


def formats(model):
    """How the weights are stored: the schemes of quantised linears, then the dtype of the rest."""
    schemes = {m.scheme for m in model.modules() if isinstance(m, QuantizedLinear)}
    return [*sorted(schemes), str(next(embeddings(model)).weight.dtype).removeprefix("torch.")]


def device_of(model):
    """The device of the model's weights."""
    return next(embeddings(model)).weight.device


def embeddings(model):
    return (m for m in model.modules() if isinstance(m, nn.Embedding))
