"""The arithmetic of merging on blocks in memory; it must not know files, names or threads.

Legend: K checkpoints, N elements of a block, R groups of N / R elements that share a weight.
In float64, so that a result rounded once to its dtype is that of a naive computation to the last
place even where changes cancel. bfloat16 may be summed in float32 at half the cost, if what cancels
is then mended (`mend`).
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def delta_weights(norm_KR: Tensor, alpha: float) -> Tensor:
    """Weights of the checkpoints by how far each moved.

    Limits: 0^0 is 1, so that alpha = 0 is uniform; with alpha < 0 the checkpoints that did not
    move share all weight; where none moved all weights are 0 for alpha > 0.

    Args:
        norm_KR: norms of the changes [K, R], float64, at least 0.
        alpha: exponent, any finite number.

    Returns:
        [K, R], float64; columns sum to 1, or to 0 where alpha > 0 and nothing moved.
    Reference: CoDiEmb, arXiv 2508.11442, whose abstract gives the idea (weights from parameter
        deviations) but no formula; this one is ours.
    """
    if alpha == 0:
        return torch.full_like(norm_KR, 1 / norm_KR.shape[0])
    if alpha > 0:
        # divided by the largest, so that no power overflows
        power_KR = (norm_KR / norm_KR.amax(0).clamp_min_(torch.finfo(torch.float64).tiny)) ** alpha
        return power_KR / power_KR.sum(0).clamp_min_(torch.finfo(torch.float64).tiny)
    smallest_R = norm_KR.amin(0)
    still_KR = (norm_KR == 0).double()
    power_KR = torch.where(smallest_R > 0, (norm_KR / smallest_R) ** alpha, still_KR)
    return power_KR / power_KR.sum(0)


def group_norms(delta_KN: Tensor, num_groups: int) -> Tensor:
    """L2 norm of each group of each change [K, R]."""
    if num_groups == delta_KN.shape[1]:
        return delta_KN.abs()
    # [K, N] -> [K, R, N / R]
    return torch.linalg.vector_norm(delta_KN.unflatten(1, (num_groups, -1)), dim=2)


def add_weighted(base_N: Tensor, delta_KN: Tensor, factor_KR: Tensor) -> None:
    """Add every change times its group's factor to `base_N`, in place.

    Args:
        base_N: [N], float64 or float32.
        delta_KN: [K, N], of the same dtype.
        factor_KR: [K, R]; a factor of 0 leaves a change out.
    """
    num_groups = factor_KR.shape[1]
    for delta_N, factor_R in zip(delta_KN, factor_KR, strict=True):
        if num_groups == 1:
            if float(factor_R) != 0:
                base_N.add_(delta_N, alpha=float(factor_R))
        else:
            # [N] -> [R, N / R]
            base_N.view(num_groups, -1).addcmul_(delta_N.view(num_groups, -1), factor_R[:, None])


def blend(base_N: Tensor, tuned_KN: Tensor, factor_K: Tensor) -> None:
    """The sum of `add_weighted` from the checkpoints themselves, without their changes, in place.

    theta0 + sum f_k (theta_k - theta0) = (1 - sum f_k) theta0 + sum f_k theta_k.

    Args:
        base_N: theta0 [N], float64 or float32; becomes the sum.
        tuned_KN: theta_k [K, N], of the same dtype.
        factor_K: [K]; a factor of 0 leaves a checkpoint out.
    """
    base_N.mul_(float(1 - factor_K.sum()))
    for tuned_N, factor in zip(tuned_KN, factor_K.tolist(), strict=True):
        if factor != 0:
            base_N.add_(tuned_N, alpha=factor)


SQUARES_RUN = 128
"""Squares summed in float32 before their sum goes on in float64."""
LOST_BITS = 7 << 7
"""Distance of bit patterns from which a bfloat16 result is mended: a factor of about 2^7 between
it and the largest number that went in, of the 2^16 that float32 has beyond bfloat16."""
SEARCHED_RUN = 256
"""Elements of which the largest is found before any is looked at."""
MAX_GAIN = 8.0
"""Largest sum of the factors' magnitudes for which float32 leaves enough bits."""


def squares(delta_KN: Tensor) -> Tensor:
    """Sums of squares [K], float64, of float64 or float32 changes.

    Those of float32 are exact to about 2e-8: short runs are summed in float32, then in float64.
    Where squares leave the range of float32 they are computed again.
    """
    if delta_KN.dtype == torch.float64:
        return torch.stack([torch.dot(one, one) for one in delta_KN])
    return torch.stack([_squares_of_float32(one) for one in delta_KN])


def _squares_of_float32(delta_N: Tensor) -> Tensor:
    """One sum of `squares` [], float64."""
    whole = delta_N.numel() // SQUARES_RUN * SQUARES_RUN
    runs = delta_N[:whole].view(-1, SQUARES_RUN)
    total = torch.linalg.vector_norm(runs, dim=1).double().square().sum()
    rest = delta_N[whole:].double()
    total += torch.dot(rest, rest)
    # below and above, squares of single elements may be lost
    if 1e-20 < float(total) < 1e30:
        return total
    wide = delta_N.double()
    return torch.dot(wide, wide)


