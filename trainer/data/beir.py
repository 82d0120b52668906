"""BEIR folders: corpus, queries, qrels and optional hard negatives, joined by id.

Ids are held as 64-bit keys and rows as numbers; texts stay in the files. Layout: Thakur et al.
2021, arXiv:2104.08663; `hard_negatives.<split>.jsonl` is this project's addition.
"""

import hashlib
import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.documents import DocumentTable, check_header, open_documents
from trainer.data.fields import BlankTextError, Row, RowError, check_string, shown
from trainer.data.ids import Identified, Ids, Lists, index_ids
from trainer.data.layouts import SetFolder, find_layout, part_files, short_name
from trainer.data.qrels import Qrels, open_qrels
from trainer.data.records import IrRecord
from trainer.data.scan import NUM_SHOWN_FAULTS, parsed_rows
from trainer.data.tables import Table, table_of
from trainer.errors import DataError

logger = logging.getLogger(__name__)

QUERY_IDS = ("_id", "id", "query_id", "qid", "query-id", "QUERY_ID")
QUERY_TEXTS = ("text", "query", "query_text", "question", "QUERY_TEXT")
"""Columns of a query; the first that a row has counts."""
MAX_GAIN = 10_000
"""Largest judgement that is scored by: they are grades, and trec_eval's memory grows with them."""


@dataclass(frozen=True, kw_only=True)
class BeirFolder:
    """The parts of a folder, checked, with texts still on disk."""

    place: SetFolder
    """Where its files are."""
    documents: DocumentTable
    """Rows `_id, title, text`."""
    queries: Table
    """Rows `_id, text`."""
    query_ids: Ids
    """Where each query is."""

    @property
    def folder(self) -> Path:
        """Absolute."""
        return self.place.path

    @property
    def corpus(self) -> Table:
        """Raw rows of the documents."""
        return self.documents.table

    @property
    def corpus_ids(self) -> Ids:
        """Where each document is."""
        return self.documents.ids

    def document(self, row: int) -> str:
        """Title and text of a document, joined by a space."""
        return self.documents.at(row)

    def query(self, row: int) -> str:
        """Text of a query, possibly blank."""
        fields = self.queries.row(row)
        return str(fields.values[fields.first(QUERY_TEXTS)])


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


def open_folder(place: SetFolder, split: str, *, skip: bool) -> BeirFolder:
    """Opens corpus and queries and checks each row.

    Args:
        place: where they are.
        split: whose documents and queries are taken where they stand apart.
        skip: leave malformed rows out.

    Raises:
        DataError: if a file is missing or empty, or a row is malformed.
    """
    layout = find_layout(place, split)
    corpus, queries = table_of(layout.corpus), table_of(layout.queries)
    check_header(queries, QUERY_IDS, QUERY_TEXTS)
    return BeirFolder(
        place=place,
        documents=open_documents(corpus, skip=skip),
        queries=queries,
        query_ids=index_ids(queries, _identified_query, skip=skip),
    )


def open_records(place: SetFolder, split: str, *, skip: bool) -> BeirRecords:
    """The training records of a split: judged queries with their positives and hard negatives.

    Raises:
        DataError: if a file is missing or empty, a row is malformed, or an id is unknown.
    """
    beir = open_folder(place, split, skip=skip)
    qrels = open_qrels(place, split)
    positives: dict[int, dict[int, None]] = {}
    judged: dict[int, dict[int, None]] = {}
    for _, (query, document, gain) in parsed_rows(qrels.table, _pair(beir, qrels), skip=skip):
        positives.setdefault(query, {})
        if gain > 0:
            positives[query][document] = None
        elif gain < 0 and qrels.names_negatives:
            judged.setdefault(query, {})[document] = None
    _check_positives(beir, positives, split)
    mined, mined_sha256 = _hard_negatives(beir, split, positives, skip=skip)
    parts = (beir.corpus.sha256, beir.queries.sha256, qrels.table.sha256, mined_sha256)
    return BeirRecords(
        folder=beir,
        query=np.fromiter(positives, np.int64),
        positives=Lists.of(positives.values()),
        negatives=Lists.of([*judged.get(query, ()), *mined.get(query, ())] for query in positives),
        sha256=hashlib.sha256("".join(parts).encode()).hexdigest(),
    )


def read_gains(beir: BeirFolder, split: str, *, skip: bool) -> dict[str, dict[str, int]]:
    """Graded judgements of a split: query id to document id to gain.

    Raises:
        DataError: if the file is missing or empty, a line is malformed, or an id is unknown.
    """
    qrels = open_qrels(beir.place, split)
    gains: dict[str, dict[str, int]] = {}
    for row, (_, _, gain) in parsed_rows(qrels.table, _grade(beir, qrels), skip=skip):
        found = qrels.judgement(row)
        gains.setdefault(found.query, {})[found.document] = gain
    return gains


