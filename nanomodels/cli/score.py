"""How likely the lines of a file are: one line of JSON for each, in their order."""

import json
import sys

from nanomodels.cli.batch import logprob_fields
from nanomodels.cli.progress import Progress
from nanomodels.cli.terminal import report, write
from nanomodels.cli.wrap import harmless
from nanomodels.text.files import say

BATCH = 16  # texts that are read at the same time


def score_rows(args, model, rows, encoder):
    """Write the score of each Row; its prompt, if it has one, is read but not scored.

    A text that cannot be scored, such as one that is longer than the context, gets an "error".
    """
    from nanomodels.analysis.scoring import Score

    texts, whole = [encode(row, encoder) for row in rows], Score([])
    total, done = sum(len(ids) for ids, _ in texts), 0
    with Progress("scoring: ", "tokens", args.quiet) as progress:
        progress(0, total)
        for start in range(0, len(rows), BATCH):
            here = slice(start, start + BATCH)
            found = score_texts(model, texts[here], args.logprobs or 0)
            with progress.hidden():
                for row, (ids, given), each in zip(rows[here], texts[here], found, strict=True):
                    write_score(row, given, each, encoder.tokenizer)
                    whole.tokens += getattr(each, "tokens", [])
                    done += len(ids)
            progress(done, total)
    if whole.tokens and not args.quiet:
        figures = f"{len(whole.tokens)} tokens", f"perplexity {whole.perplexity:.4g}"
        report("scored", f"{len(rows)} texts", *figures, f"loss {whole.loss:.5f}")


def encode(row, encoder):
    """The ids of a Row, and how many of them are given."""
    tokenizer = encoder.tokenizer
    if row.messages:
        prompt = row.encode(encoder).ids
        return [*prompt, *tokenizer.encode(row.text, add_bos=False)], len(prompt)
    return tokenizer.encode(row.text), 1


def score_texts(model, texts, top):
    """The Score of each of some texts (ids, given), or the reason why there is none."""
    from nanomodels.analysis.scoring import fault, score

    faults = [fault(model, *text) for text in texts]
    right = [text for text, wrong in zip(texts, faults, strict=True) if not wrong]
    ids, given = ([text[n] for text in right] for n in (0, 1))
    scores = iter(score(model, ids, given=given, top=top))
    return [wrong or next(scores) for wrong in faults]


def write_score(row, given, score, tokenizer):
    """Write a line of JSON: a Score, or the reason why there is none."""
    fields = {} if row.id is None else {"id": row.id}
    if row.messages:
        fields["prompt"] = row.messages[-1]["content"]
    fields["text"] = row.text
    if isinstance(score, str):
        fields["error"] = f"the text {score}"
        say(f"({row.where}: {fields['error']})")
    else:
        for token in score.tokens:  # the model's vocabulary may be padded
            token.top = [pair for pair in token.top if pair[0] < tokenizer.vocab_size]
        fields |= {
            "given_tokens": given,
            "scored_tokens": len(score.tokens),
            "loss": score.loss,
            "perplexity": score.perplexity,
            "logprobs": logprob_fields(tokenizer, score.tokens),
        }
    line = json.dumps(fields, ensure_ascii=False) + "\n"
    write(harmless(line) if sys.stdout.isatty() else line)
