"""What a recipe says of labelled texts: settings of steps, forms of label texts, contradictions."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipe.test_recipe_load import TEXT, refused, write
from tests.support.data_files import data_recipe, labels_source
from trainer.export.prompts import prompts_of
from trainer.memory.loss_temporaries import TILES, temporary_bytes
from trainer.memory.workload import step_tokens
from trainer.objectives.tiles import TILE_BYTES
from trainer.recipe.ir import IrRecipe
from trainer.recipe.labels import LabelsRecipe, LabelTextsRecipe
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.per_source import settings_of, step_kinds
from trainer.recipe.schema import Recipe
from trainer.recipe.tasks import TASKS

TOPICS = "    - {name: topics, task: labels, path: t}\n"
TASK = "  labels: {global_batch_size: 8, negatives: 3}\n"
TEXTS = {"0": "of none", "a label": "of a label, said at length: " + "many words " * 60}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, TEXT.replace("tasks:\n", f"{TOPICS}tasks:\n{TASK}"))


def with_texts(file: Path, *overrides: str) -> Recipe:
    given = f"data.sources.topics.label_texts={json.dumps(TEXTS)}"
    return load_recipe(file, [given, *overrides])


def test_texts_of_labels_may_have_an_instruction(file: Path) -> None:
    recipe = with_texts(file, "data.sources.topics.passage_instruction=of")
    assert recipe.data.sources[2].passage_instruction == "of"


def test_label_texts_are_a_mapping_or_a_file_and_read_back(file: Path) -> None:
    for recipe in (with_texts(file), load_recipe(file, ["data.sources.topics.label_texts=a.json"])):
        expected: Any = TEXTS if recipe.data.sources[2].label_texts != "a.json" else "a.json"
        assert recipe.data.sources[2].label_texts == expected
        assert load_recipe(write(file.parent, dump_recipe(recipe))) == recipe
        write(file.parent, TEXT.replace("tasks:\n", f"{TOPICS}tasks:\n{TASK}"))


def test_steps_of_a_source_with_label_texts_have_passages(file: Path) -> None:
    short = ("data.query_max_tokens=10", "data.passage_max_tokens=20")
    plain, named = load_recipe(file, [*short]), with_texts(file, *short)
    assert type(settings_of(plain, "topics")) is LabelsRecipe
    own = settings_of(named, "topics")
    assert isinstance(own, LabelTextsRecipe)
    assert (own.global_batch_size, own.negatives) == (8, 3)
    # an anchor, its positive and three negatives; of 10 tokens each, or of 20 but the anchor
    assert step_tokens(plain)["labels"] == 8 * 5 * 10
    assert step_tokens(named)["labels"] == 8 * (10 + 4 * 20)


def test_sources_with_and_without_label_texts_are_two_kinds_of_steps(file: Path) -> None:
    write(
        file.parent,
        TEXT.replace("tasks:\n", f"{TOPICS}{TOPICS.replace('topics', 'more')}tasks:\n{TASK}"),
    )
    assert [kind.name for kind in step_kinds(with_texts(file))][-2:] == [
        "labels (topics)", "labels (more)"
    ]  # fmt: skip


def test_the_objective_says_which_term_counts() -> None:
    kind = TASKS["labels"]
    for objective, name in (("own_negatives", "infonce"), ("in_batch", "infonce"),
                            ("supcon", "supcon")):  # fmt: skip
        weights = kind.weights_of(LabelsRecipe(global_batch_size=1, objective=objective))
        assert {key for key, weight in weights.items() if weight} == {name}


def test_the_plan_of_memory_knows_every_objective() -> None:
    def planned(objective: Any, rows: int) -> int:
        settings = LabelsRecipe(global_batch_size=rows, negatives=3, objective=objective)
        return temporary_bytes("labels", settings)

    # 8 anchors with 4 slots: 40 texts; logits of own slots, of anchors, of all texts
    assert planned("own_negatives", 8) == TILES * 4 * 8 * 4 + 8 * 40
    assert planned("in_batch", 8) == TILES * 4 * 8 * 40 + 2 * 8 * 40
    assert planned("supcon", 8) == TILES * 4 * 40 * 40 + 2 * 40 * 40
    assert planned("supcon", 4096) == TILES * TILE_BYTES + 2 * (5 * 4096) ** 2


def test_prompts_are_those_of_the_sides_that_are_trained(tmp_path: Path) -> None:
    changes = {"query_instruction": "Classify: ", "passage_instruction": "Label: "}
    plain = prompts_of(data_recipe([labels_source("t", **changes)]))
    assert plain == {"query": "", "document": "", "labels": "Classify: "}
    named = prompts_of(data_recipe([labels_source("t", label_texts={"a": "b"}, **changes)]))
    assert named == plain | {"labels-document": "Label: "}


REFUSED: dict[str, tuple[list[str], str]] = {
    "nothing to be told from": (
        ["tasks.labels.negatives=0"],
        "tasks.labels.negatives = 0; expected at least 1 where tasks.labels.objective is own_neg",
    ),
    "one row": (
        ["tasks.labels={global_batch_size: 1, negatives: 0, objective: supcon}"],
        "tasks.labels.global_batch_size = 1; expected at least 2 where negatives is 0",
    ),
    "texts of labels among texts": (
        ["data.sources.topics.label_texts=t.json", "tasks.labels.objective=supcon"],
        "objective = 'supcon'; expected own_negatives or in_batch where the source has label_texts",
    ),
    "two texts of a label": (
        ["data.sources.topics.label_texts=t.json", "tasks.labels.positives=2"],
        "tasks.labels.positives = 2; expected 1 where the source has label_texts",
    ),
    "no labels": (
        ["data.sources.docs.label_texts=t.json"],
        "data.sources.1.label_texts = 't.json'; expected null, as rows of task ir have no labels",
    ),
    "passages of none": (
        ["data.sources.topics.passage_instruction=of"],
        "data.sources.2.passage_instruction = 'of'; expected nothing, as steps of task labels "
        "without label_texts have no passages. Write it as query_instruction, or remove it.",
    ),
    "passages of pairs": (
        ["data.sources.pairs.passage_instruction=of"],
        "passage_instruction = 'of'; expected nothing, as steps of task sts have no passages.",
    ),
    "empty": (["data.sources.topics.label_texts={}"], "expected the text of every label"),
    "a number for a text": (["data.sources.topics.label_texts={a: [b]}"], "expected text"),
    "an objective": (
        ["tasks.labels.objective=own"],
        "expected one of own_negatives, in_batch, sup",
    ),
    "in_batch of a source": (
        ["data.sources.topics.in_batch=false"],
        "data.sources.2.in_batch = false; expected null, as steps of task labels have no in_batch",
    ),
}


@pytest.mark.parametrize(("overrides", "part"), REFUSED.values(), ids=REFUSED)
def test_contradictions_are_refused(file: Path, overrides: list[str], part: str) -> None:
    assert part in refused(file, *overrides)


def test_a_path_that_forbids_in_batch_negatives_is_taken_at_its_word(file: Path) -> None:
    def in_batch(path: str, *overrides: str) -> object:
        own = settings_of(load_recipe(file, [f"data.sources.docs.path={path}", *overrides]), "docs")
        assert isinstance(own, IrRecipe)
        return own.in_batch

    for path in ("x_no_in_batch_neg.jsonl", "x-no_in_batch_neg", "x_no_in_batch_neg/*.jsonl.gz"):
        assert in_batch(path) is False
        assert in_batch(path, "data.sources.docs.in_batch=true") is True
    assert in_batch("no_in_batch_neg_x/a.jsonl") is True
    refusal = refused(file, "data.sources.docs.path=x_no_in_batch_neg", "tasks.ir.negatives=0")
    assert "tasks.ir.negatives = 0; expected at least 1 where tasks.ir.in_batch needs" in refusal
    assert "(in steps of source docs)" in refusal
    # rows of other tasks have no candidates of a batch
    named = load_recipe(file, ["data.sources.topics.path=x_no_in_batch_neg"])
    assert settings_of(named, "topics") == named.tasks["labels"]
