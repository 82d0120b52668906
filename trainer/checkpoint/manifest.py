"""The list of a checkpoint's files with their sizes and hashes; what makes it complete."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.data.stretch import Stretch, read_stretches
from trainer.errors import CheckpointError

NAME = "manifest.json"
FORMAT = 1
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
              RecursionError)  # fmt: skip
"""What reading JSON raises, and taking fields and numbers from what it may hold."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file."""

    size: int
    """Bytes."""
    sha256: str
    """Of the content, hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class BaseIdentity:
    """Which model adapters belong to."""

    path: str
    """`model.path` of the recipe: folder, hub id or package."""
    files: Mapping[str, FileEntry]
    """Config and weight files by name."""
    fingerprint: str | None
    """Of its weights, however they lie in files; merging knows a base by it. None where they are
    not safetensors."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint is and which files belong to it."""

    step: int
    """Steps done: the next step to take."""
    world_size: int
    """Ranks that wrote it."""
    recipe: Mapping[str, Any]
    """The resolved recipe."""
    sources: Mapping[str, str]
    """Fingerprint of each source."""
    versions: Mapping[str, str]
    """Of this project and of the libraries that shape the numbers."""
    files: Mapping[str, FileEntry]
    """By path relative to the checkpoint's folder."""
    base: BaseIdentity | None = None
    """The frozen base of an adapter run, which the checkpoint does not hold; None for others."""
    stretches: tuple[Stretch, ...] = ()
    """Those that its steps lie in; empty in manifests of older releases, whose runs had one."""


def digest(path: Path) -> FileEntry:
    """Size and hash of a file, read in blocks."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(size=path.stat().st_size, sha256=sha256)


def digests(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Entries of some files of a folder."""
    return {name: digest(folder / name) for name in names}


def files_of(folder: Path) -> list[str]:
    """Relative paths of all files in a folder, sorted, the manifest itself left out."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != NAME)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into a checkpoint, with a hash of its own content."""
    content = {"format": FORMAT, **asdict(manifest)}
    text = json.dumps({**content, "sha256": _seal(content)}, indent=1, sort_keys=True)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def _seal(content: Mapping[str, Any]) -> str:
    """Hash of a manifest's content, whatever its layout."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: it is missing, changed, or not a manifest of this format.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        seal = content.pop("sha256", None)
        if seal is not None and seal != _seal(content):
            raise ValueError("its own sha256 does not fit")
        if content.pop("format") != FORMAT:
            raise KeyError("format")
        base = content.pop("base", None)
        if base is not None:
            base = BaseIdentity(**{**base, "files": _entries(base["files"])})
        stretches = read_stretches(content.pop("stretches", ()))
        files = _entries(content.pop("files"))
        return Manifest(files=files, base=base, stretches=stretches, **content)
    except UNREADABLE as error:
        raise CheckpointError(
            f"{path}: {type(error).__name__}: {error}; expected a manifest of format {FORMAT}. "
            f"The checkpoint is not complete; use another."
        ) from error


def _entries(content: Mapping[str, Any]) -> dict[str, FileEntry]:
    """Files by name, from JSON."""
    return {_inside(name): FileEntry(**entry) for name, entry in content.items()}


def verify(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Compare files of a checkpoint with its manifest.

    Args:
        folder: of the checkpoint.
        manifest: read from it.
        names: of files in the manifest.

    Raises:
        CheckpointError: naming the first file that is missing, of another size or changed.
    """
    for name in names:
        path, expected = folder / name, manifest.files[name]
        # not Path.is_file, which raises at a name that no file system takes
        if not os.path.isfile(path):
            raise CheckpointError(f"{path}: missing; expected {expected.size} bytes.")
        if path.stat().st_size != expected.size:
            raise CheckpointError(
                f"{path}: size = {path.stat().st_size}; expected {expected.size} bytes."
            )
        if digest(path) != expected:
            raise CheckpointError(
                f"{path}: content changed; expected that whose sha256 the manifest has."
            )


def _inside(name: str) -> str:
    """The name of a file, refused where it leads out of the checkpoint's folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"file = {name}, which is outside the checkpoint")
    return name
