"""Held-out sets as checked, random-access rows: of a file, a folder, or a set of the hub."""

from collections.abc import Sequence
from pathlib import Path

from trainer.data.formats import header_of
from trainer.data.layouts import SetFolder
from trainer.data.set_folder import hub_folder, local_folder
from trainer.data.table_source import TableSource, make_table_source
from trainer.data.tables import open_table, table_of
from trainer.errors import DataError
from trainer.recipe.eval_kinds import EVAL_KINDS
from trainer.recipe.schema import DataRecipe, EvalSetRecipe


def owner_of(recipe: EvalSetRecipe) -> str:
    """Recipe key of a held-out set, for messages."""
    return f"eval.sets.{recipe.name}"


def origin_of(recipe: EvalSetRecipe) -> str:
    """Where the recipe says that a held-out set lies, for messages."""
    return f"path = {recipe.path}" if recipe.hub is None else f"hub = {recipe.hub}"


def split_of(recipe: EvalSetRecipe) -> str:
    """The split of a held-out set that is scored."""
    return EVAL_KINDS[recipe.task].split if recipe.split is None else recipe.split


def folder_of(recipe: EvalSetRecipe, data: DataRecipe) -> SetFolder | None:
    """The folder of a held-out set; None where its path is none.

    Raises:
        DataError: if a set of the hub is not there.
    """
    if recipe.hub is not None:
        return hub_folder(recipe.hub, owner=owner_of(recipe))
    root = Path(data.root).expanduser()
    path = (root / Path(recipe.path or "").expanduser()).absolute()
    return local_folder(path) if path.is_dir() else None


def open_table_source(recipe: EvalSetRecipe, data: DataRecipe) -> TableSource:
    """The rows of a held-out set that are one table, every row checked.

    Raises:
        DataError: if a file is missing or empty, a row is malformed, or the set has no such split;
            names file and line.
    """
    folder = folder_of(recipe, data)
    files = [] if folder is None else folder.rows(split_of(recipe))
    if files:
        return open_file_source(recipe, files, data)
    owner = owner_of(recipe)
    if recipe.path is None:
        raise DataError(
            f"{owner}: hub = {recipe.hub}; expected a set with files of rows. Correct hub, or name "
            "a configuration of it as ID:CONFIGURATION."
        )
    header = header_of(recipe, owner=owner)
    table = open_table(recipe.path, data.root, owner=owner, header=header)
    return make_table_source(recipe, table, owner=owner, skip=data.on_bad_row == "skip")


def open_file_source(recipe: EvalSetRecipe, files: Sequence[Path], data: DataRecipe) -> TableSource:
    """The rows of some files of a held-out set, every row checked.

    Raises:
        DataError: if a file is unreadable or empty, or a row is malformed; names file and line.
    """
    owner = owner_of(recipe)
    table = table_of(files, header_of(recipe, owner=owner))
    return make_table_source(recipe, table, owner=owner, skip=data.on_bad_row == "skip")
