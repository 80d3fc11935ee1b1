"""Messages from a terminal: a line, a paste, or a block in quotes is one message.

Lines are edited with Python's readline. GNU readline asks the terminal to mark what is pasted
("bracketed paste"), and so returns a paste as one text. libedit, which is readline on a Mac and in
the Pythons that uv installs, does not know these marks. There, and without readline, lines that
come faster than anybody types are one text.
"""

import contextlib
import os
import select
import signal
import sys
import time

try:
    import termios
except ImportError:  # Windows
    termios = None

from nanomodels.cli.terminal import note
from nanomodels.text.files import show

QUOTES = '"""'  # around a block
TOGETHER = 0.1  # seconds: the lines of a paste come sooner after each other
LONGEST_PASTE = 5  # seconds
MARKS_ON, MARKS_OFF = "\033[?2004h", "\033[?2004l"


class MessageReader:
    """Reads messages from standard input; use it in a `with` statement.

    Outside of `read`, keys are not shown, but kept for the next message. At the end the terminal
    is as it was, and what nobody has read is gone: the shell must not get it.
    history is a history.History.
    """

    def __init__(self, history):
        self.history = history
        self.terminal = terminal_of(sys.stdin)  # a file descriptor, or None
        both = self.terminal is not None and terminal_of(sys.stdout) is not None
        self.readline = import_readline() if both else None
        # A dumb terminal would show the marks.
        self.marks = is_gnu(self.readline) and os.environ.get("TERM", "dumb") != "dumb"

    def __enter__(self):
        if self.terminal is not None:
            self.modes = termios.tcgetattr(self.terminal)
        if self.marks:
            self.readline.parse_and_bind("set enable-bracketed-paste on")  # Python sets it off
        if self.readline:
            self.readline.set_auto_history(False)
            for text in self.history.read():
                self.readline.add_history(text)
            self.hide_keys()
        return self

    def __exit__(self, *_):
        if self.terminal is None:
            return
        try:
            self.drop_unread()
        finally:
            self.set_modes(self.modes)
            if self.marks:
                send(MARKS_OFF)

    def read(self):
        """The next message, and whether it is a block, which is never a command.

        Raises EOFError at the end of the input, KeyboardInterrupt for Ctrl-C, which clears what was
        typed, and UnicodeDecodeError.
        """
        text = self.read_text("> ")
        if text.lstrip().startswith(QUOTES) and "\n" not in text:
            while not is_block(text):
                text += "\n" + self.read_text("... ")
        if self.readline and text.strip():
            self.readline.add_history(text)
            self.history.add(text)
        if is_block(text):
            return text.strip()[3:-3].removeprefix("\n").removesuffix("\n"), True
        return text, False

    def read_text(self, prompt):
        """A line, or several that were pasted."""
        text = self.read_line(prompt)
        while not self.marks and self.terminal is not None and self.more_within(TOGETHER):
            text += "\n" + self.read_line("")
        return text

    def read_line(self, prompt):
        """What input() returns."""
        if self.readline:
            self.set_modes(self.modes)
        try:
            return input(prompt if sys.stdout.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            show("\n")  # after the prompt
            raise
        finally:
            if self.readline:
                self.hide_keys()

    def more_within(self, seconds):
        """Whether there is something to read, now or soon."""
        return bool(select.select([self.terminal], [], [], seconds)[0])

    def hide_keys(self):
        """Let the terminal show no keys, and keep no line back until it is complete.

        Its Ctrl-C works as always, and a paste keeps its marks.
        """
        modes = self.modes[:]
        modes[3] &= ~(termios.ECHO | termios.ICANON)
        self.set_modes(modes)
        if self.marks:
            send(MARKS_ON)

    def drop_unread(self):
        """Throw away what was typed or pasted, and what still comes of a paste."""
        self.hide_keys()
        deadline = time.monotonic() + LONGEST_PASTE
        with contextlib.suppress(termios.error):  # the terminal is gone
            while time.monotonic() < deadline:
                termios.tcflush(self.terminal, termios.TCIFLUSH)
                if not self.more_within(TOGETHER):
                    break

    def set_modes(self, modes):
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(self.terminal, termios.TCSANOW, modes)


def is_block(text):
    """Whether a text begins and ends with quotes."""
    text = text.strip()
    return text.startswith(QUOTES) and text.endswith(QUOTES) and len(text) >= 2 * len(QUOTES)


def terminal_of(stream):
    """The file descriptor of a stream that is a terminal; None for others, and on Windows."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):  # None, closed, or not of this system
        return None
    return descriptor if termios is not None and os.isatty(descriptor) else None


def import_readline():
    """The module readline; None if this Python has none."""
    try:
        import readline
    except ImportError:
        return None
    return readline


def is_gnu(readline):
    """Whether it is GNU readline, and not libedit, which has the same interface."""
    return readline is not None and "libedit" not in (readline.__doc__ or "")


def send(sequence):
    """Send a control sequence to the terminal."""
    with contextlib.suppress(OSError):  # the terminal is gone
        sys.stdout.write(sequence)
        sys.stdout.flush()


class SharedMessages:
    """The messages that a MessageReader reads on rank 0 of a Job, on every rank; used as that is.

    Ctrl-C ends the program: the other ranks have ended, or will.
    """

    def __init__(self, job, reader):
        self.job, self.reader = job, reader  # no reader on other ranks

    def read(self):
        return self.job.shared(self.read_here)

    def read_here(self):
        while True:
            try:
                return self.reader.read()
            except UnicodeDecodeError:
                note("(that was not UTF-8 text)")

    def __enter__(self):
        if self.reader is not None:
            self.reader.__enter__()
            signal.signal(signal.SIGINT, self.leave)
        return self

    def leave(self, *_):
        self.__exit__()
        os._exit(130)

    def __exit__(self, *_):
        if self.reader is not None:
            self.reader.__exit__()
