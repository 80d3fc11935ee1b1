"""The trained checkpoints in weights/: one folder, read by transformers and by us."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import nanomodels

WEIGHTS = Path(__file__).parent.parent / "weights"
FOLDER = WEIGHTS / "nanochat-tiny"
QUESTIONS = [
    "What is the capital of France?",
    "hello there",
    "What is 27 + 35?",
    "How do you spell cat?",
    "Who are you?",
    "What comes after Tuesday?",
    "Zażółć gęślą jaźń 🙂",
]


def theirs(dtype):
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype).eval()


@pytest.fixture(scope="module")
def tokenizers():
    return AutoTokenizer.from_pretrained(FOLDER), nanomodels.Tokenizer.load(FOLDER)


@pytest.fixture(scope="module")
def rows(tokenizers):
    """Chats and plain text as the model met them in training: (rows, tokens)."""
    text = (WEIGHTS / "tinyshakespeare.txt").read_text()
    ids = [tokenizers[1].encode(text[at : at + 2000])[:200] for at in range(0, 200_000, 20_000)]
    return torch.tensor(ids)


def close(found, expected):
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.inference_mode()
def test_logits_of_the_trained_model_match_transformers(rows):
    expected = theirs(torch.float32)(rows).logits
    found = nanomodels.load(FOLDER, dtype=torch.float32)(rows)
    assert expected.std() > 1
    assert (found - expected).abs().max() <= 2e-5


@torch.inference_mode()
def test_the_trained_model_is_the_same_for_any_split_and_padding(rows):
    model, ids = nanomodels.load(FOLDER, dtype=torch.float32), rows[:3]
    full, cache = model(ids), model.new_cache(3, 200)
    pieces = ids.split([1, 2, 50, 1, 64, 82], dim=1)
    close(torch.cat([model(piece, cache=cache) for piece in pieces], dim=1), full)
    mask = torch.arange(200) >= torch.tensor([[0], [77], [199]])
    padded = model(ids, attention_mask=mask)
    for i in range(3):
        close(padded[i, mask[i]], model(ids[i : i + 1, mask[i]])[0])


@torch.inference_mode()
def test_the_trained_model_errs_in_bf16_no_more_than_transformers(rows):
    exact = theirs(torch.float32)(rows).logits
    ours = nanomodels.load(FOLDER, dtype=torch.bfloat16)(rows)
    of_theirs = theirs(torch.bfloat16)(rows).logits.float()
    assert (ours - exact).square().mean() <= (of_theirs - exact).square().mean()


@torch.inference_mode()
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_trained_model_says_what_transformers_lets_it_say(tokenizers, question):
    their_tokenizer, our_tokenizer = tokenizers
    messages = [{"role": "user", "content": question}]
    ids = our_tokenizer.encode_chat(messages)
    assert ids == their_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    model = nanomodels.load(FOLDER, dtype=torch.float32)
    found = list(nanomodels.generate(model, ids, max_new_tokens=64))
    expected = (
        theirs(torch.float32)
        .generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0, len(ids) :]
        .tolist()
    )
    assert found == [i for i in expected if i not in model.stop_ids]
    assert our_tokenizer.decode(found) == their_tokenizer.decode(found)


def test_the_tokenizers_agree_on_raw_text(tokenizers):
    for text in [*QUESTIONS, "ROMEO:\n", "  two  spaces\r\n\r\n", "1234567", "It's I'LL"]:
        assert tokenizers[1].encode(text) == tokenizers[0](text)["input_ids"]


def test_the_trained_model_is_as_small_as_it_says():
    model = nanomodels.load(FOLDER)
    assert sum(p.numel() for p in model.parameters()) <= 4_000_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_300_000
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
