"""The page of --explain: one safe file, whose numbers are those of the trace."""

import base64
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from compare import close, random_ids
from reference import FAMILIES, LATEST

import nanomodels
from nanomodels import nemotron_h
from nanomodels.analysis import explaining
from nanomodels.analysis.tracing import is_layer

WEIGHTS = Path(__file__).parent.parent / "weights"
DRIVER = Path(__file__).parent / "data" / "page.js"


class Letters:
    """A tokenizer of a letter for each id; some are no text, or look like markup."""

    odd: ClassVar = {
        1: b"</script><img src=x onerror=alert(1)>",
        2: b"\xf0\x9f",
        3: "\u2028<!--".encode(),
    }

    vocab_size = 10**6  # more than any model here

    def token_bytes(self, token):
        return self.odd.get(token, chr(97 + token % 26).encode())

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")


@pytest.fixture(scope="module", params=[*FAMILIES, "nanochat_2026"])
def model(request, tmp_path_factory):
    if request.param == "nanochat_2026":
        return nanomodels.load(LATEST)
    folder = tmp_path_factory.mktemp("checkpoint")
    FAMILIES[request.param](3).save_pretrained(folder)
    return nanomodels.load(folder)


def page_of(model, tokens=30, answer=5, ids=None):
    ids = random_ids(model, 1, tokens)[0].tolist() if ids is None else ids
    return explaining.explain(model, Letters(), ids[:-answer], ids[-answer:], {"model": "x"}), ids


def read(html):
    """The content of a page and its arrays, as a browser reads them."""
    content, data = (
        re.search(f'id="{name}">(.*?)</script>', html, re.DOTALL)[1] for name in ("content", "data")
    )
    page = json.loads(content)
    packed = zlib.decompress(base64.b64decode(data), -15)
    arrays = {}
    for name, about in page["numbers"].items():
        whole = about.get("whole")
        kind, count = np.uint16 if whole else np.uint8, int(np.prod(about["shape"]))
        codes = np.frombuffer(packed, kind, count, about["at"]).reshape(about["shape"])
        values = codes if whole else about["low"] + about["step"] * codes.astype(float)
        arrays[name] = 2**values if about.get("log") else values
    return page, arrays


node = pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's script")


