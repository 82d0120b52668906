"""Delimited files without a header: no row is lost as column names, and published ones are read."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.test_data_formats import caches as caches  # a fixture: caches of each test alone
from tests.data.test_data_formats import records_of
from tests.support.data_files import (
    ir_source,
    labels_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data import table_scan
from trainer.data.evalsets import open_eval_set
from trainer.data.records import IrRecord, StsRecord
from trainer.data.sources import open_source
from trainer.errors import DataError, RecipeError
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import DataRecipe, EvalSetRecipe

THREE = [IrRecord(query=f"q{n}", positives=(f"p{n}",), negatives=(f"n{n}",)) for n in (1, 2, 3)]
LCQMC = "A man, a plan\tA plan\t1\nSome text\tAnother\t0\n"
PAIRS = [
    StsRecord(text1="A man, a plan", text2="A plan", score=1.0),
    StsRecord(text1="Some text", text2="Another", score=0.0),
]
STSBENCHMARK = (
    "main-captions\tMSRvid\t2012test\t0001\t5.000\tA plane, taking off.\tAn air plane.\n"
    'main-forums\tdeft\t2013\t0004\t3.800\t"Never again, he said.\tHe said no.\tLDC\thttp://x\n'
    'main-news\theadlines\t2015\t0007\t0.5\tA dog ran."\tA cat.\n'
)


@pytest.mark.parametrize(("suffix", "between"), [("tsv", "\t"), ("csv", ","), ("csv", ";")])
def test_no_first_row_is_lost_by_order(tmp_path: Path, suffix: str, between: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text("".join(f"q{n}\tp{n}\tn{n}\n" for n in (1, 2, 3)).replace("\t", between))
    message = rf"a\.{suffix}:1: data\.sources\.set\.header = \(missing\) .*\"q1\", .* or false if"
    with pytest.raises(DataError, match=message):
        records_of(path, "ir", format="by-order")
    assert records_of(path, "ir", format="by-order", header=False) == THREE
    assert records_of(path, "ir", format="by-order", header=True) == THREE[1:]
    names = {"query": "column_1", "positive": "column_2", "negative": "column_3"}
    assert records_of(path, "ir", header=False, columns=names) == THREE


@pytest.mark.parametrize("name", ["lcqmc.tsv", "lcqmc.csv"])
def test_pairs_with_a_score_need_no_header(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(LCQMC)
    with pytest.raises(DataError, match=r"is none, set data\.sources\.set\.header=false\.$"):
        records_of(path, "sts")
    assert records_of(path, "sts", format="by-order", header=False) == PAIRS
    names = {"sentence1": "column_1", "sentence2": "column_2", "score": "column_3"}
    assert records_of(path, "sts", header=False, columns=names) == PAIRS
    held_out = EvalSetRecipe(name="dev", task="sts", path=str(path), header=False, columns=names)
    found = open_eval_set(held_out, DataRecipe(sources=()))
    assert (found.text1, found.score) == (("A man, a plan", "Some text"), (1.0, 0.0))
    with pytest.raises(DataError, match=r"columns = column_1, .*\.columns: \{.*: COLUMN.*by-order"):
        records_of(path, "sts", header=False)


def test_a_first_row_that_cannot_be_a_header_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("The same\tThe same\t5\nA\tB\t1\n")
    with pytest.raises(
        DataError, match=r"each once\. Correct .*set data\.sources\.set\.header=fal"
    ):
        records_of(path, "sts")
    assert len(records_of(path, "sts", format="by-order", header=False)) == 2
    path.write_text(LCQMC)
    with pytest.raises(DataError, match=r"expected .* of format sentence-tr.*header=false\.$"):
        records_of(path, "sts", format="sentence-transformers")


def test_a_score_that_is_none_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tother\tscore\nA\tB\t1\n")
    with pytest.raises(DataError, match=r'a\.tsv:1: column_3 = "score"; expected a number'):
        records_of(path, "sts", format="by-order", header=False)


def test_labelled_texts_need_no_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("one,x\ntwo,x\nthree,y\nfour,y\n")
    names = {"text": "column_1", "label": "column_2"}
    source = open_source(labels_source(path, header=False, columns=names), ".")
    assert [source.record(row).text for row in range(len(source))] == [
        "one", "two", "three", "four"
    ]  # fmt: skip


def test_stsbenchmark_is_read_as_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "sts-train.csv"
    path.write_text(STSBENCHMARK)
    message = r"`stsbenchmark` takes tab-separated files without a header line \(genre, filename, "
    with pytest.raises(DataError, match=message):
        records_of(path, "sts")
    assert records_of(path, "sts", format="stsbenchmark") == [
        StsRecord(text1="A plane, taking off.", text2="An air plane.", score=1.0),
        StsRecord(text1='"Never again, he said.', text2="He said no.", score=0.76),
        StsRecord(text1='A dog ran."', text2="A cat.", score=0.1),
    ]
    path.write_text(f"{STSBENCHMARK}too\tfew\n")
    with pytest.raises(DataError, match=r"sts-train\.csv:4: row = 2 fields; expected 7: genre"):
        records_of(path, "sts", format="stsbenchmark")


def test_a_cached_check_of_a_large_table_follows_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_scan, "CACHE_FROM_ROWS", 1)
    path = tmp_path / "a.csv"
    path.write_text("a,b\nc,d\ne,f\n")
    sources = [
        open_source(ir_source(path, format="by-order", header=header), ".")
        for header in (True, False)
    ]
    assert [len(source) for source in sources] == [2, 3]
    assert sources[0].identity != sources[1].identity


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rows that name their fields": (
        {"path": "a.jsonl"},
        r"a\.jsonl: data\.sources\.set\.header = ",
    ),
    "a BEIR folder": ({"path": "beir"}, r"data\.sources\.set\.header = false; expected nothing fo"),
    "a header in a format without": (
        {"path": "a.tsv", "format": "msmarco-triples", "header": True},
        r"header = true; expected false or nothing for format msmarco-triples",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_header_that_would_be_ignored_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"query": "a", "positive": "b"}])
    write_beir(tmp_path / "beir", corpus={"d": "text"}, queries={"q": "query"})
    write_qrels(tmp_path / "beir", "train", [("q", "d", 1)])
    (tmp_path / "a.tsv").write_text("query\tpositive\tnegative\na\tb\tc\n")
    options = {"header": False, **changes}
    with pytest.raises(DataError, match=message):
        records_of(tmp_path / options.pop("path"), "ir", **options)


def test_a_set_of_the_hub_takes_no_header(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\noutput_dir: o\nmodel: {path: m}\n"
        "train: {max_steps: 1, learning_rate: 1.0e-5}\n"
        "data: {sources: [{name: a, task: ir, hub: o/s, header: false}]}\n"
        "tasks: {ir: {global_batch_size: 2}}\n"
    )
    with pytest.raises(RecipeError, match=r"data\.sources\.0\.header = false; expected null witho"):
        load_recipe(path)
