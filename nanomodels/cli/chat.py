"""A chat on the terminal."""

import contextlib
import sys

from nanomodels.cli.progress import Progress
from nanomodels.cli.terminal import (
    Completion,
    Meter,
    Screen,
    produce,
    report_unanswered,
    write,
)
from nanomodels.generation.conversation import PrefixCache
from nanomodels.text.files import say


def converse(model, tokenizer, chat, settings, stop, quiet):
    """Answer each line from stdin; a turn feeds only what the cache does not hold yet.

    chat is a conversation.Chat, stop a list of strings that end an answer.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (line editing for input())

    if not quiet:
        say("Chat: an empty line, Ctrl-D or Ctrl-C ends it.")
    turns = []
    reading = Progress("reading the prompt: ", "tokens", quiet)
    prefix = PrefixCache(model, reading)
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
        prefix.prepare(ids, min(len(ids) + settings.max_new_tokens, model.context_length))
        completion = Completion(tokenizer, stop, prompt, model.context_length + 1 - len(ids))
        meter = Meter(model, len(ids) - prefix.cache.length)
        message = chat.encode(turns, add_generation_prompt=False).ids
        rows = prefix.answer(ids, message, settings, meter.draft)
        with reading:
            produce([completion], rows, settings.max_new_tokens, meter, Screen(not quiet).show)
        rows.close()  # only then does the cache hold what it should
        write("\n")
        answer = {"content": completion.text, "reasoning_content": completion.reasoning}
        turns.append({"role": "assistant", **answer})
        report_unanswered([completion])
        if not quiet:
            meter.report(len(completion.tokens), settings)
        if completion.finish_reason == "context":
            say("(the context is full: the answer is cut off)")
