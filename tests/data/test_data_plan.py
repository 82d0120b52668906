"""The data plan: permutations, turns and their promises, for any recipe."""

import hashlib
import math
import sys
import tracemalloc
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.data_files import data_recipe
from trainer.data.permutation import keys_of, permute
from trainer.data.plan import DataPlan, make_plan
from trainer.data.schedule import make_schedule, turn_at, turns_before
from trainer.data.shares import flattened
from trainer.errors import RecipeError
from trainer.recipe.schema import Recipe, SourceRecipe

NUM_STEPS = 120


@st.composite
def recipes(draw: st.DrawFn) -> tuple[Recipe, dict[str, int]]:
    """A recipe with one to five sources of random sizes, weights and batches, and their sizes."""
    tasks = draw(st.lists(st.sampled_from(["ir", "sts"]), min_size=1, max_size=5))
    batch = {"ir": draw(st.integers(1, 16)), "sts": draw(st.integers(2, 16))}
    weights = st.floats(0.01, 100, allow_nan=False)
    sources = [
        SourceRecipe(
            name=f"s{i}",
            task=task,
            path="unused",
            weight=draw(weights),
            global_batch_size=draw(st.none() | st.integers(2, 16)),
        )
        for i, task in enumerate(tasks)
    ]
    least = {source.name: source.global_batch_size or batch[source.task] for source in sources}
    sizes = {name: draw(st.integers(number, 300)) for name, number in least.items()}
    data = {
        "schedule": draw(st.sampled_from(["alternate", "proportional", "temperature"])),
        "pattern": {"ir": draw(st.integers(1, 5)), "sts": draw(st.integers(1, 5))},
        "temperature": draw(st.floats(0.1, 50)),
    }
    recipe = data_recipe(
        sources,
        data=data,
        ir={"global_batch_size": batch["ir"]},
        sts={"global_batch_size": batch["sts"]},
        seed=draw(st.integers(0, 2**40)),
    )
    return recipe, sizes


def shares_of(recipe: Recipe, sizes: dict[str, int]) -> dict[str, float]:
    """Share of each source of all steps, by the documented formulas."""
    raw = {}
    for source in recipe.data.sources:
        settings = recipe.tasks[source.task]
        batches = sizes[source.name] / (source.global_batch_size or settings.global_batch_size)
        power = {"proportional": 1, "temperature": 1 / recipe.data.temperature, "alternate": 0}
        raw[source.name] = source.weight * batches ** power[recipe.data.schedule]
    if recipe.data.schedule == "alternate":
        of_task = {source.name: source.task for source in recipe.data.sources}
        sums: dict[str, float] = {}
        for name, share in raw.items():
            sums[of_task[name]] = sums.get(of_task[name], 0) + share
        turns = {task: recipe.data.pattern[task] for task in sums}
        raw = {n: s / sums[of_task[n]] * turns[of_task[n]] for n, s in raw.items()}
    total = sum(raw.values())
    return {name: share / total for name, share in raw.items()}


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_every_epoch_is_a_permutation_and_leftovers_open_the_next(case):
    recipe, sizes = case
    plan = make_plan(recipe, sizes)
    streams: dict[str, list[int]] = {name: [] for name in sizes}
    for step in range(NUM_STEPS):
        found = plan.at(step)
        assert found.epoch == len(streams[found.source]) // sizes[found.source]
        streams[found.source].extend(found.rows.tolist())
    for name, stream in streams.items():
        size = sizes[name]
        for start in range(0, len(stream), size):
            epoch = stream[start : start + size]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(range(size))
            if size > 20 and start + 2 * size <= len(stream):
                assert epoch != stream[start + size : start + 2 * size]


@settings(max_examples=60, deadline=None)
@given(recipes(), st.integers(0, 10**12))
def test_each_task_keeps_its_share_in_every_window(case, start):
    recipe, sizes = case
    plan = make_plan(recipe, sizes)
    task_of = {source.name: source.task for source in recipe.data.sources}
    shares = {"ir": 0.0, "sts": 0.0}
    for name, share in shares_of(recipe, sizes).items():
        shares[task_of[name]] += share
    tasks = [plan.at(start + step).task for step in range(NUM_STEPS)]
    # Two tasks are within 1 under every schedule; 1e-6 is for the float shares of this test.
    for task, share in shares.items():
        counts = np.concatenate([[0], np.cumsum([found == task for found in tasks])])
        surplus = counts - share * np.arange(len(counts))
        assert surplus.max() - surplus.min() <= 1 + 1e-6


