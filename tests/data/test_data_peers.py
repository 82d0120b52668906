"""Training files in the shapes that other projects publish become the same records."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_data_formats import caches as caches  # a fixture: caches of each test alone
from tests.data.test_data_formats import records_of, write_as
from tests.support.data_files import write_jsonl
from trainer.data.records import IrRecord, StsRecord
from trainer.data.sources import open_source
from trainer.errors import DataError
from trainer.recipe.schema import SourceRecipe

TWO = [
    IrRecord(query="q1", positives=("p1",), negatives=("n1", "n2")),
    IrRecord(query="q2", positives=("p2",), negatives=("n3",)),
]
BARE = [IrRecord(query=one.query, positives=one.positives) for one in TWO]


def chat(text: str, system: str = "") -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


SHAPES: dict[str, list[Any]] = {
    "mined triplets": [
        {"query": "q1", "answer": "p1", "negative_1": "n1", "negative_2": "n2"},
        {"query": "q2", "answer": "p2", "negative_1": "n3", "negative_2": None},
    ],
    "query, positive, list": [
        {"query": "q1", "positive": "p1", "negative": ["n1", "n2"], "scores": [1, 0, 0]},
        {"query": "q2", "positive": "p2", "negative": "n3"},
    ],
    "anchor, lists": [
        {"anchor": "q1", "positive": ["p1"], "negatives": ["n1", "n2"], "negative_scores": [1, 2]},
        {"anchor": "q2", "positive": ["p2"], "negatives": ["n3"]},
    ],
    "question with margins": [
        {"question": "q1", "answer": "p1", "negative1": "n1", "negative2": "n2", "label": 3.5},
        {"question": "q2", "answer": "p2", "negative1": "n3", "label": -1.0},
    ],
    "labelled list": [
        {"query": "q1", "passage": ["n1", "p1", "n2"], "labels": [0, 1, 0]},
        {"query": "q2", "passage": ["p2", "n3"], "labels": [1.0, 0.0]},
    ],
    "swift chat": [
        {
            "messages": chat("q1", "find"),
            "positive_messages": [chat("p1")],
            "negative_messages": [chat("n1"), chat("n2")],
        },
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "q2"}]}],
            "positive_messages": chat("p2"),
            "negative_messages": [chat("n3")],
            "label": 1,
        },
    ],
    "swift": [
        {"query": "q1", "response": "p1", "rejected_response": ["n1", "n2"]},
        {"query": "q2", "response": "p2", "rejected_response": "n3"},
    ],
    "tevatron 2 with texts": [
        {
            "query_text": "q1",
            "positive_passages": [{"docid": "1", "text": "p1"}],
            "negative_passages": [{"text": "n1"}, {"text": "n2"}],
        },
        {
            "query_text": "q2",
            "positive_passages": [{"text": "p2"}],
            "negative_passages": [{"text": "n3"}],
        },
    ],
    "dpr": [
        {
            "question": "q1",
            "answers": ["a"],
            "positive_ctxs": [{"title": "", "text": "p1", "score": 1000, "passage_id": "1"}],
            "hard_negative_ctxs": [{"title": None, "text": "n1"}, {"text": "n2"}],
            "negative_ctxs": [{"text": "easy"}],
        },
        {
            "question": "q2",
            "positive_ctxs": [{"text": "p2"}],
            "hard_negative_ctxs": [],
            "negative_ctxs": [{"text": "n3"}],
        },
    ],
    "texts": [["q1", "p1", "n1", "n2"], ["q2", "p2", "n3"]],
    "gritlm": [
        {"query": ["find", "q1"], "pos": [["", "p1"]], "neg": [["", "n1"], ["", "n2"]]},
        {"query": ["find", "q2"], "pos": [["read", "p2"]], "neg": [["n3"]]},
    ],
    "medi": [
        {"query": ["find", "q1"], "pos": ["", "p1"], "neg": [["", "n1"], ["", "n2"]]},
        {"query": ["find", "q2"], "pos": ["read", "p2"], "neg": ["", "n3"], "task_name": "x"},
    ],
    "nomic": [
        {
            "title": "q1",
            "body": "p1",
            "others": ["n1", "n2"],
            "metadata": {"objective": {"self": [], "triplet": [["title", "body", "others"]]}},
        },
        {
            "title": "q2",
            "body": "p2",
            "others": ["n3"],
            "metadata": {"objective": {"paired": [], "triplet": [["title", "body", "others"]]}},
        },
    ],
    "flag-embedding": [
        {"query": "q1", "pos": ["p1"], "neg": ["n1", "n2"], "type": "normal"},
        {"query": "q2", "pos": ["p2"], "neg": ["n3", "n4"], "type": "only_1neg"},
    ],
}
PAIRS: dict[str, list[Any]] = {
    "answers": [{"query": "q1", "answer": "p1"}, {"query": "q2", "answer": "p2", "label": 1}],
    "nomic": [
        {"query": q, "document": p, "metadata": {"objective": {"paired": [["query", "document"]]}}}
        for q, p in (("q1", "p1"), ("q2", "p2"))
    ],
    "documents": [{"query": "q1", "document": "p1"}, {"query": "q2", "document": "p2"}],
    "texts": [["q1", "p1"], ["q2", "p2"]],
    "sets": [{"set": ["q1", "p1"]}, {"set": ["q2", "p2"]}],
    "pos alone": [{"query": "q1", "pos": ["p1"]}, {"query": "q2", "pos": ["p2"]}],
    "swift": [{"query": "q1", "response": "p1"}, {"query": "q2", "response": "p2", "label": 1.0}],
}


def _texts_of(path: Path) -> list[IrRecord]:
    """The records without a teacher's scores, which some shapes have."""
    bare = {"positive_scores": None, "negative_scores": None}
    return [replace(one, **bare) for one in records_of(path, "ir")]  # type: ignore[type-var]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".jsonl.gz"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_with_negatives(tmp_path: Path, shape: str, kind: str) -> None:
    assert _texts_of(_written(tmp_path, SHAPES[shape], kind)) == TWO


