"""NanoChat of 2026: against nanochat itself, a plain float64 reference per era, and itself."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from compare import close, random_ids
from effort import examples
from hypothesis import given, settings
from safetensors.torch import load_file

import nanomodels
from nanomodels import nanochat, nanochat_2026
from nanomodels.cache import NoCache

ROOT = Path(__file__).parent.parent
GOLDEN = [
    Path(__file__).parent / "data" / f"nanochat-{date}"
    for date in ("2025-10-16", "2026-01-18", "2026-07-03")
]
LATEST = GOLDEN[2]
# The constants of each era, read once more from nanochat's history: rope base, q/k scale, short
# window of a context of 1000, softcap, gate channels, gate scale, smear and backout.
FACTS = {
    "2026-01-11": (1e4, 1.0, 500, 15, None, None, False),
    "2026-01-18": (1e4, 1.0, 500, 15, 32, 2, False),
    "2026-03-03": (1e4, 1.0, 500, 20, 32, 2, False),
    "2026-03-09": (1e5, 1.15, 384, 15, 12, 3, False),
    "2026-03-14": (1e5, 1.2, 256, 15, 12, 3, True),
}
DETECTED = [era for era in FACTS if era != "2026-03-03"]
LAYERS, HEADS, GROUPS, HEAD, VOCAB, CONTEXT = 4, 4, 2, 10, 131, 1000


def checkpoint(folder, era, context=CONTEXT, pattern="SL", seed=0):
    """A random checkpoint as nanochat saves them; 4 layers, 2 query heads a key, padded to 192."""
    rng = torch.Generator().manual_seed(seed)
    _, _, _, _, channels, _, smear = FACTS[era]
    m, rows = HEADS * HEAD, 192

    def matrix(*shape, scale=1.0):
        return torch.randn(*shape, generator=rng) * scale

    def linear(out, into, scale=1.0):
        return matrix(out, into, scale=scale * into**-0.5)

    tensors = {
        "transformer.wte.weight": matrix(rows, m),
        "lm_head.weight": linear(rows, m, scale=9),
        "resid_lambdas": 1 + matrix(LAYERS, scale=0.2),
        "x0_lambdas": matrix(LAYERS, scale=0.3),
    }
    for i in range(LAYERS):
        tensors |= {
            f"transformer.h.{i}.attn.c_q.weight": linear(m, m),
            f"transformer.h.{i}.attn.c_k.weight": linear(GROUPS * HEAD, m),
            f"transformer.h.{i}.attn.c_v.weight": linear(GROUPS * HEAD, m),
            f"transformer.h.{i}.attn.c_proj.weight": linear(m, m, scale=2),
            f"transformer.h.{i}.mlp.c_fc.weight": linear(4 * m, m),
            f"transformer.h.{i}.mlp.c_proj.weight": linear(m, 4 * m),
        }
    if channels:
        for i in (1, 3):
            tensors[f"value_embeds.{i}.weight"] = matrix(rows, GROUPS * HEAD)
            tensors[f"transformer.h.{i}.attn.ve_gate.weight"] = linear(GROUPS, channels, scale=2)
    if smear:
        tensors["smear_gate.weight"] = linear(1, 24, scale=2)
        tensors["smear_lambda"] = torch.tensor([0.7])
        tensors["backout_lambda"] = torch.tensor([0.4])
    config = {"sequence_len": context, "vocab_size": VOCAB, "n_layer": LAYERS, "n_head": HEADS}
    config |= {"n_kv_head": GROUPS, "n_embd": m}
    if pattern is not None:
        config["window_pattern"] = pattern
    torch.save(tensors, folder / "model_000010.pt")
    (folder / "meta_000010.json").write_text(json.dumps({"model_config": config}))
    return tensors


def reference(tensors, ids, era, windows):
    """Logits (t, VOCAB) of one row of ids in float64, head by head, as nanochat's code says."""
    base, qk, _, cap, channels, gate_scale, smear = FACTS[era]
    w = {name: tensor.double() for name, tensor in tensors.items()}
    t = len(ids)

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + 2.0**-23).sqrt()

    angles = torch.arange(t).double()[:, None] * base ** -(torch.arange(0, HEAD, 2) / HEAD).double()
    turn = torch.polar(torch.ones_like(angles), -angles)  # minus the angle

    def rotated(x):
        z = torch.complex(x[:, : HEAD // 2], x[:, HEAD // 2 :]) * turn
        return torch.cat((z.real, z.imag), 1)

    x = norm(w["transformer.wte.weight"][ids])
    if smear:
        gate = torch.sigmoid(x[1:, :24] @ w["smear_gate.weight"].T)
        x = torch.cat((x[:1], x[1:] + w["smear_lambda"] * gate * x[:-1]))
    first, saved = x, []
    distance = torch.arange(t)[:, None] - torch.arange(t)
    for i in range(LAYERS):
        x = w["resid_lambdas"][i] * x + w["x0_lambdas"][i] * first
        part = {n.split(".", 3)[3]: a for n, a in w.items() if n.startswith(f"transformer.h.{i}.")}
        y, out = norm(x), []
        for head in range(HEADS):
            rows = slice(head * HEAD, (head + 1) * HEAD)
            group = head // (HEADS // GROUPS)
            shared = slice(group * HEAD, (group + 1) * HEAD)
            q = qk * norm(rotated(y @ part["attn.c_q.weight"][rows].T))
            k = qk * norm(rotated(y @ part["attn.c_k.weight"][shared].T))
            v = y @ part["attn.c_v.weight"][shared].T
            if channels and i in (1, 3):
                gate = torch.sigmoid(y[:, :channels] @ part["attn.ve_gate.weight"][group])
                v = v + gate_scale * gate[:, None] * w[f"value_embeds.{i}.weight"][ids][:, shared]
            scores = q @ k.T / math.sqrt(HEAD)
            scores[(distance < 0) | (distance > windows[i])] = -math.inf
            out.append(scores.softmax(-1) @ v)
        x = x + torch.cat(out, 1) @ part["attn.c_proj.weight"].T
        x = x + torch.relu(norm(x) @ part["mlp.c_fc.weight"].T) ** 2 @ part["mlp.c_proj.weight"].T
        saved.append(x)
    if smear:
        x = x - w["backout_lambda"] * saved[2]
    logits = norm(x) @ w["lm_head.weight"].T
    return cap * torch.tanh(logits[:, :VOCAB] / cap)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def latest():
    return nanomodels.load(LATEST)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Windows of 18 and 37 tokens, shorter than the texts; with value embeddings, without smear."""
    folder = tmp_path_factory.mktemp("narrow")
    checkpoint(folder, "2026-01-18", context=37)
    return nanomodels.load(folder)


@pytest.fixture(params=["latest", "narrow"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_nanochat_itself_gives_the_same_logits_ids_and_tokens(folder):
    model, expected = nanomodels.load(folder), load_file(folder / "expected.safetensors")
    logits = model(expected["input_ids"])[:, expected["positions"]]
    assert (logits - expected["logits"]).abs().max() <= 1e-4
    prompt, ids = expected["greedy_prompt"].tolist(), expected["greedy_ids"].tolist()
    assert list(nanomodels.generate(model, prompt, max_new_tokens=24, stop_ids=[])) == ids
    assert model.stop_ids == (391, 395)  # <|bos|>, <|assistant_end|>
    tokenizer = nanomodels.Tokenizer.load(folder)
    for case in json.loads((folder / "tokenizer_expected.json").read_text()):
        ids = tokenizer.encode(case["text"], add_bos=False)  # nanochat's encode without prepend
        assert ids == case["ids"]


def test_the_golden_folders_load_as_the_class_of_their_era():
    classes = [type(nanomodels.load(folder)) for folder in GOLDEN]
    assert classes == [nanochat.NanoChat, *[nanochat_2026.NanoChat2026] * 2]


@pytest.mark.parametrize("era", FACTS)
def test_every_era_is_detected_and_has_its_constants(tmp_path, era):
    """N1: from the tensors; the era with softcap 20 has to be asked for."""
    tensors = checkpoint(tmp_path, era, pattern="SSL")
    model = nanomodels.load(tmp_path, era=None if era in DETECTED else era)
    short, cap = FACTS[era][2:4]
    assert model.config.windows == (short, short, 1000, 1000)
    ids = random_ids(model, 1, 560, seed=1)
    expected = reference(tensors, ids[0], era, model.config.windows)
    assert expected.std() > 3 and expected.abs().max() < cap
    assert (model(ids)[0] - expected).abs().max() <= 1e-4
    others = [other for other in FACTS if other != era and FACTS[other] != FACTS[era]]
    for other in others:
        if FACTS[other][4] == FACTS[era][4] and FACTS[other][6] <= FACTS[era][6]:
            wrong = reference(tensors, ids[0], other, model.config.windows)
            assert (wrong - expected).abs().max() > 1e-2  # the constants do matter here


@pytest.mark.parametrize(
    ("context", "shorts"),
    [(2048, (1024, 1024, 1024, 768, 512)), (512, (256, 256, 256, 256, 128)),
     (129, (64, 64, 64, 128, 128))],
)  # fmt: skip
def test_a_short_window_has_three_definitions(context, shorts):
    assert tuple(era.short(context) for era in nanochat_2026.ERAS.values()) == shorts


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("SSSL", [18, 18, 18, 37]),
        ("S", [18, 18, 18, 37]),
        ("LSL", [37, 18, 37, 37]),
        ("ls", [37, 18, 37, 37]),
        ("L", [37] * 4),
        (None, [37] * 4),
    ],
)
def test_a_window_pattern_is_repeated_and_the_last_layer_is_long(tmp_path, pattern, expected):
    tensors = checkpoint(tmp_path, "2026-01-11", context=37, pattern=pattern)
    model = nanomodels.load(tmp_path)
    assert list(model.config.windows) == expected
    ids = random_ids(model, 1, 80)  # longer than the context, so that the limit of L matters, too
    close(model(ids)[0].double(), reference(tensors, ids[0], "2026-01-11", expected))


def test_a_window_keeps_one_key_more_than_it_looks_back(narrow):
    """N4: a token sees 18 earlier ones and itself, so 19 keys."""
    layer = narrow.layers[0].self_attn
    mask_of = nanochat_2026.window_mask
    call = NoCache(1, "cpu").begin(1, 30)
    assert mask_of(call, call.positions, 18)[0, 0, 29].nonzero().flatten().tolist() == [
        *range(11, 30)
    ]
    assert mask_of(call, call.positions[:, :19], 18) is None
    assert narrow.config.windows[0] == 18 and layer.value_embed is None


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(cuts=st.sets(st.integers(1, 299), max_size=12))
@pytest.mark.parametrize("folder", GOLDEN[1:], ids=lambda folder: folder.name)
def test_any_split_of_300_tokens_equals_one_pass(folder, cuts):
    """N6: the first token of each piece is smeared with the last one of the piece before."""
    with torch.inference_mode():
        model = nanomodels.load(folder)
        ids, cuts = random_ids(model, 1, 300, seed=len(cuts)), sorted(cuts)
        cache = model.new_cache(1, 300)
        pieces = ids.tensor_split(cuts, dim=1)
        close(torch.cat([model(piece, cache=cache) for piece in pieces], 1), model(ids))


def test_token_by_token_across_the_windows_equals_one_pass(model):
    ids = random_ids(model, 2, 300)
    cache, full = model.new_cache(2, 300), model(ids)
    found = [model(piece, cache=cache) for piece in ids.split(1, dim=1)]
    close(torch.cat(found, 1), full)
    close(model(ids, logits_to_keep=3), full[:, -3:])


def test_greedy_decoding_across_the_windows_equals_whole_passes(model):
    ids = random_ids(model, 1, 100)[0, :20].tolist()
    found = list(nanomodels.generate(model, ids, max_new_tokens=150, stop_ids=[]))
    assert len(found) == min(150, model.context_length - 19)
    for token in found:
        assert token == int(model(torch.tensor([ids]), logits_to_keep=1).argmax())
        ids.append(token)


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("name", ["latest", "narrow"])
def test_any_split_of_a_ragged_batch_gives_each_row_as_it_is_alone(request, name, data):
    """N11: with padding on either side and between pieces; some pieces give a row no token."""
    model = request.getfixturevalue(name)
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=2, max_size=4), "lengths")
    rows = len(lengths)
    ids = random_ids(model, rows, max(lengths), seed=sum(lengths))
    cache, done, found = model.new_cache(rows, 600), [0] * rows, [[] for _ in lengths]
    with torch.inference_mode():
        while done != lengths:
            rest = [n - d for n, d in zip(lengths, done, strict=True)]
            take = [data.draw(st.integers(0, min(25, n))) for n in rest]
            take = take if any(take) else [min(1, n) for n in rest]
            width = max(take) + data.draw(st.integers(0, 3))
            piece = torch.full((rows, width), 7)
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


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_equals_the_row_alone(model, side):
    ids, lengths = random_ids(model, 4, 61), [61, 1, 40, 22]
    mask = torch.arange(61) < torch.tensor(lengths)[:, None]
    rows = [row[:n] for row, n in zip(ids, lengths, strict=True)]
    padded = torch.where(mask, ids, 5)
    if side == "left":
        mask = mask.flip(1)
        padded[mask] = torch.cat(rows)
    cache, more = model.new_cache(4, 64), random_ids(model, 4, 3, seed=1)
    for logits in (model(padded, attention_mask=mask),
                   model(padded, cache=cache, attention_mask=mask)):  # fmt: skip
        for i, row in enumerate(rows):
            close(logits[i, mask[i]], model(row[None])[0])
    continued = torch.cat([model(piece, cache=cache) for piece in more.split(1, 1)], 1)
    for i, row in enumerate(rows):
        close(continued[i], model(torch.cat((row, more[i]))[None], logits_to_keep=3)[0])


def ragged(model):
    """A cache of three rows with 44, 4 and 1 tokens, padded on the left; and the rows."""
    ids, lengths = random_ids(model, 3, 44), [44, 4, 1]
    cache = model.new_cache(3, 60)
    model(ids, cache=cache, attention_mask=torch.arange(44) >= 44 - torch.tensor(lengths)[:, None])
    return cache, [row[44 - n :] for row, n in zip(ids, lengths, strict=True)]


def continues(model, cache, rows, seed=2):
    """Check that the cache continues the rows given."""
    more = random_ids(model, len(rows), 3, seed=seed)
    found = model(more, cache=cache)
    for i, row in enumerate(rows):
        close(found[i], model(torch.cat((row, more[i]))[None], logits_to_keep=3)[0])


def test_a_cache_is_reordered_cloned_and_restored_with_its_ids(model, tmp_path):
    cache, rows = ragged(model)
    snapshot, clone = cache.snapshot(), cache.clone()
    cache.save(tmp_path / "saved", [row.tolist() for row in rows])
    cache.reorder([2, 0, 0, 1, 2])
    continues(model, cache, [rows[i] for i in (2, 0, 0, 1, 2)])
    continues(model, clone, rows, seed=3)
    for seed in (4, 5):
        other = model.new_cache(3, 90)
        other.restore(snapshot)
        continues(model, other, rows, seed)
        clone.restore(snapshot)
        continues(model, clone, rows, seed + 2)
    other = model.new_cache(3, 60)
    assert other.load(tmp_path / "saved") == [row.tolist() for row in rows]
    continues(model, other, rows)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 20, 43])
def test_a_cache_is_truncated_with_its_ids(model, length):
    cache, rows = ragged(model)
    cache.truncate(length)
    continues(model, cache, [row[:length] for row in rows])


def test_an_interrupted_forward_leaves_the_cache_as_it_was(model):
    cache, ids = model.new_cache(1, 10), random_ids(model, 1, 9)
    model(ids[:, :4], cache=cache)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.layers[-1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(random_ids(model, 1, 3, seed=5), cache=cache)
    hook.remove()
    close(model(ids[:, 4:], cache=cache), model(ids, logits_to_keep=5))


@pytest.mark.parametrize("era", FACTS)
def test_a_prompt_of_one_token_runs(tmp_path, era):
    """N7: nanochat itself asserts that there are several."""
    tensors = checkpoint(tmp_path, era)
    model = nanomodels.load(tmp_path, era=era)
    expected = reference(tensors, torch.tensor([5]), era, [1000] * 4)
    close(model(torch.tensor([[5]]))[0].double(), expected)
    cache = model.new_cache(1, 1)
    close(model(torch.tensor([[5]]), cache=cache)[0].double(), expected)


def test_a_file_of_two_dtypes_loads_and_its_lambdas_stay_float32(tmp_path):
    tensors = checkpoint(tmp_path, "2026-03-14")
    halved = {
        name: tensor.bfloat16() if "wte" in name or "value_embeds" in name else tensor
        for name, tensor in tensors.items()
    }
    torch.save(halved, tmp_path / "model_000010.pt")
    ids = torch.arange(40)[None]
    model = nanomodels.load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    rounded = {name: tensor.float() for name, tensor in halved.items()}
    expected = reference(rounded, ids[0], "2026-03-14", model.config.windows)
    close(model(ids)[0].double(), expected)
    small = nanomodels.load(tmp_path, dtype=torch.bfloat16)
    kept = {name for name, p in small.named_parameters() if p.dtype == torch.float32}
    assert kept == {"resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda"}
    assert small(ids).dtype == torch.float32
    assert (small(ids)[0] - expected).abs().mean() < 0.3
    cache = small.new_cache(1, 40)
    assert small(ids, cache=cache).isfinite().all()


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.bfloat16(),
        lambda model: model.half(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to("cpu", torch.bfloat16),
    ],
    ids=["bfloat16", "half", "to", "to a device"],
)
def test_lambdas_stay_float32_when_the_model_is_cast(cast):
    model = nanochat_2026.NanoChat2026(nanochat_2026.Config())
    names = ("resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda")
    before = {}
    for name in names:
        values = getattr(model, name).data.fill_(1 + 2**-20)  # not a number of bfloat16
        before[name] = values.clone()
    model = cast(model)
    for name, parameter in model.named_parameters():
        assert (parameter.dtype == torch.float32) == (name in names), name
    for name in names:
        assert torch.equal(getattr(model, name), before[name])
    assert model(random_ids(model, 1, 5)).dtype == torch.float32


@pytest.mark.parametrize(
    ("era", "drop", "add", "words"),
    [
        ("2026-03-14", (), {"bigram_lambdas": (4,)}, "bigram_lambdas, .*2026-01-27 and 28"),
        ("2026-01-18", (), {"bigram_lambdas": (4,), "bigram_embed.embed.weight": (9, 40)},
         "bigram_embed.embed.weight, bigram_lambdas, .*is not supported"),
        ("2026-01-18", ("resid_lambdas",), {}, "unexpected tensors: .*value_embeds.1.weight"),
        ("2026-03-14", ("backout_lambda",), {}, "smear_gate.weight, smear_lambda.*no known era"),
        ("2026-03-09", (), {"smear_lambda": (1,)}, "smear_lambda.*no known era"),
        ("2026-01-11", (), {"transformer.h.0.mlp.router.gate.weight": (4, 40)}, "router.gate"),
        ("2026-01-18", (), {"transformer.h.1.attn.ve_gate.weight": (2, 12)},
         r"ve_gate.*gates of \[12, 32\] channels"),
        ("2026-01-18", (), {"transformer.h.1.attn.ve_gate.weight": (2, 16),
                            "transformer.h.3.attn.ve_gate.weight": (2, 16)}, r"of \[16\] channels"),
        ("2026-01-18", (), {"value_embeds.0.weight": (192, 20)},
         "unexpected tensors: value_embeds.0.weight"),
        ("2026-01-18", ("value_embeds.1.weight",), {}, "missing tensors: .*value_embed"),
        ("2026-03-14", (), {"smear_gate.weight": (1, 23)}, r"smear_gate.weight is \[1, 23\]"),
        ("2026-01-11", (), {"resid_lambdas": (5,)}, r"resid_lambdas is \[5\]"),
    ],
)  # fmt: skip
def test_tensors_of_no_known_era_are_refused_by_name(tmp_path, era, drop, add, words):
    tensors = checkpoint(tmp_path, era)
    tensors |= {name: torch.ones(shape) for name, shape in add.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in drop}
    torch.save(tensors, tmp_path / "model_000010.pt")
    with pytest.raises(ValueError, match=words) as caught:
        nanomodels.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_era_that_does_not_fit_is_refused(tmp_path):
    for wanted, words in (
        ("2026", "era '2026' is unknown; known: 2025-10-13, 2026-01-11"),
        ("2026-01-18", "model_000010.pt: era 2026-01-18 has other tensors.* of 2026-03-14 "),
        ("2025-10-13", "resid_lambdas"),
    ):
        with pytest.raises(ValueError, match=words):
            nanomodels.load(LATEST, era=wanted)
    with pytest.raises(ValueError, match="none beside those of 2025"):
        nanomodels.load(GOLDEN[0], era="2026-03-14")
    nanomodels.load(GOLDEN[0], era="2025-10-13")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="only a nanochat training folder has an era"):
        nanomodels.load(tmp_path, era="2026-03-14")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window_pattern": "SXL"}, "window_pattern is 'SXL'"),
        ({"window_pattern": ""}, "window_pattern is ''"),
        ({"window_pattern": 3}, "window_pattern is 3"),
        ({"n_head": 3}, "n_embd 40, n_head 3"),
        ({"n_kv_head": 3}, "n_kv_head 3"),
        ({"n_head": 8}, "n_head 8"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_layer": "4"}, "n_layer is '4'"),
        ({"sequence_len": None}, "sequence_len is None"),
        ({"vocab_size": 300}, "vocab_size is 300, but the embedding has 192 rows"),
        ({"n_embd": 16}, "n_embd is 16; the gates look at 24 channels"),
    ],
)
def test_an_unsupported_meta_file_is_refused_by_the_name_of_the_key(tmp_path, change, words):
    checkpoint(tmp_path, "2026-03-14")
    path = tmp_path / "meta_000010.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({"model_config": meta["model_config"] | change}))
    with pytest.raises(ValueError, match=f"meta_000010.json: .*{words}"):
        nanomodels.load(tmp_path)
    del meta["model_config"]["n_embd"]
    path.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="meta_000010.json: lacks n_embd"):
        nanomodels.load(tmp_path)


def test_embeddings_instead_of_ids_are_refused(latest):
    for arguments in ({}, {"inputs_embeds": torch.ones(1, 2, 32)}):
        with pytest.raises(ValueError, match="give input_ids, not inputs_embeds"):
            latest(**arguments)


def test_position_ids_change_the_rotation_alone(latest):
    ids = random_ids(latest, 1, 40)
    close(latest(ids, position_ids=torch.arange(7, 47)[None]), latest(ids))  # shifted
    assert (latest(ids, position_ids=2 * torch.arange(40)[None]) - latest(ids)).abs().max() > 1e-3


def test_generate_takes_a_training_folder_and_an_era(tmp_path):
    def generate(*arguments):
        command = [sys.executable, ROOT / "generate.py", "--raw", "--temperature", "0", *arguments]
        return subprocess.run([*command, "It is"], capture_output=True, text=True)

    for name in ("model_000010.pt", "meta_000010.json", "tokenizer.pkl"):
        shutil.copyfile(GOLDEN[1] / name, tmp_path / name)
    plain = generate("--model", tmp_path, "--max-new-tokens", "8")
    assert plain.returncode == 0 and plain.stdout.strip() and "GB/s" in plain.stderr
    asked = generate("--model", tmp_path, "--max-new-tokens", "8", "--era", "2026-03-03")
    assert asked.stdout == plain.stdout  # a softcap does not change the greedy choice
    wrong = generate("--model", tmp_path, "--era", "2026-03-14")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert "era 2026-03-14 has other tensors than this file" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
