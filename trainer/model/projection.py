"""Trained dense layers behind the pooling; it must not know texts or tokens.

The one between pooling and unit norm is part of the model, and its two tensors are called as in
sentence-transformers' `Dense`: `linear.weight`, `linear.bias`. The one behind unit norm is for
training alone.
Letters: B texts, H hidden size, D size of a vector, S size of a teacher's vector.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from trainer.errors import RecipeError
from trainer.model.weights import UNREADABLE, model_file
from trainer.recipe.adapter_folder import find_adapter_folder
from trainer.recipe.schema import ModelRecipe, ProjectionRecipe

logger = logging.getLogger(__name__)

ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "tanh": nn.Tanh}
"""By the recipe's word."""
MODULES = "modules.json"
WEIGHTS = "model.safetensors"
DENSE = "Dense"
"""End of the type of a dense layer, under the names of all releases."""


class WideLinear(nn.Linear):
    """A linear layer that computes in float32, whatever the dtype of its weights."""

    def forward(self, vector_BH: Tensor) -> Tensor:
        """Vectors [B, D], float32, from [B, H]."""
        bias = None if self.bias is None else self.bias.float()
        return functional.linear(vector_BH.float(), self.weight.float(), bias)


class Projection(nn.Module):
    """Pooled states to vectors: activation(W x + b), float32."""

    def __init__(self, recipe: ProjectionRecipe, *, hidden_size: int, dtype: torch.dtype) -> None:
        """Make the layer; its weights start as torch's `Linear` draws them.

        Args:
            recipe: size, bias and activation.
            hidden_size: H.
            dtype: of the weights.
        """
        super().__init__()
        self.size = recipe.size
        self.linear = WideLinear(hidden_size, recipe.size, bias=recipe.bias, dtype=dtype)
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, vector_BH: Tensor) -> Tensor:
        """Vectors [B, D], float32, from [B, H]; their norms are any."""
        projected: Tensor = self.activation(self.linear(vector_BH))
        return projected


def dense_config(recipe: ProjectionRecipe, hidden_size: int) -> dict[str, Any]:
    """What sentence-transformers' `Dense` reads of a layer from its config.json."""
    kind = ACTIVATIONS[recipe.activation]
    return {
        "in_features": hidden_size,
        "out_features": recipe.size,
        "bias": recipe.bias,
        "activation_function": f"{kind.__module__}.{kind.__name__}",
    }


def recipe_of_dense(config: Mapping[str, Any]) -> ProjectionRecipe | None:
    """The recipe of a layer whose config.json this is; None for one that is not trained here."""
    named = str(config.get("activation_function", "")).rpartition(".")[2]
    words = {kind.__name__: word for word, kind in ACTIVATIONS.items()}
    size, bias = config.get("out_features"), config.get("bias")
    if config.get("use_residual") or named not in words or type(size) is not int:
        return None
    activation: Any = words[named]
    return ProjectionRecipe(size=size, bias=bias is not False, activation=activation)


def make_projection(recipe: ModelRecipe, path: str, *, hidden_size: int) -> Projection | None:
    """The layer of a recipe, on the CPU, equal on all ranks if torch's generator is.

    Where the base itself has one such layer behind its pooling, training goes on from its weights.

    Args:
        recipe: the model section.
        path: resolved folder or hub id of the base.
        hidden_size: H.

    Raises:
        RecipeError: as `check_projection`, or weights that cannot be read.
    """
    if recipe.projection is None:
        return None
    found = base_projection(recipe, path, download=True)
    projection = Projection(recipe.projection, hidden_size=hidden_size, dtype=_dtype_of(recipe))
    if found is None:
        return projection
    config, weights = found
    _check_same(recipe, config, weights, hidden_size)
    try:
        projection.load_state_dict(load_file(weights))
    except UNREADABLE as error:
        raise _unreadable(recipe, weights, error) from error
    logger.info("model.projection: starts from %s", weights)
    return projection


def _dtype_of(recipe: ModelRecipe) -> torch.dtype:
    """Dtype of a trained dense layer: that of what is trained with it.

    Adapters have float32 weights whatever the backbone's dtype, unless modules are trained whole
    beside them.
    """
    has_wide_adapters = recipe.lora is not None and not recipe.lora.modules_to_save
    is_wide = recipe.dtype == "float32" or has_wide_adapters
    return torch.float32 if is_wide else torch.bfloat16


