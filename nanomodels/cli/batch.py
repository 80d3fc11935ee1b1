"""The texts for many prompts, or several for one: written in order, once they are complete."""

import json
import sys
import time
from dataclasses import dataclass

from nanomodels.cli.progress import Progress
from nanomodels.cli.rows import Row
from nanomodels.cli.terminal import (
    Screen,
    peak_memory,
    report,
    report_unanswered,
    write,
)
from nanomodels.cli.wrap import harmless
from nanomodels.generation.stream import Completion
from nanomodels.text import tool_calls
from nanomodels.text.files import say


@dataclass
class Text:
    """One text to generate: sample `sample` for the prompt of a Row."""

    row: Row
    prompt_tokens: int
    sample: int
    completion: Completion
    ids: list | None = None  # of the prompt

    @property
    def is_too_long(self):
        return self.completion.finish_reason == "too_long"


class Counter:
    """Shows how many texts are complete."""

    def __init__(self, total, quiet):
        self.progress = Progress("", "texts", quiet)
        self.total, self.done, self.tokens = total, 0, 0
        self.step()

    def step(self):
        """Show the numbers after a decode step."""
        self.progress(self.done, self.total, self.tokens)


def run_batch(args, model, settings, rows, encoder, output):
    """Write the texts for some Rows, which an encoder of prompts.py makes prompts of.

    output is an OutputFile, or None for stdout. A prompt that is longer than the context gets an
    empty text. Ctrl-C ends the batch: then the texts before the first one that is not complete have
    been written.
    """
    began, samples = time.monotonic(), settings.num_samples
    texts = [
        Text(
            row,
            len(prompt.ids),
            sample,
            start(model, encoder.tokenizer, args.stop, prompt),
            prompt.ids,
        )
        for row, prompt in [(row, row.encode(encoder)) for row in rows]
        for sample in range(samples)
    ]
    first = output.count if output else 0
    counter = Counter(sum(not text.is_too_long for text in texts[first:]), args.quiet)
    interrupted, written = False, first
    with counter.progress:
        try:
            for _ in generate_texts(model, settings, texts, first, counter):
                while written < len(texts) and texts[written].completion.finish_reason:
                    with counter.progress.hidden():
                        write_text(args, settings, encoder, model, texts[written], texts, output)
                    written += 1
                counter.step()
        except KeyboardInterrupt:
            interrupted = True
    complete = texts[first:written]
    report_unanswered([text.completion for text in complete if not text.is_too_long])
    if not args.quiet:
        report_total(model, settings, complete, len(texts), time.monotonic() - began)
    if interrupted:
        raise KeyboardInterrupt


def start(model, tokenizer, stop, prompt):
    """The Completion of a Prompt; one that is too long for the model is at its end."""
    room = model.context_length + 1 - len(prompt.ids)
    completion = Completion(tokenizer, stop, prompt, room)
    if room < 1:
        completion.finish("too_long")
    return completion


def generate_texts(model, settings, texts, first, counter):
    """Generate the Texts from number `first` on, the first sample of a prompt.

    Yields after each decode step, and at the end.
    """
    from nanomodels.generation.continuous import decode_many

    samples = settings.num_samples
    groups = [texts[i : i + samples] for i in range(0, len(texts), samples)]
    groups = [group for group in groups[first // samples :] if not group[0].is_too_long]

    def take(number, sample, token):
        completion = groups[number][sample].completion
        completion.push(token)
        if len(completion.tokens) == settings.max_new_tokens:
            completion.finish("length")
        elif len(completion.tokens) == completion.room:
            completion.finish("context")
        counter.tokens += token is not None
        counter.done += completion.finish_reason is not None
        return completion.finish_reason is None

    if settings.max_new_tokens == 0:
        for text in texts[first:]:
            text.completion.finish("length")
    else:
        yield from decode_many(model, [group[0].ids for group in groups], settings, take)
    yield  # also where there was nothing to generate


def write_text(args, settings, encoder, model, text, texts, output):
    """Write a Text: a line of JSON, or the text itself, after a heading if it is one of many."""
    if output is not None:
        output.write(json_line(text, settings, encoder))
        return
    if args.json:
        write_json(text, settings, encoder)
        return
    if len(texts) > 1:
        sample = f"sample {text.sample + 1}" if settings.num_samples > 1 else ""
        line = f"line {text.row.line}" if text.row.line else ""
        write(f"==> {', '.join(filter(None, (line, sample)))} <==\n")
    if text.is_too_long and not text.sample:
        say(
            f"({text.row.where}: the prompt has {text.prompt_tokens} tokens; the model's context "
            f"holds {model.context_length})"
        )
    Screen(not args.quiet).show(text.completion, text.completion.text + "\n")


def json_line(text, settings, encoder):
    """A Text as a line of JSON."""
    row, sample, completion = text.row, text.sample, text.completion
    fields = {} if row.id is None else {"id": row.id}
    fields |= {
        "prompt": row.messages[-1]["content"],
        "sample": sample,
        **answer_fields(completion, settings, getattr(encoder, "tools", None)),
        "finish_reason": completion.finish_reason,
        "prompt_tokens": text.prompt_tokens,
        "new_tokens": len(completion.tokens),
        "seed": settings.seed + sample if settings.temperature else None,
    }
    if settings.logprobs is not None:
        fields["logprobs"] = logprob_fields(encoder.tokenizer, completion.tokens)
    return json.dumps(fields, ensure_ascii=False) + "\n"


def write_json(text, settings, encoder):
    """Write a Text as a line of JSON to stdout."""
    line = json_line(text, settings, encoder)
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
