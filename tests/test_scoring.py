"""nanomodels.score: transformers' loss, in any batch, and the alternatives of each token."""

import json
import math
from pathlib import Path

import pytest
import torch
from compare import random_ids
from reference import FAMILIES, LATEST

import nanomodels
from nanomodels.analysis import comparing, scoring
from nanomodels.cli import generate
from nanomodels.cli import score as score_command

WEIGHTS = Path(__file__).parent.parent / "weights"


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    theirs = FAMILIES[request.param](5)
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs.save_pretrained(folder)
    return theirs, nanomodels.load(folder)


@torch.inference_mode()
def test_the_loss_is_that_of_transformers_with_labels(pair, monkeypatch):
    theirs, ours = pair
    monkeypatch.setattr(scoring, "ROWS", 3)
    lengths = [40, 2, 23, 40, 31, 7, 3]
    texts = [random_ids(ours, 1, n, seed=n)[0].tolist() for n in lengths]
    for text, found in zip(texts, nanomodels.score(ours, texts), strict=True):
        ids = torch.tensor([text])
        assert found.loss == pytest.approx(theirs(ids, labels=ids).loss.item(), rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(found.loss))
        assert found.tokens == text[1:]


@pytest.mark.parametrize("name", ["nanochat-tiny", "nemotron-tiny", "nemotron-h-tiny"])
@torch.inference_mode()
def test_the_loss_of_a_text_by_the_shipped_models(name):
    """transformers' Nemotron-H with the limit of dt that the config has."""
    theirs = comparing.load_theirs(WEIGHTS / name, torch.float32, None, patch_known=True)
    ours = nanomodels.load(WEIGHTS / name, dtype=torch.float32)
    text = "Once upon a time, there was a little girl named Mia. What is the capital of France?"
    text = nanomodels.Tokenizer.load(WEIGHTS / name).encode(text)
    ids = torch.tensor([text])
    (found,) = nanomodels.score(ours, [text])
    assert found.loss == pytest.approx(theirs(ids, labels=ids).loss.item(), rel=1e-5)


@pytest.fixture(scope="module", params=[*FAMILIES, "nanochat_2026"])
def model(request, tmp_path_factory):
    if request.param == "nanochat_2026":
        return nanomodels.load(LATEST)
    folder = tmp_path_factory.mktemp("checkpoint")
    FAMILIES[request.param](3).save_pretrained(folder)
    return nanomodels.load(folder)


@torch.inference_mode()
def test_each_token_and_its_alternatives_are_those_of_one_pass(model, monkeypatch):
    """After a prompt, with calls of a few tokens."""
    texts = [random_ids(model, 1, n, seed=n)[0].tolist() for n in (30, 12, 27)]
    monkeypatch.setattr(scoring, "LOGITS", 3 * 7 * model.config.vocab_size)
    prompts = [9, 1, 26]
    for text, n, found in zip(
        texts, prompts, nanomodels.score(model, texts, given=prompts, top=4), strict=True
    ):
        logprobs = model(torch.tensor([text]))[0].log_softmax(-1)[n - 1 : -1]
        expected = logprobs.gather(1, torch.tensor(text[n:])[:, None])[:, 0]
        assert found.tokens == text[n:]
        assert [t.logprob for t in found.tokens] == pytest.approx(expected.tolist(), abs=1e-4)
        values, ids = logprobs.topk(4)
        assert [[i for i, _ in token.top] for token in found.tokens] == ids.tolist()
        assert [[p for _, p in token.top] for token in found.tokens] == [
            pytest.approx(each, abs=1e-4) for each in values.tolist()
        ]


def test_bad_texts_are_refused(model):
    size, context = model.config.vocab_size, model.context_length
    assert nanomodels.score(model, []) == []
    for text, words in (
        ([1], "text 2 has 1 tokens; it needs 2 at least"),
        ([], "text 2 has 0 tokens"),
        ([1] * (context + 1), f"text 2 has {context + 1} tokens; .* context holds {context}"),
        ([1, size], f"text 2 has ids that are not in the vocabulary of {size}"),
        ("12", "a text is '12'; it must be a list of token ids"),
    ):
        with pytest.raises(ValueError, match=words):
            nanomodels.score(model, [[1, 2], text])
    for name, wrong in (("given", 0), ("given", [1, 1]), ("top", -1), ("top", size + 1)):
        with pytest.raises(ValueError, match=f"{name} is"):
            nanomodels.score(model, [[1, 2]], **{name: wrong})


