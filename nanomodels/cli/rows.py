"""The prompts of a run: an argument, piped text, or a file with one prompt a line.

The lines of a file are text, or JSON where its name ends in .jsonl or where it begins with {"

    "a text"
    {"id": 7, "system": "Be brief.", "prompt": "a text"}
    {"messages": [{"role": "user", "content": "a text"}, {"role": "assistant", ...}, ...]}

The lines of --score are texts; in JSON they may come after a prompt:

    {"text": "a text"}
    {"prompt": "a text", "text": "an answer"}
"""

import json
import re
import sys
from dataclasses import asdict, dataclass, replace

from nanomodels.cli.job import this_job
from nanomodels.text.files import one_line, read_text

KEYS = ("id", "messages", "prompt", "system")  # of a line
ROLES = ("system", "user", "assistant")


@dataclass
class Row:
    """A prompt as the user gave it."""

    messages: list  # a chat; its last message is the user's; to be scored, there may be none
    where: str = "the prompt"  # for errors
    line: int | None = None  # of the file
    id: str | int | None = None  # carried through to the output
    text: str | None = None  # to be scored

    def encode(self, encoder):
        """The Prompt, by a prompts.ChatEncoder or TextEncoder.

        Raises ValueError for messages without a chat, and for what the chat template refuses.
        """
        from nanomodels.generation.prompts import TextEncoder, Turn

        messages = self.messages
        try:
            if isinstance(encoder, TextEncoder) and len(messages) > 1:
                raise ValueError("messages need a chat template, and there is none in use")
            if messages[0]["role"] == "system":
                encoder, messages = replace(encoder, system=messages[0]["content"]), messages[1:]
            return encoder.encode([Turn(messages)])
        except ValueError as error:
            raise ValueError(f"{self.where}: {one_line(error)}") from None


def read_rows(args):
    """The Rows of the argument, the file or piped input; None: chat on a terminal.

    With --save-state there may be none.
    Raises ValueError for no prompt, an empty one, or text that is not UTF-8.
    """
    if args.logprobs is not None and not args.json and args.score is None:
        raise ValueError("--logprobs goes with --json")
    if "" in args.stop:
        raise ValueError("--stop is empty; give the text to end before")
    if not all(map(is_utf8, (*args.stop, args.system or "", args.prompt or ""))):
        raise ValueError("the prompt is not UTF-8 text")
    if args.prompt_file is None and (args.output is not None or args.shard is not None):
        raise ValueError("--output and --shard go with --prompt-file")
    if args.score is not None:
        return read_file(args.score, to_score=True)
    if args.prompt_file is not None:
        if args.prompt is not None:
            raise ValueError("give a prompt or --prompt-file, not both")
        rows = read_file(args.prompt_file)
        return rows if args.shard is None else shard(rows, args.shard)
    if args.prompt is not None:
        where, text = "the argument", args.prompt
    elif args.chat or (sys.stdin is not None and sys.stdin.isatty()):
        return [] if args.save_state and not args.chat else None
    else:
        where, text = "standard input", read_input().replace("\r\n", "\n").replace("\r", "\n")
        text = text.removeprefix("\ufeff").rstrip("\n")
    if not text and args.save_state and args.prompt is None:
        return []  # only what is read is saved
    if not text:
        raise ValueError(f"the prompt is empty ({where}); give some text")
    return [Row([user(text)])]


