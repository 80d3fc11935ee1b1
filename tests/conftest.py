"""Settings that all tests share, and the option `--device cuda`, which loads models on a GPU.

Such a model takes tensors from the CPU and returns its output to the CPU, where tests draw and
compare numbers. Tests marked `cpu` are about the CPU: no GPU is visible to them, or to the programs
that they start.
"""

import importlib
import signal

import pytest
import torch

from nanomodels.checkpoint import loading

# The models are tiny: more threads make them slower.
torch.set_num_threads(1)
# A background job of a shell ignores Ctrl-C, and so would the programs that the tests start.
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
    """A model's __call__ that takes tensors from any device; its output is on the first one's."""

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
    """Load models on --device; hide the GPU from tests about the CPU."""
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
    """--device, for tests that load no model."""
    return torch.device(pytestconfig.option.device)
