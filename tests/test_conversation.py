"""nanomodels.Chat: it says what each prompt alone would give, and reads only what is new."""

from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise

import pytest
import torch
from chats import (
    FOLDERS,
    NEW,
    TEN,
    WEIGHTS,
    alone,
    ask_and_compare,
    check_cache,
    common,
    feeding,
    loaded,
    start,
    user,
)  # fmt: skip
from compare import same_cache
from effort import THOROUGH
from interrupt import Interrupt
from reference import random_nanochat
from scripted import BEGINNINGS, Scripted
from small_tokenizers import family_131072

import nanomodels
from nanomodels.cache import Cache
from nanomodels.generation import reuse
from nanomodels.generation.conversation import Chat, Reply
from nanomodels.generation.reuse import PrefixCache


@contextmanager
def interrupted(model, call):
    """Ctrl-C in the last layer of a call of the model; 1 is the first."""
    left = call

    def interrupt(*_):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    hook = getattr(model, "model", model).layers[-1].register_forward_hook(interrupt)
    yield
    hook.remove()


@pytest.mark.parametrize(
    ("name", "think"),
    [
        ("nanochat", None),
        ("nanochat_2026", None),
        ("nemotron", None),
        ("nemotron_h", False),
        ("nemotron_h", True),
    ],
)
def test_ten_turns_say_what_each_prompt_alone_gives_and_read_only_what_is_new(name, think):
    """New is what follows the longest place to go back to that the prompt begins with.

    Attention can go back to any token; with Mamba-2 layers to the ends of the system message, of
    each message and of each answer. An answer that is encoded as other tokens than the model's,
    or without its reasoning, is new.
    """
    chat = start(name, think=think, system="You are kind.")
    variables = {} if think is None else {"enable_thinking": think}
    encode = partial(chat.tokenizer.encode_chat, **variables)
    places = [common(*(encode([*chat.messages, user(text)]) for text in "xy"))]
    held, whole = [], 0
    for text in TEN:
        message = encode([*chat.messages, user(text)], add_generation_prompt=False)
        ids, read = ask_and_compare(chat, text)
        if chat.prefix.cache.has_ssm:
            known = max((len(p) for p in places if ids[: len(p)] == p and held), default=0)
        else:
            known = len(common(ids, held))
        assert read == len(ids) - known
        whole += known == len(held)
        stopped = chat.reply.finish_reason == "stop"
        held = (ids + chat.reply.tokens)[: None if stopped else -1]
        places += [message, held]
    check_cache(chat)
    if (name, think) in (("nanochat", None), ("nemotron_h", False)):  # they say what they encode
        assert whole == len(TEN)
    elif think:
        assert whole == 1


@pytest.mark.parametrize("name", FOLDERS)
def test_sampling_and_drafts_go_with_reuse(name):
    chat = start(name, draft_lookup=4, think=None)
    for text in (TEN[5], TEN[5], TEN[0]):
        ask_and_compare(chat, text, temperature=0.7, top_k=9, seed=5)
    assert chat.reply.reused_tokens > 20
    check_cache(chat)


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_taken_back_or_asked_again_is_as_in_a_fresh_run(name):
    chat = start(name, system="You are kind.")
    for text in TEN[:3]:
        str(chat.ask(text))
    told, before = chat.reply.tokens, chat.messages
    assert chat.retry().tokens == told, "greedy"
    assert chat.reply.prompt_tokens - chat.reply.reused_tokens < 12, "the message is not read again"
    assert chat.messages == before
    settings = {"temperature": 2.0, "seed": 3}
    _, other = alone(chat, before[:-1], **settings)
    assert chat.retry(**settings).tokens == other != told
    assert chat.undo()[0] == user(TEN[2])
    assert chat.messages == before[:-2]
    chat.undo()
    ids, read = ask_and_compare(chat, TEN[3])
    assert len(ids) - read >= len(alone(chat, before[:2], max_new_tokens=0)[0]) - 1
    chat.reset()
    assert (chat.messages, chat.length) == (before[:1], 0)
    ask_and_compare(chat, TEN[4])
    assert chat.reply.reused_tokens > 5, "of the system message"
    check_cache(chat)
    chat.reset()
    with pytest.raises(ValueError, match="there is no turn to take back"):
        chat.undo()
    with pytest.raises(ValueError, match="there is no message to ask again"):
        chat.retry()


