"""The trained checkpoints in weights/: ours and transformers read the same folder."""

from pathlib import Path

import pytest
import torch
from compare import close
from reference import tolerance
from transformers import AutoModelForCausalLM, AutoTokenizer

import nanomodels

pytestmark = pytest.mark.kernels

WEIGHTS = Path(__file__).parent.parent / "weights"
NAMES = ["nanochat-tiny", "nemotron-tiny", "nemotron-h-tiny"]
QUESTIONS = [
    "What is the capital of France?",
    "hello there",
    "What is 27 + 35?",
    "How do you spell cat?",
    "Who are you?",
    "What comes after Tuesday?",
    "Zażółć gęślą jaźń 🙂",
]
NOTES = (
    "Nora keeps 4719 in the red box. The wind was cold at noon. Tom keeps 2085 in the blue jar. "
    "The cat slept all day. The number of the old mill is 6634. A bird came back in spring. "
)
CHATS = [
    f"Notes: {NOTES}\nWhat does Nora keep?",
    f"Notes: {NOTES * 3}\nWhat is the number of the old mill?",
    "Hello!",
    "日本 🙂\n",
]
STORIES = ["Once upon a time", "One day, Tom the bear", "  two  spaces", "日本 🙂\n"]


def theirs(name, dtype):
    # torch 2.13's own attention fails on a CPU with AMX where ATEN_CPU_CAPABILITY is "default".
    default = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    kwargs = {"attn_implementation": "eager" if default else "sdpa"}
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / name, dtype=dtype, **kwargs).eval()
    for module in model.modules():  # transformers 5.23.0 has a lower limit of dt of its own
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = tuple(model.config.time_step_limit)
    return model


def tokenizers(name):
    return AutoTokenizer.from_pretrained(WEIGHTS / name), nanomodels.Tokenizer.load(WEIGHTS / name)


@pytest.fixture(scope="module", params=NAMES)
def trained(request):
    """The name of a checkpoint, and ids (10, 200) of text like that of its training."""
    name = request.param
    tokenizer = nanomodels.Tokenizer.load(WEIGHTS / name)
    if name == "nanochat-tiny":
        text = (WEIGHTS / "training" / "tinyshakespeare.txt").read_text()
        rows = [text[at : at + 2000] for at in range(0, 200_000, 20_000)]
    elif name == "nemotron-h-tiny":
        text = NOTES * 12
        rows = [f"Notes: {text[at:]}" for at in range(0, 200, 20)]
    else:
        model = nanomodels.load(WEIGHTS / name, dtype=torch.float32)
        prompts = [tokenizer.encode("Once upon a time")] * 10
        kwargs = {"max_new_tokens": 200, "temperature": 0.7, "stop_ids": []}
        rows = [
            tokenizer.decode(
                [*prompt, *nanomodels.generate(model, prompt, seed=seed, **kwargs)],
                skip_special=True,
            )
            for seed, prompt in enumerate(prompts)
        ]
    return name, torch.tensor([(tokenizer.encode(row) * 2)[:200] for row in rows])


@torch.inference_mode()
def test_logits_of_a_trained_model_match_transformers(trained):
    name, rows = trained
    model = theirs(name, torch.float32)
    expected = model(rows).logits
    found = nanomodels.load(WEIGHTS / name, dtype=torch.float32)(rows)
    assert expected.std() > 1
    assert (found - expected).abs().max() <= tolerance(model, rows)


@torch.inference_mode()
def test_log_probabilities_of_a_trained_model_match_transformers(trained):
    name, rows = trained
    ids = rows[:3, :60].tolist()
    kwargs = {"max_new_tokens": 20, "temperature": 0.7, "seed": 5, "logprobs": 3, "stop_ids": []}
    model = nanomodels.load(WEIGHTS / name, dtype=torch.float32)
    found = list(zip(*nanomodels.generate_batch(model, ids, **kwargs), strict=True))
    texts = torch.tensor([[*prompt, *row] for prompt, row in zip(ids, found, strict=True)])
    expected = theirs(name, torch.float32)(texts).logits[:, 59:-1].log_softmax(-1)  # (b, t, v)
    own = torch.tensor([[token.logprob for token in row] for row in found])
    top = torch.tensor([[[value for _, value in token.top] for token in row] for row in found])
    assert (own - expected.gather(2, texts[:, 60:, None])[..., 0]).abs().max() <= 1e-4
    assert (top - expected.topk(3).values).abs().max() <= 1e-4


@torch.inference_mode()
def test_a_trained_model_gives_the_same_logits_for_any_split_and_padding(trained):
    name, rows = trained
    model, ids = nanomodels.load(WEIGHTS / name, dtype=torch.float32), rows[:3]
    full, cache = model(ids), model.new_cache(3, 200)
    pieces = ids.split([1, 2, 50, 1, 64, 82], dim=1)
    close(torch.cat([model(piece, cache=cache) for piece in pieces], dim=1), full)
    mask = torch.arange(200) >= torch.tensor([[0], [77], [199]])
    padded = model(ids, attention_mask=mask)
    for i in range(3):
        close(padded[i, mask[i]], model(ids[i : i + 1, mask[i]])[0])


@torch.inference_mode()
def test_a_trained_model_errs_in_bf16_no_more_than_transformers(trained):
    name, rows = trained
    exact = theirs(name, torch.float32)(rows).logits
    ours = nanomodels.load(WEIGHTS / name, dtype=torch.bfloat16)(rows)
    of_theirs = theirs(name, torch.bfloat16)(rows).logits.float()
    errors = [(found - exact).square().mean(-1) for found in (ours, of_theirs)]  # (b, t)
    if name == "nemotron-h-tiny":
        # A router's near-tie can go the other way, in each library at other tokens. Such a token
        # has a large error, so the medians are compared.
        mine, its = (error.median() for error in errors)
        assert mine <= 1.1 * its
    else:
        assert errors[0].mean() <= errors[1].mean()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "text"),
    [("nanochat-tiny", q) for q in QUESTIONS]
    + [("nemotron-tiny", s) for s in STORIES]
    + [("nemotron-h-tiny", c) for c in CHATS],
)
def test_a_trained_model_writes_the_same_text_as_with_transformers(name, text):
    their_tokenizer, our_tokenizer = tokenizers(name)
    if name != "nemotron-tiny":
        messages = [{"role": "user", "content": text}]
        ids = our_tokenizer.encode_chat(messages)
        assert ids == their_tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
    else:
        ids = our_tokenizer.encode(text)
        assert ids == their_tokenizer(text)["input_ids"]
    model = nanomodels.load(WEIGHTS / name, dtype=torch.float32)
    found = list(nanomodels.generate(model, ids, max_new_tokens=64))
    expected = (
        theirs(name, torch.float32)
        .generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0, len(ids) :]
        .tolist()
    )
    assert found == [i for i in expected if i not in model.stop_ids]
    assert our_tokenizer.decode(found) == their_tokenizer.decode(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizers_give_the_same_ids_for_raw_text(name):
    theirs, ours = tokenizers(name)
    for text in [*QUESTIONS, *STORIES, "ROMEO:\n", "a\r\n\r\nb  ", "1234567", "It's I'LL"]:
        assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_model_is_small(name):
    model = nanomodels.load(WEIGHTS / name)
    assert sum(p.numel() for p in model.parameters()) <= 4_000_000
    assert sum(path.stat().st_size for path in (WEIGHTS / name).iterdir()) <= 8_300_000
    assert model.lm_head.weight.dtype == torch.bfloat16
