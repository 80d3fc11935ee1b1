"""The command line: what comes out where, and what bad input says."""

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import generate

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "data" / "nanochat-2025-10-16"
FRANCE = "What is the capital of France?"


class Terminal(io.StringIO):
    """Captured text in place of a standard stream."""

    def __init__(self, text="", terminal=False):
        super().__init__(text)
        self.isatty = lambda: terminal
        self.reconfigure = lambda **_: None


@pytest.fixture
def run(monkeypatch, capfd):
    """Run generate.py's main in this process; gives status, stdout, stderr."""

    def run(*args, stdin="", terminal=False):
        out, err = Terminal(), Terminal()
        monkeypatch.setattr(sys, "stdin", Terminal(stdin, terminal))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(generate, "discard_stdout", lambda: None)
        status = generate.main([str(arg) for arg in args])
        return status, out.getvalue(), err.getvalue()

    return run


def test_the_shipped_model_answers_a_question(run):
    status, out, err = run(FRANCE)
    assert status == 0
    assert "Paris" in out
    assert out.endswith("\n")
    names = [line.split()[0] for line in err.splitlines()]
    assert names == ["load", "prompt", "new", "memory"]
    assert "tokens/s" in err
    assert "GB/s" in err


def test_quiet_is_quiet_and_the_same_text(run):
    _, out, _ = run(FRANCE)
    assert run(FRANCE, "--quiet") == (0, out, "")


def test_the_prompt_may_be_piped(run):
    _, out, _ = run(FRANCE)
    assert run("--quiet", stdin=FRANCE + "\n") == (0, out, "")


def test_text_comes_as_it_is_made(run, monkeypatch):
    pieces = []
    monkeypatch.setattr(generate, "write", pieces.append)
    run(FRANCE, "--quiet")
    assert len([piece for piece in pieces if piece]) > 3


def test_a_prompt_file_is_a_batch_in_order(run, tmp_path):
    prompts = [FRANCE, "What is 2 + 3?", "Hello!"]
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(prompts) + "\n")
    alone = [run(prompt, "--quiet")[1].rstrip("\n") for prompt in prompts]
    status, out, _ = run("--prompt-file", path, "--json", "--quiet", "--dtype", "float32")
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [answer["prompt"] for answer in answers] == prompts
    assert [answer["text"] for answer in answers] == alone
    assert {answer["finish_reason"] for answer in answers} == {"stop"}
    assert run("--prompt-file", path, "--quiet")[1] == "".join(f"{text}\n" for text in alone)


def test_the_reason_for_an_end_is_told(run, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(["ROMEO", "ROMEO " * 125, FRANCE]))  # the second: 501 of 512
    args = ("--prompt-file", path, "--raw", "--json", "--quiet", "--max-new-tokens", "30")
    answers = [json.loads(line) for line in run(*args)[1].splitlines()]
    assert [answer["finish_reason"] for answer in answers][:2] == ["length", "context"]
    assert answers[0]["new_tokens"] == 30
    assert answers[1]["new_tokens"] == 513 - answers[1]["prompt_tokens"] < 30
    assert json.loads(run(FRANCE, "--json")[1])["finish_reason"] == "stop"


def test_samples_are_reproducible_by_their_seed(run):
    args = ("--raw", "ROMEO:", "--temperature", "1", "--max-new-tokens", "12", "--json")
    three = run(*args, "--num-samples", "3", "--seed", "5", "--quiet")[1]
    assert run(*args, "--num-samples", "3", "--seed", "5", "--quiet")[1] == three
    answers = [json.loads(line) for line in three.splitlines()]
    assert len({answer["text"] for answer in answers}) == 3
    assert [answer["seed"] for answer in answers] == [5, 6, 7]
    alone = json.loads(run(*args, "--seed", "7", "--quiet")[1])
    assert alone["text"] == answers[2]["text"]
    assert {answer["finish_reason"] for answer in answers} == {"length"}
    assert "seed" in run(*args)[2]


