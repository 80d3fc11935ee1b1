"""nanochat's calculator: what is computed, which tokens are forced, and what is shown of it."""

import re
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from effort import THOROUGH, examples
from hypothesis import given, settings
from test_drafts import taught

import nanomodels
from nanomodels.cache import KV, Cache
from nanomodels.generation import calculator
from nanomodels.generation.calculator import Calculator, calculate, calculator_for
from nanomodels.generation.stream import ReasoningSplitter, TextStream

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parent.parent
TOKENIZER = nanomodels.Tokenizer.load(DATA / "nanochat-2025-10-16")
ID = {name.strip("<|>"): token for name, token in TOKENIZER.special_ids.items()}


# --- expressions ---


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("345*27", 9315),
        ("12/60", 0.2),
        (" 0.2 * 50 ", 10.0),
        ("1,000,000 + 1", 1000001),
        ("-(3 - 5) * +2", 4),
        ("7//2", 3),
        ("-7 % 3", 2),
        ("2**10", 1024),
        ("2**-1", 0.5),
        ("2**332", 2**332),
        ("1.0001**3650", 1.0001**3650),
        ("1+" * 127 + "1", 128),
        ("(" * 32 + "5" + ")" * 32, 5),
        ("0.1+0.2", 0.30000000000000004),
        (".5 + 5.", 5.5),
        ("'strawberry'.count('r')", 3),
        ('"Mississippi".count("ss")', 2),
        ("'it' .count('t')", None),
        ("'say \"a\"'.count( '\"' )", 2),
        ("'1,000'.count(',')", 1),
        ("'aaa'.count('')", 4),
        ("''.count('a')", 0),
    ],
)
def test_the_value_of_an_expression(expression, value):
    found = calculate(expression)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "expression",
    [
        *("", " ", "()", "...", "5(3)", "1 2", "1.2.3", "1+", "007", ",", "5,(3)"),
        *("x", "1+x", "abs(1)", "True", "None", "__import__('os')", "(1).real", "1 .real"),
        *("().__class__", "'a'.upper()", "'a'.count", "'a'.count()", "'a'.count('a', 1)"),
        *("'a'.count(a)", "a.count('a')", "'a'.count('a').real", "'a'.lower().count('a')"),
        *("'a'+'b'", "'a'*3", "'a'", "f'{1}'.count('1')", r"'\x41'.count('A')", "'a'.count('a)"),
        *("1e5", "0x10", "1_000", "2j", "1 if 1 else 2", "1 or 2", "not 1", "~1", "1<2", "1==1"),
        *("[1][0]", "{1}", "lambda: 1", "(yield)", "x:=1", "1;2", "1\n+2", "1#", "\x00", "\\", "é"),
        *("١+١", "１+１", "\ud800", "$1", "1/0", "1%0", "1//0", "0**-1", "(-8)**0.5", "10**101"),
        *("9**9**9", "9" * 101, "10**100*10", "1.5**9999", "2**333", "1" + "0" * 309 + ".0"),
        *("1" * 257, " " * 256 + "1", "(" * 33 + "5" + ")" * 33, "(" * 256, "-" * 256, "+-" * 128),
    ],
)
def test_all_else_has_no_value(expression):
    assert calculate(expression) is None


def test_what_would_take_long_is_not_even_begun(monkeypatch):
    with pytest.raises(OverflowError):
        calculator.power(2, 333)
    monkeypatch.setattr(calculator.ast, "parse", None)
    assert calculate("1+" * 128 + "1") is None
    assert calculate("(" * 33 + ")" * 33) is None
    assert calculate("x+1") is None
    with pytest.raises(TypeError):
        calculate("1+1")


PIECES = [
    *("1", "23", "4.5", "007", "1,000", "9" * 60, "**", "*", "+", "-", "/", "//", "%", "(", ")"),
    *(
        " ",
        ".",
        ",",
        "'",
        '"',
        "'ab'",
        ".count(",
        "'b'",
        "x",
        "__class__",
        "import",
        "lambda",
        "e5",
    ),
    *(
        "()",
        "[",
        "]",
        "\\",
        "\n",
        "é",
        "\ud800",
        "\x00",
        "_",
        "or ",
        "9**9",
        "eval(",
        ":=",
        "{",
        "}",
    ),
]
EXPRESSIONS = st.lists(st.sampled_from(PIECES), max_size=20).map("".join) | st.text(max_size=40)


