"""Data files that a stranger made: what is odd in them is named, at once, and never a traceback."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from tests.support.data_files import (
    all_records,
    ir_source,
    sts_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data.arrow import open_arrow_file
from trainer.errors import DataError

HALF = "\ud800"
"""Half of a surrogate pair, which JSON can write and UTF-8 cannot."""
QUERY = ["find", "", "q"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"task_type": "ir", "query": ["", HALF, "q"], "positives": [QUERY]}, r"query\[1\]"),
        ({"task_type": "ir", "query": QUERY, "positives": [["", HALF, "p"]]}, r"positives\[0\]"),
        (
            {"query": "q", "positive_passages": [{"title": HALF, "text": "p"}]},
            r"positive_passages\[0\]\.title",
        ),
        (
            {
                "query": "q",
                "positive_passages": [{"title": "", "text": "p"}],
                "negative_passages": [{"title": HALF, "text": "p"}],
            },
            r"negative_passages\[0\]\.title",
        ),
    ],
)
def test_half_a_surrogate_pair_is_named(row: dict[str, Any], field: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError, match=rf"x.jsonl:1: {field}.* = .*valid Unicode"):
        all_records(ir_source(path))


def test_half_a_surrogate_pair_in_a_scored_pair_is_named(tmp_path: Path) -> None:
    row = {
        "task_type": "sts",
        "query": QUERY,
        "positives": [["", HALF, "p"]],
        "positive_scores": [1],
    }
    path = write_jsonl(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError, match=r"x.jsonl:1: positives\[0\]\[1\] = .*valid Unicode"):
        all_records(sts_source(path))


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        (HALF, r"negatives\[1\] = .*valid Unicode"),
        (None, r"negatives\[1\] = null; expected an id"),
        ([], r"negatives\[1\] = \[\]; expected an id"),
        ("d9", r'negatives\[1\] = "d9"; expected an _id of corpus.jsonl'),
    ],
)
def test_hard_negatives_that_are_no_ids_are_named(
    identifier: object, message: str, tmp_path: Path
) -> None:
    write_beir(tmp_path, corpus={"d0": "a", "d1": "b"}, queries={"q0": "q"})
    write_qrels(tmp_path, "train", [("q0", "d0", 1)])
    mined = {"query_id": "q0", "negatives": ["d1", identifier]}
    write_jsonl(tmp_path / "hard_negatives.train.jsonl", [mined])
    with pytest.raises(DataError, match=rf"hard_negatives.train.jsonl:1: {message}"):
        all_records(ir_source(tmp_path))


@pytest.mark.parametrize("prompt", [5, " ", ["find"], {"a": 1}, True])
def test_a_prompt_that_is_no_text_does_not_matter(prompt: object, tmp_path: Path) -> None:
    row = {"query": "q", "pos": ["p"], "neg": ["n"], "prompt": prompt}
    (record,) = all_records(ir_source(write_jsonl(tmp_path / "x.jsonl", [row])))
    assert record.query == "q"


@pytest.mark.parametrize("names", [5, True, 0.5, "ab", {"a": 1}, [5], [["query", 5]], None])
def test_an_objective_that_is_no_list_is_named(names: object, tmp_path: Path) -> None:
    row = {"query": "a", "document": "p", "metadata": {"objective": {"paired": names}}}
    path = write_jsonl(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError, match=r"x.jsonl:1: metadata.objective = .*; expected one"):
        all_records(ir_source(path))


@pytest.mark.parametrize("text", ['"', '\\"', '\\\\"', "\\\n"])
def test_an_array_with_a_text_without_end_is_refused_at_once(text: str, tmp_path: Path) -> None:
    # looking for the end from each quote took time that grows with the square: here, an hour
    path = tmp_path / "x.json"
    path.write_text('[{"a": "' + text * 200_000)
    with pytest.raises(DataError, match=r"x\.json: .*expected JSON"):
        all_records(ir_source(path))


def test_texts_of_an_array_may_hold_anything(tmp_path: Path) -> None:
    rows = [
        {"query": 'a "[{\\', "positives": ["]}\\\\", '\\"']},
        {"query": "b", "positives": ["p"]},
    ]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows))
    assert [record.query for record in all_records(ir_source(path))] == ['a "[{\\', "b"]


def test_an_arrow_file_with_a_column_twice_or_a_damaged_length_is_named(tmp_path: Path) -> None:
    twice = tmp_path / "twice.arrow"
    column = pyarrow.array(["a", "b"])
    table = pyarrow.Table.from_arrays([column, column], names=["text1", "text1"])
    with (
        pyarrow.OSFile(str(twice), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    short = tmp_path / "short.arrow"
    short.write_bytes(bytes.fromhex("ffffbf7effffff"))
    huge = tmp_path / "huge.arrow"
    huge.write_bytes(b"\xff\xff\xff\xff\xf0\xff\xff\x7f")
    for path in (twice, short, huge):
        with pytest.raises(DataError, match=rf"{path.name}: content = .*expected a whole arrow"):
            open_arrow_file(path)
