"""One run of every kind of training and of evaluation: killed and resumed, planned and reported."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import corpus
from tests.support.forked import finish_forked, forked
from tests.support.held_out_sets import write_sets
from tests.support.launched import Ended, lines, num_steps
from trainer.recipe.eval_kinds import EVAL_KINDS
from trainer.run_folder.layout import RunFolder

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS, SAVED = 60, 20
"""Steps of the run, and between its checkpoints and evaluations."""
LABELS = ("w1", "w2", "w3")
STEPS_OF = {"ir": 12, "entailed": 12, "sts": 12, "topics": 12, "named": 12}
"""Steps of each source: twelve rounds of two of retrieval, one of similarity, two of labels."""
BATCHES = {"ir": 8, "entailed": 6, "sts": 8, "topics": 6, "named": 6}
"""Rows of a step of each source."""
ROWS = {"ir": 40, "entailed": 24, "sts": 40, "topics": 30, "named": 30}
"""Rows of each source."""
SETS = {
    "pairs": ("sts", "sts.jsonl"),
    "docs": ("ir", "beir"),
    "classes": ("classification", "kinds/classes"),
    "clusters": ("clustering", "kinds/clusters.jsonl"),
    "matches": ("pair_classification", "kinds/pairs.jsonl"),
    "ranked": ("reranking", "kinds/candidates.jsonl"),
    "translated": ("bitext", "kinds/bitext.jsonl"),
}
"""Kind and place of each held-out set."""


def write_inference(path: Path) -> None:
    """Premises with a row of each label."""
    rng = random.Random(2)
    rows = [
        {"premise": f"w{n} w{n + 1} w{n + 2}", "hypothesis": corpus.sentence(rng), "label": label}
        for n in range(24)
        for label in (0, 1, 2)
    ]
    corpus.write_lines(path, rows)


def write_recipe(folder: Path) -> None:
    """The workspace's recipe with inference rows, labelled texts of both forms and all kinds."""
    corpus.make_workspace(folder)
    write_inference(folder / "inference.jsonl")
    rng = random.Random(1)
    rows = [{"text": corpus.sentence(rng), "label": LABELS[n % 3]} for n in range(30)]
    corpus.write_lines(folder / "labels.jsonl", rows)
    write_sets(folder / "kinds", labels=corpus.WORDS[:4], words=corpus.WORDS[4:])
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    one = {"name": "topics", "task": "labels", "path": "labels.jsonl", "query_instruction": "w5 "}
    texts = {label: f"{label} w9" for label in LABELS}
    recipe["data"] |= {"pattern": {"ir": 2, "sts": 1, "labels": 2}, "workers": 1}
    recipe["data"]["sources"] += [
        {"name": "entailed", "task": "ir", "path": "inference.jsonl", "global_batch_size": 6},
        one,
        one | {"name": "named", "label_texts": texts, "negatives": 2},
    ]
    recipe["tasks"]["labels"] = {
        "global_batch_size": 6, "negatives": 3, "objective": "in_batch", "balance": "classes"
    }  # fmt: skip
    recipe["train"] |= {"max_steps": STEPS}
    recipe["checkpoint"] = {"every_steps": SAVED}
    recipe["eval"] = {
        "every_steps": SAVED,
        "best_metric": "mean_of_kinds",
        "sets": [{"name": n, "task": kind, "path": path} for n, (kind, path) in SETS.items()],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def planned(project: Path) -> list[list[str]]:
    """The words of each line of the dry run."""
    ended = finish_forked(project, *arguments(project, "planned"), "--dry-run", "--gpus", "2")
    assert ended.code == 0, ended.err
    return [line.split() for line in ended.out.splitlines()]


@pytest.fixture(scope="module")
def whole(project: Path) -> RunFolder:
    return finished(project, "whole", finish_forked(project, *arguments(project, "whole"), ranks=2))


@pytest.fixture(scope="module")
def resumed(project: Path) -> RunFolder:
    """The run whose ranks were all killed after the first checkpoint."""
    with forked(project, *arguments(project, "killed"), ranks=2) as run:
        run.until(lambda: num_steps(project / "killed") > SAVED + 4)
        for rank in range(2):
            os.kill(run.rank(rank), signal.SIGKILL)
        assert run.wait(within_sec=30).code != 0
    taken = num_steps(project / "killed")
    assert SAVED < taken < STEPS
    ended = finish_forked(project, *arguments(project, "killed"), "--resume", ranks=2)
    assert f"resumed from step-{taken // SAVED * SAVED}" in ended.out
    return finished(project, "killed", ended)


def arguments(project: Path, name: str) -> tuple[str, ...]:
    return ("--recipe", str(project / "recipe.yaml"), f"output_dir={project / name}")


def finished(project: Path, name: str, ended: Ended) -> RunFolder:
    assert ended.code == 0, ended.out + ended.err
    return RunFolder(project / name)


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("seconds", "tokens_per_sec")}


