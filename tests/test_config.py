"""Hostile config.json files: one ValueError that names the key, before memory or time is spent."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import nanomodels
from nanomodels import config, nanochat, nanochat_2026, nemotron, nemotron_h
from nanomodels.checkpoint import loading

WEIGHTS = Path(__file__).parent.parent / "weights"
# A small config of each family that names every key with a number.
ROPE = {"max_position_embeddings": 64, "rope_theta": 500.0}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48}
HUBS = {
    nanochat: {
        **(SIZES | ATTENTION | ROPE),
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5,
        "final_logit_softcapping": 9.0,
        "hidden_act": "relu2",
        "attention_bias": False,
        "tie_word_embeddings": False,
    },
    nemotron: {
        **(SIZES | ATTENTION | ROPE),
        "num_hidden_layers": 2,
        "norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "pad_token_id": 0,
        "id2label": None,
        "problem_type": None,
        "num_labels": 2,
    },
    nemotron_h: {
        **(SIZES | ATTENTION),
        "hybrid_override_pattern": "ME*-",
        "layers_block_type": None,
        "num_hidden_layers": 4,
        "max_position_embeddings": 64,
        "layer_norm_epsilon": 1e-5,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 16,
        "n_groups": 2,
        "conv_kernel": 3,
        "chunk_size": 8,
        "time_step_limit": [0.0, 1.0],
        "use_bias": False,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "moe_latent_size": 8,
        "n_group": 2,
        "topk_group": 2,
        "routed_scaling_factor": 2.0,
        "sliding_window": None,
    },
    nanochat_2026: {
        "sequence_len": 64,
        "vocab_size": 50,
        "n_layer": 2,
        "n_head": 2,
        "n_kv_head": 2,
        "n_embd": 32,
        "window_pattern": "SL",
        "era": "2026-03-14",
    },
}
SCALED = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "attention_factor": 1.1, "beta_fast": 6.0, "beta_slow": 0.5,
             "mscale": 1.2, "mscale_all_dim": 0.7, "truncate": False,
             "original_max_position_embeddings": 32},
    "longrope": {"factor": 4.0, "short_factor": [1.1] * 4, "long_factor": [2.5] * 4,
                 "original_max_position_embeddings": 24},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32},
}  # fmt: skip
NUMBERS = (
    *(10**400, -(10**400), 10**30, -(10**30), 1e308, 1e-320, 1e30, 1e-30, 1.0000000000000002),
    *(math.inf, math.nan, 0, 1, -1, 2**24, 2**24 + 1, 2**63, 0.5),
)
OTHERS = ("x", True, False, [], [[]], [10**400] * 4, [1e-320] * 4, [None] * 4, {}, {"a": [1]},
          [{"__float__": []}, 1], [[], 1])  # fmt: skip


def name_of(value):
    return getattr(value, "__name__", str(value)).removeprefix("nanomodels.")


def logits(module, hub):
    """Logits of the model with random weights, prefill and one decode step."""
    settings = module.config_from_hub(hub)
    model = next(iter(module.ARCHITECTURES.values()))(settings).eval()
    ids = torch.zeros(1, 20, dtype=torch.long)  # of any vocabulary
    with torch.inference_mode():
        cache = model.new_cache(1, 40)
        model(ids, cache=cache)
        return model(ids[:, :1], cache=cache)


def read(module, hub):
    """Read a config: None if it is refused, with one short line."""
    try:
        return module.config_from_hub(hub)
    except ValueError as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 600
        return None


def small(module, hub):
    """Whether a model of this config is cheap to build and to run."""
    sizes = (v for k, v in hub.items() if type(v) is int and k != "max_position_embeddings")
    return max(sizes) < 1000 and len(hub.get("hybrid_override_pattern") or "") < 9


@pytest.mark.parametrize("module", HUBS, ids=name_of)
def test_any_value_of_any_key_is_refused_by_name_or_runs(module):
    hub, ran = HUBS[module], 0
    assert logits(module, hub).isfinite().all()
    for key in hub:
        for value in (*NUMBERS, *OTHERS):
            changed = hub | {key: value}
            if read(module, changed) and small(module, changed):
                logits(module, changed)
                ran += 1
    assert ran > 3


@pytest.mark.parametrize("kind", SCALED)
def test_any_number_of_any_rope_type_is_refused_by_name_or_runs(kind):
    hub, given = HUBS[nanochat], {"rope_type": kind, "rope_theta": 500.0, **SCALED[kind]}
    assert logits(nanochat, hub | {"rope_parameters": given}).isfinite().all()
    for key in given:
        for value in (*NUMBERS, *OTHERS):
            # Most formulas break only for two odd numbers at a time.
            for theta in (500.0, 1.0000000000000002, 1e30):
                changed = hub | {"rope_parameters": {**given, "rope_theta": theta, key: value}}
                if read(nanochat, changed) and theta != 500.0:
                    logits(nanochat, changed)


@pytest.mark.parametrize(
    ("module", "change", "words"),
    [
        (nanochat, {"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        (nanochat, {"rms_norm_eps": 1e-31}, "rms_norm_eps is 1e-31; .* nearer to 0 than 1e-30"),
        (nanochat, {"final_logit_softcapping": 1e31}, "softcapping is 1e\\+31; .*beyond 1e\\+30"),
        (nanochat, {"head_dim": 2**23}, "num_attention_heads 4 times head_dim 8388608 is a width"),
        (nemotron, {"head_dim": 2**23}, "num_attention_heads 4 times head_dim 8388608"),
        (nemotron, {"pad_token_id": [1]}, r"pad_token_id is \[1\]; it must be a whole number"),
        (nemotron_h, {"head_dim": 2**23}, "num_attention_heads 4 times head_dim 8388608"),
        (nemotron_h, {"mamba_head_dim": 2**23}, "mamba_num_heads 4 times mamba_head_dim 8388608"),
        (nemotron_h, {"ssm_state_size": 2**24}, "n_groups 2 times ssm_state_size 16777216"),
        (nemotron_h, {"time_step_limit": [{"__float__": []}, 1]}, "is .*__float__.*two numbers"),
        (nanochat_2026, {"era": []}, r"era is \[\]; known: 2026-01-11"),
    ],
)
def test_a_hostile_value_is_refused_by_its_name(module, change, words):
    with pytest.raises(ValueError, match=words):
        module.config_from_hub(HUBS[module] | change)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("dynamic", {"factor": 1e308}, "factor is 1e\\+308"),
        ("dynamic", {"factor": 1e20}, "factor is 1e\\+20; with it the context is 6400.* to 2\\^30"),
        ("dynamic", {"factor": 1e-3}, "factor is 0.001; with it the context is 0 tokens"),
        ("longrope", {"original_max_position_embeddings": 1}, "have no rotation .*division"),
        ("longrope", {"short_factor": [10**400] * 4}, r"short_factor is \[1000.*4 numbers"),
        ("yarn", {"beta_fast": 1e-320}, "beta_fast is 1e-320"),
        ("yarn", {"truncate": "no"}, "truncate is 'no'; it must be true or false"),
    ],
)
def test_a_rope_that_cannot_be_computed_is_refused_at_load(kind, change, words):
    given = {"rope_type": kind, **SCALED[kind], **change}
    with pytest.raises(ValueError, match=words):
        nanochat.config_from_hub(HUBS[nanochat] | {"rope_parameters": given})


def test_reading_a_config_keeps_no_frequencies():
    from nanomodels import rope

    before = rope.frequencies.cache_info().currsize
    given = {"rope_type": "dynamic", "factor": 3.21}
    nanochat.config_from_hub(HUBS[nanochat] | {"rope_parameters": given})
    assert rope.frequencies.cache_info().currsize == before


# --- More modules than tensors ---


def changed(tmp_path, family, **changes):
    """The shipped checkpoint with another config.json."""
    shutil.copytree(WEIGHTS / family, tmp_path / family)
    path = tmp_path / family / "config.json"
    hub = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in hub.items() if value is not None}))
    return tmp_path / family


HYBRID = {"num_hidden_layers": None, "layers_block_type": None}


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("nanochat-tiny", {"num_hidden_layers": 2**24}, "16777216 layers, but there are only 26 "),
        ("nemotron-tiny", {"num_hidden_layers": 2**24}, "16777216 layers, but there are only 54 "),
        ("nemotron-h-tiny", HYBRID | {"hybrid_override_pattern": "M" * 10**6}, "1000000 layers,"),
        ("nemotron-h-tiny", HYBRID | {"hybrid_override_pattern": "EME", "n_routed_experts": 2**23},
         "3 layers with 16777216 experts in all, but there are only "),
    ],
)  # fmt: skip
def test_more_modules_than_tensors_are_refused_before_they_are_built(
    tmp_path, monkeypatch, family, changes, words
):
    monkeypatch.setattr(loading, "build", lambda *_: pytest.fail("modules were built"))
    with pytest.raises(ValueError, match=words):
        nanomodels.load(changed(tmp_path, family, **changes))


def test_a_training_folder_with_more_layers_than_tensors_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(Path(__file__).parent / "data" / "nanochat-2025-10-16", folder)
    (path,) = folder.glob("meta_*.json")
    meta = json.loads(path.read_text())
    meta["model_config"]["n_layer"] = 2**24
    path.write_text(json.dumps(meta))
    monkeypatch.setattr(loading, "build", lambda *_: pytest.fail("modules were built"))
    with pytest.raises(ValueError, match="the config asks for 16777216 layers, but"):
        nanomodels.load(folder)


def test_as_many_tensors_as_layers_and_experts_are_enough():
    asked = nemotron_h.config_from_hub(HUBS[nemotron_h])  # 4 layers, one of them with 4 experts
    config.check_counts(asked, 8)
    with pytest.raises(ValueError, match="4 layers with 4 experts in all, .* only 7 tensors"):
        config.check_counts(asked, 7)
    config.check_counts(nanochat.config_from_hub(HUBS[nanochat]), 2)
    with pytest.raises(ValueError, match="asks for 2 layers, but there are only 1 tensors"):
        config.check_counts(nanochat.config_from_hub(HUBS[nanochat]), 1)
