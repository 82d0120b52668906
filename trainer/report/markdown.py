"""Markdown in which any text can stand: table cells, code, blocks; it must not know runs."""

import re
from collections.abc import Sequence


def plain(text: object) -> str:
    """A text in one line that Markdown shows as it is."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>#~])", r"\\\1", line)


def code(text: object) -> str:
    """A text as a code span, in one line."""
    line = " ".join(str(text).split("\n"))
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    if not longest:
        return f"`{line}`"
    marks = "`" * (longest + 1)
    return f"{marks} {line} {marks}"


def block(text: str, language: str) -> str:
    """A fenced block; its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, num_names: int = 1) -> str:
    """A table.

    Args:
        head: titles of the columns.
        rows: cells that are Markdown already.
        num_names: leading columns that hold words and not numbers; these are set on the left.
    """
    rules = ["---" if column < num_names else "---:" for column in range(len(head))]
    return "\n".join(_row(cells) for cells in (head, rules, *rows))


def _row(cells: Sequence[str]) -> str:
    # a bar ends a cell even inside code, unless it is escaped
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
