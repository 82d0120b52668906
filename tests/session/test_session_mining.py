"""A run that mines between its steps ends with the same bits, killed and resumed or not."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.corpus import make_workspace
from tests.support.forked import forked
from tests.support.workspace_runs import run, steps, weights
from trainer.checkpoint.manifest import read_manifest
from trainer.data.loader import batches
from trainer.data.mined import NO_PLACE, with_mined
from trainer.data.planned import plan_of
from trainer.data.sources import open_sources
from trainer.data.tokens import load_tokenizer, make_encoder
from trainer.recipe.load import load_recipe

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS, EVERY = 8, 3
MINE = (
    f"data.mine={{every_steps: {EVERY}, num_negatives: 3}}",
    f"train.max_steps={STEPS}",
    "data.pattern={ir: 2, sts: 1}",
    "checkpoint.every_steps=2",
    "checkpoint.keep=99",
    "eval.sets=[]",
    "data.workers=1",
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    return folder


@pytest.fixture(scope="module")
def whole(workspace: Path) -> Path:
    """The run that nothing disturbs."""
    ended = run(workspace, "whole", *MINE)
    assert ended.code == 0, ended.out + ended.err
    assert "step 3: mined " in ended.out
    return workspace / "whole"


def minings(folder: Path) -> list[dict[str, Any]]:
    """What was found, without the clock."""
    lines = map(json.loads, (folder / "mined.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same(folder: Path, whole: Path) -> None:
    assert steps(folder) == steps(whole)
    assert weights(folder) == weights(whole)
    assert minings(folder) == minings(whole)
    last = whole / "mined" / "ir" / "6.npy"
    assert (folder / "mined" / "ir" / "6.npy").read_bytes() == last.read_bytes()


def resume(workspace: Path, name: str) -> str:
    """Continue a run to its end; gives its log."""
    ended = run(workspace, name, *MINE, "--resume")
    assert ended.code == 0, ended.out + ended.err
    return ended.out


def test_each_checkpoint_has_the_file_of_its_next_step(whole: Path) -> None:
    files = {
        folder.name: [*(name for name in read_manifest(folder).files if name.startswith("mined"))]
        for folder in (whole / "checkpoints").glob("step-*")
    }
    assert files["step-2"] == []
    assert files["step-4"] == ["mined/ir/3.npy"]
    assert files["step-8"] == ["mined/ir/6.npy"]
    # only what is in force lies in the run's own folder
    there = {path.name for path in (whole / "mined").rglob("*")}
    assert there == {"ir", "6.npy", "6.json"}
    found = minings(whole)
    assert [line["step"] for line in found] == [3, 6]
    assert all(line["queries_enough"] == line["queries"] > 0 for line in found)
    assert all(line["negative_mean"] > line["positive_mean"] for line in found)


def test_steps_train_on_the_negatives_of_the_file(whole: Path) -> None:
    recipe = load_recipe(whole / "recipe.yaml", [])
    tokenizer = load_tokenizer(recipe.model.path, pooling="last")
    encoder = make_encoder(tokenizer, recipe.data, pooling="last")
    opened = open_sources(recipe.data)
    plan, lines = plan_of(recipe, opened), steps(whole)
    differ = 0
    for since, until, tag in ((0, 3, None), (3, 6, "step-4"), (6, 8, "step-8")):
        files = {} if tag is None else {
            "ir": whole / "checkpoints" / tag / "mined" / "ir" / f"{since}.npy"
        }  # fmt: skip
        sources = with_mined(opened, files)
        plain = batches(plan, opened, encoder, recipe, since, until)
        for batch, own in zip(
            batches(plan, sources, encoder, recipe, since, until), plain, strict=True
        ):
            assert batch.texts.lengths.sum() == lines[batch.plan.step]["tokens"]
            differ += int(batch.texts.lengths.sum() != own.texts.lengths.sum())
            if tag is not None and batch.plan.source == "ir":
                assert (np.load(files["ir"])[batch.plan.rows] != NO_PLACE).all()
    assert differ >= 2


@pytest.mark.parametrize("after", [2, 4, 6])
def test_an_older_checkpoint_goes_on_the_same(workspace: Path, whole: Path, after: int) -> None:
    """Before a mining, after one, and where one is due."""
    name = f"after-{after}"
    shutil.copytree(whole, workspace / name)
    shutil.rmtree(workspace / name / "model")
    for folder in (workspace / name / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > after:
            shutil.rmtree(folder)
    log = resume(workspace, name)
    assert_same(workspace / name, whole)
    # what is due and was found by the same weights is not searched again
    assert log.count("as was found before the run was interrupted") == (after == 6)


def test_what_other_weights_found_is_not_taken(workspace: Path, whole: Path) -> None:
    shutil.copytree(whole, workspace / "other")
    beside = workspace / "other" / "mined" / "ir" / "6.json"
    beside.write_text(beside.read_text().replace('{"identity": "', '{"identity": "0'))
    shutil.rmtree(workspace / "other" / "checkpoints" / "step-8")
    assert "as was found before" not in resume(workspace, "other")
    assert_same(workspace / "other", whole)


def kill_when(workspace: Path, name: str, reached: Callable[[Path], bool]) -> None:
    """Start or continue a run and end all of its ranks at a moment, by SIGKILL."""
    folder = workspace / name
    arguments = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={folder}", *MINE)
    cache = {"TRAINER_CACHE_DIR": str(workspace / "cache")}
    with forked(workspace, *arguments, "--resume", ranks=2, **cache) as started:
        started.until(lambda: reached(folder))


def test_kills_while_it_mines_and_between_change_no_bit(workspace: Path, whole: Path) -> None:
    def is_mining(folder: Path) -> bool:
        return (folder / "mined" / ".work").is_dir()

    def num_steps(folder: Path) -> int:
        path = folder / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    kill_when(workspace, "killed", is_mining)
    assert num_steps(workspace / "killed") == 3
    kill_when(workspace, "killed", lambda folder: num_steps(folder) >= 5)
    kill_when(workspace, "killed", lambda folder: is_mining(folder) and num_steps(folder) == 6)
    assert [path.name for path in (workspace / "killed" / "mined" / "ir").iterdir()] == ["3.npy"]
    resume(workspace, "killed")
    assert_same(workspace / "killed", whole)


def test_a_signal_while_it_mines_saves_and_ends(workspace: Path, whole: Path) -> None:
    folder = workspace / "asked"
    arguments = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={folder}", *MINE)
    with forked(workspace, *arguments, ranks=2) as started:
        started.until((folder / "mined" / ".work").is_dir)
        os.kill(started.rank(1), signal.SIGTERM)
        ended = started.wait()
    assert ended.code == 143, ended.out + ended.err
    # a signal that comes behind the last search ends the run after the next step
    told = re.search(r"interrupted after ([34]) steps, saved", ended.out)
    assert told, ended.out + ended.err
    assert (folder / "checkpoints" / "latest").read_text() == f"step-{told[1]}"
    resume(workspace, "asked")
    assert_same(folder, whole)


def test_tokens_ahead_and_no_workers_give_the_same_run(workspace: Path, whole: Path) -> None:
    for name, changes in (
        ("ahead", ("data.tokens=ahead",)),
        ("none", ("data.workers=0",)),
    ):
        ended = run(workspace, name, *MINE, *changes)
        assert ended.code == 0, ended.out + ended.err
        assert_same(workspace / name, whole)


def test_the_base_mines_first_where_asked(workspace: Path) -> None:
    section = "data.mine={every_steps: 4, num_negatives: 2, start: true, relative_margin: 0.9}"
    ended = run(workspace, "start", *MINE, section)
    assert ended.code == 0, ended.out + ended.err
    assert [line["step"] for line in minings(workspace / "start")] == [0, 4]
    # a run that begins anew in its folder ends the same
    shutil.rmtree(workspace / "start" / "checkpoints")
    before = (minings(workspace / "start"), steps(workspace / "start"))
    ended = run(workspace, "start", *MINE, section, "--resume")
    assert ended.code == 0, ended.out + ended.err
    assert (minings(workspace / "start"), steps(workspace / "start")) == before


def test_another_section_is_refused(workspace: Path, whole: Path) -> None:
    changed = "data.mine.num_negatives=2"
    for named in ((), ("--change", changed)):
        override = () if named else (changed,)
        ended = run(workspace, "whole", *MINE, *override, "--resume", *named)
        assert ended.code == 2
        assert (
            "data.mine.num_negatives cannot change: the steps so far were trained on" in ended.err
        )
