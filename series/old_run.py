"""The finished run that an update begins with; it must not change anything in its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import RecipeError
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import Recipe
from trainer.run_folder.finished import read_finished
from trainer.run_folder.layout import RunFolder


@dataclass(frozen=True, kw_only=True)
class OldRun:
    """A finished run."""

    folder: Path
    """Its output folder, absolute."""
    recipe: Recipe
    """What it was trained by."""
    steps: int
    """How many it took."""
    sha256: str
    """Of the files of its model, as its marker has it."""

    @property
    def model(self) -> Path:
        """What it exported."""
        return RunFolder(self.folder).model

    @property
    def file(self) -> Path:
        """Where its recipe stands, for messages."""
        return RunFolder(self.folder).recipe


def read_old_run(folder: Path) -> OldRun:
    """A finished run from its folder.

    Raises:
        RecipeError: if there is no folder, no finished run in it, no model, or the recipe is wrong.
    """
    run = RunFolder(folder.expanduser().absolute())
    if not run.root.is_dir():
        found = "is a file" if run.root.exists() else "missing"
        raise _not_a_run(f"--run = {folder} ({found})", "Check the path.")
    marker = _marker(run)
    if marker is None:
        advice = "Let the run end, or continue it with --resume; a merge or a model is no run."
        raise _not_a_run(f"{run.finished}: file = missing", advice)
    if not (run.model / "modules.json").is_file():
        advice = "Export the model again: continue the run with --resume."
        raise _not_a_run(f"{run.model / 'modules.json'}: file = missing", advice)
    return OldRun(
        folder=run.root,
        recipe=load_recipe(run.recipe),
        steps=marker["step"],
        sha256=marker["export"]["sha256"],
    )


def _marker(run: RunFolder) -> dict[str, Any] | None:
    """What the run wrote when it ended; None where it has not."""
    try:
        content = read_finished(run.root)
        if content is not None:
            # a marker of something else has not even these
            return {"step": int(content["step"]), "export": {**content["export"]}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_a_run(
            f"{run.finished}: content = unreadable ({error!r:.80})", "Check the path."
        ) from error
    return None


def _not_a_run(what: str, advice: str) -> RecipeError:
    return RecipeError(f"{what}; expected the output folder of a finished run. {advice}")
