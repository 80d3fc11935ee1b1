"""Typed reading of a Hub config.json: what is not a number is refused by the name of its key."""

import math


class Keys:
    """The keys of a config.json; null counts as absent.

    spellings {key: (name, ...)}: keys that published configs write in several ways.
    """

    def __init__(self, hub, spellings=None):
        self.hub, self.spellings = hub, spellings or {}

    def value(self, key, default):
        """What the config says, in any spelling; ValueError where two of them disagree."""
        names = self.spellings.get(key, (key,))
        found = {name: self.hub[name] for name in names if self.hub.get(name) is not None}
        values = list(found.values())
        if any(value != values[0] for value in values[1:]):
            raise ValueError(f"{found} disagree; they are one number")
        return values[0] if values else default

    def number(self, key, default, above=None):
        """A finite number, above `above` if that is given; None stays None."""
        found = self.value(key, default)
        good = found is None or (type(found) in (int, float) and math.isfinite(found))
        if not good or (None not in (found, above) and found <= above):
            bound = "" if above is None else f" above {above}"
            raise ValueError(f"{key} is {found!r}; it must be a number{bound}")
        return found

    def size(self, key, default):
        """A whole number from 1 to 2^24."""
        found = self.value(key, default)
        if type(found) is not int or not 1 <= found <= 2**24:
            raise ValueError(f"{key} is {found!r}; it must be a whole number above 0, at most 2^24")
        return found

    def flag(self, key, default):
        """true or false."""
        found = self.value(key, default)
        if type(found) is not bool:
            raise ValueError(f"{key} is {found!r}; it must be true or false")
        return found