@settings(max_examples=40, deadline=None)
@given(recipes())
def test_each_source_keeps_its_share_from_the_start(case):
    recipe, sizes = case
    steps = make_plan(recipe, sizes).source_steps(NUM_STEPS)
    for name, share in shares_of(recipe, sizes).items():
        # One per level of the tree: at most 5 sources and a task.
        assert abs(steps[name] - share * NUM_STEPS) <= 5
    assert sum(steps.values()) == NUM_STEPS


@settings(max_examples=40, deadline=None)
@given(recipes(), st.lists(st.integers(0, NUM_STEPS - 1), min_size=1, max_size=8))
def test_a_step_asked_for_alone_is_the_step_reached_in_order(case, steps):
    recipe, sizes = case
    walked = [make_plan(recipe, sizes).at(step) for step in range(NUM_STEPS)]
    for step in steps:
        alone = make_plan(recipe, sizes).at(step)
        assert (alone.task, alone.source, alone.epoch) == (
            walked[step].task,
            walked[step].source,
            walked[step].epoch,
        )
        assert np.array_equal(alone.rows, walked[step].rows)


@settings(max_examples=40, deadline=None)
@given(recipes(), st.floats(0.01, 4))
def test_epochs_become_the_fewest_steps_that_reach_them(case, epochs):
    recipe, sizes = case
    plan = make_plan(recipe, sizes)
    num_steps = plan.num_steps(epochs)

    def fewest(steps: int) -> Fraction:
        return min(Fraction(one.rows_seen, one.num_rows) for one in plan.exposure(steps))

    assert fewest(num_steps) >= Fraction(repr(epochs)) > fewest(num_steps - 1)


def test_a_tenth_of_an_epoch_is_a_tenth():
    source = SourceRecipe(name="s0", task="ir", path="unused")
    plan = make_plan(data_recipe([source], ir={"global_batch_size": 1}), {"s0": 1000})
    # the floats 0.1 and 0.01 are a little above what was written
    assert [plan.num_steps(epochs) for epochs in (0.1, 0.01, 1.0)] == [100, 10, 1000]


@settings(max_examples=20, deadline=None)
@given(recipes())
def test_exposure_counts_what_the_steps_draw(case):
    recipe, sizes = case
    plan = make_plan(recipe, sizes)
    counts = {name: np.zeros(size, int) for name, size in sizes.items()}
    for step in range(NUM_STEPS):
        found = plan.at(step)
        np.add.at(counts[found.source], found.rows, 1)
    for row in plan.exposure(NUM_STEPS):
        times = counts[row.source]
        expected = [(times == k).sum() for k in range(3)] + [(times > 2).sum()]
        assert [row.never, row.once, row.twice, row.more] == expected
        assert row.rows_seen == times.sum()


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 99, 1000, 4099])
def test_permutation_is_one(num_rows):
    rows = permute(np.arange(num_rows), num_rows, keys_of(7, "name", 3))
    assert sorted(rows.tolist()) == list(range(num_rows))


def mixed_by_hand(value: int, key: int, side: int) -> int:
    """A round's draw in whole numbers."""
    bits = (value + key) * 0x9E3779B97F4A7C15 % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return (bits >> 32) * side >> 32


