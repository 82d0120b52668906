"""DeepSpeed's own opinion of a ds_config, before a model is loaded; it must not change anything."""

from collections.abc import Mapping
from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from trainer.errors import RecipeError


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
    except AssertionError as error:
        raise RecipeError(
            f"{file}: zero_optimization = wrong ({error}); expected what DeepSpeed takes. Remove "
            "one of the keys that contradict each other."
        ) from error
    except ValueError as error:
        # a heading, then a line with the key and one with the reason for each fault
        _, key, reason, *_ = [*str(error).splitlines(), "", ""]
        raise RecipeError(
            f"{file}: zero_optimization.{key} = wrong ({reason.strip()}); expected what DeepSpeed "
            "takes. Correct the key or remove it."
        ) from error
