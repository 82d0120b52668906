"""Evaluations, the best and the checkpoints of runs that go on: nothing on record is forgotten.

One rank tells it all in one launch. The rate is so small that no weight moves: every evaluation has
the value of the first, and which one is the best is what a test writes into the record.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import corpus
from tests.support.ranks import run_ranks
from tests.support.sessions import cut, run_of
from trainer.checkpoint.manifest import read_manifest, verify
from trainer.checkpoint.save import mark_best
from trainer.errors import TrainerError

pytestmark = pytest.mark.dist

STILL = (
    "eval.sets=[{{name: pairs, task: sts, path: sts.jsonl}}]",
    "eval.best_metric=pairs.spearman",
    *("train.schedule=constant", "train.warmup_ratio=0", "train.learning_rate=1e-12"),
)
MORE = (
    "eval.sets=[{{name: pairs, task: sts, path: sts.jsonl}}, "
    "{{name: again, task: sts, path: sts.jsonl}}]"
)
CHANGES = ("os.rename", "os.remove", "os.rmdir")
"""What the interpreter reports just before it asks the system."""


@dataclass
class Told:
    """What the rank brings back, by run."""

    starts: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    evaluated: dict[str, list[int]] = field(default_factory=dict)
    """Steps on record."""
    best: dict[str, str | None] = field(default_factory=dict)
    """What `checkpoints/best` names."""
    kept: dict[str, list[str]] = field(default_factory=dict)
    """Names of checkpoints."""
    moments: list[list[str]] = field(default_factory=list)
    """Valid checkpoints before each change in the folder of the run that patience ended."""
    model: list[bool] = field(default_factory=list)
    """Whether `model/` had its weights before each change."""
    names_given: list[str] = field(default_factory=list)
    """By renaming in it."""
    merged: list[str] = field(default_factory=list)
    """What a refused merge left of the earlier one."""


def valid(checkpoints: Path) -> list[str]:
    """Names of the checkpoints that are as their manifests say."""
    good = []
    for folder in checkpoints.glob("step-*"):
        try:
            manifest = read_manifest(folder)
            verify(folder, manifest, manifest.files)
        except TrainerError:
            continue
        good.append(folder.name)
    return sorted(good)


def watch_changes(checkpoints: Path, told: Told) -> None:
    """Note from now on which checkpoints are valid before each change; a kill may come there."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES:
            told.moments.append(valid(checkpoints))
            told.model.append((checkpoints.parent / "model" / "model.safetensors").is_file())
        if event == "os.rename" and Path(str(arguments[1])).parent == checkpoints:
            told.names_given.append(Path(str(arguments[1])).name)

    sys.addaudithook(note)


def rewrite(run: Path, values: dict[int, float]) -> None:
    """Write other scores into the record."""
    path = run / "eval.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["step"] in values:
            line["sets"]["pairs"]["spearman"] = values[line["step"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def body(rank: int, world_size: int, folder: Path) -> Told:
    from trainer.engine.loop import Interrupt

    told = Told()

    def run(name: str, *overrides: str, resume: bool = True, place: str = "") -> None:
        one = run_of(folder, place or name, *STILL, *overrides)
        told.starts[name] = one.prepare(resume=resume)
        told.done[name] = one.fit(told.starts[name], Interrupt())
        if name.startswith("ended"):
            one.artifacts.export()
        one.session.built.engine.destroy()
        out = folder / (place or name)
        lines = (out / "eval.jsonl").read_text().splitlines()
        told.evaluated[name] = [json.loads(line)["step"] for line in lines]
        best = out / "checkpoints" / "best"
        told.best[name] = best.read_text() if best.exists() else None
        told.kept[name] = sorted(path.name for path in (out / "checkpoints").glob("step-*"))

    # evaluated after step 2, because it is the last one; then neither it nor 4 is due any more
    often = ("checkpoint.every_steps=1", "checkpoint.keep=9")
    run("longer", *often, "train.max_steps=2", "eval.every_steps=2", resume=False)
    rewrite(folder / "longer", {0: -1.0})
    run("longer", *often, "train.max_steps=5", "eval.every_steps=3")
    # the newest one is damaged, and it was the best
    cut(folder / "longer", folder / "fallen", after=5)
    mark_best(folder / "fallen" / "checkpoints", "step-5")
    rewrite(folder / "fallen", {5: 0.99999})
    (folder / "fallen" / "checkpoints" / "step-5" / "manifest.json").unlink()
    run("fallen", *often, "train.max_steps=5", "eval.every_steps=3")
    # a set that was never evaluated is, where the run goes on and it is due
    run("another set", *often, MORE, "train.max_steps=5", "eval.every_steps=5", place="fallen")
    # after step 2 it is saved, evaluated, and patience ends
    ends = ("checkpoint.every_steps=2", "checkpoint.keep=1", "eval.every_steps=1",
            "eval.patience=2", "train.max_steps=4")  # fmt: skip
    watch_changes(folder / "ended" / "checkpoints", told)
    run("ended", *ends, resume=False)
    run("ended again", *ends, place="ended")
    told.merged = failed_merge(folder / "ended")
    return told


def failed_merge(run: Path) -> list[str]:
    """What is left of an earlier `merged/` when merging again is refused."""
    from trainer.distributed.group import join
    from trainer.merge.merge_run import merge_last
    from trainer.recipe.checkpoint import MergeRecipe

    (run / "merged").mkdir()
    (run / "merged" / "old").touch()
    base = (str(run.parent / "model"), None)
    with pytest.raises(TrainerError, match="step-9: folder = absent"):
        merge_last(MergeRecipe(last=1), base, [run / "checkpoints" / "step-9"], run / "merged",
                   join(timeout_minutes=2), finish=lambda folder: None)  # fmt: skip
    return [path.name for path in (run / "merged").iterdir()]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("workspace")
    corpus.make_workspace(folder)
    (alone,) = run_ranks(body, 1, folder, timeout_sec=240)
    return alone


def test_an_evaluation_stays_on_record_when_its_step_is_not_due_any_more(told: Told) -> None:
    assert (told.starts["longer"], told.done["longer"]) == (2, 5)
    assert told.evaluated["longer"] == [0, 2, 3, 5]
    assert told.best["longer"] == "step-2"


def test_the_best_is_one_on_record(told: Told) -> None:
    assert told.starts["fallen"] == 4
    assert told.evaluated["fallen"] == [0, 2, 3, 5]
    assert told.best["fallen"] == "step-2"


def test_a_new_set_is_evaluated_where_the_run_goes_on(told: Told) -> None:
    assert told.starts["another set"] == told.done["another set"] == 5
    assert told.evaluated["another set"] == [0, 2, 3, 5, 5]


def test_patience_that_has_ended_ends_the_run_again(told: Told) -> None:
    assert (told.done["ended"], told.evaluated["ended"]) == (2, [0, 1, 2])
    assert (told.starts["ended again"], told.done["ended again"]) == (2, 2)
    assert told.evaluated["ended again"] == [0, 1, 2]


def test_at_every_moment_there_is_a_valid_checkpoint(told: Told) -> None:
    # steps 1 and 2 are no better than step 0, of which there is no checkpoint to mark
    assert told.kept["ended"] == ["step-2"]
    assert [name for name in told.names_given if name.startswith("step-")] == ["step-2"]
    first = told.moments.index(["step-2"])
    assert all(told.moments[first:]), told.moments


def test_a_model_and_a_merge_stay_until_another_is_there(told: Told) -> None:
    assert all(told.model[told.model.index(True) :]), told.model
    assert len(told.model) > told.model.index(True) + 3
    assert told.merged == ["old"]
