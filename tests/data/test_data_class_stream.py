"""The stream of a source whose classes are drawn equally often, through stretches of a run."""

import numpy as np
import pytest

from trainer.data.classes import Classes, ClassStream

CLASSES = Classes(
    rows=np.array([0, 1, 2, 3, 4, 2], np.int64), starts=np.array([0, 3, 5, 6], np.int64)
)
"""Rows 0 to 2, 3 and 4, and row 2 again."""


def stream(seed: int = 1) -> ClassStream:
    return ClassStream(seed=seed, source="intents", num_rows=5, classes=CLASSES)


def counted(one: ClassStream, position: int) -> dict[int, int]:
    """Rows by how often they were seen, from the draws themselves."""
    counts = np.bincount(one.rows(0, position), minlength=5) if position else np.zeros(5, int)
    if one.before is not None:
        counts = counts + np.bincount(one.before.rows(0, one.taken), minlength=5)
    times, rows = np.unique(counts, return_counts=True)
    return dict(zip(times.tolist(), rows.tolist(), strict=True))


@pytest.mark.parametrize("position", [0, 1, 7, 30])
def test_any_block_is_the_same_however_it_is_asked_for(position: int) -> None:
    whole = stream().rows(0, position + 9)
    assert stream().rows(position, 9).tolist() == whole[position:].tolist()
    assert {times: rows for rows, times in stream().seen(position)} == counted(stream(), position)


def test_every_round_has_each_class_once() -> None:
    of_row = [{0}, {0}, {0, 2}, {1}, {1}]
    for turn in range(20):
        drawn = stream().rows(3 * turn, 3).tolist()
        assert set().union(*(of_row[row] for row in drawn)) == {0, 1, 2}


def test_the_same_seed_goes_on_and_another_begins_anew() -> None:
    first = stream()
    assert first.continued(7, num_rows=5, seed=1) == (first, 7)
    second, position = first.continued(7, num_rows=5, seed=2)
    assert position == 0
    assert second.rows(0, 9).tolist() == stream(2).rows(0, 9).tolist()
    assert second.total(4) == 11
    assert second.epoch(4) == 2
    assert {times: rows for rows, times in second.seen(4)} == counted(second, 4)
    # a stretch that trained on nothing leaves no trace
    third, position = second.continued(0, num_rows=5, seed=3)
    assert (third.before, third.taken, position) == (first, 7, 0)
    assert second.continued(0, num_rows=5, seed=1) == (first, 7)
