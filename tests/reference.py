"""Random checkpoints that transformers writes, and what transformers computes with them."""

from pathlib import Path

import torch
from transformers import (
    NanoChatConfig,
    NanoChatForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
)

# nanochat's own checkpoint of its latest era.
LATEST = Path(__file__).parent / "data" / "nanochat-2026-07-03"
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def pick(rng, *choices):
    return choices[int(torch.randint(len(choices), (), generator=rng))]


def random_rope(rng, rope_type, rotated, context):
    """rope_parameters of a type for `rotated` numbers of a head, no value at its default."""

    def numbers(low, high):
        values = torch.rand(rotated // 2, generator=rng) * (high - low) + low
        return [round(float(value), 3) for value in values]

    common = {"rope_type": rope_type, "rope_theta": pick(rng, 500.0, 10000.0, 77777.0)}
    extra = {
        "default": {},
        "linear": {"factor": 3.5},
        "dynamic": {"factor": 2.5},
        "yarn": {
            "factor": 4.0,
            "original_max_position_embeddings": context // 4,
            **pick(
                rng,
                {},
                {"beta_fast": 6.0, "beta_slow": 0.5, "truncate": False},
                {"attention_factor": 1.3},
                {"mscale": 1.2, "mscale_all_dim": 0.7},
            ),
        },
        "longrope": {
            "short_factor": numbers(1.0, 1.5),
            "long_factor": numbers(1.5, 4.0),
            "original_max_position_embeddings": pick(rng, 24, context),
            **pick(rng, {"factor": 8.0}, {"factor": 4.0, "attention_factor": 0.8}),
        },
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 64,
        },
    }
    return common | extra[rope_type]


