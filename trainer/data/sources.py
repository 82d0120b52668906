"""Recipe sources to checked, random-access records; nothing of a file is held in memory.

Every row is parsed once before training, so that a malformed one is reported with file and line in
seconds. Imports no torch, transformers or datasets.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trainer.data.arrow import open_hub_set
from trainer.data.beir import BeirRecords, open_records
from trainer.data.documents import DocumentTable, documents_beside
from trainer.data.fields import RowError
from trainer.data.formats import find_adapter, header_of
from trainer.data.formats.adapter import Adapter
from trainer.data.label_source import labelled_source
from trainer.data.layouts import is_beir_folder
from trainer.data.notices import warn_of_ignored
from trainer.data.premise_source import premise_source
from trainer.data.records import IrRecord
from trainer.data.scan import RowReader, Scan, scan_table, text_key
from trainer.data.tables import Table, open_table, table_of
from trainer.data.teacher_vectors import TeacherVectors, open_teacher_vectors
from trainer.data.unchanged import Mark, marks_of
from trainer.errors import DataError
from trainer.recipe import ir, sts
from trainer.recipe.eval_kinds import row_kind
from trainer.recipe.schema import DataRecipe, EvalKindName, EvalSetRecipe, SourceRecipe, Task
from trainer.recipe.tasks import TASKS

logger = logging.getLogger(__name__)

KNOWN_SCALES = ((0.0, 1.0), (0.0, 5.0))
"""Score ranges that are found from the data: the first that holds all scores."""


class Source(Protocol):
    """Records of one data set, by row."""

    @property
    def name(self) -> str:
        """As in the recipe."""

    @property
    def task(self) -> Task:
        """Task of all its records."""

    @property
    def fingerprint(self) -> str:
        """Changes when the content of any of its files does, hexadecimal."""

    @property
    def describe(self) -> str:
        """One line for a person."""

    @property
    def queries(self) -> np.ndarray:
        """Keys of what its records ask: queries, or pairs in either order [n], uint64."""

    @property
    def num_scored(self) -> int:
        """Records whose passages a teacher scored."""

    @property
    def teacher_columns(self) -> str:
        """Where its format has a teacher's scores; empty: nowhere."""

    @property
    def teacher_vectors(self) -> TeacherVectors | None:
        """A teacher's vectors of its texts; None where the recipe names none."""

    def __len__(self) -> int: ...

    def record(self, row: int) -> Any:
        """The record of a row, 0 <= row < len, of the class of its task."""

    def place(self, row: int) -> str:
        """`path:line` of a row, or of its query where documents stand apart; for messages."""

    def check_files(self) -> None:
        """Raise DataError if a file is no longer as it was when its rows were checked."""


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
        return _digest(self.reader.table.sha256, documents, self.teacher_vectors)

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


@dataclass(frozen=True, kw_only=True)
class BeirSource:
    """Records of a split of a BEIR folder: one per judged query."""

    recipe: SourceRecipe
    """Where it comes from."""
    records: BeirRecords
    """The judged queries."""
    marks: tuple[Mark, ...]
    """What corpus and queries were like when they were checked; the rest is not read again."""
    task: Task = ir.KIND.name
    """Always retrieval."""
    num_scored: int = 0
    """No teacher scored its documents."""
    teacher_columns: str = ""
    """The layout has no place for scores."""
    teacher_vectors: TeacherVectors | None = None
    """See `Source.teacher_vectors`."""

    @property
    def name(self) -> str:
        """As in the recipe."""
        return self.recipe.name

    @property
    def fingerprint(self) -> str:
        """Digest of the files' contents."""
        return _digest(self.records.sha256, None, self.teacher_vectors)

    @property
    def queries(self) -> np.ndarray:
        """Keys of the queries [n], uint64, ascending."""
        queries = map(self.records.folder.query, self.records.query.tolist())
        return np.sort(np.fromiter(map(text_key, queries), np.uint64))

    @property
    def describe(self) -> str:
        """One line for a person."""
        return (
            f"beir, {len(self)} queries of split {self.recipe.split}, "
            f"{len(self.records.folder.corpus)} documents"
        )

    def __len__(self) -> int:
        return len(self.records)

    def record(self, row: int) -> IrRecord:
        """The record of a query."""
        return self.records.record(row)

    def place(self, row: int) -> str:
        """See `Source.place`."""
        return self.records.folder.queries.place(int(self.records.query[row]))

    def check_files(self) -> None:
        """See `Source.check_files`."""
        for mark in self.marks:
            mark.check()


JOINED: dict[str, Callable[[TableSource, SourceRecipe, str], Source]] = {
    "label": labelled_source,
    "premise": premise_source,
}
"""From the rows of a table, its recipe and `data.root` to a source whose records join rows, by what
they share."""


def open_sources(recipe: DataRecipe) -> tuple[Source, ...]:
    """All sources of a recipe, every row checked.

    Raises:
        DataError: if a file is missing or empty, or a row is malformed; names file and line.
    """
    sources = []
    for source in recipe.sources:
        sources.append(open_source(source, recipe.root, skip=recipe.on_bad_row == "skip"))
        logger.info("source %s: %s", sources[-1].name, sources[-1].describe)
    return tuple(sources)


