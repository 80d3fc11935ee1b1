"""Chat prompts, compared byte for byte with those of transformers."""

import enum
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import CALM, added, family_131072, trained, write
from transformers import PreTrainedTokenizerFast

from nanomodels.text import sandbox
from nanomodels.text.chat_template import NANOCHAT_TEMPLATE
from nanomodels.text.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"
NANOCHAT = DATA / "nanochat-2025-10-16"
CHATML = """{{ bos_token }}
{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<|im_start|>system
<|im_end|>
    {% endif %}
<|im_start|>{{ message['role'] }}
{{ message.content | trim }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{{ '<think>' if enable_thinking is not defined or enable_thinking else '<think></think>' -}}
{% endif %}
"""
TOOLS = """{%- macro show(tool) -%}<{{ tool.function.name }}>{{ tool | tojson }}{%- endmacro -%}
{%- if tools %}# Tools{% for tool in tools %}{{ show(tool) }}
{{ tool | tojson(indent=2) }}{{ tool | tojson(ensure_ascii=true, sort_keys=true) }}
{{- tool | tojson(separators=(',', ':')) }}{% endfor %}{% else %}no tools {{ tools }}{% endif %}
{% for m in messages %}
{{ m.role }}: {% if m.content is defined %}{{ m.content }}{% else %}nothing{% endif %}
{%- for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}
{% endfor %}
{{ documents }}{% for d in documents or [] %}[{{ d.title }}] {{ d.text }}{% endfor %}"""
LOOPS = """{% set ns = namespace(n=0, last='') %}
{% for m in messages %}
  {% if m.role == 'system' %}{% continue %}{% endif %}
  {% set ns.n = ns.n + 1 %}{% set ns.last = m.content %}
  {{ loop.index }}/{{ messages | length }}: {{ m.content[:5] | upper }} {{ dict(a=m.role, b=[1]) }}
  {% if ns.n == 3 %}{% break %}{% endif %}
{% endfor %}
{{ ns.n }}{{ ns.last }}{{ eos_token }}{{ unk_token }}|{{ pad_token }}|{{ think_token }}
{{ x | default('-') }}
{{ messages | map(attribute='role') | join(',') }} {{ '%05d' % 42 }}
{{ "<&>'" | e }} {{ true }} {{ none }}"""
GENERATION = """{% for m in messages %}
{% set shout = m.content | upper %}
{% if m.role == 'assistant' %}{% generation %}{% set shout = 'in' %}{{ m.content }}{{ shout }}
{% endgeneration %}{% else %}{{ m.role }}:{{ shout }}{% endif %}{{ shout }}
{%- generation -%}  {{ m.reasoning_content }}|{{ m.thinking }}  {%- endgeneration -%}
{{ m.keys() | list }}
{% endfor %}
{{ strftime_now('%Y') }}"""
FAILING = """{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}
{{ bos_token }}"""
TEMPLATES = {
    "chatml": CHATML,
    "tools": TOOLS,
    "loops": LOOPS,
    "generation": GENERATION,
    "nanochat": NANOCHAT_TEMPLATE,
    "failing": FAILING,
    "trailing newline": "{{ messages[0].content }}\n\n",
    "windows lines": "{% if true %}\r\n  a\r\n{% endif %}\r\n{{ messages[0].content }}",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "wetter",
        "description": "Das <Wetter> für eine Stadt & 日本",
        "parameters": {"type": "object", "properties": {"stadt": {"type": "string"}}, "n": 1.0},
    },
}


class Role(enum.StrEnum):
    USER = "user"


CHATS = {
    "one": [{"role": "user", "content": " Hi <b>\n"}],
    "turns": [
        {"role": "user", "content": "Grüße, 世界 🙂"},
        {"role": "assistant", "content": "  Hello & bye  "},
        {"role": "user", "content": "{{ 7 * 7 }} {% raw %}"},
    ],
    "system": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2", "reasoning": "because"},
        {"role": "user", "content": "3", "name": None},
        {"role": "assistant", "content": "4", "thinking": "t", "reasoning_content": None},
    ],
    "calls": [
        {"role": Role.USER, "content": "Wie ist das Wetter?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"function": {"name": "wetter", "arguments": {"stadt": "Zürich", "n": (1, 2)}}}
            ],
        },
    ],
}
SETTINGS = {
    "plain": {},
    "no generation prompt": {"add_generation_prompt": False},
    "tools": {"tools": [TOOL]},
    "empty tools": {"tools": []},
    "variables": {"enable_thinking": False, "x": {"y": [1, None, "é"]}, "bos_token": "<other>"},
    "documents": {"documents": [{"title": "T", "text": "ü"}]},
}
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
    "pad_token": None,
    "think_token": "<|start|>",
}


