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
from trainer.data.layouts import DEFAULT, SPLITS, FilesBySplit, SetFolder, by_stem
from trainer.data.tables import KINDS, kind_of
from trainer.errors import DataError

CARD = "README.md"
FENCE = "---"

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
        files = [path for pattern in patterns for path in folder.glob(pattern)]
        rows = sorted({path for path in files if path.is_file() and kind_of(path) in KINDS})
        stems = by_stem(rows)
        # as `datasets` has it: files of no split are those to train on
        found |= stems if not split and set(stems) <= set(SPLITS) else {split or SPLITS[0]: rows}
    return {split: rows for split, rows in found.items() if rows}


def _card(path: Path) -> dict[str, Patterns]:
    """Globs by configuration; nothing where the card is missing or says nothing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    if not text.startswith(FENCE):
        return {}
    try:
        header = yaml.safe_load(text.removeprefix(FENCE).partition(f"\n{FENCE}")[0])
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    listed = header.get("configs") if isinstance(header, dict) else None
    return {
        str(one.get("config_name", DEFAULT)): _patterns(one)
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, dict)
    }


def _patterns(configuration: Mapping[str, Any]) -> Patterns:
    """Globs by split, in any form in which a card writes them."""
    given = configuration.get("data_files")
    base = str(configuration.get("data_dir") or ".")
    if isinstance(given, dict):
        given = [{"split": split, "path": path} for split, path in given.items()]
    found: dict[str, list[str]] = {}
    for one in given if isinstance(given, list) else [given or "*"]:
        split, path = (
            (one.get("split", ""), one.get("path")) if isinstance(one, dict) else ("", one)
        )
        for pattern in path if isinstance(path, list) else [path]:
            if isinstance(pattern, str) and _is_inside(f"{base}/{pattern}"):
                # normalised, as the hub compares globs with names as they are
                found.setdefault(str(split), []).append(str(PurePosixPath(base, pattern)))
    return dict(found)


def _is_inside(pattern: str) -> bool:
    """Whether a glob stays in its folder."""
    path = PurePosixPath(pattern)
    return not path.is_absolute() and ".." not in path.parts
