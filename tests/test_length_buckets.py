"""Steps of like length in whole runs of two ranks: resumed, changed by name, with tokens ahead."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.corpus import make_workspace
from tests.support.workspace_runs import run, steps, weights
from trainer.data.lengths import lengths_of
from trainer.data.planned import plan_of
from trainer.data.sources import open_sources
from trainer.recipe.load import load_recipe

pytestmark = [pytest.mark.dist, pytest.mark.slow]

BUCKETS = ("data.length_buckets=4", "data.sources.sts.length_buckets=2", "data.workers=1")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    return folder


@pytest.fixture(scope="module")
def finished(workspace: Path) -> Path:
    ended = run(workspace, "run", *BUCKETS)
    assert ended.code == 0, ended.out + ended.err
    return workspace / "run"


def test_rows_of_a_step_are_of_like_length(finished: Path) -> None:
    recipe = load_recipe(finished / "recipe.yaml", [])
    plain = load_recipe(
        finished / "recipe.yaml", ["data.length_buckets=null", "data.sources.sts.length_buckets=1"]
    )
    sources = open_sources(recipe.data)
    lengths = {source.name: lengths_of(source).bytes_of_row.astype(int) for source in sources}

    def spread(plan: Any) -> float:
        found = map(plan.at, range(20))
        return float(np.mean([np.ptp(lengths[step.source][step.rows]) for step in found]))

    # a quarter and a half of all lengths, and steps that are filled by two buckets or epochs
    assert spread(plan_of(recipe, sources)) < 0.75 * spread(plan_of(plain, sources))
    (facts,) = (json.loads((finished / "run.json").read_text()),)
    assert {one["source"]: one["rows_seen"] for one in facts["exposure"]} == {
        name: sum(len(plan.rows) for plan in map(plan_of(recipe, sources).at, range(20))
                  if plan.source == name)
        for name in lengths
    }  # fmt: skip


def test_tokens_ahead_one_rank_and_a_resume_change_nothing(finished: Path, workspace: Path) -> None:
    ended = run(workspace, "ahead", *BUCKETS, "data.tokens=ahead", "data.workers=0")
    assert ended.code == 0, ended.out + ended.err
    assert steps(workspace / "ahead") == steps(finished)
    assert weights(workspace / "ahead") == weights(finished)
    ended = run(workspace, "alone", *BUCKETS, ranks=1)
    assert ended.code == 0, ended.out + ended.err
    for one, other in zip(steps(workspace / "alone"), steps(finished), strict=True):
        # float32 sums in another order, over 20 Adam steps
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert (one["source"], one["tokens"]) == (other["source"], other["tokens"])
    cut = workspace / "cut"
    shutil.copytree(finished, cut)
    shutil.rmtree(cut / "checkpoints" / "step-20")
    shutil.rmtree(cut / "model")
    ended = run(workspace, "cut", *BUCKETS, "--resume")
    assert ended.code == 0, ended.out + ended.err
    assert "resumed from step-10" in ended.out
    assert steps(cut) == steps(finished)
    assert weights(cut) == weights(finished)


def test_another_number_of_buckets_is_refused_and_passes_by_name(
    finished: Path, workspace: Path
) -> None:
    changed = workspace / "changed"
    shutil.copytree(finished, changed)
    shutil.rmtree(changed / "checkpoints" / "step-20")
    shutil.rmtree(changed / "model")
    ended = run(workspace, "changed", "data.sources.sts.length_buckets=2", "--resume")
    assert ended.code == 2
    assert "data.length_buckets = None (was 4)" in ended.err
    assert "--resume --change data.length_buckets" in ended.err
    ended = run(workspace, "changed", *BUCKETS, "--resume", "--change", "data.length_buckets=2")
    assert ended.code == 0, ended.out + ended.err
    was, now = steps(finished), steps(changed)
    assert now[:10] == was[:10]
    assert [line["source"] for line in now] == [line["source"] for line in was]
    assert [line["loss"] for line in now[10:]] != [line["loss"] for line in was[10:]]
