"""What a run keeps of its named changes, and the keys that `--change` may name."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from trainer.checkpoint.changes import covers, keep_changes, named_keys
from trainer.data.stretch import Stretch
from trainer.errors import RecipeError
from trainer.recipe.load import plain_recipe, recipe_of
from trainer.recipe.schema import Recipe, SourceRecipe

RECIPE = tiny.make_recipe(Path("model"))


def trained(recipe: Recipe = RECIPE, **train: Any) -> Recipe:
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **train))


def with_source(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    """The recipe with a source more, before the others."""
    source = SourceRecipe(name=name, task="ir", path="unused", **changes)
    sources = (source, *recipe.data.sources)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, sources=sources))


def stretches(*parts: tuple[Recipe, tuple[str, ...]]) -> list[Stretch]:
    return [
        Stretch(first_step=4 * i, recipe=plain_recipe(recipe), sources={}, changed=keys)
        for i, (recipe, keys) in enumerate(parts)
    ]


RUN = stretches(
    (RECIPE, ()),
    (trained(max_steps=8), ("train.max_steps",)),
    (trained(max_steps=12, learning_rate=0.001), ("train.learning_rate", "train.max_steps")),
)
"""Longer, then longer and slower."""


def kept(given: Recipe, *named: str, run: list[Stretch] = RUN) -> tuple[Recipe, list[str]]:
    plain, lines = keep_changes(run, plain_recipe(given), named)
    return recipe_of(plain), lines


def test_older_values_mean_the_run_as_it_is() -> None:
    now = trained(max_steps=12, learning_rate=0.001)
    assert kept(RECIPE) == (now, [
        "train.learning_rate = 0.001, as it was changed to (the recipe says 0.005)",
        "train.max_steps = 12, as it was changed to (the recipe says 3)",
    ])  # fmt: skip
    assert kept(trained(max_steps=8))[0] == now
    assert kept(now) == (now, [])


def test_a_named_value_and_a_new_one_count_as_given() -> None:
    assert kept(RECIPE, "train.max_steps")[0] == trained(max_steps=3, learning_rate=0.001)
    assert kept(trained(max_steps=99))[0] == trained(max_steps=99, learning_rate=0.001)
    # what was never changed by name is never kept
    assert kept(trained(max_steps=12, learning_rate=0.001, warmup_ratio=0.5))[0] == trained(
        max_steps=12, learning_rate=0.001, warmup_ratio=0.5
    )


def test_steps_and_epochs_are_kept_together() -> None:
    epochs = trained(max_steps=None, epochs=2.0)
    run = stretches((RECIPE, ()), (epochs, ("train.epochs", "train.max_steps")))
    assert kept(RECIPE, run=run)[0] == epochs


def test_an_added_source_stays_and_sources_keep_their_order() -> None:
    both = with_source(RECIPE, "more", weight=2.0)
    run = stretches((RECIPE, ()), (with_source(RECIPE, "more"), ("data.sources.more",)))
    lacking, lines = kept(RECIPE, run=run)
    assert {source.name for source in lacking.data.sources} == {"ir", "sts", "more"}
    assert lines == ["data.sources.more stays, as it was added (the recipe lacks it)"]
    given, _ = kept(both, run=run)
    assert [source.name for source in given.data.sources] == ["more", "ir", "sts"]
    assert given.data.sources[0].weight == 2.0
    # a further one comes last, wherever the recipe has it
    assert [source.name for source in kept(both, run=RUN[:1])[0].data.sources] == [
        "ir", "sts", "more",
    ]  # fmt: skip


def test_a_path_that_was_changed_stays_and_moved_data_is_found() -> None:
    def at(path: str) -> Recipe:
        first = dataclasses.replace(RECIPE.data.sources[0], path=path)
        sources = (first, *RECIPE.data.sources[1:])
        return dataclasses.replace(RECIPE, data=dataclasses.replace(RECIPE.data, sources=sources))

    run = stretches((at("a"), ()), (at("b"), ("data.sources.ir.path",)))
    assert kept(at("a"), run=run)[0] == at("b")
    assert kept(at("moved"), run=run)[0] == at("moved")


def test_keys_are_named_with_or_without_a_value() -> None:
    changes = ["train.max_steps=8", "data.sources.0.path=x", "data.sources.sts", "tasks.ir"]
    assert named_keys(changes, RECIPE) == (
        "train.max_steps", "data.sources.ir.path", "data.sources.sts", "tasks.ir",
    )  # fmt: skip
    for key in ("train.max_stepz", "data.sources.nobody", "data.sources.9", "seed.x", "x"):
        wanted = rf"--change {re.escape(key)}: key = \(missing\); expected a key of the recipe"
        with pytest.raises(RecipeError, match=wanted):
            named_keys([key], RECIPE)


def test_a_name_covers_what_is_above_and_below_it() -> None:
    assert covers(["tasks.ir"], "tasks.ir.weights.infonce")
    assert covers(["tasks.ir.distillation.weight"], "tasks.ir.distillation")
    assert not covers(["tasks.ir"], "tasks.irony")
    assert not covers(["tasks.ir.weights"], "tasks.ir.temperature")
    assert not covers([], "seed")