def open_source(recipe: SourceRecipe, root: str, *, skip: bool = False) -> Source:
    """One source, every row and every vector of its teacher checked.

    Args:
        recipe: the source.
        root: folder that relative paths start from.
        skip: leave malformed rows out, up to 1%.

    Raises:
        DataError: if a file is missing or empty, or a row is malformed; names file and line.
    """
    source = _open_records(recipe, root, skip=skip)
    if recipe.teacher_embeddings is not None:
        owner = f"data.sources.{recipe.name}"
        teacher = open_teacher_vectors(recipe.teacher_embeddings, root, owner=owner)
        source = replace(source, teacher_vectors=teacher, marks=(*source.marks, *teacher.marks))
    if isinstance(source, TableSource) and source.reader.adapter.joins is not None:
        return JOINED[source.reader.adapter.joins](source, recipe, root)
    return source


def _open_records(recipe: SourceRecipe, root: str, *, skip: bool) -> TableSource | BeirSource:
    """The records of a source, every row checked."""
    owner = f"data.sources.{recipe.name}"
    if recipe.hub is not None:
        file = open_hub_set(recipe.hub, recipe.split, owner=owner)
        return _table_source(recipe, Table((file,)), owner=owner, skip=skip)
    if recipe.path is None:
        raise DataError(f"{owner}: path = null; expected a file, folder or glob. Set path or hub.")
    folder = beir_folder(recipe.path, root, recipe.format)
    if folder is None:
        header = header_of(recipe.task, recipe.format)
        table = open_table(recipe.path, root, owner=owner, header=header)
        return _table_source(recipe, table, owner=owner, skip=skip)
    if not TASKS[recipe.task].has_corpus:
        with_corpus = " or ".join(name for name, kind in TASKS.items() if kind.has_corpus)
        raise DataError(
            f"{owner}: task = {recipe.task}; expected {with_corpus} for a BEIR folder. Change it."
        )
    records = open_records(folder, recipe.split, skip=skip)
    marks = (*marks_of(records.folder.corpus), *marks_of(records.folder.queries))
    return BeirSource(recipe=recipe, records=records, marks=marks)


def open_table_source(recipe: EvalSetRecipe, data: DataRecipe, *, owner: str) -> TableSource:
    """The rows of a held-out set that stand in files, every row checked.

    Raises:
        DataError: if a file is missing or empty, or a row is malformed; names file and line.
    """
    header = header_of(recipe.task, recipe.format)
    table = open_table(recipe.path, data.root, owner=owner, header=header)
    return _table_source(recipe, table, owner=owner, skip=data.on_bad_row == "skip")


def open_file_source(
    recipe: EvalSetRecipe, files: Sequence[Path], data: DataRecipe, *, owner: str
) -> TableSource:
    """The rows of one part of a held-out set, every row checked.

    Raises:
        DataError: if a file is unreadable or empty, or a row is malformed; names file and line.
    """
    table = table_of(files, header_of(recipe.task, recipe.format))
    return _table_source(recipe, table, owner=owner, skip=data.on_bad_row == "skip")


def kind_of_path(path: Path) -> EvalKindName:
    """The kind that an evaluation set at a path is of, where nothing says it."""
    return (ir if is_beir_folder(path) else sts).EVAL_KIND.name


def beir_folder(path: str, root: str, name: str | None) -> Path | None:
    """The folder, if the recipe says or the files show that it is one of BEIR."""
    folder = (Path(root).expanduser() / Path(path).expanduser()).absolute()
    return folder if name == "beir" or (name is None and is_beir_folder(folder)) else None


def _table_source(
    recipe: SourceRecipe | EvalSetRecipe, table: Table, *, owner: str, skip: bool
) -> TableSource:
    """Finds the adapter, scans all rows, and finds the scale of the scores."""
    adapter = find_adapter(recipe.task, recipe.format, table.sample(), owner=table.place(0))
    documents = None
    if adapter.joined is not None:
        documents = documents_beside(table, owner=owner, skip=skip)
        adapter = replace(adapter, parse=partial(adapter.joined, documents))
    given = recipe.score_range
    reader = RowReader(table=table, adapter=adapter, score_range=given, skip=skip)
    beside = documents.table.sha256 if documents else ""
    scan = scan_table(reader, identity=f"{adapter.name}|{adapter.task}|{given}|{beside}")
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


def _digest(rows: str, documents: str | None, teacher: TeacherVectors | None) -> str:
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
    raise table.error(int(scan.rows[first]), fault)


def _describe(adapter: Adapter, table: Table, scan: Scan, scale: tuple[float, float]) -> str:
    num_rows = len(table) - scan.num_skipped
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
    if scan.num_skipped:
        parts.append(f"{scan.num_skipped} malformed rows left out")
    if scan.num_dropped:
        parts.append(f"{scan.num_dropped} blank negatives left out")
    return ", ".join(parts)