def both(folder, config, **files):
    """Our tokenizer and transformers' from one folder; files: {name of a template file: text}."""
    data = json.loads(trained("nanochat"))
    write(folder, data, tokenizer_config=config)
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".jinja").write_bytes(text.encode())
    return Tokenizer.load(folder), PreTrainedTokenizerFast.from_pretrained(folder)


def rendered(render):
    """The result of render(), or "refused" with the library that refused."""
    try:
        return render()
    except Exception as error:
        assert "\n" not in str(error)
        return f"refused: {type(error).__module__.split('.')[0]}"


def assert_same(ours, reference, chat, **settings):
    settings = {"add_generation_prompt": True} | settings
    expected = rendered(lambda: reference.apply_chat_template(chat, tokenize=False, **settings))
    found = rendered(lambda: ours.render_chat(chat, **settings))
    if expected.startswith("refused"):
        assert found == "refused: builtins"
    else:
        assert found == expected


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_is_rendered_as_transformers_renders_it(tmp_path, template):
    ours, reference = both(tmp_path, CONFIG | {"chat_template": TEMPLATES[template]})
    assert ours.chat_template == TEMPLATES[template]
    for chat in CHATS.values():
        for settings in SETTINGS.values():
            assert_same(ours, reference, chat, **settings)
            if template in ("chatml", "generation"):
                ids = (
                    reference.apply_chat_template(
                        chat, add_generation_prompt=True, return_dict=False, **settings
                    )
                    if "add_generation_prompt" not in settings
                    else None
                )
                assert ids is None or ours.encode_chat(chat, **settings) == ids


@pytest.mark.parametrize(
    "config, files",
    [
        ("config", {}),
        ("config", {"chat_template": "file"}),
        (None, {"chat_template": "file"}),
        ([("default", "first"), ("tool_use", "second")], {}),
        ([("tool_use", "second")], {}),
        ([("default", "first"), ("tool_use", "second")], {"chat_template": "file"}),
        ("config", {"chat_template": "file", "additional_chat_templates__tool_use": "third"}),
        ("config", {"additional_chat_templates__tool_use": "third"}),
        (None, {}),
    ],
)
def test_the_template_is_the_one_that_transformers_takes(tmp_path, config, files):
    if isinstance(config, list):
        config = [{"name": name, "template": text} for name, text in config]
    ours, reference = both(
        tmp_path, CONFIG | ({"chat_template": config} if config else {}), **files
    )
    (tmp_path / "chat_template.json").write_text('{"chat_template": "of a processor"}')
    for tools in (None, [], [TOOL]):
        assert_same(ours, reference, CHATS["one"], tools=tools)


