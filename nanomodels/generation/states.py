"""A conversation in a file: its turns, and the cache of what was read of them.

It is a safetensors file of `Cache.save`: the cache's tensors, their ids, and as notes a JSON object
with the conversation and with all that the tensors depend on. A file that does not fit the model
is refused. Nothing is unpickled. Of the marks only the last is saved, so with Mamba-2 layers a
conversation that was loaded can go back to where it was saved, but not to an earlier turn.
"""

import hashlib
import json
import zlib
from dataclasses import asdict, fields

import torch

from nanomodels.cache import READING_ERRORS, read_saved
from nanomodels.generation.prompts import ChatEncoder, TextEncoder, Turn
from nanomodels.generation.reuse import PrefixCache
from nanomodels.linears.sizes import formats

# "text" is raw text. The fields of each that are saved: all but the tokenizer.
KINDS = {"chat": ChatEncoder, "text": TextEncoder}
SAMPLE = 64  # numbers of each weight that are compared, so that a large model need not be read


def check_whole(model):
    """Raise ValueError for one rank's part of a model."""
    if hasattr(model, "share"):
        raise ValueError("a model that is cut over processes cannot save or load a conversation")


def save(chat, path):
    """Write a Chat whose answer has ended; errors as of Cache.save."""
    check_whole(chat.model)
    cache, encoder = chat.prefix.cache, chat.encoder
    notes = {
        "kind": next(name for name, kind in KINDS.items() if type(encoder) is kind),
        "options": {name: getattr(encoder, name) for name in options_of(type(encoder))},
        "turns": [asdict(turn) for turn in chat.turns],
        "fingerprint": fingerprint(chat.model, chat.tokenizer),
        "crc32": checksum(cache.tensors(cache.length)),
    }
    cache.save(path, [chat.prefix.ids[: cache.length]], json.dumps(notes))


@torch.inference_mode()
def load(chat, path):
    """Let a Chat go on with what is in a file; errors as of Chat.load."""
    check_whole(chat.model)
    saved = read_saved(path, "conversation")
    try:
        notes = json.loads(saved.notes)
        found, crc32 = dict(notes["fingerprint"]), notes["crc32"]
        kind, options, turns = read_conversation(notes)
    except READING_ERRORS as error:
        reason = str(error)[:200]
        raise ValueError(f"{path}: not a conversation that was saved whole ({reason!r})") from None
    for what, here in fingerprint(chat.model, chat.tokenizer).items():
        if found.get(what) != here:
            raise ValueError(
                f"{path}: was saved with another {what}{difference(found.get(what), here)}"
            )
    if crc32 != checksum(saved.snapshot) or len(saved.ids) != 1:
        raise ValueError(f"{path}: is damaged: its tensors are not those that were saved")
    prefix = PrefixCache(chat.model, chat.prefix.most_bytes)
    [prefix.ids] = saved.ids
    prefix.make_room(len(prefix.ids))
    try:
        prefix.cache.restore(saved.snapshot)
        prefix.mark()
        encoder = kind(chat.tokenizer, **options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    chat.prefix, chat.encoder, chat.turns, chat.reply = prefix, encoder, turns, None


def options_of(kind):
    """The names of an encoder's fields that are saved."""
    return [field.name for field in fields(kind) if field.init and field.name != "tokenizer"]


def read_conversation(notes):
    """The kind, options and turns in a file's notes; one of READING_ERRORS if it has none."""
    kind, options = KINDS[notes["kind"]], notes["options"]
    turns = [Turn(**turn) for turn in notes["turns"]]
    messages = [message for turn in turns for message in turn.messages]
    if not (
        [*options] == options_of(kind)
        and isinstance(options["system"], str | None)
        and isinstance(options.get("think"), bool | None)
        and isinstance(options.get("tools"), list | None)
        and all(type(number) is int for turn in turns for number in (turn.length, *turn.tokens))
        and all(type(turn.messages) is list and turn.messages for turn in turns)
        and all(type(each["role"]) is str and "content" in each for each in messages)
    ):
        raise ValueError("its turns or options are not those of a conversation")
    return kind, options, turns


def fingerprint(model, tokenizer):
    """What a state depends on: {what: value}, in the order in which it is compared."""
    return {
        "model": type(model).__name__,
        "config": {f.name: repr(getattr(model.config, f.name)) for f in fields(model.config)},
        "dtype": " and ".join(formats(model)),
        "set of weights": digest(sample(weight) for weight in weights(model)),
        "tokenizer": tokenizer.fingerprint(),
        "chat template": digest([(tokenizer.chat_template or "").encode()]),
    }


def difference(found, here):
    """In words, how a value of `fingerprint` differs; of a digest, nothing."""
    if isinstance(found, dict) and isinstance(here, dict):
        name = next((n for n in here if found.get(n) != here[n]), None)
        return f": {name} is {found.get(name)}, here {here.get(name)}"
    return f": {found}, here {here}" if len(str(found)) < 40 else ""


def weights(model):
    """All weights; of quantised ones the scales, because codes are stored as the CPU wants them."""
    yield from model.parameters()
    yield from (tensor for name, tensor in model.named_buffers() if name.endswith("scales"))


def sample(weight):
    """The bytes of some numbers in the middle of a weight."""
    middle = weight.numel() // 2
    return as_bytes(weight.detach().flatten()[middle : middle + SAMPLE])


def digest(pieces):
    """A hash of some bytes, as text."""
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    return hashed.hexdigest()


def checksum(tensors):
    """The CRC-32 of tensors by name."""
    crc32 = 0
    for name in sorted(tensors):
        crc32 = zlib.crc32(as_bytes(tensors[name]), zlib.crc32(name.encode(), crc32))
    return crc32


def as_bytes(tensor):
    """The bytes of a tensor."""
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
