"""Load a transformers backbone, whole or sharded from the start; it must not know the engine.

Under ZeRO-3 the weights are read while `HfDeepSpeedConfig` is alive, so that transformers builds
each module inside `deepspeed.zero.Init` and no rank ever holds the whole model.
"""

import contextlib
from collections.abc import Iterator
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from trainer.errors import RecipeError
from trainer.model.dropout_names import override_dropouts
from trainer.recipe.schema import ModelRecipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_config(recipe: ModelRecipe, path: str) -> PretrainedConfig:
    """Read the model's config and apply what the recipe changes in it.

    Args:
        recipe: `dropout` overrides every dropout probability; `attention` opens a decoder's mask.
        path: resolved folder or hub id.

    Raises:
        RecipeError: no readable config at `path`, or `attention: causal` for an encoder, or a
            `dropout` for a backbone whose config has none.
    """
    try:
        config = AutoConfig.from_pretrained(path, **_pinned(recipe))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"recipe: model.path = {recipe.path}; expected a model folder or hub id with a "
            f"config.json that transformers knows. {_first_line(error)}"
        ) from error
    if recipe.dropout is not None:
        override_dropouts(config, recipe.dropout)
    config.use_cache = False
    if recipe.attention == "bidirectional":
        config.is_causal = False
    return config


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
    with sharded_loading(zero3_config):
        try:
            backbone = AutoModel.from_pretrained(
                path,
                config=config,
                dtype=DTYPES[recipe.dtype],
                attn_implementation=kernel,
                **_pinned(recipe),
            )
        except (OSError, ValueError, UnpicklingError, SafetensorError) as error:
            raise RecipeError(
                f"recipe: model.path = {recipe.path}; expected weights that transformers can load. "
                f"{_first_line(error)}"
            ) from error
    _open_attention(backbone, recipe)
    _freeze_unused(backbone)
    if recipe.gradient_checkpointing:
        backbone.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": True}
        )
    return backbone.train()


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


def attention_kernel(choice: str, *, dtype: torch.dtype, device_type: str) -> str:
    """Transformers' name for the fastest attention implementation that is installed.

    Raises:
        RecipeError: flash attention asked for where it cannot run.
    """
    import importlib.util

    can_flash = (
        device_type == "cuda"
        and dtype == torch.bfloat16
        and importlib.util.find_spec("flash_attn") is not None
    )
    if choice == "auto":
        return "flash_attention_2" if can_flash else "sdpa"
    if choice == "flash_attention_2" and not can_flash:
        raise RecipeError(
            "recipe: engine.attention_kernel = flash_attention_2; expected a CUDA device, "
            "model.dtype bfloat16 and the package flash-attn. Install the `flash` extra or use "
            "`auto`."
        )
    return choice


def _first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return str(error).strip().split("\n", 1)[0]
