"""One line on stderr that says how far a long task is."""

import contextlib
import sys
import threading
import time

from nanomodels.text.files import say, show


class Progress:
    """Shows how much of a task is done, and the time that is left.

    Call it with (done, total), for the first time before the task begins. A thread writes the line
    on a clock: on a terminal after FIRST seconds and then every PAUSE seconds, over the line
    before; elsewhere every SPARSE seconds, a line each. So it comes even if one call takes minutes.
    The line goes when all is done, and at the end of the `with` block. The next call with less than
    all begins a new task.

    what is the beginning of the line. unit is "GB" (done and total are bytes), "tokens" or "texts".
    """

    FIRST, PAUSE, SPARSE = 2.0, 0.5, 30.0

    def __init__(self, what, unit, quiet=False):
        self.what, self.unit = what, unit
        self.quiet = quiet or sys.stderr is None
        self.on_terminal = not self.quiet and sys.stderr.isatty()
        self.lock = threading.Lock()  # held while the line is written
        self.thread = None

    def __call__(self, done, total, tokens=0):
        """Note how much is done. tokens: how many the texts have so far, for their rate."""
        now = time.monotonic()
        if self.thread is None:
            if self.quiet or done == total:
                return
            self.first, self.last = (now, done), (now, done, tokens)
            self.total, self.is_shown, self.is_over = total, False, threading.Event()
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()
        self.last = now, done, tokens
        if done == total:
            self.end()

    def run(self):
        """What the thread does."""
        pause = self.FIRST if self.on_terminal else self.SPARSE
        while not self.is_over.wait(pause):
            with self.lock:
                say(self.line(time.monotonic()), end="\033[K\r" if self.on_terminal else "\n")
                self.is_shown = True
            pause = self.PAUSE if self.on_terminal else self.SPARSE

    def line(self, now):
        """The line at the time `now`."""
        (then, before), (last, done, tokens) = self.first, self.last
        seconds = max(last - then, 1e-9)
        rate = (done - before) / seconds
        if self.unit == "GB":
            amount = f"{done / 1e9:.2f} of {self.total / 1e9:.2f} GB"
            speed = f"{rate / 1e9:.2f} GB/s"
        else:
            amount = f"{done:,} of {self.total:,} {self.unit}"
            speed = f"{tokens / seconds if self.unit == 'texts' else rate:,.0f} tokens/s"
        if not rate:
            left = f"{now - then:.0f} s so far"
        else:
            left = max(0, (self.total - done) / rate - (now - last))
            left = f"{left:.0f} s left" if left < 120 else f"{left / 60:.0f} min left"
        return f"{self.what}{amount}, {f'{speed}, ' if last > then else ''}{left}"

    @contextlib.contextmanager
    def hidden(self):
        """Take the line off the terminal while something else is written."""
        with self.lock:
            self.clear()
            yield

    def clear(self):
        if self.thread is not None and self.is_shown and self.on_terminal:
            show("\r\033[K")
            self.is_shown = False

    def end(self):
        """Take the line off the terminal; the task is over."""
        if self.thread is not None:
            self.is_over.set()
            self.thread.join()
            self.clear()
            self.thread = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
