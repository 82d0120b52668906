"""An embedding table whose gradient is added up by the rows that were looked up.

torch gives the gradient of `nn.Embedding` as a table of full size for every backward, zero almost
everywhere: with many chunks that is many times the table in traffic, and once more the table in
memory. Here each backward adds its few rows to one table. It must not be used where hooks wait for
the gradient of the table, as ZeRO's do.

Letters: V rows of the table, H hidden size, T tokens, R distinct rows among them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RowGradientEmbedding(nn.Embedding):
    """`nn.Embedding` that writes `weight.grad` itself, in the dtype that the weight asks for."""

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the table [..., H]."""
        if not (self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(ids)
        padding = -1 if self.padding_idx is None else self.padding_idx
        rows: Tensor = _Lookup.apply(self.weight, ids, padding)
        return rows


def add_gradients_by_row(model: nn.Module) -> None:
    """Change the class of every ordinary embedding table of a model, in place."""
    for module in model.modules():
        if type(module) is nn.Embedding and _is_ordinary(module):
            module.__class__ = RowGradientEmbedding


def _is_ordinary(table: nn.Embedding) -> bool:
    """Whether the gradient is a plain sum over tokens."""
    return table.max_norm is None and not table.scale_grad_by_freq and not table.sparse


class _Lookup(torch.autograd.Function):
    """Look up rows; the way back adds to `weight.grad` and gives autograd nothing to add."""

    @staticmethod
    def forward(ctx: Any, weight: nn.Parameter, ids: Tensor, padding: int) -> Tensor:
        ctx.weight, ctx.ids, ctx.padding = weight, ids, padding
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        weight = ctx.weight
        row_R, place_T = ctx.ids.unique(return_inverse=True)
        # [T, H] -> [R, H], in the same order of sums on every run
        grad_RH = torch.ops.aten.embedding_dense_backward(
            grad.to(_dtype_of(weight)), place_T, len(row_R), -1, False
        )
        if ctx.padding >= 0:
            grad_RH[row_R == ctx.padding] = 0
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight, dtype=_dtype_of(weight))
        weight.grad[row_R] += grad_RH
        return None, None, None


def _dtype_of(weight: nn.Parameter) -> torch.dtype:
    """Of the gradient that a weight asks for."""
    return weight.grad_dtype or weight.dtype
