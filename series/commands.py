"""Trainings and merges as commands: what is finished is kept, and what was interrupted goes on.

It must not train, merge or import torch itself.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tools import delta_merge
from tools.evaluate import checked_sets
from trainer.errors import RecipeError, StepError
from trainer.recipe.adapter_folder import find_adapter_folder
from trainer.recipe.model_path import hub_id
from trainer.recipe.schema import ModelRecipe
from trainer.run_folder.finished import read_finished
from trainer.run_folder.layout import TRACES, RunFolder

ROOT = Path(__file__).resolve().parents[1]
MERGED = "merged"
"""Folder of the merge, beside those of the runs."""


def script(name: str) -> str:
    """A script of the project as a command names it from here."""
    return name if Path.cwd() == ROOT else str(ROOT / name)


def check_launcher(launcher: str) -> None:
    """Look for the command that starts a training.

    Raises:
        RecipeError: if there is none, or its words cannot be told apart.
    """
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise _no_launcher(launcher, str(error)) from error
    if not words or (words[0] != "python" and shutil.which(words[0], path=_path()) is None):
        raise _no_launcher(launcher, "there is none")


def _no_launcher(launcher: str, why: str) -> RecipeError:
    return RecipeError(f"--launcher = {launcher}; expected a command ({why}). Correct it.")


def _path() -> str:
    """Where commands are looked for: those that were installed beside this Python come first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def train_command(
    recipe: Path, overrides: Sequence[str], folder: Path, *, launcher: str
) -> list[str]:
    """How a run is started; one that began goes on.

    Args:
        recipe: its file.
        overrides: `key.path=value`.
        folder: of the run, which the recipe or an override names as `output_dir`.
        launcher: command before `trainer/run.py`.
    """
    began = any((folder / name).exists() for name in TRACES)
    resume = ["--resume"] if began else []
    named = ["--recipe", str(recipe.absolute())]
    return [*shlex.split(launcher), script("trainer/run.py"), *named, *overrides, *resume]


def train(command: Sequence[str], folder: Path) -> None:
    """Train a run to its end, unless it is finished.

    Args:
        command: from `train_command`.
        folder: of the run.

    Raises:
        RecipeError: if there is no such launcher.
        StepError: if the launcher ended well and the run did not.
    """
    if read_finished(folder) is not None:
        print(f"{folder} holds a finished run, which is kept")
        return
    start(command)
    if read_finished(folder) is None:
        raise StepError(
            f"{RunFolder(folder).finished}: file = missing; expected a finished run, as the "
            "launcher reported success. Read its messages above, and give the same command again."
        )


def base_of(model: ModelRecipe) -> str:
    """What `--base` of a merge says: the pre-trained model that a run of this model began with.

    Raises:
        RecipeError: if an adapter names no base.
        CheckpointError: if a model of the hub has no weights that can be merged.
    """
    adapter = find_adapter_folder(model.path)
    path = model.path if adapter is None else adapter.base
    if hub_id(path) is None:
        return path
    # heavy; merging reads files, so the hub's cache says where they lie
    from trainer.checkpoint.base_identity import base_files

    revision = model.revision if adapter is None else adapter.revision
    return str(base_files(path, revision)[0].parent)


def merge_command(
    base: str, checkpoints: Sequence[Path], output: Path, chosen: Sequence[str]
) -> list[str]:
    """How models are merged; a merge that began goes on.

    Args:
        base: from `base_of`.
        checkpoints: models, best first where their files beside the weights differ.
        output: folder to make.
        chosen: options that say how, such as `--method uniform` or `--search SETS`.
    """
    began = _search_folder(output).exists() or any(output.parent.glob(f"{output.name}.partial-*"))
    resume = ["--resume"] if began else []
    inputs = ["--base", base, "--checkpoints", *map(str, checkpoints), "--output", str(output)]
    return ["python", script("tools/delta_merge.py"), *inputs, *resume, *chosen]


def check_merge(command: Sequence[str], held_out: Sequence[str]) -> None:
    """Refuse before hours of training what a merge would refuse after them.

    Args:
        command: from `merge_command`; a mistake in it ends the process with code 2.
        held_out: sets of `--search`, every row of which is checked.

    Raises:
        DataError: if a set or a row of it is wrong.
    """
    delta_merge.build_parser().parse_args(command[2:])
    checked_sets(held_out, split=None)


def merge(command: Sequence[str], output: Path) -> None:
    """Merge, unless the result is there.

    Args:
        command: from `merge_command`.
        output: its folder.
    """
    if not output.is_dir():
        start(command)
    # a search that was killed when its result had its name
    shutil.rmtree(_search_folder(output), ignore_errors=True)


def _search_folder(output: Path) -> Path:
    """Where a search for a merge keeps what it tried."""
    return output.with_name(f".search-{output.name}")


def chosen_by(search: Sequence[str] | None, otherwise: Sequence[str]) -> list[str]:
    """Options of a merge that held-out sets choose, or else those given.

    Args:
        search: `PATH` or `PATH:KIND` of held-out sets; None: none choose.
        otherwise: such as `--method uniform`.
    """
    return list(otherwise) if not search else ["--search", *map(_absolute, search)]


def _absolute(held_out: str) -> str:
    """A set's path from the root, where it is one of this machine."""
    path, colon, kind = held_out.rpartition(":")
    if colon and Path(path).exists():
        return f"{Path(path).absolute()}:{kind}"
    return str(Path(held_out).absolute()) if Path(held_out).exists() else held_out


def start(command: Sequence[str]) -> None:
    """Run a command, shown first; one that fails ends this one with its code.

    Raises:
        RecipeError: if it cannot be started.
    """
    print(f"\n$ {shlex.join(command)}", flush=True)
    program = sys.executable if command[0] == "python" else command[0]
    try:
        process = subprocess.Popen([program, *command[1:]], env=os.environ | {"PATH": _path()})
    except OSError as error:
        raise _no_launcher(command[0], error.strerror or str(error)) from error
    signals = _Signals(process)
    with signals.handed_on():
        code = process.wait()
    if signals.first is not None:
        # launchers do not always say it
        code = 128 + signals.first
    if code:
        # a negative one is the signal that ended it, which shells show as 128 and more
        sys.exit(code if code > 0 else 128 - code)


@dataclass
class _Signals:
    """Hands SIGINT and SIGTERM on to a command, so that it saves, and lets this process wait."""

    process: subprocess.Popen[bytes]
    """The command."""
    first: int | None = None
    """The first signal; None before one."""

    @contextmanager
    def handed_on(self) -> Iterator[None]:
        """Do so during the block."""
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self._hand_on) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.first = number if self.first is None else self.first
        self.process.send_signal(number)
