"""Does this project compute what transformers computes? If not, where does it begin?

With one checkpoint: both load it, in float64. Each of our blocks is given the input of theirs, so
that a fault stays in its block; in the first one that differs, the step is named. Then the
checkpoint's own dtype: whose blocks are nearer to float64, and is the text the same? This needs
transformers, and memory for both models in float64; --first cuts them.

With two checkpoints of one architecture, ours against ours: such as a converted one in int4 and
its source. The same means that each token of the text has the same likeliest successor.
"""

import json
from dataclasses import asdict
from pathlib import Path

from nanomodels.cli.command import Parser, exit_status
from nanomodels.cli.start import catch_interrupts
from nanomodels.text.files import read_text

EXAMPLES = """examples:
  nanomodels compare weights/nanochat-tiny
  nanomodels compare weights/nemotron-h-tiny --patch-known
  nanomodels compare weights/Minitron-4B-int4 ~/models/Minitron-4B-Base

own      the largest difference of a block that is given the other side's input
carried  the same as the model runs, with what earlier blocks have added
ratio    our error by rounding, divided by theirs
Exit status: 0 the same, 1 not the same, 2 bad input, 130 after Ctrl-C.
"""


def parse_arguments(argv):
    parser = Parser("nanomodels compare", __doc__, EXAMPLES)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder, a shipped model, or org/name of the Hub")
    add("other", metavar="OTHER", nargs="?", help="a second one [transformers' model of MODEL]")
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, help="for rounding and text [the checkpoint's]")
    add("--text", type=Path, metavar="FILE", help="what both read [five lines about a mill]")
    add("--tokens", type=int, metavar="N", help="at most N of its tokens [2.5 Mamba chunks, or 90]")
    add("--first", type=int, metavar="N", help="only the first N layers")
    add("--patch-known", action="store_true", help="mend known faults of transformers first")
    add("--json", action="store_true", help="write all figures as one JSON object")
    return parser.parse_args(argv)


def main(argv=None):
    found = []
    status = exit_status("nanomodels compare", lambda: found.append(run(parse_arguments(argv))))
    return status if status or found[0] else 1


def run(args):
    """Compare, write the report, and return whether both are the same."""
    text = None if args.text is None else read_text(args.text)
    for name in ("tokens", "first"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be 1 or more")
    import torch

    from nanomodels.analysis import comparing
    from nanomodels.checkpoint.finding import find

    catch_interrupts()
    folder = find(args.model)
    ids = text_ids(folder, args, text or comparing.TEXT)
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    if args.other is not None:
        for name in ("first", "patch_known", "dtype"):
            if getattr(args, name):
                raise ValueError(f"--{name.replace('_', '-')} goes with one checkpoint")
        report = comparing.compare_ours((folder, find(args.other)), ids)
    else:
        try:
            import transformers
        except ImportError:
            raise ValueError(
                "transformers is not installed (pip install transformers); "
                "two checkpoints of ours are compared without it"
            ) from None
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        report = comparing.compare(
            folder, ids, dtype=dtype, first=args.first, patch_known=args.patch_known
        )
    if args.json:
        print(json.dumps(asdict(report) | {"same": report.same}))
    else:
        print_report(report)
    return report.same


def text_ids(folder, args, text):
    """The token ids that both sides read."""
    from nanomodels.checkpoint.loading import load
    from nanomodels.text.tokenizer import Tokenizer

    model = load(folder)
    chunk = getattr(model.config, "chunk_size", 36)
    wanted = args.tokens or chunk * 5 // 2
    ids = Tokenizer.load(folder).encode(text)
    if args.text is None:
        ids *= -(-wanted // len(ids))
    ids = ids[: min(wanted, model.context_length)]
    if not ids:
        raise ValueError("the text is empty; give some text")
    return ids


def print_report(report):
    """The report for people."""
    if report.agreement is None:
        print(f"{report.name}: nanomodels and transformers, {report.tokens} tokens, float64")
    else:
        print(f"{report.name}, {report.tokens} tokens, each in its own dtype")
    print(f"{'block':>7} {'':9}   own       carried{'   ratio' if report.dtype else ''}")
    print(f"{'':7} {'embedding':9}   {report.start:.1e}   {report.start:.1e}")
    first = report.different[0] if report.different and report.agreement is None else None
    for block in report.blocks:
        ratio = "" if block.ratio is None else f"    {block.ratio:.2f}"
        mark = "   <- first that differs" if block is first else ""
        print(
            f"{block.index:7} {block.kind:9}   {block.own:.1e}   {block.carried:.1e}{ratio}{mark}"
        )
    print(f"{'':7} {'logits':9}   {report.head:.1e}   {report.logits:.1e}")
    if report.worst is not None:
        print_steps(report, first)
    for line in report.known:
        print(f"known: {line}")
    for way, block in report.ways.items():
        print(f"{way}: block {block.index} ({block.kind}) gives something else, {block.own:.1e}")
    if report.flips is not None:
        flips = report.flips
        print(
            f"experts in {report.dtype}: of {flips['choices']} choices, ours has {flips['ours']} "
            f"other ones than float64, theirs {flips['theirs']}"
        )
    if report.greedy is not None:
        greedy = report.greedy
        print(f"greedy text in {report.dtype}: {greedy['same']} of {greedy['tokens']} tokens agree")
        if "margin" in greedy:
            print(
                f"    the first other one is {greedy['margin']:.3f} behind, in transformers' logits"
            )
    print(verdict(report))


def print_steps(report, block):
    """The steps of the first block that differs, and the largest difference."""
    print(f"block {block.index}, step by step, on the same input:")
    for name, difference, *_ in report.steps:
        mark = "   <- first that differs" if name == report.worst["step"] else ""
        print(f"    {name:24} {difference:.1e}{mark}")
    worst = report.worst
    print(f"    largest at {worst['index']} of {worst['shape']}:")
    print(f"        ours    {worst['ours']:.6g}   {worst['ours_line']}")
    print(f"        theirs  {worst['theirs']:.6g}   {worst['theirs_line']}")


def verdict(report):
    """The last line: whether both are the same, and why not."""
    from nanomodels.analysis.comparing import EQUAL

    if report.agreement is not None:
        agreement = report.agreement
        return (
            f"{'the same' if report.same else 'not the same'}: {agreement['same_token']:.1%} of "
            f"the likeliest tokens agree; KL divergence {agreement['kl']:.2g} nats"
        )
    if report.same:
        return "the same"
    reasons = []
    if report.different:
        kinds = ", ".join(sorted({block.kind for block in report.different}))
        reasons.append(f"{len(report.different)} of {len(report.blocks)} blocks differ ({kinds})")
    for name, difference in {"embedding": report.start, "head": report.head}.items():
        if not difference <= EQUAL:
            reasons.append(f"the {name} differs")
    if report.ways:
        reasons.append(f"ours gives something else {' and '.join(report.ways)}")
    for block, step in report.narrow:
        reasons.append(f"{step} of block {block} is not float32 in {report.dtype}")
    if report.rounded_worse:
        reasons.append(f"{len(report.rounded_worse)} blocks round worse than transformers'")
    return "not the same: " + "; ".join(reasons)
