"""Rows that say how they are to be trained: taken into the recipe, in agreement, or refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.data_files import data_recipe, ir_source, sts_source, write_jsonl
from trainer.data.row_settings import with_row_settings
from trainer.errors import DataError, RecipeError
from trainer.export.prompts import prompts_of
from trainer.recipe.load import load_recipe
from trainer.recipe.per_source import settings_of
from trainer.recipe.schema import Recipe, SourceRecipe

FLAG: dict[str, Any] = {"query": "q", "pos": ["p"], "neg": ["a", "b", "c"]}


def recipe_of(*sources: SourceRecipe) -> Recipe:
    return data_recipe(sources, ir={"negatives": 7})


def completed(folder: Path, *rows: dict[str, Any], name: str = "a.jsonl", **own: Any) -> Recipe:
    path = write_jsonl(folder / name, rows)
    return with_row_settings(recipe_of(ir_source(path, row_settings=True, **own)))


CASES: dict[str, tuple[dict[str, Any], tuple[str, str], int]] = {
    "a prompt alone": ({"prompt": "find: "}, ("find: ", ""), 7),
    "a type without meaning": ({"prompt": "find: ", "type": "normal"}, ("find: ", ""), 7),
    "both sides of pairs": ({"prompt": "same: ", "type": "symmetric_sts"}, ("same: ", "same: "), 7),
    "both sides of clusters": (
        {"prompt": "group: ", "type": "symmetric_clustering"}, ("group: ", "group: "), 7
    ),
    "one negative": ({"prompt": "find: ", "type": "only_1neg"}, ("find: ", ""), 1),
    "negatives of other classes": ({"prompt": "sort: ", "type": "symmetric_class"},
                                   ("sort: ", ""), 2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_row_says_how_it_is_trained(case: str, tmp_path: Path) -> None:
    carried, instructions, negatives = CASES[case]
    fewer = FLAG | {"neg": ["a", "b"]}
    found = completed(tmp_path, FLAG | carried, fewer | carried)
    (source,) = found.data.sources
    assert (source.query_instruction, source.passage_instruction) == instructions
    settings = settings_of(found, source.name)
    assert getattr(settings, "negatives", None) == negatives
    # what is saved with a run is completed to itself
    assert with_row_settings(found) == found
    prompts = prompts_of(found)
    assert (prompts["query"], prompts["document"]) == instructions


def test_a_folder_without_in_batch_negatives_is_trained_as_there(tmp_path: Path) -> None:
    carried = {"prompt": "sort: ", "type": "symmetric_class"}
    name = "banking-no_in_batch_neg/train.jsonl"
    found = completed(tmp_path, FLAG | carried, FLAG | carried, name=name)
    (source,) = found.data.sources
    settings: Any = settings_of(found, source.name)
    assert (settings.in_batch, settings.negatives) == (False, 3)
    assert source.query_instruction == "sort: "


def test_what_the_recipe_says_itself_is_kept_where_it_agrees(tmp_path: Path) -> None:
    carried = {"prompt": "find: ", "type": "only_1neg"}
    own = {"query_instruction": "find: ", "passage_instruction": "read: ", "negatives": 2}
    (source,) = completed(tmp_path, FLAG | carried, **own).data.sources
    assert source.query_instruction == "find: "
    assert (source.passage_instruction, source.negatives) == ("read: ", 2)
    with pytest.raises(
        DataError,
        match=r'data\.sources\.set: query_instruction = "other"; expected "find: ", which its rows',
    ):
        completed(tmp_path, FLAG | carried, query_instruction="other")


def test_other_sources_stay_as_they_are(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [FLAG | {"prompt": "find: "}])
    recipe = recipe_of(ir_source(path))
    assert with_row_settings(recipe) is recipe


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "two prompts": (
        [FLAG | {"prompt": "find: "}, FLAG | {"prompt": "seek: "}],
        r'a\.jsonl:2: prompt = "seek: "; expected "find: ", as at .*a\.jsonl:1: a source has one '
        r"\(row_settings\)\. Make a source of the rows of each prompt, or set row_settings=false\.",
    ),
    "two types": (
        [FLAG | {"type": "only_1neg"}, FLAG],
        r'a\.jsonl:2: type = ""; expected "only_1neg", as at .*:1: a source has one',
    ),
    "no prompt": ([FLAG], r"a\.jsonl: prompt and type = nothing in any row; expected rows that"),
    "a prompt that is no text": (
        [FLAG | {"prompt": 3}], r"a\.jsonl:1: prompt = 3; expected a text\. Correct the row"
    ),
    "another format": (
        [{"query": "q", "positives": ["p"]}],
        r"data\.sources\.set: row_settings = true for rows of format records; expected those of",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "said"), BAD.values(), ids=BAD)
def test_rows_that_do_not_agree_are_named(
    rows: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        completed(tmp_path, *rows)


def test_sets_of_the_hub_have_to_be_downloaded_first(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: a\noutput_dir: a\nmodel: {path: a}\ntrain: {max_steps: 1}\n"
        "tasks: {ir: {global_batch_size: 2}}\n"
        "data: {sources: [{name: a, task: ir, hub: b/c, row_settings: true}]}\n"
    )
    said = r"data\.sources\.0\.row_settings = true; expected false without `path`\. Download"
    with pytest.raises(RecipeError, match=said):
        load_recipe(tmp_path / "recipe.yaml", [])


def test_a_source_of_another_task_has_no_such_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text1": "a", "text2": "b", "score": 1}])
    recipe = recipe_of(replace(sts_source(path), row_settings=True))
    with pytest.raises(DataError, match=r"row_settings = true for rows of format records"):
        with_row_settings(recipe)
