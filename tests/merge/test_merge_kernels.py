"""The compiled loops against torch in float64, for every dtype they read and write."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.merge.blocks import COMPILED, as_array
from trainer.merge.kernels import TILE, sum_of_finite_squares, sum_of_squares, weighted_sum

SIZE = 2 * TILE + 3
"""Whole tiles and a part of one."""
SPECIAL = (0.0, -0.0, 1e-40, -1e-40, 3.3e38, 1.0 + 2**-8, 1.0 + 3 * 2**-8, -1.0 - 2**-8)
"""Zeros, numbers below the normal range, near the largest, and halfway between two bfloat16."""


def numbers(seed: int, dtype: torch.dtype) -> Tensor:
    values = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=torch.float64)
    return values.to(dtype)


@pytest.mark.parametrize(
    ("base_dtype", "tuned_dtype", "out_dtype"), list(itertools.product(COMPILED, repeat=3))
)
def test_weighted_sums_have_torchs_bits(
    base_dtype: torch.dtype, tuned_dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    base, *tuned = (
        numbers(0, base_dtype),
        numbers(1, tuned_dtype),
        numbers(2, tuned_dtype),
        torch.full((SIZE,), float("nan"), dtype=tuned_dtype),
    )
    factors = [0.3, -0.7, 0.0]
    wanted = base.double()
    for one, factor in zip(tuned[:2], factors, strict=False):
        wanted = wanted + factor * (one.double() - base.double())
    merged, squares = torch.empty(SIZE, dtype=out_dtype), np.full(3, 7.0)
    arrays = tuple(map(as_array, tuned))

    weighted_sum(as_array(base), arrays, np.array(factors), as_array(merged), squares)

    # what factor 0 leaves out may hold anything
    assert as_array(merged).tobytes() == as_array(wanted.to(out_dtype)).tobytes()
    for found, one in zip(squares[:2], arrays, strict=False):
        assert found == pytest.approx(sum_of_squares(as_array(base), one), rel=1e-13)
    assert np.isnan(squares[2])


@pytest.mark.parametrize("dtype", COMPILED)
def test_rounding_is_torchs_for_all_that_is_not_finite(dtype: torch.dtype) -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    tuned = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e300], dtype=torch.float64)
    merged = torch.empty(4, dtype=dtype)

    weighted_sum(as_array(base), (as_array(tuned),), np.array([1.0]), as_array(merged), np.empty(1))

    assert torch.equal(merged.nan_to_num(7), tuned.to(dtype).nan_to_num(7))


@pytest.mark.parametrize(("base_dtype", "tuned_dtype"), list(itertools.product(COMPILED, repeat=2)))
def test_sums_of_squares(base_dtype: torch.dtype, tuned_dtype: torch.dtype) -> None:
    base, tuned = numbers(0, base_dtype)[8:], numbers(1, tuned_dtype)[8:]
    # float64 in another order
    wanted = pytest.approx(float((tuned.double() - base.double()).square().sum()), rel=1e-13)

    assert sum_of_squares(as_array(base), as_array(tuned)) == wanted
    tuned[5], base[7] = float("nan"), float("inf")
    assert not np.isfinite(sum_of_squares(as_array(base), as_array(tuned)))
    change = tuned.double() - base.double()
    wanted = pytest.approx(float(change[change.isfinite()].square().sum()), rel=1e-13)
    assert sum_of_finite_squares(as_array(base), as_array(tuned)) == wanted
