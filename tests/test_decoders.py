"""The decoders of all families: against transformers, against themselves, and without a file."""

import importlib
import inspect
import math
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from compare import close, random_ids
from effort import THOROUGH, examples
from hypothesis import given, settings
from reference import FAMILIES, ROPE_TYPES, ROTATING, first_difference, tolerance

import nanomodels
from nanomodels import nanochat, nanochat_2026, nemotron, nemotron_h
from nanomodels.checkpoint.names import rename
from nanomodels.checkpoint.tensors import read_tensors

SEEDS = range(42 if THOROUGH else 12)  # each rope type twice


@pytest.fixture(scope="module", params=[(f, seed) for f in FAMILIES for seed in SEEDS], ids=str)
def pair(request, tmp_path_factory):
    """transformers' model and ours, from one folder that transformers saved."""
    family, seed = request.param
    theirs = FAMILIES[family](seed)
    folder = tmp_path_factory.mktemp("checkpoint")
    # Nemotron-H has two layouts: the Hub's, and transformers' own with stacked experts.
    theirs.save_pretrained(
        folder,
        max_shard_size="5KB" if seed % 2 else "1GB",
        save_original_format=seed % 3 != 0,
    )
    assert (folder / "model.safetensors").exists() != bool(seed % 2)
    return theirs, nanomodels.load(folder)


@pytest.mark.kernels
@torch.inference_mode()
def test_logits_match_transformers(pair):
    theirs, ours = pair
    ids = random_ids(ours, 2, 53)  # more than three Mamba chunks, and not a multiple of them
    expected, found = theirs(ids).logits, ours(ids)
    assert expected.std() > 1
    assert found.dtype == torch.float32
    limit = tolerance(theirs, ids)
    assert (found - expected).abs().max() <= limit, first_difference(theirs, ours, ids, limit)


@torch.inference_mode()
def test_greedy_continuation_matches_transformers(pair):
    theirs, ours = pair
    ids = random_ids(ours, 1, 30)
    # transformers 5.23.0 clamps no dt in Nemotron-H's cached steps; its full pass is as patched.
    use_cache = theirs.config.model_type != "nemotron_h"
    expected = theirs.generate(ids, max_new_tokens=64, do_sample=False, use_cache=use_cache)
    expected = expected[0, 30:].tolist()
    assert list(nanomodels.generate(ours, ids[0].tolist(), max_new_tokens=64)) == expected


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_equals_the_row_alone(pair, side):
    """G4: in one pass, and continued by two tokens from a cache with padding."""
    ours = pair[1]
    ids, lengths = random_ids(ours, 4, 23), [23, 1, 7, 16]
    mask = torch.arange(23) < torch.tensor(lengths)[:, None]
    rows = [row[:n] for row, n in zip(ids, lengths, strict=True)]
    padded = torch.where(mask, ids, 0)
    if side == "left":
        mask = mask.flip(1)
        padded[mask] = torch.cat(rows)
    cache = ours.new_cache(4, 25)
    logits = ours(padded, cache=cache, attention_mask=mask)
    uncached = ours(padded, attention_mask=mask)
    more = random_ids(ours, 4, 2, seed=1)
    continued = ours(more, cache=cache)
    for i, row in enumerate(rows):
        # The same length for the rope types whose frequencies depend on it.
        alone = ours(torch.cat((row, more[i]))[None], cache=ours.new_cache(1, 25))[0]
        close(logits[i, mask[i]], alone[:-2])
        close(continued[i], alone[-2:])
        rope = getattr(ours.config, "rope", None)
        if rope is None or rope.rope_type not in ("dynamic", "longrope"):
            close(uncached[i, mask[i]], alone[:-2])


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs = FAMILIES[request.param](3)
    assert theirs.config.num_hidden_layers > 1
    theirs.save_pretrained(folder)
    return nanomodels.load(folder)


