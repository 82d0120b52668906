"""Rows that evaluation sets ask are told of, refused or left out, for every layout of a source."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.data_files import (
    data_recipe,
    ir_source,
    sts_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data import overlap
from trainer.data.evalsets import EvalSet, open_eval_set
from trainer.data.growth import state_of
from trainer.data.overlap import screen_of
from trainer.data.planned import plan_of
from trainer.data.sources import BeirSource, Source, open_sources
from trainer.errors import DataError
from trainer.preflight.checks import open_data
from trainer.recipe.schema import DataRecipe, EvalRecipe, EvalSetRecipe, Recipe, SourceRecipe

LONG = "the quick brown fox jumps over the lazy dog and runs far away into the deep dark wood"
NEARLY = LONG.replace("lazy", "sleepy").replace("wood", "forest") + " tonight"
OTHER = "a text about something else that nobody asks for in any of the sets that are held out"
ASKED = "How do I reset it?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources of each layout, rows 1 and 2 of which repeat what a held-out set asks."""
    queries = [OTHER, LONG, "how do I reset it", f"{OTHER} either"]
    rows = [{"query": query, "positives": [f"answer {i}"]} for i, query in enumerate(queries)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    pairs = [("x", "y"), ("b", f"{LONG} now"), ("B!", "a"), ("a", "c")]
    write_jsonl(
        tmp_path / "pairs.jsonl",
        [{"text1": a, "text2": b, "score": i / 4} for i, (a, b) in enumerate(pairs)],
    )
    texts = [*queries, f"{OTHER} too", f"{OTHER} again"]
    write_jsonl(
        tmp_path / "labels.jsonl",
        [{"text": text, "label": "ab"[i // 4]} for i, text in enumerate(texts)],
    )
    beir = write_beir(
        tmp_path / "beir",
        corpus={f"d{i}": f"document {i}" for i in range(4)},
        queries={f"q{i}": query for i, query in enumerate(queries)},
    )
    write_qrels(beir, "train", [(f"q{i}", f"d{i}", 1) for i in range(4)])
    held_out = write_beir(
        tmp_path / "held", corpus={"d": "x"}, queries={"a": LONG, "b": ASKED, "c": "else"}
    )
    write_qrels(held_out, "dev", [("a", "d", 1), ("b", "d", 1), ("c", "d", 1)])
    write_jsonl(
        tmp_path / "held.jsonl",
        [
            {"text1": LONG, "text2": "b", "score": 1},
            {"text1": "a", "text2": "b", "score": 0},
        ],
    )
    return tmp_path


SETS = (
    EvalSetRecipe(name="search", task="ir", path="held"),
    EvalSetRecipe(name="pairs", task="sts", path="held.jsonl"),
)


def recipe_of(folder: Path, mode: Any, *sources: SourceRecipe) -> Recipe:
    changes = {"root": str(folder), "overlap": mode}
    small = {"global_batch_size": 2}
    recipe = data_recipe(sources, data=changes, ir=small, sts=small)
    return replace(recipe, eval=EvalRecipe(sets=SETS))


def sets_of(recipe: Recipe) -> dict[str, EvalSet]:
    return {one.name: open_eval_set(one, recipe.data) for one in recipe.eval.sets}


def kept(source: Source) -> list[str]:
    return [source.record(row).asked() for row in range(len(source))]


LABELS = SourceRecipe(name="set", task="labels", path="labels.jsonl")
LAYOUTS = [ir_source("rows.jsonl"), sts_source("pairs.jsonl"), ir_source("beir"), LABELS]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["rows", "pairs", "beir", "labels"])
def test_rows_are_left_out_whatever_the_layout(folder: Path, layout: SourceRecipe) -> None:
    plain = recipe_of(folder, None, layout)
    before = open_sources(plain.data)[0]
    dropping = recipe_of(folder, "drop", layout)
    (after,) = open_data(dropping).sources
    texts = kept(before)
    assert kept(after) == [texts[0], *texts[3:]]
    assert after.fingerprint != before.fingerprint
    # the same rows again, and a plan over those that are left
    (again,) = open_data(dropping).sources
    assert again.fingerprint == after.fingerprint
    assert plan_of(dropping, (after,)).at(0).rows.max() < len(after)
    places = [before.place(0), *(before.place(row) for row in range(3, len(before)))]
    assert [after.place(row) for row in range(len(after))] == places
    keys = set(map(int, before.queries)) - set(map(int, after.queries))
    assert len(keys) == 2
    # rows that are added later cannot be told from those that were left out; the records of a
    # folder that is joined by ids are known one by one
    assert bool(state_of(after).files) == isinstance(after, BeirSource)


def test_examples_are_named_and_near_ones_come_first(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_jsonl(folder / "rows.jsonl", [
        {"query": "how do I reset it", "positives": ["x"]},
        {"query": f"{LONG} now", "positives": ["x"]},
        {"query": OTHER, "positives": ["x"]},
    ])  # fmt: skip
    recipe = recipe_of(folder, "warn", ir_source("rows.jsonl"))
    assert len(open_data(recipe).sources[0]) == 3
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == (
        "data.sources.set: 2 of 3 rows are also in eval.sets.search: 1 equal, 1 nearly. "
        f"{folder}/rows.jsonl:2 'the quick brown fox jumps over the lazy dog and runs far awa...' "
        "repeats 'the quick brown fox jumps over the lazy dog and runs far awa...'; "
        f"{folder}/rows.jsonl:1 'how do I reset it' repeats 'How do I reset it?'. Its scores will "
        "be too good"
    )


def test_error_stops_with_code_2_and_drop_leaves_something(folder: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 4 rows .* data\.overlap is error\. Remove") as error:
        open_data(recipe_of(folder, "error", ir_source("rows.jsonl")))
    assert error.value.exit_code == 2
    write_jsonl(folder / "rows.jsonl", [{"query": LONG, "positives": ["x"]}])
    with pytest.raises(DataError, match="rows = 1, all of them also in evaluation sets"):
        open_data(recipe_of(folder, "drop", ir_source("rows.jsonl")))
    # nothing held out, nothing to compare
    alone = replace(recipe_of(folder, "error", ir_source("rows.jsonl")), eval=EvalRecipe())
    assert len(open_data(alone).sources[0]) == 1


def test_words_that_differ_much_are_others(folder: Path) -> None:
    write_jsonl(folder / "rows.jsonl", [{"query": NEARLY, "positives": ["x"]}])
    recipe = recipe_of(folder, "error", ir_source("rows.jsonl"))
    assert len(open_data(recipe).sources[0]) == 1


def test_large_sources_are_compared_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setattr(overlap, "CACHE_FROM_ROWS", 1)
    recipe = recipe_of(folder, "drop", ir_source("rows.jsonl"))
    (first,) = open_data(recipe).sources
    texts: Sequence[str] = kept(first)

    def no_more(*arguments: object) -> None:
        raise AssertionError("compared again")

    monkeypatch.setattr(overlap.Screen, "_found", no_more)
    (second,) = open_data(recipe).sources
    assert kept(second) == texts
    # another question is held out: everything is looked at again
    more = replace(recipe, eval=EvalRecipe(sets=(SETS[0],)))
    with pytest.raises(AssertionError, match="compared again"):
        open_data(more)
    screen = screen_of(DataRecipe(sources=(), overlap=None), sets_of(recipe))
    assert screen is None
