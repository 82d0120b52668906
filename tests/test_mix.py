"""Steps of several sources in whole runs of two ranks: resumed, with tokens ahead, on the page."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.support.corpus import make_workspace, sentence, write_lines
from tests.support.workspace_runs import run, steps, weights
from trainer.data.planned import plan_of
from trainer.data.sources import open_sources
from trainer.recipe.load import load_recipe

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual sources, and a small one of five rows that shares the steps of retrieval."""
    import random

    folder = tmp_path_factory.mktemp("workspace")
    recipe = make_workspace(folder)
    rng = random.Random(4)
    large = [json.loads(line) for line in (folder / "ir.jsonl").read_text().splitlines()]
    small = [
        # three of its queries and passages are those of the large one
        {"query": row["query"], "positives": [sentence(rng)], "negatives": row["positives"]}
        for row in large[:3]
    ]
    small += [{"query": sentence(rng), "positives": [sentence(rng)], "negatives": []}] * 2
    write_lines(folder / "small.jsonl", small)
    values = yaml.safe_load(recipe.read_text())
    values["data"]["sources"].append(
        {"name": "small", "task": "ir", "path": "small.jsonl", "query_instruction": "w3 "}
    )
    values["data"]["mix"] = {"search": ["ir", "small"]}
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def finished(workspace: Path) -> Path:
    ended = run(workspace, "run", "data.workers=1")
    assert ended.code == 0, ended.out + ended.err
    return workspace / "run"


def test_steps_are_named_by_the_mix_and_counted_by_source(finished: Path) -> None:
    recipe = load_recipe(finished / "recipe.yaml", [])
    plan = plan_of(recipe, open_sources(recipe.data))
    lines = steps(finished)
    assert [line["source"] for line in lines] == [plan.at(step).source for step in range(20)]
    assert {line["source"] for line in lines} == {"search", "sts"}
    taken: Counter[str] = Counter()
    for step in range(20):
        for name, rows in plan.at(step).rows_by_source.items():
            taken[name] += len(rows)
    facts = json.loads((finished / "run.json").read_text())
    assert {one["source"]: one["rows_seen"] for one in facts["exposure"]} == dict(taken)
    assert [one["mix"] for one in facts["exposure"]] == ["search", "search", ""]
    page = (finished / "report.html").read_text()
    assert all(f">{name}<" in page for name in ("ir", "small", "sts"))
    prompts = json.loads((finished / "model" / "config_sentence_transformers.json").read_text())
    assert "w3 " in prompts["prompts"].values() or "w1 w2 " in prompts["prompts"].values()


def test_tokens_ahead_one_rank_and_a_resume_change_nothing(finished: Path, workspace: Path) -> None:
    ended = run(workspace, "ahead", "data.tokens=ahead", "data.workers=0")
    assert ended.code == 0, ended.out + ended.err
    assert steps(workspace / "ahead") == steps(finished)
    assert weights(workspace / "ahead") == weights(finished)
    ended = run(workspace, "alone", ranks=1)
    assert ended.code == 0, ended.out + ended.err
    for one, other in zip(steps(workspace / "alone"), steps(finished), strict=True):
        # float32 sums in another order, over 20 Adam steps
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert (one["source"], one["tokens"]) == (other["source"], other["tokens"])
    cut = workspace / "cut"
    shutil.copytree(finished, cut)
    shutil.rmtree(cut / "checkpoints" / "step-20")
    shutil.rmtree(cut / "model")
    ended = run(workspace, "cut", "--resume")
    assert ended.code == 0, ended.out + ended.err
    assert steps(cut) == steps(finished)
    assert weights(cut) == weights(finished)


def test_another_mix_is_another_run(finished: Path, workspace: Path) -> None:
    ended = run(workspace, "run", "--resume", "data.mix={}", "tasks.ir.global_batch_size=4")
    assert ended.code == 2
    assert "data.mix = {} (was {'search': ['ir', 'small']})" in ended.err
    assert "data.mix cannot change: rows are dealt otherwise" in ended.err


def test_the_selfcheck_and_the_dry_run_know_mixes(workspace: Path) -> None:
    ended = run(workspace, "checked", "--selfcheck")
    assert ended.code == 0, ended.out + ended.err
    assert "selfcheck passed" in ended.out
    assert " search " in ended.out
    ended = run(workspace, "dry", "--dry-run", ranks=1)
    assert ended.code == 0, ended.out + ended.err
    assert " small " in ended.out
