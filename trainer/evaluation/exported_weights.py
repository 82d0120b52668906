"""Are the weights of a model that sentence-transformers loaded those of its files?

transformers initialises at random what it does not find and goes on, and sentence-transformers says
nothing of it. Only modules that are transformers models are looked at. It must not read weights,
but for those of adapters.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedModel

from trainer.errors import RecipeError
from trainer.model.kinds import META
from trainer.model.weights import (
    ADAPTER,
    missing_tensors,
    model_file,
    part_mapping,
    read_headers,
    refuse_unloaded,
    try_loading,
    weights_in,
)
from trainer.recipe.schema import ModelRecipe

MODULES = "modules.json"
"""Names and folders of a model's modules."""
ROUTES = ("router_config.json", "config.json")
"""Where a router keeps names of its modules, in sentence-transformers' order."""
CONFIG = "config.json"
AGAIN = "loaded_again"
"""Name under which an adapter is loaded a second time, as only then its tensors are reported."""
REPORTED = ("LORA", "IA3", "TRAINABLE_TOKENS")
"""peft's types of adapters that share no tensors among adapters of a model."""


def refuse_random(model: nn.Module, path: str, *, option: str = "--model") -> None:
    """Refuse a model some of whose weights, or of its adapter's, are in no file and so random.

    Quantised weights and adapters of kinds other than `REPORTED` are not looked at.

    Args:
        model: loaded from `path` by sentence-transformers; as before when this returns.
        path: of its folder, or its hub id, whose files were fetched.
        option: which the user gave it with.

    Raises:
        RecipeError: naming how many tensors are missing, the first, and the likely prefix.
    """
    root = _local_root(path)
    if root is None:
        return
    for folder, backbone in _backbones(model, root):
        adapter = getattr(backbone, "peft_config", {})
        base: Path | None = folder
        if adapter and not (folder / CONFIG).is_file():
            base = _local_root(next(iter(adapter.values())).base_model_name_or_path)
        if base is not None and getattr(backbone.config, "quantization_config", None) is None:
            _check_weights(backbone, base, option)
        if adapter and next(iter(adapter.values())).peft_type in REPORTED:
            _check_adapter(backbone, folder, option)


def _local_root(path: str) -> Path | None:
    """The folder of a model on this machine, a hub model's in the cache."""
    if Path(path).is_dir():
        return Path(path)
    for name in (MODULES, CONFIG, ADAPTER):
        found = model_file(path, name, ModelRecipe(path=path), download=False)
        if found is not None:
            return found.parent
    return None


def _backbones(model: nn.Module, root: Path) -> Iterator[tuple[Path, Any]]:
    """The transformers models among a model's modules, with their folders."""
    file = root / MODULES
    listed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    places = {str(one["name"]): root / one["path"] for one in listed}
    for name, module in model.named_children():
        yield from _backbones_of(module, places.get(name, root))


def _backbones_of(module: nn.Module, folder: Path) -> Iterator[tuple[Path, Any]]:
    """Likewise of one module, which may be a router with modules of its own."""
    backbone, routes = getattr(module, "auto_model", None), getattr(module, "sub_modules", None)
    if isinstance(backbone, PreTrainedModel):
        yield folder, backbone
    elif isinstance(routes, nn.ModuleDict):
        file = next(folder / name for name in ROUTES if (folder / name).is_file())
        structure = json.loads(file.read_text(encoding="utf-8"))["structure"]
        for route, names in structure.items():
            for name, inner in zip(names, routes[route].children(), strict=True):
                yield from _backbones_of(inner, folder / name)


def _check_weights(backbone: Any, folder: Path, option: str) -> None:
    """Refuse files that lack tensors of a transformers model, by their headers."""
    recipe = ModelRecipe(path=str(folder))
    files = weights_in(recipe.path, recipe, backbone.config, download=False)
    if files is None:
        return
    tensors = read_headers(files, recipe)
    with META:
        skeleton = type(backbone)._from_config(backbone.config)
    is_part = type(AutoConfig.from_pretrained(folder)) is not type(backbone.config)
    mapping = part_mapping(skeleton, tensors) if is_part else None
    loaded = try_loading(skeleton, tensors, key_mapping=mapping)
    refuse_unloaded(loaded, tensors, skeleton, f"{option}: {folder} = other weights")


def _check_adapter(backbone: Any, folder: Path, option: str) -> None:
    """Refuse an adapter's file that lacks tensors of its modules, as transformers reports them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are two adapters, and then one
        info = backbone.load_adapter(str(folder), adapter_name=AGAIN)
        own = f".{AGAIN}"
        expected = [name.replace(own, "") for name in backbone.state_dict() if own in name]
        backbone.delete_adapter(AGAIN)
    lost = {name.replace(own, "") for name in info.missing_keys if own in name}
    unknown = sorted(name.replace(own, "") for name in info.unexpected_keys)
    if lost:
        missing = [name for name in expected if name in lost]
        raise RecipeError(
            f"{option}: {folder} = an adapter that lacks weights; expected those of all modules "
            f"that it names: {missing_tensors(missing, len(expected), unknown)}"
        )
