"""The loops of merging, compiled (numba); they must not know tensors, names or files.

One pass over a block does what takes a library of array operations seven, and sums in float64 as
it goes: the memory's speed is the limit. bfloat16 comes as its bits, uint16, for numpy has no such
dtype. Compiled once per machine and combination of dtypes, then kept in numba's cache.

Legend: K checkpoints, n elements of a block.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

TILE = 1024
"""Elements whose float64 sums stay in a core's first cache."""
BFLOAT16_NAN = np.uint16(0x7FC0)


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`njit` without Python's lock, kept on disk where there is a folder and room for that."""

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = njit(nogil=True, **options)(function)
        # numba refuses to work at all without a folder
        with suppress(RuntimeError):
            compiled.enable_caching()
            compiled._cache.save_overload = _unless_full(compiled._cache.save_overload)
        return compiled

    return compile_


def _unless_full(save: Callable[..., None]) -> Callable[..., None]:
    """A full disk or quota where compiled loops are kept is no reason not to merge."""

    def save_if_it_fits(*compiled: Any) -> None:
        with suppress(OSError):
            save(*compiled)

    return save_if_it_fits


def _cast_to_float(_typing: Any, bits: Any) -> Any:
    """The float32 that has these 32 bits."""
    signature = types.float32(types.uint32)
    return signature, lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


def _cast_to_bits(_typing: Any, number: Any) -> Any:
    """The 32 bits of a float32."""
    signature = types.uint32(types.float32)
    return signature, lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


_float_of: Any = intrinsic(_cast_to_float)
_bits_of: Any = intrinsic(_cast_to_bits)


def _wide(stored: Any) -> Any:
    """A stored number as float64; the overload below says how, by dtype."""


@overload(_wide, inline="always", strict=False)
def _overload_wide(stored: Any) -> Any:
    if isinstance(stored, types.Integer):
        return lambda stored: np.float64(_float_of(np.uint32(stored) << np.uint32(16)))
    return lambda stored: np.float64(stored)


def _store(out_n: Any, index: int, value: float) -> None:
    """Round a float64 to the dtype of `out_n`, as torch does: to bfloat16 by way of float32.

    The overload below says how, by dtype.
    """


@overload(_store, inline="always", strict=False)
def _overload_store(out_n: Any, index: Any, value: Any) -> Any:
    if isinstance(out_n.dtype, types.Float):

        def store_float(out_n: Any, index: int, value: float) -> None:
            out_n[index] = value

        return store_float

    def store_bfloat16(out_n: Any, index: int, value: float) -> None:
        bits = _bits_of(np.float32(value))
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
        out_n[index] = rounded if value == value else BFLOAT16_NAN

    return store_bfloat16


@_compiled(fastmath={"reassoc"})
def sum_of_squares(base_n: NDArray[Any], tuned_n: NDArray[Any]) -> float:
    """Sum of the squares of `tuned_n - base_n`.

    Args:
        base_n: theta0 [n], uint16 (the bits of bfloat16), float32 or float64.
        tuned_n: theta_k [n], any of these.

    Returns:
        The sum in float64; NaN or infinite if an element is.
    """
    total = 0.0
    for i in range(len(base_n)):
        change = _wide(tuned_n[i]) - _wide(base_n[i])
        total += change * change
    return total


@_compiled(fastmath={"reassoc"})
def sum_of_finite_squares(base_n: NDArray[Any], tuned_n: NDArray[Any]) -> float:
    """`sum_of_squares` over those elements whose change is a finite number."""
    total = 0.0
    for i in range(len(base_n)):
        change = _wide(tuned_n[i]) - _wide(base_n[i])
        if np.isfinite(change):
            total += change * change
    return total


@_compiled(fastmath={"reassoc"})
def _inner_product(first_n: Any, second_n: Any) -> float:
    total = 0.0
    for i in range(len(first_n)):
        total += _wide(first_n[i]) * _wide(second_n[i])
    return total


