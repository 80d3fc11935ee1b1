#!/usr/bin/env python3
"""Continue a prompt, or chat: nanomodels/cli/generate.py, for a clone that is not installed."""

from nanomodels.cli import start

if __name__ == "__main__":
    start.leave_at_ctrl_c()

from nanomodels.cli.generate import main

if __name__ == "__main__":
    start.run_program(main)
