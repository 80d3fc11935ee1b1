"""NanoChat's numbers: against transformers, against nanochat itself, and against themselves."""

from pathlib import Path

import pytest
import torch
from reference import random_nanochat
from safetensors.torch import load_file

import nanomodels
from nanomodels import nanochat

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "nanochat-2025-10-16"


@torch.inference_mode()
def test_nanochat_itself_gives_the_same_logits_and_greedy_ids():
    """N2, N15: the logits, the greedy ids, and both stop ids."""
    model, expected = nanomodels.load(GOLDEN), load_file(GOLDEN / "expected.safetensors")
    logits = model(expected["input_ids"])[:, expected["positions"]]
    assert (logits - expected["logits"]).abs().max() <= 1e-4
    prompt, ids = expected["greedy_prompt"].tolist(), expected["greedy_ids"].tolist()
    assert list(nanomodels.generate(model, prompt, max_new_tokens=24, stop_ids=[])) == ids
    assert model.stop_ids == (391, 395)  # <|bos|>, <|assistant_end|>


@torch.inference_mode()
def test_the_rows_that_pad_a_vocabulary_are_cut(tmp_path):
    """N14: nanochat pads its embedding to a multiple of 64 from 2025-12-23 on."""
    tensors = torch.load(GOLDEN / "model_000010.pt", weights_only=True)
    for name in ("_orig_mod.transformer.wte.weight", "_orig_mod.lm_head.weight"):
        tensors[name] = torch.cat((tensors[name], torch.full((48, 32), 9.0)))
    torch.save(tensors, tmp_path / "model_000010.pt")
    (tmp_path / "meta_000010.json").write_text((GOLDEN / "meta_000010.json").read_text())
    ids = torch.arange(40)[None]
    assert torch.equal(nanomodels.load(tmp_path)(ids), nanomodels.load(GOLDEN)(ids))


@torch.inference_mode()
def test_softcap_and_norms_are_float32_in_a_bf16_model(tmp_path):
    """N10: from bf16 to float32 before the cap."""
    theirs = random_nanochat(0)
    theirs.config.final_logit_softcapping = 2.0
    theirs.save_pretrained(tmp_path)
    ours = nanomodels.load(tmp_path, dtype=torch.bfloat16)
    ids = torch.arange(40)[None]
    logits = ours(ids)
    assert logits.dtype == torch.float32
    # The head's output is bf16 and the cap is not: undone, it gives a bf16 number again.
    uncapped = 2 * torch.atanh(logits.double() / 2)
    near = logits.abs() < 1.9
    torch.testing.assert_close(
        uncapped[near], uncapped[near].to(torch.bfloat16).double(), rtol=1e-4, atol=1e-6
    )


def test_an_empty_config_means_what_transformers_documents():
    from transformers import NanoChatConfig

    config, theirs = nanochat.config_from_hub({}), NanoChatConfig()
    shared = set(vars(config)) & set(theirs.to_dict())
    assert len(shared) == 11
    for name in shared:
        assert getattr(config, name) == getattr(theirs, name), name
    assert config.rope.rope_theta == theirs.rope_parameters["rope_theta"]


def test_null_sizes_follow_nanochat():
    nulls = {"intermediate_size": None, "num_key_value_heads": None, "hidden_size": 96}
    config = nanochat.config_from_hub(nulls)
    assert (config.intermediate_size, config.num_key_value_heads) == (384, 6)
    assert (
        nanochat.config_from_hub({"final_logit_softcapping": None}).final_logit_softcapping is None
    )
    assert nanochat.config_from_hub({"head_dim": 40}).head_dim == 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "silu"}, "hidden_act 'silu'"),
        ({"num_key_value_heads": 4}, "num_key_value_heads 4"),
        ({"hidden_size": 100}, "hidden_size 100"),
        ({"hidden_size": "768"}, "hidden_size is '768'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"head_dim": 33}, "33 wide"),
        ({"hidden_size": 10**18}, "hidden_size is 1000000000000000000"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; it must be a number above 0"),
        ({"final_logit_softcapping": 0}, "final_logit_softcapping is 0"),
        ({"final_logit_softcapping": float("nan")}, "final_logit_softcapping is nan"),
        ({"attention_bias": "false"}, "attention_bias is 'false'; it must be true or false"),
        ({"rope_parameters": 5}, "rope_parameters is 5"),
        ({"rope_parameters": {"rope_type": ["a"]}}, "is not supported"),
        ({"rope_parameters": {"rope_theta": "10000"}}, "rope_theta is '10000'"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0"),
        ({"rope_parameters": {"rope_type": "linear", "factor": None}}, "lacks 'factor'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": float("inf")}}, "factor is inf"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "'proportional' is not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, "lacks 'factor'"),
        ({"rope_parameters": {"rope_type": "default", "wobble": 1}}, "'wobble' is unknown"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}},
            "64 numbers",
        ),
    ],
)
def test_a_config_that_is_not_implemented_is_refused_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        nanochat.config_from_hub(change)


def test_older_rope_spellings_are_read():
    old = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    assert nanochat.config_from_hub(old) == nanochat.config_from_hub(new)


def test_nanochats_own_checkpoints_have_the_eps_of_their_training():
    """N3: that of F.rms_norm, 2^-23; the Hub's default is 1e-6."""
    assert nanomodels.load(GOLDEN).config.rms_norm_eps == 2.0**-23
    assert nanochat.config_from_hub({}).rms_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("name", "params"), [("d20", 560_988_160), ("d32", 1_879_048_192), ("d34", 2_217_082_880)]
)
def test_the_published_sizes_have_the_published_parameter_counts(name, params):
    sizes = {"d20": (20, 10, 1280), "d32": (32, 16, 2048), "d34": (34, 17, 2176)}
    layers, heads, width = sizes[name]
    meta = {"sequence_len": 2048, "vocab_size": 65536, "n_layer": layers}
    meta |= {"n_head": heads, "n_kv_head": heads, "n_embd": width}
    with torch.device("meta"):
        model = nanochat.NanoChat(nanochat.config_from_hub(nanochat.config_from_nanochat(meta)))
    assert sum(p.numel() for p in model.parameters()) == params
