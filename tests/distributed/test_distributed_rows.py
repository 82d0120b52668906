"""Rows go to all ranks and gradients come back, as if one rank had held everything."""

import pytest
import torch
from torch import Tensor

from tests.support.ranks import run_ranks
from trainer.distributed.rows import gather_rows, reduce_rows
from trainer.errors import ObjectiveError
from trainer.objectives.contrastive import info_nce


def rows(count: int, *, seed: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def test_one_process_keeps_its_rows() -> None:
    local = rows(4, seed=0)
    assert torch.equal(gather_rows(local, counts=[4]), local)
    assert torch.equal(reduce_rows(local, counts=[4], rank=0), local)


def test_gathered_rows_have_no_graph() -> None:
    assert not gather_rows(rows(2, seed=0).requires_grad_(), counts=[2]).requires_grad


@pytest.mark.parametrize("counts", [[2, 2], []])
def test_counts_must_fit_the_ranks(counts: list[int]) -> None:
    with pytest.raises(ObjectiveError, match=r"gather_rows: counts = .*; expected 1 of them"):
        gather_rows(rows(2, seed=0), counts=counts)
    with pytest.raises(ObjectiveError, match=r"reduce_rows: counts = .*; expected 1 of them"):
        reduce_rows(rows(2, seed=0), counts=counts, rank=0)


def test_rows_must_fit_the_counts() -> None:
    with pytest.raises(ObjectiveError, match=r"local = \[2, 3\]; expected \[5, D\]"):
        gather_rows(rows(2, seed=0), counts=[5])
    with pytest.raises(ObjectiveError, match=r"grad = \[2, 3\]; expected \[5, D\]"):
        reduce_rows(rows(2, seed=0), counts=[5], rank=0)


def gather_and_reduce(rank: int, world_size: int, counts: list[int]) -> tuple[Tensor, Tensor]:
    gathered = gather_rows(rows(counts[rank], seed=rank), counts=counts)
    share = rows(sum(counts), seed=10 + rank)
    before = share.clone()
    mine = reduce_rows(share, counts=counts, rank=rank)
    assert torch.equal(share, before)
    assert torch.equal(mine, reduce_rows(share, counts=counts, rank=rank))
    return gathered, mine


def split_loss(rank: int, world_size: int, counts: list[int]) -> tuple[Tensor, Tensor]:
    """The contrastive step across ranks: own queries against all passages; gradients come back."""
    texts = gather_rows(rows(2 * counts[rank], seed=rank), counts=[2 * c for c in counts])
    texts.requires_grad_()
    total, start = sum(counts), sum(counts[:rank])
    # rank-major [W * 2 rows, D]: each rank sent its queries, then its passages
    blocks = texts.split([count for count in counts for _ in range(2)])
    queries, passages = torch.cat(blocks[0::2]), torch.cat(blocks[1::2]).unsqueeze(1)
    own = queries[start : start + counts[rank]]
    loss = info_nce(own, passages, num_positives=1, temperature=0.5, first_row=start)
    loss = loss * counts[rank] / total
    (grad,) = torch.autograd.grad(loss, texts)
    return loss.detach(), reduce_rows(grad, counts=[2 * c for c in counts], rank=rank)


def all_facts(rank: int, world_size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """One launch proves several facts."""
    return {
        "equal": gather_and_reduce(rank, world_size, [4, 4]),
        "unequal": gather_and_reduce(rank, world_size, [2, 5]),
        "empty": gather_and_reduce(rank, world_size, [0, 3]),
        "loss": split_loss(rank, world_size, [2, 5]),
    }


@pytest.mark.dist
def test_two_ranks_equal_one() -> None:
    by_rank = run_ranks(all_facts, 2, timeout_sec=90)
    for name, counts in [("equal", [4, 4]), ("unequal", [2, 5]), ("empty", [0, 3])]:
        everything = torch.cat([rows(count, seed=rank) for rank, count in enumerate(counts)])
        summed = rows(sum(counts), seed=10) + rows(sum(counts), seed=11)
        for rank, facts in enumerate(by_rank):
            gathered, mine = facts[name]
            assert torch.equal(gathered, everything)
            assert torch.equal(mine, summed.split(counts)[rank])
    _assert_split_loss([facts["loss"] for facts in by_rank])


def _assert_split_loss(by_rank: list[tuple[Tensor, Tensor]]) -> None:
    first, second = rows(4, seed=0).requires_grad_(), rows(10, seed=1).requires_grad_()
    queries = torch.cat([first[:2], second[:5]])
    passages = torch.cat([first[2:], second[5:]]).unsqueeze(1)
    loss = info_nce(queries, passages, num_positives=1, temperature=0.5)
    loss.backward()
    # float32, sums in another order
    torch.testing.assert_close(by_rank[0][0] + by_rank[1][0], loss.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(by_rank[0][1], first.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(by_rank[1][1], second.grad, rtol=1e-5, atol=1e-7)
