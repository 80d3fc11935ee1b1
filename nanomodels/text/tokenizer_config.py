"""tokenizer_config.json, which stands beside a tokenizer.json or a .model file."""

from nanomodels.text.files import read_json, refusal


def read_config(folder):
    """Return the content of tokenizer_config.json, {} if there is none."""
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def read_names(folder, config):
    """{"bos_token": "<s>", ...}: the named tokens, which chat templates can use as variables."""
    older = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and older.is_file():
        config = config | read_json(older)
    names = {key: value for key, value in config.items() if key.endswith("_token")}
    if isinstance(config.get("extra_special_tokens"), dict):
        names |= config["extra_special_tokens"]
    names = {k: v.get("content") if isinstance(v, dict) else v for k, v in names.items()}
    return {key: value for key, value in names.items() if isinstance(value, str)}


def add_named(folder, path, vocab, added, names):
    """Append the tokens that `names` names to the list `added`, as transformers does.

    vocab {token: id}: the vocabulary in the file `path`. ValueError for a name that it lacks.
    """
    known = {token["content"] for token in added}
    for name in dict.fromkeys(names.values()):
        if name in vocab and name not in known:
            added.append({"id": vocab[name], "content": name, "special": True})
    for key in ("bos_token", "eos_token"):
        if names.get(key, "") not in {"", *known, *vocab}:
            raise refusal(folder / "tokenizer_config.json", key, names[key], f"a token of {path}")