def _judgement(beir: BeirFolder, qrels: Qrels) -> Callable[[int], tuple[int, int, int]]:
    """A function from qrels row to query row, corpus row and gain."""

    def parse(index: int) -> tuple[int, int, int]:
        found = qrels.judgement(index)
        query = beir.query_ids.row("query-id", found.query, _name(beir.queries))
        document = beir.corpus_ids.row("corpus-id", found.document, _name(beir.corpus))
        return query, document, found.gain

    return parse


def _grade(beir: BeirFolder, qrels: Qrels) -> Callable[[int], tuple[int, int, int]]:
    """As `_judgement`, and the gain must be one that metrics can take."""
    judgement = _judgement(beir, qrels)

    def parse(index: int) -> tuple[int, int, int]:
        query, document, gain = judgement(index)
        if gain > MAX_GAIN:
            raise RowError("score", str(gain), f"a grade of at most {MAX_GAIN}")
        return query, document, gain

    return parse


def _pair(beir: BeirFolder, qrels: Qrels) -> Callable[[int], tuple[int, int, int]]:
    """As `_judgement`, and both texts must have something in them, as training needs."""
    judgement = _judgement(beir, qrels)

    def parse(index: int) -> tuple[int, int, int]:
        query, document, gain = judgement(index)
        is_used = gain > 0 or (gain < 0 and qrels.names_negatives)
        if beir.query_ids.is_blank(query):
            raise RowError("query-id", shown(qrels.judgement(index).query), "a query with text")
        if is_used and beir.corpus_ids.is_blank(document):
            name = qrels.judgement(index).document
            raise RowError("corpus-id", shown(name), "a document with text")
        return query, document, gain

    return parse


def _check_positives(beir: BeirFolder, positives: Mapping[int, object], split: str) -> None:
    for query, documents in positives.items():
        if not documents:
            fields = beir.queries.row(query)
            name = fields.identifier(fields.first(QUERY_IDS))
            raise DataError(
                f"{beir.folder}/qrels/{split}.tsv: query-id = {name}; expected at least one "
                "document with a score above 0. Judge one, or remove the query's lines."
            )


def _hard_negatives(
    beir: BeirFolder, split: str, positives: Mapping[int, Container[int]], *, skip: bool
) -> tuple[dict[int, np.ndarray], str]:
    """Corpus rows of each query's hard negatives without its judged positives, and a digest."""
    files = part_files(beir.folder, (f"hard_negatives.{split}",))
    if not files:
        return {}, ""
    table = table_of(files)
    dropped: list[RowError] | None = [] if skip else None
    mined: dict[int, np.ndarray] = {}
    for _, (query, documents) in parsed_rows(table, _mined(beir, table, dropped), skip=skip):
        if query in positives:
            judged = positives[query]
            kept = [row for row in dict.fromkeys(documents) if row not in judged]
            mined[query] = np.array(kept, np.int64)
    for fault in (dropped or ())[:NUM_SHOWN_FAULTS]:
        logger.warning("left out, one of %d: %s: %s", len(dropped or ()), table.name, fault)
    return mined, table.sha256


def _mined(
    beir: BeirFolder, table: Table, dropped: list[RowError] | None
) -> Callable[[int], tuple[int, list[int]]]:
    """A function from hard-negatives row to query row and corpus rows."""

    def parse(index: int) -> tuple[int, list[int]]:
        row = table.row(index, dropped)
        query = beir.query_ids.row("query_id", row.identifier("query_id"), _name(beir.queries))
        items = enumerate(row.items("negatives"))
        fields = {f"negatives[{at}]": value for at, value in items}
        names = list(map(Row(fields).identifier, fields))
        rows, known = beir.corpus_ids.find(names)
        for at in np.flatnonzero(~known)[:1]:
            expected = f"an _id of {_name(beir.corpus)}"
            raise RowError(f"negatives[{at}]", shown(names[at]), expected)
        for at in np.flatnonzero(np.isin(rows, beir.corpus_ids.blank)):
            row.drop(BlankTextError(f"negatives[{at}]", shown(names[at]), "a document with text"))
        return query, rows[~np.isin(rows, beir.corpus_ids.blank)].tolist()

    return parse


def _name(table: Table) -> str:
    return short_name(table.files[0].name)


def _identified_query(row: Row) -> Identified:
    field = row.first(QUERY_TEXTS)
    text = check_string(field, row.require(field, "a text"))
    return Identified(row.identifier(row.first(QUERY_IDS)), not text.strip())
