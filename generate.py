#!/usr/bin/env python3
"""Continue a prompt, or chat: nanomodels/cli/generate.py, for a clone that is not installed."""

import _signal  # what signal is made of; importing that takes long enough for a Ctrl-C

if __name__ == "__main__" and _signal.getsignal(2) is _signal.default_int_handler:
    _signal.signal(2, _signal.SIG_DFL)  # no traceback, from the first moment on

from nanomodels.cli import start

if __name__ == "__main__":
    start.leave_at_ctrl_c()

from nanomodels.cli.generate import main

if __name__ == "__main__":
    start.run_program(main)
