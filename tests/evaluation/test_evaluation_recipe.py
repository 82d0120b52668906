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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("metric", ["dev.spearman", "dev.pearson", "docs.ndcg_at_10", "mean"])
def test_a_metric_of_a_set_or_the_mean(file: Path, metric: str) -> None:
    recipe = load_recipe(file, [f"eval.best_metric={metric}", "eval.patience=2"])
    assert recipe.eval.best_metric == metric


@pytest.mark.parametrize("metric", ["dev", "dev.ndcg_at_10", "train.spearman", "docs.map"])
def test_another_metric_is_refused_with_the_known_ones(file: Path, metric: str) -> None:
    with pytest.raises(RecipeError, match=r"expected `mean` or one of dev\.spearman, dev\.pears"):
        load_recipe(file, [f"eval.best_metric={metric}"])


def test_a_metric_needs_sets_and_patience_a_metric(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"eval\.best_metric = .*; expected null without"):
        load_recipe(file, ["eval.sets=[]", "eval.best_metric=mean"])
    with pytest.raises(RecipeError, match=r"eval\.patience = 3; expected a metric to judge by"):
        load_recipe(file, ["eval.patience=3"])
