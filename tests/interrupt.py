"""Ctrl-C at any operation of some functions."""

import sys


class Interrupt:
    """Raises KeyboardInterrupt at one step of some functions, and counts the steps till then."""

    def __init__(self, functions, step):
        self.codes, self.left = {function.__code__ for function in functions}, step

    def __call__(self, frame, event, _):
        if frame.f_code not in self.codes:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self

    def around(self, call):
        """Whether `call` was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False
