"""Tool calls: what a chat template writes is read back, and all else stays text."""

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from effort import examples
from hypothesis import given, settings

from nanomodels.generation.stream import ReasoningSplitter
from nanomodels.text import chat_template
from nanomodels.text.tool_calls import MARKS, parse

TEMPLATES = Path(__file__).parent / "data" / "templates"
NAMES = st.from_regex(r"[a-z_][a-zA-Z0-9_.-]{0,8}", fullmatch=True)
LETTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.text(LETTERS, max_size=12) | st.sampled_from(
    ["", "5", "True", "null", "None", "[1]", '{"a": 1}', "\n", " x ", "\n\nx\n", "<b>", '"', "é🙂"]
)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    TEXTS | NUMBERS | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
CALLS = st.lists(
    st.fixed_dictionaries({"name": NAMES, "arguments": st.dictionaries(NAMES, VALUES, max_size=4)}),
    min_size=1,
    max_size=3,
    unique_by=lambda call: call["name"],
)
KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array",
         dict: "object", type(None): "null"}  # fmt: skip


def tools_for(calls):
    """Schemas of tools whose parameters have the types of the calls' arguments."""

    def schema(n, value):
        kind = KINDS[type(value)]
        if kind == "string":
            return {"type": "string"}
        several = [{"type": kind}, {"type": [kind, "null"]}, {"type": kind, "nullable": True}]
        return [*several, {"anyOf": [{"type": "array"}, {"type": kind}]}][n % 4]

    functions = [
        {
            "name": call["name"],
            "parameters": {
                "type": "object",
                "properties": {
                    key: schema(n, value)
                    for n, (key, value) in enumerate(call["arguments"].items())
                },
            },
        }
        for call in calls
    ]
    return [{"type": "function", "function": each} if n % 2 else each
            for n, each in enumerate(functions)]  # fmt: skip


def answer_of(template, content, calls, tools):
    """What the model would have said, for the template to write this turn of a chat."""
    turn = {"role": "assistant", "content": content, "tool_calls": calls}
    chat = [{"role": "user", "content": "Q"}, turn, {"role": "user", "content": "go on"}]
    templates = {"default": (TEMPLATES / f"{template}.jinja").read_text()}
    text = chat_template.render(templates, chat, tools, None, bos_token="")
    begin, end = {
        "nano-v2": ("<SPECIAL_11>Assistant\n", "\n<SPECIAL_12>"),
        "nemotron-3": ("<|im_start|>assistant\n", "<|im_end|>"),
        "nemotron-mini": ("<extra_id_1>Assistant\n", "\n<extra_id_1>User\ngo on"),
    }[template]
    answer = text.split(begin, 1)[1].split(end, 1)[0]
    splitter = ReasoningSplitter()
    return splitter.push(answer) + splitter.finish()


@pytest.mark.parametrize("template", ["nano-v2", "nemotron-3", "nemotron-mini"])
@settings(max_examples=examples(200), deadline=None, derandomize=True)
@given(st.text(LETTERS, max_size=20).map(str.strip), CALLS, st.booleans())
def test_what_a_template_writes_is_read_back(template, content, calls, wrapped):
    tools = tools_for(calls)
    given = [{"type": "function", "function": call} for call in calls] if wrapped else calls
    answer = answer_of(template, content, given, tools)
    text, found, errors = parse(answer, tools)
    assert (text, errors) == (content, [])
    assert found == calls
    assert json.dumps(found, sort_keys=True) == json.dumps(calls, sort_keys=True), "1 is not True"


def test_a_value_of_nemotron_3_is_text_unless_the_schema_says_otherwise():
    def read(value, *tools):
        text = f"<tool_call><function=f><parameter=a>{value}</parameter></function></tool_call>"
        [call] = parse(text, tools)[1]
        return call["arguments"]["a"]

    def tool(schema):
        return {"name": "f", "parameters": {"properties": {"a": schema}}}

    for tools in ((), ({"name": "g"},), ({"name": "f"},), ({"name": "f", "parameters": None},)):
        assert read("5", *tools) == "5"
    for schema in ({}, True, {"enum": [1]}, {"type": "string"}, {"type": ["integer", "string"]}):
        assert read("5", tool(schema)) == "5"
        assert read("None", tool(schema)) == "None"
    for schema in ({"type": "integer"}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}):
        assert read("5", tool(schema)) == 5
        assert read("\n5\n", tool(schema)) == 5
        assert read("None", tool(schema)) is None
        assert read("five", tool(schema)) == "five"
    for schema in ({"type": ["string", "null"]}, {"type": "string", "nullable": True}):
        assert [read(v, tool(schema)) for v in ("None", "null", "no")] == [None, None, "no"]
    assert read("true", tool({"type": "boolean"})) is True
    assert read("\n\n x \n", tool({"type": "string"})) == "\n x "
    assert read("[" * 100_000, tool({"type": "array"})) == "[" * 100_000