def test_text_ends_before_a_stop_string(run):
    _, out, _ = run(FRANCE, "--quiet")
    cut = out.index("Paris")
    for args in (("--stop", "Paris"), ("--stop", "zzz", "--stop", "Pari")):
        assert run(FRANCE, "--quiet", *args) == (0, out[:cut] + "\n", "")


def test_a_system_message_reaches_the_model(run, monkeypatch):
    seen = []
    original = generate.encode
    monkeypatch.setattr(generate, "encode", lambda *a: seen.append(original(*a)) or seen[-1])
    run("Hi", "--system", "Be brief.")
    run("Be brief.\n\nHi")
    assert seen[0] == seen[1]
    assert run("Hi", "--raw", "--system", "x")[0] == 2


def test_raw_text_begins_with_one_bos(run, monkeypatch):
    from nanomodels import Tokenizer

    for folder in (ROOT / "weights" / "nanochat-tiny", GOLDEN):
        tokenizer = Tokenizer.load(folder)
        bos = tokenizer.special_ids["<|bos|>"]
        args = generate.parse_arguments(["x"])
        for chat in (True, False):
            ids = generate.encode(args, tokenizer, "Hello world", chat)
            assert ids[0] == bos
            assert ids.count(bos) == 1


def test_a_nanochat_training_folder_runs_as_it_is(run):
    status, out, err = run("Hello", "--model", GOLDEN, "--max-new-tokens", "5", "--seed", "1")
    assert status == 0
    assert out
    assert "seed 1" in err, "nanochat's own defaults sample: temperature 0.6, top_k 50"


