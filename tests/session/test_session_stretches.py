"""A run of several stretches, stopped and killed in each, ends with the bits of one that was not.

It is made longer, then slower, then given rows. One launch tells it all for a kind of run.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import corpus
from tests.support.launched import lines
from tests.support.ranks import run_ranks
from tests.support.sessions import cut, go_on, run_of
from trainer.checkpoint.compare import is_same
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.tensors import read_whole
from trainer.checkpoint.zero_format import read_progress, read_zero
from trainer.data.plan import make_plan
from trainer.data.stretch import stretch_at
from trainer.engine.lr import learning_rate
from trainer.run_folder.facts import read_run_stretches
from trainer.run_folder.finished import read_finished

pytestmark = pytest.mark.dist

LORA = "model.lora={{rank: 3, alpha: 8, dropout: 0.1, targets: [q_proj, v_proj, down_proj]}}"
KINDS: dict[str, tuple[str, ...]] = {"full": (), "lora": (LORA,)}
CHANGES: list[tuple[str, ...]] = [
    (),
    ("train.max_steps=8",),
    ("train.learning_rate=2e-4", "train.max_steps=12", "tasks.ir.weights.infonce=0.5"),
    ("data.sources.ir.path=more.jsonl", "train.max_steps=16"),
]
"""What each stretch changes; four steps each."""
STEPS = 4
RATES = (1e-3, 1e-3, 2e-4, 2e-4)
KILLED_AFTER = (2, 4, 10, 14)
"""The step of the last checkpoint before the kill: within a stretch, or before its first step."""


@dataclass
class Told:
    """What the first rank brings back."""

    starts: dict[str, list[int]] = field(default_factory=dict)
    """First step of each part of a run, by run."""
    kept: list[bool] = field(default_factory=list)
    """Whether the marker of the end before was there when a run had reached a further end."""


def body(rank: int, world_size: int, folder: Path, kind: str) -> Told:
    often = ("train.max_steps=4", "checkpoint.every_steps=2", "checkpoint.keep=99", *KINDS[kind])
    from trainer.engine.loop import Interrupt

    told = Told({name: [] for name in ("whole", "killed", "at once")})
    first = run_of(folder, "whole", *often)

    def part(name: str, changes: tuple[str, ...]) -> None:
        """Go on with a run until its end, by the one engine that there is."""
        run = go_on(first, folder, name, *often, changes=changes)
        told.starts[name].append(run.prepare(resume=True))
        run.fit(told.starts[name][-1], Interrupt())
        last = told.starts[name][-1]
        if name == "whole" and last:
            told.kept.append(read_finished(folder / name) == {"step": last})

    for number, changes in enumerate(CHANGES):
        alone(rank, partial(mark, folder / "whole", number))
        part("whole", changes)
        if number:
            part("killed", changes)
        else:
            # an engine that has trained cannot begin a run again
            alone(rank, partial(shutil.copytree, folder / "whole", folder / "killed"))
        alone(rank, partial(kill, folder / "killed", KILLED_AFTER[number]))
        part("killed", ())
    alone(rank, partial(cut, folder / "killed", folder / "at once", after=2))
    part("at once", ())
    return told


def mark(folder: Path, number: int) -> None:
    """Let a part look like the end of a run, whose marker the next part must keep."""
    if number:
        (folder / "finished.json").write_text(json.dumps({"step": STEPS * number}))


def alone(rank: int, act: Callable[[], Any]) -> None:
    """Do something on the first rank while the others wait."""
    from torch.distributed import barrier

    barrier()
    if rank == 0:
        act()
    barrier()


def kill(folder: Path, after: int) -> None:
    """Leave a run as a kill does: with lines of steps that no checkpoint has."""
    for path in (folder / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > after:
            shutil.rmtree(path)


FAST = [(2, "full")]
SLOW = [(1, "full"), (1, "lora"), (2, "lora")]


@pytest.fixture(
    scope="module",
    params=[*FAST, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)],
    ids=lambda one: f"{one[1]} on {one[0]}",
)
def launch(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Told]:
    """All parts of the runs of one kind."""
    world_size, kind = request.param
    folder = tmp_path_factory.mktemp("workspace")
    corpus.make_workspace(folder)
    rows = (folder / "ir.jsonl").read_text()
    fresh = [{"query": f"w{n} w9", "positives": [f"w{n} w{n + 1} w8"]} for n in range(20)]
    (folder / "more.jsonl").write_text(rows + "".join(json.dumps(row) + "\n" for row in fresh))
    return folder, run_ranks(body, world_size, folder, kind, timeout_sec=600)[0]


def state(folder: Path) -> dict[str, Tensor]:
    """Every parameter and moment of the last checkpoint."""
    path = folder / "checkpoints" / f"step-{STEPS * len(CHANGES)}"
    found = {name: read_whole(one) for name, one in read_zero(path).tensors.items()}
    for moment, tensors in read_progress(path).moments.items():
        found |= {f"{moment} {name}": read_whole(one) for name, one in tensors.items()}
    return found


def steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without times."""
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "tokens_per_sec")}
        for line in lines(folder / "metrics.jsonl")
    ]


