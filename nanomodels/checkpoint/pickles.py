"""Checks what torch.save has written before torch.load reads it.

torch.load(weights_only=True) runs no code of a pickle, yet some 200 bytes can freeze or crash it:
tuples that hold each other many times take for ever to hash, and deeply nested ones end the
process (torch 2.13). So the pickle is walked first, without making anything.
"""

import io
import pickletools
import zipfile

import torch

LARGEST_PICKLE = 1 << 24  # bytes; a model of 30B parameters has 1 MB
LARGEST_TUPLE = 1000  # parts, with those of the tuples in it; torch.save needs 30
OLDER_PICKLES = 5  # one after the other in a file from before torch 1.6

# What the pickle of plain tensors calls; it makes no OrderedDict from a value.
CALLS = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
}
VALUES = (
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("EMPTY_LIST", "EMPTY_DICT"),
)
# An entry of the stack: the parts that it counts as, and what it is, if that matters.
VALUE, TEXT, EMPTY_TUPLE = (1, None), (1, "text"), (1, "empty tuple")


def check_torch_file(path):
    """Raise ValueError for a file of torch.save that could stop the process; other errors, too."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # as torch.load tells the two formats apart
            file.seek(0)
            pickles = io.BytesIO(file.read(LARGEST_PICKLE))
            for _ in range(OLDER_PICKLES):
                check_pickle(pickles)
            return
        size = path.stat().st_size
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                    raise ValueError(f"{entry.filename} is compressed; torch.save compresses none")
        file.seek(0)
        data = torch._C.PyTorchFileReader(file).get_record("data.pkl")  # what torch.load reads
    if len(data) > LARGEST_PICKLE:
        raise ValueError(f"its pickle has {len(data)} bytes; at most {LARGEST_PICKLE} are read")
    check_pickle(data)


def check_pickle(data):
    """Walk one pickle, bytes or an open file, as the machine that reads it would."""
    stack, marks, memo = [], [], {}

    def pop(count):
        """Remove the last entries of the stack; None: those since the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        if start < 0:
            raise ValueError("its pickle takes more from the stack than is there")
        entries = stack[start:]
        del stack[start:]
        return entries

    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in VALUES:
            stack.append(VALUE)
        elif name in ("BINUNICODE", "SHORT_BINSTRING"):
            stack.append(TEXT)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "EMPTY_TUPLE":
            stack.append(EMPTY_TUPLE)
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            parts = pop(int(name[5:]) if name[5:] else None)
            size = 1 + sum(size for size, _ in parts)
            if size > LARGEST_TUPLE:
                raise ValueError(f"a tuple has more than {LARGEST_TUPLE} parts")
            stack.append((size, None))
        elif name == "GLOBAL":
            stack.append((1, argument))
        elif name == "REDUCE":
            (_, function), (_, arguments) = pop(2)
            is_dict = function == "collections OrderedDict"
            if function not in CALLS or (is_dict and arguments != "empty tuple"):
                raise ValueError(f"it calls {function}; nothing in it was run")
            stack.append((1, "dict") if is_dict else VALUE)
        elif name == "BUILD":  # sets attributes
            pop(1)
            if stack[-1][1] != "dict":
                raise ValueError("it changes an object; nothing in it was run")
        elif name == "BINPERSID":  # a storage, by its description
            pop(1)
            stack.append(VALUE)
        elif name in ("APPEND", "APPENDS"):
            pop(1 if name == "APPEND" else None)
        elif name in ("SETITEM", "SETITEMS"):
            keys = pop(2 if name == "SETITEM" else None)[::2]
            if any(what != "text" for _, what in keys):
                raise ValueError("a dict has a key that is no text")
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"its pickle has a {name}, which plain tensors do not need")
