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
        target: made where there is a file; files that are there stay.

    Raises:
        OSError: the disk refuses.
    """
    for file in sorted(source.glob("[!.]*/*.npy")):  # a hidden folder holds what is not whole
        copy = target / file.relative_to(source)
        if copy.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, copy)
        except OSError:  # a file system without links
            shutil.copyfile(file, copy)


def restore_mined(checkpoint: Path | None, target: Path, *, step: int) -> None:
    """Let a run's folder of mined negatives be what a checkpoint has.

    What was mined before the next step stays too: if it is due again, it may be the same.

    Args:
        checkpoint: the copy in it; None: the run begins.
        target: `mined/` of the run.
        step: the next one.

    Raises:
        OSError: the disk refuses.
    """
    for folder in target.glob("*"):
        for found in folder.glob("*"):
            if found.is_dir():
                shutil.rmtree(found)
            elif found.stem != str(step):
                found.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
    if checkpoint is not None:
        copy_mined(checkpoint, target)
