"""Open, run and cut sessions of the workspace's recipe inside ranks that a test launched."""

import shutil
from pathlib import Path
from typing import Any


def run_of(folder: Path, name: str, *overrides: str) -> Any:
    """An opened run of `recipe.yaml` in `folder`, with its output in `folder/name`.

    Six steps and a checkpoint after three, unless the overrides say otherwise; `{folder}` in them
    is filled in.
    """
    from trainer.distributed.group import join
    from trainer.preflight.checks import open_data
    from trainer.recipe.adapter_folder import with_adapter
    from trainer.recipe.load import load_recipe
    from trainer.session.open import open_session
    from trainer.session.train import TrainingRun

    common = (f"output_dir={folder}/{name}", "eval.sets=[]", "train.max_steps=6",
              "checkpoint.every_steps=3")  # fmt: skip
    changes = [change.format(folder=folder) for change in overrides]
    recipe = with_adapter(load_recipe(folder / "recipe.yaml", [*common, *changes]))
    return TrainingRun.of(open_session(recipe, open_data(recipe), join(timeout_minutes=2)))


def run_session(run: Any, *, resume: bool) -> None:
    """Train to the end and export, as a run does."""
    from trainer.engine.loop import Interrupt

    run.fit(run.prepare(resume=resume), Interrupt())
    run.artifacts.export()


def cut(source: Path, target: Path, *, after: int) -> None:
    """A copy of a finished run as it was after a step that has a checkpoint."""
    shutil.copytree(source, target)
    shutil.rmtree(target / "model", ignore_errors=True)
    for folder in (target / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > after:
            shutil.rmtree(folder)
