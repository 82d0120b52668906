"""Columns of a file under the names that a format reads, as a recipe maps them.

It must not know any format.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.data.fields import shown
from trainer.errors import DataError

FIELD = re.compile(r"[^.\[]+")
"""The column that a field such as `positives[0].text` stands in."""


@dataclass(frozen=True)
class Columns:
    """`columns` of a source or an evaluation set."""

    names: Mapping[str, str] = field(default_factory=dict)
    """A format's name of a column to the file's own name of it; others are called alike."""

    def renamed(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row under the names that a format reads, in the order of the file.

        A column of the file that has a name which is mapped to another column is left out.

        Args:
            values: the row as read.
        """
        if not self.names:
            return values
        found = {}
        for column, value in values.items():
            for name in self._names_of(column):
                found[name] = value
        return found

    def place_of(self, name: str) -> str:
        """A field as messages call it: with the file's own name where that is another."""
        head = FIELD.match(name)
        own = None if head is None else self.names.get(head[0])
        return name if own is None or own == name else f"{name} (column {own})"

    def check(self, there: Collection[str], *, owner: str) -> None:
        """Refuse a mapping to a column that the file does not have.

        Args:
            there: columns of the file.
            owner: recipe key of the source, for messages.

        Raises:
            DataError: if it has not; names its columns.
        """
        for name, column in self.names.items():
            if column in there:
                continue
            nearest = difflib.get_close_matches(column, there, n=1)
            advice = f"Did you mean {nearest[0]}?" if nearest else "Name one of them."
            raise DataError(
                f"{owner}.columns.{name} = {shown(column)}; expected a column of the file, which "
                f"has {listed(there)}. {advice}"
            )

    def _names_of(self, column: str) -> list[str]:
        """The names under which a column of the file is read."""
        mapped = [name for name, own in self.names.items() if own == column]
        return mapped or ([] if column in self.names else [column])


def listed(columns: Collection[str]) -> str:
    """Columns as a message lists them, cut where there are many."""
    return ", ".join(sorted(columns))[:200] or "none"