def test_a_prompt_has_one_bos(tmp_path):
    data = json.loads(trained("nanochat"))
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    config = CONFIG | {"chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    tokenizer = Tokenizer.load(write(tmp_path, data, tokenizer_config=config))
    assert tokenizer.encode("Hello")[0] == 0 and tokenizer.encode("Hello").count(0) == 1
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
    assert ids == tokenizer.encode("Hello")


def test_a_nanochat_folder_has_nanochats_own_format(tmp_path):
    tokenizer = Tokenizer.load(NANOCHAT)
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    text = (
        "<|bos|><|user_start|>Be kind.\n\n Hi <|user_end|><|assistant_start|>Hello<|assistant_end|>"
        "<|user_start|>Bye<|user_end|>"
    )
    assert tokenizer.render_chat(chat, add_generation_prompt=False) == text
    assert tokenizer.render_chat(chat) == text + "<|assistant_start|>"
    bye = tokenizer.encode("Bye", add_bos=False)
    ids = [391, 392, *bye, 393, 394]  # each segment is encoded alone, as nanochat does
    assert tokenizer.encode_chat([{"role": "user", "content": "Bye"}]) == ids
    (tmp_path / "tokenizer.pkl").write_bytes((NANOCHAT / "tokenizer.pkl").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("mine")
    assert Tokenizer.load(tmp_path).render_chat(chat) == "mine"


@pytest.mark.parametrize(
    "chat, complaint",
    [
        ([{"role": "assistant", "content": "x"}], "must take turns, found assistant"),
        ([{"role": "user", "content": "x"}] * 2, "must take turns, found user"),
        ([{"role": "system", "content": "x"}], "needs a user message"),
        ([{"role": "user", "content": ["x"]}], "content must be a string"),
        ([{"role": "user"}], "content must be a string"),
        ([], "at least one"),
        (["x"], "at least one"),
        ([{"role": "user", "content": object()}], "a chat holds object"),
    ],
)
def test_a_chat_that_nanochat_does_not_know_is_refused(chat, complaint):
    with pytest.raises(ValueError, match=complaint):
        Tokenizer.load(NANOCHAT).render_chat(chat)


@pytest.mark.parametrize(
    "template, complaint",
    [
        ("{{ raise_exception('a\nb') }}", "chat template: a b"),
        ("{% if %}", "chat template: Expected an expression"),
        ("{{ messages[0].nothing.more }}", "chat template: .* has no attribute 'nothing'"),
        ("{{ messages[0].content + 1 }}", "chat template: can only concatenate str"),
        ("{{ 1 // 0 }}", "chat template: .*division"),
        ("{{ ''.__class__.__mro__ }}", "chat template: .*unsafe"),
        ("{{ messages.append(1) }}", "chat template: .*unsafe"),
        ("{{ range(10 ** 9) }}", "chat template: Range too big"),
    ],
)
def test_a_template_that_fails_is_one_line(tmp_path, template, complaint):
    data = json.loads(trained("nanochat"))
    tokenizer = Tokenizer.load(write(tmp_path, data, tokenizer_config={"chat_template": template}))
    with pytest.raises(ValueError, match=complaint) as caught:
        tokenizer.render_chat(CHATS["one"])
    assert "\n" not in str(caught.value)


RUNAWAY = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a list": "{% set r = range(99999) | list %}{% for i in r %}{{ -1 in r }}{% endfor %}",
    "a recursive loop": "{% for i in [[]] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(50) }}",
    "text in a macro": "{% macro f() %}{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}"
    "{% endmacro %}{{ f() }}",
    "written": "{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}",
    "text *": "{{ 'a' * (3 * 10**9) }}",
    "* text": "{{ (3 * 10**9) * 'a' }}",
    "list *": "{{ ([1] * (3 * 10**9)) | length }}",
    "%": "{{ '%1000000000d' % 1 }}",
    "% *": "{{ '%*d' % (1000000000, 1) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:>3000000000}'.format(1) }}",
    "format of a format": "{{ '{:{w}}'.format(1, w=3000000000) }}",
    "zfill": "{{ 'a'.zfill(3000000000) }}",
    "center": "{{ 'a'.center(3000000000) }}",
    "center filter": "{{ 'a' | center(3000000000) }}",
    "indent": "{{ 'a\nb' | indent(3000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(2000000000) }}",
    "to_bytes": "{{ (1).to_bytes(3000000000, 'big') | length }}",
    "tojson": "{{ [1, x] | tojson(indent=2000000000) }}",
    "**": "{{ 7**(10**8) }}",
    "round": "{{ 7 | round(10**8) }}",
    "round down": "{{ 7.5 | round(10**8, 'floor') }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list | length }}",
    "squares": "{% set ns = namespace(x=99) %}{% for i in range(40) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "join": "{{ ('a' * 10**6) | join('b' * 10**6) }}",
    "join of a list": "{{ ('b' * 10**6).join(['a'] * 10**6) }}",
    "replace": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "replace filter": "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
    "translate": "{{ ('a' * 10**6).translate({97: 'b' * 10**6}) }}",
    "many texts": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}"
    "{% set ns.x = ns.x + ['a' * (10**7 + i)] %}{% endfor %}",
} | {
    f"doubling by {how}": "{% set ns = namespace(x='ab', y='ab') %}{% for i in range(40) %}"
    + "{% set ns.x = " + how + " %}{% set ns.y = " + how.replace("x", "y") + " %}{% endfor %}"
    "{{ ns.x == ns.y }}{{ ns.x }}"
    for how in (
        "[ns.x, ns.x]",
        "(ns.x, ns.x)",
        "{1: ns.x, 2: ns.x}",
        "dict(a=ns.x, b=ns.x)",
        "ns.x ~ ns.x",
        "ns.x + ns.x",
        "ns.x * 2",
        "'%s%s' % (ns.x, ns.x)",
        "'{}{}'.format(ns.x, ns.x)",
        "[ns.x] | batch(2, ns.x) | list",
        "[ns.x] | map('replace', 'a', ns.x) | join",
    )
}  # fmt: skip
LIMITED = """import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
from nanomodels.text import sandbox
from nanomodels.text.chat_template import render
sandbox.SECONDS = 0.5
for template in sys.stdin.read().split("@@"):
    began = time.process_time()
    try:
        text = render({"default": template}, [{"role": "user", "content": "x"}], None, None, x=[])
        print("rendered", len(text), end=" ")
    except ValueError as error:
        print(error, end=" ")
    print("SLOW" if time.process_time() - began > 5 else "")
"""


