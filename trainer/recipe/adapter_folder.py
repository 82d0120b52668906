"""A peft folder as `model.path`: its base, and what of `model` follows from its config.

It must not read weights.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trainer.errors import RecipeError
from trainer.recipe.model_path import ADAPTER_CONFIG, local_folder
from trainer.recipe.schema import LoraRecipe, Recipe
from trainer.recipe.unused_modules import UNUSED

TOKENS_ALONE = "TRAINABLE_TOKENS"
"""peft's type of an adapter that trains rows of the embedding and nothing else."""
ALIKE = {"r": "rank", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora"}
"""Settings of a folder that training goes on with, and the recipe's keys for them."""
LEFT_OUT = ("lora_bias", "alpha_pattern", "rank_pattern", "target_parameters")
"""Settings by which an adapter has more, or other, weights than a recipe can name."""
BASE_KEPT = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Values of peft's `init_lora_weights` that leave the weights of the base as they are. By any other
the base of the adapter is not the model that the folder names, and the folder does not hold it."""
NO_SUM = ("use_bdlora", "alora_invocation_tokens", "use_qalora", "kasa_config",
          "monteclora_config", "arrow_config", "layer_replication")  # fmt: skip
"""Settings by which a LoRA adapter is no product B A that is added to weights of the base."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """What `adapter_config.json` says."""

    folder: Path
    """Where it lies."""
    base: str
    """The model that the adapter belongs to, as `model.path` would name it."""
    revision: str | None
    """Commit of a base of the hub."""
    settings: Mapping[str, Any]
    """All that peft wrote."""

    @property
    def file(self) -> Path:
        """The config itself."""
        return self.folder / ADAPTER_CONFIG

    @property
    def tokens_key(self) -> str:
        """Name of the setting that holds the ids of trained tokens."""
        alone = self.settings.get("peft_type") == TOKENS_ALONE
        return "token_indices" if alone else "trainable_token_indices"


def find_adapter_folder(path: str) -> AdapterFolder | None:
    """The adapter that a recipe's `model.path` names; None if it names a whole model.

    Args:
        path: as a recipe has it; of the hub nothing is asked.

    Raises:
        RecipeError: a config that is not JSON, or that names no base, or another adapter as one.
    """
    folder = local_folder(path)
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        return None
    file = folder / ADAPTER_CONFIG
    settings = _read(file)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base:
        raise RecipeError(
            f"{file}: base_model_name_or_path = {base!r:.60}; expected the folder or hub id of the "
            "model that the adapter was trained on. Write it there."
        )
    below = local_folder(base)
    if below is not None and (below / ADAPTER_CONFIG).is_file():
        raise RecipeError(
            f"{file}: base_model_name_or_path = {base} (an adapter); expected a whole model. Merge "
            "that adapter into its base with tools/delta_merge.py, and name the result."
        )
    return AdapterFolder(
        folder=folder,
        base=base,
        revision=revision if isinstance(revision, str) else None,
        settings=settings,
    )


def with_adapter(recipe: Recipe) -> Recipe:
    """The recipe with what follows from an adapter as `model.path`; any other as it is.

    Training goes on with the adapter's rank, alpha, kind and modules, and looks for its base at the
    commit that the folder names. A recipe that has this already is given back.

    Args:
        recipe: as loaded.

    Raises:
        RecipeError: `model.adapter` where there is no adapter, an adapter without it, one that is
            no change of its base's weights, or settings of `model.lora` that are not the adapter's.
    """
    model, found = recipe.model, find_adapter_folder(recipe.model.path)
    if found is None:
        if model.adapter is not None:
            raise RecipeError(
                f"recipe: model.adapter = {model.adapter}; expected null, as model.path = "
                f"{model.path} is no folder with {ADAPTER_CONFIG}. Remove it, or name the folder "
                "of an adapter; download one of the hub first."
            )
        return recipe
    way: Literal["continue", "merge"] | None = model.adapter
    if way is None and model.lora is not None:
        way = "continue"
    if way is None:
        raise RecipeError(
            f"recipe: model.adapter = null; expected continue or merge, as model.path = "
            f"{model.path} is an adapter of {found.base}. Set it to continue to train the adapter "
            "on, or to merge to train all weights from their sum."
        )
    reason = why_no_sum(found.settings)
    if reason is not None:
        raise RecipeError(f"{found.file}: {reason}")
    changed = dataclasses.replace(
        model,
        adapter=way,
        lora=_continued(found, model.lora) if way == "continue" else model.lora,
        revision=found.revision if model.revision is None else model.revision,
    )
    return dataclasses.replace(recipe, model=changed)


def _continued(found: AdapterFolder, asked: LoraRecipe | None) -> LoraRecipe:
    """The settings that training goes on with.

    Raises:
        RecipeError: an adapter that a recipe cannot describe, or a recipe that says otherwise.
    """
    _refuse_more(found)
    own = _settings(found)
    if asked is None:
        return own
    for key, name in ALIKE.items():
        wanted, there = getattr(asked, name), getattr(own, name)
        if wanted != there:
            raise RecipeError(
                f"recipe: model.lora.{name} = {_shown(wanted)}; expected {_shown(there)}, as {key} "
                f"of {found.file}. Set it so, leave model.lora out, or set model.adapter to merge "
                "for adapters of their own."
            )
    return asked


def why_no_sum(settings: Mapping[str, Any]) -> str | None:
    """Why a LoRA adapter is not the change B A of the weights that its base has; None if it is.

    Args:
        settings: all that peft wrote.

    Returns:
        The end of a message, from the setting's name on.
    """
    if settings.get("peft_type") != "LORA":
        return None
    start = settings.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in BASE_KEPT:
        return (
            f"init_lora_weights = {start!r:.60}; expected true, false, gaussian, orthogonal, eva "
            "or mica. Others change the base's weights before training, and the folder does not "
            "hold those. Save the adapter with peft's path_initial_model_for_weight_conversion, "
            "or merge it into its base with peft first."
        )
    name = next((name for name in NO_SUM if settings.get(name)), None)
    if name is None:
        return None
    return (
        f"{name} = {settings[name]!r:.60}; expected LoRA or DoRA that changes each weight in one "
        "way for all tokens and layers. Merge the adapter into its base with peft first, if peft "
        "can merge it."
    )


def _refuse_more(found: AdapterFolder) -> None:
    settings = found.settings
    wrong = next((name for name in LEFT_OUT if settings.get(name)), None)
    if settings.get("peft_type") not in ("LORA", TOKENS_ALONE):
        wrong = "peft_type"
    elif settings.get("bias", "none") != "none":
        wrong = "bias"
    elif settings.get("layers_to_transform") not in (None, []):
        wrong = "layers_to_transform"
    elif _leaves_targets_out(settings.get("exclude_modules"), settings.get("target_modules")):
        wrong = "exclude_modules"
    if wrong is not None:
        raise RecipeError(
            f"{found.file}: {wrong} = {settings.get(wrong)!r:.60}; expected LoRA or DoRA of one "
            "rank and alpha on all modules that target_modules names, without other trained "
            "weights, to continue it. Set model.adapter to merge."
        )


def _leaves_targets_out(excluded: Any, targets: Any) -> bool:
    """Whether modules are without an adapter that would get one by peft's targets.

    What no vector passes through gets none in training either, and is no difference.
    """
    if not isinstance(excluded, list):
        return bool(excluded)
    names = [str(name) for name in excluded if not f"{name}.".startswith(UNUSED)]
    if not isinstance(targets, list):
        return bool(names)
    return any(
        f".{name}".endswith(f".{target}") or f".{target}".endswith(f".{name}")
        for name in names
        for target in targets
    )


def _settings(found: AdapterFolder) -> LoraRecipe:
    """An adapter's settings as a recipe has them.

    Raises:
        RecipeError: a setting that is missing or of the wrong type.
    """
    settings, tokens = found.settings, tokens_of(found)
    if settings.get("peft_type") == TOKENS_ALONE:
        return LoraRecipe(targets=(), trainable_tokens=tokens)
    for name in ("r", "lora_alpha"):
        value = settings.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise _malformed(found, name, "a number above 0")
    dropout, targets = settings.get("lora_dropout") or 0.0, settings.get("target_modules")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise _malformed(found, "lora_dropout", "a number of at least 0 and below 1")
    if targets != "all-linear" and not (isinstance(targets, list) and targets):
        raise _malformed(found, "target_modules", "a list of names, or all-linear")
    return LoraRecipe(
        rank=int(settings["r"]),
        alpha=float(settings["lora_alpha"]),
        dropout=float(dropout),
        targets="all-linear" if targets == "all-linear" else _names(found, "target_modules"),
        modules_to_save=_names(found, "modules_to_save"),
        trainable_tokens=tokens,
        rslora=bool(settings.get("use_rslora")),
        dora=bool(settings.get("use_dora")),
    )


def tokens_of(found: AdapterFolder) -> tuple[int, ...]:
    """Ids of the trained tokens of an adapter, in the order of its rows; empty where it has none.

    Args:
        found: whose settings name them, of one table of embeddings.

    Raises:
        RecipeError: something else than ids, each once.
    """
    ids = found.settings.get(found.tokens_key) or []
    if isinstance(ids, dict) and len(ids) == 1:
        (ids,) = ids.values()
    is_whole = isinstance(ids, list) and all(type(one) is int and one >= 0 for one in ids)
    if not is_whole or len(set(ids)) < len(ids):
        raise _malformed(found, found.tokens_key, "ids of one table of embeddings, each once")
    return tuple(ids)


def _names(found: AdapterFolder, name: str) -> tuple[str, ...]:
    """A list of modules; null is an empty one."""
    names = found.settings.get(name) or []
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise _malformed(found, name, "a list of names")
    return tuple(sorted(names))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{file}: content = not JSON ({error}); expected peft's config of an adapter. Copy the "
            "adapter again."
        ) from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"{file}: content = {content!r:.60}; expected peft's config of an adapter. Copy the "
            "adapter again."
        )
    return content


def _malformed(found: AdapterFolder, name: str, expected: str) -> RecipeError:
    return RecipeError(
        f"{found.file}: {name} = {found.settings.get(name)!r:.60}; expected {expected}, to "
        "continue the adapter. Correct the file, or set model.adapter to merge."
    )


def _shown(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
