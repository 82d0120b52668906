"""Inference rows train retrieval: rows of one premise are one record, wherever they stand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data_files import all_records, ir_source, write_jsonl
from trainer.data import premise_source
from trainer.data.records import IrRecord
from trainer.data.sources import open_source
from trainer.errors import DataError


def row(premise: str, hypothesis: str, label: object) -> dict[str, Any]:
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


ROWS = [
    row("p", "follows", 0),
    row("q", "against q", 2),
    row("p", "perhaps", 1),
    row("r", "of r", "entailment"),
    row("p", "against", "contradiction"),
    row("p", "follows too", 0),
    row("q", "unclear", -1),
    row("p", "follows", 0),
    row("p", "follows", 2),
    row("p", "against too", "2"),
]
RECORDS = [
    IrRecord(query="p", positives=("follows", "follows too"), negatives=("against", "against too")),
    IrRecord(query="r", positives=("of r",)),
]


def test_rows_of_a_premise_are_one_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert all_records(ir_source(path)) == RECORDS
    assert (
        "data.sources.set: left out are 2 rows that are neutral or without a label, and 1 whose "
        "premise entails nothing" in caplog.text
    )
    source = open_source(ir_source(path), ".")
    assert [source.place(number) for number in range(2)] == [f"{path}:1", f"{path}:4"]
    assert "nli, 10 rows" in source.describe
    assert "2 premises that entail something" in source.describe


def test_the_cache_gives_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(premise_source, "CACHE_FROM_ROWS", 1)
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    for _ in range(2):
        assert all_records(ir_source(path)) == RECORDS
    source = open_source(ir_source(path), ".")
    assert isinstance(source, premise_source.PremiseSource)
    assert isinstance(source.members, np.memmap)


@pytest.mark.parametrize("label", [3, "yes", True, 0.0, [0]])
def test_unknown_labels_are_refused(tmp_path: Path, label: object) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row("p", "h", 0), row("p", "h", label)])
    with pytest.raises(DataError, match=r"a\.jsonl:2: label = .*; expected 0 or entailment, 1 or"):
        open_source(ir_source(path), ".")


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], {"premise": "p", "hypothesis": "h"}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: label = nothing; expected 0 or entailment"):
        open_source(ir_source(path), ".")


def test_columns_of_published_sets_are_mapped(tmp_path: Path) -> None:
    theirs = {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}
    rows = [{theirs[name]: value for name, value in row.items()} for row in ROWS]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert all_records(ir_source(path, columns=theirs)) == RECORDS
    del theirs["label"]
    said = r"expected label of format nli\. .*data\.sources\.set\.columns: \{label: gold_label\}"
    with pytest.raises(DataError, match=said):
        open_source(ir_source(path, columns=theirs), ".")


def test_without_entailments_nothing_can_be_found(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row("p", "h", 1), row("q", "h", 2)])
    with pytest.raises(DataError, match=r"set: rows of entailment = 0 of 2; expected some"):
        open_source(ir_source(path), ".")
