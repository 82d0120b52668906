"""Norms of low-rank changes from their factors, and merging by them in one pass."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.merge_truth import assert_merged
from trainer.checkpoint.tensors import LowRankTensor, StoredTensor
from trainer.errors import CheckpointError
from trainer.merge import MergeSettings
from trainer.merge.low_rank import change_norms
from trainer.merge.stream import MergeItem, Scratch, merge_tensor

ROWS, COLUMNS = 24, 20


def stored(values: Tensor) -> StoredTensor:
    return StoredTensor(tuple(values.shape), (values.reshape(-1),))


def make(rank: int, *, seed: int, transposed: bool = False) -> tuple[LowRankTensor, Tensor]:
    """An adapter on the base and its dense change in float64."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(ROWS, rank, generator=generator)
    right = torch.randn(rank, COLUMNS, generator=generator)
    dense = 0.25 * left.double() @ right.double()
    if transposed:
        left, right = left.t().contiguous(), right.t().contiguous()
    tensor = LowRankTensor(BASE, stored(left), stored(right), 0.25, transposed=transposed)
    return tensor, dense


BASE = stored(torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(9)))


@pytest.mark.parametrize("transposed", [False, True])
def test_norms_from_factors_equal_dense_norms(transposed: bool) -> None:
    pairs = [make(rank, seed=rank, transposed=transposed) for rank in (1, 3, COLUMNS)]
    norm_K = change_norms((*(tensor for tensor, _ in pairs), BASE), BASE)
    assert norm_K is not None
    wanted = [float(dense.norm()) for _, dense in pairs] + [0.0]
    assert norm_K.tolist() == pytest.approx(wanted, rel=1e-6)


def test_other_changes_have_no_factors() -> None:
    low, _ = make(2, seed=1)
    magnitude = LowRankTensor(BASE, low.left, low.right, 1.0, magnitude=stored(torch.ones(ROWS)))
    elsewhere = LowRankTensor(stored(torch.zeros(ROWS, COLUMNS)), low.left, low.right, 1.0)
    for other in (magnitude, elsewhere, stored(torch.zeros(ROWS, COLUMNS))):
        assert change_norms((low, other), BASE) is None


def item_of(*tuned: LowRankTensor) -> MergeItem:
    paths = (Path("base"), *(Path(f"{k}") for k in range(len(tuned))))
    return MergeItem(name="w", base=BASE, tuned=tuned, dtype=torch.float32, paths=paths)


def test_large_tensors_are_merged_by_norms_of_factors() -> None:
    pairs = [make(rank, seed=rank) for rank in (2, 3)]
    blocks: list[Tensor] = []
    outcome = merge_tensor(
        item_of(*(tensor for tensor, _ in pairs)),
        MergeSettings(),
        Scratch.allocate(2, 50),
        lambda block: blocks.append(block.clone()),
    )
    base = BASE.pieces[0].view(ROWS, COLUMNS).double()
    tuned = [base + dense for _, dense in pairs]
    assert_merged(torch.cat(blocks).view(ROWS, COLUMNS), base, tuned, MergeSettings())
    assert outcome.norms == pytest.approx([float(dense.norm()) for _, dense in pairs], rel=1e-6)


def test_factors_that_are_no_numbers_are_refused() -> None:
    good, _ = make(2, seed=1)
    bad = LowRankTensor(BASE, good.left, stored(torch.full((2, COLUMNS), torch.nan)), 1.0)
    with pytest.raises(CheckpointError, match="expected finite numbers"):
        merge_tensor(item_of(good, bad), MergeSettings(), Scratch.allocate(2, 50), lambda _: None)
