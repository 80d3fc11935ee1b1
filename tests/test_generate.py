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
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reference import FAMILIES
from small_tokenizers import family_131072

import nanomodels
from nanomodels.cache import KV, Cache
from nanomodels.cli import chat as cli_chat
from nanomodels.cli import command, generate, start, terminal
from nanomodels.generation import conversation
from nanomodels.generation.settings import GenerationSettings

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
    monkeypatch.setattr(terminal, "write", pieces.append)
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
    original = conversation.encode
    monkeypatch.setattr(conversation, "encode", lambda *a: seen.append(original(*a)) or seen[-1])
    run("Hi", "--system", "Be brief.")
    run("Be brief.\n\nHi")
    assert seen[0].ids == seen[1].ids
    assert run("Hi", "--raw", "--system", "x")[0] == 2


def test_raw_text_begins_with_one_bos(run, monkeypatch):
    from nanomodels import Tokenizer

    for folder in (ROOT / "weights" / "nanochat-tiny", GOLDEN):
        tokenizer = Tokenizer.load(folder)
        bos = tokenizer.special_ids["<|bos|>"]
        for chat in (conversation.Chat(tokenizer), None):
            ids = conversation.encode(tokenizer, "Hello world", chat).ids
            assert ids[0] == bos
            assert ids.count(bos) == 1


