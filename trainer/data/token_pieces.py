"""The pieces of a store of tokens: made and checked; each is whole or absent.

A piece holds the ids of some rows, then what the index says of them, then a footer with a hash of
all that. It is written under another name and renamed, so that a process that is killed leaves
nothing that looks finished.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple
from zlib import crc32

import numpy as np

from trainer.data.row_texts import RowTexts
from trainer.data.scan import text_key
from trainer.data.sources import Source
from trainer.data.token_store import (
    DIGESTS,
    ROW_ARRAYS,
    SLOT_ARRAYS,
    damaged,
    digest_ids,
    piece_path,
)
from trainer.data.tokens import TextEncoder
from trainer.errors import DataError
from trainer.recipe.schema import DataRecipe, SourceRecipe

MAGIC = b"tokens-1"
BUILDING = ".building-"
"""Begins the names of what is being written."""
FEWEST_ROWS, MOST_ROWS, PIECES = 1 << 10, 1 << 16, 1 << 10
"""A source is cut into so many pieces, of so many rows at least and at most."""
BLOCK_ROWS, BLOCK_CHARACTERS = 256, 1 << 20
"""Texts that are encoded together: of so many rows, or as soon as they are so long."""
COPY_BYTES = 1 << 24
"""Bytes that are hashed or copied at a time."""


@dataclass(frozen=True, kw_only=True)
class TokenJob:
    """All that is needed to make a store, in any process."""

    folder: Path
    """Of the store."""
    source: Source
    """What is tokenised."""
    row_texts: Callable[[Any], RowTexts]
    """From a record of the source to its texts."""
    encoder: TextEncoder
    """Texts to token ids."""
    limits: DataRecipe
    """Says how long a text may be."""
    settings: SourceRecipe
    """Says what is put before a text."""

    @property
    def piece_rows(self) -> int:
        """Rows of each piece but the last."""
        return min(MOST_ROWS, max(FEWEST_ROWS, -(-len(self.source) // PIECES)))

    @property
    def num_pieces(self) -> int:
        """Pieces of the whole store."""
        return -(-len(self.source) // self.piece_rows)

    @cached_property
    def ids_dtype(self) -> np.dtype[Any]:
        """The smallest that holds every id."""
        largest = max(self.encoder.tokenizer.get_vocab().values())
        return np.dtype(np.uint16 if largest < 1 << 16 else np.uint32)

    def rows(self, number: int) -> range:
        """Rows of a piece."""
        first = number * self.piece_rows
        return range(first, min(len(self.source), first + self.piece_rows))

    def sides(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Instruction and greatest length, of queries and of passages."""
        limits, settings = self.limits, self.settings
        return (
            (settings.query_instruction, limits.query_max_tokens),
            (settings.passage_instruction, limits.passage_max_tokens),
        )

    @cached_property
    def num_prompt_tokens(self) -> tuple[int, int]:
        """Leading tokens that a mean leaves out, of queries and of passages."""
        query, passage = (
            self.encoder.encode([], instruction=instruction, max_tokens=limit).num_prompt_tokens
            for instruction, limit in self.sides()
        )
        return query, passage


class Slot(NamedTuple):
    """What the index says of a text; see `SLOT_ARRAYS`."""

    digest: bytes
    place: int
    length: int
    checksum: int
    key: int