@pytest.mark.parametrize("num_rows", [1, 2, 12, 1000, (1 << 61) + 7])
def test_a_permutation_is_that_of_a_plain_reading(num_rows):
    keys = keys_of(5, "name", 2)
    width = math.isqrt(num_rows - 1) + 1
    height = -(-num_rows // width)

    def shuffled(cell: int) -> int:
        row, column = divmod(cell, width)
        for number, key in enumerate(keys.tolist()):
            if number % 2:
                row = (row + mixed_by_hand(column, key, height)) % height
            else:
                column = (column + mixed_by_hand(row, key, width)) % width
        return row * width + column

    indices = sorted({*range(min(num_rows, 30)), num_rows - 1})
    for index, found in zip(indices, permute(np.array(indices), num_rows, keys), strict=True):
        cell = shuffled(index)
        while cell >= num_rows:
            cell = shuffled(cell)
        assert found == cell


def test_permutations_of_four_rows_are_equally_likely():
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(4800):
        order = tuple(permute(np.arange(4), 4, keys_of(seed)).tolist())
        seen[order] = seen.get(order, 0) + 1
    # 200 expected each with a standard deviation of 14: five of them.
    assert len(seen) == 24
    assert all(abs(times - 200) < 70 for times in seen.values())


def plan_of_sizes(num_rows: int, **data: Any) -> DataPlan:
    """A large source of `num_rows` rows beside one of ten."""
    sources = [
        SourceRecipe(name="large", task="ir", path="unused"),
        SourceRecipe(name="small", task="sts", path="unused"),
    ]
    recipe = data_recipe(sources, data=data, ir={"global_batch_size": 4096})
    return make_plan(recipe, {"large": num_rows, "small": 10})


def work_of(plan: DataPlan, step: int) -> tuple[int, int]:
    """Bytes at the peak and calls of functions that a step takes."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    tracemalloc.start()
    sys.setprofile(count)
    try:
        found = plan.at(step)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        sys.setprofile(None)
        tracemalloc.stop()
    assert len(np.unique(found.rows)) == 4096
    return peak, calls


def test_a_billion_rows_and_a_late_step_cost_what_few_rows_cost_at_the_start():
    tracemalloc.start()
    billion = plan_of_sizes(1_000_000_000)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    # a grid of 1000 by 1000, without a cell beyond the rows that is walked again
    thousandth = plan_of_sizes(1_000_000)
    for late in (0, 10**7, 10**12):
        (peak, calls), (most, allowed) = work_of(billion, late), work_of(thousandth, 0)
        assert peak < 2 * most
        # leftover rows open the next epoch: at most one more permutation, of few more walks
        assert calls < 3 * allowed


@pytest.mark.parametrize("schedule", ["alternate", "proportional", "temperature"])
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-6, 0.01, 0.03, 1.0, 1e6, 1e308])
def test_any_temperature_makes_a_plan_of_a_billion_rows(schedule, temperature):
    plan = plan_of_sizes(1_000_000_000, schedule=schedule, temperature=temperature)
    steps = plan.source_steps(1000)
    assert sum(steps.values()) == 1000
    if schedule == "alternate":
        assert steps == {"large": 500, "small": 500}
    elif schedule == "proportional" or temperature <= 1:
        # 2.5 of 244,140.6 batches are less than one step of a thousand
        assert steps == {"large": 1000, "small": 0}
    else:
        assert abs(steps["large"] - 500) <= 1
    assert plan.source_steps(10**400)["small"] > 0


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.04, 0.5, 1.0, 2.0, 7.0])
def test_shares_of_a_temperature_are_powers_however_large(temperature):
    sizes = [Fraction(1), Fraction(10**6), Fraction(3, 2), Fraction(10**6)]
    shares = flattened(sizes, temperature)
    assert all(share > 0 for share in shares)
    largest = max(shares)
    for size, share in zip(sizes, shares, strict=True):
        exact = Decimal(int(size * 2)) / Decimal(2 * 10**6)
        expected = float(exact ** (1 / Decimal(temperature)))
        assert float(share / largest) == pytest.approx(max(expected, 1e-300), rel=1e-9)


def test_shares_that_floats_hold_are_the_powers_themselves():
    sizes = [Fraction(7, 2), Fraction(1000, 3)]
    assert flattened(sizes, 1.0) == [Fraction(float(size)) for size in sizes]
    assert flattened(sizes, 2.0) == [Fraction(float(size) ** 0.5) for size in sizes]


def test_epochs_that_a_low_temperature_never_reaches_are_refused():
    plan = plan_of_sizes(1_000_000_000, schedule="temperature", temperature=0.01)
    with pytest.raises(RecipeError, match=r"train.epochs = 1; .* source small is seen .* times"):
        plan.num_steps(1.0)
    with pytest.raises(RecipeError, match=r"train.epochs = 1e\+300; .* set train.max_steps"):
        plan_of_sizes(100_000).num_steps(1e300)
    assert plan_of_sizes(8192).num_steps(1.0) == 6  # three of four rows each for ten


def test_the_first_named_task_opens_a_one_to_one_pattern():
    sources = [
        SourceRecipe(name="a", task="ir", path="unused"),
        SourceRecipe(name="b", task="sts", path="unused"),
    ]
    plan = make_plan(data_recipe(sources), {"a": 9, "b": 9})
    assert [plan.at(step).task for step in range(4)] == ["ir", "sts", "ir", "sts"]


def test_seeds_and_sources_have_their_own_orders():
    def order(seed: int, name: str) -> list[int]:
        source = SourceRecipe(name=name, task="ir", path="unused")
        recipe = data_recipe([source], ir={"global_batch_size": 50}, seed=seed)
        return make_plan(recipe, {name: 50}).at(0).rows.tolist()

    assert order(1, "a") == order(1, "a")
    assert order(1, "a") != order(2, "a")
    assert order(1, "a") != order(1, "b")


def test_turns_of_three_parties_add_up():
    turns = make_schedule({"a": Fraction(5), "b": Fraction(2), "c": Fraction(1)})
    counted = {"a": 0, "b": 0, "c": 0}
    for position in range(800):
        name, before = turn_at(turns, position)
        assert before == counted[name]
        counted[name] += 1
    assert counted == turns_before(turns, 800) == {"a": 500, "b": 200, "c": 100}


def plan_of_one(data: dict[str, object] | None = None, **ir: int) -> DataPlan:
    source = SourceRecipe(name="tiny", task="ir", path="unused")
    return make_plan(data_recipe([source], ir=ir, data=data), {"tiny": 3})


def test_a_batch_larger_than_its_source_is_refused():
    with pytest.raises(RecipeError, match=r"global_batch_size = 4; expected at most 3, .* tiny"):
        plan_of_one(global_batch_size=4)


def test_a_pattern_without_a_turn_for_a_source_is_refused():
    with pytest.raises(RecipeError, match=r"data.pattern = .*; expected at least one turn for ir"):
        plan_of_one({"pattern": {"sts": 1}}, global_batch_size=2)


def test_an_unknown_task_in_the_pattern_is_refused():
    with pytest.raises(RecipeError, match=r"data.pattern = .*; expected tasks among ir, sts"):
        plan_of_one({"pattern": {"ir": 1, "sst": 1}}, global_batch_size=2)


def test_a_source_without_settings_of_its_task_is_refused():
    source = SourceRecipe(name="a", task="ir", path="unused")
    recipe = data_recipe([source])
    changed = {field: getattr(recipe, field) for field in recipe.__dataclass_fields__}
    with pytest.raises(RecipeError, match=r"tasks.ir = null; expected settings"):
        make_plan(Recipe(**(changed | {"tasks": {}})), {"a": 5})


def test_a_source_with_a_batch_of_its_own_is_named_where_it_is_too_small():
    source = SourceRecipe(name="tiny", task="ir", path="unused", global_batch_size=4)
    pattern = r"data\.sources\.tiny\.global_batch_size = 4; expected at most 3, .* Lower it, or add"
    with pytest.raises(RecipeError, match=pattern):
        make_plan(data_recipe([source], ir={"global_batch_size": 2}), {"tiny": 3})
    with pytest.raises(
        RecipeError, match=r"Lower it, set data\.sources\.tiny\.global_batch_size, "
    ):
        plan_of_one(global_batch_size=4)


def test_plans_are_those_of_earlier_releases():
    sources = [
        SourceRecipe(name="a", task="ir", path="unused", weight=2.5),
        SourceRecipe(name="b", task="ir", path="unused"),
        SourceRecipe(name="c", task="sts", path="unused", weight=0.75),
    ]
    digest = hashlib.sha256()
    for schedule in ("alternate", "proportional", "temperature"):
        data = {"schedule": schedule, "pattern": {"ir": 3, "sts": 2}}
        recipe = data_recipe(sources, data=data, ir={"global_batch_size": 6}, seed=11)
        plan = make_plan(recipe, {"a": 100, "b": 37, "c": 51})
        for step in (*range(200), 10**9):
            found = plan.at(step)
            digest.update(f"{found.source} {found.epoch} {found.rows.tolist()}\n".encode())
    assert digest.hexdigest() == "3289f26d212c3b9150dc26e991866c8699e0233472ffa68b7dcc9f4c98716cc4"
