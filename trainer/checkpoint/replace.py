"""Give a complete folder the name of another one, which is deleted only afterwards.

It must not know what the folders hold.
"""

import ctypes
import os
import shutil
from pathlib import Path

REPLACED = ".replaced-"
"""Before the name of a folder whose name another one is about to take."""
AT_FDCWD = -100
RENAME_EXCHANGE = 2
"""Of Linux's renameat2: two paths change names in one move."""


def replace_folder(new: Path, target: Path) -> None:
    """Let a complete folder take a name, whoever has it now.

    At every moment the old or the new one has the name. Where the file system cannot exchange two
    names in one move, there is a moment without; `restore_replaced` undoes what was cut short then.

    Args:
        new: beside `target`.
        target: may exist; what it was is deleted.

    Raises:
        OSError: as the system says; `target` is then what it was.
    """
    if not target.exists():
        new.rename(target)
        return
    old = new
    if not _exchange(new, target):
        old = target.with_name(REPLACED + target.name)
        _delete(old)
        target.rename(old)
        try:
            new.rename(target)
        except OSError:
            old.rename(target)
            raise
    _delete(old)


def restore_replaced(parent: Path) -> None:
    """Undo replacements in a folder that a kill cut short: the old one gets its name back."""
    for old in parent.glob(f"{REPLACED}*"):
        target = old.with_name(old.name.removeprefix(REPLACED))
        if target.exists():
            _delete(old)
        else:
            old.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two paths in one move; whether system and file system can."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = (AT_FDCWD, os.fsencode(one.absolute()), AT_FDCWD, os.fsencode(other.absolute()))
    return renameat2 is not None and renameat2(*paths, RENAME_EXCHANGE) == 0


def _delete(path: Path) -> None:
    """Remove a folder, or a link to one; what a disk refuses to delete stays."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