# --- generate.py --score ---


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run generate.py --score over some lines; gives status, the lines of JSON, stderr."""

    def run(lines, *args, name="texts.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        monkeypatch.setattr("sys.stdin", None)
        monkeypatch.setattr(generate, "discard_stdout", lambda: None)
        status = generate.main(["--score", str(path), "--dtype", "float32", *args])
        out, err = capsys.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err

    return run


FRANCE = "What is the capital of France?"


def test_scores_of_a_file_are_those_from_python(run, monkeypatch):
    """A text alone, and an answer after a question; a batch at a time, in order."""
    monkeypatch.setattr(score_command, "BATCH", 2)
    model = nanomodels.load(WEIGHTS / "nanochat-tiny", dtype=torch.float32)
    tokenizer = nanomodels.Tokenizer.load(WEIGHTS / "nanochat-tiny")
    rows = [
        {"id": 7, "text": "The sun is a star."},
        {"prompt": FRANCE, "text": "The capital of France is Paris."},
        {
            "messages": [{"role": "user", "content": FRANCE}],
            "text": "Paris!",
            "system": "Be brief.",
        },
    ]
    status, found, err = run([json.dumps(row) for row in rows], "--logprobs", "2")
    assert status == 0 and "scored  3 texts, " in err
    chats = [[{"role": "user", "content": FRANCE}]]
    chats.append([{"role": "system", "content": "Be brief."}, *chats[0]])
    prompts = [tokenizer.encode("")] + [tokenizer.encode_chat(chat) for chat in chats]
    for row, prompt, line in zip(rows, prompts, found, strict=True):
        ids = prompt + tokenizer.encode(row["text"], add_bos=False)
        (expected,) = nanomodels.score(model, [ids], given=len(prompt), top=2)
        assert line["text"] == row["text"] and line.get("id") == row.get("id")
        assert line["loss"] == pytest.approx(expected.loss, rel=1e-5)
        assert line["perplexity"] == pytest.approx(math.exp(expected.loss), rel=1e-5)
        assert (line["given_tokens"], line["scored_tokens"]) == (
            len(prompt),
            len(ids) - len(prompt),
        )
        assert "".join(token["text"] for token in line["logprobs"]) == row["text"]
        for token, mine in zip(line["logprobs"], expected.tokens, strict=True):
            assert token["logprob"] == pytest.approx(mine.logprob, abs=1e-4)
            assert [each["token"] for each in token["top"]] == [i for i, _ in mine.top]
    assert found[1]["loss"] < 0.01 < found[2]["loss"], "the first is what the model says"


def test_lines_of_text_are_scored_as_they_are(run):
    """Without --logprobs there are no alternatives; a text that does not fit has a line, too."""
    lines = ["The sun is a star.", "", "long " * 600, '{"x']
    status, found, err = run(lines, "--quiet", name="texts.txt")
    assert status == 0
    assert [line["text"] for line in found] == [lines[0], lines[2], lines[3]]
    assert all(token["top"] == [] for token in found[0]["logprobs"])
    error = found[1]["error"]
    assert "the model's context holds 512" in error
    assert err.endswith(f"texts.txt: line 3: {error})\n") and err.count("\n") == 1
    raw = run(lines[:1], "--raw", name="raw.txt")[1]
    assert raw[0]["loss"] == pytest.approx(found[0]["loss"], rel=1e-5), "in any batch"


@pytest.mark.parametrize(
    ("lines", "args", "words"),
    [
        (['{"prompt": "Hi"}'], [], "line 1: text must be a string, is null"),
        (['"a"', '{"text": 3}'], [], "line 2: text must be a string, is 3"),
        (['{"text": "a", "prompt": ""}'], [], "the prompt is empty"),
        (['{"text": "a", "system": "b"}'], [], "must have prompt or messages"),
        (['{"texts": "a"}'], [], "texts is unknown; known: id, messages, prompt, system, text"),
        ([""], [], "the file is empty"),
        (['"ab"'], ["--logprobs", "5000"], "top is 5000; it must be 0 to 1536"),
        (['"ab"'], ["--logprobs", "-1"], "logprobs is -1"),
        (['"ab"'], ["Hi"], "--score generates nothing; leave out prompt"),
        (['"ab"'], ["--top-k", "3"], "--score generates nothing; leave out --top-k"),
        (['"ab"'], ["--explain", "x"], "--score generates nothing; leave out --explain"),
    ],
)
def test_what_cannot_be_scored_is_one_line(run, capsys, lines, args, words):
    try:
        status, out, err = run(lines, "--quiet", *args)
    except SystemExit as exited:
        status, (out, err) = exited.code, capsys.readouterr()
    assert (status, len(out), err.count("\n")) == (2, 0, 1)
    assert err.startswith("generate.py: error: ") and words in err


def test_alternatives_are_tokens_that_the_tokenizer_knows(run, monkeypatch):
    """The vocabulary of a model may be padded."""
    tokenizer = nanomodels.Tokenizer.load(WEIGHTS / "nanochat-tiny")
    tokenizer.vocab_size = 300
    monkeypatch.setattr(nanomodels.Tokenizer, "load", lambda _: tokenizer)
    (found,) = run(['"Hi there"'], "--logprobs", "1500")[1]
    for token in found["logprobs"]:
        assert max(each["token"] for each in token["top"]) < 300
