"""Results of all environments as one matrix; it must not run clients."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.forms import FORMS, REFUSED, Form
from clients.table import Cell, table_of

DIFFERENT = 1
"""Exit code where a client embeds otherwise without an error of its own."""

Entry = Mapping[str, Any]
"""A result as `clients.read` writes it, with the name of its column and what the rules say."""


@dataclass(frozen=True)
class Matrix:
    """Every form read by every client."""

    columns: tuple[str, ...]
    """Clients with their releases."""
    rows: Mapping[Form, tuple[Entry, ...]]
    """Results in the order of the columns; of a form that is not exported there are none."""
    refused: Mapping[str, str]
    """Reasons by the names of forms that the trainer does not export."""

    @property
    def is_different(self) -> bool:
        """Whether any client embeds otherwise without an error."""
        return any(e["outcome"] == "different" for row in self.rows.values() for e in row)

    def table(self) -> str:
        """In Markdown."""
        return table_of(self.columns, {form: self._cells(form) for form in FORMS})

    def _cells(self, form: Form) -> list[Cell]:
        """A row of the table."""
        if form.name in self.refused:
            refusal = Cell("refused", None, f"The trainer: {_rule(self.refused[form.name])}")
            return [refusal] * len(self.columns)
        return [
            Cell(entry["outcome"], entry["cosine"], _plain(entry["reason"]))
            for entry in self.rows[form]
        ]

    def disagreements(self) -> Iterator[str]:
        """Where the rules about a client say another outcome than it had."""
        for form, row in self.rows.items():
            for column, entry in zip(self.columns, row, strict=True):
                told = entry["rules"]
                if told is not None and told["outcome"] != entry["outcome"]:
                    yield (
                        f"{form.name}: {column} = {entry['outcome']}; the rules say "
                        f"{told['outcome']}. {told['reason'] or ''}"
                    )


def _rule(message: str) -> str:
    """What a message of the trainer expected, without the place and without what to do."""
    return message.partition("expected ")[2].partition(": ")[0] or message


def _plain(reason: str | None) -> str | None:
    """A reason without what differs from export to export: numbers and texts of one."""
    return None if reason is None else reason.split("\n", 1)[0]


def read_matrix(exports: Path, files: Sequence[Path]) -> Matrix:
    """Put the results of all environments together.

    Args:
        exports: folder with the list of forms that are not exported.
        files: from `clients.read`, in the order of the columns.
    """
    refused = json.loads((exports / REFUSED).read_text(encoding="utf-8"))
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    made = [form for form in FORMS if form.name not in refused]
    rows = {form: tuple(e for part in parts for e in part[form.name]) for form in made}
    columns = tuple(entry["column"] for entry in next(iter(rows.values())))
    return Matrix(columns=columns, rows=rows, refused=refused)
