"""Malformed recipes and data files: each passes the checks or ends in one message, no traceback.

The seeds are fixed: `spoiled_recipe(seed)` and `spoil_data(seed, folder)` repeat a failure.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzzing.outcomes import message_of
from fuzzing.targets import read_source
from tests.support.spoil import RECIPE, spoil_data, spoiled_recipe
from tests.test_run_cli import project as project  # a fixture: a right recipe with its data
from tests.test_run_cli import run, snapshot
from trainer.errors import TrainerError
from trainer.preflight.checks import check_run
from trainer.recipe.load import load_recipe

NUM_EACH = 500
NUM_BY_COMMAND = 10
LIMIT_SEC = 10.0
"""No check of so small a recipe or file may take more of a core, however it is malformed."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, caches of its own, and the folder of the recipe as the current one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def checked_recipe(path: Path) -> str | None:
    """What the checks say of a recipe; None where it passes."""
    started = time.process_time()
    try:
        check_run(load_recipe(path), world_size=1, resume=False)
    except TrainerError as error:
        return message_of(error)
    finally:
        assert time.process_time() - started < LIMIT_SEC
    return None


def checked_data(path: Path, task: str) -> str | None:
    """What the checks say of a data file; None where every row can be read."""
    started = time.process_time()
    try:
        read_source(path, task)
    except TrainerError as error:
        return message_of(error)
    finally:
        assert time.process_time() - started < LIMIT_SEC
    return None


def test_spoiled_recipes(project: Path) -> None:
    path = project / "malformed.yaml"
    path.write_text(RECIPE)
    assert checked_recipe(path) is None
    before = {file for file in snapshot(project) if file != path}
    refused = 0
    for seed in range(NUM_EACH):
        path.write_bytes(spoiled_recipe(seed))
        with naming(f"recipe seed {seed}"):
            refused += checked_recipe(path) is not None
    assert refused > NUM_EACH // 2
    assert {file for file in snapshot(project) if file != path} == before


def test_spoiled_data_files(tmp_path: Path) -> None:
    refused = 0
    for seed in range(NUM_EACH):
        folder = tmp_path / str(seed)
        folder.mkdir()
        original, path = spoil_data(seed, folder)
        with naming(f"data seed {seed} ({original.name})"):
            refused += checked_data(path, original.task) is not None
    assert refused > NUM_EACH // 2


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Add the seed to whatever goes wrong."""
    try:
        yield
    except BaseException as error:
        error.add_note(what)
        raise


def test_some_recipes_through_the_command(project: Path) -> None:
    """The first that the checks refuse, as a user meets them."""
    path = project / "malformed.yaml"
    seeds = iter(range(NUM_EACH))
    for _ in range(NUM_BY_COMMAND):
        while True:
            path.write_bytes(spoiled_recipe(next(seeds)))
            told = checked_recipe(path)
            if told is not None:
                break
        before = snapshot(project)
        ended = run(project, "--recipe", str(path))
        assert (ended.code, ended.message) == (2, told)
        assert "Traceback" not in ended.out
        assert snapshot(project) == before


def test_some_data_files_through_the_command(project: Path) -> None:
    """The first that the checks refuse, each in the place of a source of its task."""
    seeds = iter(range(NUM_EACH))
    for _ in range(NUM_BY_COMMAND):
        told = None
        while told is None:
            seed = next(seeds)
            folder = project / f"data{seed}"
            folder.mkdir()
            original, path = spoil_data(seed, folder)
            told = checked_data(path, original.task)
        source = "docs" if original.task == "ir" else "pairs"
        ended = run(project, "--recipe", "small.yaml", f"data.sources.{source}.path={path}")
        assert ended.code == 2, ended.message
        # what the datasets library logs of a file it cannot read stands above
        last = ended.message.splitlines()[-1]
        assert last == told.replace("data.sources.set", f"data.sources.{source}")
        assert "Traceback" not in ended.out + ended.message
        assert not (project / "out").exists()
