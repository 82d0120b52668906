"""What is known of changes of a tensor without forming them; it must not know files or names.

Letters: r rank of an adapter, m rows and n columns of the weight, K checkpoints.
"""

import torch
from torch import Tensor

from trainer.checkpoint.tensors import LowRankTensor, SlicedTensor, numel, read_whole

COMPARED_ELEMENTS = 1 << 20
"""Elements of whole tensors that are compared at once."""


def is_low_rank_change(tuned: SlicedTensor, base: SlicedTensor) -> bool:
    """Whether a tensor is `base + scale * B A` of this very base, and nothing else."""
    return isinstance(tuned, LowRankTensor) and tuned.weight is base and tuned.magnitude is None


def factors(tensor: LowRankTensor) -> tuple[Tensor, Tensor]:
    """Scale * B [m, r] and A [r, n] of a change, float64."""
    left, right = read_whole(tensor.left), read_whole(tensor.right)
    if tensor.transposed:
        left, right = left.t(), right.t()
    return left * tensor.scale, right


def row_norms(left: Tensor, right: Tensor) -> Tensor:
    """L2 norm of each row of `left @ right` without forming it [m].

    The square of row i is b_i (A A^T) b_i^T: r^2 (m + n) multiplications in place of r m n.

    Args:
        left: [m, r], float64.
        right: [r, n], float64.
    """
    gram_rr = right @ right.t()
    # rounding may leave a tiny negative number where a row is zero
    return ((left @ gram_rr) * left).sum(1).clamp_min_(0).sqrt_()


def change_norms(tuned: tuple[SlicedTensor, ...], base: SlicedTensor) -> Tensor | None:
    """L2 norm of each checkpoint's change [K], float64, from factors alone.

    Returns:
        None where some checkpoint's change is not of low rank, or is no finite number.
    """
    norms = []
    for one in tuned:
        if one is base:
            norms.append(torch.zeros((), dtype=torch.float64))
        elif isinstance(one, LowRankTensor) and is_low_rank_change(one, base):
            norms.append(torch.linalg.vector_norm(row_norms(*factors(one))))
        else:
            return None
    norm_K = torch.stack(norms)
    return norm_K if bool(norm_K.isfinite().all()) else None


def equal_values(one: SlicedTensor, other: SlicedTensor) -> bool:
    """Whether two tensors hold the same values, read block by block.

    Args:
        one: any tensor.
        other: any tensor.
    """
    if tuple(one.shape) != tuple(other.shape):
        return False
    readers = [one.open(), other.open()]
    for start in range(0, numel(one.shape), COMPARED_ELEMENTS):
        count = min(COMPARED_ELEMENTS, numel(one.shape) - start)
        blocks = [torch.empty(count, dtype=torch.float64) for _ in readers]
        for read, block in zip(readers, blocks, strict=True):
            read(start, block)
        if not torch.equal(*blocks):
            return False
    return True
