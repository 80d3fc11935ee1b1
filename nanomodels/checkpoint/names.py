"""Names of tensors: from those in a checkpoint's files to those of the model's parameters."""

import re

NUMBER = r"(?<=\.)\d+(?=\.)"  # of a layer or an expert, in a tensor's name
# Begins the name of a tensor that only fills the gap before an aligned one: see writing.make_file.
PADDING_PREFIX = "padding."


def pattern(name):
    """A tensor's name with {} in place of each number between dots."""
    return re.sub(NUMBER, "{}", name)


def numbers(name):
    """The layer and expert numbers in a tensor's name, as strings."""
    return re.findall(NUMBER, name)


def rename(tensors, table):
    """Name the tensors of a checkpoint as the model's parameters.

    table {name in the checkpoint: parameter name} has {} for each number between dots. If the
    parameter's name has one {} more, the tensor is a stack with one row for each number. None: the
    tensor is skipped; "some.*" with None: so are all whose names begin with "some.".
    Returns {parameter name: [(name in the checkpoint, tensor), ...]}, and the names skipped.
    Raises ValueError for names that are not in the table.
    """
    renamed, skipped, unknown = {}, [], []
    skipped_prefixes = tuple(name[:-1] for name in table if name.endswith(".*"))
    for name, tensor in tensors.items():
        kind, indices = pattern(name), numbers(name)
        parameter = table.get(kind)
        if parameter is None:
            known = kind in table or name.startswith(skipped_prefixes)
            (skipped if known else unknown).append(name)
        elif parameter.count("{}") == len(indices):
            renamed.setdefault(parameter.format(*indices), []).append((name, tensor))
        elif tensor.dim() != 3 or not tensor.numel():  # no numbers: it may claim any number of rows
            raise ValueError(
                f"{name} is {list(tensor.shape)}; it must have a matrix a row, stacked"
            )
        else:
            for i, row in enumerate(tensor):
                renamed.setdefault(parameter.format(*indices, i), []).append((name, row))
    if unknown:
        raise ValueError(f"unexpected tensors: {listed(unknown)}")
    return renamed, skipped


def left_out(skipped):
    """One line about skipped tensors, {name: bytes}."""
    words = [name.split(".") for name in skipped]
    kinds = {f"*.{w[-1]}" if w[-1].endswith("_scale") else f"{w[0]}.*" for w in words}
    size = sum(skipped.values()) / 1e6
    return f"{', '.join(sorted(kinds))}: {len(skipped)} tensors, {size:.1f} MB"


def listed(names):
    """Up to five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:5]) + more
