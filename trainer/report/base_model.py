"""The pre-trained model behind an export: its name on the hub, its licence and languages.

It must not load the model.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import RecipeError
from trainer.recipe.adapter_folder import find_adapter_folder
from trainer.recipe.model_path import PACKAGE, hub_id, is_gguf, resolve_model_path
from trainer.unpack.cached import unpacked_before

logger = logging.getLogger(__name__)

CARD = "README.md"
MAX_CARD_BYTES = 1 << 20
"""A longer card is not read."""
INHERITED = ("license", "license_name", "license_link", "language")
"""Keys of a card that hold for what is made of a model."""
_FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_CACHED = re.compile(r"models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")
"""A folder in which the hub client keeps a model."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """What a card says of the base."""

    name: str
    """For people: a hub id, or the last part of a path."""
    hub: str | None
    """Hub id; None for a folder of this machine or of a package."""
    revision: str | None = None
    """Commit, where it is known."""
    inherited: Mapping[str, Any] = field(default_factory=dict)
    """What its own card says under `INHERITED`."""


def base_of_recipe(path: str, revision: str | None) -> BaseModel:
    """The base that a recipe names, or that the adapter which it names belongs to.

    Args:
        path: `model.path`.
        revision: `model.revision`.
    """
    try:
        adapter = find_adapter_folder(path)
    except RecipeError:
        adapter = None
    if adapter is not None:
        return base_of_recipe(adapter.base, revision)
    hub = hub_id(path)
    if hub is not None:
        inherited = front_matter_of(_card_of_hub(hub, revision))
        return BaseModel(name=hub, hub=hub, revision=revision, inherited=inherited)
    try:
        base = _base_of_path(path)
    except RecipeError:
        return BaseModel(name=Path(path).name, hub=None)
    if path.startswith(PACKAGE):
        # all of the path is of use to others
        return replace(base, name=path)
    return replace(base, name=Path(path).name) if is_gguf(path) else base


def _base_of_path(path: str) -> BaseModel:
    """The base in a folder, package or GGUF file; of a file, what its unpacked folder says."""
    if not is_gguf(path):
        return base_of_folder(Path(resolve_model_path(path)))
    folder = unpacked_before(path)
    return BaseModel(name=Path(path).name, hub=None) if folder is None else base_of_folder(folder)


def base_of_folder(folder: Path) -> BaseModel:
    """The base in a folder, which may be the hub client's own."""
    inherited = front_matter_of(folder / CARD)
    cached = _CACHED.search(folder.as_posix())
    if cached is not None:
        hub = f"{cached[1]}/{cached[2]}"
        return BaseModel(name=hub, hub=hub, revision=cached[3], inherited=inherited)
    return BaseModel(name=folder.resolve().name, hub=None, inherited=inherited)


def _card_of_hub(hub: str, revision: str | None) -> Path | None:
    """The card of a hub model, from the cache or the network; None where neither has it."""
    # Heavy: a page on a run needs no hub client.
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub, CARD, revision=revision, etag_timeout=5))
    except Exception as error:  # noqa: BLE001 - the licence is then left out, whatever the reason
        logger.info("%s: no card to take the licence from (%s)", hub, type(error).__name__)
        return None


def front_matter_of(card: Path | None) -> dict[str, Any]:
    """What a card says under `INHERITED`; empty where there is no card or it says nothing.

    Values that are neither texts nor lists of texts are left out.
    """
    if card is None or not card.is_file() or card.stat().st_size > MAX_CARD_BYTES:
        return {}
    found = _FRONT_MATTER.match(card.read_text(encoding="utf-8-sig", errors="replace"))
    try:
        # texts alone: Norwegian, written `no`, would become false
        content = yaml.load(found[1], Loader=yaml.BaseLoader) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: content[key] for key in INHERITED if _is_text(content.get(key))}


def _is_text(value: object) -> bool:
    """Whether a value is a text, or a list of texts that is not empty."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, str) for one in value)
    return isinstance(value, str)
