"""What DeepSpeed refuses in a ds_config is told as a mistake of that file."""

from typing import Any

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from trainer.errors import RecipeError
from trainer.preflight.deepspeed_dict import check_deepspeed
from trainer.recipe.deepspeed_file import offloads


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"reduce_bucket_size": "x"}, r"mine\.json: zero_optimization\.reduce_bucket_size = wrong"),
        ({"stage4": 1}, r"zero_optimization\.stage4 = wrong \(Extra inputs are not permitted"),
        ({"offload_optimizer": {"device": "moon"}}, r"\.offload_optimizer\.device = wrong"),
        ({"offload_optimizer": {"device": None}}, r"\.offload_optimizer\.device = wrong"),
        ({"cpu_offload": True, "offload_optimizer": {}}, r"wrong \(Cannot provide deprecated"),
    ],
)
def test_wrong_keys_and_values_are_named(change: dict[str, Any], part: str) -> None:
    with pytest.raises(RecipeError, match=part):
        check_deepspeed({"zero_optimization": {"stage": 3} | change}, file="mine.json")


def test_right_ones_pass() -> None:
    check_deepspeed(
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}}, file="mine.json"
    )


@pytest.mark.parametrize("section", ["offload_param", "offload_optimizer"])
@pytest.mark.parametrize(
    ("value", "old_flag", "moves"),
    [
        ({"device": "cpu"}, None, True),
        ({"device": "nvme", "nvme_path": "/local"}, None, True),
        ({"device": "none", "pin_memory": True}, None, False),
        ({}, None, False),
        (None, None, False),
        (None, True, True),
        (None, "yes", True),
        (None, False, False),
    ],
)
def test_offloading_is_what_deepspeed_makes_of_the_file(
    section: Any, value: object, old_flag: object, moves: bool
) -> None:
    old_name = {"offload_param": "cpu_offload_param", "offload_optimizer": "cpu_offload"}[section]
    zero = {"stage": 3, section: value} if old_flag is None else {"stage": 3, old_name: old_flag}
    assert offloads({"zero_optimization": zero}, section) is moves
    found = getattr(DeepSpeedZeroConfig(**zero), section)
    assert (found is not None and found.device != "none") is moves
