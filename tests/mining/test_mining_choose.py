"""Every filter of mining against a list comprehension, alone and together."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import RecipeError
from trainer.mining.choose import Chosen, MiningSettings, check_settings, choose


def naive(
    passages: list[int], scores: list[float], known: set[int], positive: float, how: MiningSettings
) -> list[int]:
    """Candidates in their order, one after the other."""
    left = []
    for passage, score in zip(passages, scores, strict=True):
        margin, share, most = how.absolute_margin, how.relative_margin, how.max_score
        if passage in known:
            continue
        if margin is not None and score > np.float32(positive - margin):
            continue
        if share is not None and score > np.float32(positive - abs(positive) * (1 - share)):
            continue
        if most is not None and score > np.float32(most):
            continue
        left.append(passage)
    return left[how.skip_top :]


def chosen(
    passages: list[int], scores: list[float], known: set[int], positive: float, how: MiningSettings
) -> Chosen:
    return choose(
        np.array(passages, np.int64), np.array(scores, np.float32), known=known,
        positive=positive, settings=how, salt=7,
    )  # fmt: skip


OPTIONS = {
    "skip_top": [0, 2],
    "max_score": [None, 0.5],
    "relative_margin": [None, 0.95],
    "absolute_margin": [None, 0.1],
}


@given(
    seed=st.integers(0, 2**16),
    options=st.fixed_dictionaries(
        {key: st.sampled_from(values) for key, values in OPTIONS.items()}
    ),
    positive=st.sampled_from([0.9, 0.4, -0.2]),
    count=st.integers(0, 12),
)
@settings(max_examples=200)
def test_filters_equal_a_loop(
    seed: int, options: dict[str, Any], positive: float, count: int
) -> None:
    rng = np.random.default_rng(seed)
    passages = rng.permutation(20)[:count].tolist()
    scores = sorted(rng.uniform(-1, 1, count).round(2).tolist(), reverse=True)
    known = set(rng.permutation(20)[:5].tolist())
    how = MiningSettings(num_negatives=3, **options)
    scores = np.array(scores, np.float32).tolist()
    left = naive(passages, scores, known, positive, how)
    found = chosen(passages, scores, known, positive, how)
    assert found.passages.tolist() == left[:3]
    assert found.scores.tolist() == [scores[passages.index(one)] for one in left[:3]]
    sampled = chosen(passages, scores, known, positive, MiningSettings(
        num_negatives=3, sampling="random", **options,
    ))  # fmt: skip
    assert set(sampled.passages.tolist()) <= set(left)
    assert len(sampled.passages) == min(3, len(left))
    # the hardest first
    assert sorted(sampled.scores.tolist(), reverse=True) == sampled.scores.tolist()


def test_what_left_candidates_out_is_counted() -> None:
    how = MiningSettings(
        num_negatives=2, skip_top=1, max_score=0.6, relative_margin=0.9, absolute_margin=0.05
    )
    scores = [0.95, 0.9, 0.87, 0.8, 0.7, 0.6, 0.5, 0.4]
    found = chosen([*range(8)], scores, {0}, 0.9, how)
    assert found.left_out == {
        "known": 1, "absolute_margin": 2, "relative_margin": 0, "max_score": 2, "skipped": 1,
    }  # fmt: skip
    assert found.passages.tolist() == [6, 7]


def test_chance_depends_on_seed_and_query_alone() -> None:
    how = MiningSettings(num_negatives=2, sampling="random")
    passages, scores = [*range(50)], np.linspace(0.9, 0.1, 50).tolist()
    once, again = (chosen(passages, scores, set(), 1.0, how) for _ in range(2))
    assert once.passages.tolist() == again.passages.tolist()
    others = {
        tuple(choose(np.arange(50), np.array(scores, np.float32), known=(), positive=1.0,
                     settings=how, salt=salt).passages.tolist())
        for salt in range(20)
    }  # fmt: skip
    assert len(others) > 10
    assert how.considered == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_negatives": 0}, "--num-negatives: 0; expected at least 1"),
        ({"skip_top": -1}, "--skip-top: -1; expected at least 0"),
        ({"max_score": 3.0}, "--max-score: 3.0; expected a number from -2 to 2"),
        ({"relative_margin": float("nan")}, "--relative-margin: nan"),
        ({"depth": 5, "skip_top": 2}, "--depth: 5; expected at least 6"),
    ],
)
def test_settings_out_of_bounds_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_settings(MiningSettings(**change))