def test_parts_begin_where_they_should(launch: tuple[Path, Told]) -> None:
    _, told = launch
    assert told.starts["whole"] == [0, 4, 8, 12]
    assert told.starts["killed"] == [2, 4, 4, 8, 10, 12, 14]
    # all stretches but the end of the first one are still to come
    assert told.starts["at once"] == [2]


@pytest.mark.parametrize("name", ["killed", "at once"])
def test_kills_and_a_fall_back_change_no_bit(launch: tuple[Path, Told], name: str) -> None:
    folder, _ = launch
    whole, other = state(folder / "whole"), state(folder / name)
    assert whole.keys() == other.keys()
    assert [key for key, one in whole.items() if not torch.equal(one, other[key])] == []
    assert any(key.startswith("exp_avg_sq ") for key in whole)
    assert steps(folder / name) == steps(folder / "whole")


def test_every_checkpoint_says_which_stretches_its_steps_lie_in(launch: tuple[Path, Told]) -> None:
    folder, _ = launch
    for name in ("whole", "killed", "at once"):
        stretches = read_run_stretches(folder / name)
        assert [one.first_step for one in stretches] == [0, 4, 8, 12]
        assert [one.changed for one in stretches] == [
            (),
            ("train.max_steps",),
            ("tasks.ir.weights.infonce", "train.learning_rate", "train.max_steps"),
            ("data.sources.ir.path", "train.max_steps"),
        ]
        assert [one.sources["ir"].num_rows for one in stretches] == [40, 40, 40, 60]
        for step in (2, 4, 6, 8, 14, 16):
            saved = read_manifest(folder / name / "checkpoints" / f"step-{step}")
            expected = [one for one in stretches if one.first_step < step]
            # the copies of the run have another output_dir from there on
            assert name != "whole" or list(saved.stretches) == expected
            assert len(saved.stretches) == len(expected)
            assert all(map(is_same, saved.stretches, expected))
            assert saved.recipe == saved.stretches[-1].recipe


def test_steps_are_those_of_their_stretch(launch: tuple[Path, Told]) -> None:
    from trainer.data.stretch import plan_stretches

    folder, _ = launch
    found = steps(folder / "whole")
    planned = plan_stretches(read_run_stretches(folder / "whole"))
    for line in found:
        number = line["step"] // STEPS
        plan = stretch_at(planned, line["step"]).plan.at(line["step"])
        assert (line["source"], line["task"]) == (plan.source, plan.task)
        num_steps = STEPS * (number + 1)
        assert line["learning_rate"] == learning_rate(
            line["step"],
            peak=RATES[number],
            num_steps=num_steps,
            warmup_steps=round(0.05 * num_steps),
            shape="cosine",
            min_ratio=0.0,
        )
    # a run of this length from the start trains on the same rows until some are added
    whole = make_plan(planned[1].recipe, {"ir": 40, "sts": 40})
    for step in range(12):
        ours = stretch_at(planned, step).plan.at(step)
        assert ours.rows.tolist() == whole.at(step).rows.tolist()


def test_facts_count_the_rows_of_the_whole_run(launch: tuple[Path, Told]) -> None:
    folder, _ = launch
    facts = json.loads((folder / "killed" / "run.json").read_text())
    assert facts["num_steps"] == 16
    exposure = {one["source"]: one for one in facts["exposure"]}
    # eight steps of eight rows: an epoch of 40, then 20 that are left and 20 added ones under way
    assert exposure["ir"]["rows_seen"] == 64
    assert exposure["ir"]["num_rows"] == 60
    counts = [exposure["ir"][key] for key in ("never", "once", "twice", "more")]
    assert sum(counts) == 60
    assert counts[1] + 2 * counts[2] == 64
    assert counts[3] == 0


def test_what_a_finished_run_left_stays_while_it_goes_on(launch: tuple[Path, Told]) -> None:
    _, told = launch
    assert told.kept == [True, True, True]
