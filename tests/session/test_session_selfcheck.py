"""What the self-check takes for rounding, and what for an error."""

import math
from typing import Any

import pytest
import torch

from trainer.session.selfcheck import Comparison, allowed, worst_error


def compared(rounding: float) -> Comparison:
    unused: Any = None
    return Comparison(
        task="ir", source="docs", error=0.0, place="", rounding=rounding, plan=unused, seconds={}
    )


@pytest.mark.parametrize(
    ("rounding", "limit"),
    [(0.0, 1e-5), (2e-6, 1e-5), (2e-5, 8e-5), (1.0, 1e-4), (math.inf, 1e-4), (math.nan, 1e-5)],
)
def test_plain_autograd_says_how_much_is_rounding_up_to_ten_limits(
    rounding: float, limit: float
) -> None:
    assert allowed(compared(rounding), "float32") == pytest.approx(limit)
    # that of bfloat16 has its rounding in it
    assert allowed(compared(rounding), "bfloat16") == 5e-2


def test_the_worst_parameter_is_named_and_a_nan_is_worse_than_all() -> None:
    want = {"a": torch.ones(4), "b": torch.ones(4)}
    assert worst_error({"a": torch.ones(4), "b": torch.full((4,), 1.5)}, want) == (0.5, "b")
    error, place = worst_error({"a": torch.full((4,), math.nan), "b": want["b"] * 9}, want)
    assert (math.isnan(error), place) == (True, "a")
