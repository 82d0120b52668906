"""Rotary positions of a config in the forms of transformers 4 and 5; it must not touch files.

transformers 5 keeps all numbers in `rope_parameters`, for some models one set for each type of
layer. Releases before it, and servers built on them, read keys at the top of the config and take
their defaults where these are missing, without a word.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

Config = dict[str, Any]
"""Content of a config.json, or of the section of one part of a model."""

UNREADABLE = (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError,
              ValueError)  # fmt: skip
"""What transformers raises for a config that it does not know or cannot accept."""
PARAMETERS = "rope_parameters"
"""The one key of transformers 5."""
FULL, SLIDING = "full_attention", "sliding_attention"
"""Types of layers that have parameters of their own."""


@dataclass(frozen=True, kw_only=True)
class OlderKeys:
    """Top-level keys that transformers 4 reads of one type of model."""

    theta: str = "rope_theta"
    """Base of the wavelengths; of full attention where there are two."""
    sliding_theta: str | None = None
    """The same of sliding layers, which are not scaled; None where all layers share one."""
    partial: str = "partial_rotary_factor"
    """Share of a head's dimensions that is rotated."""
    scaling_keys: tuple[str, ...] | None = None
    """The only keys that `rope_scaling` may have; None for any."""


OLDER_KEYS = {
    "gemma3_text": OlderKeys(sliding_theta="rope_local_base_freq"),
    "gemma3n_text": OlderKeys(sliding_theta="rope_local_base_freq"),
    "modernbert": OlderKeys(theta="global_rope_theta", sliding_theta="local_rope_theta"),
    "modernbert-decoder": OlderKeys(theta="global_rope_theta", sliding_theta="local_rope_theta"),
    "olmo3": OlderKeys(sliding_theta="rope_theta"),
    "gpt_neox": OlderKeys(theta="rotary_emb_base", partial="rotary_pct"),
    "gpt_neox_japanese": OlderKeys(theta="rotary_emb_base", partial="rotary_pct"),
    "phi3": OlderKeys(scaling_keys=("type", "short_factor", "long_factor")),
}
"""Types of models whose keys are not the usual ones."""


def read_config(config: Mapping[str, Any]) -> PretrainedConfig | None:
    """A config as the installed transformers reads it; None where it does not know the type."""
    content = copy.deepcopy(dict(config))
    try:
        return AutoConfig.for_model(content.pop("model_type"), **content)
    except UNREADABLE:
        return None


def read_rope(config: Mapping[str, Any]) -> Config | None:
    """The rotary parameters of a config, from whichever form it has.

    Returns:
        `rope_parameters` as JSON; None for a model without, and for an unknown one.
    """
    parameters = getattr(read_config(config), PARAMETERS, None)
    return json.loads(json.dumps(parameters)) if parameters else None


def canonical(parameters: Mapping[str, Any] | None) -> Config:
    """Parameters without what says nothing: older names and neutral values."""
    plain: Config = {}
    for key, value in (parameters or {}).items():
        if isinstance(value, Mapping):
            plain[key] = canonical(value)
        elif value is not None and key != "type" and (key, value) != ("partial_rotary_factor", 1):
            plain[key] = value
    return plain


def both_forms(config: Config) -> Config:
    """A config with its rotary parameters in both forms, as far as both say the same.

    Args:
        config: with one form or both; not changed. Where they contradict each other, what
            transformers 5 reads is right: it is what the trainer reads.

    Returns:
        The new config; the same where the model has no such parameters.
    """
    parameters = read_rope(config)
    if parameters is None:
        return config
    keys = OLDER_KEYS.get(str(config["model_type"]), OlderKeys())
    rest = {key: value for key, value in config.items() if key not in _names(keys)}
    older = _older_form(parameters, keys)
    if older is not None and canonical(read_rope(rest | older)) == canonical(parameters):
        both = rest | older | {PARAMETERS: parameters}
        if canonical(read_rope(both)) == canonical(parameters):
            return both
    return rest | {PARAMETERS: parameters}


def _names(keys: OlderKeys) -> set[str]:
    """Every key of both forms."""
    names = {PARAMETERS, "rope_scaling", "rope_theta", keys.theta, keys.partial}
    return names | ({keys.sliding_theta} if keys.sliding_theta else set())


def _older_form(parameters: Config, keys: OlderKeys) -> Config | None:
    """The top-level keys of transformers 4; None where they cannot say what is meant."""
    sliding: Config | None = None
    if any(isinstance(value, dict) for value in parameters.values()):
        if keys.sliding_theta is None or not {FULL, SLIDING} >= parameters.keys():
            return None
        sliding = parameters.get(SLIDING)
        parameters = parameters.get(FULL) or {}
    form: Config = {}
    if "rope_theta" in parameters:
        form[keys.theta] = parameters["rope_theta"]
    theta = sliding["rope_theta"] if sliding else None
    if keys.sliding_theta and theta is not None:
        # where both are read from one key they must be equal
        if form.get(keys.sliding_theta, theta) != theta:
            return None
        form[keys.sliding_theta] = theta
    return form | _partial(parameters, keys) | _scaling(parameters, keys)


def _partial(parameters: Config, keys: OlderKeys) -> Config:
    """The key of heads that are rotated in part."""
    share = parameters.get("partial_rotary_factor")
    return {} if share is None else {keys.partial: share}


def _scaling(parameters: Config, keys: OlderKeys) -> Config:
    """`rope_scaling`, and what longrope reads beside it; nothing for unscaled positions."""
    apart = ("rope_theta", "partial_rotary_factor")
    scaling = {key: value for key, value in parameters.items() if key not in apart}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default" and not scaling.keys() - {"rope_type", "type"}:
        return {}
    form: Config = {}
    original = scaling.get("original_max_position_embeddings")
    if kind == "longrope" and original is not None:
        form["original_max_position_embeddings"] = original
    if keys.scaling_keys is not None:
        scaling = {key: value for key, value in {"type": kind, **scaling}.items()
                   if key in keys.scaling_keys}  # fmt: skip
    return form | {"rope_scaling": scaling}
