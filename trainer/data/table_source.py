"""Rows of files as checked, random-access records; nothing of a file is held in memory."""

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from trainer.data.columns import Columns
from trainer.data.documents import DocumentTable, documents_beside
from trainer.data.fields import RowError
from trainer.data.formats import find_adapter
from trainer.data.formats.adapter import Adapter
from trainer.data.notices import warn_of_ignored
from trainer.data.scan import RowReader
from trainer.data.table_scan import Scan, scan_table
from trainer.data.tables import Table
from trainer.data.teacher_vectors import TeacherVectors
from trainer.data.unchanged import Mark, marks_of
from trainer.errors import DataError
from trainer.recipe.eval_kinds import row_kind
from trainer.recipe.schema import EvalSetRecipe, SourceRecipe, Task

logger = logging.getLogger(__name__)

KNOWN_SCALES = ((0.0, 1.0), (0.0, 5.0))
"""Score ranges that are found from the data: the first that holds all scores."""


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """Records that stand row by row in files."""

    recipe: SourceRecipe | EvalSetRecipe
    """Where it comes from."""
    reader: RowReader
    """Raw rows to records."""
    documents: DocumentTable | None
    """Texts of documents that rows name by id."""
    rows: np.ndarray
    """Table row of each record [n], int64."""
    parts: np.ndarray
    """Which of its row's records each is [n], int64."""
    queries: np.ndarray
    """Keys of the queries or pairs [n], uint64, ascending."""
    score_range: tuple[float, float]
    """Scores that become 0 and 1."""
    describe: str
    """One line for a person."""
    num_scored: int
    """Records whose passages a teacher scored."""
    marks: tuple[Mark, ...]
    """What its files were like when they were checked."""
    teacher_vectors: TeacherVectors | None = None
    """See `Source.teacher_vectors`."""
    left_out: str = ""
    """Digest of which records were left out after all; empty: none were."""

    @property
    def name(self) -> str:
        """As in the recipe."""
        return self.recipe.name

    @property
    def task(self) -> Task:
        """Task of all its records."""
        return self.recipe.task

    @property
    def fingerprint(self) -> str:
        """Digest of the files' contents."""
        documents = None if self.documents is None else self.documents.table.sha256
        rows = f"{self.reader.table.sha256}{self.left_out}"
        return digest_of_parts(rows, documents, self.teacher_vectors)

    @property
    def identity(self) -> str:
        """See `Source.identity`."""
        reader, names = self.reader, sorted(self.reader.table.columns.names.items())
        read = f"{reader.adapter.name}|{reader.adapter.task}|{reader.skip}|{names}"
        read += f"|{self.recipe.header}"
        return f"{self.fingerprint}|{read}|{self.score_range}|{len(self)}"

    @property
    def teacher_columns(self) -> str:
        """See `Source.teacher_columns`."""
        return self.reader.adapter.teacher_columns

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, row: int) -> Any:
        """The record of a row; scores are on 0..1.

        Raises:
            DataError: if the file changed since it was checked.
        """
        index = int(self.rows[row])
        try:
            raw = self.reader.records(index)[int(self.parts[row])]
        except RowError as fault:
            raise self.reader.table.error(index, fault) from None
        return raw.scaled(*self.score_range)

    def place(self, row: int) -> str:
        """See `Source.place`."""
        return self.reader.table.place(int(self.rows[row]))

    def check_files(self) -> None:
        """See `Source.check_files`."""
        for mark in self.marks:
            mark.check()


