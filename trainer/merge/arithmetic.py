"""The arithmetic of merging on blocks in memory; it must not know files, names or threads.

Legend: K checkpoints, N elements of a block, R groups of N / R elements that share a weight.
In float64, so that a result rounded once to its dtype is that of a naive computation to the last
place even where changes cancel. What every tensor goes through by default is compiled instead:
`kernels`.
"""

from collections.abc import Callable, Iterable

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
        base_N: [N], float64.
        delta_KN: [K, N], float64.
        factor_KR: [K, R].
    """
    num_groups = factor_KR.shape[1]
    for delta_N, factor_R in zip(delta_KN, factor_KR, strict=True):
        # [N] -> [R, N / R]
        base_N.view(num_groups, -1).addcmul_(delta_N.view(num_groups, -1), factor_R[:, None])


def squares(delta_KN: Tensor) -> Tensor:
    """Sums of squares [K] of float64 changes [K, N]."""
    return torch.stack([torch.dot(one, one) for one in delta_KN])


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
