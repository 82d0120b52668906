"""What the benchmarks on the demo's small decoder share: its folder, commands with a log, cells."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from trainer.errors import RecipeError, TrainerError

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "demo.yaml"


def check_demo(demo: Path, file: str) -> None:
    """Look for what `make demo` makes.

    Args:
        demo: folder that should hold `data` and `base`.
        file: of `data`, which will be read.

    Raises:
        RecipeError: if it is not there.
    """
    if not (demo / "data" / file).is_file() or not (demo / "base").is_dir():
        raise RecipeError(
            f"--demo: {demo} = no data and base; expected the folder that `make demo` fills. "
            "Run `make demo` first."
        )


def run_logged(script: str, arguments: Sequence[str], log: Path, *, what: str) -> None:
    """Run a script of the project in a process of its own.

    Args:
        script: from the project's root.
        arguments: its words.
        log: file for all that it writes.
        what: benchmark and variant, for messages.

    Raises:
        TrainerError: if it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / script), *arguments]
    with log.open("w") as stream:
        code = subprocess.run(command, stdout=stream, stderr=stream, check=False).returncode
    if code != 0:
        raise TrainerError(f"{what} = code {code}; expected 0. See {log}.")


def cell(values: Sequence[float], *, width: int) -> str:
    """Mean and spread of the scores of some seeds."""
    spread = f" +-{stdev(values):.3f}" if len(values) > 1 else ""
    return f"{f'{fmean(values):.4f}{spread}':>{width}}"
