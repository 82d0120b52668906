"""A search over merges: what is tried, what wins, what is recorded, what an interruption costs."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tools.test_delta_merge import save_model, toy_tensors
from trainer.errors import CheckpointError
from trainer.merge.search import MergeSearch, Results, SearchReport, by_kind, mean_of_kinds
from trainer.merge.settings import MergeSettings

KINDS = {"docs": "ir", "more docs": "ir", "pairs": "sts"}


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base and two checkpoints."""
    return [save_model(tmp_path / name, toy_tensors(seed)) for seed, name in enumerate("bcd")]


class Nearness:
    """Scores a folder by how near its weights are to a goal, for each kind another."""

    def __init__(self, goals: Mapping[str, dict[str, Tensor]]) -> None:
        self.goals = goals
        self.scored: list[dict[str, Tensor]] = []
        self.fail_at: int | None = None

    def __call__(self, folder: Path) -> Results:
        if len(self.scored) == self.fail_at:
            raise KeyboardInterrupt
        tensors = load_file(folder / "model.safetensors")
        self.scored.append(tensors)
        return {
            name: {"near": self.near(tensors, kind), "other": 0.0} for name, kind in KINDS.items()
        }

    def near(self, tensors: dict[str, Tensor], kind: str) -> float:
        goal = self.goals[kind]
        return -float(sum((tensors[name] - one).square().sum() for name, one in goal.items()))


def search(models: list[Path], score: Nearness, count: int = 2, **options: bool) -> MergeSearch:
    base, *checkpoints = models
    return MergeSearch(
        base=base, checkpoints=checkpoints[:count], output=base.parent / "out",
        settings=MergeSettings(memory_budget_bytes=None), kinds=KINDS, score=score, **options,
    )  # fmt: skip


def halfway(models: list[Path], share: float) -> dict[str, Tensor]:
    """From the base towards the first checkpoint."""
    base, tuned = (load_file(folder / "model.safetensors") for folder in models[:2])
    return {name: base[name] + share * (tuned[name] - base[name]) for name in base}


def check_recorded(report: SearchReport, folder: Path) -> None:
    record = json.loads((folder / "search.json").read_text())
    assert [line["name"] for line in record["tried"]] == [
        one.candidate.name for one in report.tried
    ]
    assert record["best"] == report.best.candidate.name
    assert record["kinds"] == KINDS
    assert record["tried"][0]["sets"]["docs"].keys() == {"near", "other"}


def test_the_best_of_all_that_is_tried_is_merged(models: list[Path]) -> None:
    goal = halfway(models, 1.25)
    score = Nearness({"ir": goal, "sts": goal})
    report = search(models, score).run()
    names = [one.candidate.name for one in report.tried]
    assert names[:8] == [
        "base", "checkpoint 1", "checkpoint 2", "uniform", "delta, alpha 1", "delta, alpha -1",
        "ties", "slerp",
    ]  # fmt: skip
    assert report.best.candidate.name == "checkpoint 1, lambda 1.25"
    values = [one.value for one in report.tried]
    assert report.best.value == max(values) == pytest.approx(0.0, abs=1e-9)
    merged = load_file(models[0].parent / "out" / "model.safetensors")
    for name, tensor in goal.items():
        torch.testing.assert_close(merged[name], tensor)
    check_recorded(report, models[0].parent / "out")
    assert len(score.scored) == len(names)
    # the folder of the search is gone
    assert not list(models[0].parent.glob(".*"))


def test_a_result_is_no_worse_than_any_input(models: list[Path]) -> None:
    far = {"ir": halfway(models, 0.0), "sts": load_file(models[2] / "model.safetensors")}
    report = search(models, Nearness(far)).run()
    inputs = [one.value for one in report.tried[:3]]
    assert report.best.value >= max(inputs)
    assert report.best.value == max(one.value for one in report.tried)


DEPTHS = ("1.5 to 0.5", "2 to 0.5", "2 to 0", "0.5 to 1.5")


def test_one_checkpoint_is_searched_towards_its_base(models: list[Path]) -> None:
    score = Nearness(dict.fromkeys(("ir", "sts"), halfway(models, 0.6)))
    report = search(models, score, count=1).run()
    names = [one.candidate.name for one in report.tried]
    assert names == [
        "base",
        "checkpoint 1",
        *(f"checkpoint 1, lambda {s}" for s in (0.5, 0.75, 1.25)),
        *(f"checkpoint 1, lambda 0.5, by depth {one}" for one in DEPTHS),
    ]
    assert report.best.candidate.name == "checkpoint 1, lambda 0.5"


def test_layers_are_searched_apart(models: list[Path]) -> None:
    base, tuned = (load_file(folder / "model.safetensors") for folder in models[:2])
    late = ("layers.1", "norm")
    factors = {name: 0.625 if name.startswith(late) else 1.875 for name in base}
    goal = {name: base[name] + factors[name] * (tuned[name] - base[name]) for name in base}
    report = search(models, Nearness({"ir": goal, "sts": goal}), count=1).run()
    assert report.best.candidate.name == "checkpoint 1, lambda 1.25, by depth 1.5 to 0.5"
    merged = load_file(models[0].parent / "out" / "model.safetensors")
    for name, tensor in goal.items():
        torch.testing.assert_close(merged[name], tensor)


