"""Parquet, Arrow and hub sets as tables of rows, memory-mapped by `datasets`.

Importing this module is cheap; `datasets` is imported when the first such file is opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.cache import Arrays, cached_arrays, file_identity
from trainer.data.fields import shown
from trainer.data.files import CACHE_FROM_BYTES, digest_of, map_file
from trainer.data.hub_cache import cached_snapshot
from trainer.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

READ_AHEAD_ROWS = 1000
"""Rows read at once when they are asked for in order, as the first check does."""


@dataclass
class ArrowFile:
    """The rows of one columnar file or hub split."""

    name: Path
    """What messages call it."""
    rows: "Dataset"
    """Memory-mapped."""
    sha256: str
    """Of the file's content, or the split's own fingerprint."""
    path: Path | None = None
    """What is read; None for a hub split."""
    last_asked: int = -1
    """Row that was asked for last."""
    block_start: int = 0
    """First row read ahead."""
    block: list[Mapping[str, Any]] = field(default_factory=list, repr=False)
    """Rows read ahead."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"last_asked": -1, "block_start": 0, "block": []}

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, row: int) -> Mapping[str, Any]:
        """The fields of a row."""
        is_next, self.last_asked = row == self.last_asked + 1, row
        if not self.block_start <= row < self.block_start + len(self.block):
            if not is_next:
                return self.rows[row]
            self.block_start = row
            columns = self.rows[row : row + READ_AHEAD_ROWS]
            rows = zip(*columns.values(), strict=True)
            self.block = [dict(zip(columns, values, strict=True)) for values in rows]
        return self.block[row - self.block_start]

    def place(self, row: int) -> str:
        """`path:row`, counted from 1 as lines are."""
        return f"{self.name}:{row + 1}"


DAMAGED = (OSError, ValueError, KeyError, MemoryError)
"""What a malformed file makes pyarrow raise: of a damaged length, memory that no machine has; of a
column that stands there twice, a key."""


def open_arrow_file(path: Path) -> ArrowFile:
    """A Parquet or Arrow file.

    Raises:
        DataError: if it is missing, empty or damaged.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowInvalid

    data = map_file(path)

    def build() -> Arrays:
        return {"sha256": digest_of(data)}

    is_large = len(data) >= CACHE_FROM_BYTES
    arrays = cached_arrays(f"sha256|{file_identity(path)}", build) if is_large else build()
    try:
        rows = _from_stream(path) if path.suffix.lower() == ".arrow" else _no_rows(path)
        kind = path.suffix.lower().removeprefix(".")
        if rows is None:
            rows = load_dataset(kind, data_files=str(path), split="train")
        _validate(path, rows, is_large=is_large)
    except (*DAMAGED, ArrowInvalid, DatasetGenerationError) as error:
        found = str(error) or type(error).__name__
        raise DataError(
            f"{path}: content = {shown(found)}; expected a whole {path.suffix[1:]} file. "
            "Write it anew."
        ) from error
    return _checked(ArrowFile(path, rows, arrays["sha256"].tobytes().hex(), path=path))


def open_hub_set(name: str, split: str, *, owner: str) -> ArrowFile:
    """A split of a set of the hub, downloaded once.

    Args:
        name: `organisation/set`, or `organisation/set:configuration`.
        split: as the set names it.
        owner: recipe key of the source, for messages.

    Raises:
        DataError: if the set, its configuration or its split is not there or cannot be loaded.
    """
    from datasets.exceptions import DatasetGenerationError

    path, _, configuration = name.partition(":")
    try:
        rows = _load_set(path, configuration or None, split)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise DataError(
            f"{owner}: hub = {name}; expected a set with split {split} that can be loaded "
            f"({shown(str(error))}). Correct hub or split, or look at the network."
        ) from error
    return _checked(ArrowFile(Path(name), rows, rows._fingerprint))


def _load_set(path: str, configuration: str | None, split: str) -> "Dataset":
    """A split of a set of the hub; without a network, from the files in the hub's cache.

    `datasets` itself knows without a network only what it converted before.
    """
    from datasets import load_dataset

    try:
        return load_dataset(path, configuration, split=split)
    except OSError:
        folder = cached_snapshot(path)
        if folder is None:
            raise
        return load_dataset(str(folder), configuration, split=split)


def _validate(path: Path, rows: "Dataset", *, is_large: bool) -> None:
    """Check offsets and UTF-8 of every column: a malformed offset would crash the process later.

    Raises:
        ArrowInvalid: naming the first column that is wrong.
    """

    def build() -> Arrays:
        rows.data.validate(full=True)
        return {"valid": np.array(True)}

    if is_large:
        cached_arrays(f"valid|{file_identity(path)}", build)
    else:
        build()


def _from_stream(path: Path) -> "Dataset | None":
    """An Arrow stream, mapped in place; None for the file form, which has to be copied."""
    from datasets import Dataset
    from pyarrow import ArrowInvalid

    try:
        return Dataset.from_file(str(path))
    except ArrowInvalid:
        return None


def _no_rows(path: Path) -> "Dataset | None":
    """An empty set for a Parquet file without rows, which `datasets` cannot load; else None."""
    from datasets import Dataset
    from pyarrow.parquet import read_metadata

    return None if read_metadata(path).num_rows else Dataset.from_list([])


def _checked(file: ArrowFile) -> ArrowFile:
    if not len(file):
        raise DataError(f"{file.name}: rows = 0; expected at least one row. Fill it or remove it.")
    return file
