"""Conversations in files: they go on as if never saved, and what does not fit is refused."""

import copy
import json
import shutil

import pytest
import torch
from chats import FOLDERS, TEN, WEIGHTS, ask_and_compare, check_cache, loaded, start
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nanomodels


def saved(path, name, turns=2, **options):
    """A chat that was saved, and its file."""
    chat = start(name, system="You are kind.", **options)
    for text in TEN[:turns]:
        str(chat.ask(text))
    chat.save(path)
    return chat


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("turns", [0, 2])
def test_a_conversation_goes_on_from_its_file_and_reads_only_what_is_new(tmp_path, name, turns):
    """Without a turn, it is a system message that has been read."""
    chat = saved(tmp_path / "state", name, turns)
    other = start(name)
    str(other.ask(TEN[7]))
    other.load(tmp_path / "state")
    assert (other.messages, other.length, other.reply) == (chat.messages, chat.length, None)
    ids, read = ask_and_compare(other, TEN[2])
    assert read == len(ids) - chat.prefix.cache.length < len(ids) / 2 + 20
    check_cache(other)
    other.retry()
    assert other.reply.prompt_tokens - other.reply.reused_tokens < 12
    other.undo()
    ids, read = ask_and_compare(other, TEN[3])
    assert read == len(ids) - chat.prefix.cache.length
    other.undo()
    if turns:
        other.undo()
    ask_and_compare(other, TEN[3])
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        other.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is not a file"):
        chat.save(tmp_path)


def test_reasoning_that_the_next_prompt_drops_is_not_in_the_file(tmp_path):
    chat = saved(tmp_path / "state", "nemotron_h", think=True, max_new_tokens=40)
    assert chat.messages[-1]["reasoning_content"]
    other = start("nemotron_h")
    other.load(tmp_path / "state")
    assert other.encoder.think is True
    assert other.messages == chat.messages
    reply = other.ask(TEN[2], max_new_tokens=1)
    assert reply.prompt_tokens - reply.reused_tokens < 40


def test_raw_text_and_tools_are_saved_too(tmp_path):
    model, tokenizer = loaded("nemotron")
    raw = nanomodels.Chat(model, tokenizer, raw=True, system="Once", max_new_tokens=4)
    str(raw.ask(" upon a time"))
    raw.save(tmp_path / "raw")
    expected = str(raw.ask(" and"))
    chat = nanomodels.Chat(model, tokenizer, max_new_tokens=4)
    chat.load(tmp_path / "raw")
    assert str(chat.ask(" and")) == expected
    assert chat.messages == raw.messages
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template += "{{ tools }}"
    options = {"tools": [{"name": "clock"}], "trust_text": True}
    nanomodels.Chat(model, tokenizer, **options).save(tmp_path / "tools")
    chat = nanomodels.Chat(model, tokenizer)
    chat.load(tmp_path / "tools")
    assert {name: getattr(chat.encoder, name) for name in options} == options


