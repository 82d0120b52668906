"""Checks that the losses share; it must not compute anything."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.errors import ObjectiveError


def require(holds: bool, name: str, got: object, expected: str, advice: str) -> None:
    """Refuse arguments of a loss that do not fit together.

    Args:
        holds: whether the rule holds.
        name: function and argument, such as `info_nce: queries`.
        got: what was given; a shape for tensors.
        expected: the rule with its numbers.
        advice: what to do, one sentence.

    Raises:
        ObjectiveError: if `holds` is false.
    """
    if not holds:
        raise ObjectiveError(f"objectives: {name} = {got}; expected {expected}. {advice}")


def require_temperature(temperature: float, function: str) -> None:
    """Refuse a temperature that is not a positive finite number.

    Raises:
        ObjectiveError: if it is not.
    """
    holds = 0 < temperature < float("inf")
    advice = "Give a positive number, such as 0.05."
    require(holds, f"{function}: temperature", temperature, "above 0", advice)


def shape(tensor: Tensor) -> list[int]:
    """The shape as messages show it."""
    return list(tensor.shape)


def compute_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 if any of the tensors is, else float32: no loss is computed in half precision."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32
