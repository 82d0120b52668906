"""The weights of an adapter's folder into the adapters of a model; it must not add any."""

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn

from trainer.errors import RecipeError
from trainer.model.weights import likely_prefix

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
OF_ADAPTER = re.compile(r"(\.modules_to_save)?\.default(?=\.|$)")
"""What peft puts into the names of a model's adapter, and leaves out in files."""
MAGNITUDE = re.compile(r"(?<=\.lora_magnitude_vector)\.weight$")
"""What files of peft lack, and those of the trainer have."""
BASE = ".base_layer."
"""In the names of the base's own embeddings, which peft saves beside their adapters."""
TOKENS = "trainable_tokens_delta"
"""End of the names of trained tokens."""
PEFT = "base_model.model."
"""What peft puts before the backbone's names."""


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Set all trainable parameters of a model from an adapter's folder.

    Args:
        model: whole or partitioned by `zero.Init`, with adapters of any values.
        folder: with `adapter_model.safetensors`.

    Raises:
        RecipeError: a file that is missing or damaged, or whose tensors are not exactly those of
            the model's adapters.
    Collective: yes under ZeRO-3.
    """
    wanted = {
        _bare(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            names = {_bare(name): name for name in file.keys()}  # noqa: SIM118 - not a mapping
            prefix = likely_prefix(wanted, names)
            found = {name.removeprefix(prefix): full for name, full in names.items()}
            for name in [name for name in found if BASE in name]:
                _check_copy(path, model, name, file.get_tensor(found.pop(name)))
            for name in _copies_of_tokens(file, wanted, found):
                del found[name]
            _check(
                path, wanted, {n: tuple(file.get_slice(f).get_shape()) for n, f in found.items()}
            )
            for name, parameter in wanted.items():
                _set(parameter, file.get_tensor(found[name]))
    except (OSError, SafetensorError) as error:
        raise RecipeError(
            f"{path}: content = not readable ({error!s:.120}); expected the weights of the adapter "
            "that model.path names, as safetensors. Copy or save the adapter again."
        ) from error
    logger.info("adapters start from %s", path)


def _bare(name: str) -> str:
    """The name of a tensor, in a model or a file, without what peft may put into it."""
    return MAGNITUDE.sub("", OF_ADAPTER.sub("", name)).removeprefix(PEFT)


def _copies_of_tokens(file: Any, wanted: Collection[str], found: Mapping[str, str]) -> list[str]:
    """Trained tokens that repeat the model's own, as peft saves those of a tied head."""
    own = next((name for name in wanted if name.endswith(TOKENS) and name in found), None)
    others = [name for name in found if name.endswith(TOKENS) and name not in wanted]
    if own is None or not others:
        return []
    rows = file.get_tensor(found[own])
    return [name for name in others if torch.equal(file.get_tensor(found[name]), rows)]


def _check(path: Path, wanted: dict[str, nn.Parameter], found: dict[str, tuple[int, ...]]) -> None:
    """Refuse a file whose tensors are others than the model's."""
    start = f"{path}: tensors = "
    advice = (
        "Set model.lora as the adapter was trained, leave it out with model.adapter=continue, or "
        "set model.adapter=merge."
    )
    for kind, names in (
        ("without", [name for name in wanted if name not in found]),
        ("also with", [name for name in found if name not in wanted]),
    ):
        if names:
            raise RecipeError(
                f"{start}{kind} {names[0]} ({len(names)} such); expected those of the recipe's "
                f"adapters, {len(wanted)} tensors. {advice}"
            )
    for name, parameter in wanted.items():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if found[name] != shape:
            raise RecipeError(
                f"{start}{name} of shape {list(found[name])}; expected {list(shape)}. {advice}"
            )


def _check_copy(path: Path, model: PeftModel, name: str, saved: torch.Tensor) -> None:
    """Refuse an adapter that was trained on other embeddings than the base has."""
    own = {_bare(full): parameter for full, parameter in model.named_parameters()}.get(name)
    is_same = False
    if own is not None:
        with deepspeed.zero.GatheredParameters([own], enabled=hasattr(own, "ds_id")):
            is_same = own.shape == saved.shape and torch.equal(own.cpu(), saved.to(own.dtype))
    if not is_same:
        raise RecipeError(
            f"{path}: {name} = other values than in the base; expected the base's own, as they are "
            "not trained. Merge the adapter with tools/delta_merge.py, or name its own base."
        )


def _set(parameter: nn.Parameter, value: torch.Tensor) -> None:
    """Give a parameter its values; of a partitioned one the first rank's count."""
    sharded = hasattr(parameter, "ds_id")
    gathered = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=sharded)
    with gathered, torch.no_grad():
        parameter.copy_(value)
