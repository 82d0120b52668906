"""The naive merge: everything in memory, float64, written to be read rather than to be fast."""

import torch
from torch import Tensor

from trainer.merge.settings import MergeSettings


def naive_merge(base: Tensor, tuned: list[Tensor], settings: MergeSettings) -> Tensor:
    """Merge one tensor; all arguments and the result are float64."""
    deltas = [one - base for one in tuned]
    if settings.method == "ties":
        return base + settings.lambda_ * _naive_ties(deltas, settings.density)
    if settings.method == "task_arithmetic":
        weights: list = list(settings.weights or [1.0] * len(tuned))
    elif settings.method == "uniform":
        weights = [1 / len(tuned)] * len(tuned)
    else:
        weights = naive_weights(deltas, settings)
    return base + settings.lambda_ * sum(w * d for w, d in zip(weights, deltas, strict=True))


def naive_weights(deltas: list[Tensor], settings: MergeSettings) -> list:
    """Weights of `delta`, numbers or tensors that broadcast."""
    if settings.granularity == "element" or (
        settings.granularity == "row" and deltas[0].dim() <= 1
    ):
        norms = [d.abs() for d in deltas]
    elif settings.granularity == "row":
        shape = (-1, *[1] * (deltas[0].dim() - 1))
        norms = [d.flatten(1).norm(dim=1).view(shape) for d in deltas]
    else:
        norms = [d.norm() for d in deltas]
    if settings.alpha < 0:
        still = torch.stack([(n == 0).double() for n in norms])
        powers = torch.stack([n**settings.alpha for n in norms])
        powers = torch.where(still.any(0), still, powers)
    else:
        powers = torch.stack([n**settings.alpha for n in norms])
    total = powers.sum(0)
    return list(torch.where(total > 0, powers / total, torch.zeros_like(powers)))


def _naive_ties(deltas: list[Tensor], density: float) -> Tensor:
    kept = []
    for delta in deltas:
        count = max(1, int(density * delta.numel()))
        smallest = delta.abs().flatten().sort(descending=True).values[count - 1]
        kept.append(torch.where(delta.abs() >= smallest, delta, 0.0))
    sign = sum(kept).sign()
    agree = [(one.sign() == sign) & (sign != 0) for one in kept]
    total = sum(one * yes for one, yes in zip(kept, agree, strict=True))
    return total / sum(yes.double() for yes in agree).clamp(min=1)


def units_apart(got: Tensor, wanted: Tensor) -> Tensor:
    """Number of representable values between the elements of two tensors of one dtype."""
    width = {2: torch.int16, 4: torch.int32}[got.dtype.itemsize]
    lowest = torch.iinfo(width).min

    def place(values: Tensor) -> Tensor:
        bits = values.contiguous().view(width).long()
        return torch.where(bits < 0, lowest - bits, bits)

    return (place(got) - place(wanted)).abs()


def assert_merged(got: Tensor, base: Tensor, tuned: list[Tensor], settings: MergeSettings) -> None:
    """Compare a merged tensor with the naive merge: one unit in the last place.

    Both round sums to float64 on the way, in another order: where changes cancel to nothing, what
    is left of either is 2^-52 of what was summed.

    Args:
        got: merged tensor, of the output's dtype.
        base: float64.
        tuned: float64.
        settings: how it was merged.
    """
    wanted = naive_merge(base, tuned, settings)
    summed = base.abs() + sum((one - base).abs() * abs(settings.lambda_) for one in tuned)
    near = (got.double() - wanted).abs() <= 2**-50 * summed
    far = (units_apart(got, wanted.to(got.dtype)) > 1) & ~near
    assert not far.any(), (got[far], wanted[far])
