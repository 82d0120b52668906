"""What is looked at of a batch from stored tokens: as much as the plain way needs, no less."""

import json
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.both_modes import assert_stored_alike, stores_in
from tests.support.data_files import byte_tokenizer, data_recipe, ir_source, write_jsonl
from trainer.data import token_index
from trainer.data.batch import IrBatch
from trainer.data.collate import make_batch
from trainer.data.host_share import _Pickler, counted_from
from trainer.data.ir import _draw_one, draw_numbers
from trainer.data.known_positives import ABSENT, known_positives, repeated_positives
from trainer.data.planned import plan_of
from trainer.data.slot_table import SlotTable, is_repeated, number_digests
from trainer.data.sources import open_sources
from trainer.data.token_store import FORMAT, TokenStore, open_store
from trainer.data.tokens import make_encoder
from trainer.errors import DataError
from trainer.recipe.ir import IrRecipe

WORDS = [f"{word} {number}" for word in ("cat", "dog", "mat") for number in range(5)]


def some_rows(choice: random.Random, number: int) -> list[dict[str, Any]]:
    """Rows that share queries and passages, with other numbers of passages each."""
    few = choice.choice([WORDS, [*WORDS, *(f"text {i}" for i in range(100))]])
    return [
        {
            "query": choice.choice(few),
            "positives": choice.choices(few, k=choice.randint(1, 3)),
            "negatives": choice.choices(few, k=choice.randint(0, 4)),
        }
        for _ in range(number)
    ]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))


def opened(tmp_path: Path, rows: list[dict[str, Any]], **ir: Any) -> tuple[Any, Any, Any]:
    """A recipe, its source and an encoder."""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = data_recipe([ir_source(path)], ir=ir, data={"workers": 0})
    (source,) = open_sources(recipe.data)
    return recipe, source, make_encoder(byte_tokenizer(), recipe.data, pooling="last")


def store_of(tmp_path: Path, rows: list[dict[str, Any]]) -> TokenStore:
    recipe, source, encoder = opened(tmp_path, rows, global_batch_size=1)
    (store,) = stores_in(tmp_path / "stores", recipe, [source], encoder).values()
    return store


@pytest.mark.parametrize("seed", range(8))
def test_batches_of_rows_that_share_texts_are_those_made_on_the_fly(
    tmp_path: Path, seed: int
) -> None:
    choice = random.Random(seed)
    rows = some_rows(choice, 9)
    if choice.random() < 0.5:
        # as many as are taken: nothing is drawn, and only a text that is there twice is looked at
        rows = [row | {"positives": row["positives"][:1], "negatives": WORDS[:2]} for row in rows]
    recipe, source, encoder = opened(
        tmp_path, rows, global_batch_size=7, positives=choice.randint(1, 2), negatives=2
    )
    plan = plan_of(recipe, [source])
    # the second step begins another epoch: some rows may be there twice
    for step in range(2):
        batch = make_batch(plan.at(step), source, encoder, recipe)
        assert_stored_alike(batch, source, encoder, recipe)
    again = replace(plan.at(0), rows=np.array([3, 1, 3, 3, 0, 8, 1]))
    batch = make_batch(again, source, encoder, recipe)
    assert isinstance(batch, IrBatch)
    assert_stored_alike(batch, source, encoder, recipe)


def same_digest(store: TokenStore) -> np.ndarray:
    """Which slots have a digest that another one has."""
    digests = [tuple(pair) for pair in store.arrays["digests"].tolist()]
    return np.array([digests.count(one) > 1 for one in digests])


def test_a_store_knows_which_of_its_texts_it_has_more_than_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = some_rows(random.Random(2), 30)
    rows += [{"query": f"only {i}", "positives": [f"once {i}"]} for i in range(30)]
    several = same_digest(store := store_of(tmp_path / "exact", rows))
    assert 0 < several.sum() < len(several)
    assert store.may_repeat(np.arange(len(several))).tolist() == several.tolist()
    # with few buckets and small blocks some others are taken for such texts, and none is missed
    monkeypatch.setattr(token_index, "LEAST_BUCKET_BITS", 8)
    monkeypatch.setattr(token_index, "MOST_BUCKET_BITS", 8)
    monkeypatch.setattr(token_index, "BLOCK_SLOTS", 7)
    found = store_of(tmp_path / "few", rows).may_repeat(np.arange(len(several)))
    assert found[several].all()
    assert several.sum() < found.sum() < len(found)


