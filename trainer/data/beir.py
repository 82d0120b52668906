"""BEIR folders: corpus, queries, qrels and optional hard negatives, joined by id.

Ids are held as 64-bit keys and rows as numbers; texts stay in the files. Layout: Thakur et al.
2021, arXiv:2104.08663; `hard_negatives.<split>.jsonl` is this project's addition.
"""

import hashlib
import logging
from array import array
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.cache import Arrays, cached_arrays
from trainer.data.fields import Row, RowError, check_string, shown
from trainer.data.files import line_ranges, open_text_file
from trainer.data.records import IrRecord
from trainer.data.scan import CACHE_FROM_ROWS, parsed_rows, text_key
from trainer.data.tables import Table, table_of
from trainer.errors import DataError

logger = logging.getLogger(__name__)

QREL_FIELDS = ("query-id", "corpus-id", "score")
SCORE_NAMES = ("score", "relevance", "rel", "label", "grade", "gain")
"""Names of the last column by which a header is known; any other word is a spoiled line."""
MAX_GAIN = 10_000
"""Largest judgement that is scored by: they are grades, and trec_eval's memory grows with them."""


@dataclass(frozen=True)
class Lists:
    """Many lists of numbers in two arrays."""

    values: np.ndarray
    """All lists, one after another, int64."""
    ends: np.ndarray
    """End of each list in `values` [n], int64."""

    @classmethod
    def of(cls, lists: Iterable[Iterable[int]]) -> "Lists":
        """Packs lists."""
        arrays = [np.fromiter(numbers, np.int64) for numbers in lists]
        values = np.concatenate(arrays) if arrays else np.empty(0, np.int64)
        return cls(values, np.cumsum([len(numbers) for numbers in arrays], dtype=np.int64))

    def __getitem__(self, index: int) -> list[int]:
        start = self.ends[index - 1] if index else 0
        return self.values[start : self.ends[index]].tolist()


