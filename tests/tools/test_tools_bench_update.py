"""The benchmark of updates: recipes that differ in one package, and its verdict."""

import json
from pathlib import Path

import pytest

from bench.demo_runs import check_demo
from bench.left_out import PACKAGE, left_out_sizes, write_left_out
from demo.docs import Doc
from demo.split import is_held_out
from tools.bench import update
from trainer.errors import RecipeError
from trainer.recipe.load import load_recipe

MODULES = {held: next(f"m{n}" for n in range(999) if is_held_out(f"m{n}") == held)
           for held in (True, False)}  # fmt: skip


def docs(package: str, count: int, *, held: bool) -> list[Doc]:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    name = f"{package} {'held' if held else 'kept'}"
    return [
        Doc(
            package=package,
            module=MODULES[held],
            owner="",
            name=f"{package}_{held}_{n}",
            parameters=(),
            summary=f"Does {name} {words[n]}.",
            text=f"The text of {name} {words[n]} in full.",
        )
        for n in range(count)
    ]


@pytest.fixture
def setup(tmp_path: Path) -> update.Setup:
    rows = [
        doc
        for package, count in (("numpy", 8), (PACKAGE, 4))
        for held in (True, False)
        for doc in docs(package, count, held=held)
    ]
    setup = update.Setup(demo=tmp_path / "demo", folder=tmp_path / "work", steps=40)
    assert write_left_out(setup.folder / "data", rows) == {"old": 8, "new": 4}
    return setup


def test_the_package_is_in_the_new_files_alone(setup: update.Setup) -> None:
    data = setup.folder / "data"
    assert left_out_sizes(data) == {"old": 8, "new": 4}
    for side, package in (("old", "numpy"), ("new", PACKAGE)):
        for name in (f"{side}.ir.jsonl", f"{side}_held_out/corpus.jsonl"):
            lines = (data / name).read_text().splitlines()
            assert lines
            assert all(package in line for line in lines), name
    pairs = [json.loads(line) for line in (data / "old.train.sts.jsonl").open()]
    assert pairs
    assert PACKAGE not in json.dumps(pairs)


def test_recipes_differ_in_the_package_alone(setup: update.Setup, tmp_path: Path) -> None:
    recipes = {}
    for name in ("old", "retrained", "new"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(setup.recipe(name))
        recipes[name] = load_recipe(file)
    old, retrained, new = recipes.values()
    assert retrained.data.sources[:2] == old.data.sources
    (left_out,) = retrained.data.sources[2:]
    # half as many rows as the other source of its task
    assert (left_out.name, left_out.weight) == ("left_out", 0.5)
    assert [one.name for one in new.data.sources] == ["left_out"]
    assert (retrained.train, retrained.tasks, retrained.model) == (old.train, old.tasks, old.model)
    assert (new.tasks["ir"], new.train) == (old.tasks["ir"], old.train)
    assert old.train.max_steps == 40
    names = [one.name for recipe in (new, old) for one in recipe.eval.sets]
    assert names == list(update.METRICS)


def test_a_result_is_that_of_its_recipes_and_options(setup: update.Setup) -> None:
    setup.kept.make("update-1", setup.made_from("update", 1), lambda: scores(0.5, 0.5, 0.5))
    assert update.collect(setup, [1, 2]) == {"update": {1: scores(0.5, 0.5, 0.5)}}
    other = update.Setup(demo=setup.demo, folder=setup.folder, words=("--weight", "0.3"))
    assert update.collect(other, [1]) == {}
    nothing = update.Setup(demo=setup.demo, folder=setup.folder / "none")
    assert update.collect(nothing, [1]) == {}
    assert not nothing.folder.exists()


def scores(new: float, docs: float, pairs: float) -> update.Scores:
    return {"new_docs": new, "old_docs": docs, "old_pairs": pairs}


def test_the_table_says_seed_by_seed_whether_it_holds() -> None:
    text = update.render(
        {
            "old": dict.fromkeys((1, 2, 3, 4), scores(0.25, 0.5, 0.5)),
            "retrained": dict.fromkeys((1, 2, 3), scores(0.5, 0.5, 0.5)) | {4: scores(0, 1, 1)},
            "update": {
                1: scores(0.5, 0.5, 0.49609375),
                2: scores(0.4375, 0.5, 0.5),
                3: scores(0.5, 0.5, 0.46875),
                4: scores(0.5, 0.5, 0.5),
            },
        }
    )
    assert "old            4" in text
    lines = text.splitlines()[-4:]
    assert lines[0] == (
        "seed 1: training anew gains 25.00 points on the new set, the update 100% of it in 25% of "
        "the steps; it loses 0.20 points on the old sets: holds"
    )
    assert "75% of it" in lines[1]
    assert "loses 1.56 points" in lines[2]
    assert "gains -25.00 points on the new set, the update no share of it" in lines[3]
    assert [line.endswith("DOES NOT HOLD") for line in lines] == [False, True, True, True]


def test_without_the_demo_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected the folder that `make demo` fills"):
        check_demo(tmp_path, "docs.jsonl")
