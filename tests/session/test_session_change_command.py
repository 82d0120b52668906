"""The real command goes on with a finished run, is killed on the way, and reaches the new end."""

import json
from pathlib import Path

import pytest

from tests.support import corpus
from tests.support.forked import finish_forked, forked
from tests.support.launched import lines, num_steps
from tests.test_run_cli import snapshot
from trainer.run_folder.facts import read_run_stretches
from trainer.run_folder.finished import hash_folder, read_finished

pytestmark = pytest.mark.dist

END = 40
"""Steps that a test has time to kill a run in."""


def test_a_finished_run_goes_on_to_a_further_end(tmp_path: Path) -> None:
    corpus.make_workspace(tmp_path)
    run = tmp_path / "run"
    common = ["--recipe", str(tmp_path / "recipe.yaml"), "eval.sets=[]", "train.max_steps=2"]
    ended = finish_forked(tmp_path, *common)
    assert ended.code == 0, ended.out + ended.err
    before = (read_finished(run), hash_folder(run / "model"))
    assert (before[0] or {})["step"] == 2

    # what it would go on with is said before, and nothing of the run is touched
    files = snapshot(run)
    asked = ["--resume", "--change", f"train.max_steps={END}", "train.learning_rate=3e-4"]
    ended = finish_forked(tmp_path, *common, "--dry-run", *asked)
    assert ended.code == 0, ended.out + ended.err
    for words in (
        f"Steps: {END}, of which",
        f"resumed from step-2: 2 steps done, {END - 2} to come; step 2 has a learning rate of ",
        f"since then: train.max_steps = {END} (was 2)",
        f"2 to {END - 1}  train.learning_rate = 0.0003 (was 0.001); train.max_steps = {END} (was",
    ):
        assert words in ended.out, ended.out
    ended = finish_forked(tmp_path, *common, "--dry-run", "--resume", "model.pooling=mean")
    assert ended.code == 2
    assert "model.pooling cannot change" in ended.err
    assert snapshot(run) == files

    change = ["--resume", "--change", f"train.max_steps={END}", "checkpoint.every_steps=100"]
    with forked(tmp_path, *common, *change) as command:
        command.until(lambda: num_steps(run) >= 6)
    # killed without a checkpoint of its own: what was there is valid, and the stretch is known
    assert (read_finished(run), hash_folder(run / "model")) == before
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-2"]
    first, second = read_run_stretches(run)
    assert (first.first_step, second.first_step) == (0, 2)
    assert second.changed == ("checkpoint.every_steps", "train.max_steps")
    assert second.recipe["train"]["max_steps"] == END

    ended = finish_forked(tmp_path, *common, "--resume")
    assert ended.code == 0, ended.out + ended.err
    for words in (
        f"the run goes on with train.max_steps = {END}, as it was changed to (the recipe says 2)",
        "resumed from step-2: next step is 2",
    ):
        assert words in ended.out
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == list(range(END))
    assert json.loads((run / "run.json").read_text())["num_steps"] == END
    found = read_finished(run) or {}
    assert (found["step"], found["export"]["sha256"]) == (END, hash_folder(run / "model"))
    assert found["export"]["sha256"] != before[1]
    assert "<h2>Stretches</h2>" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_run_that_patience_ended_trains_on_once_patience_is_changed(tmp_path: Path) -> None:
    corpus.make_workspace(tmp_path)
    run = tmp_path / "run"
    # no weight moves, so that no evaluation is better than the first
    still = ("train.schedule=constant", "train.warmup_ratio=0", "train.learning_rate=1e-12")
    sets = f"[{{name: pairs, task: sts, path: {tmp_path / 'sts.jsonl'}}}]"
    judged = ("eval.every_steps=1", "eval.best_metric=pairs.spearman", "eval.patience=1")
    common = ["--recipe", str(tmp_path / "recipe.yaml"), *still, f"eval.sets={sets}", *judged,
              "train.max_steps=4", "checkpoint.every_steps=1"]  # fmt: skip
    ended = finish_forked(tmp_path, *common)
    assert ended.code == 0, ended.out + ended.err
    assert (read_finished(run) or {})["step"] == 1
    before = snapshot(run)
    longer = ["--resume", "--change", "train.max_steps=6", "seed=3"]
    ended = finish_forked(tmp_path, *common, *longer)
    assert ended.code == 2, ended.out + ended.err
    assert "eval.patience = 1, which ended the run at step 1" in ended.err
    assert snapshot(run) == before
    ended = finish_forked(tmp_path, *common, *longer, "eval.patience=null")
    assert ended.code == 0, ended.out + ended.err
    assert (read_finished(run) or {})["step"] == 6
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == list(range(6))
