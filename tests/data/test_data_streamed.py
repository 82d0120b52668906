"""Sets of the hub that are streamed once into the cache, and addresses of files on the hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.support.data_files import write_jsonl
from tests.support.hub_sets import SET, SetHub, serving_sets
from tests.support.launched import ROOT
from trainer.errors import RecipeError
from trainer.recipe.load import load_recipe

ROWS = [{"anchor": f"a {i}", "positive": f"p {i} \u00e9"} for i in range(50)]
PROGRAM = """
import json, sys
import datasets
from trainer.cli import ending_with_code
from trainer.data import streamed
from trainer.data.sources import open_source
from trainer.recipe.schema import SourceRecipe

datasets.config.STREAMING_READ_MAX_RETRIES = 2
datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
streamed.KEPT_ROWS = 10

def main():
    for settings in json.loads(sys.argv[1]):
        source = open_source(SourceRecipe(name="far", task="ir", **settings), ".")
        records = [source.record(row) for row in range(len(source))]
        print(json.dumps([[one.query, one.positives[0]] for one in records]))
    return 0

sys.exit(ending_with_code(main))
"""
"""A process of its own: the libraries read the hub's address once, when they are imported."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[SetHub]:
    """A set of two files."""
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train-0.jsonl", ROWS[:30])
    write_jsonl(folder / "train-1.jsonl", ROWS[30:])
    with serving_sets(folder) as found:
        yield found


def opened(
    hub: SetHub, home: Path, *settings: dict[str, Any]
) -> tuple[int, list[list[list[str]]], str]:
    """Exit code, query and positive of each record of each source, and stderr's last line."""
    variables = hub.environment(home / "hf") | {"TRAINER_CACHE_DIR": str(home / "cache")}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)],
        env=os.environ | variables, cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[[")]
    return ended.returncode, found, ended.stderr.splitlines()[-1] if ended.returncode else ""


def pairs(rows: Sequence[dict[str, str]]) -> list[list[str]]:
    return [[row["anchor"], row["positive"]] for row in rows]


STREAM = {"hub": SET, "stream": True}


def test_a_set_is_streamed_once_and_read_anew_at_another_commit(
    hub: SetHub, tmp_path: Path
) -> None:
    address = {"path": f"hf://datasets/{SET}/train-*.jsonl"}
    code, found, told = opened(hub, tmp_path, STREAM, {"hub": SET}, address)
    assert (code, told) == (0, "")
    assert found == [pairs(ROWS)] * 3
    hub.read.clear()
    assert opened(hub, tmp_path, STREAM, address)[1] == [pairs(ROWS)] * 2
    assert hub.read == []
    hub.commit = "2" * 40
    write_jsonl(hub.folder / "train-0.jsonl", ROWS[5:30])
    assert opened(hub, tmp_path, STREAM, address)[1] == [pairs(ROWS[5:])] * 2
    # without a network the last one that was read counts
    hub.url = "http://127.0.0.1:9"
    hub.read.clear()
    assert opened(hub, tmp_path, STREAM)[1] == [pairs(ROWS[5:])]


def test_a_stream_that_breaks_off_is_named_and_goes_on_later(hub: SetHub, tmp_path: Path) -> None:
    hub.refused = {"train-1.jsonl"}
    code, found, told = opened(hub, tmp_path, STREAM)
    assert (code, found) == (2, [])
    assert told.startswith(f"data.sources.far: hub = {SET} (broke off, ")
    assert told.endswith("reading goes on after the first 30 rows that are kept.")
    (partial,) = (tmp_path / "cache").rglob("*.partial")
    kept = partial.read_bytes()
    assert [json.loads(line) for line in kept.splitlines()] == ROWS[:30]
    # what came after the note is not trusted
    partial.write_bytes(kept + b'{"anchor": "torn')
    hub.refused = set()
    assert opened(hub, tmp_path, STREAM)[1] == [pairs(ROWS)]
    (made,) = (tmp_path / "cache").rglob("train.jsonl")
    assert made.read_bytes()[: len(kept)] == kept
    assert {file.suffix for file in made.parent.iterdir()} == {".jsonl", ".lock"}


@pytest.mark.slow
@pytest.mark.parametrize("left", [None, 100])
def test_a_part_that_someone_removed_or_cut_is_made_from_its_beginning(
    hub: SetHub, tmp_path: Path, left: int | None
) -> None:
    hub.refused = {"train-1.jsonl"}
    assert opened(hub, tmp_path, STREAM)[0] == 2
    (partial,) = (tmp_path / "cache").rglob("*.partial")
    content = partial.read_bytes()
    partial.unlink()
    if left is not None:
        partial.write_bytes(content[:left])
    hub.refused = set()
    assert opened(hub, tmp_path, STREAM)[1] == [pairs(ROWS)]
    (made,) = (tmp_path / "cache").rglob("train.jsonl")
    assert {file.suffix for file in made.parent.iterdir()} == {".jsonl", ".lock"}


def test_what_cannot_be_streamed_is_named(hub: SetHub, tmp_path: Path) -> None:
    cases = {
        "expected a set with split dev that can be streamed": STREAM | {"split": "dev"},
        "expected a set of the hub that can be reached": {"hub": "team/none", "stream": True},
    }
    for expected, settings in cases.items():
        code, found, told = opened(hub, tmp_path, settings)
        assert (code, found) == (2, [])
        assert told.startswith(f"data.sources.far: hub = {settings['hub']} (")
        assert expected in told
    for name in ("train-0.jsonl", "train-1.jsonl"):
        (hub.folder / name).unlink()
    rows = [{"anchor": "a", "positive": "p", "picture": b"\x00\x01"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), hub.folder / "train.parquet")
    code, _, told = opened(hub, tmp_path, STREAM)
    assert code == 2
    assert "(row 1: TypeError: a value of type bytes); expected texts, numbers, lists and" in told
    assert not list((tmp_path / "cache").rglob("train.jsonl"))


def test_rows_of_the_hub_alone_are_streamed(tmp_path: Path) -> None:
    for origin in ("path: a.jsonl", "hub: team/docs, format: beir"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            "name: a\noutput_dir: run\nmodel: {path: m, pooling: last}\n"
            f"data: {{sources: [{{name: far, task: ir, {origin}, stream: true}}]}}\n"
            "tasks: {ir: {global_batch_size: 2}}\ntrain: {max_steps: 1}\n"
        )
        with pytest.raises(RecipeError, match=r"stream = true; expected false without rows of a"):
            load_recipe(recipe, [])
