"""config.json and tokenizer_config.json in words that every program reads.

transformers 5, transformers 4, mlx-lm, llama.cpp's converter, vLLM and SGLang read some keys under
different names, and have different defaults for those that are missing. What `portable_config`
writes gives all of them the same model. README.md in this folder lists what each one reads.
"""

import math
from dataclasses import fields

from nanomodels import nemotron_h
from nanomodels.rope import PARTIAL

# Keys that are in no Config of ours because only one value is supported; mlx-lm asks for some.
CONSTANTS = {
    "nanochat": {"hidden_act": "relu2"},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron_h": {
        **{"attention_bias": False, "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu"},
        "n_shared_experts": 1,
    },
}
# Fields of a Config that are no keys of their own, or that only a head reads.
NO_KEYS = ("rope", "layers", "time_step_limit", "num_labels", "problem_type", "pad_token_id")
# llama.cpp takes a hybrid for one with experts if num_experts_per_tok is there.
EXPERT_KEYS = (
    *("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "num_local_experts"),
    *("moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size"),
    *("moe_shared_expert_overlap", "n_group", "topk_group", "norm_topk_prob"),
    *("routed_scaling_factor", "output_router_logits"),
)
TWO_KEYS = ("linear", "dynamic")  # vLLM's own config wants "type" and "factor", nothing else
LARGEST_LIMIT = 1e308  # for infinity, as Nemotron 3 Ultra has it: JSON has no infinity


def portable_config(hub, architecture, model, has_draft_head):
    """config.json, as a dict, from the source's `hub` and the model that was built from it.

    Its keys keep their values, and those that hub leaves to a default are added. has_draft_head:
    tensors mtp.* are written, too.
    """
    classes = {model_class: name for name, model_class in architecture.ARCHITECTURES.items()}
    model_type, config = hub["model_type"], dict(hub)
    config["architectures"] = [classes[type(model)]]
    given = {field.name: getattr(model.config, field.name) for field in fields(model.config)}
    keys = {name: value for name, value in given.items() if name not in NO_KEYS}
    for key, value in (CONSTANTS[model_type] | keys).items():
        if config.get(key) is None and value is not None:
            config[key] = value
    if model_type == "nemotron_h":
        set_hybrid(config, model.config, has_draft_head)
    else:
        set_rope(config, model.config.rope)
    return config


def set_rope(config, rope):
    """Repeat the rotation's keys at the top level, for readers that do not know rope_parameters."""
    nested = config.get("rope_scaling") or config.get("rope_parameters") or {}
    config["rope_theta"] = rope.rope_theta
    if config["model_type"] == "nemotron":  # nanochat rotates the whole head
        spelled = (nested.get("partial_rotary_factor"), *(config.get(key) for key in PARTIAL))
        parts = [part for part in spelled if part is not None]
        config["partial_rotary_factor"] = parts[0] if parts else 0.5
    if rope.rope_type in TWO_KEYS:
        config["rope_scaling"] = {"type": rope.rope_type, "factor": rope.factor}
    elif rope.rope_type != "default":  # readers that do not know the type stop
        others = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
        rest = {key: value for key, value in nested.items() if key not in others}
        config["rope_scaling"] = {"rope_type": rope.rope_type} | rest


def set_hybrid(config, model_config, has_draft_head):
    """The keys of Nemotron-H that programs spell in several ways."""
    for key in ("layers_block_type", "layer_types", "time_step_limit", "mamba_dt_limit"):
        config.pop(key, None)
    config["hybrid_override_pattern"] = model_config.layers
    config["num_hidden_layers"] = len(model_config.layers)
    config["mamba_proj_bias"] = model_config.use_bias  # mlx-lm reads this one
    config["mamba_n_groups"] = model_config.n_groups  # SGLang reads this one
    low, high = model_config.time_step_limit
    if (low, high) != (0.0, math.inf):  # no limits is the default everywhere
        config["time_step_limit"] = [low, min(high, LARGEST_LIMIT)]
    if "E" not in model_config.layers:
        for key in EXPERT_KEYS:
            config.pop(key, None)
    names = config.get("mtp_layers_block_type")
    if not has_draft_head:
        for key in [key for key in config if key.startswith("mtp_")]:
            del config[key]
        if config.get("num_nextn_predict_layers") is not None:
            config["num_nextn_predict_layers"] = 0
    elif isinstance(names, list) and all(name in nemotron_h.LETTERS for name in map(str, names)):
        del config["mtp_layers_block_type"]
        letters = "".join(nemotron_h.LETTERS[name] for name in names)
        config["mtp_hybrid_override_pattern"] = letters


def portable_tokenizer_config(config, tokenizer):
    """tokenizer_config.json, as a dict; tokenizer: the Tokenizer, None if it cannot be read.

    Without add_bos_token, llama.cpp adds a BOS to SentencePiece's texts, and transformers none to
    nanochat's.
    """
    config = {key: value for key, value in config.items() if key != "auto_map"}
    if tokenizer is not None and config.get("add_bos_token") is None:
        before = tokenizer.encode("a")[: -len(tokenizer.encode("a", add_bos=False))]
        if before in ([], [tokenizer.bos_id]):
            config["add_bos_token"] = bool(before)
    return config
