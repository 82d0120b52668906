"""Many processes check a table as one does: the same records, and the same fault is named."""

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_files import all_records, ir_source, sts_source, write_jsonl
from trainer.data import table_scan
from trainer.data.sources import open_source
from trainer.data.table_source import TableSource
from trainer.errors import DataError

NUM_ROWS = 60


@pytest.fixture(autouse=True)
def _small_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(table_scan, "ROWS_AT_ONCE", 7)


def use_processes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """One process is what a small table has."""
    monkeypatch.setattr(table_scan, "CACHE_FROM_ROWS", 1 if count > 1 else NUM_ROWS + 1)
    monkeypatch.setattr(table_scan.os, "sched_getaffinity", lambda _: set(range(count)))


def rows_with_gaps() -> list[dict[str, object]]:
    """Rows that repeat, and blank negatives."""
    rows: list[dict[str, object]] = []
    for number in range(NUM_ROWS):
        negatives = ["n", " "] if number % 9 == 4 else ["n"]
        rows.append({"query": f"q{number % 50}", "positives": ["p"], "negatives": negatives})
    return rows


def test_the_result_is_that_of_one_process(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    path = write_jsonl(tmp_path / "a.jsonl", rows_with_gaps())
    found, said = [], []
    for count in (1, 3):
        use_processes(monkeypatch, count)
        caplog.clear()
        source = open_source(ir_source(path), ".", skip=True)
        assert isinstance(source, TableSource)
        found.append((source, [source.record(row) for row in range(len(source))]))
        said.append([one.getMessage() for one in caplog.records if "left out" in one.getMessage()])
    (one, records), (many, others) = found
    assert records == others
    assert said[0] == said[1]
    assert len(said[0]) == 5
    for name in ("rows", "parts", "queries"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
    assert one.describe == many.describe
    assert "10 repeat the texts of an earlier row, 7 blank negatives left out" in one.describe


@pytest.mark.parametrize("bad", [(30, 52), (52,)])
def test_the_first_fault_is_named(tmp_path, monkeypatch, bad):
    rows = rows_with_gaps()
    for row in bad:
        rows[row] = {"query": 5, "positives": ["p"]}
    path = write_jsonl(tmp_path / "a.jsonl", [{**row, "negatives": ["n"]} for row in rows])
    for count in (1, 3):
        use_processes(monkeypatch, count)
        with pytest.raises(DataError, match=rf"a\.jsonl:{bad[0] + 1}: query = 5; expected a text"):
            open_source(ir_source(path), ".")
        with pytest.raises(DataError, match=rf"malformed rows = {len(bad)} of 60; .* first is"):
            open_source(ir_source(path), ".", skip=True)


def test_scores_and_scales_come_from_all_stretches(tmp_path, monkeypatch):
    rows = [{"text1": f"a{n}", "text2": "b", "score": n / 12} for n in range(NUM_ROWS)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    expected = all_records(sts_source(path))
    use_processes(monkeypatch, 4)
    assert all_records(sts_source(path)) == expected
    assert [asdict(one)["score"] for one in expected] == pytest.approx(np.arange(60) / 60)


def test_columnar_files_are_read_by_many(tmp_path, monkeypatch):
    from datasets import Dataset

    rows = [{"query": f"q{n}", "positives": [f"p{n}"], "negatives": []} for n in range(NUM_ROWS)]
    path = tmp_path / "a.parquet"
    Dataset.from_list(rows).to_parquet(str(path))
    expected = all_records(ir_source(path))
    assert [one.query for one in expected] == [f"q{n}" for n in range(NUM_ROWS)]
    use_processes(monkeypatch, 2)
    assert all_records(ir_source(path)) == expected


def test_a_process_that_dies_is_one_message(tmp_path, monkeypatch):
    # a file whose rows fill the pipe to the process, which is gone before it reads
    path = write_jsonl(tmp_path / "a.jsonl", rows_with_gaps() * 200)
    use_processes(monkeypatch, 2)
    monkeypatch.setattr(table_scan, "MODULE", "trainer.data.no_such_module")
    with pytest.raises(table_scan.StepError, match=r"a\.jsonl: the process .* ended with code 1"):
        open_source(ir_source(path), ".", skip=True)
