"""A loss or gradient that is not finite: the step updates nothing, is told, kept, and counted."""

import json
from pathlib import Path

import pytest

from tests.support.corpus import make_workspace
from tests.support.forked import finish_forked
from tests.support.launched import lines

pytestmark = pytest.mark.dist

SCRIPT = "tests/support/faults.py"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def test_planted_nan_stops_before_the_update_and_is_named(recipe: Path, tmp_path: Path) -> None:
    arguments = ("--recipe", str(recipe), f"output_dir={tmp_path}/run", "eval.sets=[]")
    ended = finish_forked(tmp_path, *arguments, script=SCRIPT, ranks=2, PLANT="nan:7:1")
    assert ended.code == 1
    assert ended.err.count("step 7 (") == 1, ended.err
    assert "gradient norm = not finite; expected a finite number" in ended.err
    assert "Traceback" not in ended.err
    steps = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in steps] == list(range(7))
    kept = json.loads((tmp_path / "run" / "bad_steps" / "step-7.json").read_text())
    assert (kept["step"], kept["fault"]) == (7, "gradient norm = not finite")
    assert f"step 7 ({kept['task']}, source {kept['source']}, rows {kept['rows'][0]}," in ended.err
    assert [record["row"] for record in kept["records"]] == kept["rows"]
    data = (recipe.parent / f"{kept['source']}.jsonl").read_text().splitlines()
    first = json.loads(data[kept["rows"][0]])
    text = "query" if kept["task"] == "ir" else "text1"
    assert kept["records"][0][text] == first[text]


def test_skipped_step_is_counted_and_training_goes_on(recipe: Path, tmp_path: Path) -> None:
    arguments = ("--recipe", str(recipe), f"output_dir={tmp_path}/run", "eval.sets=[]")
    # a rate that does not depend on the number of steps, so that the run may be made longer
    arguments += ("train.schedule=constant", "train.warmup_ratio=0")
    more = ("train.max_skipped_steps=1", "train.max_steps=10", "checkpoint.every_steps=8")
    ended = finish_forked(tmp_path, *arguments, *more, script=SCRIPT, PLANT="nan:7:0")
    assert ended.code == 0, ended.err
    assert "skipped without an update, 1 of at most 1" in ended.out
    steps = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in steps] == list(range(10))
    assert [line["skipped_steps"] for line in steps] == [0] * 7 + [1] * 3
    assert [line["grad_norm"] is None for line in steps] == [False] * 7 + [True] + [False] * 2
    assert (tmp_path / "run" / "report.html").exists()
    # the count is part of a checkpoint: one more such step after a resume is one too many
    arguments += ("train.max_skipped_steps=1", "train.max_steps=12", "--resume")
    ended = finish_forked(tmp_path, *arguments, script=SCRIPT, PLANT="nan:11:0")
    assert ended.code == 1
    assert "train.max_skipped_steps = 1, 1 skipped before" in ended.err
