"""A further kind of task and a further term need one module, registered in the public tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import corpus
from tests.support.ranks import run_ranks
from tests.support.sessions import cut, run_session
from trainer.run_folder.layout import RunFolder

DUPLICATES = [{"left": f"w{i} w{i + 1}", "right": f"w{i + 1} w{i}"} for i in range(16)]


def write_recipe(folder: Path) -> None:
    """The workspace's recipe with duplicates beside the others, and with the margin."""
    corpus.make_workspace(folder)
    corpus.write_lines(folder / "duplicates.jsonl", DUPLICATES)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    one = {"name": "twice", "task": "duplicates", "path": "duplicates.jsonl"}
    recipe["data"]["sources"][0] |= {"global_batch_size": 4, "negatives": 2}
    recipe["data"]["sources"].append(one | {"global_batch_size": 6})
    recipe["eval"]["sets"].append(one)
    recipe["tasks"]["duplicates"] = {"global_batch_size": 4}
    recipe["tasks"]["ir"]["weights"] = {"margin": 0.5}
    recipe["train"] |= {"max_steps": 6, "learning_rate": 0.003}
    recipe["checkpoint"]["every_steps"] = 3
    recipe["eval"]["every_steps"] = 3
    (folder / "third.yaml").write_text(yaml.safe_dump(recipe))


def open_run(folder: Path, name: str) -> Any:
    from tests.support import third_task  # noqa: F401 - registers the task
    from trainer.distributed.group import join
    from trainer.preflight.checks import check_run
    from trainer.recipe.load import load_recipe
    from trainer.session.open import open_session
    from trainer.session.train import TrainingRun

    recipe = load_recipe(folder / "third.yaml", [f"output_dir={folder}/{name}"])
    data = check_run(recipe, world_size=2, resume=True)
    return TrainingRun.of(open_session(recipe, data, join(timeout_minutes=2)))


def body(rank: int, world_size: int, folder: Path) -> None:
    from torch.distributed import barrier

    run = open_run(folder, "whole")
    run_session(run, resume=False)
    if rank == 0:
        run.artifacts.report()
        cut(folder / "whole", folder / "cut", after=3)
    barrier()
    run.session.built.engine.destroy()
    run_session(open_run(folder, "cut"), resume=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    folder = tmp_path_factory.mktemp("third")
    write_recipe(folder)
    run_ranks(body, 2, folder, timeout_sec=240)
    return {name: RunFolder(folder / name) for name in ("whole", "cut")}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.dist
def test_a_third_task_trains_beside_the_others(runs: dict[str, RunFolder]) -> None:
    steps = lines(runs["whole"].metrics)
    assert sorted(step["task"] for step in steps) == ["duplicates"] * 2 + ["ir"] * 2 + ["sts"] * 2
    own = [step for step in steps if step["task"] == "duplicates"]
    assert all(step["loss"] == pytest.approx(step["distance"]) for step in own)
    for step in (step for step in steps if step["task"] == "ir"):
        assert step["loss"] == pytest.approx(step["infonce"] + 0.5 * step["margin"], rel=1e-6)


@pytest.mark.dist
def test_sources_have_batches_of_their_own(runs: dict[str, RunFolder]) -> None:
    exposure = json.loads(runs["whole"].facts.read_text())["exposure"]
    rows = {one["source"]: one["rows_seen"] / one["steps"] for one in exposure}
    assert rows == {"ir": 4, "sts": 8, "twice": 6}
    recipe = yaml.safe_load(runs["whole"].recipe.read_text())
    assert recipe["tasks"]["ir"]["global_batch_size"] == 8
    # a query, two positives and two negatives of four rows, of at most 12 and 16 tokens
    tokens = [step["tokens"] for step in lines(runs["whole"].metrics) if step["task"] == "ir"]
    assert all(number <= 4 * (12 + 4 * 16) for number in tokens)


@pytest.mark.dist
def test_a_third_task_is_evaluated_and_reported(runs: dict[str, RunFolder]) -> None:
    scores = [line["sets"]["twice"]["closeness"] for line in lines(runs["whole"].evaluations)]
    assert len(scores) == 3
    assert scores[-1] > scores[0]
    page = runs["whole"].report.read_text()
    for words in ("Loss, duplicates", "Margin, retrieval", "Closeness"):
        assert words in page
    prompts = json.loads((runs["whole"].model / "config_sentence_transformers.json").read_text())
    assert "duplicates" in prompts["prompts"]


@pytest.mark.dist
def test_a_third_task_resumes_to_the_bit(runs: dict[str, RunFolder]) -> None:
    whole, resumed = (lines(runs[name].metrics) for name in ("whole", "cut"))
    timed = ("seconds", "tokens_per_sec")
    for a, b in zip(whole, resumed, strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed
        }
    weights = [(runs[name].model / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
