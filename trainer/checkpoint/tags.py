"""Names of the checkpoints in a folder; it must not open them."""

from pathlib import Path

PREFIX = "step-"


def tag_of(step: int) -> str:
    """Folder name of a checkpoint."""
    return f"{PREFIX}{step}"


def step_of(tag: str) -> int:
    """Steps done by a checkpoint's folder name."""
    return int(tag.removeprefix(PREFIX))


def tags_in(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder, newest first."""
    found = [p.name for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=step_of, reverse=True)
