"""The distance to a teacher's scores and the spread of vectors equal a loop in float64."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.objectives.distillation import DISTANCES, kl_loss, margin_mse_loss
from trainer.objectives.regularisers import spread_out


def spread_loop(vectors: Sequence[Tensor]) -> Tensor:
    """Mean of the squared product over ordered pairs of different vectors, pair by pair."""
    pairs = [
        (vectors[i] * vectors[j]).sum() ** 2
        for i in range(len(vectors))
        for j in range(len(vectors))
        if i != j
    ]
    return sum(pairs, 0.0 * vectors[0].sum()) / max(1, len(pairs))


def softmax_loop(numbers: Sequence[Tensor]) -> list[Tensor]:
    powers = [torch.exp(number) for number in numbers]
    return [power / sum(powers) for power in powers]


def distance_loop(
    name: str, scores: Sequence[Tensor], teacher: Sequence[float], tau: float, tau_t: float
) -> Tensor:
    """Of one query's candidates, positive first, number by number; `name` as in a recipe."""
    ours = [score / tau for score in scores]
    theirs = [torch.tensor(score / tau_t, dtype=torch.float64) for score in teacher]
    if name == "margin_mse":
        gaps = [
            ((ours[0] - one) - (theirs[0] - other)) ** 2
            for one, other in zip(ours[1:], theirs[1:], strict=True)
        ]
        return sum(gaps, 0.0 * ours[0]) / max(1, len(gaps))
    found, wanted = softmax_loop(ours), softmax_loop(theirs)
    if name == "mse_softmax":
        squares = [(one - other) ** 2 for one, other in zip(found, wanted, strict=True)]
        return sum(squares, 0.0 * ours[0]) / len(squares)
    parts = [
        other * (math.log(other) - one.log()) for one, other in zip(found, wanted, strict=True)
    ]
    return sum(parts, 0.0 * ours[0])


def assert_same(found: Tensor, want: Tensor, at: Tensor) -> None:
    """Value and gradient."""
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-12)
    got, right = (torch.autograd.grad(one, at, retain_graph=True)[0] for one in (found, want))
    torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-12)


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 999))
@settings(max_examples=15)
def test_the_spread_is_that_of_all_pairs(num_vectors: int, size: int, seed: int) -> None:
    vectors = numbers(num_vectors, size, seed=seed).requires_grad_()
    assert_same(spread_out(vectors), spread_loop(list(vectors)), vectors)


@pytest.mark.parametrize("name", DISTANCES)
@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([0.05, 0.3, 1.0]), st.integers(0, 999))
@settings(max_examples=15)
def test_distances_are_the_mean_over_queries(
    name: str, num_queries: int, num_candidates: int, tau: float, seed: int
) -> None:
    scores = numbers(num_queries, num_candidates, seed=seed).requires_grad_()
    teacher = 3 * numbers(num_queries, num_candidates, seed=seed + 1)

    def want(tau_t: float) -> Tensor:
        rows = zip(scores, teacher.tolist(), strict=True)
        return sum(distance_loop(name, list(row), other, tau, tau_t) for row, other in rows) / (
            num_queries
        )

    found = DISTANCES[name](scores, teacher, temperature=tau, teacher_temperature=0.7)
    assert_same(found, want(0.7), scores)
    if name == "kl":
        assert_same(kl_loss(scores, teacher, temperature=tau), tau**2 * want(tau), scores)
    if name == "margin_mse":
        assert_same(margin_mse_loss(scores, teacher, temperature=tau), want(tau), scores)
