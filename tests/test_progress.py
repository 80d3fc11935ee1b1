"""The line that says how far a long task is."""

import io
import sys
import threading

import pytest

from nanomodels.cli import progress as module
from nanomodels.cli.progress import Progress


class Terminal(io.StringIO):
    """In place of stderr; `written` is set when something comes."""

    def __init__(self, monkeypatch, is_terminal=True):
        super().__init__()
        self.written, self.is_terminal = threading.Event(), is_terminal
        monkeypatch.setattr(sys, "stderr", self)

    def isatty(self):
        return self.is_terminal

    def write(self, text):
        super().write(text)
        self.written.set()


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; set clock.now. Nothing is written by itself."""
    Terminal(monkeypatch)

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    monkeypatch.setattr(Progress, "FIRST", 1e6)
    return Clock


@pytest.mark.parametrize(
    ("unit", "total", "calls", "now", "line"),
    [
        # (seconds since the first call, done, tokens so far)
        ("tokens", 4052, [(0, 0)], 7, "0 of 4,052 tokens, 7 s so far"),
        ("tokens", 4052, [(0, 0), (10, 512)], 10, "512 of 4,052 tokens, 51 tokens/s, 69 s left"),
        ("tokens", 4052, [(0, 0), (10, 512)], 16, "512 of 4,052 tokens, 51 tokens/s, 63 s left"),
        ("tokens", 4052, [(0, 0), (10, 512)], 99, "512 of 4,052 tokens, 51 tokens/s, 0 s left"),
        # What was done before the first call is not counted in the rate.
        ("tokens", 4052, [(0, 3052), (2, 3552)], 2,
         "3,552 of 4,052 tokens, 250 tokens/s, 2 s left"),
        ("GB", 16.4e9, [(0, 0), (4, 4e9)], 4, "4.00 of 16.40 GB, 1.00 GB/s, 12 s left"),
        ("GB", 1e12, [(0, 0), (4, 4e9)], 4, "4.00 of 1000.00 GB, 1.00 GB/s, 17 min left"),
        ("texts", 200, [(0, 0), (10, 0, 5)], 10, "0 of 200 texts, 0 tokens/s, 10 s so far"),
        ("texts", 200, [(0, 0), (30, 96, 37020)], 30,
         "96 of 200 texts, 1,234 tokens/s, 32 s left"),
    ],
)  # fmt: skip
def test_the_line_has_amount_speed_and_the_time_left(
    monkeypatch, clock, unit, total, calls, now, line
):
    Terminal(monkeypatch)
    with Progress("so: ", unit) as progress:
        for seconds, *numbers in calls:
            clock.now = 100 + seconds
            progress(numbers[0], total, *numbers[1:])
        assert progress.line(100 + now) == "so: " + line


def test_the_line_comes_by_itself_and_goes_when_all_is_done(monkeypatch):
    """Even if nothing is told meanwhile."""
    stderr = Terminal(monkeypatch)
    monkeypatch.setattr(Progress, "FIRST", 0.001)
    monkeypatch.setattr(Progress, "PAUSE", 0.001)
    before = threading.active_count()
    progress = Progress("reading: ", "tokens")
    for _ in range(2):  # a second task of the same Progress
        progress(0, 9)
        assert stderr.written.wait(60)
        progress(9, 9)
        said = stderr.getvalue()
        assert said.startswith("reading: 0 of 9 tokens, 0 s so far\033[K\r")
        assert said.endswith("\r\r\033[K")
        assert threading.active_count() == before, "so nothing more comes"
        stderr.truncate(stderr.seek(0))
        stderr.written.clear()


def test_a_task_that_ends_early_leaves_no_line(monkeypatch):
    stderr = Terminal(monkeypatch)
    monkeypatch.setattr(Progress, "FIRST", 0.001)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Progress("", "texts") as progress:
        progress(0, 9)
        assert stderr.written.wait(60)
        raise KeyboardInterrupt
    assert stderr.getvalue().endswith("\r\033[K")
    assert threading.active_count() == before


def test_what_is_written_while_the_line_is_hidden_stands_alone(monkeypatch):
    stderr = Terminal(monkeypatch)
    monkeypatch.setattr(Progress, "FIRST", 0.001)
    monkeypatch.setattr(Progress, "PAUSE", 0.0)
    with Progress("", "texts") as progress:
        progress(0, 9)
        for _ in range(20):
            stderr.written.clear()
            assert stderr.written.wait(60)
            with progress.hidden():
                stderr.write("<")
                threading.Event().wait(0.002)
                stderr.write(">")
    said = stderr.getvalue()
    assert said.count("\r\033[K<>") == 20


def test_a_log_gets_lines_and_a_quiet_run_none(monkeypatch):
    stderr = Terminal(monkeypatch, is_terminal=False)
    monkeypatch.setattr(Progress, "FIRST", 0.0)
    with Progress("", "texts") as progress:
        progress(0, 9)
        monkeypatch.setattr(Progress, "SPARSE", 0.001)
    assert stderr.getvalue() == "", "the first line of a log comes after SPARSE seconds"
    with Progress("", "texts") as progress:
        progress(0, 9)
        assert stderr.written.wait(60)
    assert set(stderr.getvalue().splitlines()) == {"0 of 9 texts, 0 s so far"}
    before = threading.active_count()
    with Progress("", "texts", quiet=True) as progress:
        progress(0, 9)
        assert threading.active_count() == before


def test_a_task_with_nothing_to_do_shows_nothing(monkeypatch):
    Terminal(monkeypatch)
    before = threading.active_count()
    with Progress("", "texts") as progress:
        progress(0, 0)
        assert threading.active_count() == before
