"""The best evaluation: which one it is, when patience ends, and that a resumed run agrees."""

import math

from trainer.evaluation.best import BestSoFar, means_of, watched_value


def line(step: int, sts: float, ir: float) -> dict[str, object]:
    return {"step": step, "sets": results(sts, ir)}


def results(sts: float, ir: float) -> dict[str, dict[str, float]]:
    return {
        "pairs.dev": {"spearman": sts, "pearson": 0.0},
        "docs": {"ndcg_at_10": ir, "recall_at_100": 1.0},
    }


def test_a_metric_of_a_set_or_the_mean_of_main_metrics() -> None:
    assert watched_value(results(0.5, 0.2), "pairs.dev.spearman") == 0.5
    assert watched_value(results(0.5, 0.2), "docs.recall_at_100") == 1.0
    assert watched_value(results(0.5, 0.25), "mean") == 0.375


def test_the_mean_of_kinds_averages_the_sets_of_a_kind_first() -> None:
    sets = results(0.5, 0.25) | {
        "more": {"ndcg_at_10": 0.75, "recall_at_100": 0.0},
        "classes": {"accuracy": 0.0, "f1_macro": 1.0},
    }
    assert means_of(sets) == {"mean": 0.375, "mean_of_kinds": (0.5 + 0.5 + 0.0) / 3}
    assert watched_value(sets, "mean_of_kinds") == (0.5 + 0.5 + 0.0) / 3
    undefined = means_of(sets | {"x": {"v_measure": None}})
    assert all(math.isnan(value) for value in undefined.values())
    line = {"step": 0, "sets": sets}
    for names, step in ((list(sets), 0), (["docs"], None)):
        best = BestSoFar(metric="mean_of_kinds").after_lines([line], 0, names)
        assert best.step == step


def test_the_best_is_kept_and_the_rest_is_counted() -> None:
    best = BestSoFar(metric="docs.ndcg_at_10")
    for step, value in ((0, 0.3), (10, 0.5), (20, 0.5), (30, 0.4)):
        best = best.after(step, results(0, value))
    assert (best.step, best.value, best.num_worse) == (10, 0.5, 2)
    assert best.is_exhausted(2)
    assert not best.is_exhausted(3)
    assert not best.is_exhausted(None)
    assert best.after(40, results(0, 0.6)).num_worse == 0


def test_an_undefined_metric_is_never_the_best() -> None:
    best = BestSoFar(metric="pairs.dev.spearman").after(0, results(math.nan, 0))
    assert best.step is None
    assert best.after(10, results(-0.2, 0)).step == 10
    # nothing is worse than what was never defined, as a model that says the same of all pairs
    assert not best.after(5, results(math.nan, 0)).is_exhausted(1)
    assert best.after(10, results(-0.2, 0)).after(20, results(math.nan, 0)).is_exhausted(1)
    files = {"pairs.dev": {"spearman": None}}
    assert math.isnan(watched_value(files, "pairs.dev.spearman"))
    assert math.isnan(watched_value(files, "mean"))


def test_evaluations_of_other_sets_are_passed_over_when_a_run_goes_on() -> None:
    lines = [{"step": 0, "sets": {"old": {"spearman": 0.9}}}, line(10, 0.4, 0.2)]
    sets = ["pairs.dev", "docs"]
    for metric in ("mean", "docs.ndcg_at_10"):
        best = BestSoFar(metric=metric).after_lines(lines, 20, sets)
        assert (best.step, best.num_worse) == (10, 0)
    # the same sets and another one: no mean over both is comparable
    assert BestSoFar(metric="mean").after_lines(lines, 20, [*sets, "new"]).step is None
    assert BestSoFar(metric="docs.ndcg_at_10").after_lines(lines, 20, [*sets, "new"]).step == 10


def test_a_resumed_run_goes_on_from_its_own_lines() -> None:
    lines = [line(0, 0.1, 0), line(10, 0.4, 0), line(20, 0.3, 0), line(30, 0.9, 0)]
    whole = BestSoFar(metric="pairs.dev.spearman")
    for one in lines[:3]:
        whole = whole.after(one["step"], one["sets"])
    # continued from step 20, whose evaluation is on record and not made again
    resumed = BestSoFar(metric="pairs.dev.spearman").after_lines(lines, 20, ["pairs.dev", "docs"])
    assert resumed.step == 10
    assert resumed == whole
    # made again for the sake of a new set, it does not count twice
    assert resumed.after(20, lines[2]["sets"]) == whole


def test_the_same_step_judged_again_does_not_count() -> None:
    best = BestSoFar(metric="docs.ndcg_at_10").after(10, results(0, 0.5))
    assert best.after(10, results(0, 0.5)) == best
