"""What every reader of a checkpoint's files, and every command, needs."""

import contextlib
import json
import sys


def read_text(path):
    """The UTF-8 text of a file; a ValueError or FileNotFoundError names the file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({one_line(error)})") from None


def read_json(path, kind=dict):
    """The object, or with kind=list the list, that a JSON file holds."""
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
    """Write to stderr; that it is closed or full is no reason to lose the text on stdout."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, end=end, file=sys.stderr, flush=True)


def state_of(path):
    """What changes when a file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def one_line(error):
    """An exception's message without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
