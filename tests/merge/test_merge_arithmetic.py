import pytest
import torch

from tests.support.merge_truth import naive_weights
from trainer.merge.arithmetic import add_ties, add_weighted, delta_weights, group_norms, kth_largest
from trainer.merge.settings import MergeSettings


def test_weights_are_shares_of_powers_of_norms() -> None:
    norms = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)

    weights = delta_weights(norms, 2.0)

    assert torch.allclose(weights, torch.tensor([[0.9, 0.5], [0.1, 0.5]], dtype=torch.float64))


def test_alpha_zero_is_uniform_even_for_a_checkpoint_that_did_not_move() -> None:
    norms = torch.tensor([[0.0], [5.0], [0.0]], dtype=torch.float64)

    assert delta_weights(norms, 0.0).flatten().tolist() == [1 / 3] * 3


def test_without_any_move_no_checkpoint_has_weight() -> None:
    assert delta_weights(torch.zeros(2, 1, dtype=torch.float64), 1.0).tolist() == [[0.0], [0.0]]


def test_negative_alpha_gives_all_weight_to_those_that_did_not_move() -> None:
    norms = torch.tensor([[0.0, 2.0], [0.0, 1.0], [4.0, 1.0]], dtype=torch.float64)

    weights = delta_weights(norms, -1.0)

    assert weights[:, 0].tolist() == [0.5, 0.5, 0.0]
    assert weights[:, 1].tolist() == [0.2, 0.4, 0.4]


@pytest.mark.parametrize("alpha", [300.0, -300.0])
def test_huge_exponents_do_not_overflow(alpha: float) -> None:
    norms = torch.tensor([[1e-30], [1e30]], dtype=torch.float64)

    weights = delta_weights(norms, alpha)

    assert sorted(weights.flatten().tolist()) == [0.0, 1.0]
    assert int(weights.argmax()) == (1 if alpha > 0 else 0)


@pytest.mark.parametrize("granularity", ["tensor", "row", "element"])
def test_group_norms_and_weights_agree_with_the_naive_ones(granularity: str) -> None:
    torch.manual_seed(1)
    delta = torch.randn(3, 6, 5, dtype=torch.float64)
    groups = {"tensor": 1, "row": 6, "element": 30}[granularity]

    weights = delta_weights(group_norms(delta.flatten(1), groups), 1.5)
    summed = torch.zeros(30, dtype=torch.float64)
    add_weighted(summed, delta.flatten(1), weights)

    naive = naive_weights(list(delta), MergeSettings(alpha=1.5, granularity=granularity))
    wanted = sum(w * d for w, d in zip(naive, delta, strict=True))
    # both are float64; only the order of sums differs
    assert torch.allclose(summed.view(6, 5), wanted, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("rank", [1, 2, 17, 499, 1000])
def test_kth_largest_is_exact_across_blocks(rank: int) -> None:
    torch.manual_seed(2)
    delta = torch.randn(2, 1000, dtype=torch.float64) * torch.logspace(-200, 200, 1000)
    delta[:, 100:120] = delta[:, 99:100]  # equal magnitudes
    delta[1, 300:400] = 0.0

    found = kth_largest(lambda: delta.split(64, dim=1), 2, rank)

    assert torch.equal(found, delta.abs().sort(dim=1, descending=True).values[:, rank - 1])


def test_ties_follows_the_papers_steps() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    delta = torch.tensor([[4.0, -1.0, 0.1, 2.0], [2.0, 3.0, 0.2, -2.0]], dtype=torch.float64)

    used = add_ties(base, delta, torch.tensor([1.0, 2.0], dtype=torch.float64), 0.5)

    # mean of agreeing kept changes: 3, 3 (sign + wins over -1), none kept, exact tie
    assert base.tolist() == [2.5, 2.5, 1.0, 1.0]
    assert used.tolist() == [1, 2]
