"""A part of every source: which rows it has is a function of row and seed alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_files import data_recipe, ir_source, sts_source
from trainer.data.plan import DataPlan, continue_plan, make_plan
from trainer.errors import RecipeError
from trainer.recipe.schema import SourceRecipe, SubsetRecipe

SIZES = {"docs": 101, "pairs": 40}


def plan(subset: SubsetRecipe | None, *, seed: int = 1, sizes: dict[str, int] = SIZES) -> DataPlan:
    sources = [replace(ir_source("x"), name="docs"), replace(sts_source("y"), name="pairs")]
    recipe = data_recipe(sources, data={"subset": subset}, seed=seed)
    return make_plan(recipe, sizes)


def rows_of(found: DataPlan, name: str, turns: int) -> list[int]:
    return np.concatenate([found.source_step(name, turn, 0).rows for turn in range(turns)]).tolist()


def test_an_epoch_has_the_rows_of_the_part_once() -> None:
    half = plan(SubsetRecipe(fraction=0.5, seed=3))
    assert {name: one.num_rows for name, one in half.sources.items()} == {"docs": 50, "pairs": 20}
    batch = half.sources["pairs"].batch_size
    assert 20 % batch == 0
    first, second = (rows_of(half, "pairs", 40 // batch)[start : start + 20] for start in (0, 20))
    assert len(set(first)) == 20
    assert sorted(first) == sorted(second)
    assert first != second
    assert max(first) < 40
    seen = {one.source: one for one in half.exposure(2 * (20 // batch))}["pairs"]
    assert (seen.num_rows, seen.once, seen.never) == (20, 20, 0)


def test_rows_depend_on_the_seed_of_the_part_and_not_of_the_run() -> None:
    def part(fraction: float, part_seed: int, seed: int = 1) -> set[int]:
        return set(rows_of(plan(SubsetRecipe(fraction=fraction, seed=part_seed), seed=seed),
                           "docs", 200))  # fmt: skip

    one = part(0.5, 0)
    assert len(one) == 50
    assert part(0.5, 0, seed=9) == one
    other = part(0.5, 1)
    # independent halves have a quarter of all rows in common, give or take
    assert 10 < len(one & other) < 40
    assert part(0.25, 0) < one
    assert part(1.0, 7) == set(range(101))


def test_a_part_that_is_too_small_and_labels_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"at most 1, the rows of source docs in data\.subset"):
        plan(SubsetRecipe(fraction=0.01))
    labels = SourceRecipe(name="classes", task="labels", path="z")
    recipe = data_recipe([labels], data={"subset": SubsetRecipe(fraction=0.5)})
    with pytest.raises(RecipeError, match="no source of task labels, as classes is"):
        make_plan(recipe, {"classes": 40})


def test_a_run_on_a_part_goes_on_with_the_same_rows_alone(tmp_path: Path) -> None:
    half = SubsetRecipe(fraction=0.5)
    before = plan(half)
    after = continue_plan(before, 4, plan(half))
    assert after.at(7).rows.tolist() == before.at(7).rows.tolist()
    for other in (plan(half, sizes=SIZES | {"docs": 102}), plan(replace(half, seed=1))):
        with pytest.raises(RecipeError, match=r"docs: rows were added, or data\.subset is another"):
            continue_plan(before, 4, other)


def test_a_source_has_a_part_of_its_own() -> None:
    tenth, half = SubsetRecipe(fraction=0.1, seed=3), SubsetRecipe(fraction=0.5, seed=3)
    sources = [
        replace(ir_source("x"), name="docs", subset=half),
        replace(sts_source("y"), name="pairs"),
    ]
    alone = make_plan(data_recipe(sources, data={}), SIZES)
    assert {name: one.num_rows for name, one in alone.sources.items()} == {"docs": 50, "pairs": 40}
    assert set(rows_of(alone, "docs", 200)) == set(rows_of(plan(half), "docs", 200))
    beside = make_plan(data_recipe(sources, data={"subset": tenth}), SIZES | {"pairs": 100})
    assert {name: one.num_rows for name, one in beside.sources.items()} == {"docs": 50, "pairs": 10}
    small = [replace(sources[0], subset=replace(half, fraction=0.01)), sources[1]]
    with pytest.raises(RecipeError, match=r"of source docs in data\.sources\.docs\.subset\."):
        make_plan(data_recipe(small, data={}), SIZES)
    labels = SourceRecipe(name="classes", task="labels", path="z", subset=half)
    with pytest.raises(RecipeError, match=r"data\.sources\.classes\.subset\.fraction = 0\.5"):
        make_plan(data_recipe([labels], data={}), {"classes": 40})
