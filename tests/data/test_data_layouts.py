"""Folders with corpus, queries and judgements in the layouts that people have of them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.data.test_data_formats import caches as caches  # a fixture: caches of each test alone
from tests.support.data_files import all_records, ir_source, write_beir, write_jsonl, write_qrels
from trainer.data.evalsets import open_eval_set
from trainer.data.ir import IrEvalSet
from trainer.data.records import IrRecord
from trainer.errors import DataError
from trainer.recipe.schema import DataRecipe, EvalSetRecipe

GAINS = [("q1", "d1", 2), ("q1", "d2", 0), ("q2", "d3", 1)]
RECORDS = [
    IrRecord(query="first", positives=("one",)),
    IrRecord(query="second", positives=("three",)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three documents, two judged queries."""
    corpus = {"d1": "one", "d2": "two", "d3": "three"}
    made = write_beir(tmp_path / "set", corpus=corpus, queries={"q1": "first", "q2": "second"})
    write_qrels(made, "dev", GAINS)
    return made


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def columns(path: Path, target: Path) -> None:
    """The rows of a JSONL file in a Parquet file; the first is removed."""
    target.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_of(path)), target)
    path.unlink()


def trec(folder: Path, between: str, suffix: str = ".tsv") -> None:
    (folder / "qrels" / "dev.tsv").unlink()
    lines = (between.join((query, "0", document, str(gain))) for query, document, gain in GAINS)
    (folder / "qrels" / f"dev{suffix}").write_text("".join(f"{line}\n" for line in lines))


def packed(folder: Path) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv"):
        path = folder / name
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def renamed(folder: Path, old: str, new: str, names: tuple[str, ...] = ("corpus",)) -> None:
    for name in names:
        path = folder / f"{name}.jsonl"
        path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))


def mteb_lines(folder: Path) -> None:
    (folder / "qrels" / "dev.tsv").unlink()
    write_jsonl(
        folder / "qrels" / "dev.jsonl",
        [{"query-id": q, "corpus-id": d, "score": gain} for q, d, gain in GAINS],
    )


def mteb_shards(folder: Path) -> None:
    mteb_lines(folder)
    columns(folder / "corpus.jsonl", folder / "corpus" / "corpus-00000-of-00001.parquet")
    columns(folder / "queries.jsonl", folder / "queries" / "queries-00000-of-00001.parquet")
    columns(folder / "qrels" / "dev.jsonl", folder / "default" / "dev-00000-of-00001.parquet")
    (folder / "qrels").rmdir()


def columnar(folder: Path) -> None:
    for name in ("corpus", "queries"):
        columns(folder / f"{name}.jsonl", folder / f"{name}.parquet")


def capitals(folder: Path) -> None:
    (folder / "corpus.jsonl").rename(folder / "corpus.JSONL")
    (folder / "qrels" / "dev.tsv").rename(folder / "qrels" / "dev.TSV")


def flat(folder: Path) -> None:
    (folder / "qrels" / "dev.tsv").rename(folder / "qrels.dev.tsv")
    (folder / "qrels.dev.small.tsv").write_text("q1\td3\t1\n")
    (folder / "qrels").rmdir()


def wide(folder: Path) -> None:
    for path in (folder / "corpus.jsonl", folder / "qrels" / "dev.tsv"):
        path.write_bytes(("\ufeff" + path.read_text()).encode("utf-16-le"))


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "standard": lambda folder: None,
    "trec by spaces": lambda folder: trec(folder, " "),
    "trec by tabs": lambda folder: trec(folder, "\t"),
    "trec by both": lambda folder: trec(folder, " \t "),
    "trec as text": lambda folder: trec(folder, " ", ".txt"),
    "packed": packed,
    "id": lambda folder: renamed(folder, "_id", "id", ("corpus", "queries")),
    "docid": lambda folder: renamed(folder, "_id", "docid"),
    "contents": lambda folder: renamed(folder, "text", "contents"),
    "mteb in lines": mteb_lines,
    "mteb in shards": mteb_shards,
    "columnar": columnar,
    "capitals": capitals,
    "flat": flat,
    "utf-16": wide,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_set_and_records(folder: Path, name: str) -> None:
    LAYOUTS[name](folder)
    found = open_eval_set(
        EvalSetRecipe(name="x", task="ir", path=str(folder)), DataRecipe(sources=())
    )
    assert isinstance(found, IrEvalSet)
    assert found.qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"d3": 1}}
    assert found.corpus_ids == ("d1", "d2", "d3")
    assert list(found.corpus) == ["one", "two", "three"]
    assert found.queries == ("first", "second")
    assert all_records(ir_source(folder, split="dev")) == RECORDS


