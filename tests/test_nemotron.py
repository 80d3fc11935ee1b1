"""Nemotron beyond the decoder: heads, losses, and every published config."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from reference import nemotron_config, random_nemotron, spread

import nanomodels
from nanomodels import nemotron

CONFIGS = Path(__file__).parent / "data" / "configs"
PARAMETERS = {
    "Minitron-4B-Base": 4_190_509_056,
    "Minitron-4B-Base.rev-5e7fcb9-rope_percent": 4_190_509_056,
    "Nemotron-Mini-4B-Instruct": 4_190_509_056,
    "Minitron-8B-Base": 8_271_699_968,
    "nemotron3-8b.thhaus-main": 8_540_135_424,
    "nemotron3-8b.thhaus-rev-f61d87e": 8_540_135_424,
    "nemotron-3-8b-chat-4k-sft-hf.mgoin": 8_540_135_424,
    "Nemotron-4-340B-Base-hf.mgoin": 341_029_195_776,
    "Nemotron-4-340B-Instruct-hf.leafspark": 341_029_195_776,
    "Nemotron-4-340B-Instruct-vllm.mgoin": 341_029_195_776,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_published_config_has_the_published_parameter_count(name):
    hub = json.loads((CONFIGS / f"{name}.json").read_text())
    config = nemotron.config_from_hub(hub)
    with torch.device("meta"):
        model = nemotron.Nemotron(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert config.rope.dim == config.head_dim // 2
    assert config.rope.rope_theta == 10000
    assert config.norm_eps == 1e-5


def head(tmp_path, kind, seed=5, **extra):
    """transformers' model with a head, and ours from the checkpoint that it saved."""
    config, rng = nemotron_config(seed, **extra)
    theirs = getattr(transformers, kind)(config).eval()
    spread(theirs, rng)
    theirs.save_pretrained(tmp_path)
    return theirs, nanomodels.load(tmp_path)


def padded(vocab_size, side):
    """Ids (3, 11) and mask (3, 11) of rows with 11, 4 and 7 tokens; 0 is padding."""
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(1, vocab_size, (3, 11), generator=rng)
    mask = torch.arange(11) < torch.tensor([[11], [4], [7]])
    mask = mask.flip(1) if side == "left" else mask
    return ids * mask, mask.long()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ({"num_labels": 4}, torch.tensor([0, 3, 1])),
        ({"num_labels": 1}, torch.tensor([0.5, -2.0, 1.5])),
        ({"num_labels": 3}, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])),
        ({"num_labels": 2, "problem_type": "regression"}, torch.rand(3, 2)),
        ({"num_labels": 5, "problem_type": "single_label_classification"}, torch.tensor([4, 0, 2])),
    ],
    ids=["integers", "one label", "zeros and ones", "regression", "named"],
)
def test_sequence_classification_matches_transformers(tmp_path, side, problem, labels):
    theirs, ours = head(tmp_path, "NemotronForSequenceClassification", **problem)
    ids, mask = padded(theirs.config.vocab_size, side)
    expected = theirs(ids, attention_mask=mask, labels=labels)
    found = ours(ids, attention_mask=mask)
    close(found, expected.logits)
    close(ours.loss(found, labels), expected.loss)


@torch.inference_mode()
def test_sequence_classification_of_a_batch_needs_the_id_of_padding(tmp_path):
    theirs, _ = head(tmp_path, "NemotronForSequenceClassification")
    theirs.config.pad_token_id = None
    theirs.save_pretrained(tmp_path)
    ours, ids = nanomodels.load(tmp_path), torch.arange(1, 9).view(2, 4)
    close(ours(ids[:1]), theirs(ids[:1]).logits)
    with pytest.raises(ValueError, match="Cannot handle batch sizes > 1"):
        theirs(ids)
    with pytest.raises(ValueError, match="names no pad_token_id"):
        ours(ids)


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
def test_question_answering_matches_transformers(tmp_path, side):
    theirs, ours = head(tmp_path, "NemotronForQuestionAnswering")
    ids, mask = padded(theirs.config.vocab_size, side)
    starts, ends = torch.tensor([0, 2, 99]), torch.tensor([10, 99, 6])  # 99: beyond the text
    expected = theirs(ids, attention_mask=mask, start_positions=starts, end_positions=ends)
    first, last = ours(ids, attention_mask=mask)
    is_token = mask.bool()  # logits of padding mean nothing
    close(first[is_token], expected.start_logits[is_token])
    close(last[is_token], expected.end_logits[is_token])
    whole = theirs(ids, start_positions=starts, end_positions=ends)
    close(ours.loss(*ours(ids), starts, ends), whole.loss)


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
def test_token_classification_matches_transformers(tmp_path, side):
    theirs, ours = head(tmp_path, "NemotronForTokenClassification", num_labels=5)
    ids, mask = padded(theirs.config.vocab_size, side)
    expected = theirs(ids, attention_mask=mask)
    found = ours(ids, attention_mask=mask)
    close(found[mask.bool()], expected.logits[mask.bool()])


def test_norm_weights_of_the_references_are_far_from_zero_and_one():
    """M4: so a gain without the 1, or a lost bias, changes the logits."""
    for name, parameter in random_nemotron(5).named_parameters():
        if "norm" in name:
            assert parameter.abs().mean() > 0.3, name


def test_an_empty_config_means_what_transformers_documents():
    config, theirs = nemotron.config_from_hub({}), transformers.NemotronConfig()
    shared = set(vars(config)) & set(theirs.to_dict())
    assert len(shared) == 14
    for name in shared - {"num_key_value_heads"}:
        assert getattr(config, name) == getattr(theirs, name), name
    assert config.num_key_value_heads == 48
    assert config.rope.dim == 64 == int(128 * theirs.rope_parameters["partial_rotary_factor"])


@pytest.mark.parametrize(
    ("config", "dim"),
    [
        ({}, 64),
        ({"rope_percent": 0.25}, 32),
        ({"rope_percentage": 1.0}, 128),
        ({"partial_rotary_factor": 0.25}, 32),
        ({"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.25}}, 32),
        ({"kv_channels": 32}, 16),
        ({"head_dim": 32, "kv_channels": 32, "rope_percent": 0.5, "rope_percentage": 0.5}, 16),
    ],
)
def test_every_spelling_is_read(config, dim):
    """M2: of the rotated part, and of the head width."""
    assert nemotron.config_from_hub(config).rope.dim == dim


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope_percent": 0.25, "partial_rotary_factor": 0.5}, "rope_percent.*disagree"),
        ({"rope_percent": 0.25, "rope_parameters": {"partial_rotary_factor": 0.5}}, "disagree"),
        ({"head_dim": 32, "kv_channels": 64}, "kv_channels.*disagree"),
        ({"norm_eps": 1e-5, "layer_norm_eps": 1e-6}, "layer_norm_eps.*disagree"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_key_value_heads": 7}, "not a multiple of num_key_value_heads 7"),
        ({"problem_type": "guessing"}, "problem_type 'guessing'"),
        ({"rope_percent": 0.01}, "1 wide"),
    ],
)
def test_an_unsupported_or_contradictory_config_is_refused(config, words):
    with pytest.raises(ValueError, match=words):
        nemotron.config_from_hub(config)


def test_an_architecture_without_a_class_is_refused(tmp_path):
    config = {"model_type": "nemotron", "architectures": ["NemotronForPoetry"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'NemotronForPoetry' is unknown; supported: NemotronFor"):
        nanomodels.load(tmp_path)