def broken(tmp_path, change):
    """A copy of the shipped checkpoint with something changed in it."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(ROOT / "weights" / "nanochat-tiny", folder)
    path = folder / "model.safetensors"
    name = "model.layers.0.mlp.fc1.weight"
    if change in ("missing", "extra", "shape"):
        tensors = load_file(path)
        if change == "missing":
            del tensors[name]
        elif change == "extra":
            tensors["model.extra.weight"] = torch.ones(2)
        else:
            tensors[name] = tensors[name][:, 1:].contiguous()
        save_file(tensors, path)
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif change == "no weights":
        path.unlink()
    else:
        config = json.loads((folder / "config.json").read_text())
        config.update(change)
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no weights", "has neither model.safetensors nor model.safetensors.index.json"),
        ("cut", "model.safetensors: not a whole safetensors file"),
        ("missing", "missing tensors: layers.0.mlp.fc1.weight"),
        ("extra", "unexpected tensors: model.extra.weight"),
        ("shape", "model.layers.0.mlp.fc1.weight is ["),
        ({"model_type": "gpt9"}, "model_type 'gpt9' is unknown; supported: nanochat"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type 'spiral' is not supported"),
    ],
    ids=str,
)
def test_a_bad_folder_gets_one_clear_line(run, tmp_path, change, words):
    status, out, err = run("Hi", "--model", broken(tmp_path, change))
    assert (status, out) == (2, "")
    assert err.startswith("generate.py: error: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["Hi", "--model", "no/such/folder"], "no/such/folder: no such folder"),
        (["Hi", "--model", "tests"], "no checkpoint here"),
        ([""], "the prompt is empty"),
        (["--quiet"], "the prompt is empty (standard input)"),
        (["--prompt-file", "/dev/null"], "the prompt is empty (/dev/null)"),
        (["--prompt-file", "no-such-file"], "no-such-file"),
        (["Hi", "--prompt-file", "x"], "not both"),
        (["long " * 3000], "tokens; the model's context holds"),
        (["Hi", "--stop", ""], "--stop is empty"),
        (["Hi \udcff"], "not UTF-8"),
        (["Hi", "--seed", "-1"], "seed must be a whole number"),
        (["Hi", "--seed", str(2**64)], "seed must be a whole number"),
        (["Hi", "--temperature", "nan"], "temperature is nan"),
        (["Hi", "--model", "README.md"], "README.md: not a folder"),
        (["--prompt-file", "tests"], "tests"),
        (["Hi", "--top-p", "2"], "top_p is 2.0; it must be 1e-09 to 1"),
        (["Hi", "--temperature", "-1"], "temperature is -1.0"),
        (["Hi", "--num-samples", "0"], "num_samples is 0; it must be a whole number, 1 or more"),
        (["Hi", "--max-new-tokens", "-3"], "max_new_tokens is -3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_gets_one_clear_line(run, args, words):
    status, out, err = run(*args, *(() if "--quiet" in args else ("--quiet",)))
    assert (status, out) == (2, "")
    assert err.startswith("generate.py: error: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("args", [["--bogus"], ["Hi", "--top-k", "x"], ["--prompt", "Hi"]], ids=str)
def test_a_wrong_option_gets_one_line(run, monkeypatch, args):
    with pytest.raises(SystemExit) as exited:
        run(*args)
    assert exited.value.code == 2
    error = sys.stderr.getvalue()
    assert error.startswith("generate.py: error: ")
    assert error.count("\n") == 1


def settings_of(config, *args):
    settings = generate.generation_settings(generate.parse_arguments(["x", *args]), config)
    assert 0 <= settings.pop("seed") < 2**32
    return settings


def test_settings_are_the_arguments_over_the_checkpoints_over_greedy():
    sampled = {
        "do_sample": True, "temperature": 0.6, "top_k": 50, "top_p": 0.9, "min_p": 0.1,
        "repetition_penalty": 1.1, "max_new_tokens": 9,
    }  # fmt: skip
    greedy = {"temperature": 0.0, "max_new_tokens": 256}
    assert settings_of({}) == greedy
    assert settings_of({**sampled, "do_sample": False}) == {
        **greedy, "repetition_penalty": 1.1, "max_new_tokens": 9
    }  # fmt: skip
    assert settings_of({"do_sample": True}) == {**greedy, "temperature": 1.0}
    expected = {key: value for key, value in sampled.items() if key != "do_sample"}
    assert settings_of(sampled) == expected
    for name, value in (
        ("temperature", 0.3),
        ("top_k", 7),
        ("top_p", 0.5),
        ("min_p", 0.2),
        ("repetition_penalty", 1.4),
        ("max_new_tokens", 5),
    ):
        option = "--" + name.replace("_", "-")
        assert settings_of(sampled, option, str(value)) == {**expected, name: value}
    # Asking for a sample of a greedy checkpoint turns sampling on; naming an "off" value does not.
    for asked in (("--top-k", "5"), ("--top-p", "0.9"), ("--min-p", "0.1"), ("--num-samples", "2")):
        assert settings_of({}, *asked)["temperature"] == 1.0
    for off in (("--top-k", "0"), ("--top-p", "1"), ("--min-p", "0"), ("--num-samples", "1")):
        assert settings_of({}, *off)["temperature"] == 0.0


@pytest.mark.parametrize(
    "config", [{"top_k": "50"}, {"temperature": "x"}, {"max_new_tokens": 3.5}, {"top_p": [1]}]
)
def test_a_bad_generation_config_is_one_line(run, tmp_path, config):
    folder = tmp_path / "bad"
    shutil.copytree(ROOT / "weights" / "nanochat-tiny", folder)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, **config}))
    status, out, err = run("Hi", "--model", folder, "--quiet")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert next(iter(config)) in err


def test_figures_are_what_the_clock_says(run, monkeypatch):
    """A clock that moves a second each time it is read: 1 s to each token."""
    ticks = iter(range(1000))
    monkeypatch.setattr(generate.time, "perf_counter", lambda: next(ticks))
    _, out, err = run(FRANCE, "--json")
    answer = json.loads(out)
    load, prompt, new, _ = err.splitlines()
    assert load.startswith("load    1.00 s, nanochat-tiny, 3.7M parameters, bfloat16, cpu")
    fed, tokens = answer["prompt_tokens"], answer["new_tokens"]
    assert prompt == f"prompt  {fed} tokens, {fed} tokens/s, first token after 1.000 s"
    size = 2 * (3_670_016 - 1536 * 256) / 1e9  # bf16, without the embedding
    rate = tokens * tokens / (tokens + 1) / tokens  # tokens + 1 steps, the last met the stop id
    assert new == f"new     {tokens} tokens, {rate:.1f} tokens/s, {size:.2f} GB/s"


def test_ids_beyond_the_tokenizer_are_never_drawn(run, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "padded"
    shutil.copytree(ROOT / "weights" / "nanochat-tiny", folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat((tensors[name], tensors[name][:64] * 3))
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 1600}))
    args = ("--raw", "ROMEO", "--temperature", "3", "--seed", "1", "--quiet")
    assert run(*args, "--model", folder)[0] == 0


def test_numbers_that_cannot_be_written_cost_no_text():
    for stderr in ("2>&-", "2>/dev/full"):
        command = f"{sys.executable} generate.py '{FRANCE}' {stderr}"
        result = subprocess.run(command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert result.returncode == 0
        assert result.stdout == "The capital of France is Paris.\n"


def test_cuda_is_refused_where_there_is_none(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device here" in run("Hi", "--device", "cuda")[2]


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as exited:
        generate.main(["--help"])
    assert exited.value.code == 0
    out = capsys.readouterr().out
    options = "model raw system prompt-file max-new-tokens temperature top-k top-p min-p json quiet"
    options += " repetition-penalty seed num-samples stop device dtype"
    for option in options.split():
        assert f"--{option}" in out


def command(*args, **kwargs):
    return subprocess.Popen(
        [sys.executable, "generate.py", *args],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        **kwargs,
    )


def test_a_closed_pipe_is_quiet():
    with command(FRANCE, "--quiet", stdout=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full, command(FRANCE, "--quiet", stdout=full) as process:
        error = process.stderr.read()
    assert process.returncode == 2
    assert error == "generate.py: error: [Errno 28] No space left on device\n"


def test_a_cold_start_imports_nothing_heavy():
    """sympy alone is a second; torch imports it as soon as something touches its compiler."""
    code = f"import sys, generate; generate.main([{FRANCE!r}, '--quiet']); "
    code += "print(sorted(sys.modules.keys() & {'sympy', 'torch._dynamo', 'transformers'}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_ctrl_c_ends_with_what_was_said_so_far():
    args = ("--raw", "ROMEO:", "--max-new-tokens", "100000", "--temperature", "1", "--seed", "0")
    slow = "import time, generate; write = generate.write; "
    slow += "generate.write = lambda text: (write(text), time.sleep(0.05)); "
    slow += f"raise SystemExit(generate.main({list(args)}))"
    process = subprocess.Popen(
        [sys.executable, "-c", slow],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said = process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    rest, numbers = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (said + rest).endswith("\n")
    assert "Traceback" not in numbers
    assert "new" in numbers


def test_a_chat_on_a_terminal_remembers_and_ends_with_ctrl_d():
    """Two turns; the second feeds only what is new."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "generate.py"], cwd=ROOT, stdin=slave, stdout=slave, stderr=subprocess.PIPE
    )
    os.close(slave)

    def read_until(text):
        seen, deadline = "", time.monotonic() + 60
        while text not in seen and time.monotonic() < deadline:
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 4096).decode()
        return seen

    read_until("> ")
    os.write(master, FRANCE.encode() + b"\n")
    assert "Paris" in read_until("> ").split("?", 1)[1]
    os.write(master, b"Thank you!\n")
    read_until("> ")
    os.write(master, b"\x04")
    err = process.communicate(timeout=60)[1].decode()
    os.close(master)
    assert process.returncode == 0
    prompts = [line for line in err.splitlines() if line.startswith("prompt")]
    assert len(prompts) == 2
    assert "Traceback" not in err
    fed = [int(line.split()[1]) for line in prompts]
    assert fed[1] <= fed[0] + 4, "the second turn feeds the answer's end and the new message"
