#!/usr/bin/env python3
"""Convert a checkpoint: nanomodels/cli/convert.py, for a clone that is not installed."""

from nanomodels.cli import start

if __name__ == "__main__":
    start.leave_at_ctrl_c()

from nanomodels.cli.convert import main

if __name__ == "__main__":
    start.run_program(main)