@pytest.mark.parametrize("name", FOLDERS)
def test_chats_from_one_state_never_touch_each_other(name):
    """Their answers come in turn, token by token, so that shared memory would show."""
    chat = start(name, system="You are kind.")
    for text in TEN[:2]:
        chat.ask(text)
    forks = [chat, chat.fork(), chat.fork()]
    expected = [alone(chat, [*chat.messages, user(text)])[1] for text in TEN[2:5]]
    replies = [fork.ask(text) for fork, text in zip(forks, TEN[2:5], strict=True)]
    assert all(reply.reused_tokens > reply.prompt_tokens / 2 for reply in replies)
    for _ in range(NEW + 1):
        for reply in replies:
            next(reply.steps(), None)
    assert [reply.tokens for reply in replies] == expected
    for fork in forks:
        check_cache(fork)
        fork.undo()
        ask_and_compare(fork, TEN[5])
    assert len({len(fork.messages) for fork in forks}) == 1
    forks[0].undo()
    assert len(forks[0].messages) == len(forks[1].messages) - 2


@pytest.mark.parametrize("name", ["nanochat", "nemotron_h"])
@pytest.mark.parametrize("how", ["close", "next question", "Ctrl-C", "Ctrl-C elsewhere"])
@pytest.mark.parametrize("drafts", [0, 4])
def test_an_answer_that_is_left_early_stays_as_far_as_it_came(name, how, drafts):
    chat = start(name, draft_lookup=drafts)
    str(chat.ask(TEN[5]))
    _, expected = alone(chat, [*chat.messages, user(TEN[5])])
    reply, steps = chat.ask(TEN[5]), 3
    if how == "Ctrl-C":
        with interrupted(chat.model, 4), pytest.raises(KeyboardInterrupt):
            str(reply)
    else:
        with suppress(KeyboardInterrupt):
            for n, _ in enumerate(reply.steps(), 1):
                if n == steps and how == "Ctrl-C elsewhere":
                    raise KeyboardInterrupt
                if n == steps:
                    break
        if how == "close":
            reply.close()
    if how in ("close", "Ctrl-C"):
        assert chat.messages[-1]["role"] == "assistant"
    ask_and_compare(chat.fork(), TEN[6])  # a fork, too, ends the answer
    assert 1 <= len(reply.tokens) <= NEW
    assert reply.tokens == expected[: len(reply.tokens)]
    assert reply.finish_reason == "interrupted"
    assert chat.messages[-1] == {"role": "assistant", "content": reply.text}
    assert chat.tokenizer.decode(reply.tokens).startswith(reply.text)
    check_cache(chat)
    ask_and_compare(chat, TEN[6])


@pytest.mark.parametrize("name", ["nanochat", "nemotron_h"])
@pytest.mark.parametrize("how", ["close", "Ctrl-C"])
def test_an_answer_that_is_left_before_its_first_token_takes_its_turn_back(name, how):
    chat = start(name)
    str(chat.ask(TEN[0]))
    before = chat.messages
    for ask in (chat.ask, lambda _: chat.retry()):
        reply = ask(TEN[1])
        if how == "close":
            reply.close()
        else:
            with interrupted(chat.model, 1), pytest.raises(KeyboardInterrupt):
                str(reply)
        assert chat.messages == before
        assert (reply.text, reply.finish_reason) == ("", "interrupted")
        check_cache(chat)
    ask_and_compare(chat, TEN[1])