GOOD = '<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>'


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("<TOOLCALL>[{]</TOOLCALL>", "Expecting property name"),
        ("<TOOLCALL></TOOLCALL>", "Expecting value"),
        ('<TOOLCALL>[{"name": "f"}]', "no </TOOLCALL> after its JSON"),
        ('<TOOLCALL>[{"name": "f"}] and</TOOLCALL>', "no </TOOLCALL> after its JSON"),
        ('<TOOLCALL>["f"]</TOOLCALL>', "must be an object with a name"),
        ('<TOOLCALL>[{"name": 5}]</TOOLCALL>', "must be an object with a name"),
        ('<TOOLCALL>[{"name": "f", "arguments": [1]}]</TOOLCALL>', "arguments must be an object"),
        ('<TOOLCALL>[{"name": "f"}, {}]</TOOLCALL>', "must be an object with a name"),
        ('<TOOLCALL>{"name": "f", "arguments": {"a": NaN}}</TOOLCALL>', "not JSON compliant"),
        ('<TOOLCALL>{"name": "f", "arguments": {"a": 1e999}}</TOOLCALL>', "not JSON compliant"),
        ('<TOOLCALL>{"name": "\\ud800"}</TOOLCALL>', "surrogates not allowed"),
        ("<TOOLCALL>" + "[" * 100_000 + "</TOOLCALL>", "recursion"),
        ("<TOOLCALL>" + "9" * 5000 + "</TOOLCALL>", "digits"),
        ("<toolcall>5</toolcall>", "must be an object with a name"),
        ("<tool_call>", "no </tool_call> after it"),
        ("<tool_call></tool_call>", "must be <function=NAME> ... </function>"),
        ("<tool_call><function=f></tool_call>", "must be <function=NAME> ... </function>"),
        ("<tool_call>x<function=f></function></tool_call>", "must be <function=NAME>"),
        ("<tool_call><function=></function></tool_call>", "must be <function=NAME>"),
        ("<tool_call><function=f>x</function></tool_call>", "parameters must be <parameter=NAME>"),
        (
            "<tool_call><function=f><parameter=a>1</function></tool_call>",
            "parameters must be <parameter=NAME>",
        ),
        ('<tool_call>{"name": "f"}</tool_call>', "must be <function=NAME>"),
    ],
)
def test_a_malformed_call_stays_text_and_is_told(call, words):
    text, calls, [error] = parse(f"  A {call} z ")
    assert (text, calls) == (f"  A {call} z ", [])
    assert words in error
    assert error.startswith(call[: call.index(">") + 1])
    if call.endswith(">") and call != "<tool_call>":
        text, calls, errors = parse(f"{GOOD}A {call} {GOOD}")
        assert (text, len(calls), len(errors)) == (f"A {call}", 2, 1)


def test_text_without_calls_is_left_as_it_is():
    for text in ("", "  a\n", "</TOOLCALL>", "<TOOL_CALL>[]", "<think>"):
        assert parse(text) == (text, [], [])
    assert parse(" a <TOOLCALL>[]</TOOLCALL>") == (" a ", [], [])
    both = 'one <toolcall>{"name": "f"}</toolcall> two ' + GOOD
    assert parse(both) == ("one  two", [{"name": "f", "arguments": {}}] * 2, [])
    inside = '<toolcall>{"name": "</toolcall>"}</toolcall>'
    assert parse(inside) == ("", [{"name": "</toolcall>", "arguments": {}}], [])


FRAGMENTS = [
    *MARKS, *MARKS.values(), "<function=f>", "</function>", "<parameter=a>", "</parameter>",
    '{"name": "f"}', '{"name": "f", "arguments": {"a": [1, null]}}', "[", "]", "{", "}", ", ", "\n",
    " ", "text", "5", '"', "\\", "\\ud800", "é", "NaN",
]  # fmt: skip


@settings(max_examples=examples(1000), deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join))
def test_no_text_raises_and_nothing_is_lost(answer):
    text, calls, errors = parse(answer, [{"name": "f"}])
    for call in calls:
        assert call.keys() == {"name", "arguments"}
    json.dumps(calls, allow_nan=False, ensure_ascii=False).encode()
    assert len(calls) > 0 or text == answer or "[]" in answer.replace(" ", "").replace("\n", "")
    for mark in MARKS:
        assert text.count(mark) >= sum(error.startswith(mark) for error in errors)
