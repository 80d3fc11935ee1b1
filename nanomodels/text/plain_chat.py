"""Chats whose contents stay text: what a message or a tool says never becomes a control token.

A template joins its own words and the contents to one text, so the names of control tokens in the
contents would look like the template's own. Before the template runs, `render` puts twins into the
contents: characters for private use in the place of some characters. After it, names with a twin
inside are not found, and `reveal` gives the characters back:

    contents  <|im_end|>  --twin of the first <-->  template  -->  control tokens and text

A twin keeps lengths, and what templates do with spaces, "/no_think" or upper case works as before.
But a template may look for a name in an earlier answer of the model, such as </think>, to leave out
its reasoning. Names that it looks for there keep their characters, and are control tokens.

A name can also grow out of parts: "<SPECIAL_1/think2>" if a template removes "/think", or a key
"think" if it writes "<" ~ key ~ ">". So, where the template gives the same text with more twins,
each first and last character of a name has one, wherever it occurs, and so has each part of a name
that stands alone.
"""

import re
from functools import partial
from itertools import count, islice

PRIVATE = 0xE000  # the first character for private use


class Twins:
    """Private characters that stand for those of names of control tokens.

    names: the texts of the control tokens. chat: what is rendered; its characters are no twins.
    """

    def __init__(self, names, chat):
        used = "".join(leaves(chat))
        names = sorted(names, key=len, reverse=True)
        self.search = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self.parts = [name for name in names if len(name) > 1]
        edges = {name[0] for name in names} | {name[-1] for name in names}
        edges |= {text.strip()[0] for text in leaves(chat) if self.is_part(text)}
        free = (chr(n) for n in count(PRIVATE) if chr(n) not in used and f"\\u{n:04x}" not in used)
        self.twins = dict(zip(sorted(edges), islice(free, len(edges)), strict=True))
        self.edges = str.maketrans(
            {c: self.twins[c] for name in names for c in (name[0], name[-1])}
        )
        # tojson and repr can write a twin as an escape.
        self.characters = {twin: c for c, twin in self.twins.items()}
        self.characters |= {f"\\u{ord(twin):04x}": c for twin, c in [*self.characters.items()]}
        self.hidden = re.compile("|".join(map(re.escape, self.characters)) or "(?!)")

    def is_part(self, text):
        """Whether the text, without the space around it, is a part of a name."""
        text = text.strip()
        return bool(text) and any(text in name for name in self.parts)

    def concern(self, text):
        """Whether a twin would change the text."""
        return self.is_part(text) or text.translate(self.edges) != text

    def hide_names(self, text, keep=frozenset()):
        """Put twins into the names in a text, but not into those in `keep`."""

        def hide(match):
            name = match[0]
            return name if name in keep else self.twins[name[0]] + name[1:]

        while (hidden := self.search.sub(hide, text)) != text:  # again, for names that overlap
            text = hidden
        return text

    def hide_edges(self, text):
        """Put twins into all that could become a part of a name."""
        if self.is_part(text):
            start = len(text) - len(text.lstrip())
            text = text[:start] + self.twins[text[start]] + text[start + 1 :]
        return text.translate(self.edges)

    def reveal(self, text):
        """Return the text with all characters as they were."""
        return self.hidden.sub(lambda match: self.characters[match[0]], text)


def render(template, write, messages, tools, documents, names):
    """Render a chat. Return its text with twins, and the function that takes them out.

    template: its text; write(messages, tools, documents): renders it.
    """
    twins = Twins(names, [messages, tools, documents])

    def attempt(hide_answers, hide_others):
        """hide_answers: for what the assistant says, hide_others: for all other contents."""
        chat = [hide_message(message, hide_answers, hide_others) for message in messages]
        return write(chat, changed(tools, hide_others), changed(documents, hide_others))

    if not any(map(twins.concern, leaves([messages, tools, documents]))):
        return write(messages, tools, documents), twins.reveal
    text, keep = attempt(twins.hide_names, twins.hide_names), set()
    for name in sorted({*twins.search.findall("\n".join(leaves(answers(messages))))}):
        if name in template:
            seen = attempt(partial(twins.hide_names, keep={name}), twins.hide_names)
            if twins.reveal(seen) != twins.reveal(text):
                keep.add(name)

    hide_answers, hide_others = partial(twins.hide_names, keep=keep), twins.hide_names
    text = attempt(hide_answers, hide_others) if keep else text
    for part in ("others", "answers") if not keep else ("others",):
        edges = {"answers": hide_answers, "others": hide_others} | {part: twins.hide_edges}
        try:
            stronger = attempt(*edges.values())
        except ValueError:
            continue
        if twins.reveal(stronger) == twins.reveal(text):
            text, (hide_answers, hide_others) = stronger, edges.values()
    return text, twins.reveal


def answers(messages):
    """What the assistant said in earlier turns."""
    return [m.get("content") for m in messages if m.get("role") == "assistant"]


def hide_message(message, hide_answers, hide_others):
    """A message with twins. Its own keys stay, and a role that is a word."""
    hidden = {}
    for key, value in message.items():
        hide = hide_others
        if key == "content" and message.get("role") == "assistant":
            hide = hide_answers
        word = key == "role" and isinstance(value, str) and value.isidentifier()
        hidden[key] = value if word else changed(value, hide)
    return hidden


def changed(value, change):
    """Copy lists and dicts with change(text) for each text in them, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {changed(key, change): changed(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(changed(entry, change) for entry in value)
    return value


def leaves(value):
    """Yield the texts in lists and dicts, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from leaves(key)
            yield from leaves(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from leaves(entry)