def refused(chat, path, words):
    """Loading the file is a ValueError in one line, and changes nothing."""
    before = chat.messages, chat.encoder, chat.prefix, chat.reply
    with pytest.raises(ValueError, match=words) as error:
        chat.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert before == (chat.messages, chat.encoder, chat.prefix, chat.reply)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Of nemotron_h, in float32."""
    path = tmp_path_factory.mktemp("states") / "state"
    saved(path, "nemotron_h")
    return path


def test_a_state_of_something_else_is_refused_by_name(file, tmp_path):
    model, tokenizer = loaded("nemotron_h")
    folder = FOLDERS["nemotron_h"]
    str((chat := start("nanochat")).ask(TEN[0]))
    refused(chat, file, "was saved with another model: NemotronH, here NanoChat")
    for options, words in (
        ({}, "another dtype: float32, here bfloat16"),
        ({"dtype": torch.float32, "quantize": "int8"}, "dtype: float32, here int8 and float32"),
    ):
        refused(nanomodels.Chat(folder, **options), file, words)

    for change, words in (
        (lambda config: config | {"layer_norm_epsilon": 1e-4}, "config: .* is 1e-05, here 0.0001"),
        (lambda config: config | {"max_position_embeddings": 4095}, "is 4096, here 4095"),
    ):
        other = tmp_path / words[:9]
        shutil.copytree(folder, other)
        config = change(json.loads((folder / "config.json").read_text()))
        (other / "config.json").write_text(json.dumps(config))
        refused(nanomodels.Chat(other, dtype=torch.float32), file, words)

    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.layers[3].mixer.q_proj.weight.add_(1e-3)
    refused(nanomodels.Chat(tuned, tokenizer), file, "another set of weights$")
    tuned = copy.deepcopy(tokenizer)
    tuned.chat_template += " "
    refused(nanomodels.Chat(model, tuned), file, "another chat template$")
    tuned = copy.deepcopy(tokenizer)
    tuned.codec.token_bytes[300] = b"xyz"
    refused(nanomodels.Chat(model, tuned), file, "another tokenizer$")
    nanomodels.Chat(model, tokenizer).load(file)


def test_the_weights_of_quantised_linears_count_too(tmp_path):
    folder = WEIGHTS / "nemotron-tiny"
    chat = nanomodels.Chat(folder, raw=True, quantize="int8", max_new_tokens=2)
    str(chat.ask("Once upon"))
    chat.save(tmp_path / "state")
    layer = chat.model.model.layers[2].mlp.up_proj
    chat.load(tmp_path / "state")
    layer.scales.mul_(1.5)
    refused(chat, tmp_path / "state", "another set of weights")


def test_a_damaged_file_is_refused(file, tmp_path):
    """Cut anywhere; or one bit wrong, in the header or in the tensors."""
    chat, whole = start("nemotron_h"), file.read_bytes()
    path, header = tmp_path / "damaged", 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 7, 100, header, header + 1000, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(chat, path, "not a conversation that was saved whole")
    for at in (header, (header + len(whole)) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        refused(chat, path, "is damaged|positions|saved whole|not as many")


def rewritten(file, path, change):
    """Write the file again, with its notes changed by change(notes)."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    notes = json.loads(metadata["notes"])
    metadata["notes"] = json.dumps(change(notes) or notes)
    save_file(load_file(file), path, metadata=metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda notes: [notes],
        lambda notes: notes.pop("fingerprint") and None,
        lambda notes: notes.update(fingerprint=5),
        lambda notes: notes.update(kind="song"),
        lambda notes: notes.update(kind=["chat"]),
        lambda notes: notes.update(options={}),
        lambda notes: notes["options"].update(tokenizer=1),
        lambda notes: notes["options"].update(system=7),
        lambda notes: notes["options"].update(think="yes"),
        lambda notes: notes["options"].update(tools=3),
        lambda notes: notes.update(turns={"a": 1}),
        lambda notes: notes["turns"].append(5),
        lambda notes: notes["turns"].append({"messages": []}),
        lambda notes: notes["turns"][0].update(messages="hello"),
        lambda notes: notes["turns"][0].update(song=1),
        lambda notes: notes["turns"][0].update(length="x"),
        lambda notes: notes["turns"][0].update(tokens=["x"]),
        lambda notes: notes["turns"][0]["messages"][0].pop("content") and None,
        lambda notes: notes["turns"][0]["messages"][0].update(role=1),
    ],
)
def test_notes_that_are_no_conversation_are_refused(file, tmp_path, change):
    rewritten(file, tmp_path / "changed", change)
    words = "not a conversation that was saved whole"
    refused(start("nemotron_h"), tmp_path / "changed", words)


def test_a_plain_cache_and_another_count_are_refused(file, tmp_path):
    chat = start("nemotron_h")
    chat.prefix.cache.save(tmp_path / "cache", [[]])
    refused(chat, tmp_path / "cache", "not a conversation that was saved whole")
    rewritten(file, tmp_path / "changed", lambda notes: notes.update(crc32=1))
    refused(chat, tmp_path / "changed", "is damaged: its tensors are not those that were saved")
    rewritten(file, tmp_path / "changed", lambda notes: notes["fingerprint"].update(model=[1]))
    refused(chat, tmp_path / "changed", r"another model: \[1\], here NemotronH")
    rewritten(file, tmp_path / "changed", lambda notes: None)
    chat.load(tmp_path / "changed")
