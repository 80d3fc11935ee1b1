"""generate.py --plan: how much memory a model takes, as a table or as JSON."""

import json

from nanomodels.checkpoint.finding import find, origin
from nanomodels.checkpoint.planning import FREE, GPUS, make_plan

NOTES = f"""
Of each process: its weights, with the linears as the column says and the rest in bfloat16 (so are
FP8 and NVFP4 weights once they are loaded); keys and values in bfloat16 for a token of a row;
Mamba-2 states for a row. 1 GB is 10^9 bytes, but a GPU of N GB has N x 2^30 bytes.
{FREE:.0%} of a GPU are kept free, for CUDA and for what a call computes. While loading, the largest
tensor needs room twice. "left" is the share of each GPU for the cache.
"""


def write_plan(name, era, as_json):
    """Write the plan of a checkpoint, a name as --model takes it, to stdout."""
    folder = find(name, weights=False)
    plan = make_plan(folder, era)
    if as_json:
        print(json.dumps(as_object(origin(folder)[0], plan)))
        return
    kinds = [*plan.weights[1]]
    print(
        f"{origin(folder)[0]}: {plan.model_class.__name__}, {plan.parameters / 1e6:,.1f}M "
        f"parameters, context {plan.context_length:,} tokens\n"
    )
    print(line("processes", [*kinds, "a token", "a row"]))
    for count, obstacles in plan.obstacles.items():
        if obstacles:
            print(f"{count:>9}  cannot be cut: {', '.join(obstacles)}")
        else:
            sizes = (*map(plan.weights[count].get, kinds), plan.token[count], plan.row[count])
            print(line(count, map(readable, sizes)))
    print("\n" + line("GPUs of", kinds))
    for size in GPUS:
        fits = (plan.fit(kind, size) for kind in kinds)
        cells = [f"{fit[0]} ({fit[1]:.0%} left)" if fit else "no" for fit in fits]
        print(line(f"{size} GB", cells))
    print(NOTES, end="")


def as_object(name, plan):
    """A Plan as what JSON can say."""
    works = [
        {
            "processes": count,
            "weights": plan.weights[count],
            "while_loading": plan.loading[count],
            "key_value_per_token": plan.token[count],
            "state_per_row": plan.row[count],
        }
        for count in plan.weights
    ]
    fits = {f"{size} GB": {kind: plan.fit(kind, size) for kind in plan.weights[1]} for size in GPUS}
    return {
        "model": name,
        "class": plan.model_class.__name__,
        "parameters": plan.parameters,
        "context_length": plan.context_length,
        "bytes": works,
        "cannot_be_cut": {count: found for count, found in plan.obstacles.items() if found},
        "gpus": {
            size: {
                kind: fit and {"count": fit[0], "left_for_cache": round(fit[1], 4)}
                for kind, fit in kinds.items()
            }
            for size, kinds in fits.items()
        },
    }


def line(first, cells):
    return f"{first:>9}" + "".join(f"{cell:>15}" for cell in cells)


def readable(size):
    """Bytes as text; None: there is no such kind."""
    if size is None:
        return "-"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} B"