@pytest.mark.parametrize("with_negatives", [True, False])
def test_arctic_files_name_hard_negatives_too(tmp_path: Path, with_negatives: bool) -> None:
    def write(name: str, **values: object) -> None:
        arrays = {
            key: pyarrow.array(np.array(of, np.uint64 if key.endswith("ID") else None))
            for key, of in values.items()
        }
        pyarrow.parquet.write_table(pyarrow.table(arrays), tmp_path / f"{name}.parquet")

    ids = [2**64 - 1, 7, 8]  # hashes, which take all of 64 bits
    write("queries", QUERY_ID=[1, 2], QUERY_TEXT=["first", "second"])
    write("documents", DOCUMENT_ID=ids, DOCUMENT_TEXT=["one", "two", "three"])
    judged = {"QUERY_ID": [1, 2], "DOCUMENT_ID": [ids[0], ids[2]]}
    if with_negatives:
        judged = {"QUERY_ID": [1, 1, 2], "DOCUMENT_ID": ids, "RELEVANCE": [1, -1, 1]}
    write("labels", **judged)
    first = IrRecord(query="first", positives=("one",), negatives=("two",) * with_negatives)
    assert all_records(ir_source(tmp_path)) == [first, RECORDS[1]]


def test_a_trec_line_of_another_length_is_named(folder: Path) -> None:
    trec(folder, " ")
    with (folder / "qrels" / "dev.tsv").open("a") as file:
        file.write("q1 d1 1\n")
    with pytest.raises(DataError, match=r"dev\.tsv:4: line = .*; expected query, iteration, docu"):
        all_records(ir_source(folder, split="dev"))


def test_plain_files_come_before_packed_ones(folder: Path) -> None:
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "d9", "text": "stale"}\n'))
    assert all_records(ir_source(folder, split="dev")) == RECORDS


def test_splits_of_every_kind_are_listed(folder: Path) -> None:
    mteb_lines(folder)
    (folder / "qrels" / "test.txt").write_text("q1 0 d1 1\n")
    with pytest.raises(DataError, match=r"split = train; expected one of .*: dev, test\. Correct"):
        all_records(ir_source(folder))


@pytest.mark.parametrize("names", [("corpus-0", "corpus-1"), ("corpus_00", "corpus_01")])
def test_shards_of_a_corpus_need_no_count(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = write_beir(tmp_path / "beir", corpus={"d0": "zero"}, queries={"q": "query"})
    write_qrels(folder, "train", [("q", "d0", 1), ("q", "d1", 1)])
    (folder / "corpus.jsonl").rename(folder / f"{names[0]}.jsonl")
    write_jsonl(folder / f"{names[1]}.jsonl", [{"_id": "d1", "title": "", "text": "one"}])
    assert all_records(ir_source(folder)) == [IrRecord(query="query", positives=("zero", "one"))]


def test_shards_of_a_corpus_beside_rows_are_no_rows(tmp_path: Path) -> None:
    for number in (0, 1):
        write_jsonl(tmp_path / f"corpus-{number}.jsonl", [{"docid": f"d{number}", "text": "x"}])
    row = {"query_id": "1", "query_text": "q", "positive_document_ids": ["d1"],
           "negative_document_ids": ["d0"]}  # fmt: skip
    write_jsonl(tmp_path / "train.jsonl", [row])
    expected = [IrRecord(query="q", positives=("x",), negatives=("x",))]
    assert all_records(ir_source(tmp_path)) == expected


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("corpus", r"corpus\.tsv:1: columns = a \"text\", d0; expected a header that names _id "),
        ("queries", r"queries\.tsv:1: columns = a \"text\", d0; .*Write a first line with the na"),
    ],
)
def test_documents_without_a_header_say_so(tmp_path: Path, file: str, message: str) -> None:
    folder = write_beir(tmp_path / "beir", corpus={"d0": "zero"}, queries={"q": "query"})
    write_qrels(folder, "train", [("q", "d0", 1)])
    (folder / f"{file}.jsonl").unlink()
    (folder / f"{file}.tsv").write_text('d0\ta "text"\nd1\tmore\n')
    with pytest.raises(DataError, match=message):
        all_records(ir_source(folder))