@settings(max_examples=examples(100), deadline=None, derandomize=True)
@given(st.data())
def test_any_split_of_a_prompt_gives_the_same_logits(model, data):
    tokens = data.draw(st.integers(1, 60), "tokens")
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, tokens - 1)), max_size=8), "cuts"))
    batch = data.draw(st.integers(1, 3), "batch")
    ids = random_ids(model, batch, tokens, seed=tokens)
    cache = model.new_cache(batch, tokens)
    pieces = [ids[:, a:b] for a, b in zip([0, *cuts], [*cuts, tokens], strict=True) if b > a]
    with torch.inference_mode():
        found = torch.cat([model(piece, cache=cache) for piece in pieces], dim=1)
        close(found, model(ids))
    assert cache.length == tokens


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(st.data())
def test_any_split_of_a_ragged_batch_gives_each_row_as_it_is_alone(model, data):
    """N11: with padding on either side, and between one piece and the next."""
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=4), "lengths")
    ids = random_ids(model, len(lengths), max(lengths), seed=sum(lengths))
    cache, done, found = (
        model.new_cache(len(lengths), 400),
        [0] * len(lengths),
        [[] for _ in lengths],
    )
    with torch.inference_mode():
        while done != lengths:
            take = [
                data.draw(st.integers(0, min(12, n - d)))
                for n, d in zip(lengths, done, strict=True)
            ]
            if not any(take):
                take = [min(1, n - d) for n, d in zip(lengths, done, strict=True)]
            width = max(take) + data.draw(st.integers(0, 3))
            piece = torch.zeros(len(lengths), width, dtype=torch.long)
            mask = torch.zeros_like(piece)
            for i, n in enumerate(take):
                at = data.draw(st.integers(0, width - n))
                piece[i, at : at + n] = ids[i, done[i] : done[i] + n]
                mask[i, at : at + n] = 1
                done[i] += n
            logits = model(piece, cache=cache, attention_mask=mask)
            for i, row in enumerate(found):
                row.append(logits[i, mask[i].bool()])
        for i, n in enumerate(lengths):
            close(torch.cat(found[i]), model(ids[i : i + 1, :n])[0])


@torch.inference_mode()
def test_token_by_token_equals_one_pass_and_logits_to_keep_are_the_last(model):
    ids = random_ids(model, 2, 37)
    full, cache = model(ids), model.new_cache(2, 37)
    for n in range(37):
        close(model(ids[:, n : n + 1], cache=cache), full[:, n : n + 1])
    close(model(ids, logits_to_keep=3), full[:, -3:])


@torch.inference_mode()
def test_a_token_changes_no_logits_before_it(model):
    ids = random_ids(model, 1, 30)
    changed = ids.clone()
    changed[0, 17] = (ids[0, 17] + 1) % model.config.vocab_size
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :17], after[:, :17])
    assert not torch.equal(before[:, 17], after[:, 17])


@torch.inference_mode()
def test_inputs_embeds_and_position_ids_match_transformers(pair):
    theirs, ours = pair
    ids = random_ids(ours, 2, 12)
    embeds = theirs.get_input_embeddings()(ids)
    torch.testing.assert_close(ours(inputs_embeds=embeds), ours(ids), rtol=0, atol=0)
    positions = torch.arange(12).mul(2).expand(2, 12)  # up to 22, within every trained length
    expected = theirs(ids, position_ids=positions).logits
    limit = tolerance(theirs, ids, position_ids=positions)
    assert (ours(ids, position_ids=positions) - expected).abs().max() <= limit
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        ours()


@torch.inference_mode()
@pytest.mark.parametrize("family", ROTATING)
@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_a_sequence_beyond_the_trained_length_matches_transformers(tmp_path, family, rope_type):
    theirs = FAMILIES[family](ROPE_TYPES.index(rope_type))
    theirs.config.max_position_embeddings = 16
    if rope_type == "longrope":
        theirs.config.rope_parameters["original_max_position_embeddings"] = 16
    theirs.save_pretrained(tmp_path)
    theirs = type(theirs).from_pretrained(tmp_path)
    ours = nanomodels.load(tmp_path)
    for tokens in (12, 16, 17, 33):
        ids = random_ids(ours, 1, tokens)
        assert (ours(ids) - theirs(ids).logits).abs().max() <= tolerance(theirs, ids)
        # All keys of a cache have the same frequencies, however the prompt is split.
        cache = ours.new_cache(1, tokens)
        close(torch.cat([ours(piece, cache=cache) for piece in ids.split(5, 1)], 1), ours(ids))


