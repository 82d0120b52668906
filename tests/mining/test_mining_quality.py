"""Effective contrastive information: worked by hand, and what moves it."""

import math

import numpy as np
import pytest

from trainer.mining.choose import Chosen
from trainer.mining.quality import contrastive_information
from trainer.mining.tally import Tally


def information(positive: float, *negatives: float) -> float:
    return contrastive_information(positive, np.array(negatives, np.float32)).total


def test_it_is_capacity_times_the_harmonic_mean_of_hardness_and_safety() -> None:
    found = contrastive_information(0.8, np.array([0.78, 0.5, -0.2], np.float32))
    assert found.capacity == math.log(4)
    assert found.hardness == pytest.approx((0.78 + 0.5 + 0) / 3)
    # half of the margin of 0.05 * 0.8
    assert found.safety == pytest.approx(0.5, rel=1e-5)
    both = 2 / (1 / found.hardness + 1 / found.safety)
    assert found.total == pytest.approx(math.log(4) * both)


def test_one_unsafe_negative_takes_all() -> None:
    assert information(0.8, 0.7, 0.6) > 0
    assert information(0.8, 0.7, 0.8) == 0
    assert information(0.8, 0.7, 0.9) == 0
    assert information(0.8) == 0
    assert information(0.0, 0.0) == 0
    # no cosine below 0 is hard
    assert information(0.0, -0.1) == 0
    assert information(-0.2, -0.5, -0.3) == 0


def test_more_and_harder_negatives_tell_more_while_they_are_safe() -> None:
    assert information(0.8, 0.5) < information(0.8, 0.7) < information(0.8, 0.7, 0.7)
    assert information(0.8, 0.799) < information(0.8, 0.7)


def test_a_mining_records_its_means() -> None:
    tally = Tally()
    scores = [np.array([0.7, 0.5], np.float32), np.array([], np.float32)]
    for one in scores:
        chosen = Chosen(passages=np.arange(len(one)), scores=one)
        tally.add(chosen, np.array([0.9, 0.8], np.float32), 2)
    found = tally.recorded()["effective_contrastive_information"]
    one = contrastive_information(float(np.float32(0.8)), scores[0])
    assert found == {
        "mean_nats": one.total / 2,
        "capacity_nats": one.capacity / 2,
        "hardness": one.hardness,
        "safety": one.safety,
    }
