"""Configs: what print() shows of them and of models, and how a Hub config.json is read.

A wrong value is refused by the name of its key.
"""

import dataclasses
import math

# Products and powers of numbers between these stay finite, in Python and in float32.
LEAST, MOST = 1e-30, 1e30
LARGEST_SIZE = 2**24


def one_field_a_line(config):
    """A dataclass as text, for print(config)."""
    fields = (f"    {f.name}={getattr(config, f.name)!r}," for f in dataclasses.fields(config))
    return "\n".join(("Config(", *fields, ")"))


def parameter_count(model):
    """The numbers that a model has learned, however they are stored."""
    quantised = (m for m in model.modules() if getattr(m, "codes", None) is not None)
    count = sum(m.in_features * m.out_features for m in quantised)
    return count + sum(p.numel() for p in model.parameters())


def parameter_line(model):
    """The number of a model's parameters as text, for print(model)."""
    return f"{parameter_count(model):,} parameters"


def is_number(value):
    """Whether it is 0, or a number that is neither nearer to 0 than 1e-30 nor beyond 1e30."""
    return type(value) in (int, float) and (value == 0 or LEAST <= abs(value) <= MOST)


def check_width(**sizes):
    """Raise ValueError for sizes {key: size} whose product is a width above 2^24."""
    if math.prod(sizes.values()) > LARGEST_SIZE:
        found = " times ".join(f"{key} {size}" for key, size in sizes.items())
        raise ValueError(f"{found} is a width of {math.prod(sizes.values())}; at most 2^24")


def check_counts(config, tensors):
    """Raise ValueError for a Config with more layers and experts than there are `tensors`.

    Each has a tensor of its own, or several. Without this check, a config of 200 bytes could ask
    for so many modules that they take all memory.
    """
    kinds = getattr(config, "layers", "")  # of nemotron_h, a letter for each layer
    layers = len(kinds) or config.num_hidden_layers
    experts = kinds.count("E") and kinds.count("E") * config.n_routed_experts
    if layers + experts > tensors:
        found = f"{layers} layers" + (f" with {experts} experts in all" if experts else "")
        raise ValueError(
            f"the config asks for {found}, but there are only {tensors} tensors; each layer and "
            "each expert has one or more"
        )


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
            raise ValueError(f"{given!r:.200} disagree; they are one number")
        return values[0] if values else default

    def number(self, key, default, above=None):
        """A float for which `is_number`, and above `above` if that is given; None stays None."""
        given = self.value(key, default)
        if given is None:
            return None
        if not is_number(given) or (above is not None and given <= above):
            bound = "" if above is None else f" above {above}"
            raise ValueError(
                f"{key} is {given!r:.80}; it must be a number{bound}, neither beyond {MOST:g} nor "
                f"nearer to 0 than {LEAST:g}"
            )
        return float(given)

    def size(self, key, default):
        """A whole number from 1 to 2^24."""
        given = self.value(key, default)
        if type(given) is not int or not 1 <= given <= LARGEST_SIZE:
            raise ValueError(
                f"{key} is {given!r:.80}; it must be a whole number above 0, at most 2^24"
            )
        return given

    def flag(self, key, default):
        """true or false."""
        given = self.value(key, default)
        if type(given) is not bool:
            raise ValueError(f"{key} is {given!r:.80}; it must be true or false")
        return given
