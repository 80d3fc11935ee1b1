"""The first lines of a command: imported before all that is slow to import."""

import os
import signal
import sys

if sys.version_info < (3, 11):  # noqa: UP036 (the commands of a clone run without pip)
    found = "{}.{}".format(*sys.version_info)
    sys.stderr.write("error: nanomodels needs Python 3.11 or newer; this is " + found + "\n")
    sys.exit(2)


def leave(*_):
    """End the program at once, without an exception, which can break an import of torch."""
    os._exit(130)


def leave_at_ctrl_c():
    """Until catch_interrupts is called. Where Ctrl-C is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
        signal.signal(signal.SIGINT, leave)


def catch_interrupts():
    """Let Ctrl-C raise KeyboardInterrupt from here on."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_program(main):
    """Call main() and end the program with the status that it returns."""
    try:
        status = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # only Python's own clean-up is left
    except KeyboardInterrupt:  # a second one, or at the very end
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = 130
    sys.exit(status)
