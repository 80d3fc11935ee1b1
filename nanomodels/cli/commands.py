"""The commands of a chat: what begins with a slash is never sent to the model."""

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from nanomodels.cli.job import this_job
from nanomodels.cli.terminal import note, report, tell
from nanomodels.text.files import read_text

KEYS = (
    'A paste is one message. A line that begins with """ opens a block, until """.',
    "A message that begins with / needs a space before it. The arrow keys bring back",
    "earlier messages. Ctrl-C clears what is typed, or stops the answer.",
)
# Names in other programs, and ours.
ELSEWHERE = {
    "bye": "exit", "quit": "exit", "q": "exit", "clear": "reset", "new": "reset",
    "regen": "retry", "regenerate": "retry", "h": "help", "?": "help",
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """What a command takes ("" nothing, in brackets: or nothing), does, and how."""

    takes: str
    help: str
    run: object  # (talk, argument) -> the Reply to show, or None


def is_command(text):
    """Whether a message is meant as a command; two slashes begin a comment in many languages."""
    return text.startswith("/") and not text.startswith("//")


def run_command(talk, text):
    """Run a command of a chat.Talk; return the Reply to show, or None.

    Raises ValueError for a wrong command, and what the command raises: ValueError, OSError, or
    EOFError to leave the chat.
    """
    name = re.match(r"\S*", text[1:])[0]
    if name not in COMMANDS:
        raise ValueError(unknown(name))
    command, argument = COMMANDS[name], text[1 + len(name) :].strip()
    if argument and not command.takes:
        raise ValueError(f"/{name} takes nothing after it")
    if not argument and command.takes and not command.takes.startswith("["):
        raise ValueError(f"/{name} needs a {command.takes} after it")
    return command.run(talk, argument)


def unknown(name):
    """What to say about a command that there is not."""
    name = name[:40]
    likely = difflib.get_close_matches(name.lower(), [*COMMANDS, *ELSEWHERE], 1)
    meant = [ELSEWHERE.get(each, each) for each in likely]
    hint = f"did you mean /{meant[0]}? " if meant else ""
    return f"no command /{name}; {hint}/help lists them; a message with / needs a space before it"


def show_help(talk, _):
    for name, command in COMMANDS.items():
        tell(f"{f'/{name} {command.takes}':18}{command.help}")
    for text in KEYS:
        tell(text)


def reset(talk, _):
    talk.chat.reset()
    talk.before.clear()
    note("(all turns are forgotten)")


def undo(talk, _):
    note(f"(taken back: {talk.chat.undo()[0]['content'].strip()[:60]})")


def retry(talk, _):
    chat = talk.chat
    chat.settings = replace(chat.settings, seed=(chat.settings.seed + 1) % 2**64)
    reply = chat.retry()
    if chat.settings.temperature == 0:
        note("(without sampling the answer is the same; see --temperature)")
    return reply


def save(talk, argument):
    path = path_of(argument)
    if path.exists() and path.resolve() not in talk.files:
        raise ValueError(f"{path}: exists; give another name")
    talk.chat.save(path)
    talk.files.add(path.resolve())
    note(f"(saved in {path})")


def load(talk, argument):
    path = path_of(argument)
    talk.chat.load(path)
    talk.files.add(path.resolve())
    note(f"(loaded: {talk.summary()})")


def system(talk, argument):
    if argument:
        talk.chat.configure(system=None if argument == '""' else argument)
    text = talk.chat.system
    note("(no system message)" if text is None else f"(the system message from now on: {text})")


def think(talk, argument):
    states = {"on": True, "off": False}
    if argument and argument not in states:
        raise ValueError("/think takes on or off")
    if argument or talk.raw:  # raw text has no reasoning, and says so
        talk.chat.configure(think=states.get(argument))
    names = {True: "on", False: "off", None: "left to the chat template"}
    note(f"(the reasoning is {names[talk.chat.encoder.think]})")


def stats(talk, _):
    report("chat", talk.summary())
    if talk.reply is not None:
        talk.meter.report(talk.reply.new_tokens, talk.reply.settings)


def read(talk, argument):
    path = path_of(argument)
    text = this_job().shared(lambda: read_text(path))
    talk.before.append(text)
    note(f"({path}: {len(text)} characters, which go before your next message)")


def leave(talk, _):
    raise EOFError


def path_of(argument):
    """The path that was typed, perhaps in quotes, as a terminal puts them around a dropped file."""
    if argument[:1] in ("'", '"') and argument[-1:] == argument[:1]:
        argument = argument[1:-1]
    return Path(os.path.expanduser(argument))


COMMANDS = {
    "help": Command("", "this list", show_help),
    "reset": Command("", "forget all turns; the system message stays", reset),
    "undo": Command("", "take back the last message and its answer", undo),
    "retry": Command("", "answer the last message again", retry),
    "save": Command("FILE", "write the conversation to a file", save),
    "load": Command("FILE", "go on with the conversation in a file", load),
    "system": Command("[TEXT]", 'the system message; "" is none', system),
    "think": Command("[on|off]", "reasoning before the answer", think),
    "stats": Command("", "figures of the chat and of the last answer", stats),
    "read": Command("FILE", "put a text file before the next message", read),
    "exit": Command("", "leave, as Ctrl-D does", leave),
}
