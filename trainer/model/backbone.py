"""Load a transformers backbone, whole or sharded from the start; it must not know the engine.

Under ZeRO-3 the weights are read while `HfDeepSpeedConfig` is alive, so that transformers builds
each module inside `deepspeed.zero.Init` and no rank ever holds the whole model.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from trainer.errors import RecipeError
from trainer.model.dropout_names import override_dropouts
from trainer.model.kinds import check_kind, is_open, skeleton_of, text_part
from trainer.model.limits import check_dims, check_lengths
from trainer.model.projection import check_projection, place_of_modules
from trainer.model.weights import (
    UNREADABLE,
    outcome,
    part_mapping,
    read_headers,
    refuse_unloaded,
    try_loading,
    warn_of_leftovers,
    weight_files,
)
from trainer.recipe.schema import ModelRecipe, Recipe

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_config(recipe: ModelRecipe, path: str) -> PretrainedConfig:
    """Read the config of the model's text part and apply what the recipe changes in it.

    Args:
        recipe: `dropout` overrides every dropout probability; `attention` opens a decoder's mask.
        path: resolved folder or hub id.

    Raises:
        RecipeError: no readable config at `path`, or one of a model that cannot embed texts, or a
            `dropout` for a backbone whose config has none.
    """
    config = text_part(_whole_config(recipe, path), recipe)
    if recipe.dropout is not None:
        override_dropouts(config, recipe.dropout)
    config.use_cache = False
    if recipe.attention == "bidirectional" and not is_open(config):
        config.is_causal = False
    return config


def _whole_config(recipe: ModelRecipe, path: str) -> PretrainedConfig:
    """The config as it is in the model's folder."""
    try:
        return AutoConfig.from_pretrained(path, **_pinned(recipe))
    except (
        OSError, ValueError, TypeError, LookupError, AttributeError, StrictDataclassError
    ) as error:  # fmt: skip
        raise RecipeError(
            f"recipe: model.path = {recipe.path}; expected a model folder or hub id with a "
            f"config.json that transformers knows. {_first_line(error)}"
        ) from error


def check_backbone(
    recipe: Recipe, path: str, config: PretrainedConfig, *, download: bool
) -> nn.Module:
    """Refuse a model that the recipe cannot be trained with, before a weight is read.

    Args:
        recipe: as loaded.
        path: resolved folder or hub id.
        config: from `load_config`.
        download: whether files of a hub model may be fetched; what is not there is not checked.

    Returns:
        The model on the meta device.

    Raises:
        RecipeError: a model of the wrong kind, an attention kernel that it lacks, limits on texts
            beyond its positions, a projection that is not the base's, or weights that are not
            those of the config.
    """
    is_part = type(_whole_config(recipe.model, path)) is not type(config)
    skeleton = skeleton_of(config, recipe.model)
    check_kind(skeleton, recipe.model, is_part=is_part)
    refuse_kernel(recipe.engine.attention_kernel, type(skeleton))
    check_lengths(recipe, skeleton)
    check_dims(recipe, skeleton)
    hidden_size = int(config.get_text_config().hidden_size)
    modules = place_of_modules(recipe.model, path)
    check_projection(recipe.model, modules, hidden_size=hidden_size, download=download)
    files = weight_files(path, recipe.model, config, download=download)
    if files is None and Path(path).is_dir():
        logger.warning(
            "recipe: model.path = %s (no weights in the folder); its config alone was checked",
            recipe.model.path,
        )
    if files is not None:
        tensors = read_headers(files, recipe.model)
        mapping = part_mapping(skeleton, tensors) if is_part else None
        try:
            loaded = try_loading(skeleton, tensors, key_mapping=mapping)
        except UNREADABLE as error:
            raise _unloadable(recipe.model, error) from error
        refuse_unloaded(loaded, tensors, skeleton, f"recipe: model.path = {recipe.model.path}")
        warn_of_leftovers(loaded, skeleton, recipe.model.path)
    return skeleton