@dataclass(frozen=True)
class Ids:
    """Row of each id of a table, at 16 bytes an id."""

    keys: np.ndarray
    """Keys of the ids, ascending [n], uint64."""
    rows: np.ndarray
    """Row of each key [n], int64."""

    def find(self, identifiers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The row of each id [n], int64, and whether it is known [n], bool."""
        keys = np.fromiter(map(text_key, identifiers), np.uint64, len(identifiers))
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.rows[at], self.keys[at] == keys


@dataclass(frozen=True, kw_only=True)
class BeirFolder:
    """The parts of a folder, checked, with texts still on disk."""

    folder: Path
    """Absolute."""
    corpus: Table
    """Rows `_id, title, text`."""
    queries: Table
    """Rows `_id, text`."""
    corpus_ids: Ids
    """Where each document is."""
    query_ids: Ids
    """Where each query is."""

    def document(self, row: int) -> str:
        """Title and text of a document, joined by a space."""
        return document_text(self.corpus.row(row))

    def query(self, row: int) -> str:
        """Text of a query, possibly blank."""
        return str(self.queries.row(row).values["text"])


@dataclass(frozen=True, kw_only=True)
class BeirRecords:
    """One IR record per judged query of a split."""

    folder: BeirFolder
    """Where the texts are."""
    query: np.ndarray
    """Row of each record's query [n], int64."""
    positives: Lists
    """Corpus rows judged relevant."""
    negatives: Lists
    """Corpus rows mined as hard negatives; may be empty."""
    sha256: str
    """Contents of all files, hexadecimal."""

    def __len__(self) -> int:
        return len(self.query)

    def record(self, row: int) -> IrRecord:
        """The record of a query, by its place in the qrels."""
        return IrRecord(
            query=self.folder.query(int(self.query[row])),
            positives=tuple(map(self.folder.document, self.positives[row])),
            negatives=tuple(map(self.folder.document, self.negatives[row])),
        )


def is_beir_folder(path: Path) -> bool:
    """Whether a path looks like a BEIR folder."""
    return (path / "corpus.jsonl").exists() or (path / "qrels").is_dir()


def document_text(row: Row) -> str:
    """Title and text joined by a space, or the text alone.

    Raises:
        RowError: if one is no text.
    """
    text = check_string("text", row.require("text", "a text")).strip()
    title = check_string("title", row.values["title"]).strip() if row.has("title") else ""
    return f"{title} {text}".strip()


def open_folder(folder: Path, *, skip: bool) -> BeirFolder:
    """Opens corpus and queries and checks each row.

    Raises:
        DataError: if a file is missing or empty, or a row is spoiled.
    """
    corpus = table_of([folder / "corpus.jsonl"])
    queries = table_of([folder / "queries.jsonl"])
    return BeirFolder(
        folder=folder,
        corpus=corpus,
        queries=queries,
        corpus_ids=_index_ids(corpus, _check_document, skip=skip),
        query_ids=_index_ids(queries, _check_query, skip=skip),
    )


def open_records(folder: Path, split: str, *, skip: bool) -> BeirRecords:
    """The training records of a split: judged queries with their positives and hard negatives.

    Raises:
        DataError: if a file is missing or empty, a row is spoiled, or an id is unknown.
    """
    beir = open_folder(folder, skip=skip)
    qrels = open_qrels(folder, split)
    positives: dict[int, dict[int, None]] = {}
    for _, (query, document, gain) in parsed_rows(qrels, _pair(beir, qrels), skip=skip):
        positives.setdefault(query, {})
        if gain > 0:
            positives[query][document] = None
    _check_positives(beir, positives, split)
    negatives, mined_sha256 = _hard_negatives(beir, split, positives, skip=skip)
    parts = (beir.corpus.sha256, beir.queries.sha256, qrels.sha256, mined_sha256)
    return BeirRecords(
        folder=beir,
        query=np.fromiter(positives, np.int64),
        positives=Lists.of(positives.values()),
        negatives=Lists.of(negatives.get(query, ()) for query in positives),
        sha256=hashlib.sha256("".join(parts).encode()).hexdigest(),
    )


def read_gains(beir: BeirFolder, split: str, *, skip: bool) -> dict[str, dict[str, int]]:
    """Graded judgements of a split: query id to document id to gain.

    Raises:
        DataError: if the file is missing or empty, a line is spoiled, or an id is unknown.
    """
    qrels = open_qrels(beir.folder, split)
    check = _grade(beir, qrels)
    gains: dict[str, dict[str, int]] = {}
    for row, (_, _, gain) in parsed_rows(qrels, check, skip=skip):
        fields = qrels.row(row)
        gains.setdefault(fields.text("query-id"), {})[fields.text("corpus-id")] = gain
    return gains


def open_qrels(folder: Path, split: str) -> Table:
    """The judgements of a split, one row a line, without the header.

    Raises:
        DataError: if the file is missing or empty, or its first line is no text.
    """
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        splits = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv"))) or "none"
        raise DataError(
            f"{path}: split = {split}; expected one of the splits in the folder: {splits}. "
            "Correct split or add the file."
        )
    file = open_text_file(path, _decode_qrel, line_ranges, kind="lines")
    try:
        header = _decode_qrel_line(file.data[file.ranges[0, 0] : file.ranges[0, 1]])
    except RowError as fault:
        raise DataError(f"{file.place(0)}: {fault}. Correct the header.") from None
    if len(header) == 3 and header[2].strip().lower() in SCORE_NAMES:
        file = replace(file, ranges=file.ranges[1:])
    if not len(file):
        raise DataError(f"{path}: rows = 0; expected at least one judgement. Fill it or remove it.")
    return Table((replace(file, typed=False),))


def _judgement(beir: BeirFolder, qrels: Table) -> Callable[[int], tuple[int, int, int]]:
    """A function from qrels row to query row, corpus row and gain."""

    def parse(index: int) -> tuple[int, int, int]:
        row = qrels.row(index)
        query = _known(beir.query_ids, "query-id", row.text("query-id"), "queries.jsonl")
        document = _known(beir.corpus_ids, "corpus-id", row.text("corpus-id"), "corpus.jsonl")
        gain = row.number("score")
        if gain != int(gain):
            raise RowError("score", str(gain), "a whole number")
        return query, document, int(gain)

    return parse


def _grade(beir: BeirFolder, qrels: Table) -> Callable[[int], tuple[int, int, int]]:
    """As `_judgement`, and the gain must be one that metrics can take."""
    judgement = _judgement(beir, qrels)

    def parse(index: int) -> tuple[int, int, int]:
        query, document, gain = judgement(index)
        if gain > MAX_GAIN:
            raise RowError("score", str(gain), f"a grade of at most {MAX_GAIN}")
        return query, document, gain

    return parse


def _pair(beir: BeirFolder, qrels: Table) -> Callable[[int], tuple[int, int, int]]:
    """As `_judgement`, and both texts must have something in them, as training needs."""
    judgement = _judgement(beir, qrels)

    def parse(index: int) -> tuple[int, int, int]:
        query, document, gain = judgement(index)
        if beir.query(query).isspace() or not beir.query(query):
            raise RowError(
                "query-id", shown(qrels.row(index).text("query-id")), "a query with text"
            )
        if gain > 0 and not beir.document(document):
            name = qrels.row(index).text("corpus-id")
            raise RowError("corpus-id", shown(name), "a document with text")
        return query, document, gain

    return parse


def _check_positives(beir: BeirFolder, positives: Mapping[int, object], split: str) -> None:
    for query, documents in positives.items():
        if not documents:
            name = beir.queries.row(query).identifier("_id")
            raise DataError(
                f"{beir.folder}/qrels/{split}.tsv: query-id = {name}; expected at least one "
                "document with a score above 0. Judge one, or remove the query's lines."
            )


def _hard_negatives(
    beir: BeirFolder, split: str, positives: Mapping[int, Container[int]], *, skip: bool
) -> tuple[dict[int, np.ndarray], str]:
    """Corpus rows of each query's hard negatives without its judged positives, and a digest."""
    path = beir.folder / f"hard_negatives.{split}.jsonl"
    if not path.exists():
        return {}, ""
    table = table_of([path])
    mined: dict[int, np.ndarray] = {}
    for _, (query, documents) in parsed_rows(table, _mined(beir, table), skip=skip):
        if query in positives:
            judged = positives[query]
            kept = [row for row in dict.fromkeys(documents) if row not in judged]
            mined[query] = np.array(kept, np.int64)
    return mined, table.sha256


def _mined(beir: BeirFolder, table: Table) -> Callable[[int], tuple[int, list[int]]]:
    """A function from hard-negatives row to query row and corpus rows."""

    def parse(index: int) -> tuple[int, list[int]]:
        row = table.row(index)
        query = _known(beir.query_ids, "query_id", row.identifier("query_id"), "queries.jsonl")
        items = enumerate(row.items("negatives"))
        fields = {f"negatives[{at}]": value for at, value in items}
        names = list(map(Row(fields).identifier, fields))
        rows, known = beir.corpus_ids.find(names)
        for at in np.flatnonzero(~known)[:1]:
            raise RowError(f"negatives[{at}]", shown(names[at]), "an _id of corpus.jsonl")
        return query, rows.tolist()

    return parse


def _known(ids: Ids, field: str, identifier: str, file: str) -> int:
    rows, known = ids.find([identifier])
    if not known[0]:
        raise RowError(field, shown(identifier), f"an _id of {file}")
    return int(rows[0])


def _check_document(row: Row) -> str:
    document_text(row)
    return row.identifier("_id")


def _check_query(row: Row) -> str:
    check_string("text", row.require("text", "a text"))
    return row.identifier("_id")


def _index_ids(table: Table, check: Callable[[Row], str], *, skip: bool) -> Ids:
    """Checks each row and keeps the key of its id, from the cache where the table is large.

    Raises:
        DataError: if a row is spoiled or repeats an id and is not skipped.
    """

    def build() -> Arrays:
        rows, keys = array("q"), array("Q")
        for row, identifier in parsed_rows(table, lambda row: check(table.row(row)), skip=skip):
            rows.append(row)
            keys.append(text_key(identifier))
        order = np.argsort(np.array(keys, np.uint64), kind="stable")
        return {"keys": np.array(keys, np.uint64)[order], "rows": np.array(rows, np.int64)[order]}

    identity = f"ids|{table.sha256}|{check.__name__}|{skip}"
    cached = len(table) >= CACHE_FROM_ROWS
    ids = Ids(**(cached_arrays(identity, build) if cached else build()))
    repeats = np.flatnonzero(ids.keys[1:] == ids.keys[:-1]) + 1
    if not len(repeats):
        return ids
    row = int(ids.rows[repeats[0]])
    fault = RowError("_id", shown(table.row(row).identifier("_id")), "a new id")
    if not skip:
        raise table.error(row, fault)
    logger.warning("skipped: %d rows that repeat an id, such as %s: %s", len(repeats),
                   table.place(row), fault)  # fmt: skip
    return Ids(keys=np.delete(ids.keys, repeats), rows=np.delete(ids.rows, repeats))


def _decode_qrel(line: bytes) -> Mapping[str, Any]:
    fields = _decode_qrel_line(line)
    if len(fields) != len(QREL_FIELDS):
        expected = "query-id, corpus-id and score, parted by tabs"
        raise RowError("line", shown(line[:60].decode(errors="replace")), expected)
    return dict(zip(QREL_FIELDS, fields, strict=True))


def _decode_qrel_line(line: bytes) -> list[str]:
    try:
        return line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        raise RowError("line", ascii(bytes(line[:24])), "UTF-8 text") from None