ORDINARY = [
    "{{ ['a', 'b'] | map('upper') | join(', ') }}",
    "{{ [{'a': 1}, {'a': 2}] | join('-', attribute='a') }}",
    "{{ 7.456 | round(1) }}{{ '%-5s|' % 'a' }}{{ '{:>5}{}'.format('b', 1) }}{{ [3, 1] | sort }}",
    "{{ 'abc' | center(9) }}{{ [1, 2, 3] | batch(2) | list }}{{ [1, 2] | sum }}{{ 2**10 }}",
    "{% for i in [1, 2, 3] %}{{ loop.revindex }}{{ loop.length }}{{ loop.last }}{% endfor %}",
    "{% for i in [1, [2]] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}"
    "{% endif %}{% endfor %}{{ 'a,b'.split(',') | first }}{{ ('a', 'b') + ('c',) }}{{ 'x' * 3 }}",
    "{{ nothing }}{{ nothing ~ 'x' ~ 1 }}{{ 'a\nb' | indent(2) }}{{ [1, [2, 'é']] | join('|') }}",
    "{{ {'a': [1]} | tojson(indent=2) }}{{ dict(a=1) | items | list }}{{ ','.join('abc') }}",
    "{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{{ f('a') }}"
    "{% call f('b') %}c{% endcall %}{% filter upper %}{{ f('d') }}{% endfilter %}",
    "{% set x %}{{ 'a' }}b{% endset %}{{ x }}{% for c in x %}{{ c }}{% else %}-{% endfor %}",
    "{% for k, v in {'a': 1, 'b': 2}.items() if v > 1 %}{{ k }}{% endfor %}{{ 'a' in ['a', x] }}",
    "{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{{ messages | groupby('role') }}",
]  # fmt: skip


@pytest.mark.parametrize("template", ORDINARY)
def test_the_bounds_change_nothing_in_ordinary_templates(tmp_path, template):
    ours, reference = both(tmp_path, CONFIG | {"chat_template": template})
    assert not rendered(lambda: ours.render_chat(CHATS["turns"])).startswith("refused")
    assert_same(ours, reference, CHATS["turns"])


def test_a_template_that_runs_away_is_one_line():
    """Each took gigabytes, or minutes and more; here they have half a second and 2 GB."""
    run = [sys.executable, "-c", LIMITED]
    given = "@@".join(RUNAWAY.values())
    done = subprocess.run(
        run, input=given, capture_output=True, text=True, timeout=280, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-1000:]
    wrong = {
        name: line
        for name, line in zip(RUNAWAY, lines, strict=True)
        if not line.startswith("chat template: ") or "SLOW" in line
    }
    assert not wrong


def test_a_template_that_takes_long_to_compile_is_refused(tmp_path):
    """2 MB of "{{ x }}" took half a minute."""
    long = "{{ x }}" * 20_000
    config = {"chat_template": long}
    tokenizer = Tokenizer.load(
        write(tmp_path, json.loads(trained("nanochat")), tokenizer_config=config)
    )
    with pytest.raises(ValueError, match="chat template: it has 140,000 characters; at most"):
        tokenizer.render_chat(CHATS["one"])
    (tmp_path / "chat_template.jinja").write_text(long)
    with pytest.raises(ValueError, match="chat_template.jinja: has 140000 bytes; at most 100000"):
        Tokenizer.load(tmp_path)


