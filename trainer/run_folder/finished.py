"""`finished.json` of an output folder: the last thing a run writes, and only if it is done.

Launchers do not always hand exit codes on, so a scheduler may look for this file instead. It tells
of the folder's `model/`: both stay while a finished run goes on, until it has reached its new end.
It must not import torch.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from trainer.run_folder.layout import RunFolder


def write_finished(folder: Path, *, step: int) -> None:
    """Write the marker, in place of an older one: beside it first, renamed when it is on disk.

    Args:
        folder: of the run; `model/` and all else is written.
        step: steps done.
    """
    run = RunFolder(folder)
    content = {
        "step": step,
        "loss": _last(run.metrics).get("loss"),
        "metrics": _last(run.evaluations).get("sets", {}),
        "export": {"folder": run.model.name, "sha256": hash_folder(run.model)},
    }
    partial = run.finished.with_name(f".{run.finished.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(run.finished)


def read_finished(folder: Path) -> dict[str, Any] | None:
    """Content of the marker; None where the run is not done."""
    file = RunFolder(folder).finished
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def hash_folder(folder: Path) -> str:
    """SHA-256 over `<sha256>  <path>` of all files by path, lines as `sha256sum` prints them."""
    files = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    lines = "".join(f"{_hash(folder / name)}  {name}\n" for name in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last(path: Path) -> dict[str, Any]:
    """The last object of a file of lines; empty where there is none."""
    if not path.is_file():
        return {}
    *_, last = ["{}", *path.read_text(encoding="utf-8").splitlines()]
    content: dict[str, Any] = json.loads(last)
    return content
