"""Rows that repeat earlier ones are found over all sources and listed; files stay as they are."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.data_files import write_jsonl
from tools import dedup
from trainer.cli import ending_with_code

LONG = "where can I find the invoice of the printer that I bought in the shop near the river"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    queries = ["How do I reset it?", LONG, "how do I reset it", "something else"]
    write_jsonl(tmp_path / "docs.jsonl", [{"query": q, "positives": ["p"]} for q in queries])
    more = ["x y z", LONG.replace("printer", "scanner"), "HOW do I reset it"]
    write_jsonl(tmp_path / "more.jsonl", [{"query": q, "positives": ["p"]} for q in more])
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: repeats\noutput_dir: {tmp_path}/run\nmodel: {{path: unused}}\n"
        f"data:\n  root: {tmp_path}\n  sources:\n"
        "    - {name: docs, task: ir, path: docs.jsonl}\n"
        "    - {name: more, task: ir, path: more.jsonl}\n"
        "  pattern: {ir: 1}\n"
        "tasks: {ir: {global_batch_size: 2}}\ntrain: {max_steps: 1}\n"
    )
    return path


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dedup.py", *words])
    return ending_with_code(dedup.main)


def test_repeats_are_counted_shown_and_listed(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = recipe.parent, recipe.parent / "repeats.jsonl"
    before = (folder / "docs.jsonl").read_bytes()
    assert run(monkeypatch, "--recipe", str(recipe), "--write", str(file), "--json") == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert table[:3] == [
        "7 rows of 2 sources",
        "docs repeats itself: 1 rows equal, 0 nearly",
        f"  {folder}/docs.jsonl:3 how do I reset it",
    ]
    assert "more repeats docs: 1 rows equal, 1 nearly" in table
    assert json.loads(last) == {
        "rows": {"docs": 4, "more": 3},
        "repeats": [
            {"source": "docs", "first_source": "docs", "equal": 1, "nearly": 0},
            {"source": "more", "first_source": "docs", "equal": 1, "nearly": 1},
        ],
    }
    listed = [json.loads(line) for line in file.read_text().splitlines()]
    places = [(one["row"], one["first_row"], one["equal"]) for one in listed]
    assert places == [
        (f"{folder}/docs.jsonl:3", f"{folder}/docs.jsonl:1", True),
        (f"{folder}/more.jsonl:2", f"{folder}/docs.jsonl:2", False),
        (f"{folder}/more.jsonl:3", f"{folder}/docs.jsonl:1", True),
    ]
    assert listed[1]["first_asked"] == [LONG]
    assert (folder / "docs.jsonl").read_bytes() == before


def test_wrong_input_is_one_message(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = recipe.parent / "docs.jsonl"
    assert run(monkeypatch, "--recipe", str(recipe), "--write", str(there)) == 2
    assert (
        "expected a new file that can be written (it is there already)" in capsys.readouterr().err
    )
    nowhere = recipe.parent / "no" / "file"
    assert run(monkeypatch, "--recipe", str(recipe), "--write", str(nowhere)) == 2
    assert "No such file" in capsys.readouterr().err
    full = "/dev/full"
    monkeypatch.setattr(dedup.Path, "with_name", lambda path, name: Path(full))
    monkeypatch.setattr(dedup.Path, "unlink", lambda path, missing_ok: None)
    new = recipe.parent / "new.jsonl"
    assert run(monkeypatch, "--recipe", str(recipe), "--write", str(new)) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not new.exists()
    monkeypatch.undo()
    assert run(monkeypatch, "--recipe", str(recipe.parent / "none.yaml")) == 2
    write_jsonl(recipe.parent / "more.jsonl", [{"query": "alone", "positives": ["p"]}] * 2)
    write_jsonl(there, [{"query": "one", "positives": ["p"]}, {"query": "two", "positives": ["p"]}])
    assert run(monkeypatch, "--recipe", str(recipe), "data.sources.more.path=docs.jsonl") == 0
    assert "more repeats docs: 2 rows equal, 0 nearly" in capsys.readouterr().out
