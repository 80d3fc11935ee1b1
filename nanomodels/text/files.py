"""Shared file and terminal helpers."""

import contextlib
import json
import stat
import sys

# Bytes of a text file. JSON of this size takes 6 s and 1 GB; the largest tokenizer.json has 35 MB.
LARGEST = 50_000_000
LONGEST = 1000  # characters of a line on the terminal


def check_file(path, largest=LARGEST):
    """Raise an error unless path is a plain file of at most `largest` bytes.

    Reading a pipe in its place would wait for ever, and reading a device would never end.
    """
    try:
        state = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"{path}: must be a plain file; it is a folder, a pipe or a device")
    if state.st_size > largest:
        raise ValueError(f"{path}: has {state.st_size} bytes; at most {largest} are read")


def read_text(path, may_be_pipe=False, keep_returns=False, largest=LARGEST):
    """Return the UTF-8 text of a file; a ValueError or FileNotFoundError names the file.

    Carriage returns become line feeds unless keep_returns is True. A pipe may be of any size.
    """
    if not may_be_pipe:
        check_file(path, largest)
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({one_line(error)})") from None
    return text if keep_returns else text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path, kind=dict, may_be_pipe=False):
    """Return the content of a JSON file, which must be an object, or with kind=list a list."""
    text = read_text(path, may_be_pipe)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({one_line(error)})") from None
    if not isinstance(content, kind):
        wanted = {dict: "object", list: "list"}[kind]
        raise ValueError(f"{path}: must hold a JSON {wanted}, holds a {type(content).__name__}")
    return content


def say(line, end="\n"):
    """Write a line to stderr, without control characters and not too long."""
    show(printable(line) + end)


def show(text):
    """Write a text to stderr as it is. A closed or full stderr must not stop the program."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, end="", file=sys.stderr, flush=True)


def printable(line):
    """A line for the terminal: what a file says can neither steer it nor fill it."""
    if len(line) > LONGEST:  # its end often says what to do
        line = line[: LONGEST * 2 // 3] + " ... " + line[-LONGEST // 3 :]
    characters = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return "".join(characters)


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
