"""Messages on a terminal: a paste is one, Ctrl-C clears it, and the shell gets nothing."""

import os

import pytest
from typist import Typist

from nanomodels.cli.line_input import import_readline, is_block, is_gnu

MARKED = is_gnu(import_readline())  # pastes, by the readline of the Python that runs the tests
PASTE = ["Here is a text I found:", "What is 2 + 2?", "", "touch PWNED", "please summarise it"]
READ = """
import os, sys
if sys.argv[3] == "without": sys.modules["readline"] = None
from pathlib import Path
from nanomodels.cli.history import History
from nanomodels.cli.line_input import MessageReader

with MessageReader(History(Path(sys.argv[1]))) as messages:
    while True:
        try:
            message = messages.read()
            print("GOT", message)
            if message[0] == "work":
                print("WORKING")
                os.read(int(sys.argv[2]), 1)  # until the test says that it is done
        except EOFError:
            break
        except KeyboardInterrupt:
            print("CTRL-C")
        """


def paste(lines, marked):
    """What a terminal sends for pasted lines: Return between them, and marks if they are on."""
    keys = "\r".join(lines)
    return f"\033[200~{keys}\033[201~" if marked else keys


def got(lines, is_block=False):
    """What the program writes about a message."""
    return f"GOT {(chr(10).join(lines), is_block)!r}"


@pytest.fixture
def reader(tmp_path):
    """Start a program that reads messages; gives the Typist and a function that ends its work."""
    ends = []

    def start(kind, **env):
        read, write = os.pipe()
        os.set_inheritable(read, True)
        ends.extend((read, write))
        typist = Typist(READ, tmp_path / "history", read, kind, pass_fds=(read,), **env)
        typist.until("> ")
        return typist, lambda: os.write(write, b"x")

    yield start
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("kind", ["with", "without"])
def test_a_paste_is_one_message_and_nothing_is_left_for_the_shell(reader, kind):
    marked = MARKED and kind == "with"
    typist, finish = reader(kind)
    with typist:
        typist.type(paste(PASTE, marked) + "\r")
        typist.until(got(PASTE))
        typist.until("> ")
        typist.type("👨‍👩‍👧‍👦 é\r")
        typist.until(got(["👨‍👩‍👧‍👦 é"]))

        typist.until("> ")
        typist.type("half a line")
        typist.until("half a line")
        typist.press_ctrl_c("CTRL-C")
        typist.type("whole\r")
        typist.until(got(["whole"]))

        typist.until("> ")
        typist.type("work\r")
        typist.until("WORKING")
        typist.type(paste(PASTE, marked) + "\r")
        finish()
        echo = typist.until(got(PASTE)).removesuffix(got(PASTE))
        if kind == "with":
            assert "touch PWNED" not in echo.partition("> ")[0], "shown when it is read"
        typist.type("work\r")
        typist.until("WORKING")
        typist.press_ctrl_c("CTRL-C")

        typist.until("> ")
        typist.type("\x04" + "touch PWNED\r" * 100)
        assert typist.left_for_the_shell() == (b"", True)


def test_a_block_is_one_message(reader):
    typist, _ = reader("with")
    with typist:
        typist.type('"""\r')
        typist.until("... ")
        typist.type("/one\r")
        typist.until("... ")
        typist.type("\r")
        typist.until("... ")
        typist.type('two"""\r')
        typist.until(got(["/one", "", "two"], True))
        typist.until("> ")
        typist.type('"""one line"""\r')
        typist.until(got(["one line"], True))
        typist.until("> ")
        typist.type('"""\r')
        typist.until("... ")
        typist.type("dropped")
        typist.until("dropped")
        typist.press_ctrl_c("CTRL-C")
        lines = ['"""A docstring."""', "x = 1"]
        typist.type(paste(lines, MARKED) + "\r")
        typist.until(got(lines))
        typist.until("> ")
        typist.type("\x04")
        assert typist.left_for_the_shell() == (b"", True)


def test_earlier_messages_come_back_in_the_next_run(reader):
    for keys in (paste(PASTE, MARKED) + "\r", "\033[A\r"):
        typist, _ = reader("with")
        with typist:
            typist.type(keys)
            typist.until(got(PASTE))
            typist.type("\x04")
            typist.left_for_the_shell()


def test_a_dumb_terminal_gets_no_control_sequences(reader):
    typist, _ = reader("with", TERM="dumb")
    with typist:
        typist.type(paste(PASTE, False) + "\r")
        typist.until(got(PASTE))
        typist.type("\x04")
        assert typist.left_for_the_shell() == (b"", True)
        assert "\033" not in typist.seen


@pytest.mark.parametrize("text", ['"""', '""""', '"""""', '"""a', 'a"""', ""])
def test_half_a_block_is_none(text):
    assert not is_block(text)
    assert is_block(f'"""{text}"""')
