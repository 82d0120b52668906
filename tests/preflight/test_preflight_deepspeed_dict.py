"""What DeepSpeed refuses in a ds_config is told as a mistake of that file."""

from typing import Any

import pytest

from trainer.errors import RecipeError
from trainer.preflight.deepspeed_dict import check_deepspeed


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"reduce_bucket_size": "x"}, r"mine\.json: zero_optimization\.reduce_bucket_size = wrong"),
        ({"stage4": 1}, r"zero_optimization\.stage4 = wrong \(Extra inputs are not permitted"),
        ({"offload_optimizer": {"device": "moon"}}, r"\.offload_optimizer\.device = wrong"),
    ],
)
def test_wrong_keys_and_values_are_named(change: dict[str, Any], part: str) -> None:
    with pytest.raises(RecipeError, match=part):
        check_deepspeed({"zero_optimization": {"stage": 3} | change}, file="mine.json")


def test_right_ones_pass() -> None:
    check_deepspeed(
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}}, file="mine.json"
    )
