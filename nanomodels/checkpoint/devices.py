"""A model whose layers lie on several devices of one process, one part after another.

    first device    the embedding, the first layers, the cache's positions
    ...             more layers, so that each device has about the same bytes
    last device     the last layers, the last norm and the head

Hooks move what a module is given to its device; each layer's part of the cache lies there, too. At
any time one device computes, so this is for models that do not fit on one, not for speed.
"""

import re
from dataclasses import fields, replace

import torch

from nanomodels.cache import Call


class Devices:
    """Which device each parameter goes to."""

    def __init__(self, devices, matches):
        """devices: a list of torch.device; matches: of loading.match_tensors."""
        self.all, self.layers = devices, {}
        if len(devices) == 1:
            return
        if any(match.places[0].name == "resid_lambdas" for match in matches):
            raise ValueError("a nanochat_2026 goes on one device: its layers share numbers")
        sizes = {}
        for match in matches:
            layer = layer_of(match.places[0].name)
            if layer is not None:
                sizes[layer] = sizes.get(layer, 0) + match.tensor.nbytes
        if len(sizes) < len(devices):
            raise ValueError(f"{len(sizes)} layers do not go on {len(devices)} devices")
        total, before = sum(sizes.values()), 0
        for layer in sorted(sizes):
            middle = before + sizes[layer] / 2
            self.layers[layer] = devices[min(int(middle / total * len(devices)), len(devices) - 1)]
            before += sizes[layer]

    def of(self, name):
        """The device of a parameter, by its name."""
        if len(self.all) == 1:
            return self.all[0]
        layer = layer_of(name)
        if layer is not None:
            return self.layers[layer]
        return self.all[0] if "embed" in name else self.all[-1]


def layer_of(name):
    """The number of the layer that a parameter is in; None: in no layer."""
    match = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return int(match[1]) if match else None


def connect_devices(model):
    """Add the hooks to a model whose weights are on their devices."""
    decoder = getattr(model, "model", model)
    for module in {*decoder.layers, *decoder.children(), *model.children()} - {
        decoder.layers,
        decoder,
    }:
        module.register_forward_pre_hook(move_arguments, with_kwargs=True)
    new_cache = model.new_cache

    def spread_cache(batch, max_length):
        cache = new_cache(batch, max_length)
        for layer, entry in zip(decoder.layers, cache.entries, strict=True):
            if entry is not None:
                entry.move(device_of(layer))
        return cache

    model.new_cache = spread_cache


def device_of(module):
    return next(module.parameters()).device


def move_arguments(module, args, kwargs):
    """A hook: the arguments on the module's device."""
    device = device_of(module)
    return tuple(moved(x, device) for x in args), {k: moved(x, device) for k, x in kwargs.items()}


def moved(x, device):
    """A tensor, or a Call with its tensors, on a device."""
    if isinstance(x, torch.Tensor):
        return x.to(device)
    if isinstance(x, Call) and x.positions.device != device:
        copies = vars(x).setdefault("copies", {})  # one for each device
        if device not in copies:
            tensors = {field.name: getattr(x, field.name) for field in fields(x)}
            copies[device] = replace(x, **{k: moved(v, device) for k, v in tensors.items()})
        return copies[device]
    return x
