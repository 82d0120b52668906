"""Mined negatives in batches: on the fly and from tokens made ahead, in mixes, of a corpus."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.both_modes import assert_same, stores_in
from tests.support.data_files import (
    byte_tokenizer,
    data_recipe,
    ir_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data.loader import batches
from trainer.data.mined import (
    NO_PLACE,
    MinedSource,
    check_mined,
    in_rows,
    places_in_rows,
    with_mined,
)
from trainer.data.mixed_rows import OWNER_BIT
from trainer.data.planned import plan_of
from trainer.data.sources import open_source, open_sources
from trainer.data.tokens import make_encoder
from trainer.data.tokens_ahead import is_ahead
from trainer.data.worker import Ahead
from trainer.errors import RecipeError
from trainer.recipe.mine import MineRecipe
from trainer.recipe.schema import SourceRecipe

NUM_ROWS = 20


def rows(name: str, *, scored: bool) -> list[dict[str, Any]]:
    """Rows with other numbers of passages each, some of which are equal, and some scores."""
    made: list[dict[str, Any]] = []
    for row in range(NUM_ROWS):
        texts = [f"{name} sat {row % 13} {i}" for i in range(1 + row % 3)]
        others = [f"the dog {(row + i) % 7}" for i in range(row % 4)]
        made.append({"query": f"the cat {row % 17}", "positives": texts, "negatives": others})
        if scored and row % 3:
            made[-1] |= {"positive_scores": [1.0 * row] * len(texts),
                         "negative_scores": [0.5] * len(others)}  # fmt: skip
    return made


def mine(folder: Path, source: Any, *, without: int = 3) -> Path:
    """A file in which every row but some got up to three passages of other rows."""
    rng = np.random.default_rng(5)
    places = np.full((NUM_ROWS - 1, 3), NO_PLACE, np.int64)
    for row in range(NUM_ROWS - 1):
        if row % without == 1:
            continue
        for at in range(1 + row % 3):
            other = int(rng.integers(NUM_ROWS))
            record = source.record(other)
            number = int(rng.integers(len(record.positives) + len(record.negatives)))
            places[row, at] = places_in_rows(np.array(other), np.array(number))
    file = folder / f"{source.name}.npy"
    np.save(file, places)
    return file


def test_places_are_rows_and_numbers() -> None:
    found, numbers = np.array([0, 7, (1 << OWNER_BIT) - 1]), np.array([0, 3, (1 << 23) - 1])
    places = places_in_rows(found, numbers)
    assert (places >= 0).all()
    assert [one.tolist() for one in in_rows(places)] == [found.tolist(), numbers.tolist()]


def test_a_row_has_what_was_mined_or_its_own(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows("a", scored=True))
    source = open_source(ir_source(path), ".")
    file = mine(tmp_path, source)
    (mined,) = with_mined([source], {"set": file})
    assert isinstance(mined, MinedSource)
    places = np.load(file)
    for row in range(NUM_ROWS):
        own, record = source.record(row), mined.record(row)
        wanted = [] if row == NUM_ROWS - 1 else places[row][places[row] != NO_PLACE]
        if not len(wanted):
            assert record == own
            continue
        others = [(source.record(int(at >> 23)), int(at & 0x7FFFFF)) for at in wanted]
        texts = [(*one.positives, *one.negatives)[number] for one, number in others]
        assert record.negatives == tuple(texts)
        assert (record.query, record.positives) == (own.query, own.positives)
        assert not record.has_teacher
    assert with_mined([source], {}) == (source,)


@pytest.mark.parametrize("mix", [{}, {"both": ("a", "b")}], ids=["alone", "mixed"])
def test_batches_are_the_same_with_tokens_ahead_and_any_workers(
    tmp_path: Path, mix: Mapping[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    recipe = data_recipe(
        [
            SourceRecipe(name=name, task="ir", path=str(write_jsonl(
                tmp_path / f"{name}.jsonl", rows(name, scored=name == "a"))))
            for name in "ab"
        ],
        ir={"global_batch_size": 8, "positives": 2, "negatives": 2},
        data={"workers": 0, "mix": mix},
    )  # fmt: skip
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
    opened = open_sources(recipe.data)
    # the other source keeps the negatives of its rows
    sources = with_mined(opened, {"a": mine(tmp_path, opened[0])})
    plan = plan_of(recipe, opened)
    whole = list(batches(plan, sources, encoder, recipe, 0, 8))
    plain = list(batches(plan, opened, encoder, recipe, 0, 8))
    differs = [not np.array_equal(a.texts.lengths, b.texts.lengths)
               or any(map(np.any, map(np.subtract, a.texts.token_ids, b.texts.token_ids)))
               for a, b in zip(whole, plain, strict=True)]  # fmt: skip
    assert differs == [one.plan.source != "b" for one in whole]
    if not mix:
        assert any(one.num_masked for one in whole)
    stores = stores_in(tmp_path / "stores", recipe, opened, encoder)
    for workers, rank, num_ranks in ((0, 0, 1), (0 if mix else 1, 1, 2)):
        changed = replace(recipe, data=replace(recipe.data, workers=workers))
        ahead = Ahead(stores=stores, rank=rank, num_ranks=num_ranks)
        found = batches(plan, sources, encoder, changed, 0, 8, ahead=ahead)
        for one, other in zip(whole, found, strict=True):
            assert_same(one, other, rank=rank, num_ranks=num_ranks)


def test_places_of_a_corpus_are_its_documents(tmp_path: Path) -> None:
    corpus = {f"d{number}": f"document {number}" for number in range(9)}
    folder = write_beir(tmp_path / "beir", corpus=corpus, queries={"q0": "a query"})
    write_qrels(folder, "train", [("q0", "d3", 1)])
    recipe = data_recipe([ir_source(folder)], data={"mine": MineRecipe(every_steps=2)})
    (source,) = open_sources(recipe.data)
    np.save(tmp_path / "set.npy", np.array([[7, 0, NO_PLACE]]))
    (mined,) = with_mined([source], {"set": tmp_path / "set.npy"})
    assert mined.record(0).negatives == ("document 7", "document 0")
    # tokens made ahead have the texts of rows alone
    assert not is_ahead(recipe, source, num_ranks=8)
    check_mined([source], recipe)
    ahead = data_recipe(
        [ir_source(folder)], data={"mine": MineRecipe(every_steps=2), "tokens": "ahead"}
    )
    with pytest.raises(
        RecipeError, match=r"data\.tokens = ahead; expected auto or on_the_fly where"
    ):
        check_mined([source], ahead)
