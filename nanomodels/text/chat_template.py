"""Chat messages to text: a checkpoint's chat template, rendered in jinja2's sandbox.

The result is equal to that of apply_chat_template in transformers 5.23.0, byte for byte
(utils/chat_template_utils.py, tokenization_utils_base.py:3020).
"""

import functools
import json
from collections.abc import Sequence
from datetime import datetime

from nanomodels.text.files import one_line, read_text, refusal

# nanochat has no template. Its code writes this format: nanochat/tokenizer.py, commit 306bc38.
# An answer with calculations is a list of parts, [{'type': 'python', 'text': '1 + 2'}, ...].
NANOCHAT_TEMPLATE = """
{%- set marks = {
    'text': ('', ''),
    'python': ('<|python_start|>', '<|python_end|>'),
    'python_output': ('<|output_start|>', '<|output_end|>'),
} -%}
{%- set system = messages[0].content ~ '\\n\\n' if messages[0].role == 'system' else '' -%}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}
{%- if not turns -%}{{ raise_exception('a system message needs a user message after it') }}
{%- endif -%}
{{- '<|bos|>' -}}
{%- for turn in turns -%}
    {%- if turn.role != ('assistant' if loop.index0 % 2 else 'user') -%}
        {{ raise_exception('user and assistant must take turns, found ' ~ turn.role) }}
    {%- endif -%}
    {{- '<|' ~ turn.role ~ '_start|>' ~ (system if loop.first else '') -}}
    {%- if turn.content is string -%}
        {{- turn.content -}}
    {%- elif turn.role == 'assistant' and turn.content -%}
        {%- for part in turn.content -%}
            {{- marks[part.type][0] ~ part.text ~ marks[part.type][1] -}}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception('content must be a string, of an answer also a list of parts') }}
    {%- endif -%}
    {{- '<|' ~ turn.role ~ '_end|>' -}}
{%- endfor -%}
{{- '<|assistant_start|>' if add_generation_prompt -}}
"""

# Characters of a template. jinja2 takes 1 s to compile so many; published templates have 20,000.
LONGEST_TEMPLATE = 100_000

# The errors that expressions in a template can raise, besides jinja2's own.
TEMPLATE_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def read_templates(folder, config):
    """Return {name: template}; config: the content of tokenizer_config.json.

    Template files replace all templates in the config, as in transformers.
    """
    files = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: read_text(path, largest=LONGEST_TEMPLATE) for name, path in files.items()}
    found = config.get("chat_template") or {}
    try:
        if isinstance(found, list):
            found = {entry["name"]: entry["template"] for entry in found}
        named = dict({"default": found} if isinstance(found, str) else found)
        if {*map(type, [*named, *named.values()])} <= {str}:
            return named
    except (LookupError, TypeError, ValueError):
        pass
    raise refusal(
        folder / "tokenizer_config.json",
        "chat_template",
        config["chat_template"],
        'a text, {"name": "text"}, or [{"name": ..., "template": ...}]',
    )


def render(templates, messages, tools, documents, **variables):
    """Return the text of a chat; called by Tokenizer.render_chat, which explains the arguments.

    templates: {name: text}.
    """
    name = "tool_use" if tools is not None and "tool_use" in templates else "default"
    if name not in templates:
        raise ValueError(
            f"this tokenizer has no default chat template (it has: {sorted(templates)}); "
            "encode plain text, or put a chat_template.jinja into its folder"
        )
    listed = isinstance(messages, Sequence) and len(messages) > 0
    if not listed or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages must be a list of at least one {'role': ..., 'content': ...}")
    if not all(isinstance(entry, dict) for entry in [*(tools or ()), *(documents or ())]):
        raise ValueError("tools must be a list of JSON schemas (dicts), documents of dicts")
    messages = [{k: v for k, v in m.items() if v is not None} for m in messages]
    import jinja2  # here, so that a program without a chat starts faster

    try:
        size = len(json.dumps([plain(messages), plain(tools), plain(documents)]))
        template = compile_template(templates[name])
        template.environment.start(size)
        return template.render(
            messages=[alias_reasoning(message) for message in plain(messages)],
            tools=plain(tools),
            documents=plain(documents),
            **plain(variables),
        )
    except (*TEMPLATE_ERRORS, jinja2.TemplateError) as error:
        raise ValueError(f"chat template: {one_line(error)}") from None


def plain(value):
    """Copy JSON-like data, so that no object with other methods gets into the sandbox."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    for kind in (str, int, float):  # the value of a subclass, for example of a StrEnum's member
        if isinstance(value, kind):
            return getattr(kind, f"__{kind.__name__}__")(value)
    raise ValueError(
        f"a chat holds {type(value).__name__}; allowed are dict, list, str, int, float, bool, None"
    )


def alias_reasoning(message):
    """Copy the reasoning of a message to both names that templates use for it."""
    fields = ("reasoning_content", "thinking", "reasoning")
    found = [message[field] for field in fields if message.get(field) is not None]
    if not found:
        return message
    return {"thinking": found[0], **message, "reasoning_content": found[0]}


@functools.lru_cache(maxsize=8)
def compile_template(template):
    """Compile a template in the environment of transformers 5.23.0 chat_template_utils.py:567."""
    if len(template) > LONGEST_TEMPLATE:
        raise ValueError(
            f"it has {len(template):,} characters; at most {LONGEST_TEMPLATE:,} are read"
        )
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols

    from nanomodels.text.sandbox import Sandbox

    class Generation(Extension):
        """{% generation %}...{% endgeneration %} marks an assistant's message for training. Here it
        shows the text inside as it is.
        """

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("show"), [], [], body).set_lineno(line)

        def show(self, caller):
            return caller()

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.start(0)
    environment.filters["tojson"] = environment.limit("tojson", tojson)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment.from_string(template)
