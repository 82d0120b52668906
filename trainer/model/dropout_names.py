"""Which numbers of a backbone's config are dropout probabilities; it must not load a model.

Each family of models names them in its own way: `attention_dropout`, `hidden_dropout_prob`,
`resid_pdrop`, `dropout_rate`, `attn_drop`, some of them in a section of its own.
"""

import re
from typing import Any

from transformers import PretrainedConfig

from trainer.errors import RecipeError

DROPOUT_NAME = re.compile(r"dropout|pdrop|(^|_)drop(_p|_prob|_rate)?$")
"""Not `drop_path_rate` and `layerdrop`, which leave out whole layers."""


def override_dropouts(config: PretrainedConfig, probability: float) -> None:
    """Set every dropout probability of a config and of the sections inside it.

    Args:
        config: of a backbone; changed.
        probability: `model.dropout`.

    Raises:
        RecipeError: if there is none to set, and something is to be dropped.
    """
    if not _override(vars(config), probability) and probability > 0:
        raise RecipeError(
            f"recipe: model.dropout = {probability:g}; expected null or 0, as the config of a "
            f"{config.model_type} has no dropout probability. Remove it, or use model.lora.dropout."
        )


def _override(section: dict[str, Any], probability: float) -> int:
    """Set the probabilities of a section; returns how many there are."""
    count = 0
    for name, value in section.items():
        if isinstance(value, PretrainedConfig):
            count += _override(vars(value), probability)
        elif isinstance(value, dict):
            count += _override(value, probability)
        elif _is_probability(value) and DROPOUT_NAME.search(str(name)):
            section[name] = probability
            count += 1
    return count


def _is_probability(value: object) -> bool:
    """Whether a value is a number from 0 to 1; some configs write 0 without a point."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
