"""generate.py with many prompts: what the lines of a file may be, and what comes out."""

import json
import random
import sys

import pytest
import torch
from compare import SAMPLING
from effort import examples
from ranks import DECODERS, random_model
from test_generate import FRANCE, GOLDEN, Terminal, run, scripted  # noqa: F401 (fixtures)

import nanomodels
from nanomodels import nemotron, nemotron_h
from nanomodels.cli import batch, generate, rows, terminal
from nanomodels.cli.progress import Progress
from nanomodels.generation import continuous
from nanomodels.rope import Rope

TOO_LONG = "long " * 3000


def written(folder, *lines, name="prompts.jsonl"):
    """A file with these lines; all but strings as JSON."""
    path = folder / name
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(lines) + "\n")
    return path


def answers(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def prompts(monkeypatch):
    """The messages of each prompt that a chat encodes, with the system message."""
    seen, encode_chat = [], nanomodels.Tokenizer.encode_chat

    def encode(self, messages, **variables):
        seen.append(messages)
        return encode_chat(self, messages, **variables)

    monkeypatch.setattr(nanomodels.Tokenizer, "encode_chat", encode)
    return seen


def test_a_line_is_a_string_a_prompt_or_messages(run, prompts, tmp_path):  # noqa: F811
    chat = [
        {"role": "user", "content": FRANCE},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Spain?\nSay it."},
    ]
    system = {"role": "system", "content": "Be kind."}
    path = written(
        tmp_path,
        json.dumps(FRANCE),
        {"id": "a\nb", "prompt": "two\nlines"},
        "",
        {"messages": chat, "id": 12345678901234567890},
        {"messages": [system, *chat]},
        {"system": "Be kind.", "messages": chat},
        {"system": "", "prompt": FRANCE},
    )
    args = ("--json", "--quiet", "--system", "Be brief.", "--max-new-tokens", "2")
    status, out, err = run("--prompt-file", path, *args)
    brief = [{"role": "system", "content": "Be brief."}]
    assert (status, err) == (0, "")
    assert prompts == [
        [*brief, {"role": "user", "content": FRANCE}],
        [*brief, {"role": "user", "content": "two\nlines"}],
        [*brief, *chat],
        [system, *chat],
        [system, *chat],
        [{"role": "system", "content": ""}, {"role": "user", "content": FRANCE}],
    ]
    found = answers(out)
    assert [answer.get("id", "none") for answer in found] == [
        *("none", "a\nb", 12345678901234567890, "none", "none", "none")
    ]
    assert found[2]["prompt"] == "And of Spain?\nSay it."
    assert [answer["prompt_tokens"] for answer in found[3:5]] == [found[3]["prompt_tokens"]] * 2


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("x.jsonl", '"{"\n', ["{"]),
        ("x.txt", '"{"\n', ['"{"']),
        ("x.txt", '\ufeff\n { "prompt": "a"}\r\n\r\n"b"\r\n', ["a", "b"]),
        ("x.txt", "{prompt}\n{}\n", ["{prompt}", "{}"]),
        ("x.jsonl", '\ufeff"a\u2028b"', ["a\u2028b"]),
    ],
)
def test_json_is_told_by_the_name_or_the_beginning(monkeypatch, tmp_path, name, text, lines):
    path = tmp_path / name
    path.write_bytes(text.encode())
    args = generate.parse_arguments(["--prompt-file", str(path)])
    assert [row.messages[0]["content"] for row in rows.read_rows(args)] == lines
    monkeypatch.setattr(sys, "stdin", Terminal(text))
    args = generate.parse_arguments(["--prompt-file", "-"])
    if name == "x.txt":
        assert [row.messages[0]["content"] for row in rows.read_rows(args)] == lines


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "Hi"', "not valid JSON"),
        ("Hi", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (["Hi"], 'must be a JSON string or object, is ["Hi"]'),
        ("NaN", "must be a JSON string or object, is NaN"),
        ({"promt": "Hi"}, "promt is unknown; known: id, messages, prompt, system"),
        ({"prompt": "Hi", "seed": 1}, "seed is unknown"),
        ({}, "must have prompt or messages, and not both"),
        ({"prompt": "Hi", "messages": [USER]}, "must have prompt or messages, and not both"),
        ({"prompt": ["Hi"]}, 'prompt must be a string, is ["Hi"]'),
        ({"prompt": None}, "prompt must be a string, is null"),
        ({"prompt": ""}, "the prompt is empty"),
        ('""', "the prompt is empty"),
        ('"\\ud800"', "prompt is not UTF-8 text"),
        ({"prompt": "Hi", "id": "\ud800"}, "id is not UTF-8 text"),
        ({"prompt": "Hi", "id": 1.5}, "id must be a string or a whole number, is 1.5"),
        ({"prompt": "Hi", "id": True}, "id must be a string or a whole number, is true"),
        ({"prompt": "Hi", "id": [1]}, "id must be a string or a whole number, is [1]"),
        ({"prompt": "Hi", "system": 1}, "system must be a string, is 1"),
        ({"messages": "Hi"}, 'messages must be a list with a message, is "Hi"'),
        ({"messages": []}, "messages must be a list with a message, is []"),
        ({"messages": ["Hi"]}, 'messages[0] must be a JSON object, is "Hi"'),
        ({"messages": [USER | {"name": "A"}]}, "messages[0].name is unknown; known: content, role"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role is null; supported: system, user"),
        ({"messages": [USER | {"role": ["x"]}]}, 'messages[0].role is ["x"]; supported'),
        ({"messages": [{"role": "user"}]}, "messages[0].content must be a string, is null"),
        ({"messages": [USER | {"content": "\ud800"}]}, "messages[0].content is not UTF-8 text"),
        ({"messages": [USER | {"content": ""}]}, "the prompt is empty"),
        ({"messages": [USER, USER | {"role": "system"}]}, 'messages[1].role is "system"; only'),
        ({"messages": [USER, USER | {"role": "assistant"}]}, "the last message must be the user's"),
        ({"system": "x", "messages": [USER | {"role": "system"}, USER]}, "messages have one, too"),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_line_is_named(run, tmp_path, line, words):  # noqa: F811
    path = written(tmp_path, '"Hi"', "", line)
    status, out, err = run("--prompt-file", path, "--quiet")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"generate.py: error: {path}: line 3: ")
    assert words in err
    assert len(err) < 400


def test_what_the_template_refuses_is_named(scripted, tmp_path):  # noqa: F811
    path = written(tmp_path, '"Hi"', {"system": "No.", "prompt": "Hi"})
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    status, out, err, _ = scripted("nemotron-3", [], "--prompt-file", path, template=template)
    assert (status, out) == (2, "")
    assert f"{path}: line 2: " in err and "no system" in err


@pytest.mark.parametrize("more", [{"system": "x"}, {"messages": [USER, USER], "prompt": None}])
def test_messages_need_a_chat_template(run, tmp_path, more):  # noqa: F811
    line = {key: value for key, value in ({"prompt": "Hi"} | more).items() if value is not None}
    path = written(tmp_path, {"prompt": "ROMEO"}, line)
    status, out, err = run("--prompt-file", path, "--raw", "--quiet")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{path}: line 2: messages need a chat template" in err


def test_a_batch_may_be_piped(run, tmp_path):  # noqa: F811
    lines = [{"id": n, "prompt": f"What is 2 + {n}?"} for n in range(3)]
    path = written(tmp_path, *lines)
    found = run("--prompt-file", path, "--json", "--quiet")
    assert run("--prompt-file", "-", "--json", "--quiet", stdin=path.read_text()) == found
    status, _, err = run("--prompt-file", "-", "--quiet", stdin='{"prompt": 1}\n')
    assert status == 2 and "standard input: line 1: prompt must be" in err
    status, _, err = run("--prompt-file", "-", "--quiet", stdin="\n")
    assert status == 2 and "the prompt is empty (standard input)" in err


def test_a_row_that_is_too_long_gets_no_text_and_the_rest_runs(run, tmp_path, monkeypatch):  # noqa: F811
    path = written(tmp_path, FRANCE, TOO_LONG, TOO_LONG, TOO_LONG, "", "Hello!", name="x.txt")
    alone = [run(prompt, "--quiet")[1] for prompt in (FRANCE, "Hello!")]
    status, out, err = run("--prompt-file", path, "--json", "--num-samples", "2", "--seed", "1",
                           "--temperature", "0", "--dtype", "float32")  # fmt: skip
    found = answers(out)
    assert status == 0
    assert [answer["finish_reason"] for answer in found] == ["stop"] * 2 + ["too_long"] * 6 + [
        *("stop", "stop")
    ]
    assert [answer["text"] + "\n" for answer in found[:2]] == [alone[0]] * 2
    assert [answer["text"] + "\n" for answer in found[-2:]] == [alone[1]] * 2
    assert [answer["sample"] for answer in found] == [0, 1] * 5
    assert found[2] == {
        "prompt": TOO_LONG, "sample": 0, "reasoning": None, "text": "",
        "finish_reason": "too_long", "prompt_tokens": found[2]["prompt_tokens"], "new_tokens": 0,
        "seed": None, "parts": None,
    }  # fmt: skip
    assert found[2]["prompt_tokens"] > 512
    assert err.splitlines()[-1].startswith("total   10 of 10 texts, 6 too long, ")
    status, out, err = run("--prompt-file", path, "--quiet", "--dtype", "float32")
    assert (status, out) == (
        0,
        f"==> line 1 <==\n{alone[0]}==> line 2 <==\n\n==> line 3 <==\n\n==> line 4 <==\n\n"
        f"==> line 6 <==\n{alone[1]}",
    )
    n = found[2]["prompt_tokens"]
    assert err.splitlines() == [
        f"({path}: line {line}: the prompt has {n} tokens; the model's context holds 512)"
        for line in (2, 3, 4)
    ]


def test_a_file_of_rows_that_are_all_too_long(run, tmp_path):  # noqa: F811
    path = written(tmp_path, TOO_LONG, name="x.txt")
    status, out, err = run("--prompt-file", path)
    assert (status, out) == (0, "\n")
    assert "total   1 of 1 texts, 1 too long, 0 tokens" in err


def test_reasoning_that_could_not_begin_is_not_counted(scripted, tmp_path):  # noqa: F811
    path = written(tmp_path, "One?", TOO_LONG, name="x.txt")
    args = ("--prompt-file", path)
    _, out, err, _ = scripted("nano-v2", ["Hm.</think>1"], *args, context_length=100)
    assert out == "==> line 1 <==\n1\n==> line 2 <==\n\n"
    assert "ended before the answer" not in err


def test_several_texts_are_numbered(run, tmp_path):  # noqa: F811
    args = ("--raw", "--max-new-tokens", "3", "--seed", "3", "--quiet", "--temperature", "1")
    texts = [
        answer["text"] for answer in answers(run("A", "--num-samples", "2", "--json", *args)[1])
    ]
    out = run("A", "--num-samples", "2", *args)[1]
    assert out == f"==> sample 1 <==\n{texts[0]}\n==> sample 2 <==\n{texts[1]}\n"
    path = written(tmp_path, "", "A", name="x.txt")
    assert run("--prompt-file", path, *args)[1] == f"{texts[0]}\n", "a single one has no heading"
    out = run("--prompt-file", path, "--num-samples", "2", *args)[1]
    assert out.startswith(f"==> line 2, sample 1 <==\n{texts[0]}\n==> line 2, sample 2 <==\n")


def test_interrupted_rows_are_not_written(scripted, tmp_path, monkeypatch):  # noqa: F811
    """Nor what comes after them, so that what is there is the answers to the first lines."""
    monkeypatch.setattr(continuous, "MOST_ROWS", 3)
    replies = ["1", "22", "3", "4", "five is long", "6", "7", "8"]
    path = written(tmp_path, *(f"{n}?" for n in range(8)), name="x.txt")
    step = batch.Counter.step

    def interrupt(self):
        if self.done >= 6:  # 6 and 7 are complete, 5 is not
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(batch.Counter, "step", interrupt)
    args = ("--prompt-file", path, "--no-think")
    status, out, err, _ = scripted("nemotron-3", replies, *args, "--json")
    assert status == 130
    assert [answer["text"] for answer in answers(out)] == ["1", "22", "3", "4"]
    assert {answer["finish_reason"] for answer in answers(out)} == {"stop"}
    assert "total   4 of 8 texts" in err
    status, out, err, _ = scripted("nemotron-3", replies, *args)
    assert status == 130
    assert out.endswith("==> line 3 <==\n3\n==> line 4 <==\n4\n")


def test_a_text_alone_that_is_interrupted_is_no_line_of_json(scripted, monkeypatch):  # noqa: F811
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal.Meter, "step", interrupt)
    assert scripted("nemotron-3", ["Yes."], "Hi", "--json")[:2] == (130, "")


