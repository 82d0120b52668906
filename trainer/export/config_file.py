"""config.json, so that every reader takes it for the model that was trained; it opens no weights.

What a release of transformers does not read under the name of another one is written under both.
"""

from collections.abc import Mapping
from typing import Any

from trainer.export.rope import FULL, Config, both_forms, read_config
from trainer.model.dropout_names import DROPOUT_NAME
from trainer.model.kinds import kind_of

PART = "text_config"
"""Section of a multimodal model's config that describes the part that reads texts."""
OPEN, OPEN_FOR_SERVERS = "is_causal", "use_bidirectional_attention"
"""Keys that open a decoder's attention: transformers 5 reads the first, servers one or other."""
OWN_WINDOW = "gemma3_text"
"""Type whose code opens its attention by the second key alone, and reads its window as the sum of
both sides then."""
OWN_MEANING = (
    "gemma3n_text", "gemma4_text", "gemma4_unified_text", "diffusion_gemma_text", "t5gemma2_text",
    "step3p7",
)  # fmt: skip
"""Types whose code gives the second key another meaning or other values."""
CONVERTED_NAMES = {"gemma3_text": "Gemma3ForCausalLM"}
"""Class that is named for a causal model of a type whose bare class stands, for converters and
servers, for an embedder with open attention."""
PERIODS = {"gemma3_text": ("sliding_window_pattern", 1), "modernbert": (
    "global_attn_every_n_layers", 0)}  # fmt: skip
"""Key of the period of full attention, and what is added to a layer's number for it."""
ALIASES = ("num_experts", "num_local_experts")
"""Names of one number."""


def complete_config(
    config: Config,
    *,
    base: Mapping[str, Any] | None,
    end_id: int | None = None,
    architecture: str | None = None,
) -> Config:
    """A config in the form that all readers take alike.

    Args:
        config: content of config.json; not changed.
        base: the same of the model that was trained, or None where it is unknown.
        end_id: id of the token that texts end with; None where there is none.
        architecture: name of the bare class, where the weights are known to be those of it.

    Returns:
        The new content.
    """
    section = dict(config.get(PART) or {})
    if section.get("model_type"):
        inner = base.get(PART, base) if base is not None else None
        completed = complete_config(section, base=inner, end_id=end_id)
        new = {**config, PART: completed}
    else:
        new = _without_settings(dict(config), base)
        for step in (_attention, both_forms, _layers, _experts):
            new = step(new)
    new = _dtypes(_one_end(new, end_id))
    if architecture is not None:
        new["architectures"] = [named_class(new, architecture)]
    return new


def named_class(config: Mapping[str, Any], architecture: str) -> str:
    """What `architectures` says of weights that belong to a bare class."""
    is_open = config.get(OPEN) is False or config.get(OPEN_FOR_SERVERS)
    return architecture if is_open else CONVERTED_NAMES.get(config["model_type"], architecture)


def needs_release_5(config: Mapping[str, Any]) -> bool:
    """Whether transformers before release 5 would close the attention of this model."""
    section = config.get(PART)
    return config.get(OPEN) is False or (isinstance(section, dict) and needs_release_5(section))


def _without_settings(config: Config, base: Mapping[str, Any] | None) -> Config:
    """The config with the base's values where the training has its own."""
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}
    if base is None:
        if kept.get("use_cache") is False:
            del kept["use_cache"]
        return kept
    own = base.get(PART) if base.get("model_type") != config.get("model_type") else base
    own = own if isinstance(own, Mapping) else base
    for key in ("use_cache", "_name_or_path"):
        kept.pop(key, None)
        if key in own:
            kept[key] = own[key]
    read = read_config(own)
    return _dropouts(kept, {} if read is None else read.to_dict())


def _dropouts(section: Config, base: Mapping[str, Any]) -> Config:
    """A section with the base's dropout probabilities."""
    new: Config = {}
    for key, value in section.items():
        was = base.get(key)
        if isinstance(value, dict) and isinstance(was, Mapping):
            new[key] = _dropouts(value, was)
        else:
            is_one = DROPOUT_NAME.search(key) and isinstance(was, int | float)
            new[key] = was if is_one else value
    return new


def _attention(config: Config) -> Config:
    """Both keys of a decoder that was trained bidirectional, and neither for an encoder."""
    if config.get(OPEN) is not False:
        return config
    kind = config.get("model_type")
    if kind == OWN_WINDOW:
        return _open_window(config)
    if not config.get(OPEN_FOR_SERVERS) and _is_encoder(config):
        return {key: value for key, value in config.items() if key != OPEN}
    return config if kind in OWN_MEANING else config | {OPEN_FOR_SERVERS: True}


def _open_window(config: Config) -> Config:
    """Gemma 3 with open attention, in the one key that its code reads in every release.

    Trained under `is_causal` alone, a token sees `sliding_window` others on each side. With the key
    of its own, the code halves the number that the file gives: half on each side.
    """
    new = {key: value for key, value in config.items() if key != OPEN}
    read = read_config(config)
    if read is not None:
        new["sliding_window"] = 2 * int(read.sliding_window)
    return new | {OPEN_FOR_SERVERS: True}


def _is_encoder(config: Config) -> bool:
    """Whether the model's own code lets each token see all others; no for an unknown one."""
    import torch
    from transformers import AutoModel

    read = read_config(config)
    if read is None or type(read) not in AutoModel._model_mapping:
        return False
    with torch.device("meta"):
        return kind_of(AutoModel.from_config(read, attn_implementation="eager")) == "encoder"


def _layers(config: Config) -> Config:
    """The period of full attention, for readers that know no `layer_types`."""
    name, shift = PERIODS.get(str(config.get("model_type")), ("", 0))
    layers = config.get("layer_types")
    if not name or not layers:
        return config
    for period in range(1, len(layers) + 2):
        full = [(place + shift) % period == 0 for place in range(len(layers))]
        if full == [layer == FULL for layer in layers]:
            return config | {name: period}
    return config


def _experts(config: Config) -> Config:
    """The number of experts under both names, where the model has one."""
    found = [config[name] for name in ALIASES if name in config]
    read = read_config(config) if len(found) == 1 else None
    names = {*getattr(read, "attribute_map", {}).items()}
    if not names & {ALIASES, ALIASES[::-1]}:
        return config
    return config | dict.fromkeys(ALIASES, found[0])


def _one_end(config: Config, end_id: int | None) -> Config:
    """One end token for a list: the one that texts end with, or else the first."""
    ends = config.get("eos_token_id")
    if not isinstance(ends, list) or not ends:
        return config
    return config | {"eos_token_id": ends[0] if end_id is None else end_id}


def _dtypes(config: Config) -> Config:
    """The dtype under the names of old and new releases."""
    dtype = config.get("dtype") or config.get("torch_dtype")
    return config | ({"dtype": dtype, "torch_dtype": dtype} if isinstance(dtype, str) else {})
