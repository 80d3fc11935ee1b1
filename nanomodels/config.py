"""Reading a Hub config.json with type checks; a wrong value is refused by the name of its key."""

import dataclasses
import math


def one_field_a_line(config):
    """A dataclass as text, for print(config)."""
    fields = (f"    {f.name}={getattr(config, f.name)!r}," for f in dataclasses.fields(config))
    return "\n".join(("Config(", *fields, ")"))


class ConfigReader:
    """Reads the keys of a config.json, given as a dict; null counts as absent.

    spellings {key: (name, ...)}: keys that published configs write in several ways.
    """

    def __init__(self, hub, spellings=None):
        self.hub, self.spellings = hub, spellings or {}

    def value(self, key, default):
        """The value in any spelling. Raises ValueError if two spellings disagree."""
        names = self.spellings.get(key, (key,))
        given = {name: self.hub[name] for name in names if self.hub.get(name) is not None}
        values = list(given.values())
        if any(value != values[0] for value in values[1:]):
            raise ValueError(f"{given} disagree; they are one number")
        return values[0] if values else default

    def number(self, key, default, above=None):
        """A finite number, greater than `above` if that is given; None stays None."""
        given = self.value(key, default)
        good = given is None or (type(given) in (int, float) and math.isfinite(given))
        if not good or (None not in (given, above) and given <= above):
            bound = "" if above is None else f" above {above}"
            raise ValueError(f"{key} is {given!r}; it must be a number{bound}")
        return given

    def size(self, key, default):
        """A whole number from 1 to 2^24."""
        given = self.value(key, default)
        if type(given) is not int or not 1 <= given <= 2**24:
            raise ValueError(f"{key} is {given!r}; it must be a whole number above 0, at most 2^24")
        return given

    def flag(self, key, default):
        """true or false."""
        given = self.value(key, default)
        if type(given) is not bool:
            raise ValueError(f"{key} is {given!r}; it must be true or false")
        return given