def test_a_long_chat_has_more_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", -0.01)
    tokenizer = Tokenizer.load(NANOCHAT)
    with pytest.raises(ValueError, match="chat template: it takes too long"):
        tokenizer.render_chat([{"role": "user", "content": ""}])
    chat = [{"role": "user", "content": "a" * 100_000}]
    assert "a" * 100_000 in tokenizer.render_chat(chat)


def test_tools_and_documents_must_be_data(tmp_path):
    for settings in ({"tools": [print]}, {"documents": ["text"]}):
        with pytest.raises(ValueError, match="tools must be a list of JSON schemas"):
            Tokenizer.load(NANOCHAT).render_chat(CHATS["one"], **settings)


def test_names_in_messages_become_tokens_as_in_transformers(tmp_path):
    data = json.loads(trained("nanochat"))
    data["added_tokens"].append(added("<think>", 700, special=False))
    write(tmp_path, data, tokenizer_config=CONFIG | {"chat_template": "{{ messages[0].content }}"})
    chat = [{"role": "user", "content": "<think> a</s>b <s>"}]
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = reference.apply_chat_template(chat, return_dict=False)
    assert Tokenizer.load(tmp_path).encode_chat(chat, trust_text=True) == ids


# --- the templates of Nemotron Nano v2 and Nemotron 3 ---

