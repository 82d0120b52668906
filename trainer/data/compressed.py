"""Files packed with gzip or Zstandard: unpacked once into the cache, then read as any other."""

import gzip
import shutil
import zlib
from pathlib import Path
from typing import IO

from trainer.data.cache import cache_root, cached_file, file_identity
from trainer.errors import DataError

SUFFIXES = (".gz", ".zst")


def unpacked(path: Path) -> Path:
    """The plain file behind a path; the path itself if it is not packed.

    Raises:
        DataError: if it is missing or damaged, or the cache has no room.
    """
    if path.suffix.lower() not in SUFFIXES:
        return path
    if not path.is_file():
        raise DataError(f"{path}: No such file; expected a packed data file. Correct the path.")
    try:
        return cached_file(
            f"unpacked|{file_identity(path)}", path.stem, lambda plain: _unpack(path, plain)
        )
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: content = {error}; expected a whole {path.suffix[1:]} file that unpacks into "
            f"{cache_root()}. Pack it anew, or set TRAINER_CACHE_DIR to a folder with room."
        ) from error


def _unpack(path: Path, plain: IO[bytes]) -> None:
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, plain, 1 << 20)
        return
    import pyarrow

    with pyarrow.input_stream(str(path), compression="zstd") as packed:
        shutil.copyfileobj(packed, plain, 1 << 20)
