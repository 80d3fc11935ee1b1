"""The messages of earlier runs, in a private file."""

import contextlib
import json
import os
from pathlib import Path

from nanomodels.text.files import check_file

MOST = 1000  # messages that are kept
LONGEST = 10_000  # characters; longer messages are not kept


def history_path():
    """Where the history is; None if there is no home folder."""
    folder = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not folder.is_absolute():
        try:
            folder = Path.home() / ".local" / "state"
        except RuntimeError:
            return None
    return folder / "nanomodels" / "history"


class History:
    """A file with one JSON string a line, the oldest first; path None: no file.

    A history that cannot be read or written is no error: it is not there, or not kept. Several
    programs may add to the same file.
    """

    def __init__(self, path):
        self.path = path

    def read(self):
        """The messages, at most MOST. Lines that are damaged are left out, and older messages."""
        if self.path is None:
            return []
        try:
            check_file(self.path)
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except (OSError, ValueError):  # /dev/null, a pipe, a folder, or not ours to read
            self.path = None
            return []
        texts = [text for line in data.split(b"\n") if (text := parse(line))]
        if len(texts) > MOST or data[-1:] not in (b"", b"\n"):  # or the last line was cut off
            texts = texts[-MOST:]
            self.replace(texts)
        return texts

    def add(self, text):
        """Add a message."""
        if self.path is not None and len(text) <= LONGEST:
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write(self.path, os.O_APPEND, [text])

    def replace(self, texts):
        """Write a new file."""
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            try:
                write(partial, os.O_TRUNC, texts)
                partial.replace(self.path)
            finally:
                partial.unlink(missing_ok=True)


def parse(line):
    """The message in a line, or None."""
    if line[:1] != b'"':  # and so no JSON of any depth
        return None
    try:
        text = json.loads(line)
        text.encode()  # half of a character cannot be written again
    except ValueError:
        return None
    return text


def write(path, flag, texts):
    """Write messages to a file that only this user can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
