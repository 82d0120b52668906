"""The learning rate as a function of the step."""

import math

import pytest

from trainer.engine.lr import learning_rate


def rates(shape: str, *, min_ratio: float = 0.0) -> list[float]:
    return [
        learning_rate(
            step, peak=2.0, num_steps=10, warmup_steps=2, shape=shape, min_ratio=min_ratio
        )
        for step in range(10)
    ]


def test_warmup_rises_to_the_peak() -> None:
    assert rates("constant") == [1.0, 2.0] + [2.0] * 8


def test_linear_falls_by_equal_amounts_and_never_reaches_zero() -> None:
    got = rates("linear")
    assert got[2:] == pytest.approx([2.0 * (1 - k / 8) for k in range(8)])
    assert got[-1] > 0


def test_cosine_follows_its_formula_down_to_the_floor() -> None:
    got = rates("cosine", min_ratio=0.1)
    want = [2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 8))) for k in range(8)]
    assert got[2:] == pytest.approx(want)
