"""The chat on a terminal: what reaches the model, what each command does, what is shown."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
from chats import start
from scripted import Scripted
from small_tokenizers import family_131072
from typist import Typist

import nanomodels
from nanomodels.cli import batch, rows, wrap
from nanomodels.cli import chat as cli_chat
from nanomodels.cli.chat import converse
from nanomodels.cli.commands import COMMANDS
from nanomodels.cli.line_input import import_readline, is_gnu
from nanomodels.cli.terminal import Screen, dim
from nanomodels.generation.settings import GenerationSettings

MARKED = is_gnu(import_readline())  # pastes
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
FIGURES = (
    r"(\d+) \+ (\d+) tokens(?: \((\d+) reused\))?(?:, [\d.]+/s)?, (\d+) of (\d+) of the context"
)


class Stream(io.StringIO):
    """Captured text in place of a standard stream."""

    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


class Typed:
    """A MessageReader of given messages: texts, (text, is_block), or exceptions to raise."""

    def __init__(self, messages):
        self.messages = iter(messages)

    def read(self):
        message = next(self.messages, EOFError())
        if isinstance(message, BaseException):
            raise message
        return message if isinstance(message, tuple) else (message, False)


def tiny(name="nanochat", **options):
    return start(name, **{"seed": 1} | options)


@pytest.fixture
def scripted(tmp_path):
    """A Chat with a model that says given replies, and has a switch for its reasoning."""

    def scripted(*replies, context_length=4096, **options):
        family_131072(tmp_path, "nemotron-3")
        tokenizer = nanomodels.Tokenizer.load(tmp_path)
        model = Scripted(tokenizer, replies, context_length)
        return nanomodels.Chat(model, tokenizer, **{"seed": 1, "think": False} | options)

    return scripted


@pytest.fixture
def talk(monkeypatch):
    """Type messages in a chat; gives stdout, the lines of stderr, and what the model was asked."""

    def talk(chat, *messages, quiet=False, terminal=False):
        out, err, asked = Stream(terminal), Stream(terminal), []
        ask = type(chat).ask
        monkeypatch.setattr(type(chat), "ask", lambda s, text: asked.append(text) or ask(s, text))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        greeting = 1 + bool(chat.turns)
        converse(chat, Typed(messages), quiet)
        monkeypatch.undo()
        return out.getvalue(), err.getvalue().splitlines()[greeting:], asked

    return talk


def test_an_empty_line_is_ignored_and_the_chat_goes_on(talk):
    out, err, asked = talk(tiny(), "", "  ", "\n\n", ("", True), FRANCE, "", FRANCE)
    assert out == f"{PARIS}\n{PARIS}\n"
    assert asked == [FRANCE, FRANCE]
    assert len(err) == 2, "a line of figures for each answer"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("/halp", "no command /halp; did you mean /help? /help lists them"),
        ("/SAVE x", "no command /SAVE; did you mean /save?"),
        ("/quit", "did you mean /exit?"),
        ("/clear", "did you mean /reset?"),
        ("/usr/bin/env python\nprint()", "no command /usr/bin/env; /help lists them"),
        ("/xyzzy", "a message with / needs a space before it"),
        ("/", "no command /; /help lists them"),
        ("/ exit", "no command /; /help lists them"),
        ("/" + "x" * 5000, "no command /xxx"),
        ("/\033[2J", "no command /\\x1b[2J"),
        ("exit", "/exit or Ctrl-D leaves"),
        ("quit", "/exit or Ctrl-D leaves"),
        ("/reset now", "/reset takes nothing after it"),
        ("/exit\ntouch PWNED", "/exit takes nothing after it"),
        ("/save", "/save needs a FILE after it"),
        ("/load  ", "/load needs a FILE after it"),
        ("/read", "/read needs a FILE after it"),
        ("/read no-such-file", "no-such-file: no such file"),
        ("/read tests", "tests: must be a plain file"),
        ("/load no-such-file", "no-such-file"),
        ("/load README.md", "README.md: not a"),
        ("/save no/such/folder", "no/such: no such folder"),
        ("/think maybe", "/think takes on or off"),
        ("/think on", "the chat template has no switch for the reasoning"),
        ("/undo", "there is no turn to take back"),
        ("/retry", "there is no message to ask again"),
    ],
    ids=lambda value: value[:20],
)
def test_a_command_that_is_wrong_gets_one_line_and_never_reaches_the_model(talk, typed, words):
    out, err, asked = talk(tiny(), typed)
    assert (out, asked) == ("", [])
    assert words in err[-1]
    assert len(err) <= 2 and len(err[-1]) < 300


def test_a_message_may_begin_with_a_slash(talk):
    chat = tiny(max_new_tokens=1)
    messages = (" /help", "// a comment", ("/help", True), " exit", ("exit", True))
    _, _, asked = talk(chat, *messages)
    assert asked == ["/help", "// a comment", "/help", " exit", "exit"]


def test_help_names_every_command(talk):
    _, err, _ = talk(tiny(), "/help")
    lines = [line.split()[0] for line in err if line.startswith("/")]
    names = "/help /reset /undo /retry /save /load /system /think /stats /read /exit"
    assert lines == names.split() == [f"/{name}" for name in COMMANDS]
    assert all(len(line) < 80 for line in err)


def test_help_and_figures_are_broken_between_words_on_a_narrow_terminal(talk, monkeypatch):
    _, whole, _ = talk(tiny(), "/help", "/stats")
    monkeypatch.setattr(wrap, "columns_of", lambda stream: 40)
    _, (_, *broken), _ = talk(tiny(), "/help", "/stats", terminal=True)  # the greeting has 2 lines
    assert max(map(len, broken)) < 40 < max(map(len, whole))
    assert " ".join(broken).split() == " ".join(whole).split()


def test_exit_leaves(talk):
    out, _, asked = talk(tiny(), "/exit", FRANCE)
    assert (out, asked) == ("", [])


def test_the_figures_are_right(talk):
    chat = tiny()
    _, err, _ = talk(chat, FRANCE, "Thank you!")
    first, second = (re.fullmatch(FIGURES, line) for line in err)
    prompt = len(chat.tokenizer.encode_chat([{"role": "user", "content": FRANCE}]))
    answer = len(chat.tokenizer.encode(PARIS, add_bos=False))
    assert first[1], first[2] == (str(prompt), str(answer))
    assert first[3] is None
    assert (first[4], first[5]) == (str(prompt + answer), "512")
    read, new, reused, length, _ = map(int, second.groups())
    assert reused == prompt + answer, "all of the first turn"
    assert read + new + reused == length == chat.length
    assert talk(tiny(), FRANCE, quiet=True)[1] == []


def test_stats_tell_of_the_chat_and_the_last_answer(talk):
    assert [line.split()[0] for line in talk(tiny(), "/stats")[1]] == ["chat"]
    _, err, _ = talk(tiny(), FRANCE, "/stats")
    assert [line.split()[0] for line in err[1:]] == ["chat", "prompt", "new", "memory"]
    assert err[1].startswith("chat    1 turn, ")


def test_reset_undo_and_retry(talk):
    chat = tiny(temperature=1.0)
    _, err, _ = talk(chat, FRANCE, "Hello!", "/undo")
    assert [turn.messages[0]["content"] for turn in chat.turns] == [FRANCE]
    assert err[-1] == "(taken back: Hello!)"
    seeds = []
    for _ in range(2):
        talk(chat, "/retry")
        seeds.append(chat.reply.settings.seed)
    assert seeds == [2, 3], "another answer each time"
    assert [turn.messages[0]["content"] for turn in chat.turns] == [FRANCE]
    talk(chat, "/reset")
    assert chat.turns == []
    assert talk(tiny(), "/retry")[1] == ["(there is no message to ask again)"]
    out, err, _ = talk(tiny(), FRANCE, "/retry")
    assert out == f"{PARIS}\n" * 2
    assert err[1] == "(without sampling the answer is the same; see --temperature)"


def test_a_conversation_is_saved_and_loaded_and_no_other_file_is_replaced(talk, tmp_path):
    path = tmp_path / "a chat"
    (tmp_path / "precious").write_text("text")
    chat = tiny()
    _, err, _ = talk(
        chat, FRANCE, f"/save {path}", f"/save '{path}'", f"/save {tmp_path / 'precious'}"
    )
    assert err[1:3] == [f"(saved in {path})"] * 2
    assert err[3] == f"({tmp_path / 'precious'}: exists; give another name)"
    assert (tmp_path / "precious").read_text() == "text"
    other = tiny()
    _, err, _ = talk(other, f"/save {path}", f"/load {path}", f'/save "{path}"')
    assert err == [
        f"({path}: exists; give another name)",
        f"(loaded: 1 turn, {chat.length} of 512 tokens of the context)",
        f"(saved in {path})",
    ]
    assert other.messages == chat.messages


def test_the_home_folder_may_be_written_with_a_tilde(talk, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes").write_text("Two.")
    assert talk(tiny(), "/read ~/notes")[1] == [
        f"({tmp_path}/notes: 4 characters, which go before your next message)"
    ]


def test_the_system_message(talk):
    chat = tiny()
    _, err, _ = talk(chat, "/system", "/system Be brief.\nAnd kind.", "/system")
    said = "(the system message from now on: Be brief.\\nAnd kind.)"
    assert err == ["(no system message)", said, said]
    assert chat.messages == [{"role": "system", "content": "Be brief.\nAnd kind."}]
    assert talk(chat, '/system ""')[1] == ["(no system message)"]
    assert chat.system is None


def test_the_reasoning_is_switched(talk, scripted):
    chat = scripted("No.", "Hm.\n</think>\n\nYes.", think=None)
    _, err, _ = talk(chat, "/think", "/think off")
    assert err == ["(the reasoning is left to the chat template)", "(the reasoning is off)"]
    out, err, _ = talk(chat, "One?", "/think on", "Two?", "/think")
    assert out == "No.\nYes.\n"
    assert err[1:5] == ["(the reasoning is on)", "<think>", "Hm.", "</think>"]
    assert err[-1] == "(the reasoning is on)"


def test_a_file_goes_before_the_next_message_and_no_other(talk, tmp_path):
    (tmp_path / "a").write_text("First.\n")
    (tmp_path / "b").write_text("Second.")
    read = [f"/read {tmp_path / name}" for name in "ab"]
    _, err, asked = talk(tiny(max_new_tokens=1), *read, "", "And?", "More?")
    assert asked == ["First.\n\n\nSecond.\n\nAnd?", "More?"]
    assert err[0] == f"({tmp_path / 'a'}: 7 characters, which go before your next message)"
    for message in (KeyboardInterrupt(), "/reset"):
        assert talk(tiny(max_new_tokens=1), read[0], message, "And?")[2] == ["And?"]


def test_ctrl_c_and_text_that_is_not_utf_8_are_no_messages(talk):
    wrong = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    out, err, _ = talk(tiny(), KeyboardInterrupt(), wrong, FRANCE)
    assert out == f"{PARIS}\n"
    assert err[:2] == ["(cleared; Ctrl-D or /exit leaves)", "(that was not UTF-8 text)"]


def stop_at(chat, monkeypatch, call):
    """Let a call of the model, counted from 1, be one in which Ctrl-C is pressed."""
    calls, forward = [], chat.model.forward

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) == call:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(chat.model, "forward", interrupted)


def test_ctrl_c_while_the_prompt_is_read_takes_the_message_back(talk, monkeypatch):
    chat = tiny()
    talk(chat, "Hello!")
    stop_at(chat, monkeypatch, 1)
    out, err, _ = talk(chat, "What is 12 + 30?", FRANCE)
    assert out == f"{PARIS}\n"
    assert err[0] == "(stopped; the chat is as it was before)"
    assert [turn.messages[0]["content"] for turn in chat.turns] == ["Hello!", FRANCE]


def test_ctrl_c_in_an_answer_keeps_what_was_said_and_the_chat_goes_on(talk, monkeypatch):
    chat = tiny(stop=[" of France was"])  # so that some is held back when Ctrl-C is pressed
    stop_at(chat, monkeypatch, 5)
    out, err, _ = talk(chat, FRANCE, "Hello!")
    said, _ = out.splitlines()
    assert 0 < len(said) < len(PARIS) and PARIS.startswith(said)
    assert chat.messages[1]["content"] == said, "all that was said was shown"
    assert len(chat.turns) == 2
    assert len(err) == 2, "figures"


def test_ctrl_c_during_a_command_does_not_leave(talk, monkeypatch, tmp_path):
    def interrupted(path):
        raise KeyboardInterrupt

    chat = tiny()
    monkeypatch.setattr(chat, "save", interrupted)
    out, _, _ = talk(chat, f"/save {tmp_path / 'x'}", FRANCE)
    assert out == f"{PARIS}\n"


def test_an_output_that_is_gone_ends_the_chat(talk, monkeypatch):
    def broken(text):
        raise BrokenPipeError

    monkeypatch.setattr(cli_chat, "write", broken)
    with pytest.raises(BrokenPipeError):
        talk(tiny(), FRANCE, FRANCE)


def test_the_end_of_the_context_is_told_once_for_each_time_that_it_is_reached(talk, scripted):
    chat = scripted(
        *(f"Answer {n}." for n in range(6)), "x" * 200, context_length=150, max_new_tokens=20
    )
    out, err, _ = talk(chat, *(f"Question {n}?" for n in range(6)))
    assert out.splitlines() == [f"Answer {n}." for n in range(6)]
    told = [line for line in err if "full" in line]
    assert 1 <= len(told) <= 2
    assert all(re.fullmatch(r"\(the context is full: the oldest .* forgotten\)", t) for t in told)
    assert [re.fullmatch(FIGURES, line)[5] for line in err if "full" not in line] == ["150"] * 6

    _, err, _ = talk(chat, "Once more?")
    assert err[-2] == "(cut off after 20 tokens; see --max-new-tokens)"
    _, err, _ = talk(chat, "long " * 200)
    assert "the model's context holds 150" in err[0]
    assert len(err) == 1


def test_an_answer_that_fills_the_context_is_said_to_be_cut_off(talk, scripted):
    chat = scripted("x" * 200, context_length=60, max_new_tokens=200)
    assert talk(chat, "Question?")[1][0] == "(the context is full: the answer is cut off)"


def test_without_a_chat_template_the_text_is_continued(talk):
    chat = tiny("nemotron", raw=True)
    out, err, asked = talk(chat, "Once upon a time, a", "", "Then", "/think", "/undo", "/stats")
    assert asked == ["Once upon a time, a", "\nThen"]
    tokenizer, ids = chat.tokenizer, []
    for text, said in zip(asked, out.splitlines(), strict=True):
        ids += tokenizer.encode(text, add_bos=None if not ids else False)
        tokens = list(nanomodels.generate(chat.model, ids, max_new_tokens=16))
        assert tokenizer.decode(tokens) == said
        ids += tokens
    assert "raw text has no think" in err[2]
    assert not any("cut off" in line for line in err), "a text has no end"
    assert err[4].startswith("chat    1 turn, ")
    assert len(chat.turns) == 1


class Said:
    """A completion that is complete."""

    def __init__(self, text, reasoning=None):
        self.text, self.reasoning, self.finish_reason, self.answered = text, reasoning, "stop", True
        self.splitter = self


EVIL = "a\033]0;title\007b\033[2J\x9b31m\x7f\rc\r\nd\te 👨‍👩‍👧‍👦"
SAFE = "a\\u001b]0;title\\u0007b\\u001b[2J\\u009b31m\\u007fc\nd"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_model_cannot_control_the_terminal_and_a_pipe_gets_its_text(monkeypatch, terminal):
    out, err = Stream(terminal), Stream(terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "dumb")
    Screen(True).show(Said(EVIL, EVIL), EVIL)
    if terminal:
        assert out.getvalue() == f"{SAFE}       e 👨‍👩‍👧‍👦"
        assert err.getvalue() == f"<think>\n{SAFE}       e 👨‍👩‍👧‍👦\n</think>\n"
    else:
        assert out.getvalue() == EVIL
        assert err.getvalue() == f"<think>\n{EVIL}\n</think>\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_json_cannot_control_the_terminal_either_and_stays_the_same(monkeypatch, terminal):
    monkeypatch.setattr(sys, "stdout", Stream(terminal))
    said = Said(EVIL)
    said.tokens = [1]
    encoder = SimpleNamespace(tokenizer=None)
    text = batch.Text(rows.Row([rows.user("é\x9b")]), 1, 0, said)
    batch.write_json(text, GenerationSettings(), encoder)
    line = sys.stdout.getvalue()
    assert ("\x9b" in line) != terminal
    assert "é" in line
    assert json.loads(line)["text"] == EVIL


def test_answers_and_notes_are_broken_between_words_on_a_terminal(monkeypatch, talk, scripted):
    long = " ".join(["words"] * 40)
    for terminal, lines in ((True, 4), (False, 1)):
        out, err, _ = talk(scripted(long), "Go on.", "/system " + long, terminal=terminal)
        assert len(out.splitlines()) == lines
        assert out.replace("\n", " ").strip() == long
        assert (max(map(len, err)) < 90) == terminal


@pytest.mark.parametrize(
    ("terminal", "environment", "faint"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_reasoning_and_figures_are_faint_on_a_terminal_with_colours(
    monkeypatch, talk, scripted, terminal, environment, faint
):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    assert dim("x") == ("\033[2mx\033[0m" if faint else "x")
    assert dim("") == ""
    chat = scripted("Hm.\n</think>\n\nYes.", think=True)
    out, err, _ = talk(chat, "Question?", terminal=terminal)
    assert out == "Yes.\n"
    assert ["\033[2m" in line for line in err] == [faint] * len(err)


SLOW = """
import sys, time, generate
from nanomodels.cli import terminal
write = terminal.write
terminal.write = lambda text: (write(text), time.sleep(0.05))
sys.exit(generate.main(sys.argv[1:]))
"""


def test_a_chat_on_a_real_terminal(tmp_path):
    """A paste while the model is loaded, Ctrl-C in an answer, and Ctrl-D; then the history."""
    pasted = "What is 2 + 2?\r\rtouch PWNED\rNow"
    with Typist(SLOW, "--raw", "--max-new-tokens", 500, XDG_STATE_HOME=str(tmp_path)) as typist:
        typist.until("\033[?2004h" if MARKED else "load")
        typist.type(f"\033[200~{pasted}\033[201~\r" if MARKED else f"{pasted}\r")
        typist.until("/help")
        typist.until("Now\r\n")
        typist.until(" ")  # a word of the answer
        typist.press_ctrl_c("of 512 of the context")
        typist.until("> ")
        typist.type("\x04touch PWNED\r")
        assert typist.left_for_the_shell() == (b"", True)
    history = tmp_path / "nanomodels" / "history"
    assert history.read_text() == '"What is 2 + 2?\\n\\ntouch PWNED\\nNow"\n'
