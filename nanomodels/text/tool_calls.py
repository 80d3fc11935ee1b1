"""Tool calls in the answers of Nemotron models, as JSON-like data.

    Nemotron-Nano-v2    <TOOLCALL>[{"name": "f", "arguments": {"a": 1}}, ...]</TOOLCALL>
    Nemotron-Mini       <toolcall> {"name": "f", "arguments": {"a": 1}} </toolcall>
    Nemotron 3          <tool_call>
                        <function=f>
                        <parameter=a>
                        1
                        </parameter>
                        </function>
                        </tool_call>

In Nemotron 3's format a value is plain text. The tool's JSON schema says whether 1 is a number.
"""

import json
import re

MARKS = {
    "<TOOLCALL>": "</TOOLCALL>",
    "<toolcall>": "</toolcall>",
    "<tool_call>": "</tool_call>",
}
START = re.compile("|".join(MARKS))
SPACE = re.compile(r"\s*")
FUNCTION = re.compile(r"\s*<function=([^<>\n]+)>(.*)</function>\s*", re.DOTALL)
PARAMETER = re.compile(r"\s*<parameter=([^<>\n]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)
CONSTANTS = {"True": "true", "False": "false", "None": "null"}  # jinja2's words for JSON's


def parse(text, tools=()):
    """Take the tool calls out of an answer: return (text without them, calls, errors).

    tools: the JSON schemas that the model was given. calls: a list of {"name": str, "arguments":
    dict}. A call that is not well-formed stays in the text, and errors has a line about it. White
    space at both ends of the text goes with the calls.
    """
    kept, calls, errors, at = [], [], [], 0
    while start := START.search(text, at):
        kept.append(text[at : start.start()])
        at, mark = start.end(), MARKS[start[0]]
        try:
            if mark == "</tool_call>":
                found, end = read_function(text, at, mark, tools)
            else:
                found, end = read_json(text, at, mark)
            # No number that JSON does not have, no half of a surrogate pair.
            json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:  # RecursionError: JSON that nests too deep
            errors.append(f"{start[0]} begins no tool call and stays text: {error}")
            end = text.find(mark, at) + len(mark)
            end = end if end > at else at
            kept.append(text[start.start() : end])
        else:
            calls += found
        at = end
    rest = "".join([*kept, text[at:]])
    return rest.strip() if calls else rest, calls, errors


def read_json(text, at, mark):
    """The calls of a JSON object or list at text[at:], and where `mark` after it ends."""
    found, end = json.JSONDecoder().raw_decode(text, SPACE.match(text, at).end())
    end = SPACE.match(text, end).end()
    if not text.startswith(mark, end):
        raise ValueError(f"no {mark} after its JSON")
    calls = found if isinstance(found, list) else [found]
    return [as_call(entry) for entry in calls], end + len(mark)


def as_call(entry):
    """The name and the arguments of a call in JSON."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError("it must be an object with a name")
    arguments = entry.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError("its arguments must be an object")
    return {"name": entry["name"], "arguments": arguments}


def read_function(text, at, mark, tools):
    """The call in Nemotron 3's format at text[at:], in a list, and where `mark` after it ends."""
    end = text.find(mark, at)
    if end < 0:
        raise ValueError(f"no {mark} after it")
    function = FUNCTION.fullmatch(text, at, end)
    if not function:
        raise ValueError("it must be <function=NAME> ... </function>")
    name, body = function.groups()
    schemas, arguments, at = schemas_of(name, tools), {}, 0
    while parameter := PARAMETER.match(body, at):
        key, value = parameter.groups()
        arguments[key], at = typed(value, schemas.get(key)), parameter.end()
    if body[at:].strip():
        raise ValueError("its parameters must be <parameter=NAME> ... </parameter>")
    return [{"name": name, "arguments": arguments}], end + len(mark)


def schemas_of(name, tools):
    """{parameter: its JSON schema} of the tool with this name; {} if there is none."""
    for tool in tools:
        function = tool.get("function", tool)
        if function["name"] == name:
            return (function.get("parameters") or {}).get("properties") or {}
    return {}


def typed(value, schema):
    """The value that a text stands for: itself, unless the schema allows no string."""
    allowed, constant = types_of(schema), CONSTANTS.get(value, value)
    if constant == "null" and "null" in allowed:
        return None
    if "string" in allowed or not allowed:
        return value
    try:
        return json.loads(constant)
    except (ValueError, RecursionError):
        return value


def types_of(schema):
    """The names of types that a JSON schema allows; none: it does not say."""
    if not isinstance(schema, dict):
        return set()
    types, options = schema.get("type"), schema.get("anyOf")
    found = {each for each in (types if isinstance(types, list) else [types]) if each}
    for option in options if isinstance(options, list) else ():
        found |= types_of(option)
    return found | ({"null"} if schema.get("nullable") is True else set())
