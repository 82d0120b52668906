"""The styles of published recipes: fair, each with its source, and scored by one script."""

from pathlib import Path

import pytest

from bench.ablation_runs import BASE
from bench.ablation_table import by_set
from tools.bench import styles
from trainer.errors import RecipeError
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.resolve import resolve
from trainer.recipe.tasks import TASKS

NAMES = {
    "codiemb", "qwen3_embedding", "embeddinggemma", "nemotron", "f2llm", "gte", "e5_mistral",
    "bge_distill",
}  # fmt: skip


def test_every_style_is_there() -> None:
    assert set(styles.STYLES) == NAMES


@pytest.mark.parametrize("name", styles.STYLES)
def test_a_style_differs_from_the_others_in_its_losses_alone(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(styles.RECIPES / f"{name}.yaml")
    other = load_recipe(styles.RECIPES / "codiemb.yaml")
    assert recipe.name == name
    assert recipe.train == other.train
    assert recipe.engine == other.engine
    assert (recipe.model.path, recipe.model.pooling) == (BASE, other.model.pooling)
    assert recipe.data.pattern == other.data.pattern
    assert [one.name for one in recipe.data.sources] == [one.name for one in other.data.sources]
    for task in recipe.tasks:
        assert recipe.tasks[task].global_batch_size == 32
    resolve(recipe, world_size=2)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


@pytest.mark.parametrize("name", styles.STYLES)
def test_a_style_opens_with_source_what_is_kept_and_what_differs(name: str) -> None:
    file = styles.RECIPES / f"{name}.yaml"
    comment = "".join(line for line in file.open() if line.startswith("#"))
    for word in ("Source:", "Kept:", "Differs:", "Launch:", "Hardware:", "Data:"):
        assert f"# {word}" in comment
    assert f"--recipe recipes/styles/{name}.yaml" in comment


def test_no_two_styles_have_the_same_losses() -> None:
    losses = [
        repr((recipe.model.matryoshka, recipe.tasks))
        for recipe in (load_recipe(styles.RECIPES / f"{name}.yaml") for name in styles.STYLES)
    ]
    assert len(set(losses)) == len(losses)


def test_the_distilled_style_alone_needs_a_teacher() -> None:
    for name in styles.STYLES:
        recipe = load_recipe(styles.RECIPES / f"{name}.yaml")
        key = TASKS["ir"].teacher_key(recipe.tasks["ir"])
        assert (key is not None) == (name == "bge_distill")
        scored = [one.name for one in recipe.data.sources if "scored" in (one.path or "")]
        assert scored == ([*styles.SCORED] if key else [])


def test_costs_are_shown_beside_the_scores() -> None:
    results = {
        "untouched": [{"stsb": 0.8}],
        "gte": [
            {"stsb": 0.9, "seconds": 1.5, "peak_mib": 900},
            {"stsb": 1, "seconds": 2.5, "peak_mib": 1100},
        ],
    }
    text = styles.costs(results)
    assert "untouched" not in text
    assert text.splitlines()[-1].split() == ["gte", "2.00", "1000"]
    assert by_set(results)["gte"]["seconds"] == [1.5, 2.5]


@pytest.mark.parametrize("part", ["terms", "batches"])
def test_parts_take_codiemb_apart_one_thing_at_a_time(part: str) -> None:
    whole = load_recipe(styles.RECIPES / "codiemb.yaml")
    recipes = {
        variant.name: load_recipe(styles.RECIPES / f"{variant.style}.yaml", variant.overrides)
        for variant in styles.PARTS[part]
    }
    assert len(recipes) == len(styles.PARTS[part])
    assert sum(recipe == whole for recipe in recipes.values()) == 1
    assert all(recipe.train == whole.train for recipe in recipes.values())
    sizes = {
        name: {task: settings.global_batch_size for task, settings in recipe.tasks.items()}
        for name, recipe in recipes.items()
    }
    if part == "batches":
        assert sizes["64 rows"] == {"ir": 64, "sts": 64}
    else:
        assert all(size == {"ir": 32, "sts": 32} for size in sizes.values())
        weights = recipes["pro alone"].tasks["sts"].weights
        assert [name for name, weight in weights.items() if weight] == ["pro"]
        assert recipes["without pro"].tasks["sts"].weights["pearson"] > 0


def test_a_row_that_the_table_has_not_is_refused() -> None:
    assert [one.name for one in styles.choose(styles.PARTS["styles"], ["gte"])] == ["gte"]
    with pytest.raises(RecipeError, match="--styles: 'glt'; expected some of 'bge_distill'"):
        styles.choose(styles.PARTS["styles"], ["glt"])
