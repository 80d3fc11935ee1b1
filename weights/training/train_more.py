"""Train nanochat-tiny on: the end of its schedule once more, with more of what it had forgotten.

    python weights/training/train_more.py FOLDER OUT     # 1,100 steps, 15 minutes

The rows are as in the last 40 % of a run of train_tiny.py, of another seed; learning rates begin
at 0.6 of that run's and fall to 0.
"""

import json
import sys
from pathlib import Path

import chat_corpus
import torch
import train_tiny
from tokenizers import Tokenizer

from nanomodels.checkpoint import loading

STEPS, BEGIN, SEED, RATE = 1100, 0.6, 2, 0.6
# How often each topic comes, where that differs from train_tiny.py.
MORE = {
    "addition": 26,
    "subtraction": 34,
    "sums to 12": 7,
    "negative differences": 9,
    "division": 5,
    "numbers and counting": 20,
    "days and months": 6,
    "about countries": 4,
    "who it is": 5,
    "small talk": 4,
    "things it cannot know": 9,
    "things it cannot do": 12,
    "calculator": 9,
}


class LaterRows:
    """The rows of a run from BEGIN on."""

    def __init__(self, *args):
        self.rows = train_tiny.Rows(*args)

    def batch(self, count, length, part):
        return self.rows.batch(count, length, BEGIN + (1 - BEGIN) * part)


def main():
    source, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    chat_corpus.WEIGHTS.update(MORE)
    recipe, corpus = train_tiny.MODELS["nanochat-tiny"], train_tiny.make_corpus()
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    model = loading.load(source, dtype=torch.float32).requires_grad_().train()
    train_tiny.WARMUP, train_tiny.DECAY = 0.02, 1.0
    recipe.rates.update({name: RATE * rate for name, rate in recipe.rates.items()})
    train_tiny.train(model, LaterRows(corpus, tokenizer, SEED), STEPS, recipe)
    config = json.loads((source / "config.json").read_text())
    train_tiny.write_folder(out, model, config, tokenizer, {}, recipe)


if __name__ == "__main__":
    main()
