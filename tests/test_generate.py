"""The command line: what comes out where, and what bad input says."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripted import BEGINNINGS, Scripted
from small_tokenizers import family_131072
from test_calculator import CALLS, FILLER, FORCED, TOKENIZER, Actor, ids_of

import nanomodels
from nanomodels.cli import command, generate, rows, start, terminal
from nanomodels.generation.prompts import ChatEncoder, TextEncoder, question
from nanomodels.generation.settings import GenerationSettings

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "data" / "nanochat-2025-10-16"
FRANCE = "What is the capital of France?"


class Terminal(io.StringIO):
    """Captured text in place of a standard stream."""

    def __init__(self, text="", terminal=False):
        super().__init__(text)
        self.buffer = io.BytesIO(text.encode())
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
    texts = zip((1, 3, 5), alone, strict=True)
    headed = "".join(f"==> line {line} <==\n{text}\n" for line, text in texts)
    assert run("--prompt-file", path, "--quiet")[1] == headed


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


def test_a_system_message_reaches_the_model(run, monkeypatch, tmp_path):
    """In the same place: a document."""
    seen, encode = [], ChatEncoder.encode
    monkeypatch.setattr(ChatEncoder, "encode", lambda *a: seen.append(encode(*a)) or seen[-1])
    path = tmp_path / "document"
    path.write_text("I am Bo.")
    run("Hi", "--system", "Be brief.")
    run("Be brief.\n\nHi")
    run("Hi", "--system", "Be brief.", "--document", path)
    run("Be brief.\n\nI am Bo.\n\nHi")
    run("Hi", "--document", path)
    run("I am Bo.\n\nHi")
    ids = [prompt.ids for prompt in seen]
    assert ids[0] == ids[1] != ids[2] == ids[3] != ids[4] == ids[5]
    assert run("Hi", "--raw", "--system", "x")[0] == 2


def test_raw_text_begins_with_one_bos(run, monkeypatch):
    from nanomodels import Tokenizer

    for folder in (ROOT / "weights" / "nanochat-tiny", GOLDEN):
        tokenizer = Tokenizer.load(folder)
        bos = tokenizer.special_ids["<|bos|>"]
        for encoder in (ChatEncoder(tokenizer), TextEncoder(tokenizer)):
            ids = encoder.encode([question("Hello world")]).ids
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
        assert ChatEncoder(tokenizer).encode([question("Hello")]).ids.count(1) == bos
        raw = TextEncoder(tokenizer).encode([question("Hello")]).ids
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
        (["Hi", "--logprobs", "3"], "--logprobs goes with --json"),
        (["Hi", "--json", "--logprobs", "-1"], "logprobs is -1; it must be a whole number"),
        (
            ["Hi", "--json", "--logprobs", "2000"],
            "logprobs is 2000; the vocabulary has 1536 tokens",
        ),
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
    found = [(row.messages[0]["content"], row.line) for row in rows.read_rows(args)]
    assert found == [("one\rmore", 1), ("two\u2028", 3)]


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


def test_a_python_without_torch_is_told_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, out, err = run("Hi")
    assert (status, out) == (2, "")
    assert err == (
        f"generate.py: error: torch is not installed in {sys.executable}; make demo sets up "
        ".venv/bin/python, or: pip install .\n"
    )


def test_a_fault_anywhere_in_a_run_is_one_line(run, monkeypatch):
    monkeypatch.setattr(generate, "shared_rows", lambda args: [][0])
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
    """The first import, and the longest; also within code that would catch an exception."""
    code = "import os, signal\ntry: os.kill(os.getpid(), signal.SIGINT); [*range(9)]\n"
    code += "except BaseException: pass\n1 / 0"
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
    options += " explain score"
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


# --- reasoning, tools, and chats that go on ---


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
    replies = ["2", "Three.", "One.</think>1"]  # the longest prompt is the first that is read
    args = ("--prompt-file", path)
    _, out, err, _ = scripted("nano-v2", replies, *args, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["reasoning"] for answer in answers] == ["One.", None, "Three."]
    assert [answer["text"] for answer in answers] == ["1", "2", ""]
    assert "(1 of 3 texts ended before the answer, within the reasoning" in err
    _, out, err, _ = scripted("nano-v2", replies, *args)
    assert out == "==> line 1 <==\n1\n==> line 2 <==\n2\n==> line 3 <==\n\n"
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
        answer = json.loads(scripted("nemotron-3", replies, "When?", "--json", "--tools", path)[1])
        assert (answer["text"], answer["reasoning"]) == ("", "Hm.")
        assert answer["tool_calls"] == [{"name": "clock", "arguments": {}}]
    assert prompts[0] == prompts[1]
    assert "<name>clock</name>\n<description>The time.</description>" in prompts[0]


def test_malformed_calls_stay_text_and_are_told_and_without_tools_no_call_is_looked_for(
    scripted, tmp_path
):
    (tmp_path / "tools.json").write_text(json.dumps([CLOCK]))
    call = '<TOOLCALL>[{"name": "clock", "arguments": {"zone": "UTC"}}]</TOOLCALL>'
    reply = f"</think>Now. <TOOLCALL>[</TOOLCALL> {call}"
    args = ("nano-v2", [reply], "When?", "--json", "--quiet")
    _, out, err, _ = scripted(*args, "--tools", tmp_path / "tools.json")
    answer = json.loads(out)
    assert answer["text"] == "Now. <TOOLCALL>[</TOOLCALL>"
    assert answer["tool_calls"] == [{"name": "clock", "arguments": {"zone": "UTC"}}]
    assert err.startswith("(<TOOLCALL> begins no tool call and stays text: ")
    assert err.count("\n") == 1
    answer = json.loads(scripted(*args)[1])
    assert (answer["text"], "tool_calls" in answer) == (reply.removeprefix("</think>"), False)


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


@pytest.fixture
def notes(tmp_path):
    """Options for a document about five numbers."""
    path = tmp_path / "notes"
    places = ("mill", "sea", "hill", "farm", "mine")
    path.write_text("".join(f"The number of the {p} is 77{n}.\n" for n, p in enumerate(places)))
    model = ROOT / "weights" / "nemotron-h-tiny"
    return "--model", model, "--dtype", "float32", "--no-think", "--document", path


def test_a_document_is_read_once_and_asked_about_many_times(run, notes, tmp_path):
    """--load-state has the document and the messages; the figures say what is read."""
    model, state, questions = notes[:4], tmp_path / "state", ["The sea?", "The hill?", "The mine?"]
    status, out, err = run(*notes, "--save-state", state)
    assert (status, out) == (0, "")
    assert int(err.splitlines()[-1].removeprefix("saved").split()[0]) > 70
    for text in questions[:2]:
        alone = run(*notes, text)
        status, out, err = run(*model, "--no-think", "--load-state", state, text)
        assert (status, out) == alone[:2]
        prompts = [words.split() for words in (alone[2], err)]
        read, whole = (int(words[words.index("prompt") + 1]) for words in prompts[::-1])
        assert f", {whole - read} reused, " in err and read < 40 < whole
    run(*model, "--load-state", state, "--no-think", questions[0], "--save-state", tmp_path / "two")
    chat = nanomodels.Chat(notes[1], dtype=torch.float32)
    chat.load(tmp_path / "two")
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[1]["content"] == questions[0]
    args = (*model, "--load-state", tmp_path / "two", questions[2])
    answer = json.loads(run(*args, "--json", "--quiet")[1])
    assert answer["text"] == chat.ask(questions[2]).text
    assert answer["prompt_tokens"] == chat.reply.prompt_tokens
    _, out, err = run(*model, "--load-state", tmp_path / "two", stdin="The sea?\n", terminal=True)
    assert " reused)" in err and len(out) > 4


def test_raw_text_is_read_once_and_continued_many_times(run, tmp_path):
    (tmp_path / "story").write_text("Once upon a time, a")
    state, args = tmp_path / "state", ("--model", ROOT / "weights" / "nemotron-tiny", "--quiet")
    args += ("--temperature", "0", "--max-new-tokens", "5")
    for document in (["--document", tmp_path / "story"], ["Once upon a time, a"]):
        last = ["--max-new-tokens", "0"] if len(document) == 1 else []
        assert run(*args, *document, *last, "--save-state", state)[0] == 0
        expected = run(*args, "Once upon a time, a little")[1]
        assert run(*args, "--load-state", state, " little") == (0, expected, "")
    status, _, err = run(*args, "--no-think", "--load-state", state, " little")
    assert (status, err.count("\n")) == (2, 1)
    status, _, err = run("--load-state", state, "Hi", "--quiet")
    assert status == 2 and f"{state}: was saved with another model: Nemotron, here NanoChat" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--load-state", "nothing", "Hi"], "nothing: no such file"),
        (["--document", "nothing", "Hi"], "nothing: no such file"),
        (["--load-state", "state", "--system", "x", "Hi"], "has its own --system and --document"),
        (["--load-state", "state", "--num-samples", "2", "Hi"], "with one prompt and one sample"),
        (["--save-state", "state", "--prompt-file", "two"], "with one prompt and one sample"),
        (["--save-state", ".", "Hi"], "is not a file; give the name of a file"),
        (["--save-state", "nothing/state", "Hi"], "nothing: no such folder"),
        (["--save-state", "state", ""], "the prompt is empty"),
    ],
)
def test_states_that_cannot_be_get_one_clear_line(run, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two").write_text("One?\nTwo?\n")
    assert run("--save-state", "state", "--quiet") == (0, "", "")
    before = (tmp_path / "state").read_bytes()
    status, _, err = run(*args, "--quiet")
    assert (status, err.count("\n")) == (2, 1)
    assert words in err
    assert (tmp_path / "state").read_bytes() == before
    assert {*os.listdir(tmp_path)} == {"state", "two"}


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


# --- the page of --explain ---


def test_a_page_is_about_the_real_generation(run, tmp_path):
    """Sampled, after a state and with stop strings: its tokens are those that were generated."""
    state, page = tmp_path / "state", tmp_path / "page.html"
    page.write_text("old")
    assert run(FRANCE, "--quiet", "--save-state", state)[0] == 0
    args = ("And of Spain?", "--load-state", state, "--temperature", "1", "--seed", "3")
    plain = run(*args, "--quiet")[1]
    status, out, err = run(*args, "--explain", page, "--stop", "zz")
    assert (status, out) == (0, plain)
    last = err.splitlines()[-1].split()
    assert (last[0], last[2:]) == ("page", ["MB,", str(page)])
    content = json.loads(page.read_text().split('id="content">')[1].split("</script>")[0])
    assert "".join(content["tokens"][content["prompt"] :]) == out.rstrip("\n")
    tokenizer = nanomodels.Tokenizer.load(ROOT / "weights" / "nanochat-tiny")
    prompt = tokenizer.decode(content["ids"][: content["prompt"]])
    assert prompt.count(FRANCE) == 1 and "And of Spain?" in prompt
    assert content["about"]["seed"] == 3
    assert {*os.listdir(tmp_path)} == {"state", "page.html"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["Hi", "--explain", "."], ".: is not a file"),
        (["Hi", "--explain", "nowhere/page.html"], "nowhere: no such folder"),
        (["Hi", "--explain", "/proc/page.html"], "/proc/page.html: cannot be written"),
        (["--prompt-file", "one", "--explain", "page"], "--explain goes with one prompt"),
        (["Hi", "--num-samples", "2", "--explain", "page"], "--explain goes with one prompt"),
        (["--prompt-file", "one", "--save-state", "state"], "--save-state goes with one prompt"),
    ],
)
def test_a_page_that_cannot_be_is_refused_before_the_work(run, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nanomodels, "load", None)
    (tmp_path / "one").write_text("Hi\n")
    status, out, err = run(*args, "--quiet")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert os.listdir(tmp_path) == ["one"]
    assert run("--explain", "page", "--quiet", terminal=True)[0] == 2, "a chat"


def test_a_page_of_a_full_context(run, tmp_path):
    """The last token has no room in it."""
    page = tmp_path / "page.html"
    args = ("ROMEO " * 125, "--raw", "--max-new-tokens", "20", "--json", "--quiet")
    status, out, _ = run(*args, "--explain", page)
    answer = json.loads(out)
    assert (status, answer["finish_reason"]) == (0, "context")
    content = json.loads(page.read_text().split('id="content">')[1].split("</script>")[0])
    assert len(content["ids"]) == 512 == answer["prompt_tokens"] + answer["new_tokens"] - 1


def test_a_page_is_whole_or_none(run, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("old")
    for error, expected in ((KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)):

        def fail(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", fail)
            assert run(FRANCE, "--quiet", "--explain", page)[0] == expected
        assert page.read_text() == "old" and os.listdir(tmp_path) == ["page.html"]


# --- log-probabilities, and nanochat's calculator ---


def test_log_probabilities_are_in_json(run):
    plain = json.loads(run(FRANCE, "--json")[1])
    assert plain["parts"] is None, "nothing was calculated"
    for top in (0, 2):
        answer = json.loads(run(FRANCE, "--json", "--logprobs", top)[1])
        tokens = answer.pop("logprobs")
        assert answer == plain, "nothing else changes, and without the option nothing is there"
        assert len(tokens) == answer["new_tokens"]
        assert "".join(token["text"] for token in tokens) == answer["text"]
        for token in tokens:
            assert -1 < token["logprob"] <= 0
            assert len(token["top"]) == top
            own = {key: token[key] for key in ("token", "text", "logprob")}
            assert token["top"][:1] in ([], [own]), "greedy"


def test_what_the_calculator_was_asked_is_no_text_but_a_part(run, monkeypatch):
    question = "What is 345 * 27?"
    message = [{"role": "user", "content": question}]
    prompts = {
        (): TOKENIZER.encode_chat(message),
        ("--raw",): TOKENIZER.encode(question),
    }
    script = ids_of(f"It is {CALLS[0]}" + "z" * len(ids_of(FORCED)) + "9315.<|assistant_end|>")
    for args, prompt in prompts.items():
        model = Actor(TOKENIZER, {prompt[0]: (len(prompt), script)}, FILLER)
        monkeypatch.setattr(nanomodels, "load", lambda *_, model=model: model)
        args = ("--model", GOLDEN, question, *args, "--temperature", "0", "--quiet")
        assert run(*args) == (0, "It is 9315.\n", "")
        answer = json.loads(run(*args, "--json", "--logprobs", "0")[1])
        assert answer["text"] == "It is 9315."
        assert answer["parts"] == [
            {"type": "text", "text": "It is "},
            {"type": "python", "text": "345*27"},
            {"type": "python_output", "text": "9315"},
            {"type": "text", "text": "9315."},
        ]
        assert [each["token"] for each in answer["logprobs"]] == [
            *ids_of("It is " + CALLS[0] + FORCED + "9315.")
        ]
