"""Showing: what is being measured on stderr, Markdown tables on stdout, and an SVG."""

import html
import re
import sys

from benchmark.checkpoints import CONTEXT
from benchmark.sides import INT4, LLAMA, LLAMA_4, OURS, PAIRS, THEIRS


def say(*words):
    print(*(getattr(word, "__name__", word) for word in words), file=sys.stderr, flush=True)


def print_table(title, rows):
    """Print a Markdown table with its columns aligned."""
    print(f"\n{title}\n")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for first, *rest in (rows[0], rules, *rows[1:]):
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print("|", " | ".join((first.ljust(widths[0]), *cells)), "|", flush=True)


def comparison(table, new, old):
    """Rows of a label, both sides, the gain of the new one, and the shares of the limit."""
    yield ["", new, old, "gain", f"{new}, of limit", f"{old}, of limit"]
    for label, sides in table.items():
        found = sides[new], sides[old]
        shares = [f"{figure['share']:.0%}" if "share" in figure else "" for figure in found]
        ratio = found[0]["median"] / found[1]["median"]
        ratio = ratio if label.endswith("/s") else 1 / ratio
        gain = "" if label.endswith("GB/s") else f"{ratio:.2f}"
        yield [label, *map(spread, found), gain, *shares]


def spread(figure):
    """Median (least-most)."""
    middle, low, high = (short(figure[key]) for key in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low}-{high})"


def short(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def print_model(name, found, llama):
    for other, table in found["figures"].items():
        new, old = PAIRS[other]
        title = f"## {name}: {found['what']}, {found['GB']:.1f} GB; {new} and {old}"
        if other in (LLAMA, LLAMA_4):
            flags = " ".join(re.findall(r"(\w+) = 1", llama["system_info"]))
            title += f" (llama-cpp-python {llama['version']}: {flags})"
        print_table(title, list(comparison(table, new, old)))
        print(
            f"\nLogits after 512 tokens correlate by {found['correlation of logits'][other]:.4f}."
        )
    rates = (f"{rate:.3g} {unit} ({kind})" for unit, (rate, kind) in found["limit"].items())
    print(f"Limits: {', '.join(rates)}.", flush=True)


def print_context(found):
    rows = [["tokens", "us/token", "memory, GB"]]
    rows += [[str(n), *(spread(t[OURS]) for t in table.values())] for n, table in found.items()]
    print_table(f"## context: {CONTEXT[0]}; {OURS}", rows)


COLOURS = {
    OURS: "#2a6f97",
    THEIRS: "#b0b0b0",
    LLAMA: "#c9a66b",
    INT4: "#74a892",
    LLAMA_4: "#e0c99a",
}


def draw(models, machine):
    """An SVG: how much of the machine's limit each side reaches, as horizontal bars."""
    y, zero, full = 84, 190, 400  # y of the last line; x of 0 %; width of 100 %
    parts = [text(20, 28, "Share of the machine's limit", 'font-size="16"')]
    parts += [text(20, 48 + 18 * n, words) for n, words in enumerate(machine.split("; ", 1))]
    for name, found in models.items():
        y += 32
        parts.append(text(20, y, f"{name}: {found['what']}", 'font-weight="bold"'))
        for label in ("decode x 1, tokens/s", "prefill 512, tokens/s"):
            sides = {}
            for table in reversed(
                found["figures"].values()
            ):  # of several figures of ours, the one beside theirs
                sides |= table[label]
            y += 6
            for side, colour in COLOURS.items():
                if side not in sides:
                    continue
                y += 16
                length, speed = full * sides[side]["share"], short(sides[side]["median"])
                parts.append(text(zero - 6, y, f"{label.split()[0]}, {side}", 'text-anchor="end"'))
                shape = f'x="{zero}" y="{y - 10}" width="{length:.1f}" height="12" fill="{colour}"'
                parts.append(f"<rect {shape}/>")
                words = f"{sides[side]['share']:.0%}, {speed} tokens/s"
                parts.append(text(zero + length + 6, y, words))
    line = f'<path d="M{zero} 94V{y + 8}m{full} 0V94" fill="none" stroke="#ccc"/>'
    parts.append(text(zero + full, 90, "100%", 'text-anchor="middle"'))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{y + 20}" font-size="12" '
        'font-family="sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join([line, *parts])
        + "\n</svg>\n"
    )


def text(x, y, words, extra=""):
    return f'<text x="{x:.0f}" y="{y}" {extra}>{html.escape(words)}</text>'
