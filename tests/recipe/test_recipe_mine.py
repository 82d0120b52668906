"""What a recipe says of negatives that the run mines: when, of which sources, contradictions."""

from pathlib import Path

import pytest

from tests.recipe.test_recipe_load import TEXT, refused, write
from trainer.checkpoint.changes import may_change, reason_against
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.mine import MineRecipe
from trainer.recipe.mine_rules import is_due, mined_before, mined_names, mined_spans

MINE = "data.mine={every_steps: 4}"
MORE = "    - {name: more, task: ir, path: more.jsonl}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, TEXT.replace("tasks:\n", f"{MORE}tasks:\n", 1))


def test_a_section_reads_back_and_names_all_retrieval_by_default(file: Path) -> None:
    recipe = load_recipe(file, [MINE, "data.mine.relative_margin=0.95"])
    assert recipe.data.mine == MineRecipe(every_steps=4, relative_margin=0.95)
    assert mined_names(recipe.data) == ("docs", "more")
    assert load_recipe(write(file.parent, dump_recipe(recipe))) == recipe
    one = load_recipe(file, ["data.mine.sources=[more]"])
    assert mined_names(one.data) == ("more",)
    assert mined_names(load_recipe(file, ["data.mine=null"]).data) == ()


@pytest.mark.parametrize(
    ("start", "expected"),
    [(False, [None, None, None, 3, 3, 3, 6, 6]), (True, [0, 0, 0, 3, 3, 3, 6, 6])],
)
def test_steps_draw_from_the_mining_before_them(start: bool, expected: list[int | None]) -> None:
    mine = MineRecipe(every_steps=3, start=start)
    assert [mined_before(mine, step) for step in range(8)] == expected
    assert [step for step in range(8) if is_due(mine, step)] == [0, 3, 6][not start :]
    assert mined_before(None, 5) is None


def test_spans_end_where_negatives_are_mined() -> None:
    mine = MineRecipe(every_steps=3)
    assert list(mined_spans(mine, 0, 8)) == [(0, 3), (3, 6), (6, 8)]
    assert list(mined_spans(mine, 4, 6)) == [(4, 6)]
    assert list(mined_spans(mine, 6, 6)) == []
    assert list(mined_spans(None, 2, 8)) == [(2, 8)]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("every_steps=0", "data.mine.every_steps = 0; expected an integer of at least 1"),
        ("relative_margin=2.5", "data.mine.relative_margin = 2.5; expected"),
        ("absolute_margin=-3", "data.mine.absolute_margin = -3"),
        ("sampling=best", "data.mine.sampling = "),
        ("num_negatives=0", "data.mine.num_negatives = 0; expected an integer of at least 1"),
        ("depth=3", "data.mine.depth = 3; expected at least 4, skip_top and num_negatives"),
        ("sources=[]", "data.mine.sources = []; expected some of docs, more"),
        ("sources=[none]", "data.mine.sources.0 = none; expected a source of task ir: docs, more"),
        ("sources=[pairs]", "data.mine.sources.0 = pairs (of task sts); expected a source of task"),
        ("sources=[docs, docs]", "data.mine.sources.1 = 'docs'; expected each source once"),
        ("every_steps=10", "data.mine.every_steps = 10; expected less than train.max_steps = 10"),
    ],
)
def test_mistakes_in_the_section(file: Path, override: str, expected: str) -> None:
    assert expected in refused(file, MINE, f"data.mine.{override}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "tasks.ir.negatives=0",
            "tasks.ir.negatives = 0; expected at least 1, as data.mine finds hard negatives of "
            "source docs",
        ),
        (
            "data.sources.more.negatives=0",
            "data.sources.more.negatives = 0; expected at least 1, as data.mine finds hard",
        ),
        (
            "tasks.ir.negatives=5",
            "data.mine.num_negatives = 4; expected at least tasks.ir.negatives = 5",
        ),
        (
            "tasks.ir.distillation={}",
            "tasks.ir.distillation = a section; expected null where data.mine replaces the "
            "negatives of source docs: scores of rows belong to their own negatives",
        ),
        (
            "tasks.ir.mask={guide: true}",
            "tasks.ir.mask.guide = true; expected false where data.mine replaces",
        ),
    ],
)
def test_what_reads_other_negatives_is_refused(file: Path, override: str, expected: str) -> None:
    load_recipe(file, [override])
    assert expected in refused(file, MINE, override)


def test_the_base_may_mine_for_all_steps(file: Path) -> None:
    load_recipe(file, [MINE, "data.mine.every_steps=10", "data.mine.start=true"])


def test_a_run_without_retrieval_has_nothing_to_mine(tmp_path: Path) -> None:
    docs = "    - name: docs\n      task: ir\n      path: docs.jsonl\n"
    file = write(tmp_path, TEXT.replace(docs, ""))
    assert "data.mine = a section; expected a source of task ir" in refused(file, MINE)


def test_a_run_keeps_its_section() -> None:
    assert not may_change("data.mine.every_steps")
    assert reason_against("data.mine").startswith("the steps so far were trained on what was mined")