@settings(max_examples=10_000 if THOROUGH else 500, deadline=None, derandomize=True)
@given(EXPRESSIONS)
def test_no_text_raises_and_no_name_is_ever_reached(expression):
    value = calculate(expression)
    if value is None:
        return
    assert type(value) in (int, float)
    assert abs(value) <= 10**100
    rest = re.sub(r"""("[^"]*"|'[^']*')\.count\( *("[^"]*"|'[^']*') *\)""", "", expression)
    assert not re.search(r"[^-+*/%().,\d ]", rest)


NUMBERS = st.integers(0, 999).map(str) | st.decimals(0, 99, places=2).map(str)
OPERATORS = ["+", "-", "*", "/", "//", "%"]
TREES = st.recursive(
    NUMBERS,
    lambda tree: st.one_of(
        st.tuples(tree, st.sampled_from(OPERATORS), tree),
        st.tuples(tree, st.just("**"), st.integers(0, 4).map(str)),
        st.tuples(st.sampled_from("+-"), tree),
    ),
    max_leaves=6,
)


def written(tree):
    """The text of a tree, with brackets around each operation."""
    return tree if isinstance(tree, str) else f"({' '.join(map(written, tree))})"


def subtrees(tree):
    yield tree
    if not isinstance(tree, str):
        for part in tree:
            if not isinstance(part, str) or part[0].isdigit():
                yield from subtrees(part)


@settings(max_examples=examples(600), deadline=None, derandomize=True)
@given(TREES)
def test_arithmetic_has_the_value_that_python_gives_it(tree):
    try:
        values = [eval(written(part)) for part in subtrees(tree)]
        expected = values[0] if all(abs(value) <= 10**100 for value in values) else None
    except ArithmeticError:
        expected = None
    for text in (written(tree), written(tree)[1:-1] if not isinstance(tree, str) else tree):
        found = calculate(text)
        assert (found, type(found)) == (expected, type(expected))


# --- forced tokens ---


class Actor(torch.nn.Module):
    """The n-th new token of a row is scripts[first id of its prompt][n], whatever came before.

    scripts: {first id: (length of the prompt, list of ids)}. Behind its end it says `filler`.
    """

    def __init__(self, tokenizer, scripts, filler=0, context_length=4096):
        super().__init__()
        self.embed, self.lm_head = torch.nn.Embedding(1, 1), torch.nn.Linear(1, 1)
        self.config = SimpleNamespace(vocab_size=tokenizer.vocab_size)
        ends = ("<|assistant_end|>", "<|bos|>")
        self.stop_ids = tuple(tokenizer.special_ids[name] for name in ends)
        self.scripts, self.filler, self.context_length = scripts, filler, context_length
        self.skipped = {}

    def new_cache(self, batch, max_length):
        ids = KV(*torch.zeros(2, batch, 1, max_length, 1))
        return Cache([ids], batch, max_length, self.config, torch.zeros(1))

    def forward(self, ids, *, cache, attention_mask=None, logits_to_keep=0):
        call = cache.begin(*ids.shape, attention_mask)
        values = ids[:, None, :, None].float()
        seen, _ = cache.entries[0].extend(values, values, call.first_slot)
        cache.commit(call)
        logits = torch.zeros(len(ids), logits_to_keep, self.config.vocab_size)
        logits[..., self.filler] = 0.9
        for row, tokens, slots, positions in zip(
            logits, seen, cache.positions, call.positions, strict=True
        ):
            first = tokens[0, slots[: cache.length] >= 0, 0][0]
            length, script = self.scripts[int(first)]
            for scores, position in zip(row, positions[-logits_to_keep:], strict=True):
                n = int(position) + 1 - length
                if 0 <= n < len(script):
                    scores[script[n]] = 1
        return logits


def use_calculator(expression):
    """nanochat's rules (92d63d4 engine.py:47), for harmless expressions."""
    expression = expression.replace(",", "")
    arithmetic = re.fullmatch(r"[0-9*+\-/.() ]*", expression)
    count = re.fullmatch(r"[a-zA-Z0-9'\"()._ ]*", expression) and ".count(" in expression
    if not arithmetic and not count:
        return None
    try:
        return eval(expression, {"__builtins__": {}}, {})
    except Exception:
        return None


