"""Text for a terminal: whole words, whatever pieces it comes in, and nothing that controls it."""

import textwrap
import unicodedata

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from nanomodels.cli.wrap import WordWrap, harmless, width

FAMILY = "👨‍👩‍👧‍👦"
WORDS = st.text(st.sampled_from("abcé-.,"), min_size=1, max_size=12)
ANYTHING = st.text(st.sampled_from(f"ab \n\té，你{FAMILY}\ufe0f\u0301"), max_size=60)


def wrap(text, columns, pieces=1):
    """The text broken, in pieces of so many characters."""
    wrapper = WordWrap(lambda: columns)
    parts = [text[n : n + pieces] for n in range(0, len(text), pieces)]
    return "".join(map(wrapper.push, parts)) + wrapper.finish()


@given(words=st.lists(WORDS, min_size=1, max_size=30), columns=st.integers(14, 30))
@settings(max_examples=examples(200), deadline=None)
def test_lines_are_broken_as_textwrap_breaks_them(words, columns):
    text = " ".join(words)
    expected = textwrap.fill(text, columns - 1, break_long_words=False, break_on_hyphens=False)
    assert wrap(text, columns) == expected


@given(text=ANYTHING, columns=st.integers(4, 30), pieces=st.integers(1, 9))
@settings(max_examples=examples(200), deadline=None)
def test_pieces_change_nothing_and_no_line_is_too_long(text, columns, pieces):
    whole = wrap(text, columns)
    assert wrap(text, columns, pieces) == whole
    assert "".join(whole.split()) == "".join(text.split()), "only space is changed"
    assert whole.count("\n") >= text.count("\n")
    for line in whole.split("\n"):
        if len(line.split()) > 1 and len(line.split()[0]) < columns - 1:
            assert sum(map(width, line)) < columns, "only the end of a long word is joined by more"


@given(text=ANYTHING, columns=st.integers(4, 30))
@settings(max_examples=examples(100), deadline=None)
def test_no_more_than_a_word_is_held_back(text, columns):
    wrapper, shown = WordWrap(lambda: columns), ""
    for n, character in enumerate(text):
        shown += wrapper.push(character)
        held = len("".join(text[: n + 1].split())) - len("".join(shown.split()))
        words = (text[: n + 1] + "|").split()
        assert held <= len(words[-1]) - 1
        assert sum(map(width, wrapper.word)) < max(3, columns), "nor more than a line"


def test_indented_lines_tabs_and_long_words():
    assert wrap("a:\n    b = 1\n\tc", 20) == "a:\n    b = 1\n        c"
    assert wrap("ab\tc", 20) == "ab      c"
    assert wrap("see " + "x" * 30 + " and on", 20) == "see\n" + "x" * 30 + " and on"
    assert wrap("x" * 24 + " four more words", 20) == "x" * 24 + " four more\nwords"
    assert wrap("end \n", 20) == "end \n"


def test_wide_characters_may_be_broken_between_but_not_within():
    assert wrap("你好世界，你好世界。你", 12) == "你好世界，\n你好世界。\n你"
    assert wrap(f"I see {FAMILY}!", 12) == f"I see\n{FAMILY}!"
    assert wrap("🙂" * 8, 12) == "🙂" * 5 + "\n" + "🙂" * 3


def test_the_width_of_the_terminal_may_change():
    columns = 40
    wrapper = WordWrap(lambda: columns)
    text = wrapper.push("one two three four ")
    columns = 20
    assert text + wrapper.push("five six ") + wrapper.finish() == "one two three four\nfive six "


def test_characters_have_their_width():
    assert [width(c) for c in "aé你🙂\u0301\u200d\ufe0f"] == [1, 1, 2, 2, 0, 0, 1]


@pytest.mark.parametrize("character", [chr(n) for n in range(0x110) if n < 0x20 or n > 0x7E])
def test_no_control_character_is_left(character):
    control = unicodedata.category(character) == "Cc"
    if character in "\n\t" or not control:
        assert harmless(f"a{character}b") == f"a{character}b"
    elif character == "\r":
        assert harmless("a\r\nb") == "a\nb"
    else:
        assert harmless(f"a{character}b") == f"a\\u{ord(character):04x}b"