@_compiled(fastmath={"reassoc"})
def _finite_inner_product(first_n: Any, second_n: Any) -> float:
    total = 0.0
    for i in range(len(first_n)):
        product = _wide(first_n[i]) * _wide(second_n[i])
        if np.isfinite(product):
            total += product
    return total


def inner_products(tuned: tuple[NDArray[Any], ...]) -> NDArray[np.float64]:
    """Inner products of blocks [K, K]; products that are not finite are left out.

    Args:
        tuned: theta_k [n] each, uint16 (the bits of bfloat16), float32 or float64.
    """
    inner_KK = np.empty((len(tuned), len(tuned)))
    for j, first in enumerate(tuned):
        for k, second in enumerate(tuned[: j + 1]):
            found = _inner_product(first, second)
            if not np.isfinite(found):
                found = _finite_inner_product(first, second)
            inner_KK[j, k] = inner_KK[k, j] = found
    return inner_KK


@_compiled()
def _begin(base_n: Any, sum_n: Any) -> None:
    for i in range(len(base_n)):
        sum_n[i] = _wide(base_n[i])


@_compiled(fastmath={"reassoc"})
def _add(base_n: Any, tuned_n: Any, factor: float, sum_n: Any) -> float:
    """Add a weighted change; gives the sum of its squares."""
    total = 0.0
    for i in range(len(base_n)):
        change = _wide(tuned_n[i]) - _wide(base_n[i])
        sum_n[i] += factor * change
        total += change * change
    return total


@_compiled()
def _end(sum_n: Any, out_n: Any) -> None:
    for i in range(len(out_n)):
        _store(out_n, i, sum_n[i])


@_compiled()
def weighted_sum(
    base_n: NDArray[Any],
    tuned: tuple[NDArray[Any], ...],
    factor_K: NDArray[np.float64],
    out_n: NDArray[Any],
    square_K: NDArray[np.float64],
) -> None:
    """`theta0 + sum f_k (theta_k - theta0)`, summed in float64, then rounded as torch rounds.

    The squares of the changes are summed on the way, for whoever has not done so before.

    Args:
        base_n: theta0 [n], uint16 (the bits of bfloat16), float32 or float64.
        tuned: theta_k [n] each, all of one of these dtypes.
        factor_K: f_k; a factor of 0 leaves a checkpoint out, whatever it holds.
        out_n: gets the result [n], in any of these dtypes.
        square_K: gets the sums of squares of `theta_k - theta0`, as `sum_of_squares` gives them.
    """
    sum_n = np.empty(TILE, np.float64)
    square_K[:] = 0
    for start in range(0, len(base_n), TILE):
        stop = min(start + TILE, len(base_n))
        tile, sums = base_n[start:stop], sum_n[: stop - start]
        _begin(tile, sums)
        for k in range(len(tuned)):
            if factor_K[k] != 0:
                square_K[k] += _add(tile, tuned[k][start:stop], factor_K[k], sums)
            else:
                square_K[k] += sum_of_squares(tile, tuned[k][start:stop])
        _end(sums, out_n[start:stop])


@_compiled()
def _add_scaled(tuned_n: Any, factor: float, sum_n: Any) -> None:
    for i in range(len(tuned_n)):
        sum_n[i] += factor * _wide(tuned_n[i])


@_compiled()
def combination(
    tuned: tuple[NDArray[Any], ...], factor_K: NDArray[np.float64], out_n: NDArray[Any]
) -> None:
    """`sum f_k theta_k`, summed in float64, then rounded as torch rounds.

    Args:
        tuned: theta_k [n] each, all uint16 (the bits of bfloat16), float32 or float64.
        factor_K: f_k; a factor of 0 leaves a checkpoint out, whatever it holds.
        out_n: gets the result [n], in any of these dtypes.
    """
    sum_n = np.empty(TILE, np.float64)
    for start in range(0, len(out_n), TILE):
        stop = min(start + TILE, len(out_n))
        sums = sum_n[: stop - start]
        sums[:] = 0
        for k in range(len(tuned)):
            if factor_K[k] != 0:
                _add_scaled(tuned[k][start:stop], factor_K[k], sums)
        _end(sums, out_n[start:stop])
