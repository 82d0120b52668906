"""Labelled texts beside retrieval and similarity: trained, resumed, planned and reported."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import corpus
from tests.support.forked import finish_forked
from tests.support.launched import environment
from tests.support.light import finish_light
from tests.support.ranks import run_ranks
from tests.support.sessions import cut, run_of, run_session
from trainer.run_folder.layout import RunFolder

LABELS = ("w1", "w2", "w3")
STEPS = 8


def write_recipe(folder: Path) -> None:
    """The workspace's recipe with three sources of labelled texts, one of which has label texts."""
    corpus.make_workspace(folder)
    rng = random.Random(1)
    rows = [{"text": corpus.sentence(rng), "label": LABELS[n % 3]} for n in range(30)]
    corpus.write_lines(folder / "labels.jsonl", rows)
    one = {"name": "topics", "task": "labels", "path": "labels.jsonl", "query_instruction": "w5 "}
    named = one | {"name": "named", "label_texts": {label: f"{label} w9" for label in LABELS}}
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["data"]["sources"] += [one, named | {"negatives": 2, "passage_instruction": "w6 "}]
    recipe["data"]["pattern"] = {"ir": 1, "sts": 1, "labels": 2}
    recipe["tasks"]["labels"] = {
        "global_batch_size": 6, "negatives": 3, "objective": "in_batch", "balance": "classes"
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def body(rank: int, world_size: int, folder: Path) -> None:
    from torch.distributed import barrier

    held_out = "eval.sets=[{{name: found, task: clustering, path: labels.jsonl}}]"
    changes = (f"train.max_steps={STEPS}", "checkpoint.every_steps=4", "data.workers=1", held_out)
    run = run_of(folder, "whole", *changes)
    run_session(run, resume=False)
    if rank == 0:
        run.artifacts.report()
        cut(folder / "whole", folder / "cut", after=4)
    barrier()
    run.session.built.engine.destroy()
    run_session(run_of(folder, "cut", *changes), resume=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    folder = tmp_path_factory.mktemp("labels")
    write_recipe(folder)
    run_ranks(body, 2, folder, timeout_sec=240)
    return {name: RunFolder(folder / name) for name in ("whole", "cut")}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.dist
def test_labelled_texts_train_beside_the_others(runs: dict[str, RunFolder]) -> None:
    steps = lines(runs["whole"].metrics)
    assert sorted(step["task"] for step in steps) == ["ir"] * 2 + ["labels"] * 4 + ["sts"] * 2
    own = [step for step in steps if step["task"] == "labels"]
    assert {step["source"] for step in own} == {"topics", "named"}
    assert all(step["loss"] == pytest.approx(step["infonce"]) for step in own)
    assert all(step["masked_pairs"] > 0 for step in own)


@pytest.mark.dist
def test_they_are_evaluated_as_clusters(runs: dict[str, RunFolder]) -> None:
    found = [line["sets"]["found"] for line in lines(runs["whole"].evaluations)]
    assert all(0 <= one["v_measure"] <= 1 for one in found)
    assert len(found) >= 2


@pytest.mark.dist
def test_a_run_with_labelled_texts_resumes_to_the_bit(runs: dict[str, RunFolder]) -> None:
    whole, resumed = (lines(runs[name].metrics) for name in ("whole", "cut"))
    timed = ("seconds", "tokens_per_sec")
    assert [{k: v for k, v in step.items() if k not in timed} for step in whole] == [
        {k: v for k, v in step.items() if k not in timed} for step in resumed
    ]
    weights = [(runs[name].model / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


@pytest.mark.dist
def test_report_exposure_and_prompts_know_them(runs: dict[str, RunFolder]) -> None:
    exposure = {
        one["source"]: one for one in json.loads(runs["whole"].facts.read_text())["exposure"]
    }
    assert (exposure["topics"]["steps"], exposure["topics"]["rows_seen"]) == (2, 12)
    page = runs["whole"].report.read_text()
    for words in ("Loss, labelled texts", "4 labelled texts"):
        assert words in page
    saved = json.loads((runs["whole"].model / "config_sentence_transformers.json").read_text())
    prompts = saved["prompts"]
    assert [prompts[name] for name in ("labels", "Classification", "Clustering")] == ["w5 "] * 3
    assert prompts["labels-document"] == "w6 "


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_recipe(tmp_path)
    return tmp_path


@pytest.mark.dist
def test_the_selfcheck_and_the_dry_run_know_them(project: Path) -> None:
    changes = ("tasks.labels.objective=supcon", "data.sources.named.label_texts=null",
               'data.sources.named.passage_instruction=""')  # fmt: skip
    arguments = ("--recipe", str(project / "recipe.yaml"), "data.pattern.labels=3", *changes)
    checked = finish_forked(project, *arguments, "--selfcheck", ranks=2)
    assert checked.code == 0, checked.err
    assert "selfcheck passed" in checked.out
    assert len([line for line in checked.out.splitlines() if line.split()[:1] == ["labels"]]) >= 1
    planned = finish_forked(project, *arguments[:2], "--dry-run", "--gpus", "2")
    assert planned.code == 0, planned.err
    words = [line.split() for line in planned.out.splitlines()]
    # rows a step and a rank, tokens a rank: 3 anchors of 5 texts of 12; one of 12 and three of 16
    assert ["labels", "(topics)", "6", "3", "180"] in [line[:5] for line in words]
    assert ["labels", "(named)", "6", "3", "180"] in [line[:5] for line in words]
    # 30 rows, a quarter of 20 steps
    assert ["topics", "labels", "30", "5", "30"] in [line[:5] for line in words]


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "one label": ([{"text": f"w{n}", "label": "x"} for n in range(30)], "labels = 1"),
    "two types": (
        [{"text": "w1", "label": 0}, {"text": "w2", "label": "x"}],
        "labels.jsonl:2: label",
    ),
    "an empty text": ([{"text": "w1", "label": "x"}, {"text": "", "label": "x"}], "jsonl:2: text"),
    "no text of a label": (
        [{"text": f"w{n}", "label": f"w{n % 4}"} for n in range(30)],
        'label_texts: labels without a text = "w0"',
    ),
    "fewer rows than a batch": (
        [{"text": f"w{n}", "label": LABELS[n % 3]} for n in range(5)],
        "global_batch_size = 6; expected at most 4, the rows of source topics",
    ),
}


@pytest.mark.parametrize(("rows", "part"), BAD.values(), ids=BAD)
def test_bad_rows_end_the_command_with_one_message(
    project: Path, rows: list[dict[str, Any]], part: str
) -> None:
    corpus.write_lines(project / "labels.jsonl", rows)
    arguments = ["--recipe", "recipe.yaml"]
    ended = finish_light(project, arguments, environment(HOME=str(project)))
    assert ended.code == 2, ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert part in ended.err
    assert "; expected " in ended.err
    assert not (project / "run").exists()