def shard(rows, text):
    """Part K of N of some rows, for "K/N"; all parts one after another are the rows."""
    match = re.fullmatch(r"0*([1-9]\d{0,8})/0*([1-9]\d{0,8})", text)
    number, count = map(int, match.groups()) if match else (1, 0)
    if number > count:
        raise ValueError(f"--shard is {text!r:.40}; it must be K/N, part K of N, counted from 1")
    return rows[(number - 1) * len(rows) // count : number * len(rows) // count]


def shared_rows(args):
    """`read_rows` on rank 0 of this Job, for all ranks."""

    def read():
        rows = read_rows(args)
        return None if rows is None else [asdict(row) for row in rows]

    rows = this_job().shared(read)
    return None if rows is None else [Row(**row) for row in rows]


def read_input():
    """The text of standard input, with its carriage returns."""
    try:
        return sys.stdin.buffer.read().decode() if sys.stdin is not None else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text ({error})") from None


def read_file(path, to_score=False):
    """The Rows of a file; "-" is standard input. Blank lines are left out."""
    if str(path) == "-":
        name, text = "standard input", read_input()
    else:
        name, text = path, read_text(path, may_be_pipe=True, keep_returns=True)
    text = text.removeprefix("\ufeff")
    is_json = path.suffix == ".jsonl" or re.match(r'\s*\{\s*"', text)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # a lone carriage return ends no line
        if not line.strip():
            continue
        where = f"{name}: line {number}"
        try:
            if is_json:
                row = read_line(line, to_score)
            else:
                text = line.removesuffix("\r")
                row = Row([], text=text) if to_score else Row([user(text)])
        except ValueError as error:
            raise ValueError(f"{where}: {one_line(error)}") from None
        row.where, row.line = where, number
        rows.append(row)
    if not rows:
        kind = "file" if to_score else "prompt"
        raise ValueError(f"the {kind} is empty ({name}); give some text")
    return rows


def read_line(line, to_score=False):
    """The Row of a line of JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({one_line(error)})") from None
    if isinstance(row, str):
        row = {"text" if to_score else "prompt": row}
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON string or object, is {shown(row)}")
    check_keys("", row, (*KEYS, "text") if to_score else KEYS)
    id = row.get("id")
    if isinstance(id, bool) or not isinstance(id, (str, int, type(None))):
        raise ValueError(f"id must be a string or a whole number, is {shown(id)}")
    text_of("id", str(id))
    text = text_of("text", row.get("text")) if to_score else None
    if to_score and not row.keys() & {"prompt", "messages", "system"}:
        return Row([], id=id, text=text)
    return Row(read_prompt(row), id=id, text=text)


def read_prompt(row):
    """The messages of a line's object."""
    if ("prompt" in row) == ("messages" in row):
        raise ValueError("must have prompt or messages, and not both")
    if "prompt" in row:
        messages = [user(text_of("prompt", row["prompt"]))]
    else:
        messages = read_messages(row["messages"])
    if not messages[-1]["content"]:
        raise ValueError("the prompt is empty; give some text")
    if "system" in row:
        if messages[0]["role"] == "system":
            raise ValueError("system is there, and messages have one, too")
        content = text_of("system", row["system"])
        messages = [{"role": "system", "content": content}, *messages]
    return messages


def read_messages(messages):
    """The messages of a line, checked."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages must be a list with a message, is {shown(messages)}")
    for n, message in enumerate(messages):
        name = f"messages[{n}]"
        if not isinstance(message, dict):
            raise ValueError(f"{name} must be a JSON object, is {shown(message)}")
        check_keys(f"{name}.", message, ("content", "role"))
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"{name}.role is {shown(role)}; supported: {', '.join(ROLES)}")
        if role == "system" and n > 0:
            raise ValueError(f'{name}.role is "system"; only the first message can be')
        text_of(f"{name}.content", message.get("content"))
    if messages[-1]["role"] != "user":
        raise ValueError(f"{name}.role is {shown(role)}; the last message must be the user's")
    return messages


def check_keys(where, found, known):
    for key in found:
        if key not in known:
            raise ValueError(f"{where}{key} is unknown; known: {', '.join(known)}")


def text_of(name, value):
    """value, if it is a text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, is {shown(value)}")
    if not is_utf8(value):
        raise ValueError(f"{name} is not UTF-8 text: it has half of a surrogate pair")
    return value


def is_utf8(text):
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value):
    """A value of JSON, for an error."""
    return f"{json.dumps(value):.80}"


def user(text):
    """The message of a user."""
    return {"role": "user", "content": text}
