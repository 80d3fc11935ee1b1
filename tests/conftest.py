"""Settings that all tests share, and `--device cuda`: where they have nanomodels.load put models.

A model there takes tensors of the CPU and gives its output back to it, so that tests draw and
compare numbers on the CPU. Tests marked `cpu` are about the CPU: they, and the programs that they
start, find no GPU.
"""

import importlib
import signal

import pytest
import torch

from nanomodels.checkpoint import loading

# The models here are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)
# A shell's background job ignores Ctrl-C, and so would the programs that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where models are loaded: cpu, cuda [cpu]")


def pytest_configure(config):
    if config.option.device != "cpu":
        torch.set_float32_matmul_precision("highest")
        for name in loading.MODEL_TYPES:
            architecture = importlib.import_module(f"nanomodels.{name}")
            for model_class in architecture.ARCHITECTURES.values():
                model_class.__call__ = from_any_device(model_class.__call__)


def from_any_device(call):
    """A model's __call__ whose tensors may be elsewhere; its output goes where the first one is."""

    def moved(model, *args, **kwargs):
        here = next(model.parameters()).device
        given = next((x.device for x in (*args, *kwargs.values()) if is_tensor(x)), here)
        args = [x.to(here) if is_tensor(x) else x for x in args]
        kwargs = {name: x.to(here) if is_tensor(x) else x for name, x in kwargs.items()}
        output = call(model, *args, **kwargs)
        return output.to(given) if is_tensor(output) else tuple(y.to(given) for y in output)

    return moved


def is_tensor(x):
    return isinstance(x, torch.Tensor)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Load models where --device says; hide the GPU from a test that is about the CPU."""
    device, load = item.config.option.device, loading.load
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu" or item.get_closest_marker("cpu"):
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        else:
            there = lambda folder, device=device, *rest, **more: load(folder, device, *rest, **more)  # noqa: E731
            patch.setattr(loading, "load", there)
        return (yield)


@pytest.fixture(scope="session")
def device(pytestconfig):
    """For what a test computes without a model from a folder."""
    return torch.device(pytestconfig.option.device)
