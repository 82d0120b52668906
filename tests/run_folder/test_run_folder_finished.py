"""The marker of a finished run: complete or absent, and telling what was made."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from trainer.run_folder.finished import hash_folder, read_finished, write_finished


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "model" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.5}\n')
    sets = [{"step": step, "sets": {"docs": {"ndcg_at_10": step / 4}}} for step in (0, 2)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sets))
    return tmp_path


def test_marker_says_what_the_run_came_to(run: Path) -> None:
    assert read_finished(run) is None
    write_finished(run, step=2)
    assert read_finished(run) == {
        "step": 2,
        "loss": 1.5,
        "metrics": {"docs": {"ndcg_at_10": 0.5}},
        "export": {"folder": "model", "sha256": hash_folder(run / "model")},
    }
    assert not (run / ".finished.json").exists()


def test_hash_is_that_of_sha256sum(run: Path) -> None:
    names = ["1_Pooling/config.json", "model.safetensors"]
    listed = subprocess.run(
        ["/usr/bin/env", "sha256sum", *names],
        cwd=run / "model",
        capture_output=True,
        check=True,
    )
    assert hash_folder(run / "model") == hashlib.sha256(listed.stdout).hexdigest()


def test_hash_follows_every_file(run: Path) -> None:
    before = hash_folder(run / "model")
    (run / "model" / "model.safetensors").write_bytes(b"Weights")
    assert hash_folder(run / "model") != before


def test_run_without_evaluations(run: Path) -> None:
    (run / "eval.jsonl").unlink()
    write_finished(run, step=2)
    assert (read_finished(run) or {})["metrics"] == {}


def test_a_further_end_replaces_the_marker(run: Path) -> None:
    write_finished(run, step=2)
    (run / "model" / "model.safetensors").write_bytes(b"Weights")
    write_finished(run, step=4)
    found = read_finished(run) or {}
    assert (found["step"], found["export"]["sha256"]) == (4, hash_folder(run / "model"))
