"""Rows that were added to a source are told from rows that are others."""

import gzip
import json
from pathlib import Path

import pytest

from tests.support.data_files import GOOD_IR, ir_source, sts_source, write_jsonl
from trainer.data.growth import FileState, added_rows, all_added_rows, read_state, state_of
from trainer.data.sources import Source, open_source


def rows(first: int, end: int) -> list[dict[str, object]]:
    return [GOOD_IR | {"query": f"q{n}"} for n in range(first, end)]


def opened(path: Path, **changes: object) -> Source:
    return open_source(ir_source(path, **changes), ".")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "x.jsonl", rows(0, 9))


def test_state_holds_files_rows_and_how_they_are_read(path: Path) -> None:
    source = opened(path)
    state = state_of(source)
    (file,) = state.files
    assert (state.fingerprint, state.num_rows) == (source.fingerprint, 9)
    assert (file.size, file.num_rows, file.is_quoted) == (path.stat().st_size, 9, True)
    assert state.reading == "records 0..1"
    plain = {"fingerprint": "f", "num_rows": 3, "reading": "r", "files": [
        {"sha256": "s", "size": 1, "num_rows": 3, "is_quoted": False}]}  # fmt: skip
    assert read_state(plain).files == (FileState(sha256="s", size=1, num_rows=3, is_quoted=False),)


def test_the_same_rows_are_no_change(path: Path) -> None:
    assert added_rows(state_of(opened(path)), opened(path)) == 0


def test_lines_at_the_end_are_added_rows(path: Path) -> None:
    before = state_of(opened(path))
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows(9, 13)))
    assert added_rows(before, opened(path)) == 4
    assert all_added_rows({"set": before, "gone": before}, [opened(path)]) == {"set": 4}
    # an older one is not what a longer one begins with
    assert added_rows(state_of(opened(path)), opened(write_jsonl(path, rows(0, 9)))) is None


def test_a_file_without_a_last_line_break_may_grow(path: Path) -> None:
    whole = path.read_text()
    path.write_text(whole.rstrip("\n"))
    before = state_of(opened(path))
    path.write_text(whole + json.dumps(rows(9, 10)[0]))
    assert added_rows(before, opened(path)) == 1


def test_a_last_row_that_goes_on_is_another_row(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("query,positive\nq0,p0\nq1,p1")
    before = state_of(opened(path))
    path.write_text("query,positive\nq0,p0\nq1,p1 and more\nq2,p2\n")
    assert added_rows(before, opened(path)) is None
    path.write_text("query,positive\nq0,p0\nq1,p1\nq2,p2\n")
    assert added_rows(before, opened(path)) == 1


@pytest.mark.parametrize("place", [0, 4, 8])
def test_another_row_among_the_first_is_no_addition(path: Path, place: int) -> None:
    before = state_of(opened(path))
    changed = rows(0, 12)
    changed[place] = GOOD_IR | {"query": "another"}
    assert added_rows(before, opened(write_jsonl(path, changed))) is None


def test_files_are_added_behind_the_others(tmp_path: Path) -> None:
    for number in (1, 2):
        write_jsonl(tmp_path / f"part{number}.jsonl", rows(5 * number, 5 * number + 5))
    before = state_of(opened(tmp_path / "part*.jsonl"))
    write_jsonl(tmp_path / "part3.jsonl", rows(0, 2))
    assert added_rows(before, opened(tmp_path / "part*.jsonl")) == 2
    # one that sorts before them moves their rows
    write_jsonl(tmp_path / "part0.jsonl", rows(0, 2))
    assert added_rows(before, opened(tmp_path / "part*.jsonl")) is None
    (tmp_path / "part0.jsonl").unlink()
    write_jsonl(tmp_path / "part1.jsonl", rows(5, 11))
    assert added_rows(before, opened(tmp_path / "part*.jsonl")) is None


def test_a_packed_file_is_told_by_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    lines = [json.dumps(row) + "\n" for row in rows(0, 6)]
    path.write_bytes(gzip.compress("".join(lines[:4]).encode()))
    before = state_of(opened(path))
    path.write_bytes(gzip.compress("".join(lines).encode()))
    assert added_rows(before, opened(path)) == 2


def test_scores_on_another_scale_are_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"

    def scored(*scores: float) -> Source:
        write_jsonl(path, [{"text1": "a", "text2": "b", "score": one} for one in scores])
        return open_source(sts_source(path), ".")

    before = state_of(scored(0.0, 0.5))
    assert added_rows(before, scored(0.0, 0.5, 1.0)) == 1
    # the first rows would be 0 and 0.1
    assert added_rows(before, scored(0.0, 0.5, 5.0)) is None


def test_what_cannot_be_cut_after_a_row_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows(0, 4)))
    before = state_of(opened(path))
    path.write_text(json.dumps(rows(0, 6)))
    assert added_rows(before, opened(path)) is None
