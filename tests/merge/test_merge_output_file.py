"""Files written past the page cache and through it hold the same bytes."""

import errno
import os
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.checkpoint.safetensors_file import Slot
from trainer.errors import CheckpointError
from trainer.merge.output import TensorWriter
from trainer.merge.output_file import BLOCK_BYTES, Bytes, OutputFile, WordSum, aligned_bytes

SIZE = 37 * BLOCK_BYTES + 123


def content(size: int = SIZE) -> Bytes:
    data = aligned_bytes(size)
    data[:] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    return data


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("step", [4 * BLOCK_BYTES, 4 * BLOCK_BYTES + 8, 1000])
def test_blocks_of_any_size_arrive_from_several_threads(
    tmp_path: Path, direct: bool, step: int
) -> None:
    data, path = content(), tmp_path / "weights"
    file = OutputFile(path, SIZE, direct=direct)
    pieces = [(start, data[start : start + step]) for start in range(0, SIZE, step)]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda piece: file.write(piece[1], piece[0]), pieces))

    file.sync()
    assert path.read_bytes() == data.tobytes()
    for start, stop in ((0, SIZE), (BLOCK_BYTES, SIZE - 8), (17, 5 * BLOCK_BYTES)):
        wanted = WordSum()
        wanted.update(data[start:stop])
        assert file.checksum(start, stop) == wanted.hexdigest()
    assert file.read(BLOCK_BYTES - 3, 10).tobytes() == data[BLOCK_BYTES - 3 :][:10].tobytes()
    file.close()


def test_memory_that_is_not_aligned_takes_the_other_way(tmp_path: Path) -> None:
    data = content()
    file = OutputFile(tmp_path / "weights", SIZE, direct=True)

    file.write(data[8 : 8 + 2 * BLOCK_BYTES], 0)
    file.write(data[8 + 2 * BLOCK_BYTES :], 2 * BLOCK_BYTES)

    file.close()
    assert (tmp_path / "weights").read_bytes()[: SIZE - 8] == data[8:].tobytes()


def test_a_disk_that_refuses_direct_writes_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, write = content(), os.pwritev
    file = OutputFile(tmp_path / "weights", SIZE, direct=True)

    def refuse_blocks(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if descriptor != file._cached:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return write(descriptor, buffers, offset)

    monkeypatch.setattr(os, "pwritev", refuse_blocks)
    file.write(data, 0)

    file.close()
    assert not file.is_direct
    assert (tmp_path / "weights").read_bytes() == data.tobytes()


def test_a_file_of_a_former_merge_is_kept(tmp_path: Path) -> None:
    path, data = tmp_path / "weights", content()
    path.write_bytes(data.tobytes()[: 2 * BLOCK_BYTES])

    file = OutputFile(path, SIZE, direct=True)

    file.close()
    assert path.read_bytes() == data.tobytes()[: 2 * BLOCK_BYTES] + bytes(SIZE - 2 * BLOCK_BYTES)


@pytest.mark.parametrize(("place", "read_all"), [(0, False), (SIZE - 1, False), (20_000, True)])
def test_bytes_that_did_not_stay_are_found(tmp_path: Path, place: int, read_all: bool) -> None:
    data, path = content(), tmp_path / "weights"
    file = OutputFile(path, SIZE, direct=True)
    writer = TensorWriter(file, Slot(torch.uint8, (SIZE,), 0))
    for start in range(0, SIZE, 8 * BLOCK_BYTES):
        writer.write(torch.from_numpy(data[start : start + 8 * BLOCK_BYTES]))
    assert writer.finish(read_all=read_all) == file.checksum(0, SIZE)

    file.write(data[place : place + 1] ^ 1, place)

    with pytest.raises(CheckpointError, match="= other than written; expected the same"):
        writer.finish(read_all=read_all)
    file.close()


def test_more_files_than_may_be_open_directly_are_written(tmp_path: Path) -> None:
    data = content()
    files = [OutputFile(tmp_path / str(i), SIZE, direct=True) for i in range(20)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        for file in files:
            file.write(data, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert all(file.checksum(0, SIZE) == files[0].checksum(0, SIZE) for file in files)
    assert files[0].waiting_bytes >= SIZE
    files[0].sync()
    assert files[0].waiting_bytes == 0
    for file in files:
        file.close()


def test_checksums_do_not_depend_on_the_pieces() -> None:
    data, whole, pieces = content(1001), WordSum(), WordSum()
    whole.update(data)
    for start in range(0, 1001, 13):
        pieces.update(data[start : start + 13])
    assert pieces.hexdigest() == whole.hexdigest()
