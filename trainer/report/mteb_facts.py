"""What a run says of its model to mteb: name, base, licence, training sets; it loads no model."""

import hashlib
from pathlib import Path

from trainer.checkpoint.manifest import digests, files_of
from trainer.evaluation.mteb_tasks import MetaFacts
from trainer.recipe.load import load_recipe
from trainer.report.base_model import CARD, BaseModel, base_of_folder, base_of_recipe
from trainer.run_folder.layout import RunFolder

LOCAL = "local"
"""Organisation of a model that has no name on the hub yet."""
REVISION_CHARS = 40
"""As many as a commit has."""


def facts_of_run(root: Path, *, name: str | None) -> MetaFacts:
    """Facts of the export of a run.

    Args:
        root: output folder of the run.
        name: `organisation/name`; None: that of the recipe, under `local`.

    Raises:
        RecipeError: if its recipe is malformed.
    """
    folder = RunFolder(root)
    recipe = load_recipe(folder.recipe)
    base = base_of_recipe(recipe.model.path, recipe.model.revision)
    matryoshka = recipe.model.matryoshka
    sources = {one.name: one.hub and one.hub.partition(":")[0] for one in recipe.data.sources}
    return MetaFacts(
        name=name or f"{LOCAL}/{recipe.name}",
        revision=revision_of(folder.model),
        adapted_from=base.hub,
        licence=_licence(base),
        sources=sources,
        dims=() if matryoshka is None else matryoshka.dims,
    )


def facts_of_folder(folder: Path, *, name: str | None) -> MetaFacts:
    """Facts of a model whose run is not known.

    Args:
        folder: of sentence-transformers.
        name: `organisation/name`; None: that of the folder, under `local`.
    """
    return MetaFacts(
        name=name or f"{LOCAL}/{folder.resolve().name}",
        revision=revision_of(folder),
        licence=_licence(base_of_folder(folder)),
    )


def revision_of(folder: Path) -> str:
    """A digest of all files of a model but its card, which no vector depends on."""
    names = [name for name in files_of(folder) if name != CARD]
    entries = [f"{name} {entry.sha256}" for name, entry in digests(folder, names).items()]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()[:REVISION_CHARS]


def _licence(base: BaseModel) -> str | None:
    """The name of the base's licence, or its address where the name says nothing."""
    name, link = (base.inherited.get(key) for key in ("license", "license_link"))
    if isinstance(link, str) and "://" in link and name in (None, "other"):
        return link
    return name if isinstance(name, str) else None