def make_table_source(
    recipe: SourceRecipe | EvalSetRecipe, table: Table, *, owner: str, skip: bool
) -> TableSource:
    """Finds the adapter, scans all rows, and finds the scale of the scores.

    Args:
        recipe: of the source or held-out set.
        table: its rows.
        owner: its recipe key, for messages.
        skip: leave malformed rows out, up to 1%.

    Raises:
        DataError: if no format fits, or a row is malformed; names file and line.
    """
    table, adapter = find_format(recipe, table, owner)
    documents = None
    if adapter.joined is not None:
        documents = documents_beside(table, owner=owner, skip=skip)
        adapter = replace(adapter, parse=partial(adapter.joined, documents))
    given = recipe.score_range
    reader = RowReader(table=table, adapter=adapter, score_range=given, skip=skip)
    beside = documents.table.sha256 if documents else ""
    names = f"|{sorted(recipe.columns.items())}|{recipe.header}"
    scan = scan_table(reader, identity=f"{adapter.name}|{adapter.task}|{given}|{beside}{names}")
    _check_left_out(table, scan, adapter)
    usable = table.row(int(scan.rows[0])) if len(scan.rows) else None
    warn_of_ignored(recipe, adapter, table, usable)
    scale = given or (
        _found_scale(table, scan) if row_kind(adapter.task).has_scores else KNOWN_SCALES[0]
    )
    return TableSource(
        recipe=recipe,
        reader=reader,
        documents=documents,
        rows=scan.rows,
        parts=scan.parts,
        queries=scan.queries,
        score_range=scale,
        describe=_describe(adapter, table, scan, scale),
        num_scored=scan.num_scored,
        marks=(*marks_of(table), *(marks_of(documents.table) if documents else ())),
    )


def _check_left_out(table: Table, scan: Scan, adapter: Adapter) -> None:
    """Say how many rows have no record.

    Raises:
        DataError: if no row has one.
    """
    if not scan.num_without:
        return
    if not len(scan.rows):
        raise DataError(
            f"{table.name}: all {len(table)} rows are {adapter.left_out}; expected some others, as "
            "nothing is learned or ranked there. Check the columns."
        )
    logger.warning("%s: left out are %d rows %s", table.name, scan.num_without, adapter.left_out)


def find_format(
    recipe: SourceRecipe | EvalSetRecipe, table: Table, owner: str
) -> tuple[Table, Adapter]:
    """The rows under the names that the recipe gives to columns, and the adapter that fits them.

    Raises:
        DataError: if no format fits.
    """
    table = _with_columns(table, recipe, owner)
    return table, find_adapter(recipe, table, owner=owner)


def _with_columns(table: Table, recipe: SourceRecipe | EvalSetRecipe, owner: str) -> Table:
    """The rows under the names that the recipe gives to columns.

    Raises:
        DataError: if it names a column that is not there.
    """
    columns = Columns(recipe.columns)
    if columns.names:
        there = {column for row in table.sample() for column in row.values}
        columns.check(there, owner=owner)
    return Table(table.files, columns)


def digest_of_parts(rows: str, documents: str | None, teacher: TeacherVectors | None) -> str:
    """Of the rows alone, or of the rows, the documents that they name and a teacher's vectors."""
    vectors = None if teacher is None else teacher.sha256
    parts = [rows, *filter(None, (documents, vectors))]
    return rows if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _found_scale(table: Table, scan: Scan) -> tuple[float, float]:
    """The first known scale that holds all scores.

    Raises:
        DataError: if none does; names the first row outside the widest.
    """
    for low, high in KNOWN_SCALES:
        if np.all((scan.scores >= low) & (scan.scores <= high)):
            return low, high
    low, high = KNOWN_SCALES[-1]
    first = int(np.flatnonzero((scan.scores < low) | (scan.scores > high))[0])
    got = f"{scan.scores[first]:g}"
    fault = RowError(
        "score", got, f"a number from {low:g} to {high:g}, or score_range in the recipe"
    )
    raise table.error(int(scan.rows[first]), fault, "Correct the row, or set score_range.")


def _describe(adapter: Adapter, table: Table, scan: Scan, scale: tuple[float, float]) -> str:
    num_rows = len(table) - scan.num_skipped - scan.num_without
    rows = (
        f"{num_rows} rows"
        if num_rows == len(scan.rows)
        else f"{len(scan.rows)} pairs of {num_rows} rows"
    )
    parts = [f"{adapter.name}, {rows} in {len(table.files)} file(s)"]
    if row_kind(adapter.task).has_scores:
        parts.append(f"scores {scale[0]:g}..{scale[1]:g}")
    if scan.num_scored:
        parts.append(f"a teacher's scores in {scan.num_scored}")
    if scan.num_duplicates:
        parts.append(f"{scan.num_duplicates} repeat the texts of an earlier row")
    if scan.num_without:
        parts.append(f"{scan.num_without} rows without a positive left out")
    if scan.num_skipped:
        parts.append(f"{scan.num_skipped} malformed rows left out")
    if scan.num_dropped:
        parts.append(f"{scan.num_dropped} blank negatives left out")
    return ", ".join(parts)
