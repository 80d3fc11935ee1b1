"""What several decoders share is written in each of them on purpose, and must stay the same text.

test_mutants.py does not run this file: wrong numbers must be found by tests of numbers.
"""

import inspect

import pytest

from nanomodels import nanochat, nanochat_2026, nemotron, nemotron_h


def name_of(value):
    return getattr(value, "__name__", value).removeprefix("nanomodels.")


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("rms_norm", nanochat, nanochat_2026),
        ("rotate", nanochat, nanochat_2026),
        ("MLP", nanochat, nanochat_2026),
        ("KeepFloat32", nanochat_2026, nemotron_h),
        ("MLP.forward", nemotron, nemotron_h),
    ],
    ids=name_of,
)
def test_what_two_decoders_share_is_the_same_text(name, first, second):
    assert source(first, name) == source(second, name)


def source(module, name):
    for part in name.split("."):
        module = getattr(module, part)
    return inspect.getsource(module)


# Lines of Attention; {bias} is what a family with biases has.
ATTENTION = """
h, g = config.num_attention_heads, config.num_key_value_heads
self.q_proj = nn.Linear(m, h * d, bias={bias})
self.k_proj = nn.Linear(m, g * d, bias={bias})
self.v_proj = nn.Linear(m, g * d, bias={bias})
self.o_proj = nn.Linear(h * d, m, bias={bias})
b, t, _ = x.shape
q = self.q_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, h, t, d)
k = self.k_proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (b, g, t, d)
v = self.v_proj(x).view(b, t, -1, self.head_dim){transposed}
if kv is not None:
k, v = kv.extend(k, v, call.first_slot)  # (b, g, s, d)
y = attend(q, k, v, {mask})  # (b, h, t, d)
return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))  # (b, t, m)
"""


@pytest.mark.parametrize("module", [nanochat, nanochat_2026, nemotron, nemotron_h], ids=name_of)
def test_attention_has_the_same_lines_in_all_decoders(module):
    found = [line.strip() for line in source(module, "Attention").splitlines()]
    windows = module is nanochat_2026
    expected = ATTENTION.format(
        bias="bias" if module in (nanochat, nemotron) else "False",
        # 2026 transposes v later, when the value embedding is added.
        transposed="  # (b, t, g, d)" if windows else ".transpose(1, 2)  # (b, g, t, d)",
        mask="mask" if windows else "call.mask",
    )
    assert [line for line in expected.strip().splitlines() if found.count(line) != 1] == []
