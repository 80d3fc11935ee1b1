"""nanochat's tokenizer.pkl: a pickled tiktoken encoding whose ranks are ids.

`read` reads it. `hub_files` turns it into the files of a Hub folder.
"""

import io
import pickle
import pickletools
from pathlib import Path

from nanomodels.text.bpe import ALPHABET, SHARED_SYNTAX, ByteLevel, BytePairs, join
from nanomodels.text.chat_template import NANOCHAT_TEMPLATE, read_templates
from nanomodels.text.files import one_line, refusal

# A pickle of 300,000 tokens has 5 MB.
LARGEST = 8_000_000
# What pickles of tiktoken's state need: dicts, strings, bytes, small numbers, references, one
# object. With tuples, a few bytes could make a key whose hash takes for ever, or a crash.
OPCODES = frozenset(
    "PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL EMPTY_TUPLE NEWOBJ BUILD MEMOIZE "  # noqa: SIM905
    "EMPTY_DICT SETITEM SETITEMS SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES "
    "BININT BININT1 BININT2 BINGET LONG_BINGET BINPUT LONG_BINPUT".split()
)


def check_opcodes(content):
    """Raise an UNPICKLING_ERROR for a pickle that is too large or holds other opcodes."""
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    words = []  # the last two
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "SHORT_BINUNICODE":
            words = [*words[-1:], argument]
        if opcode.name == "STACK_GLOBAL" and words != ["tiktoken.core", "Encoding"]:
            raise pickle.UnpicklingError(f"it refers to {'.'.join(words)}")
        if opcode.name not in OPCODES:
            raise ValueError(f"it holds the opcode {opcode.name}")
        # The place in the memo: Python takes memory for all places before it.
        if opcode.name.endswith("BINPUT") and argument > len(content):
            raise ValueError(f"it stores a value at {argument}")


class PickledEncoding:
    """Takes the place of tiktoken.core.Encoding in a pickle and only stores its state.

    tiktoken's own __setstate__ would download an encoding if the state is a name.
    """

    def __setstate__(self, state):
        self.state = state


class EncodingUnpickler(pickle.Unpickler):
    """Refuses every global in a pickle except tiktoken's Encoding."""

    def find_class(self, module, name):
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return PickledEncoding


# The errors that a damaged pickle, or wrong content in it, can raise.
UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


def pickle_paths(folder):
    """List where the tokenizer.pkl of a folder can be: in it, or where nanochat's training puts it.

    A run has its checkpoints in NANOCHAT_BASE_DIR/base_checkpoints/d20 (or mid_, chatsft_,
    chatrl_checkpoints) and one tokenizer for all of them in NANOCHAT_BASE_DIR/tokenizer.
    Source: karpathy/nanochat nanochat/tokenizer.py get_tokenizer, checkpoint_manager.py load_model.
    """
    paths = [folder / "tokenizer.pkl"]
    if any(folder.glob("model_*.pt")):
        paths.append(folder.resolve().parent.parent / "tokenizer" / "tokenizer.pkl")
    return paths


def find_pickle(folder):
    paths = pickle_paths(folder)
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{folder}: found no tokenizer of nanochat, neither {' nor '.join(map(str, paths))}"
    )


def unpickle(path):
    """Read tokenizer.pkl: its regex, {bytes: rank}, {name of a special token: id}, BytePairs.

    A pickle can run any code. This one may hold one tiktoken.core.Encoding and nothing else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        check_opcodes(content)
        state = EncodingUnpickler(io.BytesIO(content)).load().state
        pattern, ranks, special = (
            state[key] for key in ("pat_str", "mergeable_ranks", "special_tokens")
        )
        if not (
            isinstance(pattern, str)
            and {(type(token), type(rank)) for token, rank in ranks.items()} == {(bytes, int)}
            and {(type(name), type(rank)) for name, rank in special.items()} <= {(str, int)}
            and all(bytes([byte]) in ranks for byte in range(256))
            and len(ids := {*ranks.values(), *special.values()}) == len(ranks) + len(special)
            and min(ids) >= 0
        ):
            raise ValueError("its pattern, ranks or special tokens are not tiktoken's")
        pairs = BytePairs(path.name, pattern, ranks)
    except UNPICKLING_ERRORS as error:
        raise ValueError(
            f"{path}: not a plain pickle of one tiktoken.core.Encoding ({one_line(error)}); "
            "nothing in it was run"
        ) from None
    return pattern, ranks, special, pairs


def read(folder):
    """Read the tokenizer.pkl of a training folder; return what Tokenizer takes."""
    _, ranks, special, pairs = unpickle(find_pickle(folder))
    token_bytes = {rank: token for token, rank in ranks.items()}
    token_bytes |= {rank: name.encode() for name, rank in special.items()}
    added = [{"id": rank, "content": name, "special": True} for name, rank in special.items()]
    codec = ByteLevel(pairs, token_bytes)
    return codec, added, nanochat_names(special), templates_of(folder)


def nanochat_names(special):
    names = {"bos_token": "<|bos|>", "eos_token": "<|assistant_end|>"}
    return {key: name for key, name in names.items() if name in special}


def templates_of(folder):
    return {"default": NANOCHAT_TEMPLATE} | read_templates(folder, {})


def hub_files(folder):
    """Return the tokenizer of a nanochat training folder as the files of a Hub folder.

    The result is {name: content}; content is text, or an object for json.dump. With these files,
    tokenizers and transformers give the ids that tiktoken gives with tokenizer.pkl.
    Raises ValueError, with the file, if a tokenizer.json cannot do the same.
    """
    path = find_pickle(Path(folder))
    pattern, ranks, special, _ = unpickle(path)
    if not SHARED_SYNTAX.fullmatch(pattern):
        raise refusal(path, "pat_str", pattern, "syntax that Oniguruma and Rust understand alike")
    characters = {byte: char for char, byte in ALPHABET.items()}
    tokens = ["".join(map(characters.get, token)) for token in sorted(ranks, key=ranks.get)]
    vocab = dict(zip(tokens, sorted(ranks.values()), strict=True))
    if both := vocab.keys() & special.keys():
        raise refusal(path, "special_tokens", sorted(both), "names that no other token spells")

    def order(pair):
        return vocab.get("".join(pair))

    # Each token has one pair that makes it in every text: what a stretch of text becomes depends
    # on that stretch alone, as long as nothing merges across its ends.
    merges = [join(token, order, until=2)[0] for token in tokens if len(token) > 1]
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    added = [
        {"id": i, "content": name, **dict.fromkeys(flags, False), "special": True}
        for name, i in sorted(special.items(), key=lambda item: item[1])
    ]
    names = nanochat_names(special)
    # Removed with invert keeps what the regex matches and drops the rest, as tiktoken does.
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = False
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "post_processor": None,
            "decoder": level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": True,  # tiktoken looks up a whole piece before it merges
                "vocab": vocab | special,
                "merges": [parts for parts in merges if len(parts) == 2],  # others are never made
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "pad_token": names.get("bos_token"),
            "additional_special_tokens": [name for name in special if name not in names.values()],
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: token[key] for key in ("content", *flags, "special")}
                for token in added
            },
        },
        "chat_template.jinja": templates_of(Path(folder))["default"],
    }
