"""Shared file and terminal helpers."""

import contextlib
import json
import sys


def read_text(path):
    """Return the UTF-8 text of a file; a ValueError or FileNotFoundError names the file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({one_line(error)})") from None


def read_json(path, kind=dict):
    """Return the content of a JSON file, which must be an object, or with kind=list a list."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({one_line(error)})") from None
    if not isinstance(content, kind):
        wanted = {dict: "object", list: "list"}[kind]
        raise ValueError(f"{path}: must hold a JSON {wanted}, holds a {type(content).__name__}")
    return content


def say(line, end="\n"):
    """Write a line to stderr. A closed or full stderr must not stop the program."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, end=end, file=sys.stderr, flush=True)


def state_of(path):
    """Return values that change when a file changes; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def one_line(error):
    """Return the message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def refusal(path, key, found, supported):
    """Return the ValueError for a value in a file that is not supported here."""
    found = json.dumps(found, ensure_ascii=False)
    found = found if len(found) < 300 else found[:300] + "..."
    return ValueError(f"{path}: {key} is {found}, which is not supported; supported: {supported}")