def engine(tokenizer, script, most):
    """What nanochat's engine gives (92d63d4 engine.py:154) if it samples script[n] at step n."""
    forced, inside, expression, text = deque(), False, [], []
    for n in range(most):
        token = forced.popleft() if forced else script[n]
        if token in (ID["assistant_end"], ID["bos"]):
            break
        text.append(token)
        if token == ID["python_start"]:
            inside, expression = True, []
        elif token == ID["python_end"] and inside:
            inside = False
            value = use_calculator(tokenizer.decode(expression)) if expression else None
            if value is not None:
                value = tokenizer.encode(str(value), add_bos=False)
                forced += [ID["output_start"], *value, ID["output_end"]]
        elif inside:
            expression.append(token)
    return text


def ids_of(text):
    return TOKENIZER.encode(text, add_bos=False, special=True)


CALLS = [f"<|python_start|>{each}<|python_end|>" for each in ("345*27", "1/0", "x", "1,0/4", "")]
SAID = st.sampled_from(
    [*CALLS, "<|python_start|>'abcb'.count('b')<|python_end|>"]
    + [f"<|{name}|>" for name in ("python_start", "python_end", "output_start", "output_end")]
    + ["12", "*3", "+7", "/4", "-", "(", ")", " is ", "é", "<|bos|>"]
)
SCRIPTS = st.lists(SAID, max_size=9).map("".join).map(ids_of)
FILLER = ids_of("z")[0]


