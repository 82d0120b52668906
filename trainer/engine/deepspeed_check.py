"""DeepSpeed's own opinion of a ds_config, before a model is loaded; it must not change anything."""

from collections.abc import Mapping
from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from trainer.errors import RecipeError
from trainer.recipe.document import shorten


def check_deepspeed(config: Mapping[str, Any], *, file: str) -> None:
    """Refuse what DeepSpeed would refuse in `zero_optimization`.

    Args:
        config: the resolved dict.
        file: `engine.deepspeed`, for the message.

    Raises:
        RecipeError: naming the first key that is unknown or has a wrong value.
    """
    try:
        DeepSpeedZeroConfig(**config["zero_optimization"])
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(["zero_optimization", *map(str, fault["loc"])])
        raise RecipeError(
            f"{file}: {key} = {shorten(fault['input'])}; expected what DeepSpeed takes "
            f"({fault['msg']}). Correct the key or remove it."
        ) from error
