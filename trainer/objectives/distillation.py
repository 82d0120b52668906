"""Losses that bring scores or vectors near a teacher's; it must not gather, weigh or sum them.

The teacher's numbers are constant to the gradient. Losses of scores take those of one query's
candidates in a row, the positive in column 0, and the teacher's of the same candidates. All compute
in float32 (float64 if an input is float64) and return a scalar []; 0, connected to the model's
numbers, where there are no rows. Letters: B queries, C candidates of each, n texts, D embedding
size.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.objectives.arguments import compute_dtype, require, require_temperature, shape
from trainer.objectives.prefixes import SMALLEST_NORM


def kl_loss(
    scores: Tensor, teacher: Tensor, *, temperature: float, teacher_temperature: float | None = None
) -> Tensor:
    """Divergence of the scores' softmax from the teacher's, times the squared temperature.

    `tau^2 KL(softmax(teacher / tau_t) || softmax(scores / tau))`, mean over the rows. The factor
    keeps gradients of one size whatever the temperature.

    Args:
        scores: of the model [B, C].
        teacher: of the teacher [B, C], on any scale.
        temperature: tau, divides the scores; no unit, greater than 0.
        teacher_temperature: tau_t, divides the teacher's; None: as `temperature`.

    Returns:
        Mean over the B queries, scalar [], in nats times tau^2, at least 0.

    Raises:
        ObjectiveError: if the shapes differ, or a temperature is not above 0.

    Collective: no.
    Reference: Hinton et al. 2015, arXiv:1503.02531, section 2; as sentence-transformers'
        DistillKLDivLoss has it.
    """
    divergence = kl_divergence(
        scores, teacher, temperature=temperature, teacher_temperature=teacher_temperature
    )
    return temperature**2 * divergence


def kl_divergence(
    scores: Tensor, teacher: Tensor, *, temperature: float, teacher_temperature: float | None = None
) -> Tensor:
    """The divergence of `kl_loss` without the squared temperature, in nats.

    Reference: the distillation of FlagEmbedding, Chen et al. 2024, arXiv:2402.03216. At the
    temperatures of cosines the factor would leave next to nothing beside InfoNCE.
    """
    scores, teacher = _scaled(scores, teacher, temperature, teacher_temperature, "kl_loss")
    target, log_found = teacher.softmax(1), scores.log_softmax(1)
    # a candidate that the teacher rules out counts nothing: 0 log 0 = 0
    divergence = torch.xlogy(target, target) - target * log_found
    return divergence.sum() / max(1, len(scores))


def margin_mse_loss(
    scores: Tensor, teacher: Tensor, *, temperature: float, teacher_temperature: float | None = None
) -> Tensor:
    """Squared error of how far the positive is above each other candidate.

    `((s_0 - s_c) / tau - (t_0 - t_c) / tau_t)^2`, mean over rows and the C - 1 others.

    Args:
        scores: of the model [B, C], the positive's in column 0.
        teacher: of the teacher [B, C].
        temperature: tau, divides the scores; no unit, greater than 0.
        teacher_temperature: tau_t, divides the teacher's; None: as `temperature`.

    Returns:
        Mean over the B (C - 1) margins, scalar [], at least 0.

    Raises:
        ObjectiveError: if the shapes differ, or a temperature is not above 0.

    Collective: no.
    Reference: Hofstätter et al. 2020, arXiv:2010.02666, eq. 3. Its scores have no temperature: that
        is temperature 1, and sentence-transformers' MarginMSELoss.
    """
    scores, teacher = _scaled(scores, teacher, temperature, teacher_temperature, "margin_mse_loss")
    difference = (scores[:, :1] - scores[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    return difference.square().sum() / max(1, difference.numel())


def mse_softmax_loss(
    scores: Tensor, teacher: Tensor, *, temperature: float, teacher_temperature: float | None = None
) -> Tensor:
    """Squared error of the scores' softmax against the teacher's.

    `(softmax(s / tau)_c - softmax(t / tau_t)_c)^2`, mean over rows and candidates: bounded, so that
    a teacher that is sure and wrong cannot outweigh the others.

    Args:
        scores: of the model [B, C].
        teacher: of the teacher [B, C], on any scale.
        temperature: tau, divides the scores; no unit, greater than 0.
        teacher_temperature: tau_t, divides the teacher's; None: as `temperature`.

    Returns:
        Mean over the B C candidates, scalar [], 0 to 1.

    Raises:
        ObjectiveError: if the shapes differ, or a temperature is not above 0.

    Collective: no.
    """
    scores, teacher = _scaled(scores, teacher, temperature, teacher_temperature, "mse_softmax_loss")
    difference = scores.softmax(1) - teacher.softmax(1)
    return difference.square().sum() / max(1, difference.numel())


def embedding_loss(vectors: Tensor, teacher: Tensor) -> Tensor:
    """How far the vectors of texts point elsewhere than a teacher's.

    `1 - cos(v_i, t_i)`, mean over the texts.

    Args:
        vectors: of the model [n, D], of any norm.
        teacher: of the teacher [n, D], of any norm but 0.

    Returns:
        Mean over the n texts, scalar [], 0 to 2.

    Raises:
        ObjectiveError: if the shapes differ, or are not [n, D].

    Collective: no.
    Reference: the cosine loss of Zhang et al. 2024 (Jasper and Stella), arXiv:2412.19048, as a mean
        where they sum, so that a step's value does not grow with its texts. Schechter Vera et al.
        2025 (EmbeddingGemma), arXiv:2509.20354, match queries, positives and hard negatives in
        three sums and leave the distance open; here every text counts the same, whatever its part.
    """
    advice = "Give the teacher's vector of every text; a projection can change the model's size."
    got = [shape(vectors), shape(teacher)]
    holds = vectors.ndim == 2 and vectors.shape == teacher.shape
    require(holds, "embedding_loss: vectors, teacher", got, "[n, D] and [n, D]", advice)
    dtype = compute_dtype((vectors, teacher))
    with torch.autocast(vectors.device.type, enabled=False):
        target = teacher.detach().to(dtype)
        target = target / torch.linalg.vector_norm(target, dim=1, keepdim=True)
        cosines = (normalize(vectors.to(dtype), dim=1, eps=SMALLEST_NORM) * target).sum(1)
    return (1 - cosines).sum() / max(1, len(cosines))


def _scaled(
    scores: Tensor, teacher: Tensor, temperature: float, other: float | None, function: str
) -> tuple[Tensor, Tensor]:
    """Both over their temperature, in the dtype of the computation, the teacher's constant."""
    advice = "Give the teacher's score of every candidate."
    got = [shape(scores), shape(teacher)]
    holds = scores.ndim == 2 and scores.shape == teacher.shape
    require(holds, f"{function}: scores, teacher", got, "[B, C] and [B, C]", advice)
    require_temperature(temperature, function)
    other = temperature if other is None else other
    require_temperature(other, function)
    dtype = compute_dtype((scores, teacher))
    target = teacher.detach().to(dtype)
    if target.numel():
        # a constant of each row, which changes no softmax and no margin, and lets none overflow
        target = target - target.amax(1, keepdim=True)
    return scores.to(dtype) / temperature, target / other


DISTANCES: dict[str, Callable[..., Tensor]] = {
    "kl": kl_divergence,
    "margin_mse": margin_mse_loss,
    "mse_softmax": mse_softmax_loss,
}
"""By the name that a recipe gives them."""
