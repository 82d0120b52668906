"""The supervised contrastive loss over all texts of a batch; it must not call a collective.

Letters: U texts of the batch, B of them in this call, D embedding size.

Reference: Khosla et al. 2020, arXiv:2004.11362, eq. 2 (the sum over positives outside the
logarithm). Differences: texts without a positive in the batch are no anchors, where the paper's
augmented pairs always have one; the mean over anchors is taken in place of the sum.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.objectives.arguments import compute_dtype, require, require_temperature, shape
from trainer.objectives.prefixes import WHOLE, Prefix, cut
from trainer.objectives.tiles import TILE_BYTES


def supcon(
    anchors: Tensor,
    texts: Tensor,
    positive: Tensor,
    *,
    temperature: float,
    first_row: int = 0,
    prefixes: Sequence[Prefix] = (WHOLE,),
) -> Tensor:
    """Mean over anchors of `-1 / |P(i)| sum_p log softmax_a(z_i . z_a / temperature)[p]`.

    P(i) are the positives of anchor i, and a runs over all texts but the anchor. So a text of the
    same label is never pushed away but as one of several positives that share the probability.

    Computed in float32, or in float64 if an input is float64, whatever autocast says. Logits are
    made again in the backward pass, some anchors at a time. Embeddings are taken as given: for
    cosine similarity the caller gives them unit norm.

    Args:
        anchors: texts first_row .. first_row + B of the U [B, D].
        texts: all texts [U, D].
        positive: which texts share a label with an anchor [B, U], bool; the anchor itself is left
            out, whatever is said of it.
        temperature: divides the dot product; no unit, greater than 0.
        first_row: number of the first anchor among the texts.
        prefixes: leading dimensions whose losses are summed with their weights.

    Returns:
        Mean over the anchors that have a positive, scalar [], in nats; a connected 0 if none has.
        The loss of the batch is the mean of the ranks' values weighted by those anchors.

    Raises:
        ObjectiveError: if the shapes do not agree or the temperature is not above 0.

    Collective: no.
    """
    _check(anchors, texts, positive, first_row)
    require_temperature(temperature, "supcon")
    rows = torch.arange(len(anchors), device=positive.device)
    positive = positive.clone()
    positive[rows, rows + first_row] = False
    total = 0.0 * anchors.sum()
    dtype = compute_dtype((anchors, texts))
    with torch.autocast(anchors.device.type, enabled=False):
        for prefix in prefixes:
            own, others = (cut(side.to(dtype), prefix) for side in (anchors, texts))
            total = total + prefix.weight * _summed(own, others, positive, temperature, first_row)
    return total / positive.any(dim=1).sum().clamp_min(1)


def _summed(
    anchors: Tensor, texts: Tensor, positive: Tensor, temperature: float, first_row: int
) -> Tensor:
    """The sum over anchors, some at a time, none of whose logits are kept."""
    rows = max(1, TILE_BYTES // max(1, len(texts) * anchors.element_size()))
    parts = [
        checkpoint(
            _some, anchors[start : start + rows], texts, positive[start : start + rows],
            temperature, first_row + start, use_reentrant=False,
        )
        for start in range(0, len(anchors), rows)
    ]  # fmt: skip
    return torch.stack(parts).sum() if parts else 0.0 * texts.sum()


def _some(
    anchors: Tensor, texts: Tensor, positive: Tensor, temperature: float, first_row: int
) -> Tensor:
    """The sum over some anchors [b, D], of all texts [U, D] and their positives [b, U]."""
    logits = anchors @ texts.T / temperature
    own = torch.arange(len(anchors), device=logits.device)
    others = logits.index_put((own, own + first_row), logits.new_tensor(-math.inf))
    counts = positive.sum(dim=1)
    mean = logits.masked_fill(~positive, 0.0).sum(dim=1) / counts.clamp_min(1)
    # a single text has no other, and minus infinity times 0 is no number
    return torch.where(counts > 0, others.logsumexp(dim=1) - mean, 0.0).sum()


def _check(anchors: Tensor, texts: Tensor, positive: Tensor, first_row: int) -> None:
    got = [shape(anchors), shape(texts), shape(positive)]
    holds = anchors.ndim == texts.ndim == 2 and anchors.shape[1] == texts.shape[1]
    holds = holds and shape(positive) == [len(anchors), len(texts)]
    advice = "Give one flag for each anchor and text."
    require(holds, "supcon: shapes", got, "[B, D], [U, D] and [B, U]", advice)
    last = len(texts) - len(anchors)
    advice = "The anchors must be texts first_row .. first_row + B of the U."
    require(0 <= first_row <= last, "supcon: first_row", first_row, f"0 to {last}", advice)
