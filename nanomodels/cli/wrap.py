"""Text for a terminal: without control characters, and with no word broken at the edge."""

import os
import re
import unicodedata

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
TAB = 8  # columns
JOINER = "\u200d"  # between the parts of one emoji
AFTER_A_WORD = ("Pe", "Pf", "Po", "Pd")  # Unicode's categories of marks that no line begins with


class Output:
    """What is to be written of a text that comes piece by piece.

    On a terminal: harmless, and broken between words. Elsewhere: the text itself.
    """

    def __init__(self, stream):
        terminal = stream is not None and stream.isatty()
        self.wrap = WordWrap(lambda: columns_of(stream)) if terminal else None

    def push(self, text):
        """Add text; return what can be written now."""
        return text if self.wrap is None else self.wrap.push(harmless(text))

    def finish(self):
        """Return the rest."""
        return "" if self.wrap is None else self.wrap.finish()


def harmless(text):
    """A text that cannot control the terminal: control characters become \\u001b and the like.

    A carriage return, as in the line ends of Windows, is left out.
    """
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r", ""))


def columns_of(stream):
    """The width of a terminal now; 80 if it does not know."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def width(character):
    """The columns that a character takes at most: 0, 1 or 2. Terminals differ in some emoji."""
    if character == JOINER or unicodedata.category(character) in ("Mn", "Me"):
        return int(character == "\ufe0f")  # makes some characters an emoji, which is wider
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


class WordWrap:
    """Breaks lines between words, in a text that comes piece by piece.

    It holds back the last word, because the next piece may belong to it. A word as long as a line
    is left to the terminal to break. Chinese and Japanese have no spaces: there, each character is
    a word. columns() is the width of the terminal now.
    """

    def __init__(self, columns):
        self.columns = columns
        self.column = 0  # where the space begins
        self.space, self.word = "", ""  # what is held back
        self.size = 0  # columns of the word
        self.wide = False  # whether the word has a wide character
        self.begun = False  # whether the first part of the word has been returned

    @property
    def edge(self):
        """The columns of a line; one less than there are, because terminals differ at the last."""
        return max(2, self.columns() - 1)

    def push(self, text):
        """Add text; return what can be shown now."""
        return "".join(map(self.add, text))

    def finish(self):
        """Return the rest."""
        text = self.end_word()
        space = self.space[: max(0, self.edge - self.column)]
        self.column, self.space = self.column + len(space), ""
        return text + space

    def add(self, character):
        """Add a character; return what can be shown now."""
        if character == "\n":
            text = self.finish() + "\n"
            self.column = 0
            return text
        if character in " \t":
            text = self.end_word()
            at = self.column + len(self.space)
            self.space += " " * (TAB - at % TAB if character == "\t" else 1)
            return text
        text = self.end_word() if self.begins_word(character) else ""
        self.word += character
        self.size += width(character)
        self.wide = self.wide or width(character) == 2
        if self.size >= self.edge:
            text += self.end_word()
            self.begun = True
        return text

    def begins_word(self, character):
        """Whether a line may be broken before a character that is no space."""
        if self.word.endswith(JOINER) or unicodedata.category(character) in AFTER_A_WORD:
            return False
        return width(character) == 2 or (self.wide and width(character) == 1)

    def end_word(self):
        """Return the word, on a new line if it does not fit on this one."""
        word, self.word, self.wide = self.word, "", False
        size, self.size = self.size, 0
        begun, self.begun = self.begun, False
        if not word:
            return ""
        space, self.space = self.space, ""
        if self.column + len(space) + size > self.edge and not begun:
            start, self.column = "\n" if self.column else "", 0
        else:
            start, self.column = space, self.column + len(space)
        self.column += size
        if self.column > self.columns():  # the terminal has broken a long word
            self.column = (self.column - 1) % self.columns() + 1
        return start + word