@pytest.mark.parametrize("name", ["nanochat", "nemotron_h"])
def test_a_chat_goes_on_after_ctrl_c_at_any_place(name):
    """At each operation (in `make test`, at some) of what is between the calls of the model."""
    first = start(name, max_new_tokens=2)
    str(first.ask(TEN[0]))
    str(first.ask(TEN[1]))
    functions = [Chat.start, Chat.end, Reply.__init__, Reply.run, Reply.settle, Cache.truncate]
    functions += [getattr(PrefixCache, n) for n in ("prepare", "go_back", "make_room", "mark")]

    def ask(chat):
        chat.undo()
        str(chat.ask(TEN[2]))

    step, pace, interrupted = 1, 1 if THOROUGH else 41, True
    while interrupted:
        chat = first.fork()
        interrupted = Interrupt(functions, step).around(partial(ask, chat))
        assert chat.prefix.cache.length <= len(chat.prefix.ids)
        roles = [message["role"] for message in chat.fork().messages]
        assert roles in (["user", "assistant"] * turns for turns in (1, 2))
        ask_and_compare(chat, TEN[3], max_new_tokens=2)
        step += pace
    assert step > 300


def test_an_answer_that_nobody_reads_comes_all_the_same():
    chat = start("nanochat")
    chat.ask("What is the capital of France?")
    assert chat.ask("And of Spain?").text == "The capital of Spain is Madrid."
    assert chat.messages[1]["content"] == "The capital of France is Paris."
    chat.ask("And of Italy?")
    assert chat.fork().messages[-1]["content"] == "The capital of Italy is Rome."


def test_an_answer_can_be_iterated_printed_and_asked_for_figures():
    chat = start("nanochat")
    reply = chat.ask("What is the capital of France?")
    assert chat.messages == [user("What is the capital of France?")]
    assert repr(reply) == "<Reply: iterate over it, or print it>"
    pieces = list(reply)
    assert len(pieces) > 3 and all(pieces)
    assert "".join(pieces) == str(reply) == reply.text == "The capital of France is Paris."
    assert list(reply) == [], "once"
    assert (reply.finish_reason, reply.reasoning, reply.forgotten) == ("stop", None, 0)
    assert (reply.prompt_tokens, reply.reused_tokens, reply.new_tokens) == (13, 0, 11)
    assert chat.reply is reply and chat.length == 24
    assert repr(reply) == "<Reply: 'The capital of France is Paris.', stop>"
    assert repr(chat) == "<Chat with NanoChat: 1 turns, 24 of 512 tokens>"
    assert chat.ask("And of Spain?", stop_ids=[], max_new_tokens=3).text == "The capital of"
    assert chat.reply.finish_reason == "length"
    assert chat.ask("Hi", max_new_tokens=0).text == ""
    assert chat.reply.finish_reason == "length" and len(chat.messages) == 6
    assert chat.messages[-1] == {"role": "assistant", "content": ""}


def test_settings_come_from_the_call_the_chat_and_the_folder(tmp_path):
    chat = nanomodels.Chat(str(FOLDERS["nemotron"]), raw=True, device="cpu", dtype=torch.float32)
    config = nanomodels.generation.settings.generation_config(FOLDERS["nemotron"])
    assert config["do_sample"] and chat.settings.temperature == config["temperature"]
    assert chat.settings.vocab_size == chat.tokenizer.vocab_size
    model, tokenizer = loaded("nemotron")
    assert nanomodels.Chat(model, tokenizer).settings.temperature == 0
    assert nanomodels.Chat(model, tokenizer, top_k=3).settings.temperature == 1
    chat = nanomodels.Chat(model, tokenizer, max_new_tokens=2, seed=1)
    assert [chat.ask("Hi", max_new_tokens=4).new_tokens, chat.ask("Hi").new_tokens] == [4, 2]
    assert next(model.parameters()).dtype == torch.float32


