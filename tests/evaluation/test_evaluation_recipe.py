"""What a recipe may say of evaluations: the metric must be one that the sets give."""

from pathlib import Path

import pytest

from trainer.errors import RecipeError
from trainer.recipe.load import load_recipe

RECIPE = """
name: a
output_dir: a
model: {path: a}
train: {max_steps: 1}
tasks: {sts: {global_batch_size: 2}}
data:
  sources: [{name: pairs, task: sts, path: a}]
eval:
  sets: [{name: dev, task: sts, path: a}, {name: docs, task: ir, path: a}]
"""


KNOWN = r"expected `mean`, `mean_of_kinds` or one of dev\.spearman, dev\.pears"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


CLUSTERS = "eval.sets=[{name: topics, task: clustering, path: a}]"


@pytest.mark.parametrize(
    ("metric", "sets"),
    [
        *((metric, ()) for metric in ("dev.spearman", "dev.pearson", "docs.ndcg_at_10")),
        *((metric, ()) for metric in ("mean", "mean_of_kinds")),
        # a kind that is no task
        ("topics.v_measure", (CLUSTERS,)),
    ],
)
def test_a_metric_of_a_set_or_a_mean(file: Path, metric: str, sets: tuple[str, ...]) -> None:
    recipe = load_recipe(file, [*sets, f"eval.best_metric={metric}", "eval.patience=2"])
    assert recipe.eval.best_metric == metric


@pytest.mark.parametrize("metric", ["dev", "dev.ndcg_at_10", "train.spearman", "docs.map"])
def test_another_metric_is_refused_with_the_known_ones(file: Path, metric: str) -> None:
    with pytest.raises(RecipeError, match=KNOWN):
        load_recipe(file, [f"eval.best_metric={metric}"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.sources.pairs.task=clustering", r"task = 'clustering'; expected .*ir.*sts"),
        ("eval.sets.dev.task=labels", r"task = 'labels'; expected .*clustering"),
        ("data.pattern={clustering: 1}", r"data\.pattern\.clustering"),
        ("tasks.clustering={global_batch_size: 2}", r"tasks\.clustering"),
        ("eval.sets=[{name: topics, task: clustering, path: a, score_range: [0, 1]}]",
         r"score_range = .*; expected no range, as rows of task clustering have no score"),
        ("eval.sets.dev.passage_instruction=find",
         r"passage_instruction = 'find'; expected nothing, as sets of kind sts have no passages"),
    ],
)  # fmt: skip
def test_kinds_are_scored_and_tasks_are_trained(file: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(file, [override])


def test_a_metric_needs_sets_and_patience_a_metric(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"eval\.best_metric = .*; expected null without"):
        load_recipe(file, ["eval.sets=[]", "eval.best_metric=mean"])
    with pytest.raises(RecipeError, match=r"eval\.patience = 3; expected a metric to judge by"):
        load_recipe(file, ["eval.patience=3"])
