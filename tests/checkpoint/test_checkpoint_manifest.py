"""A manifest is whole or refused, whichever bit of it is flipped, and leads nowhere else."""

from dataclasses import replace
from pathlib import Path

import pytest

from trainer.checkpoint.manifest import (
    BaseIdentity,
    FileEntry,
    Manifest,
    digests,
    files_of,
    read_manifest,
    verify,
    write_manifest,
)
from trainer.errors import CheckpointError


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Manifest]:
    (tmp_path / "weights").write_bytes(b"abc")
    entry = FileEntry(size=1, sha256="00")
    manifest = Manifest(
        step=3,
        world_size=2,
        recipe={"betas": (0.9, 0.999), "pattern": {"ir": 1}, "lora": None},
        sources={"ir": "ff"},
        versions={"torch": "2.13.0"},
        files=digests(tmp_path, files_of(tmp_path)),
        base=BaseIdentity(path="model", files={"config.json": entry}, fingerprint=None),
    )
    write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def test_every_flipped_bit_is_refused_or_changes_nothing(written: tuple[Path, Manifest]) -> None:
    folder, _ = written
    path, before = folder / "manifest.json", read_manifest(folder)
    content = path.read_bytes()
    refused = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            after = read_manifest(folder)
            verify(folder, after, after.files)
        except CheckpointError:
            refused += 1
        else:
            assert after == before, place
    assert refused > 0.8 * len(content)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "embedder/../../x"])
def test_a_file_outside_the_checkpoint_is_refused(
    written: tuple[Path, Manifest], name: str
) -> None:
    folder, manifest = written
    entry = FileEntry(size=3, sha256="00")
    write_manifest(folder, replace(manifest, files={**manifest.files, name: entry}))
    with pytest.raises(CheckpointError, match=r"which is outside the checkpoint; expected a manif"):
        read_manifest(folder)