def test_texts_are_numbered_as_if_all_of_them_were_compared(tmp_path: Path) -> None:
    store = store_of(tmp_path, some_rows(choice := random.Random(4), 40))
    total = len(store.arrays["lengths"])
    table = SlotTable(store=store)
    for _ in range(200):
        added = np.array(choice.choices(range(total), k=choice.randint(1, 30)))
        asked = np.array(choice.choices(range(total), k=choice.randint(0, 5)), np.int64)
        twice = np.isin(added, asked) | is_repeated(added)
        number = choice.randint(1, len(added))
        fast, plain = (
            table.distinct(added, asked, twice=one, num_queries=number)
            for one in (twice, np.ones(len(added), bool))
        )
        digests = [tuple(pair) for pair in store.digests(np.concatenate([added, asked])).tolist()]
        first = list(dict.fromkeys(digests[: len(added)]))
        assert fast.added.tolist() == [first.index(one) for one in digests[: len(added)]]
        assert fast.asked.tolist() == [
            first.index(one) if one in first else ABSENT for one in digests[len(added) :]
        ]
        assert fast.several.tolist() == [digests.count(one) > 1 for one in first]
        for one, other in zip(fast[1:], plain[1:], strict=True):
            assert np.array_equal(one, other)
        assert np.array_equal(fast.texts.lengths, plain.texts.lengths)


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=9),
    positives=st.integers(1, 3),
    negatives=st.integers(0, 4),
)
def test_what_is_drawn_of_many_records_is_what_is_drawn_of_each(
    kinds: list[tuple[int, int]], positives: int, negatives: int
) -> None:
    ir = IrRecipe(global_batch_size=1, positives=positives, negatives=negatives)
    counts = np.array(kinds)
    found = draw_numbers(counts[:, 0], counts[:, 1], ir, str)
    assert found.tolist() == [_draw_one(*kind, ir, str(row)) for row, kind in enumerate(kinds)]


def test_positives_that_are_passed_over_have_no_pairs() -> None:
    choice = random.Random(1)
    for _ in range(300):
        total, size = choice.randint(1, 7), choice.randint(1, 30)
        query = np.array(choice.choices(range(size), k=total))
        passages = np.array([choice.choices(range(size), k=3) for _ in range(total)])
        counts = np.array(choice.choices([1, 2, 3], k=total))
        # of records with one positive it is their target, others may have some that were not drawn
        known = [
            [row[0]] if count == 1 else choice.choices(range(size), k=int(count))
            for row, count in zip(passages.tolist(), counts, strict=True)
        ]
        others = [one for row in known if len(row) > 1 for one in row]
        times = np.bincount(
            np.concatenate([query, passages.reshape(-1), np.array(others, np.int64)]),
            minlength=size,
        )
        flat = np.concatenate([np.array(row) for row in known])
        fewer = repeated_positives(query, flat, counts, times > 1)
        every, found = (
            known_positives(query, one, counts, passages, num_positives=1) for one in (flat, fewer)
        )
        assert found.tolist() == every.tolist()


def test_arrays_that_count_up_or_repeat_are_told_in_few_bytes(tmp_path: Path) -> None:
    counting = np.arange(4, 40_004).reshape(-1, 4)
    swapped = counting.copy()
    swapped[3] = swapped[3, ::-1]
    arrays = [
        counting, swapped, np.broadcast_to(np.int64(7), 40_000), np.zeros((0, 2), np.int64),
        np.arange(40_000), counting.astype(np.int32), np.ones((1, 1), np.int64), counting - 5,
    ]  # fmt: skip
    path, sizes = tmp_path / "pickled", []
    for array in arrays:
        with path.open("wb") as file:
            _Pickler(file, protocol=5).dump(array)
        sizes.append(path.stat().st_size)
        found = pickle.loads(path.read_bytes())
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    assert [size > 1000 for size in sizes] == [False, True, False, False, True, True, False, True]
    assert counted_from(5, (2, 2)).tolist() == [[5, 6], [7, 8]]
    with pytest.raises(ValueError, match="read-only"):
        counted_from(5, (2, 2))[0, 0] = 1


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = store_of(tmp_path, some_rows(random.Random(0), 3)).folder
    facts = folder / "index" / "facts.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"format": FORMAT - 1}))
    with pytest.raises(DataError, match=rf"format {FORMAT - 1}, not {FORMAT}; .*Delete the folder"):
        open_store(folder)


def test_no_digests_have_no_numbers() -> None:
    found = number_digests(np.empty((0, 2), np.uint64), np.empty(0, np.int64), 3)
    assert (found.number.tolist(), found.first.tolist()) == ([0, 1, 2], [0, 1, 2])
