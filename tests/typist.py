"""Somebody who types at a program on a pseudo-terminal."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
import tty
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The program's terminal must be its own, or Ctrl-C would not reach it.
OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "


class Typist:
    """Runs Python code; its standard streams are the terminal."""

    def __init__(self, code, *args, pass_fds=(), **env):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, b"\x18\0\x50\0\0\0\0\0")  # 24 lines of 80
        self.modes = termios.tcgetattr(self.slave)
        self.seen, self.at = "", 0  # all output, and where `until` goes on
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL + code, *map(str, args)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"} | env,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            pass_fds=pass_fds,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def type(self, keys):
        os.write(self.master, keys.encode())

    def until(self, text, seconds=60):
        """What is written up to this text, after what was asked for before."""
        deadline = time.monotonic() + seconds
        while text not in self.seen[self.at :]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {text!r} in {self.seen[self.at :]!r}")
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
        begin, self.at = self.at, self.seen.index(text, self.at) + len(text)
        return self.seen[begin : self.at]

    def press_ctrl_c(self, text):
        """Press it until this text is written.

        Python does not see a signal that comes just before it waits for input, until more comes.
        """
        for seconds in (1, 5, 60):
            self.type("\x03")
            with contextlib.suppress(TimeoutError):
                return self.until(text, seconds)
        raise TimeoutError(f"no {text!r} after Ctrl-C")

    def left_for_the_shell(self):
        """Wait for the end of the program: what it has not read, and whether the modes are back."""
        assert self.process.wait(timeout=60) == 0
        modes = termios.tcgetattr(self.slave)
        tty.setraw(self.slave, termios.TCSANOW)
        os.set_blocking(self.slave, False)
        try:
            rest = os.read(self.slave, 65536)
        except BlockingIOError:
            rest = b""
        return rest, modes == self.modes
