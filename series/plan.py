"""What the work in an output folder is, so that no other one goes on there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.checkpoint.changes import HARMLESS
from trainer.checkpoint.differences import by_name, differences
from trainer.checkpoint.json_files import PARTIAL, read_object, write_json
from trainer.errors import RecipeError
from trainer.recipe.document import shorten
from trainer.recipe.load import plain_recipe
from trainer.recipe.schema import Recipe

PLAN = "plan.json"
"""In the output folder."""


def plan_of_work(recipe: Recipe, **more: Any) -> dict[str, Any]:
    """What a work is, in plain values.

    Args:
        recipe: what is trained.
        more: what else decides its end.
    """
    return {**more, "recipe": by_name(plain_recipe(recipe))}


def check_plan(folder: Path, now: Mapping[str, Any]) -> None:
    """Refuse a folder in which another work began. Keys that do not shape the steps may differ.

    Args:
        folder: output folder, there or not.
        now: from `plan_of_work`.

    Raises:
        RecipeError: naming the first difference.
        CheckpointError: if what the folder says of its work is damaged.
    """
    file = folder / PLAN
    if not file.is_file():
        return
    for key, was, value in differences("", read_object(file), now):
        if not HARMLESS.fullmatch(key.removeprefix("recipe.")):
            raise RecipeError(
                f"{file}: {key} = {shorten(was)}; expected {shorten(value)}, as this command says. "
                "The folder holds other work: give what it was given, or another --output."
            )


def check_unused(folder: Path) -> None:
    """Refuse a folder that holds something and no plan: what is there would count as done.

    Raises:
        RecipeError: naming a file or folder in it.
    """
    if (folder / PLAN).is_file() or not folder.is_dir():
        return
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith(PARTIAL))
    if found:
        raise RecipeError(
            f"--output = {folder} (holds {found[0]}); expected a new or empty folder, or one in "
            "which this command began. Give another."
        )


def write_plan(folder: Path, now: Mapping[str, Any]) -> None:
    """Note what the work in a folder is; the folder is made.

    Raises:
        RecipeError: if it cannot be written.
    """
    with writing_into(folder):
        write_json(folder / PLAN, now)


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Report what the disk refuses during the block.

    Raises:
        RecipeError: naming the file and the reason.
    """
    try:
        yield
    except OSError as error:
        raise RecipeError(
            f"--output = {folder} ({error.filename}: {error.strerror}); expected a folder to write "
            "to. Give another, or make room; what is done is kept."
        ) from error
