"""One plan over the stretches of a run: what stays as it was, what begins anew, and the counts."""

import dataclasses
import json
from collections import Counter
from typing import Any

import pytest

from tests.support.data_files import data_recipe
from trainer.data.growth import FileState, SourceState
from trainer.data.plan import DataPlan, make_plan
from trainer.data.stretch import (
    Stretch,
    plain_stretches,
    plan_stretches,
    read_stretches,
    spans,
    stretch_at,
)
from trainer.recipe.load import plain_recipe, recipe_of
from trainer.recipe.schema import Recipe, SourceRecipe

SIZES = {"docs": 23, "more": 10, "pairs": 17}


def recipe(**changes: Any) -> Recipe:
    """Two sources of retrieval and one of similarity; `changes` are keys of `train` and `seed`."""
    sources = [
        SourceRecipe(name="docs", task="ir", path="unused", weight=changes.pop("weight", 1.0)),
        SourceRecipe(name="more", task="ir", path="unused", global_batch_size=3),
        SourceRecipe(name="pairs", task="sts", path="unused"),
    ]
    made = data_recipe(
        sources,
        data={"pattern": {"ir": 2, "sts": 1}},
        ir={"global_batch_size": 4},
        sts={"global_batch_size": 5},
        seed=changes.pop("seed", 7),
    )
    return dataclasses.replace(made, train=dataclasses.replace(made.train, **changes))


def stretch(first_step: int, recipe: Recipe, **sizes: int) -> Stretch:
    states = {
        name: SourceState(fingerprint=f"{name} {rows}", num_rows=rows)
        for name, rows in {**SIZES, **sizes}.items()
        if name in {source.name for source in recipe.data.sources}
    }
    return Stretch(first_step=first_step, recipe=plain_recipe(recipe), sources=states)


def steps(plan: DataPlan, start: int, stop: int) -> list[tuple[str, int, list[int]]]:
    found = map(plan.at, range(start, stop))
    return [(step.source, step.epoch, step.rows.tolist()) for step in found]


def test_a_longer_or_slower_run_trains_on_the_rows_that_it_would_have() -> None:
    longer = recipe(max_steps=60, learning_rate=1e-7)
    first, second = plan_stretches([stretch(0, recipe(max_steps=20)), stretch(20, longer)])
    whole = make_plan(longer, SIZES)
    assert steps(second.plan, 20, 60) == steps(whole, 20, 60)
    assert steps(first.plan, 0, 20) == steps(whole, 0, 20)
    assert second.plan.exposure(60) == whole.exposure(60)
    assert (first.num_steps, second.num_steps) == (20, 60)


def test_streams_go_on_whatever_changes_the_turns() -> None:
    """Weights, then rows, then a seed: no row repeats before every one had its turn."""
    parts = [
        stretch(0, recipe(max_steps=20)),
        stretch(20, recipe(max_steps=40, weight=3.0)),
        stretch(33, recipe(max_steps=60, weight=3.0), docs=31),
        stretch(50, recipe(max_steps=90, weight=3.0, seed=8), docs=31),
    ]
    planned = plan_stretches(parts)
    taken: dict[str, list[int]] = {name: [] for name in SIZES}
    counts: Counter[str] = Counter()
    for step in range(90):
        found = stretch_at(planned, step).plan.at(step)
        taken[found.source] += found.rows.tolist()
        counts[found.source] += 1
    for seen in planned[-1].plan.exposure(90):
        rows, num_rows = taken[seen.source], SIZES[seen.source] + 8 * (seen.source == "docs")
        times = Counter(rows)
        by_times = Counter(times.get(row, 0) for row in range(num_rows))
        assert (seen.steps, seen.rows_seen) == (counts[seen.source], len(rows))
        assert seen.epochs == len(rows) / num_rows
        assert (seen.never, seen.once, seen.twice) == tuple(by_times[n] for n in (0, 1, 2))
        # the rows that were there from the start never differ by more than one
        old = [times[row] for row in range(SIZES[seen.source])]
        assert max(old) - min(old) <= 1
    assert sum(counts.values()) == 90


