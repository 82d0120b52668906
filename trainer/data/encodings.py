"""Text files in UTF-16 or UTF-32, as spreadsheets write them: converted once into the cache."""

import codecs
import io
import shutil
from pathlib import Path
from typing import IO

from trainer.data.cache import cache_root, cached_file, file_identity
from trainer.errors import DataError

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""The first that a file starts with counts: the mark of UTF-16 opens one of UTF-32."""


def as_utf8(path: Path, name: Path) -> Path:
    """The file itself, or its content in UTF-8 where a byte order mark says that it is another.

    Args:
        path: what is read; may be missing, which is not this function's business.
        name: what messages call it.

    Raises:
        DataError: if it is cut off or malformed, has no byte order mark but zero bytes, as UTF-16
            has them, or the cache has no room.
    """
    start = _first_bytes(path)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if start.startswith(mark)), None)
    if encoding is None:
        if b"\0" in start:
            raise DataError(
                f"{name}: content = zero bytes among the first; expected UTF-8, or UTF-16 with a "
                f"byte order mark. Convert it: iconv -f UTF-16LE -t UTF-8 {name.name}."
            )
        return path
    try:
        return cached_file(
            f"utf8|{file_identity(path)}", path.name, lambda to: _convert(path, encoding, to)
        )
    except (OSError, UnicodeError) as error:
        raise DataError(
            f"{name}: content = {error}; expected whole {encoding.upper()}, as its byte order mark "
            f"says, that is written as UTF-8 into {cache_root()}. Save it anew as UTF-8."
        ) from error


def _first_bytes(path: Path) -> bytes:
    """The first bytes; nothing if the file cannot be read."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


def _convert(path: Path, encoding: str, to: IO[bytes]) -> None:
    # line ends are kept, as positions of rows are found in bytes
    with path.open(encoding=encoding, newline="") as source:
        target = io.TextIOWrapper(to, encoding="utf-8", newline="")
        shutil.copyfileobj(source, target, 1 << 20)
        target.detach()
