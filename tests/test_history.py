"""The messages of earlier runs: private, bounded, and never an error."""

import os
import stat

from nanomodels.cli.history import LONGEST, MOST, History, history_path


def test_messages_come_back_in_order_in_a_private_file(tmp_path):
    path = tmp_path / "state" / "nanomodels" / "history"
    texts = ["one", 'two\nlines\n\n"quoted"', "\\n", "你好 🙂", "\x1b[A", "/exit"]
    umask = os.umask(0)
    try:
        for text in texts:
            History(path).add(text)
    finally:
        os.umask(umask)
    assert History(path).read() == texts
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "你好" in path.read_text(encoding="utf-8")


def test_a_history_is_bounded(tmp_path):
    path = tmp_path / "history"
    path.write_text("".join(f'"{n}"\n' for n in range(MOST + 5)))
    assert History(path).read() == [str(n) for n in range(5, MOST + 5)]
    assert len(path.read_text().splitlines()) == MOST
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["history"]
    History(path).add("x" * (LONGEST + 1))
    assert History(path).read()[-1] == str(MOST + 4)


def test_damaged_lines_are_left_out(tmp_path):
    path = tmp_path / "history"
    lines = ['"one"', "two", "[" * 100_000, "3", '"\\ud800"', "\x00", '"fo']
    path.write_bytes("\n".join(lines).encode() + b"\xff")
    history = History(path)
    assert history.read() == ["one"]
    history.add("new")
    assert History(path).read() == ["one", "new"], "a line that was cut off takes no other with it"


def test_what_cannot_be_read_or_written_is_no_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "file").write_text("")
    for path in ("pipe", "null", "file/nanomodels/history", ".", "/proc/version/history"):
        history = History(tmp_path / path)
        assert history.read() == []
        history.add("text")
    none = History(None)
    none.add("text")
    assert none.read() == []


def test_a_history_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    path = tmp_path / "history"
    path.write_text("".join(f'"{n}"\n' for n in range(MOST + 1)))
    monkeypatch.setattr(os, "open", lambda *_: exec("raise OSError(28, 'No space left')"))
    history = History(path)
    assert len(history.read()) == MOST
    history.add("text")
    monkeypatch.undo()
    assert len(path.read_text().splitlines()) == MOST + 1


def test_two_programs_add_to_one_history(tmp_path):
    first, second = History(tmp_path / "history"), History(tmp_path / "history")
    for history in (first, second):
        history.read()
    first.add("a")
    second.add("b")
    first.add("c")
    assert (tmp_path / "history").read_text() == '"a"\n"b"\n"c"\n'


def test_where_the_history_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = tmp_path / ".local" / "state" / "nanomodels" / "history"
    for value, path in (("/x", "/x/nanomodels/history"), ("", home), ("rel", home)):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert str(history_path()) == str(path)
    monkeypatch.delenv("XDG_STATE_HOME")
    assert history_path() == home
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 12345678)  # a user without an entry, as in containers
    assert history_path() is None