class PieceWriter:
    """The content of a piece while it is made; ids go to the file, the rest stays in memory."""

    def __init__(self, job: TokenJob, file: IO[bytes]) -> None:
        self.job, self.file = job, file
        self.sha256 = hashlib.sha256()
        self.dtype, self.prompts = job.ids_dtype, job.num_prompt_tokens
        self.num_ids = 0
        self.digests = bytearray()
        forms = {name: dtype for name, (dtype, _) in (ROW_ARRAYS | SLOT_ARRAYS).items()}
        self.arrays: dict[str, Any] = {
            name: array(forms[name].char) for name in forms if name != DIGESTS
        }

    def add(self, rows: Sequence[RowTexts]) -> None:
        """Tokenise and append the texts of some rows.

        Raises:
            DataError: if a text has no tokens.
        """
        known: list[dict[str, Slot]] = [{}, {}]
        for side, texts in enumerate((lambda r: r.queries, lambda r: r.passages)):
            distinct = list(dict.fromkeys(text for row in rows for text in texts(row)))
            instruction, limit = self.job.sides()[side]
            encoded = self.job.encoder.encode(distinct, instruction=instruction, max_tokens=limit)
            for text, ids in zip(distinct, encoded.token_ids, strict=True):
                content = ids.astype(self.dtype).tobytes()
                known[side][text] = Slot(
                    digest=digest_ids(ids, self.prompts[side]),
                    place=self.num_ids,
                    length=len(ids),
                    checksum=crc32(content),
                    key=text_key(text),
                )
                self._write(content)
                self.num_ids += len(ids)
        for row in rows:
            found = [known[0][text] for text in row.queries]
            found += [known[1][text] for text in row.passages]
            self.arrays["sizes"].append(len(found))
            self.arrays["num_positives"].append(row.num_positives)
            self.arrays["scores"].extend(row.scores or [np.nan] * len(found))
            for slot in found:
                self.digests += slot.digest
                self.arrays["places"].append(slot.place)
                self.arrays["lengths"].append(slot.length)
                self.arrays["checksums"].append(slot.checksum)
                self.arrays["keys"].append(slot.key)

    def finish(self) -> None:
        """Append the index of the rows, and the footer."""
        begins = {DIGESTS: self.file.tell()}
        self._write(bytes(self.digests))
        for name, values in self.arrays.items():
            begins[name] = self.file.tell()
            self._write(values.tobytes())
        footer = {
            "num_ids": self.num_ids,
            "num_rows": len(self.arrays["sizes"]),
            "num_slots": len(self.arrays["lengths"]),
            "begins": begins,
            "has_scores": not all(map(math.isnan, self.arrays["scores"])),
            "sha256": self.sha256.hexdigest(),
        }
        content = json.dumps(footer).encode()
        self.file.write(content + len(content).to_bytes(8, "little") + MAGIC)

    def _write(self, content: bytes) -> None:
        self.sha256.update(content)
        self.file.write(content)


def make_piece(job: TokenJob, number: int) -> None:
    """Tokenise the rows of a piece.

    Raises:
        DataError: if a row changed on disk, or a text has no tokens; names file and line.
        OSError: if the disk refuses; nothing is left.
    """
    job.source.check_files()
    with replaced(piece_path(job.folder, number)) as file:
        writer = PieceWriter(job, file)
        for rows, texts in _blocks(job, job.rows(number)):
            try:
                writer.add(texts)
            except DataError as error:
                raise _placed(job, rows, texts) or error from error
        writer.finish()


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there under its name when it is complete and on disk, or not at all."""
    building = path.with_name(f"{BUILDING}{path.name}.{secrets.token_hex(4)}")
    try:
        with building.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        building.rename(path)
    except BaseException:
        building.unlink(missing_ok=True)
        raise


def _blocks(job: TokenJob, rows: range) -> Iterator[tuple[list[int], list[RowTexts]]]:
    """Rows that are encoded together, with their texts."""
    numbers: list[int] = []
    texts: list[RowTexts] = []
    characters = 0
    for row in rows:
        found = job.row_texts(job.source.record(row))
        numbers.append(row)
        texts.append(found)
        characters += sum(map(len, (*found.queries, *found.passages)))
        if len(texts) == BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
            yield numbers, texts
            numbers, texts, characters = [], [], 0
    if texts:
        yield numbers, texts


def _placed(job: TokenJob, rows: list[int], texts: list[RowTexts]) -> DataError | None:
    """The mistake of the first row of a block that has one, with its place."""
    for row, found in zip(rows, texts, strict=True):
        for (instruction, limit), side in zip(
            job.sides(), (found.queries, found.passages), strict=True
        ):
            try:
                job.encoder.encode(side, instruction=instruction, max_tokens=limit)
            except DataError as error:
                return DataError(f"{job.source.place(row)}: {error}")
    return None


def read_footer(path: Path) -> dict[str, Any]:
    """What a piece says of itself.

    Raises:
        DataError: if it has no footer.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(-16, os.SEEK_END)
            last = file.read()
            size = int.from_bytes(last[:8], "little")
            if last[8:] != MAGIC or size > end:
                raise damaged(path, "no footer")
            file.seek(end - size)
            footer: dict[str, Any] = json.loads(file.read(size))
            return footer | {"end": end - size, "bytes": end + 16}
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error


def check_piece(path: Path, expected: str | None = None) -> None:
    """Read a piece and compare its hash.

    Args:
        path: of the piece.
        expected: its SHA-256 as the index has it, hexadecimal; None: as its footer has it.

    Raises:
        DataError: if it is not as it was written.
    """
    footer = read_footer(path)
    sha256, left = hashlib.sha256(), footer["end"]
    with path.open("rb") as file:
        while left and (content := file.read(min(left, COPY_BYTES))):
            sha256.update(content)
            left -= len(content)
    if sha256.hexdigest() != (expected or footer["sha256"]):
        raise damaged(path, f"another hash than its {'index' if expected else 'footer'} says")
