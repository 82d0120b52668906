"""Open, run and cut sessions of the workspace's recipe inside ranks that a test launched."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any


def run_of(folder: Path, name: str, *overrides: str) -> Any:
    """An opened run of `recipe.yaml` in `folder`, with its output in `folder/name`.

    Six steps and a checkpoint after three, unless the overrides say otherwise; `{folder}` in them
    is filled in.
    """
    from trainer.distributed.group import join
    from trainer.preflight.checks import open_data
    from trainer.session.open import open_session
    from trainer.session.train import TrainingRun

    recipe = _load(folder, name, overrides)
    return TrainingRun.of(open_session(recipe, open_data(recipe), join(timeout_minutes=2)))


def go_on(run: Any, folder: Path, name: str, *overrides: str, changes: Sequence[str]) -> Any:
    """The run in `folder/name` as `--resume --change` opens it, with the engine of another run.

    What the engine holds counts no more once the run has a checkpoint to restore.
    """
    from trainer.checkpoint.changes import named_keys
    from trainer.preflight.checks import open_data
    from trainer.preflight.continuation import continued_recipe, continued_run
    from trainer.session.train import TrainingRun

    recipe = _load(folder, name, overrides, changes)
    named = named_keys(changes, recipe)
    recipe = continued_recipe(recipe, named)
    data = open_data(recipe)
    continued_run(recipe, data.sources, named)
    return TrainingRun.of(replace(run.session, recipe=recipe, data=data, named=named))


def _load(folder: Path, name: str, overrides: Sequence[str], changes: Sequence[str] = ()) -> Any:
    from trainer.recipe.adapter_folder import with_adapter
    from trainer.recipe.load import load_recipe

    common = (f"output_dir={folder}/{name}", "eval.sets=[]", "train.max_steps=6",
              "checkpoint.every_steps=3")  # fmt: skip
    filled = [one.format(folder=folder) for one in overrides]
    return with_adapter(load_recipe(folder / "recipe.yaml", [*common, *filled], changes))


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
