"""What an update gained and lost: means over sets, in the table, the record and the page."""

import math

import pytest

from series.gains import gained, gains, gains_page, gains_text, lost, set_scores
from trainer.recipe.schema import EvalSetRecipe

FRESH, PAIRS, DOCS = (
    EvalSetRecipe(name="fresh", task="ir", path="x"),
    EvalSetRecipe(name="pairs", task="sts", path="y"),
    EvalSetRecipe(name="docs", task="ir", path="z"),
)


def results(fresh: float, pairs: float, docs: float) -> dict[str, dict[str, float]]:
    return {
        "fresh": {"ndcg_at_10": fresh, "mrr_at_10": 0.9},
        "pairs": {"spearman": pairs, "pearson": 0.9},
        "docs": {"ndcg_at_10": docs, "mrr_at_10": 0.9},
    }


SCORES = {
    "old": results(0.25, 0.75, 0.5),
    "updated": results(0.75, 0.5, 0.5),
    "merged": results(0.625, 0.6875, 0.53125),
}
LINES = set_scores(SCORES, [FRESH], [PAIRS, DOCS])


def test_means_are_of_main_metrics_against_the_old_model() -> None:
    assert [(line.name, line.of, line.metric) for line in LINES] == [
        ("fresh", "new", "ndcg_at_10"), ("pairs", "old", "spearman"), ("docs", "old", "ndcg_at_10"),
    ]  # fmt: skip
    assert (gained(LINES, "merged"), gained(LINES, "updated")) == (0.375, 0.5)
    assert (lost(LINES, "merged"), lost(LINES, "updated")) == ((0.0625 - 0.03125) / 2, 0.125)


def test_the_table_and_the_page_say_so() -> None:
    assert gains_text(LINES).splitlines() == [
        "set              of   old     updated  merged  change",
        "fresh, nDCG@10   new  0.2500  0.7500   0.6250  +0.3750",
        "pairs, Spearman  old  0.7500  0.5000   0.6875  -0.0625",
        "docs, nDCG@10    old  0.5000  0.5000   0.5312  +0.0312",
        "",
        "gained on the new: 37.50 points, the mean of 1 held-out set; 50.00 before merging",
        "lost on the old: 1.56 points, the mean of 2 held-out sets; 12.50 before merging",
    ]
    source = {"name": "n<", "of": "new", "task": "ir", "rows": None, "all_rows": 8, "steps": 2}
    page = gains_page(LINES, {"merge": "--method ties"}, [source])
    for part in ("lost on the old: 1.56 points", "0.6875", "--method ties", "n&lt;", "<td>?</td>"):
        assert part in page


def test_what_is_not_defined_is_none_in_json_and_said() -> None:
    undefined = {**SCORES, "merged": results(math.nan, 0.5, 0.5)}
    found = gains(set_scores(undefined, [FRESH], [PAIRS]))
    assert found["gained"] == {"updated": 0.5, "merged": None}
    assert found["lost"] == {"updated": 0.25, "merged": 0.25}
    assert found["sets"][0] == {
        "name": "fresh", "of": "new", "metric": "ndcg_at_10",
        "old": 0.25, "updated": 0.75, "merged": None, "change": None,
    }  # fmt: skip
    alone = set_scores(SCORES, [], [PAIRS])
    assert gains(alone)["gained"] == {"updated": None, "merged": None}
    assert "gained on the new: not known, as no held-out set is new" in gains_text(alone)
    assert gained(alone, "merged") != pytest.approx(0)