def test_a_batch_is_counted_while_it_runs_and_totalled_at_the_end(run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(continuous, "MOST_ROWS", 4)
    calls, call = [], Progress.__call__

    def spy(self, *numbers):
        if self.unit == "texts":
            calls.append(numbers)
        call(self, *numbers)

    monkeypatch.setattr(Progress, "__call__", spy)
    path = written(tmp_path, FRANCE, "Hello!", "What is 2 + 3?", name="x.txt")
    status, out, err = run("--prompt-file", path, "--json", "--num-samples", "2", "--seed", "5")
    tokens = sum(answer["new_tokens"] for answer in answers(out))
    assert status == 0
    assert calls[0] == (0, 6, 0)
    assert calls == sorted(calls)
    assert {total for _, total, _ in calls} == {6}
    assert any(0 < done < 4 for done, _, _ in calls), "texts are counted as they end"
    assert [line.split()[0] for line in err.splitlines()] == ["load", "total"]
    total = err.splitlines()[-1]
    assert total.startswith(f"total   6 of 6 texts, {tokens} tokens, ")
    assert "tokens/s, seed 5, " in total
    assert run("--prompt-file", path, "--quiet")[2] == ""
    assert calls[-1][0] <= 6


# --------------------------------------------------------------------------------------------------
# --output and --shard

SETTINGS = ("--raw", "--temperature", "1", "--seed", "7", "--max-new-tokens", "6", "--quiet")


def numbered(folder, count):
    lengths = [1 + 37 * n % 60 for n in range(count)]
    return written(folder, *({"id": n, "prompt": "A b " * size} for n, size in enumerate(lengths)))


def test_a_run_that_was_stopped_goes_on_where_it_ended(run, tmp_path):  # noqa: F811
    """Wherever it was killed, within a line or between samples: the same bytes, nothing twice."""
    path, output = numbered(tmp_path, 7), tmp_path / "out.jsonl"
    args = ("--prompt-file", path, *SETTINGS, "--num-samples", "2", "--dtype", "float32")
    whole = run(*args, "--json")[1]
    assert len(answers(whole)) == 14
    assert run(*args, "--output", output) == (0, "", "")
    assert output.read_text() == whole
    size = len(whole.encode())
    unseeded = [a for a in args if a not in ("--seed", "7")]
    for cut in (0, 1, size // 3, whole.index("\n") + 1, size - 1, size):
        output.write_bytes(whole.encode()[:cut])
        again = unseeded if cut > size // 2 else args  # the seed is that of the lines
        assert run(*again, "--output", output) == (0, "", "")
        assert output.read_text() == whole, cut


def test_an_output_of_another_run_is_refused_and_stays(run, tmp_path):  # noqa: F811
    path, output = numbered(tmp_path, 3), tmp_path / "out.jsonl"
    args = ("--prompt-file", path, *SETTINGS, "--output", output)
    assert run(*args)[0] == 0
    good = output.read_text()
    lines = good.splitlines(keepends=True)
    for content, words in (
        (good.replace("A b", "a b", 1), "line 1 is no answer to"),
        (lines[0] + lines[0], "line 2 is no answer to"),
        (good + lines[2], "line 4 is no answer to a line of the prompt file"),
        ("notes\nof mine\n", "line 1 is no answer to"),
        ("notes", "has no lines of generate.py; give another name"),
    ):
        output.write_text(content)
        status, _, err = run(*args)
        assert status == 2 and words in err and err.count("\n") == 1, err
        assert output.read_text() == content
    output.write_text(lines[0])
    status, _, err = run(*args, "--seed", "8")
    assert (status, output.read_text()) == (2, lines[0])
    assert "was begun with --seed 7; give another name" in err
    status, _, err = run("Hi", "--output", output)
    assert status == 2 and "--output and --shard go with --prompt-file" in err


@pytest.mark.parametrize("count", [2, 3, 9])
def test_shards_one_after_another_are_the_whole(run, tmp_path, count):  # noqa: F811
    path = numbered(tmp_path, 7)
    args = ("--prompt-file", path, *SETTINGS, "--dtype", "float32", "--json")
    parts = [run(*args, "--shard", f"{k + 1}/{count}") for k in range(count)]
    assert {(status, err) for status, _, err in parts} == {(0, "")}
    assert "".join(out for _, out, _ in parts) == run(*args)[1]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "", "1/1e9"])
