"""The only collectives of the losses: rows of all ranks, and their gradients back.

Neither takes part in autograd: the gradient cache carries gradients across the ranks by hand, as
plain tensors. It must not scale anything: sums stay sums.
"""

import torch
from torch import Tensor
from torch import distributed as dist

from trainer.errors import ObjectiveError


def gather_rows(local: Tensor, *, counts: list[int]) -> Tensor:
    """Rows of all ranks in rank order.

    Args:
        local: this rank's rows [counts[rank], D].
        counts: rows of each rank, the same list on all ranks.

    Returns:
        All rows [sum(counts), D], without graph. Without a process group: `local` itself.

    Raises:
        ObjectiveError: if `counts` does not fit the ranks or the local rows.

    Collective: yes.
    """
    _check_ranks(counts, "gather_rows")
    rank = dist.get_rank() if dist.is_initialized() else 0
    promised = counts[rank]
    if len(local) != promised:
        raise ObjectiveError(
            f"distributed: gather_rows: local = {list(local.shape)}; expected [{promised}, D]. "
            "Give each rank as many rows as counts promises."
        )
    local = local.detach()
    if len(counts) == 1:
        return local
    longest = max(counts)
    gathered = local.new_empty((len(counts), longest, *local.shape[1:]))
    dist.all_gather(list(gathered.unbind(0)), _padded(local, longest))
    if min(counts) == longest:
        # [W, rows, D] -> [W * rows, D]
        return gathered.flatten(0, 1)
    return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])


def reduce_rows(grad: Tensor, *, counts: list[int], rank: int) -> Tensor:
    """The sum over the ranks of one rank's rows: the way back of `gather_rows`.

    Args:
        grad: this rank's share of the gradient to all rows [sum(counts), D]; left as it is.
        counts: rows of each rank, the same list on all ranks.
        rank: this rank's number.

    Returns:
        Gradient to this rank's rows [counts[rank], D], a sum, not a mean; the same bits on every
        run with the same ranks. Without a process group: `grad` itself.

    Raises:
        ObjectiveError: if `counts` does not fit the ranks or the rows of `grad`.

    Collective: yes.
    """
    _check_ranks(counts, "reduce_rows")
    total = sum(counts)
    if len(grad) != total:
        raise ObjectiveError(
            f"distributed: reduce_rows: grad = {list(grad.shape)}; expected [{total}, D]. "
            "Give the gradient to the rows of all ranks."
        )
    if len(counts) == 1:
        return grad
    if dist.get_backend() != "nccl":
        # gloo has no reduce-scatter of its own: reduce all rows and keep ours.
        summed = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.split(counts)[rank].clone()
    longest = max(counts)
    blocks = grad.contiguous()
    if min(counts) != longest:
        blocks = torch.cat([_padded(rows, longest) for rows in grad.split(counts)])
    summed = blocks.new_empty((longest, *grad.shape[1:]))
    dist.reduce_scatter_tensor(summed, blocks)
    return summed[: counts[rank]]


def _check_ranks(counts: list[int], function: str) -> None:
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    if len(counts) != num_ranks:
        raise ObjectiveError(
            f"distributed: {function}: counts = {counts}; expected {num_ranks} of them. "
            "Give the row count of every rank, in rank order."
        )


def _padded(rows: Tensor, num_rows: int) -> Tensor:
    """Rows followed by zeros, contiguous [num_rows, D]; the padding is sent but never read."""
    if len(rows) == num_rows:
        return rows.contiguous()
    padded = rows.new_zeros((num_rows, *rows.shape[1:]))
    padded[: len(rows)] = rows
    return padded
