"""The ids that end generation, from all the files of a checkpoint folder that name one.

The one rule for Python users and the commands: config.json, generation_config.json and the
tokenizer may each name other ids, and a model may use any of them.
"""

import re

from nanomodels.text.files import one_line, read_json


def stop_ids(folder, config):
    """The stop ids of a folder, sorted; config is its config.json, of the language model.

    They are the eos_token_id of config.json and of generation_config.json, and what
    `of_tokenizer` returns. Raises ValueError for an id that is not a whole number.
    """
    named = [config.get("eos_token_id")]
    path = folder / "generation_config.json"
    if path.is_file():
        named.append(read_json(path).get("eos_token_id"))
    named += of_tokenizer(folder)
    ids = [i for entry in named for i in (entry if isinstance(entry, list) else [entry])]
    for i in ids:
        if i is not None and type(i) is not int:
            raise ValueError(f"{folder}: eos_token_id {i!r} must be a whole number, or a list")
    return tuple(sorted({i for i in ids if i is not None}))


def of_tokenizer(folder):
    """The id of the tokenizer's eos_token; of nanochat's tokenizer <|assistant_end|> and <|bos|>.

    nanochat/engine.py stops at either. tokenizer.json is large, so it is read only if
    tokenizer_config.json does not list the tokens.
    """
    path = folder / "tokenizer.json"
    if not path.is_file() and any(folder.glob("*.model")):
        from nanomodels.text.tokenizer import Tokenizer  # here, because tiktoken takes 0.2 s

        try:
            return [Tokenizer.load(folder).eos_id]
        except ValueError:  # a model can be loaded without its tokenizer
            return []
    names = read_if_there(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in names:  # as Tokenizer.load does
        names |= read_if_there(folder / "special_tokens_map.json")
    try:
        eos = names.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        listed = names.get("added_tokens_decoder") or {}
        if odd := [i for i in listed if not re.fullmatch("[0-9]{1,9}", i)]:
            raise ValueError(
                f"{folder / 'tokenizer_config.json'}: added_tokens_decoder has {odd[0]!r:.80} for "
                "an id; it must be a whole number"
            )
        ids = {token["content"]: int(i) for i, token in listed.items()}
        if path.is_file() and (not ids or (eos is not None and eos not in ids)):
            content = read_json(path)
            vocab = (content.get("model") or {}).get("vocab")
            ids = {eos: vocab[eos]} if isinstance(vocab, dict) and eos in vocab else {}
            ids |= {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        stops = [eos]
        if "<|assistant_end|>" in ids:
            stops += ["<|assistant_end|>", "<|bos|>"]
        return [ids.get(name) for name in stops]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: tokenizer_config.json or tokenizer.json is not laid out as transformers "
            f"writes it ({type(error).__name__}: {one_line(error)})"
        ) from None


def read_if_there(path):
    """The object in a JSON file, {} if there is no file."""
    return read_json(path) if path.is_file() else {}