def load_backbone(
    recipe: ModelRecipe, path: str, *, kernel: str, zero3_config: dict[str, Any] | None
) -> nn.Module:
    """Load weights in the recipe's dtype; gradient checkpointing is on where asked.

    Args:
        recipe: the model section.
        path: resolved folder or hub id.
        kernel: transformers' name of an attention implementation.
        zero3_config: a DeepSpeed config of stage 3 to shard while loading, or None.

    Raises:
        RecipeError: no weights at `path`, weights that do not fit the config, or a pickle that
            holds more than tensors: transformers unpickles with `weights_only`.
    Collective: yes under ZeRO-3.
    """
    config = load_config(recipe, path)
    settings: dict[str, Any] = _pinned(recipe)
    if type(_whole_config(recipe, path)) is not type(config):
        files = weight_files(path, recipe, config, download=True) or []
        skeleton = skeleton_of(config, recipe)
        settings["key_mapping"] = part_mapping(skeleton, read_headers(files, recipe))
    with sharded_loading(zero3_config):
        try:
            backbone, info = AutoModel.from_pretrained(
                path,
                config=config,
                dtype=DTYPES[recipe.dtype],
                attn_implementation=kernel,
                output_loading_info=True,
                **settings,
            )
        except UNREADABLE as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise _unloadable(recipe, error) from error
    # what was tried on shapes alone is looked at again: sharded loading has code of its own
    place = f"recipe: model.path = {recipe.path}"
    refuse_unloaded(outcome(backbone, info), (), backbone, place)
    _open_attention(backbone, recipe)
    _freeze_unused(backbone)
    if recipe.gradient_checkpointing:
        backbone.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": True}
        )
    return backbone.train()


def _unloadable(recipe: ModelRecipe, error: Exception) -> RecipeError:
    return RecipeError(
        f"recipe: model.path = {recipe.path}; expected weights that transformers can load. "
        f"{_first_line(error)}"
    )


def _pinned(recipe: ModelRecipe) -> dict[str, Any]:
    """What may be run that comes with a model: nothing, or the code of one commit.

    `code_revision` binds code that the config takes from another repository, too.
    """
    pinned = {"revision": recipe.revision, "trust_remote_code": recipe.trust_remote_code}
    return pinned | ({"code_revision": recipe.revision} if recipe.trust_remote_code else {})


@contextlib.contextmanager
def sharded_loading(zero3_config: dict[str, Any] | None) -> Iterator[None]:
    """Keep transformers' notice of ZeRO-3 alive during the block; nothing for None."""
    notice = HfDeepSpeedConfig(zero3_config) if zero3_config is not None else None
    try:
        yield
    finally:
        del notice


def _open_attention(backbone: nn.Module, recipe: ModelRecipe) -> None:
    """Make decoder attention bidirectional, also where no padding mask is passed.

    transformers drops an all-true mask and then trusts each attention module's own flag.
    """
    if recipe.attention == "bidirectional":
        for module in backbone.modules():
            if getattr(module, "is_causal", False) is True:
                module.is_causal = False  # type: ignore[assignment]


def _freeze_unused(backbone: nn.Module) -> None:
    """Freeze a BERT-style pooler: the embedding never passes through it, decay must not move it."""
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)


def attention_kernel(
    choice: str, *, dtype: torch.dtype, device_type: str, model: type[nn.Module]
) -> str:
    """Transformers' name for the fastest attention implementation that is installed and suits.

    Args:
        choice: `engine.attention_kernel`.
        dtype: of the weights.
        device_type: `cuda` or `cpu`.
        model: class of the backbone.

    Raises:
        RecipeError: a kernel asked for that cannot run here, or that the model has not.
    """
    import importlib.util

    can_flash = (
        device_type == "cuda"
        and dtype == torch.bfloat16
        and importlib.util.find_spec("flash_attn") is not None
    )
    if choice == "auto":
        wanted = "flash_attention_2" if can_flash else "sdpa"
        kernel = next(
            name for name in (wanted, "sdpa", "eager") if name == "eager" or has_kernel(model, name)
        )
        if kernel != wanted:
            logger.info(
                "engine.attention_kernel = auto: %s has no %s; %s is used",
                model.__name__, wanted, kernel,
            )  # fmt: skip
        return kernel
    if choice == "flash_attention_2" and not can_flash:
        raise RecipeError(
            "recipe: engine.attention_kernel = flash_attention_2; expected a CUDA device, "
            "model.dtype bfloat16 and the package flash-attn. Install the `flash` extra or use "
            "`auto`."
        )
    refuse_kernel(choice, model)
    return choice


def has_kernel(model: type[nn.Module], kernel: str) -> bool:
    """Whether a class of transformers has an attention implementation."""
    flags = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
    return kernel not in flags or bool(getattr(model, flags[kernel], False))


def refuse_kernel(choice: str, model: type[nn.Module]) -> None:
    """Refuse an attention implementation that the model's class does not have.

    Raises:
        RecipeError: naming the class and those that it has.
    """
    if choice == "auto" or has_kernel(model, choice):
        return
    others = [name for name in ("sdpa", "flash_attention_2") if has_kernel(model, name)]
    raise RecipeError(
        f"recipe: engine.attention_kernel = {choice}; expected one that {model.__name__} has: "
        f"{', '.join([*others, 'eager'])}. Set engine.attention_kernel=auto."
    )


def _first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return str(error).strip().split("\n", 1)[0]
