#!/usr/bin/env python3
"""Continue a prompt, or chat, with a NanoChat, Nemotron or Nemotron-H checkpoint.

Text goes to stdout as it comes, numbers to stderr. The prompt is the argument, or standard input
where that is piped, or each line of --prompt-file; without any, on a terminal, a chat begins.
A checkpoint with a chat template answers the prompt as a user's message; --raw continues the text.
What a model thinks before it answers goes to stderr, too, or into the "reasoning" of --json.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from nanomodels.text.files import one_line, read_json, read_text, say

EXAMPLES = """examples:
  python generate.py "What is the capital of France?"
  python generate.py --raw "ROMEO" --temperature 0.8 --num-samples 3
  python generate.py --model weights/nemotron-h-tiny --no-think "Hello!"
  python generate.py --prompt-file questions.txt --json > answers.jsonl
  echo "Tell me a joke." | python generate.py --quiet

The sampling settings that are not given are those of the checkpoint's generation_config.json;
one without any is greedy. Exit status: 0, 2 for bad input, 130 after Ctrl-C.
"""
BATCH = 16  # prompts of a file that run at the same time


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, like every other error here."""
        say(f"generate.py: error: {message} (see generate.py --help)")
        self.exit(2)


def parse_arguments(argv):
    parser = Parser(
        prog="generate.py",
        allow_abbrev=False,
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", nargs="?", help="the text to answer or to continue")
    default = Path(__file__).resolve().parent / "weights" / "nanochat-tiny"
    add("--model", type=Path, default=default, metavar="FOLDER", help="checkpoint [nanochat-tiny]")
    add("--raw", action="store_true", help="continue the text as it is, without a chat template")
    add("--system", metavar="TEXT", help="system message that a chat begins with")
    thinking = parser.add_mutually_exclusive_group().add_argument
    thinking("--think", action="store_true", default=None, help="reason before the answer")
    thinking("--no-think", action="store_false", dest="think", help="do not reason first")
    add("--tools", type=Path, metavar="FILE", help="JSON list of the tools that may be called")
    add("--prompt-file", type=Path, metavar="FILE", help="one prompt a line, run as a batch")
    add("--max-new-tokens", type=int, metavar="N", help="at most so many tokens [256]")
    add("--temperature", type=float, metavar="T", help="0 is greedy; 1 is the model's own")
    add("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens; 0 is off")
    add("--top-p", type=float, metavar="P", help="... from the likeliest that make up P; 1 is off")
    add("--min-p", type=float, metavar="P", help="... from those with P of the likeliest's chance")
    add("--repetition-penalty", type=float, metavar="R", help="above 1 against repetition")
    add("--seed", type=int, metavar="N", help="the same seed gives the same samples [random]")
    add("--num-samples", type=int, default=1, metavar="N", help="so many texts for each prompt")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable")
    add(
        "--draft-lookup",
        type=int,
        default=0,
        metavar="N",
        help="guess up to N tokens at once from the text so far: sooner where it repeats [0: off]",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="[auto]")
    add("--cuda-graph", action="store_true", help="on CUDA, launch each token's work at once")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the weights [auto: the checkpoint's]",
    )
    add("--quantize", choices=("int4", "int8"), help="smaller, faster, not quite exact weights")
    add("--era", metavar="DATE", help="of a nanochat training folder [told by its tensors]")
    add("--json", action="store_true", help="one JSON object a text, one a line")
    add("--quiet", action="store_true", help="no numbers and no reasoning on stderr")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    try:
        if sys.stdout is None:
            raise ValueError("standard output is closed")
        for stream in (sys.stdin, sys.stdout):
            if stream is not None:
                stream.reconfigure(encoding="utf-8")
        run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has had enough
        discard_stdout()
        return 141
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        # torch says by RuntimeError that memory is short; any other is a fault of this program.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        say(f"generate.py: error: {one_line(error)}")
        discard_stdout()
        return 2
    return 0


def discard_stdout():
    """Send what is still buffered nowhere: writing it at exit would fail once more."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(args):
    prompts = read_prompts(args)  # None: chat
    import torch

    from nanomodels import Tokenizer, load
    from nanomodels.checkpoint.loading import left_out
    from nanomodels.cpu import keep_memory
    from nanomodels.linears.quantized import parameter_count
    from nanomodels.nanochat import GENERATION_CONFIG

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu")
    dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    if args.draft_lookup < 0:
        raise ValueError(f"--draft-lookup is {args.draft_lookup}; it must be 0 or more")
    if args.draft_lookup and prompts is not None and len(prompts) * args.num_samples != 1:
        raise ValueError("--draft-lookup goes with one prompt and one sample")
    if args.cuda_graph and (device != "cuda" or args.draft_lookup):
        raise ValueError("--cuda-graph goes with --device cuda, and not with --draft-lookup")
    path = args.model / "generation_config.json"
    native = args.model.is_dir() and not (args.model / "config.json").is_file()
    defaults = read_json(path) if path.is_file() else GENERATION_CONFIG if native else {}
    settings = generation_settings(args, defaults)  # bad ones are found before a model is read

    if device == "cpu":
        keep_memory()
    began = time.perf_counter()
    show = None if args.quiet else show_loading
    model = load(args.model, device, dtype, show, args.era, args.quantize)
    if not hasattr(model, "lm_head"):
        raise ValueError(f"{args.model}: a {type(model).__name__} makes no text")
    tokenizer = Tokenizer.load(args.model)
    model.stop_ids = tuple({*model.stop_ids, *tokenizer.stop_ids})
    settings = replace(settings, vocab_size=tokenizer.vocab_size)
    if not args.quiet:
        weight = embedding_of(model)
        schemes = {m.scheme for m in model.modules() if hasattr(m, "scheme")}
        report(
            "load",
            f"{time.perf_counter() - began:.2f} s",
            args.model.resolve().name,
            f"{parameter_count(model) / 1e6:.1f}M parameters",
            " and ".join((*schemes, str(weight.dtype)[6:])),
            f"{weight.device}",
        )
        if model.skipped:
            report("skipped", left_out(model.skipped))
    chat = None if args.raw or tokenizer.chat_template is None else Chat(args, tokenizer)
    for option in ("system", "think", "tools"):
        if chat is None and getattr(args, option) is not None:
            name = "no-think" if getattr(args, option) is False else option
            raise ValueError(f"--{name} needs a chat template, and there is none in use")
    if prompts is None:
        if not chat:
            raise ValueError("give a prompt: only a checkpoint with a chat template can chat")
        if args.json or args.num_samples != 1:
            raise ValueError("give a prompt: a chat knows neither --json nor --num-samples")
        converse(args, model, tokenizer, settings, chat)
        return
    prompts = [encode(tokenizer, text, chat) for text in prompts]
    for number, prompt in enumerate(prompts, 1):
        if len(prompt.ids) > model.context_length:
            raise ValueError(
                f"prompt {number} of {len(prompts)} has {len(prompt.ids)} tokens; the model's "
                f"context holds {model.context_length}"
            )
    for first in range(0, len(prompts), BATCH):
        complete(args, model, tokenizer, settings, prompts[first : first + BATCH])


def read_prompts(args):
    """The prompts, from the argument, the file or piped input; None for a chat on a terminal."""
    if "" in args.stop:
        raise ValueError("--stop is empty; give the text to end before")
    if args.prompt_file is not None:
        if args.prompt is not None:
            raise ValueError("give a prompt or --prompt-file, not both")
        lines = read_text(args.prompt_file).removeprefix("\ufeff").split("\n")
        prompts = [line.removesuffix("\r") for line in lines if line.strip()]
    elif args.prompt is not None:
        prompts = [args.prompt]
    elif sys.stdin is not None and sys.stdin.isatty():
        return None
    else:
        try:
            prompts = [sys.stdin.read().rstrip("\r\n") if sys.stdin is not None else ""]
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8 text ({error})") from None
    if not prompts or not all(prompts):
        where = args.prompt_file or (
            "the argument" if args.prompt is not None else "standard input"
        )
        raise ValueError(f"the prompt is empty ({where}); give some text")
    for text in (*prompts, *args.stop, args.system or ""):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("the prompt is not UTF-8 text")
    return prompts


def generation_settings(args, config):
    """The GenerationSettings: the options given, then generation_config.json, then defaults."""
    from nanomodels.generation.settings import GenerationSettings

    settings = {
        "temperature": 0.0,
        "seed": secrets.randbits(32) if args.seed is None else args.seed,
        "num_samples": args.num_samples,
        "draft_lookup": args.draft_lookup,
        "cuda_graph": args.cuda_graph,
    }
    if config.get("do_sample") is True:
        settings["temperature"] = 1.0
        names = ("temperature", "top_k", "top_p", "min_p")
    else:
        names = ()
    for name in (*names, "repetition_penalty", "max_new_tokens"):
        if config.get(name) is not None:
            settings[name] = config[name]
    given = {
        name: getattr(args, name)
        for name in ("top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
        if getattr(args, name) is not None
    }
    if args.temperature is not None:
        given["temperature"] = args.temperature
    elif settings["temperature"] == 0 and (
        args.num_samples > 1 or args.top_k or args.min_p or args.top_p not in (None, 1)
    ):
        given["temperature"] = 1.0  # asked to sample
    return GenerationSettings(**settings | given)


@dataclass
class Prompt:
    """What the model is given."""

    text: str  # as the user wrote it
    ids: list
    # Whether the ids end in <think>, so that the model goes on with its reasoning; None: no chat.
    thinking: bool | None


def encode(tokenizer, text, chat):
    """The Prompt of a text: by a Chat as a user's message, without one as it is."""
    if chat:
        return chat.encode([{"role": "user", "content": text}])
    ids = tokenizer.encode(text)
    # nanochat met no text without <|bos|> in training, though its own tokenizer adds none.
    bos = tokenizer.special_ids.get("<|bos|>")
    return Prompt(text, ids if bos is None or ids[:1] == [bos] else [bos, *ids], None)


class Chat:
    """Messages to prompts: the checkpoint's chat template with --system, --think and --tools.

    Raises ValueError where the template does not know what is asked for.
    """

    def __init__(self, args, tokenizer):
        template = tokenizer.chat_template
        self.tokenizer = tokenizer
        self.system = [] if args.system is None else [{"role": "system", "content": args.system}]
        self.variables = {}
        self.switch = ""  # what the last user's message ends in
        if args.tools is not None:
            if "tools" not in template:
                raise ValueError(f"--tools: the chat template of {args.model} knows no tools")
            self.variables["tools"] = read_tools(args.tools)
        if args.think is not None and "enable_thinking" in template:
            self.variables["enable_thinking"] = args.think
        elif args.think is not None and "/no_think" in template:
            self.switch = " /think" if args.think else " /no_think"
        elif args.think is not None:
            option = "--think" if args.think else "--no-think"
            raise ValueError(f"{option}: the chat template of {args.model} knows no such switch")

    def encode(self, turns, **variables):
        """The Prompt of a chat whose last turn is the user's."""
        *before, last = self.system + turns
        messages = [*before, last | {"content": last["content"] + self.switch}]
        text = self.tokenizer.render_chat(messages, **self.variables | variables)
        ids = self.tokenizer.encode(text, add_bos=False, special=True)  # the template has the BOS
        return Prompt(last["content"], ids, text.rstrip().endswith("<think>"))


def read_tools(path):
    """The tools of a JSON file, as the templates on the Hub expect them."""
    tools = read_json(path, list)
    for n, tool in enumerate(tools, 1):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not is_function(function):
            raise ValueError(
                f"{path}: entry {n} is no tool; each must be an object with a name, as "
                '{"name": ..., "description": ..., "parameters": {...}}'
            )
    return [t if "function" in t else {"type": "function", "function": t} for t in tools]


def is_function(entry):
    """Whether it has a name, and parameters that a template can walk through."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    parameters = entry.get("parameters") or {}
    return isinstance(parameters, dict) and isinstance(parameters.get("properties") or {}, dict)


class Row:
    """One text in the making."""

    def __init__(self, tokenizer, stop, prompt, room):
        from nanomodels.generation.stream import ReasoningSplitter, TextStream

        self.room = room  # tokens until the context is full
        self.splitter = None if prompt.thinking is None else ReasoningSplitter(prompt.thinking)
        self.stream = TextStream(tokenizer, stop, self.splitter)
        self.text = ""  # of the answer
        self.tokens = []
        self.finish_reason = None  # "stop", "length", "context" or "interrupted"

    def push(self, token):
        """Take the next token, None for a stop id; returns the text that is certain by it."""
        if self.finish_reason is not None:
            return ""
        if token is None:
            return self.finish("context" if len(self.tokens) == self.room else "stop")
        self.tokens.append(token)
        text = self.stream.push(token)
        self.text += text
        if self.stream.stopped:
            self.finish_reason = "stop"
        return text

    def finish(self, reason):
        """End here, unless it has ended before; returns the rest of the text."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = reason
        text = self.stream.finish()
        self.text += text
        return text

    @property
    def reasoning(self):
        """What the model thought before its answer; None for nothing."""
        return (self.splitter and self.splitter.reasoning.strip()) or None

    @property
    def answered(self):
        """Whether the text has come to an answer."""
        return self.splitter is None or self.splitter.state != "reasoning"


class Screen:
    """Shows one row as it comes: the answer on stdout, and its reasoning, if asked, on stderr."""

    def __init__(self, reasoning):
        self.reasoning = reasoning  # whether to show it
        self.shown = 0  # characters of the reasoning
        self.closed = False

    def show(self, row, text):
        """text is what has come of the answer."""
        if self.reasoning and row.reasoning and not self.closed:
            if self.shown == 0:
                say("<think>")
            so_far = row.splitter.reasoning.lstrip()
            say(so_far[self.shown :], end="")
            self.shown = len(so_far)
            self.closed = row.answered or row.finish_reason is not None
            if self.closed:
                say(("" if so_far.endswith("\n") else "\n") + ("</think>" if row.answered else ""))
        write(text)


def report_unanswered(rows):
    """One line for the texts that are all reasoning, though nobody interrupted them."""
    if count := sum(not row.answered and row.finish_reason != "interrupted" for row in rows):
        which = "the text" if len(rows) == 1 else f"{count} of {len(rows)} texts"
        say(f"({which} ended before the answer, within the reasoning; see --max-new-tokens)")


def produce(rows, steps, max_new_tokens, meter, show):
    """Run the iterator `steps` into `rows`; show(row, text) is for the first one, as it comes.

    Ctrl-C ends the texts where they are. Returns whether it was pressed.
    """
    interrupted = False
    try:
        for step in steps:
            meter.step()
            pieces = [row.push(token) for row, token in zip(rows, step, strict=True)]
            show(rows[0], pieces[0])
            if all(row.finish_reason for row in rows):
                break
    except KeyboardInterrupt:
        interrupted = True
    for row in rows:
        limit = "length" if len(row.tokens) == max_new_tokens else "context"
        text = row.finish("interrupted" if interrupted else limit)
        if row is rows[0]:
            show(row, text)
    return interrupted


def complete(args, model, tokenizer, settings, prompts):
    """Write the texts for some prompts: one alone as it comes, several when all are whole."""
    from nanomodels import generate_batch

    samples = settings.num_samples
    encoded = [prompt.ids for prompt in prompts]
    rows = [
        Row(tokenizer, args.stop, prompt, model.context_length + 1 - len(prompt.ids))
        for prompt in prompts
        for _ in range(samples)
    ]
    alone = len(rows) == 1 and not args.json
    progress = None if args.quiet else show_reading
    meter = Meter(args, model, sum(map(len, encoded)))
    steps = generate_batch(model, encoded, settings, progress=progress, on_draft=meter.draft)
    show = Screen(not args.quiet).show if alone else lambda row, text: None
    interrupted = produce(rows, steps, settings.max_new_tokens, meter, show)
    steps.close()
    if alone:
        write("\n")
    for n, row in enumerate(rows):
        prompt, sample = divmod(n, samples)
        if args.json:
            fields = {
                "prompt": prompts[prompt].text,
                "sample": sample,
                "reasoning": row.reasoning,
                "text": row.text,
                "finish_reason": row.finish_reason,
                "prompt_tokens": len(encoded[prompt]),
                "new_tokens": len(row.tokens),
                "seed": settings.seed + sample if settings.temperature else None,
            }
            write(json.dumps(fields, ensure_ascii=False) + "\n")
        elif not alone:
            Screen(not args.quiet).show(row, row.text + "\n")
    report_unanswered(rows)
    meter.report(sum(len(row.tokens) for row in rows), settings)
    if interrupted:
        raise KeyboardInterrupt


class Memory:
    """The cache of a chat, and the ids that it holds.

    A turn goes on from them where its prompt begins with them. A template may leave the reasoning
    out of earlier answers, though, or give an answer other tokens than it came in; then the cache
    goes back to where the last message of the user ended, or else to the beginning.
    """

    def __init__(self, model, progress):
        self.model, self.cache, self.progress = model, model.new_cache(1, 0), progress
        self.ids = []
        self.marks = [([], self.cache.snapshot())]  # where to go back to, the latest last

    def prepare(self, ids, max_length):
        """Keep what `ids` begin with, and make room for max_length tokens."""
        if max_length > self.cache.max_length:
            larger = self.model.new_cache(1, min(2 * max_length, self.model.context_length))
            larger.restore(self.cache.snapshot())
            self.cache = larger
        if not continues(ids, self.ids):
            while not continues(ids, self.marks[-1][0]):
                self.marks.pop()
            self.ids, snapshot = self.marks[-1]
            self.cache.restore(snapshot)

    def steps(self, ids, message, settings, on_draft):
        """The steps of an answer to `ids`, which begin with the ids of the user's message."""
        from nanomodels.generation.decoding import generate_batch, prefill

        if continues(ids, message) and len(message) > self.cache.length:
            prefill(self.model, [message], self.cache, self.progress)
            self.marks[1:] = [(message, self.cache.snapshot())]
        yield from generate_batch(
            self.model,
            [ids],
            settings,
            cache=self.cache,
            progress=self.progress,
            on_draft=on_draft,
        )


def continues(ids, start):
    """Whether there are more ids, and `start` are the first of them."""
    return len(ids) > len(start) and ids[: len(start)] == start


def converse(args, model, tokenizer, settings, chat):
    """A chat on the terminal; each turn feeds what the cache does not hold yet."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (line editing for input())

    if not args.quiet:
        say("Chat: an empty line, Ctrl-D or Ctrl-C ends it.")
    turns = []
    memory = Memory(model, None if args.quiet else show_reading)
    while True:
        try:
            text = input("> " if sys.stdout.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        except UnicodeDecodeError:
            say("(that was not UTF-8 text)")
            continue
        if not text.strip():
            return
        turns.append({"role": "user", "content": text})
        prompt = chat.encode(turns)
        room = min(settings.max_new_tokens, model.context_length // 4)  # for the answer
        while len(prompt.ids) + room > model.context_length and len(turns) > 1:
            say("(the context is full: the oldest turn is forgotten)")
            del turns[:2]
            prompt = chat.encode(turns)
        ids = prompt.ids
        if len(ids) > model.context_length:
            say(f"(that is longer than the context, {model.context_length} tokens)")
            turns.pop()
            continue
        memory.prepare(ids, min(len(ids) + settings.max_new_tokens, model.context_length))
        row = Row(tokenizer, args.stop, prompt, model.context_length + 1 - len(ids))
        meter = Meter(args, model, len(ids) - memory.cache.length)
        message = chat.encode(turns, add_generation_prompt=False).ids
        steps = memory.steps(ids, message, settings, meter.draft)
        screen = Screen(not args.quiet)
        produce([row], steps, settings.max_new_tokens, meter, screen.show)
        steps.close()  # only then does the cache hold what it should
        write("\n")
        memory.ids = (ids + row.tokens)[: memory.cache.length]
        turns.append({"role": "assistant", "content": row.text, "reasoning_content": row.reasoning})
        report_unanswered([row])
        meter.report(len(row.tokens), settings)
        if row.finish_reason == "context":
            say("(the context is full: the answer is cut off)")


def write(text):
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def report(name, *figures):
    say(f"{name:8}{', '.join(figures)}")


class Meter:
    """Times a generation, and says on stderr what it took."""

    def __init__(self, args, model, prompt_tokens):
        self.quiet, self.model, self.prompt_tokens = args.quiet, model, prompt_tokens
        self.times = [time.perf_counter()]
        self.drafted = self.accepted = 0

    def draft(self, drafted, accepted):
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted

    def step(self):
        self.times.append(time.perf_counter())

    def report(self, new_tokens, settings):
        if self.quiet or len(self.times) < 2:
            return
        first = self.times[1] - self.times[0]
        report(
            "prompt",
            f"{self.prompt_tokens} tokens",
            f"{self.prompt_tokens / first:.0f} tokens/s",
            f"first token after {first:.3f} s",
        )
        figures = [f"{new_tokens} tokens"]
        if len(self.times) > 2:
            steps = len(self.times) - 2
            seconds = self.times[-1] - self.times[1]
            figures += [
                f"{new_tokens * steps / (steps + 1) / seconds:.1f} tokens/s",
                f"{step_bytes(self.model) * (steps - self.accepted) / seconds / 1e9:.2f} GB/s",
            ]
        if settings.temperature:
            figures.append(f"seed {settings.seed}")
        report("new", *figures)
        if self.drafted:
            report("drafts", f"{self.drafted} tokens, {self.accepted} of them right")
        report("memory", f"{peak_memory(embedding_of(self.model).device) / 1e6:.0f} MB peak")


def embedding_of(model):
    """The embedding's weight, which has the dtype and the device of the model."""
    return next(m.weight for m in model.modules() if type(m).__name__ == "Embedding")


def step_bytes(model):
    """What one token reads: each weight once, but embeddings and the experts not chosen."""
    stored = dict([*model.named_parameters(), *model.named_buffers()])
    weights = {id(tensor): tensor.nbytes for tensor in stored.values()}
    for embedding in (m for m in model.modules() if type(m).__name__ == "Embedding"):
        if model.lm_head.weight is not embedding.weight:
            del weights[id(embedding.weight)]
    experts = sum(tensor.nbytes for name, tensor in stored.items() if ".experts." in name)
    if experts:
        experts *= 1 - model.config.num_experts_per_tok / model.config.n_routed_experts
    return sum(weights.values()) - experts


def peak_memory(device):
    """Bytes: of the device where that is a GPU, else of this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def show_loading(done, total):
    if total > 1e9:
        show_progress(f"loading {done / 1e9:.1f} of {total / 1e9:.1f} GB", done == total)


def show_reading(done, total):
    if total > 2000:
        show_progress(f"reading the prompt, {done} of {total} tokens", done == total)


def show_progress(line, last):
    """One line on a terminal that is written over; for what takes its time."""
    if sys.stderr is not None and sys.stderr.isatty():
        say(line, end="\r\033[K" if last else "\r")


if __name__ == "__main__":
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is Python's own tidying up
    sys.exit(status)
