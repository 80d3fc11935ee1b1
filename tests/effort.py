"""How much the tests try: a quarter of the cases in `make test`, all in `make test-slow`."""

import os

THOROUGH = "THOROUGH" in os.environ


def examples(number):
    """So many of a property's `number` cases."""
    return number if THOROUGH else -(-number // 4)
