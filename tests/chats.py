"""Conversations that tests have, and what to compare them with.

The reference is `nanomodels.generate` without a cache, for the prompt that the tokenizer makes of
the messages; test_decoding.py tests it.
"""

from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from compare import same_cache
from reference import LATEST

import nanomodels
from nanomodels.cache import PADDING

WEIGHTS = Path(__file__).parent.parent / "weights"
FOLDERS = {
    "nanochat": WEIGHTS / "nanochat-tiny",
    "nanochat_2026": LATEST,
    "nemotron": WEIGHTS / "nemotron-tiny",
    "nemotron_h": WEIGHTS / "nemotron-h-tiny",
}
# nemotron-tiny has no chat template.
TEMPLATE = """{% for m in messages %}<extra_id_1>{{ m.role }}
{{ m.content }}
{% endfor %}{% if add_generation_prompt %}<extra_id_1>assistant
{% endif %}"""
TEN = [
    "Hello!",
    "What is the capital of France?",
    "And of Spain?",
    "What is 12 + 30?",
    "Who are you?",
    "Jack keeps 5551234. What does Jack keep?",
    "What is the capital of Peru?",
    "Hi",
    "2 + 2?",
    "Thank you!",
]
NEW = 16  # tokens of an answer, at most


@cache
def loaded(name):
    """A model in float32 and its tokenizer, with a chat template."""
    tokenizer = nanomodels.Tokenizer.load(FOLDERS[name])
    if tokenizer.chat_template is None:
        tokenizer.chat_template = tokenizer._templates["default"] = TEMPLATE
    return nanomodels.load(FOLDERS[name], dtype=torch.float32), tokenizer


def start(name, **options):
    """A chat; nemotron_h does not reason, unless it is told to."""
    model, tokenizer = loaded(name)
    defaults = {"max_new_tokens": NEW, "think": False if name == "nemotron_h" else None}
    return nanomodels.Chat(model, tokenizer, **defaults | options)


def alone(chat, messages, **settings):
    """The prompt of a chat's messages, and the tokens that it alone gives."""
    variables = {} if chat.encoder.think is None else {"enable_thinking": chat.encoder.think}
    ids = chat.tokenizer.encode_chat(messages, **variables)
    settings = {"max_new_tokens": NEW, "vocab_size": chat.tokenizer.vocab_size} | settings
    return ids, list(nanomodels.generate(chat.model, ids, **settings))


def user(text):
    return {"role": "user", "content": text}


def common(ids, others):
    """The first ids that are the same."""
    end = next(
        (n for n, pair in enumerate(zip(ids, others, strict=False)) if len({*pair}) > 1), None
    )
    return ids[: min(len(ids), len(others)) if end is None else end]


@contextmanager
def feeding(model):
    """A list with the number of tokens of each call of the model."""
    fed = []
    hook = model.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    yield fed
    hook.remove()


def check_cache(chat):
    """The cache holds the first of its ids, and marks are places to go back to."""
    held, ids = chat.prefix.cache, chat.prefix.ids
    assert held.length <= len(ids)
    with torch.inference_mode():
        for length in (held.length, *sorted(held.marks)[::-1][:3]):
            copy, fresh = held.clone(), chat.model.new_cache(1, held.max_length)
            if length < held.length:
                copy.truncate(length)
            copy.positions[:, length:] = PADDING  # an interrupted call may have left others
            if length:
                chat.model(torch.tensor([ids[:length]]), cache=fresh)
            same_cache(copy, fresh)


def ask_and_compare(chat, text, **settings):
    """Ask; the answer is that of the prompt alone. Returns the prompt, and what was fed."""
    ids, expected = alone(chat, [*chat.messages, user(text)], **settings)
    with feeding(chat.model) as fed:
        reply = chat.ask(text, **settings)
        assert reply.tokens == expected
    assert reply.prompt_tokens == len(ids)
    steps = len(expected) - (reply.finish_reason != "stop")  # the last token is not fed
    read = sum(fed) - steps
    assert read == len(ids) - reply.reused_tokens or reply.settings.draft_lookup
    return ids, read
