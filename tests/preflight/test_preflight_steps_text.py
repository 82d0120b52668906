"""What a dry run says of the steps of a run that is resumed: those that it will take."""

import re
from pathlib import Path

import pytest

from tests.preflight.test_preflight_continuation import begun as begun  # a fixture
from tests.preflight.test_preflight_continuation import more_docs, record, stretch_of
from tests.test_run_cli import edit, snapshot
from tests.test_run_cli import project as project  # a fixture: a right recipe with its data
from trainer.checkpoint.changes import named_keys
from trainer.checkpoint.compare import next_stretches
from trainer.data.sources import open_sources
from trainer.errors import CheckpointError
from trainer.preflight.checks import near_data
from trainer.preflight.continuation import continued_recipe, continued_run
from trainer.preflight.steps_text import steps_section
from trainer.recipe.load import load_recipe


def told(*changes: str) -> str:
    recipe = load_recipe("small.yaml", (), tuple(one for one in changes if "=" in one))
    named = named_keys(changes, recipe)
    recipe = continued_recipe(recipe, named)
    sources = open_sources(near_data(recipe).data)
    return steps_section(recipe, sources, continued_run(recipe, sources, named))


def test_a_longer_run_tells_the_steps_to_come(begun: Path) -> None:
    before = snapshot(begun)
    text = told("train.max_steps=9", "train.schedule=constant", "train.warmup_ratio=0")
    head, resumed, *lines = text.splitlines()
    assert head == "Steps: 9, of which 0 warm up; schedule alternate"
    assert resumed == (
        "  resumed from step-2: 2 steps done, 7 to come; step 2 has a learning rate of 1e-05"
    )
    assert "  since then: train.max_steps = 9 (was 2)" in lines
    # one turn each, tasks in the order of the pattern: ir has the steps 0, 2, 4, 6 and 8
    assert re.search(r"docs +ir +8 +5 +4 +20 +2\.50 +0\n", text)
    assert re.search(r"pairs +sts +8 +4 +3 +16 +2\.00 +0\n", text)
    assert lines[-2].split() == ["0", "to", "1", "-"]
    assert lines[-1].startswith("  2 to 8  train.max_steps = 9 (was 2); train.schedule = 'const")
    assert snapshot(begun) == before


def test_added_rows_are_counted(begun: Path) -> None:
    more_docs(begun)
    text = told("train.max_steps=9", "data.sources.docs")
    assert "since then: rows were added to source docs: 4 after the 8 that the run" in text
    assert re.search(r"docs +ir +12 +5 +4 ", text)
    assert "rows of docs = 12 (was 8)" in text
    with pytest.raises(CheckpointError, match="rows were added to source docs"):
        told("train.max_steps=9")


def test_a_plain_resume_has_one_stretch_and_may_have_no_steps(begun: Path) -> None:
    text = told()
    assert "resumed from step-2: 2 steps done, 0 to come\n" in text
    assert "what changed" not in text
    with pytest.raises(CheckpointError, match=r"steps done = 2; expected at most 1, the length"):
        told("train.max_steps=1")


def test_a_stretch_that_was_begun_counts_before_its_first_checkpoint(begun: Path) -> None:
    first = stretch_of(load_recipe("small.yaml"))
    longer = stretch_of(load_recipe("small.yaml", ["train.max_steps=9"]))
    (begun / "out" / "checkpoints" / "step-2").rename(begun / "old")
    record(begun, 2, *next_stretches([first], 2, longer, ["train.max_steps"]))
    assert "2 steps done, 7 to come" in told()


def test_a_hub_source_has_the_rows_that_the_run_found(begun: Path) -> None:
    recipe = load_recipe("small.yaml")
    edit("path: docs.jsonl}", "hub: someone/docs}")(begun)
    # as far as the run knows they are the rows that it found
    text = told("train.max_steps=9")
    assert re.search(r"docs +ir +on the hub +5 +4 +20 +\? +\?\n", text)
    assert recipe.data.sources[1].path == "docs.jsonl"
    # those of a further one are not known
    edit("tasks:", "    - {name: more, task: ir, hub: someone/more}\ntasks:")(begun)
    text = told("train.max_steps=9", "data.sources.more")
    assert "known when the rows of docs, more are counted" in text
    assert "resumed from step-2" in text


def test_a_folder_without_a_checkpoint_begins(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert told().startswith("Steps: 2, of which 0 warm up; schedule alternate\nsource".replace(
        "\nsource", "\n  source"))  # fmt: skip


def test_a_part_of_a_hub_source_has_steps_before_its_rows_are_known(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    edit("path: docs.jsonl}", "hub: someone/docs, subset: {fraction: 0.1}}")(project)
    assert re.search(r"docs +ir +on the hub +1 +4 +\? +\?$", told())
