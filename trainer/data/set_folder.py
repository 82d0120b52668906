"""Folders of published sets: the card that names their files, and the cache of the hub.

A card is the README.md of a set of the Hugging Face hub. Its header lists configurations, such as
one a language, with the files of each split. Importing this module is cheap; `huggingface_hub` is
imported when a set of the hub is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from trainer.data.fields import shown
from trainer.data.layouts import (
    CARD,
    CORPORA,
    DEFAULT,
    QUERIES,
    SPLITS,
    FilesBySplit,
    SetFolder,
    by_stem,
)
from trainer.data.tables import KINDS, kind_of
from trainer.errors import DataError

FENCE = "---"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C where there is one: cards with thousands of configurations are long."""

Patterns = dict[str, Sequence[str]]
"""Globs by split; the empty split: files whose names say of which they are."""


def local_folder(path: Path, configuration: str = "") -> SetFolder:
    """A folder with what its card says.

    Args:
        path: absolute.
        configuration: which of the sets in it; empty: the only one.
    """
    named = {name: _files(path, globs) for name, globs in _card(path / CARD).items()}
    return SetFolder(path=path, configuration=configuration, named=named)


def hub_folder(name: str, *, owner: str) -> SetFolder:
    """A set of the hub in the hub's cache, downloaded as far as it is not there.

    Args:
        name: `organisation/set`, or `organisation/set:configuration`.
        owner: recipe key of the set, for messages.

    Raises:
        DataError: if the set is not there, or has no such configuration.
    """
    from huggingface_hub import snapshot_download

    identifier, _, configuration = name.partition(":")
    try:
        card = Path(snapshot_download(identifier, repo_type="dataset", allow_patterns=[CARD]))
        globs = _card(card / CARD)
        wanted = [CARD, *_wanted(globs, configuration)] if configuration else None
        path = snapshot_download(identifier, repo_type="dataset", allow_patterns=wanted)
    except (OSError, ValueError) as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{owner}: hub = {name}; expected a set of the hub that can be downloaded, or that "
            f"lies in its cache ({shown(problem)}). Correct hub, or look at the network."
        ) from error
    folder = local_folder(Path(path), configuration)
    if configuration and not _has(folder):
        known = ", ".join(sorted(globs)) or "none in its card"
        raise DataError(
            f"{owner}: hub = {name}; expected a configuration that the set has: {known}. "
            "Correct what follows the colon."
        )
    return folder


def is_beir_set(name: str) -> bool:
    """Whether the card of a set of the hub names a corpus and queries among its configurations.

    Nothing but the card is downloaded. A set that cannot be reached is taken for another one.

    Args:
        name: `organisation/set`, or `organisation/set:configuration`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    identifier, _, configuration = name.partition(":")
    try:
        card = Path(hf_hub_download(identifier, CARD, repo_type="dataset"))
    except (OSError, ValueError, HfHubHTTPError):
        return False
    prefix = f"{configuration}-" if configuration else ""
    named = {one.removeprefix(prefix) for one in _card(card) if one.startswith(prefix)}
    return bool(named.intersection(CORPORA)) and bool(named.intersection(QUERIES))


def _wanted(globs: Mapping[str, Patterns], configuration: str) -> Iterator[str]:
    """Globs of the files of a configuration and of its parts."""
    named = [own for own in globs if own == configuration or own.startswith(f"{configuration}-")]
    for own in named:
        for patterns in globs[own].values():
            yield from patterns
    if not named:
        yield from (f"{configuration}/*", f"{configuration}-*", f"*/{configuration}*")


def _has(folder: SetFolder) -> bool:
    """Whether there is anything of the configuration."""
    own = folder.configuration
    parts = [name for name in folder.named if name == own or name.startswith(f"{own}-")]
    return bool(parts) or (folder.path / own).is_dir() or any(folder.path.glob(f"{own}-*"))


def _files(folder: Path, globs: Patterns) -> FilesBySplit:
    """The files of each split."""
    found: dict[str, Sequence[Path]] = {}
    for split, patterns in globs.items():
        rows = sorted({path for pattern in patterns for path in _matching(folder, pattern)})
        stems = by_stem(rows)
        # as `datasets` has it: files of no split are those to train on
        found |= stems if not split and set(stems) <= set(SPLITS) else {split or SPLITS[0]: rows}
    return {split: rows for split, rows in found.items() if rows}


def _matching(folder: Path, pattern: str) -> list[Path]:
    """The tables that a glob of a card names; none where it is no glob."""
    try:
        found = [path for path in folder.glob(pattern) if kind_of(path) in KINDS]
        return [path for path in found if path.is_file()]
    except (ValueError, OSError, NotImplementedError, IndexError):
        return []


def _card(path: Path) -> dict[str, Patterns]:
    """Globs by configuration; nothing where the card is missing or says nothing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    if not text.startswith(FENCE):
        return {}
    try:
        header = yaml.load(text.removeprefix(FENCE).partition(f"\n{FENCE}")[0], Loader=LOADER)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    listed = header.get("configs") if isinstance(header, dict) else None
    entries = listed if isinstance(listed, list) else []
    configurations = [one for one in entries if isinstance(one, dict)]
    named = [(one.get("config_name", DEFAULT), one) for one in configurations]
    return {name: _patterns(one) for name, one in named if isinstance(name, str)}


def _patterns(configuration: Mapping[str, Any]) -> Patterns:
    """Globs by split; what is no text, or leaves the folder, is left out."""
    base = configuration.get("data_dir") or "."
    found: dict[str, list[str]] = {}
    for split, pattern in _listed(configuration.get("data_files") or "*"):
        if not all(isinstance(text, str) for text in (base, split, pattern)):
            continue
        # normalised, as the hub compares globs with names as they are
        path = PurePosixPath(base, pattern)
        if not path.is_absolute() and ".." not in path.parts:
            found.setdefault(split, []).append(str(path))
    return dict(found)


def _listed(data_files: Any) -> Iterator[tuple[Any, Any]]:
    """Split and glob of each entry, in any form in which a card writes them."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    for one in data_files if isinstance(data_files, list) else [data_files]:
        entry = one if isinstance(one, dict) else {"path": one}
        paths = entry.get("path")
        for path in paths if isinstance(paths, list) else [paths]:
            yield entry.get("split", ""), path