def test_a_wrong_shard_is_one_line(run, tmp_path, text):  # noqa: F811
    status, _, err = run("--prompt-file", numbered(tmp_path, 2), f"--shard={text}")
    assert status == 2 and "--shard is" in err and "K/N" in err


# --------------------------------------------------------------------------------------------------
# Rows leave and others take their place


@pytest.mark.parametrize("module", DECODERS, ids=lambda module: module.__name__[11:])
def test_many_prompts_give_what_each_gives_alone(module, monkeypatch):
    """Greedy and sampled, past several refills, with padding in the cache and without."""
    monkeypatch.setattr(continuous, "MOST_ROWS", 6)
    monkeypatch.setattr(continuous, "GROUP", 3)
    for seed in range(examples(8)):
        model, rng = random_model(module, seed), random.Random(seed)
        prompts = [
            [rng.randrange(model.config.vocab_size) for _ in range(rng.randint(1, 40))]
            for _ in range(20)
        ]
        stop = [rng.randrange(model.config.vocab_size) for _ in range(4)]
        samples, settings = rng.choice([1, 2]), rng.choice([*SAMPLING.values()])
        settings = {"max_new_tokens": 12, "stop_ids": stop, "seed": 3, **settings}
        found = continuous.generate_many(model, prompts, num_samples=samples, **settings)
        found = {(number, sample): ids for number, sample, ids in found}
        assert len(found) == 20 * samples
        for (number, sample), ids in found.items():
            settings["seed"] = 3 + sample
            assert ids == list(nanomodels.generate(model, prompts[number], **settings)), number


