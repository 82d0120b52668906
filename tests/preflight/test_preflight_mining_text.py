"""What a dry run says of negatives that the run will mine, and what is checked before it does."""

from pathlib import Path

import pytest

from tests.support.data_files import data_recipe, write_beir, write_jsonl, write_qrels
from trainer.data.sources import open_sources
from trainer.data.teacher import check_negatives
from trainer.errors import DataError
from trainer.preflight.mining_text import mining_section
from trainer.recipe.mine import MineRecipe
from trainer.recipe.schema import SourceRecipe


def sources_in(folder: Path) -> list[SourceRecipe]:
    """Ten rows of three passages, and a corpus of 30 documents with eight queries."""
    rows = [
        {"query": f"q {i}", "positives": [f"p {i}"], "negatives": ["a", "b"]} for i in range(10)
    ]
    beir = write_beir(
        folder / "beir",
        corpus={f"d{number}": f"document {number}" for number in range(30)},
        queries={f"q{number}": f"query {number}" for number in range(8)},
    )
    write_qrels(beir, "train", [(f"q{n}", f"d{n}", 1) for n in range(8)])
    return [
        SourceRecipe(name="rows", task="ir", path=str(write_jsonl(folder / "rows.jsonl", rows))),
        SourceRecipe(name="corpus", task="ir", path=str(beir)),
    ]


def test_a_dry_run_says_when_and_how_much(tmp_path: Path) -> None:
    mine = MineRecipe(every_steps=2, num_negatives=2)
    recipe = data_recipe(sources_in(tmp_path), data={"mine": mine}, ir={"negatives": 1})
    (section,) = mining_section(recipe, open_sources(recipe.data), 1024)
    title, _, rows, corpus, last = section.splitlines()
    assert title == "Mining: before step 2 and every 2 steps from there"
    # of the steps 2 and 3 each source has one, of 4 rows with 3 texts each
    assert rows.split() == ["rows", "about", "30", "4", "2.8", "0.12", "MiB", "0.00", "MiB"]
    assert corpus.split() == ["corpus", "30", "4", "2.8", "0.12", "MiB", "0.00", "MiB"]
    assert "a rank holds 48.00 MiB of vectors at a time" in last
    (away,) = mining_section(recipe, [], 1024)
    assert away.endswith("known when the rows of rows, corpus are counted, at the start")
    started = data_recipe(
        sources_in(tmp_path), data={"mine": MineRecipe(every_steps=2, start=True)}
    )
    assert mining_section(started, [], 8)[0].startswith("Mining: before step 0 and every 2 steps")
    plain = data_recipe(sources_in(tmp_path))
    assert mining_section(plain, [], 8) == ()


def test_rows_without_negatives_get_some_where_the_base_mines_first(tmp_path: Path) -> None:
    _, corpus = sources_in(tmp_path)
    for start in (False, True):
        mine = MineRecipe(every_steps=2, start=start)
        recipe = data_recipe([corpus], data={"mine": mine}, ir={"in_batch": False})
        sources = open_sources(recipe.data)
        if start:
            check_negatives(sources, recipe)
            continue
        with pytest.raises(DataError, match=r"tasks\.ir\.in_batch"):
            check_negatives(sources, recipe)
