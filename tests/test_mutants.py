"""Broken code must fail: each mutant is a mistake that somebody made, or easily could.

Each runs the tests over a copy of the project with one change in it. Slow: `make test-slow`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NUMBERS = [f"tests/test_{name}.py" for name in ("decoders", "nanochat", "cache", "decoding")]

# name: (file, what stands there, what stands there instead)
MUTANTS = {
    "textbook rotation sign": (
        "nanochat.py",
        "(x1 * cos + x2 * sin, x2 * cos - x1 * sin)",
        "(x1 * cos - x2 * sin, x2 * cos + x1 * sin)",
    ),
    "softcap before the cast": (
        "nanochat.py",
        "].float()\n        cap = self.config.final_logit_softcapping\n"
        "        return logits if cap is None else cap * torch.tanh(logits / cap)",
        "]\n        cap = self.config.final_logit_softcapping\n"
        "        return (logits if cap is None else cap * torch.tanh(logits / cap)).float()",
    ),
    "no norm after the embedding": (
        "nanochat.py",
        "        x = rms_norm(x, self.config.rms_norm_eps)\n        for",
        "        for",
    ),
    "no norm of the keys": ("nanochat.py", "k = rms_norm(rotate(k.float(), cos, sin), self.eps)",
                            "k = rotate(k.float(), cos, sin)"),
    "a cache that is ignored": (
        "nanochat.py",
        "k, v = kv.extend(k, v, step.start)",
        "kv.extend(k, v, step.start)",
    ),
    "the padded vocabulary not cut": ("nanochat.py", "[..., : self.config.vocab_size]", "[...]"),
    "a mask off by one, inward": ("cache.py", "(seen <= query)", "(seen < query)"),
    "a mask off by one, outward": ("cache.py", "(seen <= query)", "(seen <= query + 1)"),
    "is_causal for a later piece": (
        "cache.py",
        "(start == 0 or tokens == 1)",
        "(start == 0 or tokens > 0)",
    ),
    "padding that is seen": ("cache.py", "(seen <= query) & (seen != PADDING)", "seen <= query"),
    "positions that count padding": (
        "cache.py",
        "real.cumsum(1) - 1",
        "torch.arange(tokens, device=device)",
    ),
    "a shallow clone": ("cache.py", "copy.deepcopy(self)", "copy.copy(self)"),
    "rows reordered without their positions": (
        "cache.py",
        "self.positions, self.tokens = self.positions[rows], self.tokens[rows]",
        "self.tokens = self.tokens[rows]\n        self.positions = self.positions[:1].repeat("
        "len(rows), 1)",
    ),
    "the whole text fed for each token": (
        "decoding.py",
        "logits = model(tokens[:, None], cache=cache, logits_to_keep=1)[:, -1, :vocab_size]",
        "padded = torch.cat((padded, tokens[:, None]), 1)\n"
        "            logits = model(padded, logits_to_keep=1)[:, -1, :vocab_size]",
    ),
    "one first token for all samples": (
        "decoding.py",
        "seed + j for _",
        "seed + 0 * j for _",
    ),
    "a short row ended with the longest": ("decoding.py", "n < limit", "n < min(limits)"),
    "a penalty that forgets": ("decoding.py", "seen.scatter_(1, tokens[:, None], True)", "pass"),
    "a penalty without the prompt": (
        "decoding.py",
        "row[[i for i in ids if i < vocab_size]] = True",
        "pass",
    ),
    "Nemotron's gain without the one": (
        "nemotron.py",
        "self.weight.float() + 1",
        "self.weight.float()",
    ),
    "Nemotron turned by minus the angle": (
        "nemotron.py",
        "(x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest)",
        "(x1 * cos + x2 * sin, x2 * cos - x1 * sin, rest)",
    ),
    "the stop id given out": ("decoding.py", "on and i not in stop_ids", "on"),
    "top-p that keeps too few": ("sampling.py", "<= 1 - self.top_p", "<= 1.05 - self.top_p"),
    "longrope that never goes long": ("rope.py", "if length > trained", "if length > 10**9"),
    "yarn without its scale": ("rope.py", "scale = yarn_scale(rope)", "scale = 1.0"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fails(tmp_path, name):
    file, old, new = MUTANTS[name]
    for part in ("nanomodels", "tests", "generate.py", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    path = tmp_path / "nanomodels" / file
    code = path.read_text()
    assert code.count(old) == 1, f"{old!r} stands {code.count(old)} times in {file}"
    path.write_text(code.replace(old, new))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *NUMBERS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stdout[-2000:]
    print(name, "->", next(x for x in result.stdout.splitlines() if x.startswith("FAILED")))