@pytest.mark.cpu
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_the_file_and_maps_it_without_a_copy(tmp_path, family):
    """H15: nothing is initialised after loading."""
    theirs = FAMILIES[family](0)
    theirs.save_pretrained(tmp_path)
    stored, _ = read_tensors(tmp_path)
    table = importlib.import_module(f"nanomodels.{family}").HUB_NAMES
    renamed, _ = rename(stored, table)
    model = nanomodels.load(tmp_path)
    assert {name for name, _ in model.named_parameters()} == renamed.keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, renamed[name][0][1])
    maps = Path("/proc/self/maps")
    if maps.exists():
        path = str(tmp_path / "model.safetensors")
        spans = [
            [int(end, 16) for end in line.split()[0].split("-")]
            for line in maps.read_text().splitlines()
            if line.endswith(path)
        ]
        for parameter in model.parameters():
            assert any(low <= parameter.data_ptr() < high for low, high in spans)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["nanochat-tiny", "nemotron-tiny", "nemotron-h-tiny"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_the_head_gets_contiguous_rows(name, tokens):
    """For strided rows F.linear copies a bfloat16 weight in each call; Minitron-4B's is 1.5 GB."""
    model, found = nanomodels.load(Path(__file__).parent.parent / "weights" / name), []
    model.lm_head.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    model(torch.arange(2 * tokens).view(2, tokens), logits_to_keep=1)
    model(torch.arange(tokens)[None], logits_to_keep=1)
    for x in found:
        m = x.shape[2]
        assert x.shape[1] == 1 and x.stride() == (m, m, 1)


# --------------------------------------------------------------------------------------------------
# Without a checkpoint: Config() alone

DECODERS = {
    nanochat: nanochat.NanoChat,
    nanochat_2026: nanochat_2026.NanoChat2026,
    nemotron: nemotron.Nemotron,
    nemotron_h: nemotron_h.NemotronH,
}


def name_of(module):
    return module.__name__.partition(".")[2]


@pytest.fixture(params=DECODERS, ids=name_of)
def module(request):
    return request.param


def built(module, **changes):
    """A decoder of the tiny default size, with seeded random weights."""
    torch.manual_seed(0)
    return DECODERS[module](module.Config(**changes))


@torch.inference_mode()
def test_hidden_and_the_head_are_the_forward_pass(module):
    """Bit-equal, for each argument that `hidden` takes."""
    model = built(module)
    ids = random_ids(model, 2, 21)
    mask = torch.arange(21) >= torch.tensor([[0], [6]])
    positions = torch.arange(21).mul(2).expand(2, 21)
    caches = [model.new_cache(2, 30) for _ in range(2)]
    arguments = [{}, {"attention_mask": mask}, {"position_ids": positions}, {"logits_to_keep": 3}]
    for kwargs in (*arguments, {"attention_mask": mask, "logits_to_keep": 1}):
        check_hidden(model, model.hidden(ids, **kwargs), model(ids, **kwargs))
    for piece in ids.split([9, 1, 11], 1):
        x = model.hidden(piece, cache=caches[0])
        check_hidden(model, x, model(piece, cache=caches[1]))
    assert [cache.length for cache in caches] == [21, 21]
    if module is not nanochat_2026:  # which refuses embeddings
        embeds = torch.randn(2, 5, model.config.hidden_size)
        x = model.hidden(inputs_embeds=embeds)
        check_hidden(model, x, model(inputs_embeds=embeds))


def check_hidden(model, x, logits):
    """Check that the head makes the logits of x (b, t, m), which the last norm has normalised."""
    assert x.shape == (*logits.shape[:2], model.config.hidden_size)
    found, cap = model.lm_head(x).float(), getattr(model.config, "final_logit_softcapping", None)
    assert torch.equal(found if cap is None else cap * torch.tanh(found / cap), logits)
    assert (x.square().mean(-1) - 1).abs().max() < 0.01  # as the norms' weights are at their start


def test_a_decoder_without_a_checkpoint_learns(module):
    """Each parameter gets a finite gradient, and ten steps of AdamW lower the loss."""
    model = built(module)
    text = random_ids(model, 4, 80)  # two chunks of the Mamba layer
    ids, targets = text[:, :-1], text[:, 1:]
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
        optimizer.step()
        losses.append(loss.item())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert all(name.endswith("e_score_correction_bias") for name in frozen)
    assert losses[-1] < losses[0] - 0.5, losses


def test_every_parameter_that_learns_counts(module):
    """Each gradient has a number other than 0, once no gate of 2026 is closed."""
    model = built(module)
    for name, parameter in model.named_parameters():
        if name.endswith("_lambda"):
            parameter.data.fill_(0.3)
    text = random_ids(model, 4, 80)
    F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().max() > 0, name


def test_a_config_prints_one_field_a_line_and_reads_back(module):
    config = module.Config(vocab_size=300)
    first, *fields, last = str(config).splitlines()
    assert (first, last) == ("Config(", ")")
    names = [line.partition("=")[0] for line in fields]
    assert names == [f"    {name}" for name in module.Config.__dataclass_fields__]
    assert "    vocab_size=300," in fields
    assert eval(str(config), {**vars(module), "inf": math.inf}) == config


def test_all_decoders_take_the_same_arguments(module):
    for name in ("forward", "new_cache"):
        method, first = (getattr(DECODERS[m], name) for m in (module, nanochat))
        assert inspect.signature(method) == inspect.signature(first)
