"""Recipe sources to checked, random-access records; nothing of a file is held in memory.

Every row is parsed once before training, so that a malformed one is reported with file and line in
seconds. Imports no torch, transformers or datasets.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trainer.data.arrow import open_hub_set
from trainer.data.beir import BeirRecords, open_records
from trainer.data.fetching import at_hand
from trainer.data.formats import header_of
from trainer.data.header import refuse_row_keys
from trainer.data.label_source import labelled_source
from trainer.data.layouts import SetFolder, is_beir_folder
from trainer.data.premise_source import premise_source
from trainer.data.records import IrRecord
from trainer.data.scan import text_key
from trainer.data.set_folder import hub_folder, is_beir_set, local_folder
from trainer.data.streamed import streamed
from trainer.data.table_source import TableSource, digest_of_parts, make_table_source
from trainer.data.tables import Table, open_table, table_of
from trainer.data.teacher_vectors import TeacherVectors, open_teacher_vectors
from trainer.data.unchanged import Mark, marks_of
from trainer.errors import DataError
from trainer.recipe import ir, sts
from trainer.recipe.schema import DataRecipe, EvalKindName, SourceRecipe, Task
from trainer.recipe.tasks import TASKS

logger = logging.getLogger(__name__)

BEIR = "beir"
"""Format of a folder, or a set of the hub, with corpus, queries and judgements."""


class StepSource(Protocol):
    """What the making of a batch asks of a source, or of several that share steps."""

    @property
    def name(self) -> str:
        """As in the recipe."""

    @property
    def teacher_vectors(self) -> TeacherVectors | None:
        """A teacher's vectors of its texts; None where the recipe names none."""

    def record(self, row: int) -> Any:
        """The record of a row, of the class of its task."""

    def check_files(self) -> None:
        """Raise DataError if a file is no longer as it was when its rows were checked."""


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
    def identity(self) -> str:
        """Names all that its records follow from: files, how they are read, what is left out."""

    @property
    def describe(self) -> str:
        """One line for a person."""

    @property
    def queries(self) -> np.ndarray:
        """Keys of what its rows ask, such as queries, uint64; as many as records or more."""

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
        return digest_of_parts(self.records.sha256, None, self.teacher_vectors)

    @property
    def identity(self) -> str:
        """See `Source.identity`."""
        return f"{self.fingerprint}|{self.recipe.split}|{len(self)}"

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


Rows = TableSource | BeirSource
"""What a source's records are made of."""
Screen = Callable[[Rows], Rows]
"""The rows of a source without those that are to be left out."""

JOINED: dict[str, Callable[[TableSource, SourceRecipe, str], Source]] = {
    "label": labelled_source,
    "premise": premise_source,
}
"""From the rows of a table, its recipe and `data.root` to a source whose records join rows, by what
they share."""


def open_sources(recipe: DataRecipe, screen: Screen | None = None) -> tuple[Source, ...]:
    """All sources of a recipe, every row checked.

    Args:
        recipe: the sources.
        screen: leaves rows out of each; None: all are used.

    Raises:
        DataError: if a file is missing or empty, or a row is malformed; names file and line.
    """
    sources = []
    for source in recipe.sources:
        skip = recipe.on_bad_row == "skip"
        sources.append(open_source(source, recipe.root, skip=skip, screen=screen))
        logger.info("source %s: %s", sources[-1].name, sources[-1].describe)
    return tuple(sources)


def open_source(
    recipe: SourceRecipe, root: str, *, skip: bool = False, screen: Screen | None = None
) -> Source:
    """One source, every row and every vector of its teacher checked.

    Args:
        recipe: the source.
        root: folder, or address of one, that relative paths start from.
        skip: leave malformed rows out, up to 1%.
        screen: leaves other rows out; None: all are used.

    Raises:
        DataError: if a file is missing or empty, cannot be fetched, or a row is malformed; names
            file and line.
    """
    owner = f"data.sources.{recipe.name}"
    recipe = at_hand(recipe, root, owner=owner)
    source = _open_records(recipe, root, skip=skip)
    if screen is not None:
        source = screen(source)
    if recipe.teacher_embeddings is not None:
        teacher = open_teacher_vectors(recipe.teacher_embeddings, root, owner=owner)
        source = replace(source, teacher_vectors=teacher, marks=(*source.marks, *teacher.marks))
    if isinstance(source, TableSource) and source.reader.adapter.joins is not None:
        return JOINED[source.reader.adapter.joins](source, recipe, root)
    return source


def _open_records(recipe: SourceRecipe, root: str, *, skip: bool) -> TableSource | BeirSource:
    """The records of a source, every row checked."""
    owner = f"data.sources.{recipe.name}"
    place = _with_corpus(recipe, root, owner)
    if place is None:
        table = _open_rows(recipe, root, owner)
        return make_table_source(recipe, table, owner=owner, skip=skip)
    refuse_row_keys(recipe, owner=owner)
    if not TASKS[recipe.task].has_corpus:
        with_corpus = " or ".join(name for name, kind in TASKS.items() if kind.has_corpus)
        raise DataError(
            f"{owner}: task = {recipe.task}; expected {with_corpus} for a BEIR folder. Change it."
        )
    records = open_records(place, recipe.split, skip=skip)
    marks = (*marks_of(records.folder.corpus), *marks_of(records.folder.queries))
    return BeirSource(recipe=recipe, records=records, marks=marks)


def _open_rows(recipe: SourceRecipe, root: str, owner: str) -> Table:
    """The rows of a source that is no folder of BEIR."""
    if recipe.hub is not None and recipe.stream:
        return table_of([streamed(recipe.hub, recipe.split, owner=owner)])
    if recipe.hub is not None:
        return Table((open_hub_set(recipe.hub, recipe.split, owner=owner),))
    if recipe.path is None:
        raise DataError(f"{owner}: path = null; expected a file, folder or glob. Set path or hub.")
    return open_table(recipe.path, root, owner=owner, header=header_of(recipe, owner=owner))


def _with_corpus(recipe: SourceRecipe, root: str, owner: str) -> SetFolder | None:
    """The folder of a source with a corpus, on disk or in the hub's cache; None: it is another."""
    if recipe.hub is None:
        folder = beir_folder(recipe.path, root, recipe.format) if recipe.path else None
        return None if folder is None else local_folder(folder)
    # the card is asked for only where its answer can matter
    may_be = recipe.format is None and not recipe.stream and TASKS[recipe.task].has_corpus
    if recipe.format == BEIR or (may_be and is_beir_set(recipe.hub)):
        return hub_folder(recipe.hub, owner=owner)
    return None


def kind_of_path(path: Path) -> EvalKindName:
    """The kind that an evaluation set at a path is of, where nothing says it."""
    return (ir if is_beir_folder(path) else sts).EVAL_KIND.name


def beir_folder(path: str, root: str, name: str | None) -> Path | None:
    """The folder, if the recipe says or the files show that it is one of BEIR."""
    folder = (Path(root).expanduser() / Path(path).expanduser()).absolute()
    return folder if name == BEIR or (name is None and is_beir_folder(folder)) else None