def show(tmp_path, html, hash_, *keys):
    """What the page shows at first and after each key."""
    path = tmp_path / "page.html"
    path.write_text(html)
    result = subprocess.run(
        ["node", DRIVER, path, hash_, *keys], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


@torch.inference_mode()
def test_the_numbers_are_those_of_the_trace(model):
    html, ids = page_of(model)
    page, arrays = read(html)
    with nanomodels.trace(model) as records:
        logits = model(torch.tensor([ids]))[0]
    assert page["ids"] == ids and page["prompt"] == 25 and page["first"] == 0
    layers = [name for name in records.names() if is_layer(name)]
    assert [each["name"] for each in page["layers"]] == layers

    def near(name, expected):
        about = page["numbers"][name]
        found = torch.tensor(arrays[name].copy())
        if about.get("log"):
            found, expected = found.log2(), expected.double().clamp(min=2 ** about["low"]).log2()
        assert (found - expected).abs().max() <= about["step"] * 0.501, name

    near("stream", torch.stack([records[name][0].norm(dim=-1) for name in layers]))
    for entry in page["rows"]:
        name = f"rows.{entry['layer']}"
        if (record := f"{layers[entry['layer']]}.attention") in records.shapes:
            keys = torch.tensor(arrays[f"{name}.keys"].astype(int))
            near(name, records[record][0].gather(-1, keys))
    for entry in page["mamba"]:
        near(f"dt.{entry['layer']}", records[f"{layers[entry['layer']]}.dt"][0])
    for entry in page["experts"]:
        chosen = records[f"{layers[entry['layer']]}.chosen"][0]
        best = torch.tensor(arrays[f"experts.{entry['layer']}"].astype(int))[:, : entry["chosen"]]
        assert torch.equal(best.sort().values, chosen.sort().values)
    p = logits.softmax(-1)
    assert len(page["alternatives"]) == len(ids)
    for i, found in enumerate(page["alternatives"]):
        assert found["top"][0][1] == pytest.approx(p[i].max().item(), abs=1e-6)
        if i + 1 < len(ids):
            assert found["p"] == pytest.approx(p[i, ids[i + 1]].item(), abs=1e-6)
    assert "p" not in page["alternatives"][-1]


@torch.inference_mode()
def test_the_last_row_of_the_lens_is_the_model_itself(model):
    """To the bit; in nanochat of 2026 with what backout takes away."""
    ids = random_ids(model, 1, 20)
    with nanomodels.trace(model) as records:
        logits = model(ids)
    layers = [name for name in records.names() if is_layer(name)]
    middle = records[layers[len(layers) // 2]] if hasattr(model, "backout_lambda") else None
    assert torch.equal(explaining.lens(model, records[layers[-1]], middle), logits)


@torch.inference_mode()
def test_what_the_layers_add_is_the_logit(model):
    """Before the cap; but for what the bias of the last norm adds."""
    ids = random_ids(model, 1, 20)
    with nanomodels.trace(model) as records:
        model(ids)
    layers = [name for name in records.names() if is_layer(name)]
    found = explaining.shares_of_logits(model, records, layers, ids[0, 1:].tolist())
    head = model.lm_head
    norm = explaining.last_norm(model)
    x = records[layers[-1]]
    if hasattr(model, "backout_lambda"):
        x = x - model.backout_lambda[0] * records[layers[len(layers) // 2]]
    logits = head(norm(x)) - (head(norm.bias) if hasattr(norm, "bias") else 0)
    expected = logits[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    assert len(found) == 1 + len(layers) + hasattr(model, "backout_lambda")
    close(found.sum(0), expected, 1e-4)


def test_what_is_held_and_read_is_that_of_the_recurrence(tmp_path):
    """Token by token, in float64: each token's part of the state, and of what C takes from it."""
    config = nemotron_h.Config(layers="M*", hidden_size=32)
    model = nemotron_h.NemotronH(config)
    with nanomodels.trace(model, "layers.0.*") as records:
        model(random_ids(model, 1, 12))
    read_, held = explaining.memory_rows(records, "layers.0").double()
    x, dt, decay, B, C = (
        records[f"layers.0.{n}"][0].double() for n in ("x", "dt", "decay", "B", "C")
    )
    B, C = (each.repeat_interleave(4, 1) for each in (B, C))
    for i in range(12):
        parts = []
        for j in range(i + 1):
            kept = decay[j + 1 : i + 1].prod(0)
            wrote = kept * dt[j] * x[j].norm(dim=-1)
            taken = wrote * (C[i] * B[j]).sum(-1).abs()
            parts.append((taken.sum(), (wrote * B[j].norm(dim=-1)).sum()))
        for row, shares in zip((read_[i], held[i]), zip(*parts, strict=True), strict=True):
            shares = torch.stack(shares)
            torch.testing.assert_close(row[: i + 1], shares / shares.sum(), rtol=1e-4, atol=1e-6)
            assert not row[i + 1 :].any()


@torch.inference_mode()
def test_copies_are_the_tokens_that_heads_look_at(model, monkeypatch):
    """A text of two tokens, so that many are met again; whatever is looked at the most."""
    monkeypatch.setattr(explaining, "SURE", 0.1)
    ids = (random_ids(model, 1, 40)[0] % 2).tolist()
    page, _ = read(page_of(model, answer=20, ids=ids)[0])
    with nanomodels.trace(model) as records:
        model(torch.tensor([ids]))
    attention = [name for name in records.names() if name.endswith(".attention")]
    expected = {}  # token: where it may come from: {(layer, key): share}
    for i in range(20, 40):
        for name in attention:
            for row in records[name][0, :, i - 1]:
                key, layer = int(row.argmax()), int(name.split(".")[-2])
                if row[key] >= 0.1 and ids[key] == ids[i]:
                    places = expected.setdefault(i, {})
                    places[layer, key] = max(places.get((layer, key), 0), float(row[key]))
    found = set()
    for run in page["copies"]:
        shares = []
        for n in range(run["count"]):
            shares.append(expected[run["at"] + n][run["layer"], run["from"] + n])
            found.add(run["at"] + n)
        assert run["share"] == pytest.approx(min(shares), abs=1e-5)
    assert found == expected.keys() and len(found) > 2
    assert sum(run["count"] for run in page["copies"]) == len(found)


@node
def test_the_page_says_where_an_answer_came_from(tmp_path):
    """nemotron-h-tiny finds a number in notes: the page opens where it was copied."""
    folder = WEIGHTS / "nemotron-h-tiny"
    model, tokenizer = nanomodels.load(folder), nanomodels.Tokenizer.load(folder)
    notes = "Notes: The bus was late. The number of the mill is 3784. A bird came back again."
    chat = [{"role": "user", "content": f"{notes} What is the number of the mill?"}]
    prompt = tokenizer.encode_chat(chat)
    answer = list(nanomodels.generate(model, prompt, max_new_tokens=40))
    html = explaining.explain(model, tokenizer, prompt, answer, {})
    page, _ = read(html)
    (screen,) = show(tmp_path, html, "")
    run = page["copies"][0]
    text = "".join(page["tokens"][run["at"] :][: run["count"]])
    source = "".join(page["tokens"][run["from"] :][: run["count"]])
    assert "3784" in text and text == source
    assert f"“{text}” (tokens {run['at']} to " in screen["story"]
    assert f"heads of layer {run['layer']} (attention) looked there" in screen["story"]
    assert "number of the mill" in screen["story"]
    assert screen["hash"] == f"#t={run['at'] - 1}&l={run['layer']}&h={run['head']}"
    first = screen["sections"][3].split("looks at|token|share|\n")[1].split("|")
    assert first[:2] == [str(run["from"]), page["tokens"][run["from"]]]


class Markup(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes


def test_the_page_is_one_file_that_asks_nobody(model):
    html, _ = page_of(model, ids=[5, 1, 2, 3, 1, 7, 9, 3, 2, 1, 0, 4])
    outside = re.sub(r'(id="(content|data)">).*?</script>', r"\1</script>", html, flags=re.DOTALL)
    for word in ("http:", "https:", "src=", "@import", "url(", "fetch(", "Math.random", "new Date"):
        assert word not in outside.replace("&lt;img src=x", "")
    assert "default-src 'none'" in html
    parser = Markup()
    parser.feed(html)
    assert parser.tags.count("script") == 3 and "img" not in parser.tags
    assert not any(name.startswith("on") for name, _ in parser.attributes)
    page, _ = read(html)
    assert page["tokens"][1] == "</script><img src=x onerror=alert(1)>"
    assert page["tokens"][2] == "⟨f0 9f⟩"


@torch.inference_mode()
def test_long_texts_show_the_last_tokens_and_short_ones_work(model, monkeypatch):
    monkeypatch.setattr(explaining, "SHOWN", 10)
    html, ids = page_of(model, 30)
    page, arrays = read(html)
    assert page["first"] == 20 and arrays["stream"].shape[1] == 10
    assert len(page["tokens"]) == 30
    p = model(torch.tensor([ids]))[0].softmax(-1)
    for i, found in enumerate(page["alternatives"][:-1], 20):
        assert found["p"] == pytest.approx(p[i, ids[i + 1]].item(), abs=1e-6), "all was read"
    page, _ = read(page_of(model, ids=[1], answer=1)[0])
    assert len(page["alternatives"]) == 1 and page["roads"] == page["copies"] == []
    with pytest.raises(ValueError, match="the context holds"):
        page_of(model, model.context_length + 1)


def test_progress_ends_at_its_end(model, monkeypatch):
    """It never falls, and what the model reads is about what was announced."""
    monkeypatch.setattr(explaining, "SHOWN", 20)
    ids, calls = random_ids(model, 1, 50)[0].tolist(), []
    explaining.explain(
        model, Letters(), ids[:40], ids[40:], {}, lambda *numbers: calls.append(numbers)
    )
    done, totals = zip(*calls, strict=True)
    assert done[0] == 0 and done[-1] == totals[0] and len({*totals}) == 1
    assert list(done) == sorted(done) and done[-2] > 0.7 * totals[0]
    assert not model._forward_hooks


def test_pages_are_small():
    model = nanomodels.load(WEIGHTS / "nanochat-tiny")
    tokenizer = nanomodels.Tokenizer.load(WEIGHTS / "nanochat-tiny")
    ids = tokenizer.encode("Once upon a time, " * 40)[:200]
    html = explaining.explain(model, tokenizer, ids[:150], ids[150:], {})
    assert len(html) < 400_000


@pytest.mark.slow
def test_a_page_of_52_layers_is_small():
    """200 tokens of the shape of Nemotron-3-Nano-30B-A3B, but narrow: 23 M, 23 E and 6 *."""
    layers = ("MEMEM*E" * 8)[:52]
    config = nemotron_h.Config(
        layers=layers, hidden_size=64, num_attention_heads=32, num_key_value_heads=2, head_dim=8,
        mamba_num_heads=64, mamba_head_dim=4, ssm_state_size=8, n_groups=8, n_routed_experts=128,
        num_experts_per_tok=6, moe_intermediate_size=8, moe_shared_expert_intermediate_size=8,
    )  # fmt: skip
    html, _ = page_of(nemotron_h.NemotronH(config), 200, 50)
    assert len(html) < 3_000_000


@node
def test_the_page_draws_each_section_for_each_layer(model, tmp_path):
    html, _ = page_of(model)
    layers = len(read(html)[0]["layers"])
    screens = show(
        tmp_path, html, "#t=12&l=0&h=0", *["ArrowDown"] * (layers - 1), "ArrowRight", "s"
    )
    for i, screen in enumerate(screens[:layers]):
        assert screen["hash"] == f"#t=12&l={i}&h=0"
        assert all(screen["sections"])
        assert "NaN" not in str(screen) and "undefined" not in str(screen)
        assert f"layer {i}, " in screen["say"]
    assert screens[-2]["hash"].startswith("#t=13&")


@node
def test_the_page_shows_the_numbers_of_the_trace(tmp_path):
    folder = WEIGHTS / "nanochat-tiny"
    model, tokenizer = nanomodels.load(folder), nanomodels.Tokenizer.load(folder)
    prompt = tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    answer = list(nanomodels.generate(model, prompt, max_new_tokens=20))
    html = explaining.explain(model, tokenizer, prompt, answer, {"model": "nanochat-tiny"})
    at = len(prompt + answer) - 2  # the step that writes the last token
    with nanomodels.trace(model, "layers.2.attention", "logits") as records, torch.no_grad():
        model(torch.tensor([prompt + answer]))
    (screen,) = show(tmp_path, html, f"#t={at}&l=2&h=1")
    p = records["logits"][0, at].softmax(-1).max().item()
    assert f"{p:.2%}".replace("%", " %") in screen["sections"][0].replace("|", " ")
    weights, key = records["layers.2.attention"][0, 1, at].max(-1)
    line = screen["sections"][3].split("looks at|token|share|\n")[1].split("\n")[0].split("|")
    assert int(line[0]) == key
    assert float(line[2].split()[0]) == pytest.approx(100 * weights.item(), abs=0.7)
    assert line[0] in screen["say"]
