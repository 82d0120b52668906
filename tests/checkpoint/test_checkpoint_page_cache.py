"""Mapped files leave the page cache when they were read, and nothing is lost by it."""

import mmap
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support.page_cache import empty_page_cache, resident_bytes
from trainer.checkpoint.page_cache import FOLIO_BYTES, drop_pages, file_mappings
from trainer.checkpoint.safetensors_file import map_tensors, read_header


def write_twins(folder: Path, elements: int) -> Path:
    """Two tensors in one file, on disk and in no cache."""
    path = folder / "model.safetensors"
    save_file({"a": torch.arange(elements), "b": -torch.arange(elements)}, path)
    empty_page_cache(path)
    return path


def test_a_tensor_leaves_and_its_neighbour_stays(tmp_path: Path) -> None:
    elements = 1 << 20
    path = write_twins(tmp_path, elements)
    tensors = map_tensors(path, read_header(path))
    a, b = (tensors[name].pieces[0] for name in ("a", "b"))
    assert int(a.sum()) == -int(b.sum())
    assert resident_bytes(path) >= 16 * elements

    drop_pages(a, file_mappings())

    left = resident_bytes(path)
    assert 8 * elements - FOLIO_BYTES <= left <= 8 * elements + FOLIO_BYTES
    assert torch.equal(a, torch.arange(elements))
    assert torch.equal(b, -torch.arange(elements))


def test_memory_of_no_file_is_left_alone() -> None:
    values = torch.arange(1 << 20)

    drop_pages(values, file_mappings())

    assert torch.equal(values, torch.arange(1 << 20))


def test_what_lies_beside_its_mapping_is_left_alone(tmp_path: Path) -> None:
    path = write_twins(tmp_path, 1 << 20)
    tensors = map_tensors(path, read_header(path))
    a, b = (tensors[name].pieces[0] for name in ("a", "b"))
    assert int(a.sum()) == -int(b.sum())
    middle = b.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    # as if b lay in a mapping of its own, which may hold what was written to it
    mappings = [
        replace(one, stop=middle) if one.address < middle < one.stop else one
        for one in file_mappings()
    ]

    drop_pages(a, mappings)

    assert resident_bytes(path) >= b.data_ptr() + b.nbytes - middle


def test_two_names_of_one_file_leave_with_the_second(tmp_path: Path) -> None:
    path, other = write_twins(tmp_path, 1 << 20), tmp_path / "other.safetensors"
    os.link(path, other)
    both = [map_tensors(one, read_header(one)) for one in (path, other)]
    for tensors in both:
        assert int(sum(tensor.pieces[0].sum() for tensor in tensors.values())) == 0
    mappings = file_mappings()

    for tensors in both:
        for tensor in tensors.values():
            drop_pages(tensor.pieces[0], mappings)

    assert resident_bytes(path) <= mmap.PAGESIZE * 2
