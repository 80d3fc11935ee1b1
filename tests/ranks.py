"""What each process of tests/test_parallel.py does: its part of a model, beside the whole one."""

import math
import random
from pathlib import Path

import torch
import torch.distributed as dist
from compare import SAMPLING, close, random_ids

import nanomodels
from nanomodels import nanochat, nanochat_2026, nemotron, nemotron_h
from nanomodels.checkpoint import loading
from nanomodels.linears.parallel import Ranks, cut_model, local_config

DECODERS = {
    nanochat: nanochat.NanoChat,
    nanochat_2026: nanochat_2026.NanoChat2026,
    nemotron: nemotron.Nemotron,
    nemotron_h: nemotron_h.NemotronH,
}


def random_config(module, seed):
    """A Config that 2 and 4 processes can cut, with key/value heads on several of them or not."""
    rng = random.Random(f"{module.__name__} {seed}")
    heads, keys = rng.choice([(4, 1), (4, 2), (8, 2), (8, 4), (8, 8)])
    changes = {
        "vocab_size": rng.choice([60, 256]),
        "hidden_size": rng.choice([48, 64]),
        "head_dim": rng.choice([8, 16]),
        "intermediate_size": rng.choice([36, 64]),
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
    }
    flag = lambda: rng.random() < 0.5  # noqa: E731
    if module is nanochat:
        changes |= {"attention_bias": flag(), "tie_word_embeddings": flag()}
    elif module is nemotron:
        changes |= {"attention_bias": flag(), "mlp_bias": flag(), "tie_word_embeddings": flag()}
    elif module is nemotron_h:
        groups, latent = rng.choice([4, 8]), rng.choice([None, 24])
        changes |= {
            "layers": "".join(rng.sample("MM**-EE", 7)),
            "n_groups": groups,
            "mamba_num_heads": groups * rng.choice([1, 2]),
            "mamba_head_dim": rng.choice([4, 8]),
            "ssm_state_size": rng.choice([8, 16]),
            "chunk_size": 8,
            "use_bias": flag(),
            "use_conv_bias": flag(),
            "mlp_bias": flag(),
            "moe_latent_size": latent,
            "moe_intermediate_size": 20,
            "moe_shared_expert_intermediate_size": 28,
            "num_experts_per_tok": rng.choice([1, 3]),
            "n_group": rng.choice([1, 2]),
            "routed_scaling_factor": 2.5,
            "time_step_limit": rng.choice([(0.0, math.inf), (0.01, 0.2)]),
        }
    return module.Config(**changes)


def random_model(module, seed):
    """A model whose biases, norms and lambdas count, with logits that are not flat."""
    torch.manual_seed(seed)
    model = DECODERS[module](random_config(module, seed)).requires_grad_(False)
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf in ("bias", "e_score_correction_bias", "smear_lambda", "D"):
            parameter.normal_(std=0.3)
        elif "norm" in name:
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    model.lm_head.weight.mul_(4)
    return model.eval()


def part_of(model, ranks, dtype=torch.float32):
    """One rank's part of a model, through the steps of `load`."""
    named = {name: [(name, tensor)] for name, tensor in model.state_dict().items()}
    part = loading.build(type(model), local_config(model.config, ranks.count))
    named = cut_model(part, model.config, named, ranks)
    source = loading.Source(Path(), "hub", None, part, {}, named, {}, {}, None, ranks)
    return loading.finish(source, dtype=dtype)


def check(model, part):
    """The same logits: in one call, in pieces of ragged rows, after a snapshot; the same text."""
    ids = random_ids(model, 3, 40)
    whole, found = model(ids), part(ids)
    close(found, whole)
    every = [torch.empty_like(found) for _ in range(dist.get_world_size())]
    dist.all_gather(every, found)
    assert all(torch.equal(each, found) for each in every), "ranks differ"
    assert whole.std() > 0.1

    mask = torch.arange(40) >= torch.tensor([[0], [7], [25]])
    outputs = []
    for each in (model, part):
        cache, logits = each.new_cache(3, 64), []
        for start, end in ((0, 9), (9, 30), (30, 31), (31, 40)):
            columns = slice(start, end)
            logits.append(each(ids[:, columns], cache=cache, attention_mask=mask[:, columns]))
        snapshot = cache.snapshot()
        logits.append(each(ids[:, :4], cache=cache))
        cache.restore(snapshot)
        cache.reorder(torch.tensor([2, 0, 1]))
        logits.append(each(ids[:, 4:9], cache=cache))
        outputs.append(torch.cat(logits, 1) * torch.cat((mask, torch.ones(3, 9)), 1)[..., None])
    close(*outputs[::-1])

    prompt = ids[0, :12].tolist() * 2
    for settings in ({"draft_lookup": 4}, *SAMPLING.values()):
        options = {"max_new_tokens": 24, "stop_ids": [], "seed": 3, **settings}
        texts = [list(nanomodels.generate(each, prompt, **options)) for each in (model, part)]
        assert texts[0] == texts[1], settings
    options = {"max_new_tokens": 9, "num_samples": 2, "temperature": 1.0, "seed": 1}
    prompts = [prompt, prompt[:3], prompt[5:]]
    texts = [list(nanomodels.generate_batch(each, prompts, **options)) for each in (model, part)]
    assert texts[0] == texts[1]


@torch.inference_mode()
def kl(exact, logits):
    """Mean KL divergence in nats from the distribution of `exact` logits."""
    p, q = exact.log_softmax(-1), logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def work(rank, count, meeting, seeds):
    """All that one process does; an AssertionError ends it, and the test with it."""
    torch.set_num_threads(1)
    address = f"file://{meeting}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
    ranks = Ranks(rank, count)
    for module in DECODERS:
        errors = torch.zeros(2)
        for seed in range(seeds):
            model = random_model(module, seed)
            try:
                check(model, part_of(model, ranks))
            except AssertionError as error:
                raise AssertionError(f"{module.__name__}, seed {seed}: {error}") from error
            ids = random_ids(model, 8, 60, seed=1)
            low = part_of(model, ranks, torch.bfloat16)
            exact, cut = model(ids), low(ids)
            errors += torch.tensor([kl(exact, cut), kl(exact, model.bfloat16()(ids))])
        assert errors[0] <= 1.5 * errors[1], f"{module.__name__} in bfloat16: KL {errors}"
    dist.destroy_process_group()
