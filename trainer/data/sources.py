"""Recipe sources to checked, random-access records; nothing of a file is held in memory.

Every row is parsed once before training, so that a spoiled one is told with file and line in
seconds. Imports no torch, transformers or datasets.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from trainer.data.arrow import open_hub_set
from trainer.data.beir import BeirRecords, is_beir_folder, open_folder, open_records, read_gains
from trainer.data.evalsets import IrEvalSet, StsEvalSet, ir_eval_set
from trainer.data.fields import RowError, shown
from trainer.data.formats import find_adapter
from trainer.data.formats.adapter import Adapter, ScoredPair
from trainer.data.records import IrRecord, Record, StsRecord
from trainer.data.scan import Scan, scan_table, text_key
from trainer.data.tables import Table, open_table
from trainer.data.unchanged import Mark, marks_of
from trainer.errors import DataError
from trainer.recipe.schema import DataRecipe, EvalSetRecipe, SourceRecipe, Task
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

    def __len__(self) -> int: ...

    def record(self, row: int) -> Record:
        """The record of a row, 0 <= row < len."""

    def check_files(self) -> None:
        """Raise DataError if a file is no longer as it was when its rows were checked."""


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """Records that stand row by row in files."""

    recipe: SourceRecipe | EvalSetRecipe
    """Where it comes from."""
    table: Table
    """Raw rows."""
    adapter: Adapter
    """Raw row to record."""
    rows: np.ndarray
    """Table rows that are used [n], int64."""
    queries: np.ndarray
    """Keys of the queries or pairs [n], uint64, ascending."""
    score_range: tuple[float, float]
    """Scores that become 0 and 1."""
    describe: str
    """One line for a person."""
    marks: tuple[Mark, ...]
    """What its files were like when they were checked."""

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
        return self.table.sha256

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, row: int) -> Record:
        """The record of a row; scores are on 0..1.

        Raises:
            DataError: if the file changed since it was checked.
        """
        index = int(self.rows[row])
        try:
            raw = self.adapter.parse(self.table.row(index))
        except RowError as fault:
            raise self.table.error(index, fault) from None
        if isinstance(raw, IrRecord):
            return raw
        low, high = self.score_range
        return StsRecord(text1=raw.text1, text2=raw.text2, score=(raw.score - low) / (high - low))

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
    task: Task = "ir"
    """Always retrieval."""

    @property
    def name(self) -> str:
        """As in the recipe."""
        return self.recipe.name

    @property
    def fingerprint(self) -> str:
        """Digest of the files' contents."""
        return self.records.sha256

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

    def check_files(self) -> None:
        """See `Source.check_files`."""
        for mark in self.marks:
            mark.check()


def open_sources(recipe: DataRecipe) -> tuple[Source, ...]:
    """All sources of a recipe, every row checked.

    Raises:
        DataError: if a file is missing or empty, or a row is spoiled; names file and line.
    """
    sources = []
    for source in recipe.sources:
        sources.append(open_source(source, recipe.root, skip=recipe.on_bad_row == "skip"))
        logger.info("source %s: %s", sources[-1].name, sources[-1].describe)
    return tuple(sources)


def open_source(recipe: SourceRecipe, root: str, *, skip: bool = False) -> Source:
    """One source, every row checked.

    Args:
        recipe: the source.
        root: folder that relative paths start from.
        skip: leave spoiled rows out, up to 1%.

    Raises:
        DataError: if a file is missing or empty, or a row is spoiled; names file and line.
    """
    owner = f"data.sources.{recipe.name}"
    if recipe.hub is not None:
        file = open_hub_set(recipe.hub, recipe.split, owner=owner)
        return _table_source(recipe, Table((file,)), skip=skip)
    if recipe.path is None:
        raise DataError(f"{owner}: path = null; expected a file, folder or glob. Set path or hub.")
    folder = _beir_folder(recipe.path, root, recipe.format)
    if folder is None:
        return _table_source(recipe, open_table(recipe.path, root, owner=owner), skip=skip)
    if recipe.task != "ir":
        raise DataError(f"{owner}: task = {recipe.task}; expected ir for a BEIR folder. Change it.")
    records = open_records(folder, recipe.split, skip=skip)
    marks = (*marks_of(records.folder.corpus), *marks_of(records.folder.queries))
    return BeirSource(recipe=recipe, records=records, marks=marks)