def test_turns_begin_anew_where_their_shares_changed_alone() -> None:
    heavier = recipe(max_steps=99, weight=3.0)
    _, second = plan_stretches([stretch(0, recipe(max_steps=20)), stretch(20, heavier)])
    was, new = make_plan(recipe(), SIZES), make_plan(heavier, SIZES)
    for step in range(20, 60):
        # tasks go on; sources of retrieval begin their turns anew
        assert second.plan.at(step).task == was.at(step).task
    named = [second.plan.at(step).source for step in range(20, 80)]
    fresh = [new.at(step).source for step in range(80)]
    retrieval = [name for name in named if name != "pairs"]
    assert retrieval == [name for name in fresh if name != "pairs"][: len(retrieval)]


def test_a_further_source_begins_its_stream() -> None:
    both = recipe(max_steps=40)
    one = dataclasses.replace(both, data=dataclasses.replace(both.data, sources=(
        both.data.sources[0], both.data.sources[2])))  # fmt: skip
    _, second = plan_stretches([stretch(0, one), stretch(12, both)])
    found = [step for step in map(second.plan.at, range(12, 40)) if step.source == "more"]
    assert found[0].rows.tolist() == make_plan(both, SIZES).source_step("more", 0, 0).rows.tolist()
    first_turn = second.plan.first_turn("more")
    assert second.plan.source_step("more", first_turn, 0).rows.tolist() == found[0].rows.tolist()
    assert second.plan.source_steps(40)["more"] == len(found)


def test_epochs_count_the_rows_of_the_whole_run() -> None:
    twice = recipe(max_steps=None, epochs=2.0)
    first, second = plan_stretches([stretch(0, twice), stretch(20, twice, docs=31)])
    assert first.num_steps == make_plan(twice, SIZES).num_steps(2.0)

    def fewest(num_steps: int) -> float:
        return min(seen.epochs for seen in second.plan.exposure(num_steps))

    assert fewest(second.num_steps) >= 2 > fewest(second.num_steps - 1)
    # what was seen as often before the stretch began is not seen again
    (_, done) = plan_stretches([stretch(0, recipe(max_steps=80)), stretch(80, twice)])
    assert done.num_steps == 80


def test_spans_are_the_stretches_that_steps_lie_in() -> None:
    planned = plan_stretches([stretch(at, recipe(max_steps=99)) for at in (0, 4, 9)])

    def cut(start: int, stop: int) -> list[tuple[int, int, int]]:
        return [(one.first_step, first, end) for one, first, end in spans(planned, start, stop)]

    assert cut(0, 12) == [(0, 0, 4), (4, 4, 9), (9, 9, 12)]
    assert cut(2, 12) == [(0, 2, 4), (4, 4, 9), (9, 9, 12)]
    assert cut(4, 9) == [(4, 4, 9)]
    assert cut(10, 12) == [(9, 10, 12)]
    assert cut(12, 12) == []
    assert [stretch_at(planned, step).first_step for step in (0, 3, 4, 8, 9, 50)] == [
        0, 0, 4, 4, 9, 9,
    ]  # fmt: skip


def test_stretches_come_back_from_json() -> None:
    file = FileState(sha256="ab", size=9, num_rows=3, is_quoted=False)
    states = {"docs": SourceState(fingerprint="f", num_rows=3, reading="r 0..1", files=(file,))}
    one = Stretch(
        first_step=4, recipe=plain_recipe(recipe()), sources=states, changed=("train.max_steps",)
    )
    assert read_stretches(json.loads(json.dumps(plain_stretches([one])))) == (one,)
    assert recipe_of(one.recipe) == recipe()
    with pytest.raises((LookupError, TypeError, AttributeError)):
        read_stretches([{"first_step": 1}])
