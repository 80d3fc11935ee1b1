"""known_bugs.md explains every code that a test mentions."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
LIST = (TESTS / "known_bugs.md").read_text()


def test_every_code_that_a_test_mentions_is_explained():
    explained = set(re.findall(r"^- \*\*([HMNG]\d+)\*\* ", LIST, re.MULTILINE))
    for path in TESTS.rglob("*.py"):
        mentioned = set(re.findall(r"\b[HMNG]\d{1,2}\b", path.read_text()))
        assert mentioned <= explained, path.name


def test_each_bug_is_listed_once_with_a_test():
    lines = [line for line in LIST.splitlines() if line.startswith("- ")]
    codes = [re.match(r"- \*\*([HMNG]\d+)\*\* ", line)[1] for line in lines]
    assert len(set(codes)) == len(codes)
    assert all(" Who: " in line and "`test_" in line for line in lines)