def open_eval_set(recipe: EvalSetRecipe, data: DataRecipe) -> StsEvalSet | IrEvalSet:
    """One held-out set, every row checked.

    Raises:
        DataError: if a file is missing or empty, or a row is spoiled; names file and line.
    """
    owner = f"eval.sets.{recipe.name}"
    skip = data.on_bad_row == "skip"
    folder = _beir_folder(recipe.path, data.root, recipe.format)
    if (folder is None) == (recipe.task == "ir"):
        expected = "a BEIR folder (corpus.jsonl, queries.jsonl, qrels/)"
        expected = expected if recipe.task == "ir" else "a file of scored pairs"
        raise DataError(f"{owner}: path = {recipe.path}; expected {expected}. Change path or task.")
    if folder is not None:
        beir = open_folder(folder, skip=skip)
        return ir_eval_set(beir, read_gains(beir, recipe.split, skip=skip))
    source = _table_source(recipe, open_table(recipe.path, data.root, owner=owner), skip=skip)
    records = [source.record(row) for row in range(len(source))]
    pairs = [record for record in records if isinstance(record, StsRecord)]
    if len({pair.score for pair in pairs}) < 2:
        raise DataError(
            f"{owner}: path = {recipe.path}, {len(pairs)} pairs, all of one score; expected at "
            "least two scores, as no correlation is defined otherwise. Check the score field."
        )
    return StsEvalSet(
        text1=tuple(pair.text1 for pair in pairs),
        text2=tuple(pair.text2 for pair in pairs),
        score=tuple(pair.score for pair in pairs),
    )


def task_of_path(path: Path) -> Task:
    """The task that an evaluation set at a path is of, where nothing says it."""
    has_corpus = is_beir_folder(path)
    return next(name for name, kind in TASKS.items() if kind.has_corpus == has_corpus)


def _beir_folder(path: str, root: str, name: str | None) -> Path | None:
    """The folder, if the recipe says or the files show that it is one of BEIR."""
    folder = (Path(root).expanduser() / Path(path).expanduser()).absolute()
    return folder if name == "beir" or (name is None and is_beir_folder(folder)) else None


def _table_source(recipe: SourceRecipe | EvalSetRecipe, table: Table, *, skip: bool) -> TableSource:
    """Finds the adapter, scans all rows, and finds the scale of the scores."""
    adapter = find_adapter(recipe.task, recipe.format, table.columns, owner=table.place(0))
    given = recipe.score_range

    def parse(row: int) -> IrRecord | ScoredPair:
        record = adapter.parse(table.row(row))
        if given is not None and isinstance(record, ScoredPair):
            _check_score(record.score, *given)
        return record

    identity = f"{adapter.name}|{adapter.task}|{given}"
    scan = scan_table(table, parse, identity=identity, skip=skip)
    _warn_of_instruction(recipe, adapter, table, scan)
    scale = given or (_found_scale(table, scan) if adapter.task == "sts" else KNOWN_SCALES[0])
    return TableSource(
        recipe=recipe,
        table=table,
        adapter=adapter,
        rows=scan.rows,
        queries=scan.queries,
        score_range=scale,
        describe=_describe(adapter, table, scan, scale),
        marks=marks_of(table),
    )


def _warn_of_instruction(
    recipe: SourceRecipe | EvalSetRecipe, adapter: Adapter, table: Table, scan: Scan
) -> None:
    """Says so if rows carry an instruction that the recipe does not use."""
    if not len(scan.rows):
        return
    carried = adapter.instruction(table.row(int(scan.rows[0])))
    if carried and carried != recipe.query_instruction:
        logger.warning(
            "%s: rows carry the instruction %s, which is not used; set query_instruction of %s to "
            "train with it",
            table.name,
            shown(carried),
            recipe.name,
        )


def _check_score(score: float, low: float, high: float) -> None:
    if not low <= score <= high:
        raise RowError("score", f"{score:g}", f"a number from {low:g} to {high:g}")


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
    parts = [f"{adapter.name}, {len(scan.rows)} rows in {len(table.files)} file(s)"]
    if adapter.task == "sts":
        parts.append(f"scores {scale[0]:g}..{scale[1]:g}")
    if scan.num_duplicates:
        parts.append(f"{scan.num_duplicates} repeat the texts of an earlier row")
    if scan.num_skipped:
        parts.append(f"{scan.num_skipped} spoiled rows left out")
    return ", ".join(parts)