def gain(factor_K: Tensor) -> float:
    """How much larger than its inputs any partial sum of a merge can become, no unit."""
    return 1 + 2 * float(factor_K.abs().sum())


def mend(merged_N: Tensor, base_N: Tensor, tuned: Sequence[Tensor], factor_K: Tensor) -> None:
    """Compute again in float64, in place, what float32 sums may have got wrong by cancelling.

    A sum in float32 is off by a few 2^-24 of its largest term; rounded to bfloat16 that is seen
    only where the result is far smaller than the terms.

    Args:
        merged_N: result of float32 sums, bfloat16.
        base_N: theta0, bfloat16.
        tuned: theta_k, each [N], bfloat16.
        factor_K: [K]; a factor of 0 leaves a checkpoint out. `gain` is at most `MAX_GAIN`.
    """
    largest_N = _magnitude(base_N)
    for tuned_N in tuned:
        torch.maximum(largest_N, _magnitude(tuned_N), out=largest_N)
    index = _places_above(LOST_BITS, largest_N.sub_(_magnitude(merged_N)))
    if not len(index):
        return
    start = base_N[index].double()
    total = start.clone()
    for tuned_N, factor in zip(tuned, factor_K.tolist(), strict=True):
        if factor != 0:
            total.add_(tuned_N[index].double() - start, alpha=factor)
    merged_N[index] = total.to(merged_N.dtype)


def _magnitude(values_N: Tensor) -> Tensor:
    """Bit patterns of bfloat16 without their sign [N], int16; they sort like the numbers."""
    return values_N.view(torch.int16).bitwise_and(0x7FFF)


def _places_above(limit: int, values_N: Tensor) -> Tensor:
    """Indices of larger values [n], int64, looking into those runs alone that have any.

    Comparing every value and listing the places costs thirty times as much as the largest of each
    run.
    """
    whole = len(values_N) // SEARCHED_RUN * SEARCHED_RUN
    runs = values_N[:whole].view(-1, SEARCHED_RUN)
    hit_R = (runs.amax(1) > limit).nonzero()[:, 0]
    row, column = (runs[hit_R] > limit).nonzero(as_tuple=True)
    rest = (values_N[whole:] > limit).nonzero()[:, 0]
    return torch.cat([hit_R[row] * SEARCHED_RUN + column, rest + whole])


def add_ties(base_N: Tensor, delta_KN: Tensor, threshold_K: Tensor, scale: float) -> Tensor:
    """Trim, elect a sign, and add the mean of the changes that agree with it, in place.

    Args:
        base_N: [N], float64.
        delta_KN: [K, N], float64; overwritten by the trimmed changes.
        threshold_K: smallest magnitude that each checkpoint keeps [K].
        scale: lambda.

    Returns:
        How many elements each checkpoint took part in [K], int64.
    Reference: Yadav et al. 2023, arXiv:2306.01708, algorithm 1. Differences: the top share is
        taken per tensor, not over the whole model; where the kept changes cancel exactly no sign
        is elected and the base stays.
    """
    delta_KN.masked_fill_(delta_KN.abs() < threshold_K[:, None], 0)
    sign_N = delta_KN.sum(0).sign_()
    agrees_KN = (delta_KN.sign() == sign_N) & (sign_N != 0)
    total_N = delta_KN.mul_(agrees_KN).sum(0)
    base_N.add_(total_N / agrees_KN.sum(0).clamp_min_(1), alpha=scale)
    return agrees_KN.sum(1)


def kth_largest(blocks: Callable[[], Iterable[Tensor]], num_checkpoints: int, rank: int) -> Tensor:
    """The rank-th largest magnitude of each change, exactly, reading blocks only.

    Non-negative floats sort like their bits, so four passes each fix 16 bits by a histogram.

    Args:
        blocks: gives the changes of a tensor block by block, [K, n] float64, each time it is
            called.
        num_checkpoints: K.
        rank: 1 for the largest.

    Returns:
        [K], float64.
    """
    prefix_K = torch.zeros(num_checkpoints, dtype=torch.int64)
    rank_K = torch.full((num_checkpoints,), rank)
    for shift in (48, 32, 16, 0):
        count_KB = torch.zeros(num_checkpoints, 1 << 16, dtype=torch.int64)
        for delta_KN in blocks():
            bits_KN = delta_KN.abs().view(torch.int64) >> shift
            for k, bits_N in enumerate(bits_KN):
                digit_N = bits_N[bits_N >> 16 == prefix_K[k]] & 0xFFFF
                count_KB[k] += torch.bincount(digit_N, minlength=1 << 16)
        # how many lie above each digit; the digit sought is the highest that reaches the rank
        above_KB = count_KB.flip(1).cumsum(1).flip(1)
        digit_K = (above_KB >= rank_K[:, None]).sum(1) - 1
        at_K = digit_K[:, None]
        rank_K = rank_K - (above_KB.gather(1, at_K) - count_KB.gather(1, at_K)).squeeze(1)
        prefix_K = (prefix_K << 16) | digit_K
    return prefix_K.view(torch.float64)
