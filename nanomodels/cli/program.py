"""The command `nanomodels`: it chooses one of the commands, by its first word."""

import sys
from difflib import get_close_matches

from nanomodels.text.files import say

HELP = """usage: nanomodels [generate] PROMPT ...    answer or continue a prompt
       nanomodels chat ...                 talk with a model
       nanomodels convert SRC [DST] ...    write a checkpoint that loads faster, or is smaller
       nanomodels compare MODEL ...        compare with transformers, block by block
       nanomodels --version

examples:
  nanomodels "What is the capital of France?"
  nanomodels chat --model nvidia/Nemotron-Mini-4B-Instruct --quantize int4

All options: nanomodels generate --help, nanomodels chat --help, nanomodels convert --help,
nanomodels compare --help
"""
COMMANDS = ("generate", "chat", "convert", "compare")


def main():
    """Run the command that the arguments ask for; return the exit status."""
    first, *rest = sys.argv[1:] or [""]
    if first in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if first == "--version":
        from nanomodels.cli.version import __version__

        print(f"nanomodels {__version__}")
        return 0
    if first == "convert":
        from nanomodels.cli import convert

        return convert.main(rest, "nanomodels convert")
    if first == "compare":
        from nanomodels.cli import compare

        return compare.main(rest)
    if first not in COMMANDS:
        if similar := get_close_matches(first, COMMANDS, n=1, cutoff=0.8):
            say(
                f"nanomodels: error: {first} is no command; did you mean {similar[0]}? "
                f"As a prompt: nanomodels generate {first}"
            )
            return 2
        first, rest = "generate", sys.argv[1:]
    from nanomodels.cli import generate

    return generate.main(rest, f"nanomodels {first}")
