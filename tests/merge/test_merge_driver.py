"""The order in which tensors are merged."""

from pathlib import Path

import torch

from trainer.checkpoint.tensors import StoredTensor
from trainer.merge.driver import in_order
from trainer.merge.stream import MergeItem


def item(name: str, megabytes: int) -> MergeItem:
    """A tensor of a base and one checkpoint, of which no byte is touched."""
    values = torch.empty(megabytes << 20, dtype=torch.uint8, device="meta")
    stored = StoredTensor(tuple(values.shape), (values,))
    paths = (Path("base"), Path("a"))
    return MergeItem(name=name, base=stored, tuned=(stored,), dtype=torch.uint8, paths=paths)


def test_small_tensors_come_first_and_the_two_largest_apart() -> None:
    sizes = {"embed": 1000, "norm": 1, "down": 130, "q": 25, "k": 3, "bias": 0, "up": 130,
             "head": 1000}  # fmt: skip
    names = [one.name for one in in_order([item(*pair) for pair in sizes.items()])]

    assert names == ["norm", "bias", "embed", "down", "up", "head", "q", "k"]


def test_few_tensors_are_ordered_too() -> None:
    assert in_order([]) == []
    assert [one.name for one in in_order([item("w", 9)])] == ["w"]
    assert [one.name for one in in_order([item("w", 8), item("v", 9)])] == ["v", "w"]
