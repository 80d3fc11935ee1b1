"""The texts for many prompts, or several for one: written in order, once they are complete."""

import json
import sys
import time
from dataclasses import dataclass
from itertools import takewhile

from nanomodels.cli.progress import Progress
from nanomodels.cli.rows import Row
from nanomodels.cli.terminal import (
    Screen,
    peak_memory,
    produce,
    report,
    report_unanswered,
    write,
)
from nanomodels.cli.wrap import harmless
from nanomodels.generation.stream import Completion
from nanomodels.text import tool_calls
from nanomodels.text.files import say

BATCH = 16  # prompts that run at the same time


@dataclass
class Text:
    """One text to generate: sample `sample` for the prompt of a Row."""

    row: Row
    ids: list  # of the prompt
    sample: int
    completion: Completion

    @property
    def is_interrupted(self):
        return self.completion.finish_reason == "interrupted"

    @property
    def is_too_long(self):
        return self.completion.finish_reason == "too_long"


class Counter:
    """Shows how many texts are complete."""

    def __init__(self, total, quiet):
        self.progress = Progress("", "texts", quiet)
        self.total, self.done, self.tokens, self.running = total, 0, 0, []
        self.step()

    def start(self, completions):
        """Count these, too. All others are complete."""
        self.done += len(self.running)
        self.tokens += sum(len(each.tokens) for each in self.running)
        self.running = completions

    def step(self):
        """Show the numbers after a decode step."""
        done = sum(each.finish_reason is not None for each in self.running)
        tokens = sum(len(each.tokens) for each in self.running)
        self.progress(self.done + done, self.total, self.tokens + tokens)


def run_batch(args, model, settings, rows, encoder):
    """Write the texts for some Rows, which an encoder of prompts.py makes prompts of.

    A prompt that is longer than the context gets an empty text. Ctrl-C ends the batch: then the
    texts before the first one that is not complete have been written.
    """
    began, samples = time.monotonic(), settings.num_samples
    texts = [
        Text(row, prompt.ids, sample, start(model, encoder.tokenizer, args.stop, prompt))
        for row, prompt in [(row, row.encode(encoder)) for row in rows]
        for sample in range(samples)
    ]
    counter = Counter(sum(not text.is_too_long for text in texts), args.quiet)
    written, interrupted = [], False
    with counter.progress:
        for first in range(0, len(texts), BATCH * samples):
            group = texts[first : first + BATCH * samples]
            interrupted = generate_group(model, settings, group, counter)
            with counter.progress.hidden():
                for text in takewhile(lambda text: not text.is_interrupted, group):
                    write_text(args, settings, encoder, model, text, len(texts) > 1)
                    written.append(text)
            if interrupted:
                break
    report_unanswered([text.completion for text in written if not text.is_too_long])
    if not args.quiet:
        report_total(model, settings, written, len(texts), time.monotonic() - began)
    if interrupted:
        raise KeyboardInterrupt


def start(model, tokenizer, stop, prompt):
    """The Completion of a Prompt; one that is too long for the model is at its end."""
    room = model.context_length + 1 - len(prompt.ids)
    completion = Completion(tokenizer, stop, prompt, room)
    if room < 1:
        completion.finish("too_long")
    return completion


def generate_group(model, settings, group, counter):
    """Generate some Texts at the same time. Returns whether Ctrl-C was pressed."""
    from nanomodels import generate_batch

    running = [text for text in group if not text.is_too_long]
    if not running:
        return False
    completions = [text.completion for text in running]
    counter.start(completions)
    prompts = [text.ids for text in running[:: settings.num_samples]]
    steps = generate_batch(model, prompts, settings)
    interrupted = produce(
        completions, steps, settings.max_new_tokens, counter, lambda completion, text: None
    )
    steps.close()
    return interrupted


def write_text(args, settings, encoder, model, text, is_one_of_many):
    """Write a Text: a line of JSON, or the text itself, after a heading if it is one of many."""
    if args.json:
        write_json(text.row, len(text.ids), text.sample, text.completion, settings, encoder)
        return
    if is_one_of_many:
        sample = f"sample {text.sample + 1}" if settings.num_samples > 1 else ""
        line = f"line {text.row.line}" if text.row.line else ""
        write(f"==> {', '.join(filter(None, (line, sample)))} <==\n")
    if text.is_too_long and not text.sample:
        say(
            f"({text.row.where}: the prompt has {len(text.ids)} tokens; the model's context holds "
            f"{model.context_length})"
        )
    Screen(not args.quiet).show(text.completion, text.completion.text + "\n")


def write_json(row, prompt_tokens, sample, completion, settings, encoder):
    """Write a text as a line of JSON."""
    fields = {} if row.id is None else {"id": row.id}
    fields |= {
        "prompt": row.messages[-1]["content"],
        "sample": sample,
        **answer_fields(completion, settings, getattr(encoder, "tools", None)),
        "finish_reason": completion.finish_reason,
        "prompt_tokens": prompt_tokens,
        "new_tokens": len(completion.tokens),
        "seed": settings.seed + sample if settings.temperature else None,
    }
    if settings.logprobs is not None:
        fields["logprobs"] = logprob_fields(encoder.tokenizer, completion.tokens)
    line = json.dumps(fields, ensure_ascii=False) + "\n"
    write(harmless(line) if sys.stdout.isatty() else line)


def answer_fields(completion, settings, tools):
    """The part of a JSON line that says what the model answered."""
    fields = {"reasoning": completion.reasoning, "text": completion.text}
    if tools is not None:
        fields["text"], fields["tool_calls"], errors = tool_calls.parse(completion.text, tools)
        for error in errors:
            say(f"({error})")
    if settings.calculator:
        fields["parts"] = completion.stream.parts
    return fields


def logprob_fields(tokenizer, tokens):
    """The part of a JSON line with the log-probabilities of Tokens."""

    def entry(token, logprob):
        text = tokenizer.token_bytes(token).decode(errors="replace")
        return {"token": token, "text": text, "logprob": logprob}

    return [
        entry(token, token.logprob) | {"top": [entry(*pair) for pair in token.top]}
        for token in tokens
    ]


def report_total(model, settings, written, count, seconds):
    """One line of figures for the Texts that were written, of `count`."""
    from nanomodels.linears.sizes import device_of

    tokens = sum(len(text.completion.tokens) for text in written)
    figures = [f"{len(written)} of {count} texts"]
    if too_long := sum(text.is_too_long for text in written):
        figures.append(f"{too_long} too long")
    figures += [f"{tokens} tokens", f"{seconds:.1f} s", f"{tokens / seconds:.1f} tokens/s"]
    if settings.temperature:
        figures.append(f"seed {settings.seed}")
    report("total", *figures, f"{peak_memory(device_of(model)) / 1e6:.0f} MB peak")
