"""Vectors of many texts on disk, a block a file, made by all ranks; a block once made stays.

Blocks are the same whoever makes them, so neither the number of ranks nor an interruption changes
a bit. Letters: n texts, D embedding size.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.array_files import save_array
from trainer.distributed.group import Ranks

BLOCK_TEXTS = 4096
"""Texts of a block."""

Vectors = NDArray[np.float32]
"""[n, D], norm 1."""


@dataclass(frozen=True, kw_only=True)
class VectorStore:
    """The vectors of n texts."""

    folder: Path
    """Holds the blocks; this rank needs its own alone."""
    num_texts: int
    text: Callable[[int], str]
    """A text by its number."""
    embed: Callable[[Sequence[str]], Vectors]
    """Embeds texts."""
    block_texts: int = BLOCK_TEXTS
    """Texts of a block."""
    outlives: bool = True
    """Whether a block counts after a crash of the machine; others need not wait for the disk."""

    @property
    def num_blocks(self) -> int:
        """Blocks, the last of which may be shorter."""
        return -(-self.num_texts // self.block_texts)

    def own_blocks(self, ranks: Ranks) -> range:
        """The blocks of this rank, dealt in turn."""
        return range(ranks.rank, self.num_blocks, ranks.world_size)

    def texts_of(self, block: int) -> range:
        """The numbers of the texts of a block."""
        start = block * self.block_texts
        return range(start, min(start + self.block_texts, self.num_texts))

    def make(self, block: int) -> None:
        """Embed a block, unless it is there."""
        if not self._file(block).is_file():
            self.keep(block, self.embed([self.text(number) for number in self.texts_of(block)]))

    def keep(self, block: int, vectors: Vectors) -> None:
        """Write the vectors of a block, whole or not at all."""
        file = self._file(block)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}-{os.getpid()}")
        with partial.open("wb") as stream:
            save_array(stream, vectors)
            stream.flush()
            if self.outlives:
                os.fsync(stream.fileno())
        partial.rename(file)

    def load(self, block: int) -> Vectors:
        """The vectors of a block, memory-mapped [n, D]."""
        vectors: Vectors = np.load(self._file(block), mmap_mode="r")
        return vectors

    def _file(self, block: int) -> Path:
        return self.folder / f"{block:08}.npy"