def spread(model, rng):
    """Random weights such that each block changes the logits, whose spread is above 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=rng)
            if parameter.dim() > 1:
                parameter.mul_(parameter.shape[-1] ** -0.5)
        head = model.get_output_embeddings()
        if head is not None:
            head.weight.mul_(3.0)


def random_nanochat(seed):
    """A small NanoChatForCausalLM in float32; the seed decides every field."""
    rng = torch.Generator().manual_seed(seed)
    rope_type = ROPE_TYPES[seed % len(ROPE_TYPES)]
    groups, ratio = pick(rng, (1, 1), (3, 1), (5, 1), (1, 2), (3, 2), (2, 4), (1, 5), (1, 7))
    head_dim = pick(rng, 6, 8, 16)
    context = 256
    config = NanoChatConfig(
        vocab_size=pick(rng, 97, 130, 251),
        hidden_size=groups * ratio * head_dim,
        intermediate_size=pick(rng, 31, 64, 100),
        num_hidden_layers=pick(rng, 1, 2, 3),
        num_attention_heads=groups * ratio,
        num_key_value_heads=groups,
        max_position_embeddings=context,
        rms_norm_eps=pick(rng, 1e-6, 1e-5, 1e-2),
        final_logit_softcapping=pick(rng, 15.0, 4.0, None),
        attention_bias=pick(rng, True, False),
        tie_word_embeddings=pick(rng, True, False),
        rope_parameters=random_rope(rng, rope_type, head_dim, context),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = NanoChatForCausalLM(config).eval()
    spread(model, rng)
    return model


def nemotron_config(seed, **extra):
    """A small NemotronConfig and its generator; the seed decides every field."""
    rng = torch.Generator().manual_seed(seed)
    rope_type = ROPE_TYPES[seed % len(ROPE_TYPES)]
    groups, ratio = pick(rng, (1, 1), (3, 1), (1, 2), (3, 2), (2, 4), (1, 5))
    head_dim, partial = pick(rng, (24, 0.25), (16, 0.25), (8, 0.5), (12, 0.5), (6, 1.0), (16, 1.0))
    context, rotated = 256, int(head_dim * partial)
    rope = random_rope(rng, rope_type, rotated, context) | {"partial_rotary_factor": partial}
    config = NemotronConfig(
        vocab_size=pick(rng, 97, 130, 251),
        hidden_size=pick(rng, 20, 32, 45),
        intermediate_size=pick(rng, 31, 64, 100),
        num_hidden_layers=pick(rng, 1, 2, 3),
        num_attention_heads=groups * ratio,
        num_key_value_heads=groups,
        head_dim=head_dim,
        max_position_embeddings=context,
        norm_eps=pick(rng, 1e-6, 1e-5, 1e-2),
        attention_bias=pick(rng, True, False),
        mlp_bias=pick(rng, True, False),
        tie_word_embeddings=pick(rng, True, False),
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **extra,
    )
    return config, rng


def random_nemotron(seed):
    """A small NemotronForCausalLM in float32."""
    config, rng = nemotron_config(seed)
    model = NemotronForCausalLM(config).eval()
    spread(model, rng)
    return model


def random_nemotron_h(seed, **fixed):
    """A small NemotronHForCausalLM in float32, all four kinds of layer in random order."""
    rng = torch.Generator().manual_seed(seed)
    kinds = ["linear_attention", "full_attention", "mlp", "moe"]
    kinds += [pick(rng, *kinds) for _ in range(pick(rng, 0, 1, 3))]
    groups = pick(rng, 1, 2, 4, 8)
    kv_heads, ratio = pick(rng, (1, 1), (3, 1), (1, 2), (3, 2), (2, 4), (1, 5))
    expert_groups, topk_group, chosen = pick(rng, (1, 1, 3), (1, 1, 1), (2, 1, 4), (4, 2, 3))
    config = {
        "vocab_size": pick(rng, 97, 130, 251),
        "hidden_size": pick(rng, 20, 32, 45),
        "layers_block_type": [kinds[i] for i in torch.randperm(len(kinds), generator=rng)],
        "num_attention_heads": kv_heads * ratio,
        "num_key_value_heads": kv_heads,
        "head_dim": pick(rng, 6, 12),
        "max_position_embeddings": 256,
        "intermediate_size": pick(rng, 31, 64),
        "mlp_bias": pick(rng, True, False),
        "mamba_num_heads": groups * pick(rng, 1, 2, 3),
        "mamba_head_dim": pick(rng, 3, 8, 16),
        "ssm_state_size": pick(rng, 5, 16, 24),
        "n_groups": groups,
        "conv_kernel": pick(rng, 2, 3, 4, 5),
        "chunk_size": pick(rng, 4, 8, 16),
        "time_step_limit": pick(rng, (0.0, float("inf")), (0.0, float("inf")), (0.05, 0.8)),
        "use_bias": pick(rng, True, False),
        "use_conv_bias": pick(rng, True, False),
        "n_routed_experts": 8,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": pick(rng, 12, 25),
        "moe_shared_expert_intermediate_size": pick(rng, 18, 33),
        "moe_latent_size": pick(rng, None, 10),
        "n_group": expert_groups,
        "topk_group": topk_group,
        "norm_topk_prob": pick(rng, True, False),
        "routed_scaling_factor": pick(rng, 1.0, 2.5),
        "layer_norm_epsilon": pick(rng, 1e-6, 1e-5, 1e-2),
    }
    config = NemotronHConfig(**config | fixed, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    model = NemotronHForCausalLM(config).eval()
    model.set_experts_implementation("eager")  # the others need widths that are multiples of 4
    spread(model, rng)
    with torch.no_grad():
        for layer in model.model.layers:
            if layer.block_type == "linear_attention":
                # dt from 0.01 to 2, so that the state remembers some tens of tokens. transformers
                # 5.23.0 ignores the config's limits of dt, so they are set here.
                layer.mixer.dt_bias.mul_(2).sub_(2)
                layer.mixer.A_log.sub_(1)
                layer.mixer.time_step_limit = tuple(config.time_step_limit)
            elif layer.block_type == "moe":
                layer.mixer.gate.e_score_correction_bias.normal_(std=0.3, generator=rng)
    return model


FAMILIES = {
    "nanochat": random_nanochat,
    "nemotron": random_nemotron,
    "nemotron_h": random_nemotron_h,
}
ROTATING = ("nanochat", "nemotron")  # families whose attention rotates queries and keys


@torch.inference_mode()
def tolerance(model, ids, **kwargs):
    """How far float32 logits may be from this model's: as far as rounding can move them.

    Measured by changing each weight by about one rounding error; the limit is 3 times the largest
    change. Over all families and seeds, with AVX-512, with AVX2 and without either, the largest
    difference of ours was 0.3 to 1.1 times that change.
    """
    expected, rng = model(ids, **kwargs).logits, torch.Generator().manual_seed(0)
    weights = {parameter: parameter.clone() for parameter in model.parameters()}
    change = 0.0
    for _ in range(2):
        for parameter, weight in weights.items():
            noise = torch.randn(weight.shape, generator=rng, dtype=weight.dtype)
            parameter.copy_(weight * (1 + torch.finfo().eps * noise))
        change = max(change, (model(ids, **kwargs).logits - expected).abs().max().item())
    for parameter, weight in weights.items():
        parameter.copy_(weight)
    return 3 * change


def first_difference(theirs, ours, ids, tolerance):
    """Which block's output differs first, and by how much: the message of a failed comparison."""
    outputs = {}
    our_layers = getattr(ours, "model", ours).layers
    for side, layers in (("theirs", theirs.model.layers), ("ours", our_layers)):
        for i, layer in enumerate(layers):
            layer.register_forward_hook(
                lambda _, __, output, key=(side, i): outputs.__setitem__(key, output)
            )
    theirs(ids), ours(ids)
    for i in range(len(our_layers)):
        difference = (outputs["theirs", i] - outputs["ours", i]).abs().max()
        if difference > tolerance:
            return f"block {i} is the first that differs, by {difference:.1e}"
    return "all blocks agree; the difference comes after them"
