"""The demos' driver: what it shows, keeps and removes; the runs are `make demo`, `make llm`."""

import json
from pathlib import Path

import pytest

from demo import driver
from demo.driver import Driver
from tools import demo, llm
from trainer.recipe.load import load_recipe


def evaluation(step: int, ndcg: float, spearman: float) -> dict[str, object]:
    metrics = {"docs": {"ndcg_at_10": ndcg, "mrr_at_10": 0.5}, "pairs": {"spearman": spearman}}
    return {"step": step, "sets": metrics}


def test_table_compares_the_first_and_the_last_evaluation(tmp_path: Path) -> None:
    lines = [evaluation(0, 0.02, 0.25), evaluation(5, 0.2, 0.4), evaluation(9, 0.34, 0.5)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before, after = demo.DRIVER.evaluations(tmp_path)
    table = driver.table(before, after, ("untouched", "after"))
    assert table.splitlines()[2].split()[-3:] == ["untouched", "after", "change"]
    assert [row.split() for row in table.splitlines()[-2:]] == [
        ["docs", "nDCG@10", "0.020", "0.340", "+0.320"],
        ["pairs", "Spearman", "0.250", "0.500", "+0.250"],
    ]
    assert "After 9 steps" in table


def test_a_run_without_both_evaluations_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eval.jsonl").write_text(json.dumps(evaluation(0, 0.1, 0.1)) + "\n")
    with pytest.raises(SystemExit, match="1"):
        demo.DRIVER.evaluations(tmp_path)
    assert "lines = 1; expected an evaluation before and one after" in capsys.readouterr().err


def test_a_fresh_run_keeps_data_and_base_model(tmp_path: Path) -> None:
    kept = ("data", "base")
    for name in (*kept, "checkpoints", "model", "tensorboard"):
        (tmp_path / name).mkdir()
    for name in ("recipe.yaml", "metrics.jsonl", "eval.jsonl", "report.html"):
        (tmp_path / name).touch()
    driver.remove_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_finished_run_is_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    demo.DRIVER.train(tmp_path)
    assert "holds a finished run" in capsys.readouterr().out


def test_a_command_that_fails_ends_the_demo_with_its_code(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="3"):
        demo.DRIVER.run("python", "-c", "raise SystemExit(3)")
    assert "ended with exit code 3" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        demo.DRIVER.run("no-such-command")


@pytest.mark.parametrize("one", [demo.DRIVER, llm.DRIVER], ids=lambda one: one.name)
def test_ranks_share_the_batches_of_the_recipe(one: Driver) -> None:
    recipe = load_recipe(driver.ROOT / one.recipe)
    assert recipe.output_dir == one.folder
    assert recipe.tasks["ir"].global_batch_size % one.batch_divisor == 0
    assert recipe.tasks["sts"].global_batch_size % one.batch_divisor == 0


def test_the_large_demo_is_scored_on_the_data_of_the_small_one() -> None:
    small, large = (load_recipe(driver.ROOT / one.recipe) for one in (demo.DRIVER, llm.DRIVER))
    assert small.data.root == large.data.root == f"{llm.DATA}/data"
    # the sets of tasks come first; the small one has some of every other kind behind them
    assert small.eval.sets[:2] == large.eval.sets
    assert large.model.path.startswith(f"package:{llm.PACKAGE}/")


def test_the_large_demo_shows_the_small_ones_scores(tmp_path: Path) -> None:
    assert llm.beside_demo(tmp_path) == ""
    lines = [evaluation(0, 0.02, 0.25), evaluation(9, 0.34, 0.5)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert llm.beside_demo(tmp_path).endswith("ended with docs 0.340, pairs 0.500.")


def test_the_large_demo_asks_for_room_and_for_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.refuse_full_disk(tmp_path / "runs" / "a", 1)
    with pytest.raises(SystemExit, match="2"):
        llm.refuse_full_disk(tmp_path / "runs" / "a", 1 << 60)
    assert "expected at least 1152921504.6 GB. Make room." in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        llm.refuse_missing_package("no_such_llm")
    assert "package no_such_llm = missing" in capsys.readouterr().err
