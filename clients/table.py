"""The matrix as a table in Markdown; it must not read exports or run clients."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clients.forms import Form

Outcome = Literal["equal", "refused", "different", "not_installed"]
BEGIN, END = "<!-- clients -->", "<!-- /clients -->"
"""What stands between these in the page is written by the command."""
DECIMALS = 6
"""Of a cosine, cut and not rounded, so that none looks better than it is."""


@dataclass(frozen=True)
class Cell:
    """One export read by one client."""

    outcome: Outcome
    """As `tools/parity.py` says it."""
    cosine: float | None
    """Least over the texts of an export, where vectors were made."""
    reason: str | None
    """Why it was refused or is different."""

    @property
    def kind(self) -> tuple[Outcome, str | None]:
        """What rows must share to be shown as one."""
        return self.outcome, self.reason


Rows = Mapping[Form, Sequence[Cell]]
"""A cell of each form for each client, in the order of the columns."""


def grouped(rows: Rows) -> list[tuple[list[Form], list[Cell]]]:
    """Rows of one family and attention that differ in their cosines alone, as one row.

    A cell of several forms has the least of their cosines.
    """
    alike: dict[tuple[object, ...], list[Form]] = {}
    for form, cells in rows.items():
        kinds = tuple(cell.kind for cell in cells)
        alike.setdefault((form.family, form.attention, kinds), []).append(form)
    groups: dict[tuple[object, ...], list[Form]] = {}
    for key, forms in alike.items():
        for form in forms:
            poolings = tuple(one.pooling for one in forms if one.weights == form.weights)
            groups.setdefault((*key, poolings), []).append(form)
    return [(forms, _least([rows[form] for form in forms])) for forms in groups.values()]


def _least(rows: Sequence[Sequence[Cell]]) -> list[Cell]:
    """The cells of one row with the least cosines of several."""
    found = []
    for column in zip(*rows, strict=True):
        cosines = [cell.cosine for cell in column if cell.cosine is not None]
        outcome, reason = column[0].kind
        found.append(Cell(outcome, min(cosines, default=None), reason))
    return found


def table_of(columns: Sequence[str], rows: Rows) -> str:
    """The table, and below it the reasons that its cells give by number.

    Args:
        columns: names of clients with their releases.
        rows: a cell for each column.
    """
    reasons: dict[str, int] = {}
    lines = [
        f"| model | attention | pooling | export | {' | '.join(columns)} |",
        "|---" * (4 + len(columns)) + "|",
    ]
    for forms, cells in grouped(rows):
        shown = " | ".join(_shown(cell, reasons) for cell in cells)
        lines.append(f"| {_label(forms)} | {shown} |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _label(forms: Sequence[Form]) -> str:
    """What the first columns say of a row."""
    poolings = ", ".join(dict.fromkeys(form.pooling for form in forms))
    weights = ", ".join(dict.fromkeys(form.weights for form in forms))
    return f"{forms[0].family} | {forms[0].attention} | {poolings} | {weights}"


def _shown(cell: Cell, reasons: dict[str, int]) -> str:
    """A cell; a reason that is new gets the next number."""
    if cell.outcome == "equal" and cell.cosine is not None:
        scale = 10**DECIMALS
        return f"{math.floor(cell.cosine * scale) / scale:.{DECIMALS}f}"
    number = reasons.setdefault(cell.reason or "no reason given", len(reasons) + 1)
    return f"{cell.outcome} ({number})"


def write_table(page: Path, text: str) -> None:
    """Put the table between its marks in a page.

    Args:
        page: holds both marks.
        text: what stands between them from now on.

    Raises:
        ValueError: a page without the marks.
    """
    content = page.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: expected the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")
