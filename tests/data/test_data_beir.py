"""BEIR folders: records, evaluation sets, overlaps, and every malformed line named."""

from dataclasses import replace

import pytest

from tests.support.data_files import (
    GOOD_IR,
    GOOD_STS,
    all_records,
    ir_source,
    sts_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data.evalsets import open_eval_set
from trainer.data.ir import IrEvalSet
from trainer.data.overlap import count_overlaps, warn_of_overlaps
from trainer.data.records import IrRecord
from trainer.data.sources import open_source, open_sources
from trainer.errors import DataError
from trainer.recipe.schema import DataRecipe, EvalSetRecipe


@pytest.fixture
def beir(tmp_path):
    """Three documents, two judged queries, mined negatives with a judged one among them."""
    folder = write_beir(
        tmp_path / "beir",
        corpus={"d1": "one", "d2": "two", "d3": "three", "d4": ""},
        queries={"q1": "first", "q2": "second", "q3": ""},
    )
    (folder / "corpus.jsonl").open("a").write('{"_id": 5, "title": "Five", "text": "fifth"}\n')
    write_qrels(
        folder, "train", [("q1", "d1", 2), ("q1", "d2", 0), ("q2", "5", 1), ("q1", "d3", 1)]
    )
    write_qrels(folder, "dev", [("q2", "d1", 2), ("q3", "d2", 1), ("q2", "d2", 0)])
    mined = [
        {"query_id": "q1", "negatives": ["d2", "d3", "d2"]},
        {"query_id": "q3", "negatives": []},
    ]
    write_jsonl(folder / "hard_negatives.train.jsonl", mined)
    return folder


def test_beir_folders_give_one_record_per_judged_query(beir):
    assert all_records(ir_source(beir)) == [
        IrRecord(query="first", positives=("one", "three"), negatives=("two",)),
        IrRecord(query="second", positives=("Five fifth",)),
    ]


def test_beir_evaluation_keeps_gains_and_the_whole_corpus(beir, tmp_path):
    held_out = EvalSetRecipe(name="dev", task="ir", path="beir")
    found = open_eval_set(held_out, DataRecipe(sources=(), root=str(tmp_path)))
    assert isinstance(found, IrEvalSet)
    assert found.query_ids == ("q2", "q3")
    assert found.queries == ("second", "")
    assert found.corpus_ids == ("d1", "d2", "d3", "d4", "5")
    assert list(found.corpus) == ["one", "two", "three", "", "Five fifth"]
    assert found.qrels == {"q2": {"d1": 2, "d2": 0}, "q3": {"d2": 1}}


def test_evaluation_sets_of_the_wrong_kind_are_refused(beir, tmp_path):
    data = DataRecipe(sources=(), root=str(tmp_path))
    write_jsonl(tmp_path / "a.jsonl", [GOOD_IR])
    with pytest.raises(DataError, match=r"eval\.sets\.x: path = a\.jsonl; expected a BEIR folder"):
        open_eval_set(EvalSetRecipe(name="x", task="ir", path="a.jsonl"), data)
    with pytest.raises(DataError, match=r"eval\.sets\.x: path = beir; expected a file of scored"):
        open_eval_set(EvalSetRecipe(name="x", task="sts", path="beir"), data)
    with pytest.raises(DataError, match=r"data\.sources\.set: task = sts; expected ir"):
        open_source(sts_source(beir), ".")


SPOILED_BEIR = {
    "document without id": ("corpus.jsonl", '{"text": "x"}', r"corpus\.jsonl:6: _id = nothing"),
    "document without text": ("corpus.jsonl", '{"_id": "x"}', r"corpus\.jsonl:6: text = nothing"),
    "number as text": ("corpus.jsonl", '{"_id": "x", "text": 1}', r"corpus\.jsonl:6: text = 1"),
    "number as title": (
        "corpus.jsonl",
        '{"_id": "x", "title": 2, "text": "t"}',
        r"corpus\.jsonl:6: title = 2; expected a text",
    ),
    "half a surrogate": (
        "corpus.jsonl",
        '{"_id": "x", "text": "\\ud800"}',
        r"corpus\.jsonl:6: text = .*; expected valid Unicode",
    ),
    "document id twice": (
        "corpus.jsonl",
        '{"_id": "d1", "text": "x"}',
        r'corpus\.jsonl:6: _id = "d1"; expected a new id',
    ),
    "query id twice": (
        "queries.jsonl",
        '{"_id": "q1", "text": "x"}',
        r'queries\.jsonl:4: _id = "q1"; expected a new id',
    ),
    "query not json": ("queries.jsonl", "{", r"queries\.jsonl:4: row = .*; expected JSON"),
    "unknown query": (
        "qrels/train.tsv",
        "qX\td1\t1",
        r'train\.tsv:6: query-id = "qX"; expected an',
    ),
    "unknown document": (
        "qrels/train.tsv",
        "q1\tdX\t1",
        r'train\.tsv:6: corpus-id = "dX"; expecte',
    ),
    "word as gain": (
        "qrels/train.tsv",
        "q1\td1\thigh",
        r'train\.tsv:6: score = "high"; expected a',
    ),
    "half a gain": (
        "qrels/train.tsv",
        "q1\td1\t0.5",
        r"train\.tsv:6: score = 0.5; expected a whol",
    ),
    "two fields": (
        "qrels/train.tsv",
        "q1\td1",
        r"train\.tsv:6: line = .*; expected query-id, corp",
    ),
    "spaces for tabs": ("qrels/train.tsv", "q1 d1 1", r"train\.tsv:6: line = .*tab-separated"),
    "blank query judged": ("qrels/train.tsv", "q3\td1\t1", r'train\.tsv:6: query-id = "q3".*text'),
    "blank positive": (
        "qrels/train.tsv",
        "q1\td4\t1",
        r'train\.tsv:6: corpus-id = "d4".*with text',
    ),
    "unknown mined": (
        "hard_negatives.train.jsonl",
        '{"query_id": "q2", "negatives": ["d1", "dX"]}',
        r'train\.jsonl:3: negatives\[1\] = "dX"; expected an _id of corpus\.jsonl',
    ),
    "mined for nobody": (
        "hard_negatives.train.jsonl",
        '{"query_id": "qX", "negatives": []}',
        r'train\.jsonl:3: query_id = "qX"; expected an _id of queries\.jsonl',
    ),
    "mined is no list": (
        "hard_negatives.train.jsonl",
        '{"query_id": "q2", "negatives": "d1"}',
        r'train\.jsonl:3: negatives = "d1"; expected a list',
    ),
}


@pytest.mark.parametrize(("file", "line", "message"), SPOILED_BEIR.values(), ids=SPOILED_BEIR)
def test_a_spoiled_beir_line_is_named(beir, file, line, message):
    with (beir / file).open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(DataError, match=message):
        open_source(ir_source(beir), ".")


def test_a_repeated_id_is_refused_or_its_first_row_taken(beir, caplog):
    with (beir / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d1", "text": "again"}\n')
    held_out = EvalSetRecipe(name="docs", task="ir", path=str(beir))
    with pytest.raises(DataError, match=r'corpus\.jsonl:6: _id = "d1"; expected a new id'):
        open_eval_set(held_out, DataRecipe(sources=()))
    opened = open_eval_set(held_out, DataRecipe(sources=(), on_bad_row="skip"))
    assert opened.corpus_ids == ("d1", "d2", "d3", "d4", "5")
    assert opened.corpus[0] == "one"
    assert "1 rows that repeat an id" in caplog.text


def test_a_gain_that_no_metric_can_take_is_refused_for_scoring_only(beir):
    write_qrels(beir, "dev", [("q1", "d1", 4294967297)])
    held_out = EvalSetRecipe(name="docs", task="ir", path=str(beir))
    with pytest.raises(DataError, match=r"dev\.tsv:2: score = 4294967297; expected a grade of at"):
        open_eval_set(held_out, DataRecipe(sources=()))
    assert len(all_records(ir_source(beir, split="dev"))) == 1


def test_pairs_of_one_score_are_refused(tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [GOOD_STS, GOOD_STS])
    held_out = EvalSetRecipe(name="p", task="sts", path=str(tmp_path / "pairs.jsonl"))
    with pytest.raises(DataError, match=r"eval.sets.p: path = .*pairs.jsonl, 2 pairs, all of one"):
        open_eval_set(held_out, DataRecipe(sources=()))


def test_a_first_line_that_is_no_header_is_read(beir):
    (beir / "qrels" / "dev.tsv").write_text("q1\td1\t-2\nq1\td2\t1\n")
    held_out = EvalSetRecipe(name="docs", task="ir", path=str(beir))
    assert open_eval_set(held_out, DataRecipe(sources=())).qrels == {"q1": {"d1": -2, "d2": 1}}
    (beir / "qrels" / "dev.tsv").write_text("q1\td1\tone\nq1\td2\t1\n")
    with pytest.raises(DataError, match=r'dev\.tsv:1: score = "one"; expected a number'):
        open_eval_set(held_out, DataRecipe(sources=()))


def test_a_query_without_positives_is_named(beir):
    write_qrels(beir, "train", [("q1", "d1", 1), ("q2", "d2", 0)])
    with pytest.raises(DataError, match=r"train\.tsv: query-id = q2; expected at least one doc"):
        open_source(ir_source(beir), ".")


def test_missing_parts_of_a_beir_folder_are_named(beir):
    with pytest.raises(DataError, match=r"test\.tsv: split = test; expected one of .*: dev, train"):
        open_source(ir_source(beir, split="test"), ".")
    write_qrels(beir, "train", [])
    with pytest.raises(DataError, match=r"train\.tsv: rows = 0"):
        open_source(ir_source(beir), ".")
    (beir / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"queries\.jsonl: No such file"):
        open_source(ir_source(beir), ".")


def test_sources_open_together_and_are_described(beir, caplog):
    data = DataRecipe(sources=(ir_source(beir), ir_source(beir)))
    with caplog.at_level("INFO"):
        assert [len(source) for source in open_sources(data)] == [2, 2]
    assert "source set: beir, 2 queries of split train, 5 documents" in caplog.text


def test_training_rows_that_are_evaluated_on_are_counted(beir, tmp_path, caplog):
    write_jsonl(
        tmp_path / "a.jsonl", [GOOD_STS, {"text1": "b", "text2": "a", "score": 0}, GOOD_STS]
    )
    write_jsonl(tmp_path / "b.jsonl", [{**GOOD_STS, "text1": "x", "score": 0}, GOOD_STS])
    write_jsonl(tmp_path / "c.jsonl", [GOOD_IR, {**GOOD_IR, "query": "second"}])
    recipes = [sts_source("a.jsonl"), ir_source("c.jsonl"), ir_source("beir")]
    recipes = [replace(recipe, name=f"s{i}") for i, recipe in enumerate(recipes)]
    data = DataRecipe(sources=tuple(recipes), root=str(tmp_path))
    sets = {
        "pairs": open_eval_set(EvalSetRecipe(name="pairs", task="sts", path="b.jsonl"), data),
        "search": open_eval_set(EvalSetRecipe(name="search", task="ir", path="beir"), data),
    }
    sources = open_sources(data)
    expected = {("s0", "pairs"): 3, ("s1", "search"): 1, ("s2", "search"): 1}
    assert count_overlaps(sources, sets) == expected
    warn_of_overlaps(sources, sets)
    assert "data.sources.s0: 3 rows are also in eval.sets.pairs" in caplog.text