@pytest.mark.parametrize("shape", PAIRS)
def test_shapes_of_pairs(tmp_path: Path, shape: str) -> None:
    assert records_of(_written(tmp_path, PAIRS[shape], ".jsonl"), "ir") == BARE


@pytest.mark.parametrize(
    "shape", [name for name in SHAPES if name not in ("texts", "gritlm", "medi", "swift chat",
                                              "query, positive, list", "swift")]
)  # fmt: skip
def test_shapes_in_parquet(tmp_path: Path, shape: str) -> None:
    assert _texts_of(write_as(".parquet", tmp_path, SHAPES[shape])) == TWO


def _written(folder: Path, rows: list[Any], kind: str) -> Path:
    path = folder / f"rows{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_bytes(gzip.compress(lines) if kind.endswith(".gz") else lines)
    return path


SCORED: dict[str, list[Any]] = {
    "label": [{"sentence1": "a", "sentence2": "b", "label": 0.5}],
    "score before label": [{"sentence1": "a", "sentence2": "b", "label": 3, "score": 0.5}],
    "sick": [{"sentence_A": "a", "sentence_B": "b", "relatedness_score": 0.5}],
    "own with a label": [{"text1": "a", "text2": "b", "label": "0.5"}],
    "swift chat": [{"messages": chat("a"), "positive_messages": [chat("b")], "label": 0.5}],
    "swift": [{"query": "a", "response": "b", "label": 0.5}],
}


@pytest.mark.parametrize("shape", SCORED)
def test_shapes_of_scored_pairs(tmp_path: Path, shape: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", SCORED[shape])
    assert records_of(path, "sts") == [StsRecord(text1="a", text2="b", score=0.5)]


def test_tevatron_ids_are_joined_with_the_corpus_beside(tmp_path: Path) -> None:
    rows = [
        {
            "query_id": n,
            "query_text": f"q{n}",
            "query_image": None,
            "positive_document_ids": [f"p{n}"],
            "negative_document_ids": negatives,
            "answer": None,
        }
        for n, negatives in ((1, ["n1", 2]), (2, ["n3"]))
    ]
    corpus = [{"docid": name, "text": name, "image": None} for name in ("p1", "p2", "n1", "n3")]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=r"data\.sources\.set: .*corpus\.jsonl = missing; expected"):
        records_of(path, "ir")
    write_jsonl(tmp_path / "corpus.jsonl", [*corpus, {"docid": 2, "text": "n2"}])
    assert records_of(path, "ir") == TWO
    assert records_of(tmp_path, "ir") == TWO
    source = open_source(SourceRecipe(name="x", task="ir", path=str(path)), ".")
    write_jsonl(tmp_path / "corpus.jsonl", [*corpus, {"docid": 2, "text": "other"}])
    with pytest.raises(DataError, match=r"corpus\.jsonl: content = "):
        source.check_files()
    other = open_source(SourceRecipe(name="x", task="ir", path=str(path)), ".")
    assert other.fingerprint != source.fingerprint
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    with pytest.raises(DataError, match=r'train\.jsonl:1: negative_document_ids\[1\] = "2"; expec'):
        records_of(path, "ir")
    write_jsonl(tmp_path / "corpus.jsonl", [*corpus, {"docid": "2", "text": None, "image": "x"}])
    with pytest.raises(
        DataError, match=r"train\.jsonl:1: negative_document_ids\[1\] = .*with text"
    ):
        records_of(path, "ir")