def test_a_chat_and_raw_text_have_the_one_bos_that_the_checkpoint_adds(tmp_path):
    for family, template, bos in (
        ("nemotron-h", "{{ bos_token }}{{ messages[0].content }}", 1),  # its post-processor has <s>
        ("nemotron-h", "{{ messages[0].content }}", 0),
        ("nemotron-3", None, 0),
        ("nano-v2", None, 0),
    ):
        family_131072(tmp_path, family)
        if template:
            (tmp_path / "chat_template.jinja").write_text(template)
        tokenizer = nanomodels.Tokenizer.load(tmp_path)
        chat = conversation.Chat(tokenizer)
        assert conversation.encode(tokenizer, "Hello", chat).ids.count(1) == bos
        raw = conversation.encode(tokenizer, "Hello", None).ids
        assert raw.count(1) == (family == "nemotron-h") == (raw[0] == 1)


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
        (["Hi", "--think"], "nanochat-tiny: the chat template has no switch for the reasoning"),
        (["Hi", "--no-think"], "has no switch for the reasoning"),
        (["Hi", "--tools", "x.json"], "x.json: no such file"),
        (["Hi", "--raw", "--no-think"], "--no-think needs a chat template"),
        (["Hi", "--raw", "--tools", "x.json"], "--tools needs a chat template"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_gets_one_clear_line(run, args, words):
    status, out, err = run(*args, *(() if "--quiet" in args else ("--quiet",)))
    assert (status, out) == (2, "")
    assert err.startswith("generate.py: error: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [["--bogus"], ["Hi", "--top-k", "x"], ["--prompt", "Hi"], ["--think", "--no-think"]],
    ids=str,
)
def test_a_wrong_option_gets_one_line(run, monkeypatch, args):
    with pytest.raises(SystemExit) as exited:
        run(*args)
    assert exited.value.code == 2
    error = sys.stderr.getvalue()
    assert error.startswith("generate.py: error: ")
    assert error.count("\n") == 1


def settings_of(config, *args):
    settings = command.generation_settings(generate.parse_arguments(["x", *args]), config)
    assert 0 <= settings.seed < 2**32
    return replace(settings, seed=None, num_samples=1)


def test_settings_are_the_arguments_over_the_checkpoints_over_greedy():
    sampled = {
        "do_sample": True, "temperature": 0.6, "top_k": 50, "top_p": 0.9, "min_p": 0.1,
        "repetition_penalty": 1.1, "max_new_tokens": 9,
    }  # fmt: skip
    greedy = GenerationSettings(temperature=0.0, max_new_tokens=256)
    assert settings_of({}) == greedy
    assert settings_of({**sampled, "do_sample": False}) == replace(
        greedy, repetition_penalty=1.1, max_new_tokens=9
    )
    assert settings_of({"do_sample": True}) == replace(greedy, temperature=1.0)
    given = {key: value for key, value in sampled.items() if key != "do_sample"}
    expected = GenerationSettings(**given)
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
        assert settings_of(sampled, option, str(value)) == replace(expected, **{name: value})
    # Asking for a sample of a greedy checkpoint turns sampling on; naming an "off" value does not.
    for asked in (("--top-k", "5"), ("--top-p", "0.9"), ("--min-p", "0.1"), ("--num-samples", "2")):
        assert settings_of({}, *asked).temperature == 1.0
    for off in (("--top-k", "0"), ("--top-p", "1"), ("--min-p", "0"), ("--num-samples", "1")):
        assert settings_of({}, *off).temperature == 0.0


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
    """With a clock that advances one second each time it is read: 1 s a token."""
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    _, out, err = run(FRANCE, "--json")
    answer = json.loads(out)
    load, prompt, new, _ = err.splitlines()
    assert load.startswith("load    1.00 s, nanochat-tiny, 3.9M parameters, bfloat16, cpu")
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
    status, _, err = run("Hi", "--cuda-graph")
    assert status == 2 and "--cuda-graph goes with --device cuda" in err
    assert "no CUDA device here" in run("Hi", "--device", "cuda")[2]


def test_a_prompt_file_is_cut_at_line_feeds_alone_and_has_no_byte_order_mark(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\rmore\r\n\ntwo\u2028\n".encode())
    args = generate.parse_arguments(["--prompt-file", str(path)])
    assert command.read_prompts(args) == ["one\rmore", "two\u2028"]


def test_piped_input_has_no_byte_order_mark(run):
    _, out, _ = run(FRANCE)
    assert run("--quiet", stdin="\ufeff" + FRANCE + "\n") == (0, out, "")
    assert "the prompt is empty (standard input)" in run("--quiet", stdin="\ufeff\n")[2]


class Panic(BaseException):
    """As pyo3_runtime.PanicException, which is no Exception either."""


@pytest.mark.parametrize("program", ["generate.py", "convert_hf.py"])
@pytest.mark.parametrize(
    "error", [TypeError("a\nb" * 200), KeyError("x"), OverflowError(), RuntimeError("x"), Panic()]
)
def test_whatever_is_unforeseen_is_one_line_and_called_our_fault(
    monkeypatch, capfd, program, error
):
    def work():
        raise error

    assert command.exit_status(program, work) == 1
    err = capfd.readouterr().err
    assert err.startswith(
        f"{program}: error: this is a fault of nanomodels; please report it: {type(error).__name__}"
    )
    assert err.endswith("(NANOMODELS_TRACEBACK=1 shows where)\n")
    assert err.count("\n") == 1 and len(err) < 500
    monkeypatch.setenv("NANOMODELS_TRACEBACK", "1")
    assert command.exit_status(program, work) == 1
    assert "Traceback" in (err := capfd.readouterr().err) and "in work" in err


def test_a_fault_anywhere_in_a_run_is_one_line(run, monkeypatch):
    monkeypatch.setattr(generate, "read_prompts", lambda args: [][0])
    status, out, err = run("Hi")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "fault of nanomodels; please report it: IndexError" in err


def test_too_little_memory_and_an_exit_are_no_faults(capfd):
    def too_large():
        raise RuntimeError("not enough memory: you tried to allocate 1 byte")

    assert command.exit_status("x", too_large) == 2
    assert capfd.readouterr().err.startswith("x: error: not enough memory")
    with pytest.raises(SystemExit):
        command.exit_status("x", sys.exit)


@pytest.mark.parametrize("program", ["generate.py", "convert_hf.py"])
@pytest.mark.parametrize("module", ["argparse", "torch"])
def test_ctrl_c_during_an_import_is_quiet(tmp_path, program, module):
    """The first import, and the longest."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); 1 / 0"
    (tmp_path / f"{module}.py").write_text(code)
    result = subprocess.run(
        [sys.executable, program, "weights/nanochat-tiny"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("program", ["generate", "convert_hf"])
def test_an_old_python_is_told_so_in_one_line(program):
    code = f"import sys; sys.version_info = (3, 10, 1); import {program}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    said = "error: nanomodels needs Python 3.11 or newer; this is 3.10\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", said)


def test_ctrl_c_that_is_ignored_stays_ignored(tmp_path):
    """As in a shell's background job."""
    (tmp_path / "argparse.py").write_text(
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('on'); os._exit(7)"
    )
    env = f"PYTHONPATH={tmp_path}:{ROOT}"
    result = subprocess.run(
        ["sh", "-c", f"trap '' INT; {env} {sys.executable} generate.py Hi"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (7, "")


def test_a_second_ctrl_c_is_quiet(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    was = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as exited:
            start.run_program(interrupted)
        assert exited.value.code == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "during Python's own clean-up"
    finally:
        signal.signal(signal.SIGINT, was)


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as exited:
        generate.main(["--help"])
    assert exited.value.code == 0
    out = capsys.readouterr().out
    options = "model raw system prompt-file max-new-tokens temperature top-k top-p min-p json quiet"
    options += " repetition-penalty seed num-samples stop device dtype think no-think tools"
    for option in options.split():
        assert f"--{option}" in out


def started(*args, **kwargs):
    return subprocess.Popen(
        [sys.executable, "generate.py", *args],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        **kwargs,
    )


def test_a_closed_pipe_is_quiet():
    with started(FRANCE, "--quiet", stdout=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full, started(FRANCE, "--quiet", stdout=full) as process:
        error = process.stderr.read()
    assert process.returncode == 2
    assert error == "generate.py: error: [Errno 28] No space left on device\n"


def test_a_cold_start_imports_nothing_heavy():
    """sympy alone takes a second; torch imports it when its compiler is first touched."""
    code = f"import sys, generate; generate.main([{FRANCE!r}, '--quiet']); "
    code += "print(sorted(sys.modules.keys() & {'sympy', 'torch._dynamo', 'transformers'}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("program", ["generate", "convert_hf"])
@pytest.mark.parametrize("option", ["--help", "--bogus"])
def test_help_and_a_wrong_option_do_without_torch(program, option):
    code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    code += f"import {program}; {program}.main([{option!r}])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == (0 if option == "--help" else 2)
    assert result.stdout.splitlines()[-1] == "False"


def test_ctrl_c_ends_with_what_was_said_so_far():
    args = ("--raw", "ROMEO:", "--max-new-tokens", "100000", "--temperature", "1", "--seed", "0")
    slow = "import time, generate; from nanomodels.cli import terminal; write = terminal.write; "
    slow += "terminal.write = lambda text: (write(text), time.sleep(0.05)); "
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
    """Two turns. The second feeds only the new tokens."""
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


# --- reasoning, tools, and chats that go on ---

# What a template ends a prompt with, in tests/data/templates.
BEGINNINGS = [
    *("<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think></think>"),
    *("<SPECIAL_11>Assistant\n<think>\n\n", "<SPECIAL_11>Assistant\n<think></think>"),
]


class Scripted(torch.nn.Module):
    """A model that answers each new prompt with the next of `replies`, then its stop id."""

    def __init__(self, tokenizer, replies, context_length):
        super().__init__()
        self.embed, self.lm_head = torch.nn.Embedding(1, 1), torch.nn.Linear(1, 1)
        self.config = SimpleNamespace(vocab_size=tokenizer.vocab_size)
        self.context_length, self.stop_ids = context_length, (tokenizer.eos_id,)
        self.skipped = {}
        self.beginnings = [
            tokenizer.encode(text, add_bos=False, special=special)
            for text in BEGINNINGS
            for special in (True, False)
        ]
        self.replies = [tokenizer.encode(r, add_bos=False, special=True) for r in replies]
        self.replies = iter([[*reply, tokenizer.eos_id] for reply in self.replies])
        self.known = {}  # prompt: its reply
        self.fed = 0  # tokens

    def new_cache(self, batch, max_length):
        ids = KV(*torch.zeros(2, batch, 1, max_length, 1))
        return Cache([ids], batch, max_length, "cpu")

    def forward(self, ids, *, cache, attention_mask=None, logits_to_keep=0):
        call = cache.begin(*ids.shape, attention_mask)
        values = ids[:, None, :, None].float()
        seen, _ = cache.entries[0].extend(values, values, call.first_slot)
        cache.commit(call)
        self.fed += int((call.positions >= 0).sum())
        logits = torch.zeros(len(ids), 1, self.config.vocab_size)
        for row, all_ids, positions in zip(logits, seen, cache.positions, strict=True):
            real = positions[: cache.length] >= 0
            row[0, self.next(all_ids[0, real, 0].int().tolist())] = 1
        return logits

    def next(self, ids):
        where = [(n, b) for b in self.beginnings for n in range(len(ids)) if ids[n:][: len(b)] == b]
        end = max((n + len(b) for n, b in where), default=0)
        prompt, said = ids[:end], ids[end:]
        if not prompt or self.stop_ids[0] in said:
            return 0  # within a prompt
        if tuple(prompt) not in self.known:
            self.known[tuple(prompt)] = next(self.replies)
        return self.known[tuple(prompt)][len(said)]


@pytest.fixture
def scripted(run, monkeypatch, tmp_path):
    """Run generate.py with a Scripted model; gives status, stdout, stderr and the model."""

    def scripted(family, replies, *args, context_length=4096, template=None, **settings):
        family_131072(tmp_path, family)
        if template:
            (tmp_path / "chat_template.jinja").write_text(template)
        (tmp_path / "config.json").write_text("{}")
        tokenizer = nanomodels.Tokenizer.load(tmp_path)
        model = Scripted(tokenizer, replies, context_length)
        model.tokenizer = tokenizer
        monkeypatch.setattr(nanomodels, "load", lambda *_: model)
        return *run("--model", tmp_path, *args, **settings), model

    return scripted


def prompts_of(model):
    return [model.tokenizer.decode(ids) for ids in model.known]


THOUGHTFUL = "It is in\nFrance.\n</think>\n\nParis."


def test_reasoning_goes_to_stderr_and_the_answer_to_stdout(scripted):
    status, out, err, model = scripted("nemotron-3", [THOUGHTFUL], "Capital?")
    assert (status, out) == (0, "Paris.\n")
    lines = err.splitlines()
    assert lines[1:5] == ["<think>", "It is in", "France.", "</think>"]
    assert [line.split()[0] for line in lines if ", " in line] == ["load", "prompt", "new"]
    assert scripted("nemotron-3", [THOUGHTFUL], "Capital?", "--quiet")[:3] == (0, "Paris.\n", "")
    [prompt] = prompts_of(model)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")


def test_reasoning_is_a_field_of_its_own_in_json(scripted):
    out = scripted("nemotron-3", [THOUGHTFUL], "Capital?", "--json", "--quiet")[1]
    answer = json.loads(out)
    assert (answer["reasoning"], answer["text"]) == ("It is in\nFrance.", "Paris.")
    assert answer["finish_reason"] == "stop"
    assert answer["new_tokens"] > len("Paris.")


def test_raw_text_is_not_split(scripted):
    args = (BEGINNINGS[0], "--raw", "--json")
    answer = json.loads(scripted("nemotron-h", ["<think>a</think> b"], *args)[1])
    assert (answer["reasoning"], answer["text"]) == (None, "<think>a</think> b")


def test_reasoning_comes_as_it_is_made_and_before_the_answer(scripted, monkeypatch):
    events = []
    monkeypatch.setattr(terminal, "write", lambda text: events.append(("out", text)))
    monkeypatch.setattr(terminal, "say", lambda line, end="\n": events.append(("err", line + end)))
    monkeypatch.setattr(terminal, "show", lambda text: events.append(("err", text)))
    monkeypatch.setattr(terminal, "report", lambda *figures: None)
    monkeypatch.setattr(generate, "report", lambda *figures: None)
    scripted("nemotron-3", [THOUGHTFUL], "Capital?")
    kinds = [kind for kind, text in events if text]
    first = kinds.index("out")
    assert first > 4
    assert kinds == ["err"] * first + ["out"] * (len(kinds) - first)


@pytest.mark.parametrize(
    ("family", "args", "end"),
    [
        ("nemotron-3", ["--think"], "<think>\n"),
        ("nemotron-3", ["--no-think"], "<think></think>"),
        ("nano-v2", [], "<think>\n\n"),
        ("nano-v2", ["--think"], "<think>\n\n"),
        ("nano-v2", ["--no-think"], "<think></think>"),
        ("nano-v2", ["--no-think", "--system", "Be kind. /think"], "<think></think>"),
        ("nano-v2", ["--think", "--system", "Be kind. /no_think"], "<think>\n\n"),
    ],
)
def test_the_switches_reach_the_template(scripted, family, args, end):
    reply = "Hm.</think>Yes." if "\n" in end else "Yes."
    status, out, _, model = scripted(family, [reply], "Capital?", "--json", *args)
    [prompt] = prompts_of(model)
    assert status == 0
    assert prompt.endswith(f"ssistant\n{end}")
    assert "think" not in prompt.removesuffix(end)
    answer = json.loads(out)
    assert (answer["reasoning"], answer["text"]) == ("Hm." if "\n" in end else None, "Yes.")


def test_a_model_may_begin_to_reason_by_itself(scripted):
    reply = "<think>\nHm.\n</think>\n\nYes."
    answer = json.loads(scripted("nemotron-3", [reply], "Hi", "--json", "--no-think")[1])
    assert (answer["reasoning"], answer["text"]) == ("Hm.", "Yes.")
    answer = json.loads(scripted("nemotron-3", ["<thin air"], "Hi", "--json", "--no-think")[1])
    assert (answer["reasoning"], answer["text"]) == (None, "<thin air")


def test_reasoning_that_does_not_end_leaves_no_answer_and_says_so(scripted):
    args = ("Capital?", "--max-new-tokens", "4")
    message = "(the text ended before the answer, within the reasoning; see --max-new-tokens)"
    status, out, err, _ = scripted("nemotron-3", [THOUGHTFUL], *args)
    assert (status, out) == (0, "\n")
    assert err.splitlines()[1:4] == ["<think>", "It is", message] or message in err.splitlines()
    assert "</think>" not in err
    assert scripted("nemotron-3", [THOUGHTFUL], *args, "--quiet")[:3] == (0, "\n", message + "\n")
    answer = json.loads(scripted("nemotron-3", [THOUGHTFUL], *args, "--json")[1])
    assert (answer["text"], answer["finish_reason"]) == ("", "length")
    assert "It is in\nFrance.".startswith(answer["reasoning"])


def test_each_text_of_a_batch_has_its_own_reasoning(scripted, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("One?\nTwo /no_think?\nThree?\n")
    replies = ["One.</think>1", "2", "Three."]
    args = ("--prompt-file", path)
    _, out, err, _ = scripted("nano-v2", replies, *args, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["reasoning"] for answer in answers] == ["One.", None, "Three."]
    assert [answer["text"] for answer in answers] == ["1", "2", ""]
    assert "(1 of 3 texts ended before the answer, within the reasoning" in err
    _, out, err, _ = scripted("nano-v2", replies, *args)
    assert out == "1\n2\n\n"
    assert "<think>\nOne.\n</think>\n<think>\nThree.\n" in err


def test_a_stop_string_ends_the_answer_not_the_reasoning(scripted):
    reply = "One. Two.</think>Three. Four."
    args = ("Hi", "--json", "--stop", ".")
    answer = json.loads(scripted("nemotron-3", [reply], *args)[1])
    assert (answer["reasoning"], answer["text"]) == ("One. Two.", "Three")


def test_tools_need_a_template_that_has_them(run, tmp_path):
    path = tmp_path / "tools.json"
    path.write_text('[{"name": "clock"}]')
    status, _, err = run("Hi", "--quiet", "--tools", path)
    assert (status, err.count("\n")) == (2, 1)
    assert "nanochat-tiny: the chat template has no tools" in err


CLOCK = {"name": "clock", "description": "The time.", "parameters": {"properties": {"zone": {}}}}


def test_tools_reach_the_template_and_calls_are_shown(scripted, tmp_path):
    call = "<tool_call>\n<function=clock>\n</function>\n</tool_call>"
    prompts = []
    for tools in ([CLOCK], [{"type": "function", "function": CLOCK}]):
        path = tmp_path / "tools.json"
        path.write_text(json.dumps(tools))
        assert command.read_tools(path) == [{"type": "function", "function": CLOCK}]
        replies = [f"Hm.</think>{call}"]
        _, out, _, model = scripted("nemotron-3", replies, "When?", "--tools", path)
        assert out == call + "\n", "<tool_call> is a special token, and yet shown"
        prompts += prompts_of(model)
    assert prompts[0] == prompts[1]
    assert "<name>clock</name>\n<description>The time.</description>" in prompts[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[{", "not valid JSON"),
        ('{"name": "clock"}', "must hold a JSON list, holds a dict"),
        ('["clock"]', "entry 1 is no tool"),
        ('[{"name": "clock", "parameters": [1]}]', "entry 1 is no tool"),
        ('[{"name": "clock", "parameters": {"properties": ["zone"]}}]', "entry 1 is no tool"),
        ('[{"name": "clock"}, {"type": "function"}]', "entry 2 is no tool"),
        ('[{"type": "function", "function": "clock"}]', "entry 1 is no tool"),
        (None, "no such file"),
        ("\xff", "not UTF-8"),
    ],
)
def test_a_bad_tools_file_gets_one_clear_line(scripted, tmp_path, content, words):
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    status, out, err, _ = scripted("nemotron-3", [], "Hi", "--quiet", "--tools", path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{path}: " in err
    assert words in err


def talk(scripted, monkeypatch, family, lines, replies, *args, **settings):
    """The messages of a chat's last prompt, tokens fed and prompt for each turn; and stderr."""
    encode, prompts = conversation.Chat.encode, []

    def spy(self, turns, **variables):
        if not variables:
            prompts.append((list(turns), encode(self, turns)))
        return encode(self, turns, **variables)

    monkeypatch.setattr(conversation.Chat, "encode", spy)
    _, out, err, model = scripted(
        family, replies, *args, stdin="\n".join(lines) + "\n", terminal=True, **settings
    )
    fed = [int(line.split()[1]) for line in err.splitlines() if line.startswith("prompt")]
    return prompts, fed, out, err, model


def test_a_chat_remembers_the_reasoning_apart_from_the_answer(scripted, monkeypatch):
    replies = ["One.\n</think>\n1", "Two.\n</think>\n2"]
    prompts, _, out, err, _ = talk(scripted, monkeypatch, "nemotron-3", ["One?", "Two?"], replies)
    assert out == "1\n2\n\n"
    assert "<think>\nOne.\n</think>" in err
    assert prompts[1][0] == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1", "reasoning_content": "One."},
        {"role": "user", "content": "Two?"},
    ]


def test_a_chat_goes_back_to_the_last_message_where_the_template_drops_the_reasoning(
    scripted, monkeypatch
):
    replies = [f"{'I think. ' * 20}</think>{n}" for n in range(3)]
    lines = ["First?", "Second?", "Third?"]
    prompts, fed, out, _, model = talk(
        scripted, monkeypatch, "nemotron-3", lines, replies, "--system", "Be kind. " * 20
    )
    assert out == "0\n1\n2\n\n"
    ids = [prompt.ids for _, prompt in prompts]
    chat = [model.tokenizer.decode(i).removesuffix(BEGINNINGS[0]) for i in ids]
    messages = [len(model.tokenizer.encode(text, add_bos=False, special=True)) for text in chat]
    assert fed == [len(ids[0]), len(ids[1]) - messages[0], len(ids[2]) - messages[1]]
    assert [list(known) for known in model.known] == ids, "what the model saw is the prompt"


def test_a_chat_without_reasoning_feeds_only_what_is_new(scripted, monkeypatch):
    """With a cache that has to grow."""
    replies = [f"Yes, that is {n}." for n in range(5)]
    prompts, fed, _, _, model = talk(
        scripted, monkeypatch, "nemotron-3", [f"{n}?" for n in range(5)], replies,
        *("--no-think", "--max-new-tokens", "20"),
    )  # fmt: skip
    ids = [prompt.ids for _, prompt in prompts]
    held = [i + model.tokenizer.encode(reply) for i, reply in zip(ids, replies, strict=True)]
    for before, after in zip(held, ids[1:], strict=False):
        assert after[: len(before)] == before
    assert fed == [len(ids[0]), *(len(i) - len(h) for i, h in zip(ids[1:], held, strict=False))]


def test_a_chat_works_with_a_template_that_does_not_know_the_generation_prompt(
    scripted, monkeypatch
):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + BEGINNINGS[1]
    prompts, fed, out, _, _ = talk(
        scripted, monkeypatch, "nemotron-3", ["One?", "Two?"], ["1", "2"], template=template
    )
    assert out == "1\n2\n\n"
    assert fed == [len(prompt.ids) for _, prompt in prompts], "no place to go back to"


def test_a_chat_whose_context_is_full_forgets_the_oldest_turn_and_begins_anew(
    scripted, monkeypatch
):
    lines = [f"Question {n}?" for n in range(6)]
    prompts, _, out, err, model = talk(
        scripted, monkeypatch, "nemotron-3", lines, [f"Answer {n}." for n in range(6)],
        *("--no-think", "--max-new-tokens", "20"), context_length=150,
    )  # fmt: skip
    assert out.splitlines()[:6] == [f"Answer {n}." for n in range(6)]
    assert "(the context is full: the oldest turn is forgotten)" in err
    last = model.tokenizer.decode(prompts[-1][1].ids)
    assert "Question 0" not in last
    assert "Question 5" in last
    assert [list(known) for known in model.known][-1] == prompts[-1][1].ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("args", [["--think"], ["--no-think", "--draft-lookup", "6"]])
def test_a_chat_says_what_the_whole_prompt_alone_would_give(
    run, monkeypatch, tmp_path, family, args
):
    """With random weights, for each family, and a cache that has to grow."""
    family_131072(tmp_path, "nemotron-3")
    size = nanomodels.Tokenizer.load(tmp_path).vocab_size
    theirs = FAMILIES[family](0)
    theirs.resize_token_embeddings(size)
    theirs.config.max_position_embeddings = 2048
    with torch.no_grad():
        for weight in (theirs.get_input_embeddings().weight, theirs.lm_head.weight):
            weight.normal_(generator=torch.Generator().manual_seed(1))
    theirs.save_pretrained(tmp_path)
    model = nanomodels.load(tmp_path)
    produce, encode, said, prompts = cli_chat.produce, conversation.Chat.encode, [], []

    def spy_produce(rows, *rest):
        interrupted = produce(rows, *rest)
        said.append(rows[0].tokens)
        return interrupted

    def spy_encode(self, turns, **variables):
        prompt = encode(self, turns, **variables)
        if not variables:
            prompts.append(prompt.ids)
        return prompt

    monkeypatch.setattr(cli_chat, "produce", spy_produce)
    monkeypatch.setattr(conversation.Chat, "encode", spy_encode)
    lines = ["One?", "Two and two?", "Three?", "Four and more?"]
    args += ["--max-new-tokens", "9", "--temperature", "3", "--seed", "5"]
    status, _, err = run("--model", tmp_path, *args, stdin="\n".join(lines) + "\n", terminal=True)
    assert status == 0
    assert len(said) == 4
    stop = (*model.stop_ids, 11)
    for ids, tokens in zip(prompts, said, strict=True):
        alone = nanomodels.generate(
            model, ids, max_new_tokens=9, stop_ids=stop, vocab_size=size, temperature=3, seed=5
        )
        assert list(alone) == tokens
    fed = [int(line.split()[1]) for line in err.splitlines() if line.startswith("prompt")]
    assert fed[0] == len(prompts[0])
    assert all(some < len(ids) for some, ids in zip(fed[1:], prompts[1:], strict=True))


def test_drafts_change_no_text_and_are_counted(run):
    notes = " ".join(
        f"The number of the {place} is {n}." for n, place in enumerate(("mill", "sea"))
    )
    args = (
        "--model",
        ROOT / "weights" / "nemotron-h-tiny",
        f"{notes} What is the number of the sea?",
    )
    _, plain, _ = run(*args, "--dtype", "float32")
    status, text, err = run(*args, "--dtype", "float32", "--draft-lookup", 4)
    assert status == 0
    assert text == plain
    [line] = [line for line in err.splitlines() if line.startswith("drafts")]
    assert int(line.split()[1]) >= int(line.split()[3]) > 0


@pytest.mark.parametrize("args", [["-1"], ["4", "--num-samples", "2"]])
def test_drafts_that_cannot_be_are_refused(run, args):
    status, _, err = run(FRANCE, "--draft-lookup", *args)
    assert status == 2
    assert "--draft-lookup" in err
    assert err.count("\n") == 1
