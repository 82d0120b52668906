"""Steps of like length: still a permutation an epoch, still a pure function, with any tokens."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.both_modes import assert_same, assert_stored_alike, stores_in
from tests.support.data_files import (
    byte_tokenizer,
    data_recipe,
    ir_source,
    labels_source,
    sts_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data import lengths
from trainer.data.buckets import LengthBuckets
from trainer.data.growth import SourceState
from trainer.data.lengths import RowLengths, lengths_of
from trainer.data.loader import batches
from trainer.data.plan import DataPlan, make_plan
from trainer.data.planned import plan_of
from trainer.data.row_stream import RowStream
from trainer.data.sources import Source, open_sources
from trainer.data.stretch import Stretch, plan_stretches, stretch_at
from trainer.data.tokens import make_encoder
from trainer.data.worker import Ahead
from trainer.errors import RecipeError
from trainer.recipe.load import plain_recipe
from trainer.recipe.schema import Recipe, SubsetRecipe


def measured(num_rows: int, *, seed: int = 0) -> RowLengths:
    """Rows of some lengths, many of them equal."""
    drawn = np.random.default_rng(seed).integers(1, 1 + max(1, num_rows // 3), num_rows)
    return RowLengths(identity=f"rows {num_rows} {seed}", bytes_of_row=drawn.astype(np.uint32))


def bucketed(num_rows: int, num_buckets: int, batch_size: int, seed: int = 7) -> RowStream:
    by_length = measured(num_rows).by_length(num_rows, None)
    buckets = LengthBuckets(by_length=by_length, num_buckets=num_buckets, batch_size=batch_size)
    return RowStream(seed=seed, source="tickets", num_rows=num_rows, buckets=buckets)


@st.composite
def streams(draw: st.DrawFn) -> tuple[RowStream, int, int]:
    """A stream, its number of buckets and the rows of its steps."""
    batch_size, num_buckets = draw(st.integers(1, 9)), draw(st.integers(2, 6))
    num_rows = draw(st.integers(batch_size * num_buckets, batch_size * num_buckets + 70))
    return bucketed(num_rows, num_buckets, batch_size), num_buckets, batch_size


@settings(max_examples=40)
@given(streams(), st.integers(0, 3))
def test_every_epoch_is_a_permutation_of_another_order(
    case: tuple[RowStream, int, int], epoch: int
) -> None:
    stream, *_ = case
    total = stream.num_rows
    first, second = (stream.rows(at * total, total).tolist() for at in (epoch, epoch + 1))
    assert sorted(first) == sorted(second) == list(range(total))
    if total > 30:
        assert first != second
    assert stream.epoch(epoch * total) == epoch


@settings(max_examples=40)
@given(streams())
def test_a_step_holds_rows_of_one_bucket_but_for_what_buckets_leave_over(
    case: tuple[RowStream, int, int],
) -> None:
    stream, num_buckets, size = case
    total = stream.num_rows
    assert stream.buckets is not None
    place = np.empty(total, np.int64)
    place[stream.buckets.by_length] = np.arange(total)
    ends = np.array([total * (one + 1) // num_buckets for one in range(num_buckets)])
    mixed: Counter[int] = Counter()
    for step in range(3 * total // size):
        rows = stream.rows(step * size, size)
        buckets = np.unique(np.searchsorted(ends, place[rows], side="right"))
        first = step * size // total
        if (step + 1) * size > (first + 1) * total:  # begun by one epoch and ended by the next
            # the last rows of the layout of either: fewer than two steps of each
            least = total - 2 * size
            assert place[rows].min() >= least - max(0, -(-total // num_buckets))
            continue
        # a bucket holds a step, so no step spans more than two
        assert len(buckets) <= 2
        assert np.all(np.diff(buckets) == 1)
        mixed[first] += len(buckets) > 1
    assert max(mixed.values()) <= num_buckets - 1


@settings(max_examples=40)
@given(streams(), st.integers(0, 200), st.integers(1, 60))
def test_a_block_asked_for_alone_is_that_of_the_whole(
    case: tuple[RowStream, int, int], first: int, count: int
) -> None:
    stream, *_ = case
    whole = stream.rows(0, first + count).tolist()
    assert stream.rows(first, count).tolist() == whole[first:]


@settings(max_examples=40)
@given(streams())
def test_rows_of_a_bucket_meet_others_in_every_epoch(case: tuple[RowStream, int, int]) -> None:
    stream, _, size = case
    total = stream.num_rows
    if total < 40 or size < 3:
        return

    def steps(epoch: int) -> set[frozenset[int]]:
        found = stream.rows(epoch * total, total).tolist()
        return {frozenset(found[at : at + size]) for at in range(0, total - size, size)}

    assert steps(0) != steps(1)


@settings(max_examples=60)
@given(
    st.integers(12, 40),
    st.lists(
        st.tuples(
            st.integers(0, 12),
            st.integers(0, 20),
            st.sampled_from([7, 8]),
            st.sampled_from([1, 2, 3]),
            st.integers(1, 4),
        ),
        max_size=4,
    ),
    st.integers(0, 90),
)
def test_rows_are_seen_as_often_as_each_other_whatever_changes(
    num_rows: int, parts: list[tuple[int, int, int, int, int]], last: int
) -> None:
    """Rows, seeds, buckets and sizes of steps change; rows are counted by hand."""
    current, position, size = bucketed(num_rows, 3, 4), 0, 4
    taken: list[int] = []
    for steps, added, seed, num_buckets, batch_size in parts:
        taken += current.rows(position, steps * size).tolist() if steps else []
        total = current.num_rows + added
        buckets = bucketed(total, num_buckets, batch_size).buckets if num_buckets > 1 else None
        current, position = current.continued(
            position + steps * size, num_rows=total, seed=seed, buckets=buckets
        )
        size = batch_size if buckets is not None else size
        assert current.total(position) == len(taken)
    taken += current.rows(position, last).tolist() if last else []
    times = Counter(taken)
    told: Counter[int] = Counter()
    for rows, number in current.seen(position + last):
        told[number] += rows
    assert +told == Counter(times.get(row, 0) for row in range(current.num_rows))


def test_equal_lengths_are_not_left_in_the_order_of_the_file() -> None:
    found = RowLengths(identity="x", bytes_of_row=np.full(100, 5, np.uint32))
    shortest = found.by_length(100, None)[:50]
    assert 10 < np.count_nonzero(shortest < 50) < 40


def rows(number: int) -> list[dict[str, Any]]:
    """Rows whose longest text is now the query, now a positive."""
    found = []
    for row in range(number):
        long = "mat " * (1 + 7 * row % 23)
        texts = {"query": f"cat {row}", "positives": [f"sat {row}"], "negatives": [f"dog {row}"]}
        key = ("query", "positives")[row % 2]
        value = f"{long}{row}"
        found.append(texts | {key: value if key == "query" else [*texts[key], value]})
    return found


def opened(path: Path, data: Mapping[str, Any], **source: Any) -> tuple[Recipe, tuple[Source, ...]]:
    """A recipe of one source with steps of six rows, and the source."""
    recipe = data_recipe(
        [ir_source(path, **source)],
        ir={"global_batch_size": 6, "positives": 2, "negatives": 2},
        data={"workers": 0, "query_max_tokens": 600, "passage_max_tokens": 600, **data},
    )
    return recipe, open_sources(recipe.data)


def test_the_length_of_a_row_is_that_of_its_longest_text_but_negatives(tmp_path: Path) -> None:
    some = [
        {"query": "äöü", "positives": ["ab"], "negatives": []},
        {"query": "a", "positives": ["abcde", "b"], "negatives": ["abc"]},
        {"query": "a", "positives": ["漢字"], "negatives": ["a longer one", "c"]},
    ]
    _, (source,) = opened(write_jsonl(tmp_path / "a.jsonl", some), {}, global_batch_size=1)
    assert lengths_of(source).bytes_of_row.tolist() == [6, 5, 6]
    pairs = [
        {"text1": "a", "text2": "bcd", "score": 1},
        {"text1": "abcd", "text2": "b", "score": 0},
    ]
    recipe = data_recipe([sts_source(write_jsonl(tmp_path / "b.jsonl", pairs))])
    (source,) = open_sources(recipe.data)
    assert lengths_of(source).bytes_of_row.tolist() == [3, 4]


def test_steps_hold_like_lengths_and_each_row_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(60))
    spans = {}
    for buckets in (None, 5):
        recipe, sources = opened(path, {"length_buckets": buckets})
        plan, known = plan_of(recipe, sources), lengths_of(sources[0]).bytes_of_row
        steps = [plan.at(step).rows for step in range(10)]
        assert sorted(np.concatenate(steps).tolist()) == list(range(60))
        spans[buckets] = np.mean([np.ptp(known[one].astype(int)) for one in steps])
    assert spans[5] < spans[None] / 3
    (seen,) = plan.exposure(15)
    assert (seen.once, seen.twice) == (30, 30)
    # one bucket is no bucket
    recipe, sources = opened(path, {"length_buckets": 5}, length_buckets=1)
    plain, _ = opened(path, {})
    for step in (0, 9, 12):
        assert np.array_equal(plan_of(recipe, sources).at(step).rows,
                              plan_of(plain, sources).at(step).rows)  # fmt: skip


def test_batches_are_the_same_with_any_tokens_ranks_and_workers_and_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    recipe, sources = opened(write_jsonl(tmp_path / "a.jsonl", rows(45)), {"length_buckets": 3})
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
    plan = plan_of(recipe, sources)
    whole = list(batches(plan, sources, encoder, recipe, 0, 12))
    stores = stores_in(tmp_path / "stores", recipe, sources, encoder)
    for workers, rank, num_ranks, start in ((0, 0, 1, 0), (2, 1, 2, 5), (0, 7, 8, 7)):
        changed = replace(recipe, data=replace(recipe.data, workers=workers))
        ahead = Ahead(stores=stores, rank=rank, num_ranks=num_ranks)
        found = batches(
            plan_of(changed, sources), sources, encoder, changed, start, 12, ahead=ahead
        )
        for one, other in zip(whole[start:], found, strict=True):
            assert_same(one, other, rank=rank, num_ranks=num_ranks)


def test_records_of_several_rows_and_parts_of_a_source_have_lengths_too(tmp_path: Path) -> None:
    corpus = {str(i): f"document {'mat ' * (i % 9)}{i}" for i in range(24)}
    queries = {str(i): f"query {i}" for i in range(24)}
    folder = write_beir(tmp_path / "beir", corpus=corpus, queries=queries)
    write_qrels(folder, "train", [(str(i), str(i), 1) for i in range(24)])
    premises = [
        {"premise": f"p {i % 16}", "hypothesis": f"h {'mat ' * (i % 16)}{i}", "label": label}
        for i, label in enumerate(["entailment", "contradiction"] * 16)
    ]
    for path in (
        folder,
        write_jsonl(tmp_path / "nli.jsonl", [*premises, *premises[1:], premises[0]]),
    ):
        for part, num_rows in ((None, None), ("of all", 0.75), ("own", 0.75)):
            subset = SubsetRecipe(fraction=0.75)
            recipe, sources = opened(
                path,
                {"length_buckets": 2, "subset": subset if part == "of all" else None},
                global_batch_size=3,
                subset=subset if part == "own" else None,
            )
            plan, total = plan_of(recipe, sources), len(sources[0])
            total = round(total * num_rows) if num_rows else total
            assert plan.sources["set"].num_rows == total
            taken = np.concatenate([plan.at(step).rows for step in range(total)])
            assert set(Counter(taken.tolist()).values()) == {3}
            assert len(set(taken.tolist())) == total
            known = lengths_of(sources[0]).bytes_of_row
            encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
            (batch,) = batches(plan, sources, encoder, recipe, 1, 2)
            assert_stored_alike(batch, sources[0], encoder, recipe)
            middle = np.sort(known[np.unique(taken)])[total // 2]
            below = [known[plan.at(step).rows] <= middle for step in range(total // 3)]
            # one step may span the two buckets, one the two epochs
            assert sum(not one.all() and one.any() for one in below) <= 2


def test_many_rows_are_measured_and_sorted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    recipe, sources = opened(write_jsonl(tmp_path / "a.jsonl", rows(50)), {"length_buckets": 3})
    before = [plan_of(recipe, sources).at(step).rows.tolist() for step in range(9)]
    monkeypatch.setattr(lengths, "LENGTHS_CACHE_FROM_ROWS", 10)
    monkeypatch.setattr(lengths, "CACHE_FROM_ROWS", 10)
    assert [plan_of(recipe, sources).at(step).rows.tolist() for step in range(9)] == before
    buckets = plan_of(recipe, sources).streams["set"].buckets  # type: ignore[union-attr]
    assert buckets is not None
    assert isinstance(buckets.by_length, np.memmap)
    assert buckets.by_length.dtype == np.uint32
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
    with_worker = replace(recipe, data=replace(recipe.data, workers=1))
    found = batches(plan_of(recipe, sources), sources, encoder, with_worker, 0, 9)
    assert [batch.plan.rows.tolist() for batch in found] == before


def test_too_many_buckets_and_labels_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(45))
    recipe, sources = opened(path, {"length_buckets": 8})
    pattern = (
        r"data\.length_buckets = 8; expected at most 7 for source set, as a bucket of its 45 rows "
        r"holds a step of 6\. Lower it, or set data\.sources\.set\.length_buckets\."
    )
    with pytest.raises(RecipeError, match=pattern):
        plan_of(recipe, sources)
    recipe, sources = opened(path, {}, length_buckets=9)
    pattern = r"data\.sources\.set\.length_buckets = 9; expected at most 7 .* of 6\. Lower it\."
    with pytest.raises(RecipeError, match=pattern):
        plan_of(recipe, sources)


def stretch(first_step: int, recipe: Recipe, num_rows: int) -> Stretch:
    state = SourceState(fingerprint=f"{num_rows}", num_rows=num_rows)
    return Stretch(first_step=first_step, recipe=plain_recipe(recipe), sources={"set": state})


def test_a_run_goes_on_with_other_buckets_and_more_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(60))
    plain, sources = opened(path, {})
    three, _ = opened(path, {"length_buckets": 3})
    planned = plan_stretches(
        [
            stretch(0, plain, 50),
            stretch(4, three, 50),
            stretch(13, three, 60),
            stretch(21, plain, 60),
        ],
        sources=sources,
    )
    taken = [stretch_at(planned, step).plan.at(step).rows.tolist() for step in range(40)]
    assert taken[:4] == steps_of(plan_of_rows(plain, 50), 4)
    counts = Counter(row for one in taken for row in one)
    old = [counts[row] for row in range(50)]
    assert max(old) - min(old) <= 1
    seen = planned[-1].plan.exposure(40)[0]
    assert seen.rows_seen == 240
    assert (seen.never, seen.once, seen.twice) == tuple(
        sum(counts[row] == times for row in range(60)) for times in (0, 1, 2)
    )
    with pytest.raises(RecipeError, match=r"length_buckets of source set = 3; expected its rows"):
        plan_stretches([stretch(0, three, 60)])


def plan_of_rows(recipe: Recipe, num_rows: int) -> DataPlan:
    return make_plan(recipe, {"set": num_rows})


def steps_of(plan: DataPlan, number: int) -> list[list[int]]:
    return [plan.at(step).rows.tolist() for step in range(number)]


def test_labelled_texts_are_refused_by_name(tmp_path: Path) -> None:
    from trainer.recipe.rules import check_rules

    def check(data: dict[str, Any], **source: Any) -> None:
        recipe = data_recipe([labels_source("unused", **source)], data=data)
        recipe = replace(recipe, data=replace(recipe.data, pattern={"labels": 1}))
        check_rules(recipe, lambda key: "a.yaml")

    pattern = (
        r"data\.length_buckets = 4; expected 1 for source set, as steps of task labels draw other "
        r"rows too\. Set data\.sources\.set\.length_buckets=1"
    )
    with pytest.raises(RecipeError, match=pattern):
        check({"length_buckets": 4})
    with pytest.raises(RecipeError, match=r"data\.sources\.0\.length_buckets = 4; .* Remove it"):
        check({}, length_buckets=4)
    check({"length_buckets": 4}, length_buckets=1)