def test_triples_without_a_header_are_named(tmp_path: Path) -> None:
    path = tmp_path / "triples.train.small.tsv"
    path.write_text('q "1"\tp, 1\tn1\nq2\t"p2\tn2\n')
    with pytest.raises(DataError, match=r"`msmarco-triples` takes tab-separated files without"):
        records_of(path, "ir")
    assert records_of(path, "ir", format="msmarco-triples") == [
        IrRecord(query='q "1"', positives=("p, 1",), negatives=("n1",)),
        IrRecord(query="q2", positives=('"p2',), negatives=("n2",)),
    ]
    path.write_text("q1\tp1\nq2\tp2\n")
    assert records_of(path, "ir", format="pairs-without-header") == BARE
    with pytest.raises(DataError, match=r"small\.tsv:1: row = 2 fields; expected 3: query, posit"):
        records_of(path, "ir", format="msmarco-triples")


def test_columns_count_by_their_order_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"title": "q1", "body": "p1", "x": "n1", "y": "n2", "label": 0},
            {"title": "q2", "body": "p2", "x": ["n3"]},
        ],
    )
    with pytest.raises(DataError, match=r"columns = body, label, title, x, y; expected .*by-order"):
        records_of(path, "ir")
    assert records_of(path, "ir", format="by-order") == TWO
    write_jsonl(path, [{"premise": "a", "other": "b", "similarity": 0.5}])
    assert records_of(path, "sts", format="by-order") == [
        StsRecord(text1="a", text2="b", score=0.5)
    ]


def test_questions_without_a_positive_are_left_out_as_in_dpr(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = {"question": "q0", "positive_ctxs": [], "negative_ctxs": [{"text": "n"}]}
    rows = [{"question": f"q{n}", "positive_ctxs": [{"text": f"p{n}"}]} for n in (1, 2)]
    path = write_jsonl(tmp_path / "a.jsonl", [without, rows[0], without, rows[1]])
    for skip in (False, True):
        source = open_source(SourceRecipe(name="x", task="ir", path=str(path)), ".", skip=skip)
        assert [source.record(row) for row in range(len(source))] == BARE
        assert source.place(1).endswith("a.jsonl:4")
        assert "2 rows without a positive left out" in source.describe
        assert "left out are 2 rows without a positive" in caplog.text
        caplog.clear()
    write_jsonl(path, [without])
    with pytest.raises(
        DataError, match=r"a\.jsonl: all 1 rows are without a positive; expected some"
    ):
        records_of(path, "ir")


WRONG: dict[str, tuple[Any, str]] = {
    "dissimilar pair": ({"query": "q", "answer": "a", "label": 0}, r"label = 0; expected 1, as"),
    "dissimilar reply": ({"query": "q", "response": "a", "label": 0.2}, r"label = 0\.2; expected"),
    "no label is 1": (
        {"query": "q", "answer": ["a"], "labels": [0]},
        r"labels = \[0\]; expected a 1",
    ),
    "labels of others": ({"query": "q", "answer": ["a"], "labels": [1, 0]}, r"labels = 2 of 1"),
    "label of a grade": (
        {"query": "q", "answer": ["a"], "labels": [2]},
        r"labels = \[2\]; expected one above others",
    ),
    "one text": (["q"], r"columns = \[0\]; expected"),
    "number among texts": (["q", 3], r"\[1\] = 3; expected a text"),
    "set of one": ({"set": ["q"]}, r"set = 1 text; expected at least two"),
    "dialogue": (
        {"messages": [*chat("a"), *chat("b")], "positive_messages": [chat("p")]},
        r"messages = 2 messages; expected one message besides",
    ),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}], "positive_messages": []},
        r"positive_messages = \[\]; expected at least one",
    ),
    "no chat": (
        {"messages": "hi", "positive_messages": [chat("p")]},
        r'messages = "hi"; expected a list',
    ),
    "text as context": ({"question": "q", "positive_ctxs": ["p"]}, r'positive_ctxs\[0\] = "p"; ex'),
    "no pos": ({"query": ["i", "q"], "pos": []}, r"pos = \[\]; expected at least one"),
    "number as pair": ({"query": ["i", "q"], "pos": [3]}, r"pos\[0\] = 3; expected \[instruction"),
    "number as instruction": (
        {"query": [3, "q"], "pos": [["", "p"]]},
        r"query\[0\] = 3; expected a text",
    ),
    "no objective": (
        {"a": "q", "metadata": {"objective": {"paired": []}}},
        r"metadata\.objective = .*; expected one",
    ),
    "objective without its column": (
        {"a": "q", "metadata": {"objective": {"paired": [["a", "b"]]}}},
        r"b = nothing; expected a text",
    ),
}


@pytest.mark.parametrize(("row", "message"), WRONG.values(), ids=WRONG)
def test_rows_that_would_teach_something_else_are_named(
    tmp_path: Path, row: object, message: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(DataError, match=r"a\.jsonl:1: " + message):
        records_of(path, "ir")
