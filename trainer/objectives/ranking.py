"""Losses that compare predicted with gold similarities; it must not gather, weigh or sum them.

All take predictions [n] and gold scores [n], gold as it comes and constant to the gradient, compute
in float32 (float64 if an input is float64), and return a scalar []. Where the gold scores order
nothing (n < 2, or all equal) the value is 0 and stays connected to the predictions, so that every
rank runs the same backward.
"""

import math

import torch
from torch import Tensor

from trainer.objectives.arguments import compute_dtype, require, require_temperature, shape

MIN_DEVIATION = 1e-6
"""Smallest standard deviation that predictions are divided by, in units of cosine similarity.

It lies above float32's rounding of cosines and below any spread that training meets.
"""

MIN_GAP = 1e-8
"""Gold scores closer than this are tied for PRO, in units of the gold score."""


def pearson_loss(pred: Tensor, gold: Tensor) -> Tensor:
    """One minus the Pearson correlation.

    Predictions whose standard deviation is under MIN_DEVIATION are divided by that instead: the
    value is then near 1 (1 up to rounding for constant predictions), value and gradient finite.

    Args:
        pred: predicted similarities [n].
        gold: gold scores [n].

    Returns:
        `1 - corr(pred, gold)`, scalar [], 0 to 2.

    Raises:
        ObjectiveError: if the shapes are not two equal [n].

    Collective: no.
    Reference: CoDiEmb, arXiv:2508.11442.
    """
    pred, gold = _read(pred, gold, "pearson_loss")
    if len(pred) < 2:
        return 0 * pred.sum()
    pred_centred, gold_centred = pred - pred.mean(), gold - gold.mean()
    covariance = (pred_centred * gold_centred).mean()
    some_order = _some_order(gold)
    # Equal golds are divided by 1, not by the rounding noise of 0; the last line drops their term.
    gold_deviation = torch.where(some_order > 0, _deviation(gold_centred), 1)
    pred_deviation = _deviation(pred_centred).clamp_min(MIN_DEVIATION)
    return some_order * (1 - covariance / (pred_deviation * gold_deviation))


def rank_kl_loss(pred: Tensor, gold: Tensor, *, temperature: float) -> Tensor:
    """RankKL: divergence of the predictions' softmax from that of the gold ranks, over n.

    With r_i the average rank of gold_i in descending order (0-based, ties share their mean) and
    t_i = (n - 1 - r_i) / (n - 1): `KL(softmax(t / tau) || softmax(pred / tau)) / n`.

    Args:
        pred: predicted similarities [n].
        gold: gold scores [n].
        temperature: tau, divides both; no unit, greater than 0.

    Returns:
        The divergence divided by n, scalar [], in nats per pair, at least 0.

    Raises:
        ObjectiveError: if the shapes are not two equal [n], or the temperature is not above 0.

    Collective: no.
    Reference: CoDiEmb, arXiv:2508.11442. Difference: the division by n is not in its formula but in
        what its authors' release computes, a batch mean over one list; their weight of 5 belongs to
        it.
    """
    pred, gold = _read(pred, gold, "rank_kl_loss")
    require_temperature(temperature, "rank_kl_loss")
    num_pairs = len(pred)
    if num_pairs < 2:
        return 0 * pred.sum()
    targets = (num_pairs - 1 - _descending_ranks(gold)) / (num_pairs - 1)
    log_target = torch.log_softmax(targets / temperature, dim=0)
    log_pred = torch.log_softmax(pred / temperature, dim=0)
    divergence = (log_target.exp() * (log_target - log_pred)).sum()
    return _some_order(gold) * divergence / num_pairs


def pro_loss(pred: Tensor, gold: Tensor, *, temperature: float) -> Tensor:
    """PRO: each pair against all pairs of lower gold, weighted by how much lower they are.

    For each k with a non-empty tail T_k = {j : gold_k - gold_j > MIN_GAP}: weights
    w_j = gold_k - gold_j and w_k = max_j w_j, and the term `-log softmax` at its first entry of
    [w_k pred_k / tau, (w_j pred_j / tau) for j in T_k]. Weights depend on the scale of gold.

    Args:
        pred: predicted similarities [n].
        gold: gold scores [n].
        temperature: tau, no unit, greater than 0.

    Returns:
        Mean over the k with a non-empty tail, scalar [], in nats. Memory grows as n^2: about
        24 n^2 bytes in float32, 400 MB at n = 4,096.

    Raises:
        ObjectiveError: if the shapes are not two equal [n], or the temperature is not above 0.

    Collective: no.
    Reference: CoDiEmb, arXiv:2508.11442, after Song et al. 2023, arXiv:2306.17492.
    """
    pred, gold = _read(pred, gold, "pro_loss")
    require_temperature(temperature, "pro_loss")
    if len(pred) < 2:
        return 0 * pred.sum()
    gaps = gold[:, None] - gold[None, :]  # [k, j]
    in_tail = gaps > MIN_GAP
    heads = gaps.amax(1) * pred / temperature
    logits = torch.where(in_tail, gaps * (pred / temperature), -math.inf)
    # k is not in its own tail: its free place on the diagonal holds the head.
    total = torch.diagonal_scatter(logits, heads).logsumexp(1)
    counted = in_tail.any(1).to(pred.dtype)
    return ((total - heads) * counted).sum() / counted.sum().clamp_min(1)


