"""The distance to a teacher's vectors equals a loop in float64, value and gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.errors import ObjectiveError
from trainer.objectives.distillation import embedding_loss


def pair(num_texts: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors and a teacher's, of any norm, float64."""
    generator = torch.Generator().manual_seed(seed)
    vectors, teacher = torch.randn(2, num_texts, size, generator=generator, dtype=torch.float64)
    return vectors.requires_grad_(), 3 * teacher


def looped(vectors: Tensor, teacher: Tensor) -> tuple[float, list[list[float]]]:
    """Value and gradient, number by number."""
    total, gradient = 0.0, []
    for v, t in zip(vectors.tolist(), teacher.tolist(), strict=True):
        v_norm, t_norm = math.sqrt(sum(x * x for x in v)), math.sqrt(sum(x * x for x in t))
        cosine = sum(x * y for x, y in zip(v, t, strict=True)) / (v_norm * t_norm)
        total += 1 - cosine
        # d cos / d v = t / (|v| |t|) - cos v / |v|^2
        gradient.append([
            (cosine * x / v_norm**2 - y / (v_norm * t_norm)) / len(vectors)
            for x, y in zip(v, t, strict=True)
        ])  # fmt: skip
    return total / len(vectors), gradient


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 999))
def test_equals_a_loop(num_texts: int, size: int, seed: int) -> None:
    vectors, teacher = pair(num_texts, size, seed)
    found = embedding_loss(vectors, teacher)
    value, gradient = looped(vectors, teacher)
    assert float(found.detach()) == pytest.approx(value, abs=1e-12)
    (got,) = torch.autograd.grad(found, vectors)
    torch.testing.assert_close(got, torch.tensor(gradient, dtype=torch.float64))


def test_gradients_hold_by_differences() -> None:
    vectors, teacher = pair(3, 4, 1)
    assert torch.autograd.gradcheck(lambda v: embedding_loss(v, teacher), (vectors,))


def test_directions_alone_count() -> None:
    vectors = torch.tensor([[2.0, 0], [0, 3], [1, 0], [-1, 0]])
    teacher = torch.tensor([[0.5, 0], [7, 0], [3, 4], [9, 0]])
    # cosines 1, 0, 0.6 and -1
    assert float(embedding_loss(vectors, teacher)) == pytest.approx((0 + 1 + 0.4 + 2) / 4)


def test_half_precision_is_computed_in_float32() -> None:
    vectors, teacher = pair(4, 8, 2)
    halves = vectors.detach().bfloat16(), teacher.half()
    found = embedding_loss(*halves)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(
        looped(halves[0].double(), halves[1].double())[0], rel=1e-6
    )


def test_no_texts_are_a_connected_zero_and_the_teacher_is_a_constant() -> None:
    vectors, teacher = pair(3, 4, 3)
    none = embedding_loss(vectors[:0], teacher[:0])
    assert none == 0
    assert torch.equal(torch.autograd.grad(none, vectors)[0], torch.zeros(3, 4).double())
    assert not embedding_loss(vectors.detach(), teacher.requires_grad_()).requires_grad


@pytest.mark.parametrize("shapes", [((2, 4), (2, 3)), ((2, 4), (3, 4)), ((4,), (4,))])
def test_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(
        ObjectiveError, match=r"vectors, teacher = .*; expected \[n, D\] and \[n, D\]"
    ):
        embedding_loss(*map(torch.ones, shapes))