FAMILIES = ("nano-v2", "nemotron-3")
STREET = {
    "name": "straße",
    "description": "  Finds a <street> & its ZIP 🙂\n",
    "parameters": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": " Which? \n", "minLength": 1},
            "kind": {"type": ["string", "null"], "enum": ["allée", "rue", None], "default": None},
            "at": {"type": "object", "properties": {"x": {"type": "number"}}, "extra": [1, "é"]},
            "anything": {},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
    "strict": True,
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time"}}
TEXTS = st.sampled_from(
    [
        "",
        " ",
        "Hi",
        " Où?\n",
        '7 < 8 & "9"',
        "日本 🙂\n\n",
        "a /think",
        "/no_think",
        "/think/no_think",
    ]
)
ANSWERS = TEXTS | st.sampled_from(
    [
        "<think>why</think>because",
        "<think>\nwhy\n</think>\n\n yes ",
        "<think></think>",
        "</think> late",
        "early <think> no",
        "<think>a</think>b<think>c</think> d",
        "<think>a</think>b<think>c",
    ]
)
ARGUMENTS = [{}, {"name": "Große Straße", "n": 3}, {"at": {"x": [1, None]}, "on": True, "l": ["é"]}]
CALLS = st.builds(
    lambda name, arguments: {"name": name, "arguments": arguments},
    st.sampled_from(["straße", "clock"]),
    st.sampled_from(ARGUMENTS),
)
CALLS |= CALLS.map(lambda call: {"type": "function", "function": call})


@st.composite
def exchanges(draw):
    """A user's message, and the answers, tool calls and tool results that follow it."""
    messages = [{"role": "user", "content": draw(TEXTS)}]
    for _ in range(draw(st.integers(0, 3))):
        answer = {"role": "assistant", "content": draw(st.none() | ANSWERS)}
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(st.none() | TEXTS)
        if draw(st.booleans()):
            answer["tool_calls"] = draw(st.lists(CALLS, max_size=2))
        results = draw(st.lists(TEXTS, max_size=2))
        messages += [answer, *({"role": "tool", "content": text} for text in results)]
    return messages


CONVERSATIONS = st.builds(
    lambda system, parts: sum(parts, system),
    st.just([]) | TEXTS.map(lambda text: [{"role": "system", "content": text}]),
    st.lists(exchanges(), min_size=1, max_size=3),
)
VARIABLES = st.fixed_dictionaries(
    {"add_generation_prompt": st.booleans()},
    optional={
        "enable_thinking": st.booleans(),
        "truncate_history_thinking": st.booleans(),
        "tools": st.sampled_from([None, [], [STREET], [CLOCK, STREET], [CLOCK]]),
    },
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Our tokenizer and transformers' for a model family, from one folder."""
    folder = family_131072(tmp_path_factory.mktemp("family"), request.param)
    return Tokenizer.load(folder), PreTrainedTokenizerFast.from_pretrained(folder)


@CALM
@given(messages=CONVERSATIONS, variables=VARIABLES)
def test_a_nemotron_chat_is_rendered_as_transformers_renders_it(family, messages, variables):
    ours, reference = family
    expected = reference.apply_chat_template(messages, tokenize=False, **variables)
    assert ours.render_chat(messages, **variables) == expected
    ids = reference.apply_chat_template(messages, return_dict=False, **variables)
    assert ours.encode_chat(messages, trust_text=True, **variables) == ids
    assert ours.decode(ours.encode_chat(messages, **variables)) == expected
    assert ids.count(ours.bos_id) == 0, "these formats have no <s>"


ANSWERED = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2", "reasoning_content": "One more."},
]
CALLED = [
    {"role": "user", "content": "When?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "A clock.",
        "tool_calls": [{"function": {"name": "clock", "arguments": {"zone": "UTC"}}}],
    },
    {"role": "tool", "content": "12:00"},
]
MORE = {"role": "user", "content": "And now?"}


@pytest.mark.parametrize("family", ["nemotron-3"], indirect=True)
def test_nemotron_3_chats_in_chatml(family):
    ours, _ = family
    start = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n"
    start += "<|im_start|>assistant\n<think>"
    assert ours.render_chat(ANSWERED[:2]) == start + "\n"
    assert ours.render_chat(ANSWERED[:2], enable_thinking=False) == start + "</think>"
    kept = start + "\nOne more.\n</think>\n2<|im_end|>\n"
    assert ours.render_chat(ANSWERED, add_generation_prompt=False) == kept
    more = "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    forgotten = start + "</think>\n2<|im_end|>\n" + more
    assert ours.render_chat([*ANSWERED, MORE]) == forgotten
    settings = {"truncate_history_thinking": False}
    assert ours.render_chat([*ANSWERED, MORE], **settings) == kept + more
    text = ours.render_chat(CALLED, tools=[CLOCK])
    assert text.startswith("<|im_start|>system\n# Tools\n\nYou have access to the following")
    assert text.endswith(
        "<think>\nA clock.\n</think>\n<tool_call>\n<function=clock>\n<parameter=zone>\nUTC\n"
        "</parameter>\n</function>\n</tool_call>\n<|im_end|>\n<|im_start|>user\n<tool_response>\n"
        "12:00\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    markup = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>"]
    assert [ours.special_ids[name] for name in markup] == [10, 11, 12, 13, 14]
    assert ours.encode_chat(ANSWERED[:2])[-2:] == [12, 1010]


@pytest.mark.parametrize("family", ["nano-v2"], indirect=True)
def test_nano_v2_chats_with_numbered_tokens_and_switches(family):
    ours, _ = family
    start = "<SPECIAL_10>System\nBe kind.\n\n<SPECIAL_11>User\n1 + 1?\n<SPECIAL_11>Assistant\n"
    assert ours.render_chat(ANSWERED[:2]) == start + "<think>\n\n"
    more = "2\n<SPECIAL_12>\n\n<SPECIAL_11>User\nAnd now?\n<SPECIAL_11>Assistant\n<think>"
    assert ours.render_chat([*ANSWERED, MORE]) == start + more + "\n\n"
    off = MORE | {"content": "And now? /no_think"}
    assert ours.render_chat([*ANSWERED, off]) == start + more + "</think>"
    on = [
        ANSWERED[0] | {"content": "Be kind. /no_think"},
        {"role": "user", "content": "1 + 1? /think"},
    ]
    assert ours.render_chat(on) == start + "<think>\n\n"
    assert ours.render_chat(CALLED, tools=[CLOCK]).endswith(
        '<TOOLCALL>[{"name": "clock", "arguments": {"zone": "UTC"}}]</TOOLCALL>\n<SPECIAL_12>\n\n'
        "<SPECIAL_11>User\n<TOOL_RESPONSE>[12:00]</TOOL_RESPONSE>\n\n<SPECIAL_11>Assistant\n<think>\n\n"
    )
    assert ours.encode_chat(ANSWERED[:2])[0] == 10
