"""Streams of rows that grow while a run goes on: nothing repeats before everything had its turn."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.row_stream import RowStream


def stream(num_rows: int, seed: int = 7) -> RowStream:
    return RowStream(seed=seed, source="tickets", num_rows=num_rows)


def counted(taken: list[int], num_rows: int) -> dict[int, int]:
    """Number of rows by how often they are among those taken."""
    times = Counter(taken)
    return dict(Counter(times.get(row, 0) for row in range(num_rows)))


def told(groups: list[tuple[int, int]]) -> dict[int, int]:
    """The same of a stream's own groups."""
    found: dict[int, int] = {}
    for rows, times in groups:
        found[times] = found.get(times, 0) + rows
    return {times: rows for times, rows in found.items() if rows}


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 30),
    st.lists(
        st.tuples(st.integers(0, 70), st.integers(0, 20), st.sampled_from([7, 8])), max_size=4
    ),
    st.integers(0, 90),
)
def test_rows_are_seen_as_often_as_each_other_in_every_part(
    num_rows: int, parts: list[tuple[int, int, int]], last: int
) -> None:
    """Rows taken part by part are counted by hand and compared with what the stream says."""
    current, position = stream(num_rows), 0
    taken: list[int] = []
    for count, added, seed in parts:
        taken += current.rows(position, count).tolist() if count else []
        current, position = current.continued(
            position + count, num_rows=current.num_rows + added, seed=seed
        )
        assert current.total(position) == len(taken)
    taken += current.rows(position, last).tolist() if last else []
    position += last
    assert current.total(position) == len(taken)
    assert told(current.seen(position)) == counted(taken, current.num_rows)


def test_an_epoch_under_way_ends_with_its_own_rows_and_the_added_ones() -> None:
    old = stream(10)
    first = old.rows(0, 14)
    grown, position = old.continued(14, num_rows=16, seed=7)
    assert position == 0
    rest = grown.rows(0, 12)
    # the six rows that the second epoch had left, in their order, and the six added ones
    assert [row for row in rest if row < 10] == old.rows(14, 6).tolist()
    assert sorted(row for row in rest if row >= 10) == [10, 11, 12, 13, 14, 15]
    # spread evenly: never two more of one kind than of the other
    lead = np.cumsum(np.where(rest < 10, 1, -1))
    assert np.abs(lead).max() == 1
    assert [grown.epoch(position) for position in (0, 11, 12, 27, 28)] == [1, 1, 2, 2, 3]
    assert sorted(grown.rows(12, 16)) == list(range(16))
    assert sorted([*first[:10]]) == list(range(10))


def test_what_is_as_before_goes_on_and_what_was_not_begun_begins() -> None:
    old = stream(10)
    assert old.continued(14, num_rows=10, seed=7) == (old, 14)
    assert old.continued(0, num_rows=12, seed=7) == (stream(12), 0)
    # a stretch that took no row of the source leaves no trace
    grown, position = old.continued(4, num_rows=12, seed=7)
    assert grown.continued(position, num_rows=15, seed=7) == old.continued(4, num_rows=15, seed=7)


def test_rows_that_come_after_a_whole_epoch_come_first() -> None:
    grown, _ = stream(10).continued(20, num_rows=13, seed=7)
    assert sorted(grown.rows(0, 3)) == [10, 11, 12]
    assert sorted(grown.rows(3, 13)) == list(range(13))


def test_another_seed_orders_the_epochs_to_come() -> None:
    old = stream(200)
    other, position = old.continued(100, num_rows=200, seed=8)
    assert other.rows(position, 100).tolist() == old.rows(100, 100).tolist()
    again = other.rows(100, 200).tolist()
    assert sorted(again) == list(range(200))
    assert again != old.rows(200, 200).tolist()


@pytest.mark.parametrize("first", [0, 3, 11, 12, 29])
def test_a_block_asked_for_alone_is_that_of_the_whole(first: int) -> None:
    grown, _ = stream(10).continued(14, num_rows=16, seed=7)
    assert grown.rows(first, 9).tolist() == grown.rows(0, 60).tolist()[first : first + 9]