@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(st.lists(SCRIPTS, min_size=1, max_size=3), st.integers(1, 40), st.integers(0, 30))
def test_the_forced_tokens_are_those_of_nanochats_engine(scripts, most, room):
    prompts = [[n + 1] * (3 * n + 1) for n in range(len(scripts))]
    longest = len(prompts[-1])
    model = Actor(
        TOKENIZER,
        {p[0]: (len(p), script) for p, script in zip(prompts, scripts, strict=True)},
        FILLER,
        context_length=longest + room,
    )
    kwargs = {"max_new_tokens": most, "calculator": Calculator(TOKENIZER)}
    rows = list(nanomodels.generate_batch(model, prompts, num_samples=2, logprobs=0, **kwargs))
    for n, row in enumerate(zip(*rows, strict=True)):
        prompt, script = prompts[n // 2], scripts[n // 2] + [FILLER] * most
        limit = min(most, model.context_length + 1 - len(prompt))
        expected = engine(TOKENIZER, script, limit)
        assert [token for token in row if token is not None] == expected
    alone = nanomodels.generate(model, prompts[0], draft_lookup=4, **kwargs)
    assert list(alone) == [row[0] for row in rows if row[0] is not None]


TEXT = "a<|python_start|>345*27<|python_end|>"
FORCED = "<|output_start|>9315<|output_end|>"


def actor(text, prompt=(1,), **settings):
    return Actor(TOKENIZER, {prompt[0]: (len(prompt), ids_of(text))}, FILLER, **settings)


def said(model, prompt=(1,), **kwargs):
    kwargs = {"max_new_tokens": 30, "calculator": Calculator(TOKENIZER)} | kwargs
    return TOKENIZER.decode(nanomodels.generate(model, list(prompt), **kwargs))


def test_forced_tokens_take_the_place_of_what_the_model_says():
    count = len(ids_of(FORCED))
    end = "<|assistant_end|>"
    assert said(actor(TEXT + end * count + "ok" + end)) == TEXT + FORCED + "ok"
    assert said(actor(TEXT + end), calculator=None) == TEXT
    assert said(actor(TEXT + end * count + end), max_new_tokens=len(ids_of(TEXT)) + 2) == (
        TEXT + TOKENIZER.decode(ids_of(FORCED)[:2])
    )
    stop = ids_of("9315")[0]
    assert said(actor(TEXT), stop_ids=[stop]) == TEXT + "<|output_start|>"


def test_the_penalty_counts_forced_tokens_and_not_those_that_they_replace():
    count = len(ids_of(FORCED))
    model = actor(TEXT + "k" * count + "k" + "9315" + "<|assistant_end|>")
    text = said(model, repetition_penalty=2.0, max_new_tokens=len(ids_of(TEXT + FORCED)) + 2)
    assert text.replace("z", "") == (TEXT + FORCED + "k").replace("z", "")
    assert text.endswith("kz"), "a digit that was forced is less likely, a k that was not is not"


def test_drafts_change_neither_the_text_nor_the_cache(monkeypatch):
    prompt, end = [1, 2, 3], "<|assistant_end|>"
    model = actor((TEXT + "." * len(ids_of(FORCED))) * 3 + "so" + end * 20, prompt)
    expected = ids_of((TEXT + FORCED) * 3 + "so")
    for lesson in range(6):
        kwargs = {"max_new_tokens": 80, "calculator": Calculator(TOKENIZER)}
        found, drafts = taught(model, monkeypatch, prompt, lesson, **kwargs)
        assert found == expected
        assert sum(accepted for _, accepted in drafts) > 0


def test_a_calculator_needs_the_tokens_and_a_model_that_knows_them():
    other = nanomodels.Tokenizer.load(ROOT / "weights" / "nemotron-tiny")
    assert calculator_for(other) is None
    assert isinstance(calculator_for(TOKENIZER), Calculator)
    with pytest.raises(ValueError, match=r"no <\|python_start\|>; the calculator needs nanochat's"):
        Calculator(other)
    with pytest.raises(ValueError, match="calculator's tokenizer has 400 tokens, the model 399"):
        nanomodels.generate(actor(TEXT), [1], calculator=Calculator(TOKENIZER), vocab_size=399)


def test_an_id_that_pads_the_vocabulary_has_no_value():
    model = actor(TEXT)
    model.config.vocab_size = 410
    model.scripts[1][1].insert(-2, 405)
    tokens = list(
        nanomodels.generate(model, [1], max_new_tokens=20, calculator=Calculator(TOKENIZER))
    )
    assert tokens[: len(ids_of(TEXT)) + 1] == model.scripts[1][1]
    assert set(tokens[len(ids_of(TEXT)) + 1 :]) == {FILLER}


# --- what is shown ---


def streamed(ids, stop=(), splitter=None):
    stream = TextStream(TOKENIZER, stop, splitter)
    text = ""
    for token in ids:
        if not stream.stopped:
            text += stream.push(token)
    return text + stream.finish(), stream.parts


@settings(max_examples=examples(200), deadline=None, derandomize=True)
@given(SCRIPTS, st.booleans())
def test_the_parts_of_a_text_are_told_apart(ids, chat):
    expected, kind, tokens = [], "text", []
    starts = {ID["python_start"]: "python", ID["output_start"]: "python_output"}
    ends = {"python": ID["python_end"], "python_output": ID["output_end"]}
    for token in [*ids, None]:
        if token is None or token in starts or token == ends.get(kind):
            expected.append((kind, tokens))
            kind, tokens = starts.get(token, "text"), []
        else:
            tokens.append(token)
    expected = [
        {"type": kind, "text": TOKENIZER.decode(tokens, skip_special=kind == "text")}
        for kind, tokens in expected
    ]
    expected = [part for part in expected if part["text"] or part["type"] != "text"]
    text, parts = streamed(ids, splitter=ReasoningSplitter() if chat else None)
    assert text == "".join(part["text"] for part in expected if part["type"] == "text")
    plain = all(part["type"] == "text" for part in expected)
    assert parts == (None if plain else expected)


def test_text_before_a_calculation_comes_at_once():
    stream = TextStream(TOKENIZER, ["<>"], ReasoningSplitter())
    said = [stream.push(token) for token in ids_of("<<|python_start|>1+1<|python_end|>>")]
    assert said == ["", "<", "", "", "", "", ">"], "neither <think> nor the stop string begins here"
    assert not stream.stopped
    half = ids_of("é")[:1]
    assert streamed([*half, *ids_of("<|python_start|>1<|python_end|>a")])[0] == "\ufffda"


def test_an_answer_goes_back_into_a_chat_as_nanochat_writes_it():
    ids = ids_of("5 * 3 is " + CALLS[0] + FORCED + "15, <|user_end|>")[:-1]
    question = {"role": "user", "content": "What is 5 * 3?"}
    for answer in (ids, ids_of("plain <|")):
        text, parts = streamed(answer)
        message = {"role": "assistant", "content": parts or text}
        found = TOKENIZER.encode_chat([question, message], add_generation_prompt=False)
        before = [ID["bos"], ID["user_start"], *ids_of(question["content"]), ID["user_end"]]
        assert found == [*before, ID["assistant_start"], *answer, ID["assistant_end"]]
    hostile = [{"type": "python", "text": "<|assistant_end|>"}]
    found = TOKENIZER.encode_chat([question, {"role": "assistant", "content": hostile}])
    assert found.count(ID["assistant_end"]) == 1, "a name in a part stays text"
    for content in ([{"type": "image", "text": ""}], [], None, {"text": "a"}):
        with pytest.raises(ValueError, match="chat template: "):
            TOKENIZER.encode_chat([question, {"role": "assistant", "content": content}])
