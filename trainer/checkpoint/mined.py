"""Mined negatives in a checkpoint: the files of a run's `mined/` that its next step draws from.

They are as small as integers are. A copy in each checkpoint is hashed, kept and deleted with it.
"""

import os
import shutil
from pathlib import Path


def copy_mined(source: Path, target: Path) -> None:
    """Copy a folder of mined negatives, if there is any file in it; a link does for a file.

    Files are never written over, so that one that has two names stays as it is.

    Args:
        source: has `SOURCE/STEP.npy`.
        target: a new folder, made where there is a file.

    Raises:
        OSError: the disk refuses.
    """
    for file in sorted(source.glob("*/*.npy")):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, copy)
        except OSError:  # a file system without links
            shutil.copyfile(file, copy)


def restore_mined(checkpoint: Path | None, target: Path) -> None:
    """Let a run's folder of mined negatives be what a checkpoint has, and nothing else.

    Args:
        checkpoint: the copy in it; None: the run begins.
        target: `mined/` of the run.

    Raises:
        OSError: the disk refuses.
    """
    if target.exists():
        shutil.rmtree(target)
    if checkpoint is not None:
        copy_mined(checkpoint, target)
