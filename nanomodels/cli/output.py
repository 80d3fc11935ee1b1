"""--output: lines of JSON in a file. A run that was stopped goes on after the last whole one."""

import json


class OutputFile:
    """A file of lines, of which some may be there already. Write to it in a `with` statement."""

    def __init__(self, path, rows, samples):
        """rows are those of the prompt file; each has `samples` lines.

        Raises ValueError for a file that another run has written, or that cannot be one.
        """
        from nanomodels.cache import check_target  # which imports torch

        self.path, self.file = check_target(path), None
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content.split(b"\n")[:-1]  # what comes after the last line feed is no whole line
        lines = lines[: len(lines) // samples * samples]
        self.seed = None  # of the run; None: it was greedy, or there are no lines
        for number, line in enumerate(lines):
            row, sample = divmod(number, samples)
            self.check(number + 1, line, rows[row] if row < len(rows) else None, sample)
        self.count = len(lines)
        self.size = sum(len(line) + 1 for line in lines)
        if content and not lines and b"{" not in content[:1]:
            raise ValueError(
                f"{path}: is there, and has no lines of generate.py; give another name"
            )

    def check(self, number, line, row, sample):
        """Raise ValueError unless a line is the answer to a Row."""
        try:
            found = json.loads(line)
            same = (
                row is not None
                and found["prompt"] == row.messages[-1]["content"]
                and (found.get("id"), found["sample"]) == (row.id, sample)
            )
            if found["seed"] is not None:
                self.seed = int(found["seed"]) - sample
        except (ValueError, TypeError, KeyError, RecursionError):
            same = False
        if not same:
            raise ValueError(
                f"{self.path}: line {number} is no answer to "
                f"{'a line of the prompt file' if row is None else row.where}: it is of another "
                "run; give another name"
            )

    def __enter__(self):
        """Open the file, cut off what is no whole line, and write after it."""
        self.file = self.path.open("r+b" if self.path.exists() else "wb")
        self.file.truncate(self.size)
        self.file.seek(self.size)
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, line):
        """Write a line, which then survives the end of this process."""
        self.file.write(line.encode())
        self.file.flush()