def make_teacher_layer(recipe: ModelRecipe, *, vector_size: int, teacher_size: int) -> WideLinear:
    """The layer from the model's vectors to a teacher's size, as torch's `Linear` starts.

    It has no bias, is on the CPU, and is equal on all ranks if torch's generator is.

    Args:
        recipe: the model section.
        vector_size: D, with `model.projection` its size.
        teacher_size: S.

    Reference: the fully connected layers of Zhang et al. 2024 (Jasper and Stella),
        arXiv:2412.19048, which bring the student's vector to the size of each teacher's.
        Difference: the layer is no part of the model that is served.
    """
    return WideLinear(vector_size, teacher_size, bias=False, dtype=_dtype_of(recipe))


def place_of_modules(recipe: ModelRecipe, path: str) -> str:
    """Where the modules behind the backbone are described: beside an adapter that is trained on.

    Args:
        recipe: the model section.
        path: resolved folder or hub id of the base.
    """
    found = find_adapter_folder(recipe.path) if recipe.adapter == "continue" else None
    has_own = found is not None and (found.folder / MODULES).is_file()
    return str(found.folder) if found is not None and has_own else path


def check_projection(recipe: ModelRecipe, path: str, *, hidden_size: int, download: bool) -> None:
    """Refuse a recipe whose layer is not the one that the base has, before a weight is read.

    Args:
        recipe: the model section.
        path: resolved folder or hub id of the base.
        hidden_size: H.
        download: whether files of a hub model may be fetched; what is not there is not checked.

    Raises:
        RecipeError: the base's layer has another size, bias or activation, or cannot be read.
    """
    places = _dense_places(recipe, path, download=download)
    found = base_projection(recipe, path, download=download)
    if found is not None and recipe.projection is not None:
        _check_same(recipe, *found, hidden_size)
    elif places:
        advice = "model.projection starts anew"
        if recipe.projection is None:
            advice = "set model.projection to train one"
        logger.warning(
            "model.path = %s: dense layers behind the pooling (%s) are left out; %s",
            recipe.path, ", ".join(places), advice,
        )  # fmt: skip


def base_projection(
    recipe: ModelRecipe, path: str, *, download: bool
) -> tuple[Mapping[str, Any], Path] | None:
    """Config and weights of the one dense layer of a base; None where there is none or several.

    Args:
        recipe: its revision, and its path for messages.
        path: resolved folder or hub id of the base.
        download: whether files of a hub model may be fetched.

    Raises:
        RecipeError: files of it that cannot be read, or lie outside of the base.
    """
    places = _dense_places(recipe, path, download=download)
    if len(places) != 1:
        return None
    config, weights = (
        model_file(path, f"{places[0]}/{name}", recipe, download=download)
        for name in ("config.json", WEIGHTS)
    )
    if config is None or weights is None:
        return None
    content = _read(recipe, config)
    if not isinstance(content, dict):
        raise _unreadable(recipe, config, ValueError("no object"))
    return content, weights


def _dense_places(recipe: ModelRecipe, path: str, *, download: bool) -> list[str]:
    """Folders of the dense layers that a base names, relative to it."""
    listed = model_file(path, MODULES, recipe, download=download)
    if listed is None:
        return []
    try:
        modules = _read(recipe, listed)
        places = [
            str(one["path"]) for one in modules if str(one.get("type")).rpartition(".")[2] == DENSE
        ]
    except (TypeError, AttributeError, LookupError) as error:
        raise _unreadable(recipe, listed, error) from error
    for place in map(Path, places):
        if place.is_absolute() or ".." in place.parts:
            raise _unreadable(recipe, listed, ValueError(f"{place} lies outside"))
    return places


def _read(recipe: ModelRecipe, file: Path) -> Any:
    """Content of a JSON file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise _unreadable(recipe, file, error) from error


def _check_same(
    recipe: ModelRecipe, config: Mapping[str, Any], weights: Path, hidden_size: int
) -> None:
    """Raises where the base's layer is not the recipe's."""
    wanted = recipe.projection
    assert wanted is not None
    if recipe_of_dense(config) != wanted or config.get("in_features") != hidden_size:
        raise RecipeError(
            f"recipe: model.projection = size {wanted.size}, bias {str(wanted.bias).lower()}, "
            f"activation {wanted.activation}; expected that of {weights.parent}, from which "
            f"training goes on: size {config.get('out_features')}, bias "
            f"{str(config.get('bias')).lower()}, activation {config.get('activation_function')}. "
            "Set it so, or take that module out of the base's modules.json to start anew."
        )


def _unreadable(recipe: ModelRecipe, file: Path, error: Exception) -> RecipeError:
    return RecipeError(
        f"recipe: model.path = {recipe.path}: {file} = not readable ({error!s:.120}); expected "
        "the modules of a sentence-transformers model. Copy the base again."
    )