def cosent_loss(pred: Tensor, gold: Tensor, *, scale: float = 20.0) -> Tensor:
    """CoSENT: log of one plus the exponentials of all wrongly ordered differences.

    `log(1 + sum exp(scale * (pred_j - pred_i)))` over all i, j with gold_i > gold_j.

    Args:
        pred: predicted similarities [n].
        gold: gold scores [n].
        scale: inverse temperature, no unit, greater than 0.

    Returns:
        The loss, scalar [], in nats. Memory grows as n^2: about 16 n^2 bytes in float32.

    Raises:
        ObjectiveError: if the shapes are not two equal [n], or the scale is not above 0.

    Collective: no.
    Reference: Su 2022, https://kexue.fm/archives/8847, eq. 8.
    """
    pred, gold = _read(pred, gold, "cosent_loss")
    advice = "Give a positive number, such as 20."
    require(0 < scale < math.inf, "cosent_loss: scale", scale, "above 0", advice)
    ordered = gold[:, None] > gold[None, :]  # [i, j]
    differences = scale * (pred[None, :] - pred[:, None])
    exponents = torch.where(ordered, differences, -math.inf)
    return torch.cat([exponents.new_zeros(1), exponents.flatten()]).logsumexp(0)


def angle_loss(first: Tensor, second: Tensor, gold: Tensor, *, scale: float = 20.0) -> Tensor:
    """AnglE: CoSENT on a similarity whose gradient does not vanish where the cosine saturates.

    With z and w the texts as complex vectors [n, D / 2], real parts in the first half of the
    dimensions and imaginary parts in the second: `pred = |Re + Im of sum_k z_k conj(w_k)|`, a sum
    of cosine and sine. An odd D is read as if a 0 were appended.

    Args:
        first: embeddings of the first texts [n, D], unit norm.
        second: embeddings of the second texts [n, D], unit norm.
        gold: gold scores [n].
        scale: inverse temperature, no unit, greater than 0.

    Returns:
        The loss, scalar [], in nats. Memory grows as n^2, as that of CoSENT.

    Raises:
        ObjectiveError: if the shapes do not agree, or the scale is not above 0.

    Collective: no.
    Reference: Li and Li 2023, arXiv:2309.12871, eq. 5 to 8, with their release's scale of 20; as
        sentence-transformers' AnglELoss.
    """
    holds = first.ndim == 2 and first.shape == second.shape
    advice = "Give both sides of every pair."
    got = [shape(first), shape(second)]
    require(holds, "angle_loss: first, second", got, "[n, D] and [n, D]", advice)
    dtype = compute_dtype((first, second, gold))
    left, right = (
        torch.nn.functional.pad(v.to(dtype), (0, v.shape[1] % 2)) for v in (first, second)
    )
    (real, imaginary), (its_real, its_imaginary) = left.chunk(2, 1), right.chunk(2, 1)
    cosines = (left * right).sum(1)
    sines = (imaginary * its_real - real * its_imaginary).sum(1)
    return cosent_loss((cosines + sines).abs(), gold, scale=scale)


def _read(pred: Tensor, gold: Tensor, function: str) -> tuple[Tensor, Tensor]:
    """Both in the dtype of the computation, gold without gradient."""
    holds = pred.ndim == 1 and pred.shape == gold.shape
    advice = "Give one gold score per prediction."
    got = [shape(pred), shape(gold)]
    require(holds, f"{function}: pred, gold", got, "[n] and [n]", advice)
    dtype = compute_dtype((pred, gold))
    return pred.to(dtype), gold.detach().to(dtype)


def _deviation(centred: Tensor) -> Tensor:
    """Standard deviation of centred values [n]; a norm has gradient 0 at 0, a square root none."""
    return torch.linalg.vector_norm(centred) / math.sqrt(len(centred))


def _some_order(gold: Tensor) -> Tensor:
    """1 if any two gold scores differ, else 0, scalar []; no device synchronisation."""
    return (gold != gold[0]).any().to(gold.dtype)


def _descending_ranks(gold: Tensor) -> Tensor:
    """0-based ranks in descending order, ties sharing their mean rank [n]."""
    ascending = gold.sort().values
    num_below = torch.searchsorted(ascending, gold, right=False)
    num_not_above = torch.searchsorted(ascending, gold, right=True)
    num_above = len(gold) - num_not_above
    num_tied = num_not_above - num_below
    return num_above + (num_tied - 1).to(gold.dtype) / 2