def test_every_kind_is_trained_and_scored(whole: RunFolder) -> None:
    steps = lines(whole.metrics)
    taken = {name: sum(step["source"] == name for step in steps) for name in STEPS_OF}
    assert taken == STEPS_OF
    # the first and the last visit of each source: it learns what it is shown
    for name in STEPS_OF:
        losses = [step["loss"] for step in steps if step["source"] == name]
        assert sum(losses[-4:]) < sum(losses[:4]), name
    scored = lines(whole.evaluations)
    assert [line["step"] for line in scored] == [0, 20, 40, 60]
    for line in scored:
        found = {name: set(metrics) for name, metrics in line["sets"].items()}
        assert found == {name: set(EVAL_KINDS[kind].metrics) for name, (kind, _) in SETS.items()}
        main = [
            line["sets"][name][EVAL_KINDS[kind].main_metric] for name, (kind, _) in SETS.items()
        ]
        # a set of each kind, so both means are that of all sets
        assert line["means"]["mean"] == pytest.approx(sum(main) / len(SETS))
        assert line["means"]["mean_of_kinds"] == pytest.approx(line["means"]["mean"])


def test_killed_and_resumed_equals_undisturbed(whole: RunFolder, resumed: RunFolder) -> None:
    for name in ("metrics", "evaluations"):
        one, other = (lines(getattr(run, name)) for run in (whole, resumed))
        assert list(map(without_clock, one)) == list(map(without_clock, other))
    weights = [(run.model / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]
    facts = [json.loads(run.facts.read_text())["exposure"] for run in (whole, resumed)]
    assert facts[0] == facts[1]


def test_exposure_and_report_name_every_source_and_set(whole: RunFolder) -> None:
    exposure = {one["source"]: one for one in json.loads(whole.facts.read_text())["exposure"]}
    assert {name: one["steps"] for name, one in exposure.items()} == STEPS_OF
    assert {name: one["num_rows"] for name, one in exposure.items()} == ROWS
    seen = {name: STEPS_OF[name] * BATCHES[name] for name in STEPS_OF}
    assert {name: one["rows_seen"] for name, one in exposure.items()} == seen
    page, card = whole.report.read_text(), (whole.model / "README.md").read_text()
    assert "24 retrieval, 12 similarity, 24 labelled texts" in page
    for name, (kind, _) in SETS.items():
        assert name in page
        assert name in card
        assert EVAL_KINDS[kind].metrics[EVAL_KINDS[kind].main_metric] in page
    for name in STEPS_OF:
        assert f'<td class="left">{name}</td>' in page
        assert name in card


def test_the_dry_run_plans_every_source(planned: list[list[str]]) -> None:
    # tokens of a rank: half a batch; 12 of a query, labelled or similar text, 16 of a passage
    batches = {
        ("ir", "(ir)"): (8, 4 * (12 + 3 * 16)),
        ("ir", "(entailed)"): (6, 3 * (12 + 3 * 16)),
        ("sts",): (8, 4 * 2 * 12),
        ("labels", "(topics)"): (6, 3 * 5 * 12),
        ("labels", "(named)"): (6, 3 * (12 + 3 * 16)),
    }
    for name, (rows, tokens) in batches.items():
        assert [*name, str(rows), str(rows // 2), str(tokens)] in [
            line[: len(name) + 3] for line in planned
        ]
    for name, steps in STEPS_OF.items():
        task = {"entailed": "ir", "topics": "labels", "named": "labels"}.get(name, name)
        seen = str(steps * BATCHES[name])
        assert [name, task, str(ROWS[name]), str(steps), seen] in [line[:5] for line in planned]


def test_the_memory_plan_counts_the_largest_kind(project: Path) -> None:
    from trainer.memory.workload import step_tokens
    from trainer.recipe.load import load_recipe

    recipe = load_recipe(project / "recipe.yaml", [])
    assert step_tokens(recipe) == {
        "ir (ir)": 480, "ir (entailed)": 360, "sts": 192, "labels (topics)": 360,
        "labels (named)": 360,
    }  # fmt: skip
