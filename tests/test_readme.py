"""The README is short and true: its example trains, and the commands of all pages read it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.pages import COMMANDS, PAGES, PROJECT, README, ROOT, Page, words_of
from tools import recipe_reference
from trainer.cli import Arguments, parse_arguments
from trainer.data.evalsets import open_eval_set
from trainer.data.sources import open_sources
from trainer.errors import DataError, RecipeError
from trainer.recipe.load import load_recipe
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import Recipe

MAX_BYTES = 12_000
EXAMPLE = "helpdesk.yaml"
"""The recipe that the pages themselves hold: a short one in the README, a long one elsewhere."""
EXAMPLES = {
    page.name: recipe
    for page in PAGES
    for recipe in page.blocks("yaml")
    if "output_dir:" in recipe  # others show a part of one
}
RUNS = [command for command in COMMANDS if "trainer/run.py" in command and "--recipe" in command]
FAILURES = Page(ROOT / "docs" / "failures.md")


def arguments_of(command: str) -> Arguments:
    """What stands behind `trainer/run.py`, as the command reads it."""
    words = words_of(command)
    return parse_arguments(words[words.index("trainer/run.py") + 1 :])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's own rows as files."""
    folder = tmp_path_factory.mktemp("helpdesk") / "data"
    (folder / "held_out" / "qrels").mkdir(parents=True)
    tickets, paraphrases = README.blocks("json")
    (folder / "tickets.jsonl").write_text(tickets)
    (folder / "paraphrases.jsonl").write_text(paraphrases)
    (folder / "paraphrases.dev.jsonl").write_text(paraphrases)
    document = {"_id": "d", "title": "Billing", "text": "Invoices are under Billing."}
    (folder / "held_out" / "corpus.jsonl").write_text(json.dumps(document))
    (folder / "held_out" / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "invoice?"}))
    (folder / "held_out" / "qrels" / "dev.tsv").write_text("q\td\t1\n")
    return folder


@pytest.fixture(params=sorted(EXAMPLES))
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Each page's recipe as a file."""
    path = tmp_path / EXAMPLE
    path.write_text(EXAMPLES[request.param])
    return path


def test_the_readme_is_short() -> None:
    assert len(README.text.encode()) <= MAX_BYTES


def test_the_readme_and_the_recipe_page_have_an_example() -> None:
    assert sorted(EXAMPLES) == ["README.md", "docs/recipe.md"]


def test_there_are_commands_of_each_kind() -> None:
    assert {words_of(command)[0] for command in RUNS} == {"deepspeed", "torchrun", "python", "srun"}
    options = " ".join(RUNS)
    for option in ("--dry-run", "--resume", "--selfcheck", "--hostfile", "train.learning_rate="):
        assert option in options
    assert {"make demo", "make test"} <= set(README.commands)


@pytest.mark.parametrize("command", [run for run in RUNS if EXAMPLE not in run])
def test_run_commands_are_read_and_their_recipes_load(command: str) -> None:
    arguments = arguments_of(command)
    resolve(load_recipe(ROOT / arguments.recipe, arguments.overrides), world_size=8)


@pytest.mark.parametrize("command", [run for run in RUNS if EXAMPLE in run])
def test_run_commands_take_the_examples(command: str, example: Path) -> None:
    arguments = arguments_of(command)
    assert arguments.recipe == EXAMPLE
    resolve(load_recipe(example, arguments.overrides), world_size=8)


def test_the_examples_read_their_rows(example: Path, data: Path) -> None:
    recipe = load_recipe(example, [f"data.root={data}"])
    sources = open_sources(recipe.data)
    assert [len(source) for source in sources] == [2, 2]
    assert sources[1].record(0).score == pytest.approx(0.92)  # 4.6 of 0..5
    for held_out in recipe.eval.sets:
        assert open_eval_set(held_out, recipe.data)


def test_the_examples_set_every_required_key(example: Path) -> None:
    written = yaml.safe_load(example.read_text())
    keys = recipe_reference.keys_of(Recipe)
    required = {key.path for key in keys if key.default == "required"}
    for path in required:
        value: Any = written
        for part in path.split("."):
            if (
                isinstance(value, Mapping)
                and part
                in ("labels", "mask", "merge", "matryoshka", "mine", "projection", "subset")
                and part not in value
            ):
                break  # a section that is left out, and the example needs none
            value = value[part.removesuffix("[]")]
            value = value[0] if part.endswith("[]") else value


def test_the_messages_shown_are_those_of_the_trainer(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_recipe, of_data = FAILURES.blocks("")[0].splitlines()
    monkeypatch.chdir(tmp_path)
    long_recipe = EXAMPLES["docs/recipe.md"]
    Path(EXAMPLE).write_text(long_recipe.replace("negatives:", "negativs:"))
    with pytest.raises(RecipeError) as mistake:
        load_recipe(EXAMPLE, [])
    assert str(mistake.value) == of_recipe

    Path("data").mkdir()
    row, *_ = (data / "tickets.jsonl").read_text().splitlines()
    line = int(of_data.split(":")[1])
    Path("data/tickets.jsonl").write_text(
        f"{row}\n" * (line - 1) + '{"query": "q", "positives": []}'
    )
    Path(EXAMPLE).write_text(long_recipe)
    with pytest.raises(DataError) as mistake_in_data:
        open_sources(load_recipe(EXAMPLE, []).data)
    assert str(mistake_in_data.value).removeprefix(f"{tmp_path}/") == of_data


def test_every_dependency_is_explained() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(name for group in extras.values() for name in group)]
    for requirement in wanted:
        name = re.split("[=<>~!]", requirement)[0]
        assert name in README.text, name
    for name in extras:
        assert f"`{name}`" in README.text or f"[{name}]" in README.text, name
