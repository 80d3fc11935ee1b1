"""How many cases the tests try: a quarter of them in `make test`, all in `make test-slow`."""

import os

THOROUGH = "THOROUGH" in os.environ


def examples(number):
    """All `number` cases of a property, or a quarter of them."""
    return number if THOROUGH else -(-number // 4)
