"""The recipe of an update: old and new sources in one, and how their steps are shared."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from series.joined import Settings, joined_recipe, mixture
from series.old_run import OldRun
from tests.support.data_files import data_recipe, ir_source, sts_source
from trainer.data.plan import make_plan
from trainer.errors import RecipeError
from trainer.export.prompts import prompts_of
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.schema import (
    EvalRecipe,
    EvalSetRecipe,
    LoraRecipe,
    ProjectionRecipe,
    Recipe,
    SourceRecipe,
    SubsetRecipe,
)

HELD_OUT = EvalRecipe(sets=(EvalSetRecipe(name="held", task="sts", path="/held.jsonl"),))


def recipe_of(*sources: SourceRecipe, **data: object) -> Recipe:
    """A recipe of some sources, with a held-out set."""
    made = data_recipe(list(sources), data=data)
    return replace(made, eval=HELD_OUT)


def source(name: str, task: str, **changes: object) -> SourceRecipe:
    made = (sts_source if task == "sts" else ir_source)(f"{name}.jsonl")
    return replace(made, name=name, **changes)


def joined(old: Recipe, new: Recipe, folder: Path = Path("/old"), **changes: object) -> Recipe:
    run = OldRun(folder=folder, recipe=old, steps=100, sha256="0")
    settings = {"start": "base", "share": 0.25, "seed": 3, "steps": 7, "folder": Path("/out/run")}
    return joined_recipe(run, new, "new.yaml", Settings(**(settings | changes)))  # type: ignore[arg-type]


OLD = recipe_of(
    source("a", "ir", weight=3.0, query_instruction="find: "),
    source("b", "ir", query_instruction="find: "),
    source("c", "sts"),
    pattern={"ir": 1, "sts": 2},
    root="/data",
)
NEW = recipe_of(source("n", "ir", query_instruction="find: "), root="/fresh")


def test_old_sources_come_in_part_and_new_ones_whole(tmp_path: Path) -> None:
    found = joined(OLD, NEW)
    quarter = SubsetRecipe(fraction=0.25, seed=3)
    assert [(one.name, one.path, one.subset) for one in found.data.sources] == [
        ("a", "/data/a.jsonl", quarter),
        ("b", "/data/b.jsonl", quarter),
        ("c", "/data/c.jsonl", quarter),
        ("n", "/fresh/n.jsonl", None),
    ]
    assert (found.train.max_steps, found.train.epochs) == (7, None)
    assert (found.output_dir, found.model.path) == ("/out/run", NEW.model.path)
    assert [(one.name, one.path) for one in found.eval.sets] == [("held", "/held.jsonl")]
    # a set of the same name elsewhere would be another one
    other = EvalRecipe(sets=(replace(HELD_OUT.sets[0], path="other.jsonl"),))
    with pytest.raises(RecipeError, match=r"eval\.sets\.held = another set than that of the same"):
        joined(OLD, replace(NEW, eval=other))


def test_the_recipe_is_read_back_and_prompts_are_those_of_the_old_model(tmp_path: Path) -> None:
    found = joined(OLD, NEW)
    file = tmp_path / "update.yaml"
    file.write_text(dump_recipe(found), encoding="utf-8")
    assert load_recipe(file) == found
    assert prompts_of(found) == prompts_of(OLD)


def test_steps_are_shared_between_old_and_new_as_each_recipe_has_it() -> None:
    found = joined(OLD, NEW)
    steps = make_plan(found, {"a": 400, "b": 400, "c": 400, "n": 400}).source_steps(600)
    # a fifth on old sources: a third of it retrieval, of which the first has three quarters
    assert steps == {"a": 30, "b": 10, "c": 80, "n": 480}
    new = replace(NEW, data=replace(NEW.data, schedule="proportional"))
    steps = make_plan(joined(OLD, new), {"a": 400, "b": 400, "c": 400, "n": 300}).source_steps(800)
    # sizes say it: 100 of each old one, of which the first counts three times, and all of the new
    assert steps == {"a": 300, "b": 100, "c": 100, "n": 300}


def test_turns_are_the_smallest_whole_numbers() -> None:
    pattern, weights = mixture(OLD, NEW, Fraction(1, 4))
    assert pattern == {"ir": 13, "sts": 2}
    of_ir = {"a": 3 / 52, "b": 1 / 52, "n": 12 / 13}
    assert weights == pytest.approx(of_ir | {"c": 1.0}, rel=1e-15)
    assert mixture(OLD, NEW, Fraction(1))[0] == {"ir": 2, "sts": 1}
    both = recipe_of(source("n", "ir"), source("m", "sts"), pattern={"ir": 3, "sts": 1})
    assert mixture(OLD, both, Fraction(1))[0] == {"ir": 13, "sts": 11}


def test_a_part_of_a_part_has_rows_that_were_trained_on() -> None:
    half = SubsetRecipe(fraction=0.5, seed=9)
    old = replace(OLD, data=replace(OLD.data, subset=half))
    found = joined(old, NEW)
    eighth = SubsetRecipe(fraction=0.125, seed=9)
    assert [one.subset for one in found.data.sources] == [eighth, eighth, eighth, None]
    sizes = {"a": 80, "b": 80, "c": 80, "n": 80}
    before, after = (
        {row for turn in range(10) for row in plan.source_step("a", turn, 0).rows.tolist()}
        for plan in (make_plan(old, sizes), make_plan(found, sizes))
    )
    assert (len(before), len(after)) == (40, 10)
    assert after < before
    new = replace(NEW, data=replace(NEW.data, subset=half))
    assert joined(old, new).data.sources[-1].subset == half
    assert joined(OLD, NEW, share=1.0).data.sources[0].subset is None


def test_sources_share_steps_and_have_steps_of_like_length_as_in_their_own_recipe() -> None:
    alike = {"query_instruction": "find: "}
    old = recipe_of(
        *(source(name, "ir", **alike) for name in ("a", "b")),
        source("c", "ir", length_buckets=9, **alike),
        mix={"ab": ("a", "b")},
    )
    new = recipe_of(source("n", "ir", **alike), source("m", "ir", length_buckets=1, **alike),
                    length_buckets=3)  # fmt: skip
    found = joined(old, new)
    assert found.data.mix == {"ab": ("a", "b")}
    assert {one.name: one.length_buckets for one in found.data.sources} == {
        "a": None, "b": None, "c": 2, "n": 3, "m": None,
    }  # fmt: skip
    assert found.data.length_buckets is None
    sizes = dict.fromkeys(("a", "b", "c", "n", "m"), 400)
    plan = make_plan(found, sizes)
    assert {one.source: (one.num_rows, one.mix) for one in plan.exposure(9)} == {
        "a": (100, "ab"), "b": (100, "ab"), "c": (100, ""), "n": (400, ""), "m": (400, ""),
    }  # fmt: skip
    # two thirds of a fifth of the steps, and one third; weights are floats, so a turn more or less
    steps = plan.source_steps(1500)
    assert [steps["ab"], steps["c"]] == pytest.approx([200, 100], abs=1)
    assert joined(old, new, share=1.0).data.sources[2].length_buckets == 9
    data = replace(new.data, length_buckets=None, mix={"ab": ("n", "m")})
    with pytest.raises(RecipeError, match=r"new\.yaml: data\.mix\.ab = a mix by the name of a mix"):
        joined(old, replace(new, data=data))
    clash = recipe_of(source("ab", "ir", **alike))
    with pytest.raises(RecipeError, match=r"data\.sources\.ab = a source by the name of a mix in"):
        joined(old, clash)


def test_labelled_sources_come_whole_and_tasks_that_only_the_old_run_has_stay() -> None:
    labels = SourceRecipe(name="l", task="labels", path="l.jsonl")
    old = recipe_of(source("a", "ir"), labels, root="/data")
    found = joined(old, recipe_of(source("n", "ir"), root="/data"))
    assert {one.name: one.subset for one in found.data.sources}["l"] is None
    assert list(found.tasks) == ["ir", "labels"]
    assert found.tasks["labels"] == old.tasks["labels"]


def test_what_begins_at_random_cannot_be_merged() -> None:
    projected = replace(OLD.model, projection=ProjectionRecipe(size=8))
    old, new = (replace(one, model=projected) for one in (OLD, NEW))
    with pytest.raises(RecipeError, match=r"model\.projection = .* with --start base; expected"):
        joined(old, new)
    assert joined(old, new, start="old").model.path == "/old/model"


def test_an_update_has_a_held_out_set_and_whole_models() -> None:
    old, new = (replace(one, eval=EvalRecipe()) for one in (OLD, NEW))
    with pytest.raises(RecipeError, match=r"new\.yaml: eval\.sets = none, and none in /old/rec"):
        joined(old, new)
    adapter = replace(NEW, checkpoint=replace(NEW.checkpoint, export="adapter"))
    with pytest.raises(RecipeError, match="expected merged or both, as whole models are merged"):
        joined(OLD, adapter)


def test_an_adapter_is_trained_on_or_added_to_its_base(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    adapters = replace(NEW, model=replace(NEW.model, lora=LoraRecipe(rank=2)))
    assert joined(OLD, adapters, tmp_path, start="old").model.adapter is None
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    for new, way in ((adapters, "continue"), (NEW, "merge")):
        model = joined(OLD, new, tmp_path, start="old").model
        assert (model.path, model.adapter) == (str(tmp_path / "model"), way)
        assert joined(OLD, new, tmp_path, start="base").model == new.model