def test_what_cannot_be_a_chat_is_refused():
    model, tokenizer = loaded("nanochat")
    folder = FOLDERS["nemotron"]
    for wrong, words in (
        (lambda: nanomodels.Chat(folder, tokenizer), "a folder has its own"),
        (lambda: nanomodels.Chat(model), "give a folder; or a loaded model and its tokenizer"),
        (lambda: nanomodels.Chat(model, tokenizer, dtype=torch.float32), "which are for loading"),
        (lambda: nanomodels.Chat(folder), "the checkpoint has no chat template"),
        (lambda: nanomodels.Chat(model, tokenizer, think=True), "no switch for the reasoning"),
        (lambda: nanomodels.Chat(model, tokenizer, tools=[]), "the chat template has no tools"),
        (lambda: nanomodels.Chat(model, tokenizer, raw=True, think=True), "only a chat has"),
        (lambda: nanomodels.Chat(model, tokenizer, top_p=2), "top_p is 2"),
        (lambda: nanomodels.Chat(tokenizer, model), "a Tokenizer makes no text"),
        (lambda: nanomodels.Chat(WEIGHTS / "nothing"), "no such folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            wrong()


def test_the_options_of_a_chat_can_be_changed():
    chat = start("nemotron_h")
    ask_and_compare(chat, TEN[0])
    chat.configure(system="You are kind.", think=True)
    ask_and_compare(chat, TEN[1])
    assert (chat.system, chat.encoder.think) == ("You are kind.", True)
    with pytest.raises(ValueError, match="raw text has no think, only a chat has"):
        start("nemotron", raw=True).configure(think=True)


def test_reading_ahead_reads_what_the_next_prompt_begins_with():
    for name in ("nanochat", "nemotron_h"):
        chat = start(
            name, system="You are kind. " * 9, think=False if name == "nemotron_h" else None
        )
        seen = []
        chat.progress = lambda *progress, seen=seen: seen.append(progress)
        for text in TEN[:2]:
            with feeding(chat.model) as fed:
                length = chat.read()
                assert chat.read() == length == chat.prefix.cache.length
            assert sum(fed) > 0 and seen[-1] == (length, length)
            ids, read = ask_and_compare(chat, text)
            assert read == len(ids) - length
            check_cache(chat)


# --- the bound of memory ---


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_states_to_go_back_to_have_a_bound_and_the_oldest_go_first(most):
    """But the end of the system message stays longest: it is the beginning of all prompts."""
    chat = start("nemotron_h", system="You are kind.")
    other, most_bytes = chat.fork(), most * chat.prefix.cache.state_bytes
    chat.prefix.most_bytes = most_bytes + 1
    for text in TEN[:4]:
        ask_and_compare(chat, text)
        str(other.ask(text))
        assert len(chat.prefix.cache.marks) == most
    every = sorted(other.prefix.cache.marks)
    assert len(every) == 1 + 2 * 4
    kept = every[:1] + every[1 - most :] if most > 1 else every[len(every) - most :]
    assert sorted(chat.prefix.cache.marks) == kept
    check_cache(chat)
    if most > 1:
        chat.reset()
        assert chat.ask(TEN[0]).reused_tokens == every[0] > 5
    assert reuse.STATES == 1 << 30


def test_attention_alone_keeps_no_states():
    chat = start("nanochat")
    chat.ask(TEN[0]), chat.ask(TEN[1])
    assert (chat.prefix.cache.marks, chat.prefix.cache.state_bytes) == ({}, 0)


def test_a_cache_that_grows_is_one_made_at_that_size(tmp_path):
    """For the rope types dynamic and longrope all is read again: their keys depend on the size."""
    for seed in (2, 4):
        folder = tmp_path / str(seed)
        theirs = random_nanochat(seed)
        theirs.save_pretrained(folder)
        model = nanomodels.load(folder)
        assert model.rope.rope_type == {2: "dynamic", 4: "longrope"}[seed]
        prefix, ids = reuse.PrefixCache(model), [n % 90 for n in range(200)]
        settings = nanomodels.generation.settings.GenerationSettings(max_new_tokens=5, stop_ids=())
        for length in (3, 20, 60, 150):
            prefix.prepare(ids[:length], length + 5)
            said = [token for (token,) in prefix.answer([], settings)]
            fresh = model.new_cache(1, prefix.cache.max_length)
            text = ids[:length]
            assert said == list(nanomodels.generate(model, text, settings, cache=fresh))
            same_cache(prefix.cache, fresh)


# --- templates, and the end of the context ---


@pytest.fixture
def scripted(tmp_path):
    """Make a chat with a Scripted model and the template of a family, or another one."""

    def scripted(family, replies, template=None, context_length=4096, **options):
        family_131072(tmp_path, family)
        if template:
            (tmp_path / "chat_template.jinja").write_text(template)
        tokenizer = nanomodels.Tokenizer.load(tmp_path)
        return nanomodels.Chat(Scripted(tokenizer, replies, context_length), tokenizer, **options)

    return scripted


@pytest.mark.parametrize("family", ["nemotron-3", "nano-v2"])
def test_the_reasoning_is_kept_apart_from_the_answer_and_read_no_more(scripted, family):
    chat = scripted(family, ["One.\n</think>\n1", "Two.\n</think>\n2"], system="Be kind.")
    seen = []
    for text in chat.ask("One?").steps():
        seen.append((chat.reply.completion.reasoning, text))
    assert ("One.", "") in seen[:-1], "before the answer"
    assert (chat.reply.reasoning, chat.reply.text) == ("One.", "1")
    assert str(chat.ask("Two?")) == "2"
    system = {"role": "system", "content": "Be kind."}
    answers = [("1", "One."), ("2", "Two.")]
    answers = [{"role": "assistant", "content": a, "reasoning_content": r} for a, r in answers]
    assert chat.messages == [system, user("One?"), answers[0], user("Two?"), answers[1]]
    ids = chat.tokenizer.encode_chat(chat.messages[:-1])
    assert [*chat.model.known][-1] == tuple(ids), "what the model saw is the prompt"
    before = chat.tokenizer.encode_chat(chat.messages[:2])
    assert chat.reply.reused_tokens == len(common(ids, before)) > len(before) - 9


def test_a_chat_works_with_a_template_that_does_not_know_the_generation_prompt(scripted):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + BEGINNINGS[1]
    chat = scripted("nemotron-3", ["1", "2"], template)
    assert [str(chat.ask("One?")), str(chat.ask("Two?"))] == ["1", "2"]
    assert 0 < chat.reply.reused_tokens < len(next(iter(chat.model.known)))


def test_the_results_of_tools_are_messages_too(scripted):
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    call = "<tool_call>\n<function=clock>\n</function>\n</tool_call>"
    chat = scripted("nemotron-3", [call, "Noon."], think=False, tools=tools)
    assert chat.ask("What time is it?").text == call
    result = {"role": "tool", "content": "12:00"}
    assert chat.ask([result]).text == "Noon."
    assert result in chat.messages
    prompt = chat.tokenizer.decode([*chat.model.known][-1])
    assert "<tool_response>\n12:00\n</tool_response>" in prompt
    with pytest.raises(ValueError, match="a message must be a dict with a role and a content"):
        chat.ask([{"content": "12:00"}])
    assert len(chat.messages) == 4


def test_an_answer_ends_before_a_stop_string_and_so_does_what_is_read_again(scripted):
    chat = scripted("nemotron-3", ["One. Two.", "Three."], think=False, stop=[" Two"])
    assert chat.ask("1?").text == "One."
    assert (chat.reply.finish_reason, chat.messages[-1]["content"]) == ("stop", "One.")
    assert chat.ask("2?").text == "Three."
    assert "Two" not in chat.tokenizer.decode([*chat.model.known][-1])


def test_where_the_context_ends_the_oldest_turns_are_forgotten_once(scripted):
    """So many that it does not happen at each turn; the system message stays."""
    replies = [f"Answer {n}." for n in range(60)]
    chat = scripted(
        "nemotron-3", replies, context_length=400, think=False, max_new_tokens=20, system="Be kind."
    )
    forgotten = []
    for n in range(60):
        assert chat.ask(f"Question {n}?").text == replies[n]
        forgotten.append(chat.reply.forgotten)
        prompt = chat.tokenizer.decode([*chat.model.known][-1])
        assert "Be kind." in prompt and f"Question {n}?" in prompt
        assert chat.reply.prompt_tokens + 20 <= 400
        if forgotten[-1]:
            assert 400 / 3 < chat.reply.prompt_tokens + 20 <= 400 / 2 + 30
            assert 10 < chat.reply.reused_tokens < 30, "the system message"
        assert sum(forgotten) == n + 1 - len(chat.messages) // 2
    times = [n for n, some in enumerate(forgotten) if some]
    assert len(times) >= 5 and min(b - a for a, b in pairwise(times)) > 4
    assert chat.messages[0] == {"role": "system", "content": "Be kind."}


def test_a_message_that_is_longer_than_the_context_changes_nothing(scripted):
    chat = scripted("nemotron-3", ["Yes.", "No."], context_length=100, think=False)
    str(chat.ask("One?"))
    before, reply = chat.messages, chat.reply
    with pytest.raises(ValueError, match=r"the message makes a prompt of \d+ tokens; .* holds 100"):
        chat.ask("word " * 100)
    assert (chat.messages, chat.reply) == (before, reply)
    assert chat.ask("Two?").text == "No."


def test_an_answer_that_fills_the_context_says_so():
    chat = start("nanochat", stop_ids=(), max_new_tokens=1000)
    str(chat.ask("Hi"))
    assert (chat.reply.finish_reason, chat.length) == ("context", 513)  # the last is not fed
    assert 511 <= chat.read() <= 512, "as much as there is room for"
    str(chat.ask("Hi", max_new_tokens=3))
    assert chat.reply.forgotten == 1


# --- raw text ---


@pytest.mark.parametrize("name", FOLDERS)
def test_raw_text_goes_on_from_its_own_tokens(name):
    model, tokenizer = loaded(name)
    settings = {"max_new_tokens": 6, "vocab_size": tokenizer.vocab_size}
    chat = nanomodels.Chat(model, tokenizer, raw=True, system="One day, ", **settings)
    ids = tokenizer.encode("One day, ")
    for text in ("a fox", " saw", " a dog"):
        ids += tokenizer.encode(text, add_bos=False)
        reply = chat.ask(text)
        assert reply.tokens == list(nanomodels.generate(model, ids, **settings))
        assert reply.prompt_tokens == len(ids)
        assert reply.reused_tokens >= len(ids) - 6 or text == "a fox"
        ids += reply.tokens
    fork = chat.fork()
    assert chat.retry().tokens == fork.reply.tokens
    assert chat.reply.reused_tokens == chat.reply.prompt_tokens - 1
    chat.undo()
    assert chat.ask([user(" a"), user(" dog")]).prompt_tokens == fork.reply.prompt_tokens
    chat.undo()
    check_cache(chat)
    assert [m["content"] for m in chat.messages[:2]] == ["One day, ", "a fox"]
    assert chat.ask(" a dog").tokens == fork.reply.tokens


def test_raw_text_without_a_beginning_is_encoded_as_the_text_alone():
    for name in FOLDERS:
        model, tokenizer = loaded(name)
        chat = nanomodels.Chat(model, tokenizer, raw=True, max_new_tokens=2)
        assert chat.ask("Once upon").prompt_tokens == len(tokenizer.encode("Once upon"))
        assert chat.prefix.ids == tokenizer.encode("Once upon")


def test_raw_text_goes_on_from_the_text_before_a_stop_string():
    model, tokenizer = loaded("nemotron")
    chat = nanomodels.Chat(model, tokenizer, raw=True, max_new_tokens=9)
    whole = chat.ask("Once upon").text
    chat.reset()
    chat.stop = [whole[len(whole) // 2 :][:2]]
    text = chat.ask("Once upon").text
    assert chat.reply.finish_reason == "stop" and text == whole.partition(chat.stop[0])[0]
    ids = tokenizer.encode("Once upon") + tokenizer.encode(text, add_bos=False)
    chat.ask(" a time")
    assert chat.prefix.ids == ids + tokenizer.encode(" a time", add_bos=False)
