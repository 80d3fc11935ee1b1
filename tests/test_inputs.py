"""What callers of the library may pass: ids, settings, shapes."""

import numpy as np
import pytest
import torch
from test_config import HUBS, name_of

import nanomodels
from nanomodels.generation.settings import GenerationSettings


def model_of(module):
    torch.manual_seed(0)
    return next(iter(module.ARCHITECTURES.values()))(module.config_from_hub(HUBS[module])).eval()


def first(model, ids, **settings):
    return list(nanomodels.generate(model, ids, max_new_tokens=3, stop_ids=(), **settings))


@pytest.mark.parametrize(
    "ids", ["12", b"12", [1.9], ["1"], [True], [None], [[1]], 5, None, torch.ones(2), np.ones(3),
            torch.ones(2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.long), np.array(["1"])],
    ids=str,
)  # fmt: skip
def test_what_is_not_a_list_of_ids_is_refused(ids):
    model = model_of(next(iter(HUBS)))
    with pytest.raises(ValueError, match="a prompt is .*; it must be a list of token ids"):
        first(model, ids)
    with pytest.raises(ValueError, match="a prompt is .*; it must be a list of token ids"):
        nanomodels.generate_batch(model, [[1], ids])


def test_whole_numbers_of_numpy_and_torch_are_ids():
    model = model_of(next(iter(HUBS)))
    expected = first(model, [3, 1, 4])
    for ids in (np.array([3, 1, 4]), torch.tensor([3, 1, 4]), (3, 1, 4), iter([3, 1, 4]),
                [np.int64(3), torch.tensor(1), 4], range(3, 4)):  # fmt: skip
        found = first(model, ids)
        assert found == (first(model, [3]) if isinstance(ids, range) else expected)
    stop = expected[0]
    for stops in ([np.int64(stop)], torch.tensor([stop]), {stop}, frozenset({stop})):
        settings = GenerationSettings(max_new_tokens=3, stop_ids=stops)
        assert list(nanomodels.generate(model, [3, 1, 4], settings)) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("vocab_size", -1, "vocab_size is -1; it must be a whole number, 1 or more"),
        ("vocab_size", 0, "vocab_size is 0"),
        ("vocab_size", 9.5, "vocab_size is 9.5"),
        ("vocab_size", True, "vocab_size is True"),
        ("stop_ids", "12", "stop_ids is '12'; it must be a list of token ids"),
        ("stop_ids", 5, "stop_ids is 5"),
        ("stop_ids", [1.5], r"stop_ids is \[1.5\]"),
        ("max_new_tokens", np.float64(3), "max_new_tokens is .*3.0"),
        ("max_new_tokens", True, "max_new_tokens is True"),
        ("temperature", np.bool_(True), "temperature is"),
        ("temperature", True, "temperature is True"),
        ("temperature", np.float64("nan"), "temperature is"),
        ("top_k", np.float64(3), "top_k is"),
        ("seed", True, "seed must be a whole number"),
        ("seed", np.int64(-1), "seed must be a whole number"),
        ("logprobs", -1, "logprobs is -1; it must be a whole number, 0 or more"),
        ("logprobs", True, "logprobs is True"),
        ("logprobs", 1.5, "logprobs is 1.5"),
        ("calculator", "1 + 2", r"calculator is '1 \+ 2'; give a Calculator\(tokenizer\), or None"),
    ],
)
def test_a_setting_that_is_no_such_number_is_refused(name, value, words):
    with pytest.raises(ValueError, match=words):
        GenerationSettings(**{name: value})


def test_numbers_of_numpy_are_settings():
    plain = {"max_new_tokens": 5, "num_samples": 2, "temperature": 0.5, "top_k": 7, "top_p": 0.5,
             "min_p": 0.25, "repetition_penalty": 1.5, "seed": 3, "draft_lookup": 0,
             "vocab_size": 9, "logprobs": 2}  # fmt: skip
    kinds = {int: np.int64, float: np.float64}
    given = {name: kinds[type(value)](value) for name, value in plain.items()}
    settings = GenerationSettings(**given)
    assert settings == GenerationSettings(**plain)
    assert {type(getattr(settings, name)) for name in plain} == {int, float}
    assert GenerationSettings(temperature=np.float32(0.5)).temperature == 0.5
    assert GenerationSettings(seed=np.int64(2**63 - 2)).seed == 2**63 - 2, "does not wrap round"


@pytest.mark.parametrize("module", HUBS, ids=name_of)
def test_inputs_of_another_shape_or_kind_are_refused(module):
    model = model_of(module)
    good = torch.zeros(1, 3, dtype=torch.long)
    assert model(good, logits_to_keep=2).shape[1] == 2
    assert torch.equal(model(good, logits_to_keep=np.int64(2)), model(good, logits_to_keep=2))
    assert torch.equal(model(good.int()), model(good))
    for ids, words in (
        (torch.zeros(3, dtype=torch.long), r"int64 of shape \[3\]; it must be int64 or int32 of"),
        (torch.zeros(0, 3, dtype=torch.long), r"of shape \[0, 3\]; .* with at least one row"),
        (torch.zeros(1, 3), r"torch.float32 of shape \[1, 3\]"),
        (torch.zeros(1, 3, dtype=torch.bool), "torch.bool"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"of shape \(b, t\)"),
        (torch.zeros(1, 0, dtype=torch.long), "at least one token"),
    ):
        with pytest.raises(ValueError, match=words):
            model(ids)
    for keep in (-1, 1.0, True, None):
        with pytest.raises(ValueError, match=f"logits_to_keep is {keep}; it must be a whole"):
            model(good, logits_to_keep=keep)
    for embeds in (torch.zeros(3, 32), torch.zeros(0, 3, 32), torch.zeros(1, 3, 32).long()):
        with pytest.raises(ValueError, match="inputs_embeds"):
            model(inputs_embeds=embeds)