def test_models_without_numbered_layers_are_searched_whole(tmp_path: Path) -> None:
    models = [
        save_model(tmp_path / name, {"one.weight": torch.randn(4, 4)}) for name in ("base", "tuned")
    ]
    report = search(models, Nearness(dict.fromkeys(("ir", "sts"), halfway(models, 0.7)))).run()
    assert not any("by depth" in one.candidate.name for one in report.tried)
    assert report.best.candidate.name == "checkpoint 1, lambda 0.75"


@pytest.mark.parametrize(
    ("best_for_docs", "chosen"), [(0.7, "checkpoint 1, lambda 1.25"), (0.55, "checkpoint 1"),
                                  (0.3, "checkpoint 1, lambda 0.5"), (-1.0, "base")]
)  # fmt: skip
def test_what_falls_below_the_base_is_not_chosen(
    models: list[Path], best_for_docs: float, chosen: str
) -> None:
    # pairs gain as far as any merge goes; docs lose from twice their best on
    far = halfway(models, 9.0)
    score = Nearness({"sts": far, "ir": halfway(models, best_for_docs)})
    report = search(models, score, count=1, keep_base=True).run()
    assert report.best.candidate.name == chosen
    base = report.tried[0].results
    for name, metrics in report.best.results.items():
        assert metrics["near"] >= base[name]["near"]
    record = json.loads((models[0].parent / "out" / "search.json").read_text())
    assert record["keep_base"]


def test_an_interrupted_search_goes_on_where_it_was(models: list[Path]) -> None:
    goals = dict.fromkeys(("ir", "sts"), halfway(models, 1.25))
    whole = search(models, Nearness(goals)).run()
    (models[0].parent / "out").rename(models[0].parent / "whole")
    score = Nearness(goals)
    score.fail_at = 5
    with pytest.raises(KeyboardInterrupt):
        search(models, score).run()
    assert not (models[0].parent / "out").exists()
    with pytest.raises(CheckpointError, match=r"\.search-out: folder = exists, of an interrupted"):
        search(models, score).run()
    # a line that was cut in the middle is tried again
    tried = models[0].parent / ".search-out" / "tried.jsonl"
    tried.write_text(tried.read_text()[:-20])
    score.fail_at = None
    report = search(models, score, resume=True).run()
    assert [one.candidate for one in report.tried] == [one.candidate for one in whole.tried]
    assert [one.value for one in report.tried] == [one.value for one in whole.tried]
    assert len(score.scored) == len(whole.tried) + 1
    for name, tensor in load_file(models[0].parent / "whole" / "model.safetensors").items():
        assert torch.equal(load_file(models[0].parent / "out" / "model.safetensors")[name], tensor)


def test_another_search_is_not_continued(models: list[Path]) -> None:
    score = Nearness(dict.fromkeys(("ir", "sts"), halfway(models, 1.25)))
    score.fail_at = 1
    with pytest.raises(KeyboardInterrupt):
        search(models, score).run()
    with pytest.raises(CheckpointError, match=r"tried\.jsonl: search = of other inputs or sets"):
        search(models, score, count=1, resume=True).run()
    with pytest.raises(CheckpointError, match=r"tried\.jsonl: search = of other inputs or sets"):
        replace(search(models, score, resume=True), sets=("elsewhere",)).run()


def test_an_output_that_exists_is_refused_before_anything_is_tried(models: list[Path]) -> None:
    score = Nearness({})
    (models[0].parent / "out").mkdir()
    with pytest.raises(CheckpointError, match="out: folder = exists; expected a new one"):
        search(models, score).run()
    assert not score.scored


def test_means_are_of_kinds_and_not_of_sets() -> None:
    results = {
        "docs": {"ndcg_at_10": 0.2, "mrr_at_10": 0.9},
        "more docs": {"ndcg_at_10": 0.4},
        "pairs": {"spearman": 0.9},
    }
    assert by_kind(results, KINDS) == pytest.approx({"ir": 0.3, "sts": 0.9})
    assert mean_of_kinds(results, KINDS) == pytest.approx(0.6)
    assert math.isnan(mean_of_kinds({"pairs": {"spearman": math.nan}}, KINDS))


def test_a_score_that_is_not_defined_never_wins(models: list[Path]) -> None:
    score = Nearness(dict.fromkeys(("ir", "sts"), halfway(models, 1.25)))
    plain = score.near
    score.near = lambda tensors, kind: math.nan if not score.scored[1:] else plain(tensors, kind)  # type: ignore[method-assign]
    report = search(models, score).run()
    assert math.isnan(report.tried[0].value)
    assert report.best.candidate.name == "checkpoint 1, lambda 1.25"
    record = json.loads((models[0].parent / "out" / "search.json").read_text())
    assert record["tried"][0]["value"] is None
