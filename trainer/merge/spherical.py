"""Factors of merges along great circles, from inner products alone; it must not read tensors.

The weights of a tensor count as one vector. What each method makes of K such vectors is a sum of
them, so K factors are all that a second pass over the tensors needs, and the K x K inner products
are all that the factors need.

Formulas, thresholds and limits are those of mergekit's slerp, multislerp and karcher, which compute
on whole tensors in float32. Legend: K checkpoints.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SPHERICAL = ("slerp", "multi_slerp", "karcher")
"""Methods of this module."""

Inner = NDArray[np.float64]
"""Inner products of the checkpoints' weights [K, K]."""
Factors = NDArray[np.float64]
"""What each checkpoint is multiplied by [K]."""

NEARLY_PARALLEL = 0.9995
"""Cosine above which slerp is linear interpolation."""
LEAST_NORM = 1e-8
"""Of a vector or mean that has a direction."""
TOLERANCE = 1e-5
"""Karcher: angles, steps and norms below it are nothing."""
MAX_STEPS = 10
"""Karcher: steps towards the mean at most."""


class NoMeanError(ArithmeticError):
    """Vectors that have no mean on the sphere."""


def spherical_factors(
    method: str, inner_KK: Inner, weights: Sequence[float] | None, t: float | None
) -> Factors:
    """What each checkpoint is multiplied by.

    Args:
        method: one of `SPHERICAL`.
        inner_KK: inner products [K, K].
        weights: of `multi_slerp`; None: 1 each.
        t: of `slerp`; None: 0.5.

    Returns:
        [K]; one checkpoint is what it is.

    Raises:
        NoMeanError: if they have no mean.
    """
    count = len(inner_KK)
    if count == 1:
        return np.ones(1)
    if method == "slerp":
        return slerp_factors(inner_KK, 0.5 if t is None else t)
    if method == "multi_slerp":
        return multi_slerp_factors(inner_KK, np.array(weights or (1.0,) * count))
    return karcher_factors(inner_KK)


def slerp_factors(inner_KK: Inner, t: float) -> Factors:
    """Spherical interpolation between two vectors.

    Args:
        inner_KK: inner products [2, 2].
        t: 0 is the first, 1 the second.

    Returns:
        [2].
    Reference: Shoemake 1985, "Animating rotation with quaternion curves"; linear where the two
        are nearly parallel or opposite.
    """
    norm_K = np.sqrt(np.diagonal(inner_KK))
    unit_K = np.where(norm_K > LEAST_NORM, norm_K, 1.0)
    cosine = inner_KK[0, 1] / (unit_K[0] * unit_K[1])
    if abs(cosine) > NEARLY_PARALLEL:
        return np.array([1 - t, t])
    angle = np.arccos(cosine)
    return np.array([np.sin((1 - t) * angle), np.sin(t * angle)]) / np.sin(angle)


def multi_slerp_factors(inner_KK: Inner, weight_K: Factors) -> Factors:
    """Barycentric interpolation: the direction of the mean direction, with the mean norm.

    mergekit steps on from there along the weighted sum of the directions' components at right
    angles to it, which is zero.

    Args:
        inner_KK: inner products [K, K].
        weight_K: weights [K] of any sum but 0.

    Raises:
        NoMeanError: if the directions cancel; two vectors are then interpolated linearly.
    """
    share_K = weight_K / weight_K.sum()
    norm_K = np.sqrt(np.diagonal(inner_KK))
    mean_K = share_K / (norm_K + LEAST_NORM)
    length = _length(mean_K, inner_KK)
    if length < LEAST_NORM:
        if len(share_K) == 2:
            return share_K
        raise NoMeanError("directions that cancel under these weights")
    return mean_K / length * (share_K @ norm_K)


def karcher_factors(inner_KK: Inner) -> Factors:
    """The mean on the sphere, which has the least squared angles to all, with the mean norm.

    Vectors without a direction count in the norm alone.

    Args:
        inner_KK: inner products [K, K].

    Raises:
        NoMeanError: if a vector is opposite to the mean.
    Reference: Karcher 1977, "Riemannian center of mass and mollifier smoothing".
    """
    norm_K = np.sqrt(np.diagonal(inner_KK))
    has_direction_K = norm_K > TOLERANCE
    if not has_direction_K.any():
        return np.zeros_like(norm_K)
    unit_K = np.where(has_direction_K, 1 / np.where(has_direction_K, norm_K, 1.0), 0.0)
    share = 1 / has_direction_K.sum()
    mean_K = share * unit_K
    length = _length(mean_K, inner_KK)
    first = np.arange(len(norm_K)) == np.argmax(has_direction_K)
    mean_K = first * unit_K if length < TOLERANCE else mean_K / length
    for _ in range(MAX_STEPS):
        step_K = share * _to_the_others(mean_K, unit_K, inner_KK)
        length = _length(step_K, inner_KK)
        if length < TOLERANCE:
            break
        mean_K = np.cos(length) * mean_K + np.sin(length) / length * step_K
        mean_K /= _length(mean_K, inner_KK)
    return norm_K.mean() * mean_K


def _to_the_others(mean_K: Factors, unit_K: Factors, inner_KK: Inner) -> Factors:
    """Sum of the tangents at a unit vector that lead to each unit vector, as factors [K]."""
    cosine_K = np.clip(unit_K * (inner_KK @ mean_K), -1.0, 1.0)
    angle_K = np.arccos(cosine_K)
    leads_K = (angle_K >= TOLERANCE) & (unit_K > 0)
    if (np.pi - angle_K[leads_K] < TOLERANCE).any():
        raise NoMeanError("a checkpoint opposite to the mean of all")
    scale_K = np.where(leads_K, angle_K / np.sin(np.where(leads_K, angle_K, 1.0)), 0.0)
    return scale_K * unit_K - (scale_K @ cosine_K) * mean_K


def _length(factor_K: Factors, inner_KK: Inner) -> float:
    """Norm of a sum of the vectors with these factors."""
    return math.sqrt(max(0.0, float(factor_K @ inner_KK @ factor_K)))
