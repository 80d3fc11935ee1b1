"""Checkpoints of Nemotron and Nemotron-H in the Hub's layout as GGUF files for llama.cpp.

Matrices stay bfloat16; norms, router, convolution and SSM parameters become float32. There is no
tokenizer: token ids go in, logits come out.

Sources: llama.cpp of 2026, conversion/nemotron.py, mamba.py and granite.py; src/models/nemotron.cpp
and nemotron-h.cpp.
"""

import json

import torch
from gguf import GGMLQuantizationType, GGUFWriter

from nanomodels.checkpoint.loading import read_config
from nanomodels.checkpoint.names import numbers, pattern
from nanomodels.checkpoint.tensors import read_tensors


def write_gguf(folder, path, read=None):
    """Write the checkpoint in a folder as one GGUF file.

    read(config.json as a dict) gives its sizes, as attributes with the names of our Config.
    """
    hub = json.loads((folder / "config.json").read_text())
    config = read_config(folder, hub)[2] if read is None else read(hub)
    name, settings = SETTINGS[hub["model_type"]](config)
    writer = GGUFWriter(path, name)
    writer.add_tokenizer_model("no_vocab")
    for key, value in settings.items():
        add = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        add.get(type(value), writer.add_array)(f"{name}.{key}", value)
    found = {}  # name -> tensors, several where each expert has one
    tensors = {n: t for n, t in read_tensors(folder)[0].items() if not n.startswith("mtp.")}
    for hub_name, tensor in sorted(tensors.items(), key=by_numbers):
        new_name = NAMES[pattern(hub_name)].format(*numbers(hub_name))
        found.setdefault(new_name, []).append(converted(new_name, tensor, config))
    for new_name, tensors in found.items():
        tensor = torch.stack(tensors) if "_exps" in new_name else tensors[0]
        if tensor.dtype == torch.bfloat16:  # unknown to NumPy
            bits = tensor.view(torch.uint16).numpy()
            writer.add_tensor(new_name, bits, raw_dtype=GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(new_name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_numbers(item):
    """Layer and expert of a (name, tensor)."""
    return [int(number) for number in numbers(item[0])]


def converted(name, tensor, config):
    """A tensor as llama.cpp wants it; name is the new one."""
    if tensor.ndim != 2:
        tensor = tensor.float()
    if name.endswith("norm.weight") and hasattr(config, "rope"):
        return tensor + 1  # Nemotron stores the gain minus 1
    if name.endswith("ssm_a"):
        return -tensor.exp()[:, None]
    if name.endswith("ssm_d"):
        return tensor[:, None]
    if name.endswith("ssm_norm.weight"):
        return tensor.view(config.n_groups, -1)
    return tensor.squeeze(1) if name.endswith("ssm_conv1d.weight") else tensor


def nemotron(config):
    """llama.cpp's name of the architecture, and its settings."""
    return "nemotron", {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_epsilon": config.norm_eps,
        "rope.dimension_count": config.rope.dim,
        "rope.freq_base": float(config.rope.rope_theta),
    }


def nemotron_h(config):
    moe = "E" in config.layers
    width = config.moe_intermediate_size if moe else config.intermediate_size
    settings = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": len(config.layers),
        # What a layer is: 0 and 0 is Mamba, no MLP width is attention.
        "feed_forward_length": [width if kind in "-E" else 0 for kind in config.layers],
        "attention.head_count_kv": [
            config.num_key_value_heads if kind == "*" else 0 for kind in config.layers
        ],
        "attention.head_count": config.num_attention_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.inner_size": config.mamba_num_heads * config.mamba_head_dim,
        "ssm.state_size": config.ssm_state_size,
        "ssm.time_step_rank": config.mamba_num_heads,
        "ssm.group_count": config.n_groups,
    }
    if moe:
        settings |= {
            "expert_count": config.n_routed_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_shared_count": 1,
            "expert_feed_forward_length": width,
            "expert_shared_feed_forward_length": config.moe_shared_expert_intermediate_size,
            "expert_weights_norm": config.norm_topk_prob,
            "expert_weights_scale": config.routed_scaling_factor,
        }
    return "nemotron_h_moe" if moe else "nemotron_h", settings


SETTINGS = {"nemotron": nemotron, "nemotron_h": nemotron_h}

# Name on the Hub -> in GGUF; {} is the layer.
NAMES = {
    "lm_head.weight": "output.weight",
    # Nemotron
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.norm.bias": "output_norm.bias",
    "model.layers.{}.input_layernorm.weight": "blk.{}.attn_norm.weight",
    "model.layers.{}.input_layernorm.bias": "blk.{}.attn_norm.bias",
    "model.layers.{}.self_attn.q_proj.weight": "blk.{}.attn_q.weight",
    "model.layers.{}.self_attn.k_proj.weight": "blk.{}.attn_k.weight",
    "model.layers.{}.self_attn.v_proj.weight": "blk.{}.attn_v.weight",
    "model.layers.{}.self_attn.o_proj.weight": "blk.{}.attn_output.weight",
    "model.layers.{}.post_attention_layernorm.weight": "blk.{}.ffn_norm.weight",
    "model.layers.{}.post_attention_layernorm.bias": "blk.{}.ffn_norm.bias",
    "model.layers.{}.mlp.up_proj.weight": "blk.{}.ffn_up.weight",
    "model.layers.{}.mlp.down_proj.weight": "blk.{}.ffn_down.weight",
    # Nemotron-H
    "backbone.embeddings.weight": "token_embd.weight",
    "backbone.norm_f.weight": "output_norm.weight",
    "backbone.layers.{}.norm.weight": "blk.{}.attn_norm.weight",
    "backbone.layers.{}.mixer.in_proj.weight": "blk.{}.ssm_in.weight",
    "backbone.layers.{}.mixer.conv1d.weight": "blk.{}.ssm_conv1d.weight",
    "backbone.layers.{}.mixer.conv1d.bias": "blk.{}.ssm_conv1d.bias",
    "backbone.layers.{}.mixer.dt_bias": "blk.{}.ssm_dt.bias",
    "backbone.layers.{}.mixer.A_log": "blk.{}.ssm_a",
    "backbone.layers.{}.mixer.D": "blk.{}.ssm_d",
    "backbone.layers.{}.mixer.norm.weight": "blk.{}.ssm_norm.weight",
    "backbone.layers.{}.mixer.out_proj.weight": "blk.{}.ssm_out.weight",
    "backbone.layers.{}.mixer.q_proj.weight": "blk.{}.attn_q.weight",
    "backbone.layers.{}.mixer.k_proj.weight": "blk.{}.attn_k.weight",
    "backbone.layers.{}.mixer.v_proj.weight": "blk.{}.attn_v.weight",
    "backbone.layers.{}.mixer.o_proj.weight": "blk.{}.attn_output.weight",
    "backbone.layers.{}.mixer.up_proj.weight": "blk.{}.ffn_up.weight",
    "backbone.layers.{}.mixer.down_proj.weight": "blk.{}.ffn_down.weight",
    "backbone.layers.{}.mixer.gate.weight": "blk.{}.ffn_gate_inp.weight",
    "backbone.layers.{}.mixer.gate.e_score_correction_bias": "blk.{}.exp_probs_b.bias",
    "backbone.layers.{}.mixer.experts.{}.up_proj.weight": "blk.{}.ffn_up_exps.weight",
    "backbone.layers.{}.mixer.experts.{}.down_proj.weight": "blk.{}.ffn_down_exps.weight",
    "backbone.layers.{}.mixer.shared_experts.up_proj.weight": "blk.{}.ffn_up_shexp.weight",
    "backbone.layers.{}.mixer.shared_experts.down_proj.weight": "blk.{}.ffn_down_shexp.weight",
}
