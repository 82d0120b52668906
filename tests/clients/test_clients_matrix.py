"""Results of several environments become one matrix."""

import json
from pathlib import Path
from typing import Any

import pytest

from clients.converter import PARTS, SCRIPT, unpack
from clients.forms import FORMS, REFUSED
from clients.matrix import Matrix, read_matrix

UNEXPORTED = FORMS[-1]
REASON = "recipe: key = a; expected merged where it is so: a folder cannot say it. Set it."


def entry(column: str, **changes: Any) -> dict[str, Any]:
    equal = {"column": column, "outcome": "equal", "cosine": 0.99999987, "reason": None}
    return {**equal, "rules": None, **changes}


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    (tmp_path / REFUSED).write_text(json.dumps({UNEXPORTED.name: REASON}), encoding="utf-8")
    return tmp_path


def read(exports: Path, *columns: str, **changes: Any) -> Matrix:
    """A matrix in which the first form is read otherwise by the first client."""
    files = []
    for column in columns:
        rows = {form.name: [entry(column)] for form in FORMS if form != UNEXPORTED}
        if column == columns[0]:
            rows[FORMS[0].name] = [entry(column, **changes)]
        files.append(exports / f"{column}.json")
        files[-1].write_text(json.dumps(rows), encoding="utf-8")
    return read_matrix(exports, files)


def test_columns_follow_the_environments(exports: Path) -> None:
    matrix = read(exports, "a", "b")
    assert matrix.columns == ("a", "b")
    assert len(matrix.rows) == len(FORMS) - 1
    assert not matrix.is_different
    assert not list(matrix.disagreements())


def test_what_the_trainer_refuses_is_told_in_every_column(exports: Path) -> None:
    text = read(exports, "a", "b").table()
    assert "| adapter | refused (1) | refused (1) |" in text
    assert "1. The trainer: merged where it is so\n" in text


def test_one_difference_is_enough(exports: Path) -> None:
    matrix = read(exports, "a", "b", outcome="different", reason="Other ids.")
    assert matrix.is_different
    assert "different (" in matrix.table()


def test_rules_that_say_otherwise_are_told(exports: Path) -> None:
    told = {"outcome": "refused", "reason": "A field."}
    (line,) = read(exports, "a", rules=told).disagreements()
    assert line == f"{FORMS[0].name}: a = equal; the rules say refused. A field."


def test_converter_is_taken_out_of_the_source_package(tmp_path: Path) -> None:
    import tarfile

    inside = tmp_path / "package-1.0" / "vendor" / "llama.cpp"
    for name in (SCRIPT, "conversion/base.py", "gguf-py/gguf/a.py", "src/llama.cpp", "README.md"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_text(name, encoding="utf-8")
    with tarfile.open(tmp_path / "package.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "package-1.0", "package-1.0")
    script = unpack(tmp_path / "package.tar.gz", tmp_path / "converter")
    assert script.read_text(encoding="utf-8") == SCRIPT
    assert {path.name for path in script.parent.iterdir()} == set(PARTS)