def test_rows_run_at_the_same_time_within_the_bound_of_memory(monkeypatch):
    model, sizes = random_model(nemotron_h, 0), []
    step = continuous.Batch.step

    def spy(self):
        views = self.cache.tensors(self.cache.max_length).items()
        sizes.append((len(self.rows), sum(x.nbytes for name, x in views if "." in name)))
        step(self)

    monkeypatch.setattr(continuous.Batch, "step", spy)
    prompts = [[1] * (1 + 13 * n % 70) for n in range(60)]
    for most_bytes in (2**20, 2**17, 1):
        sizes.clear()
        list(continuous.generate_many(model, prompts, max_new_tokens=8, most_bytes=most_bytes))
        assert max(size for _, size in sizes) <= most_bytes or most_bytes == 1
        rows = max(count for count, _ in sizes)
        assert rows == 1 if most_bytes == 1 else rows > 3


def test_a_text_that_its_taker_ended_is_computed_no_further():
    model, taken = random_model(nemotron, 0), []

    def take(number, sample, token):
        taken.append(number)
        return taken.count(number) < 3 + number

    settings = continuous.GenerationSettings(max_new_tokens=20, stop_ids=())
    list(continuous.decode_many(model, [[1], [2, 3], [4]], settings, take))
    assert [taken.count(number) for number in range(3)] == [3, 4, 5]


def test_rows_stay_where_their_rope_depends_on_the_size_of_the_cache():
    rope = Rope(16, 64, rope_type="dynamic", factor=2.0)
    torch.manual_seed(0)
    model = nemotron.Nemotron(nemotron.Config(rope=rope))
    prompts = [[n] * (20 + n) for n in range(1, 40)]
    batch = continuous.Batch(model, continuous.GenerationSettings(), None, 2**30)
    assert not batch.can_join
    found = {n: ids for n, _, ids in continuous.generate_many(model, prompts, max_new_tokens=4)}
    assert sorted(found) == [*range(39)] and {len(ids) for ids in found.values()} == {4}
