"""What a source is whose records are made of several rows of a table: all but the records.

It must not know what rows share.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.data.records import RawRecord
from trainer.data.table_source import TableSource
from trainer.data.teacher_vectors import TeacherVectors
from trainer.recipe.schema import Task


@dataclass(frozen=True, kw_only=True)
class OverTable:
    """The part of a source that is the table's; see `Source`."""

    table: TableSource
    """Its rows."""
    records: np.ndarray
    """The row of the table that stands for each record [n], int64."""
    describe: str
    """One line for a person."""
    num_scored: int = 0
    """No teacher scored its rows."""
    teacher_columns: str = ""
    """Its formats have no place for scores."""

    @property
    def name(self) -> str:
        """As in the recipe."""
        return self.table.name

    @property
    def task(self) -> Task:
        """Task of all its records."""
        return self.table.task

    @property
    def fingerprint(self) -> str:
        """Digest of the files' contents."""
        return self.table.fingerprint

    @property
    def identity(self) -> str:
        """See `Source.identity`."""
        return f"{self.table.identity}|{len(self)}"

    @property
    def queries(self) -> np.ndarray:
        """Keys of what its rows ask, uint64."""
        return self.table.queries

    @property
    def teacher_vectors(self) -> TeacherVectors | None:
        """See `Source.teacher_vectors`."""
        return self.table.teacher_vectors

    def __len__(self) -> int:
        return len(self.records)

    def place(self, row: int) -> str:
        """`path:line` of the first row of a record."""
        return self.table.place(int(self.records[row]))

    def check_files(self) -> None:
        """See `Source.check_files`."""
        self.table.check_files()


def records_of(table: TableSource) -> Iterator[tuple[int, RawRecord]]:
    """Table row and record of every record of a table, in their order; each row is read once."""
    for row in np.unique(table.rows).tolist():
        for record in table.reader.records(row):
            yield row, record
