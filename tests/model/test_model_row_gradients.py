"""Gradients added row by row are those of torch's embedding table."""

import pytest
import torch
from torch import Tensor, nn

from trainer.model.row_gradients import RowGradientEmbedding, add_gradients_by_row


def summed_gradient(table: nn.Embedding, ids: list[Tensor]) -> Tensor:
    """Of several backwards, as chunks make them."""
    for i, chunk in enumerate(ids):
        rows = table(chunk)
        weights = torch.linspace(-1, 1, rows.numel()).view_as(rows) * (i + 1)
        (rows * weights).sum().backward()
    assert table.weight.grad is not None
    return table.weight.grad


@pytest.mark.parametrize("padding", [None, 3])
def test_the_gradient_is_that_of_an_ordinary_table(padding: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(50, shape, generator=generator) for shape in [(4, 9), (7,), (1, 30)]]
    plain = nn.Embedding(50, 8, padding_idx=padding)
    ours = nn.Embedding(50, 8, padding_idx=padding)
    ours.load_state_dict(plain.state_dict())
    add_gradients_by_row(ours)
    assert type(ours) is RowGradientEmbedding
    torch.testing.assert_close(ours(ids[0]), plain(ids[0]), rtol=0, atol=0)
    # float32 sums of the same terms; chunks are added to the table in the same order
    torch.testing.assert_close(summed_gradient(ours, ids), summed_gradient(plain, ids))
    if padding is not None:
        assert not ours.weight.grad[padding].any()  # type: ignore[index]


def test_a_bfloat16_table_adds_up_in_the_dtype_it_asks_for() -> None:
    table = nn.Embedding(4, 2, dtype=torch.bfloat16)
    table.weight.grad_dtype = torch.float32
    add_gradients_by_row(table)
    # 256 + 1 is lost in bfloat16
    for value in (256.0, 1.0):
        (table(torch.tensor([2])) * value).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.dtype == torch.float32
    assert table.weight.grad[2].tolist() == [257.0, 257.0]


def test_unusual_and_frozen_tables_are_left_to_torch() -> None:
    unusual = nn.Embedding(4, 2, sparse=True)
    add_gradients_by_row(unusual)
    assert type(unusual) is nn.Embedding
    frozen = nn.Embedding(4, 2).requires_grad_(False)
    add_gradients_by_row(frozen)
    assert not frozen(torch.tensor([1])).requires_grad
