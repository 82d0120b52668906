"""The benchmark of labelled texts: fair variants, rows that are told apart, and its verdict."""

import json
from pathlib import Path

import pytest

from demo.labels import MIN_HELD_OUT, labelled_rows, write_labelled
from demo.split import is_held_out
from tools.bench import labels
from trainer.errors import RecipeError
from trainer.recipe.load import load_recipe

HELD_OUT = next(f"m{n}" for n in range(999) if is_held_out(f"m{n}"))
TRAINED = next(f"m{n}" for n in range(999) if not is_held_out(f"m{n}"))


def docs(module: str, count: int) -> list[dict[str, str]]:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return [
        {"module": module, "summary": f"{module[0]} {words[n // 10]} {words[n % 10]} {module}."}
        for n in range(count)
    ]


def test_rows_are_summaries_with_their_module(tmp_path: Path) -> None:
    rows = [*docs(HELD_OUT, MIN_HELD_OUT), *docs(TRAINED, 3), *docs(HELD_OUT, MIN_HELD_OUT)]
    train, held_out = labelled_rows(rows)
    # three are too few, and each summary counts once
    assert (train, len(held_out)) == ([], MIN_HELD_OUT)
    assert held_out[0] == {"text": rows[0]["summary"], "label": HELD_OUT}
    line = write_labelled(tmp_path, rows)
    assert line == f"0 summaries of 0 modules to train on, {MIN_HELD_OUT} of 1 held out"
    parts = [
        {json.loads(text)["text"] for text in (tmp_path / "classes" / name).open()}
        for name in ("train.jsonl", "test.jsonl")
    ]
    assert [len(part) for part in parts] == [MIN_HELD_OUT // 2] * 2
    assert not parts[0] & parts[1]
    assert len((tmp_path / "clusters.jsonl").read_text().splitlines()) == MIN_HELD_OUT


def test_variants_have_as_many_steps_of_the_other_tasks(tmp_path: Path) -> None:
    setup = labels.Setup(demo=tmp_path / "demo", folder=tmp_path / "work")
    recipes = {}
    for name in labels.VARIANTS:
        file = tmp_path / f"{name}.yaml"
        file.write_text(setup.recipe(name))
        recipes[name] = load_recipe(file)
    without = recipes.pop("without")
    assert (without.train.max_steps, without.data.pattern) == (240, {"ir": 3, "sts": 1})
    assert [one.name for one in without.eval.sets] == ["docs", "summaries", "classes", "clusters"]
    for name, recipe in recipes.items():
        assert recipe.train.max_steps == 420
        assert recipe.data.pattern == {"ir": 3, "sts": 1, "labels": 3}
        assert recipe.tasks["ir"] == without.tasks["ir"]
        assert recipe.eval == without.eval
        assert recipe.model == without.model
        assert recipe.tasks["labels"].objective == name


def scores(clusters: float, classes: float, docs: float, summaries: float) -> labels.Scores:
    return {"clusters": clusters, "classes": classes, "docs": docs, "summaries": summaries}


def test_the_table_says_seed_by_seed_whether_it_holds() -> None:
    text = labels.render(
        {
            "without": {1: scores(0.3, 0.4, 0.35, 0.5), 2: scores(0.3, 0.4, 0.35, 0.5)},
            "own_negatives": {1: scores(0.4, 0.5, 0.345, 0.51), 2: scores(0.4, 0.5, 0.33, 0.5)},
            "supcon": {2: scores(0.3, 0.5, 0.35, 0.5)},
        }
    )
    assert "without            2" in text
    assert (
        "seed 1, own_negatives: v_measure +0.1000, accuracy +0.1000, ndcg_at_10 -0.0050, "
        "spearman +0.0100: holds" in text
    )
    assert "seed 2, own_negatives: v_measure +0.1000, accuracy +0.1000, ndcg_at_10 -0.0200" in text
    assert text.count("DOES NOT HOLD") == 2


def test_without_the_demo_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected the folder that `make demo` fills"):
        labels.prepare(labels.Setup(demo=tmp_path, folder=tmp_path / "work"))
    assert not (tmp_path / "work").exists()
