"""Which STS losses there are, by name; it must not know where weights come from."""

from collections.abc import Callable, Mapping

from torch import Tensor

from trainer.objectives.arguments import require
from trainer.objectives.ranking import cosent_loss, pearson_loss, pro_loss, rank_kl_loss


def _cosent_term(pred: Tensor, gold: Tensor, *, temperature: float) -> Tensor:
    return cosent_loss(pred, gold, scale=1 / temperature)


PLAIN_TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"pearson": pearson_loss}
"""Losses of (pred [n], gold [n])."""

TEMPERED_TERMS: dict[str, Callable[..., Tensor]] = {
    "rank_kl": rank_kl_loss,
    "pro": pro_loss,
    "cosent": _cosent_term,
}
"""Losses of (pred [n], gold [n]) that also need a `temperature`."""

STS_TERMS = (*PLAIN_TERMS, *TEMPERED_TERMS)
"""Every name that `sts_loss` knows; the auxiliary InfoNCE needs embeddings and is not one."""


def sts_loss(
    cosines: Tensor,
    gold: Tensor,
    *,
    weights: Mapping[str, float],
    temperatures: Mapping[str, float],
) -> dict[str, Tensor]:
    """The unweighted value of each term whose weight is not 0; the others are not computed.

    Args:
        cosines: predicted similarities [n].
        gold: gold scores [n].
        weights: weight by name of STS_TERMS.
        temperatures: temperature by name, for those of TEMPERED_TERMS that are computed.

    Returns:
        Scalars [] by name, in the order of `weights`, each connected to `cosines`.

    Raises:
        ObjectiveError: if a name is unknown, or a temperature is missing.

    Collective: no.
    """
    terms: dict[str, Tensor] = {}
    for name, weight in weights.items():
        require(name in STS_TERMS, "sts_loss: weights", name, f"one of {STS_TERMS}", "Rename it.")
        if weight == 0:
            continue
        if name in PLAIN_TERMS:
            terms[name] = PLAIN_TERMS[name](cosines, gold)
            continue
        given = name in temperatures
        advice = f"Give a temperature for {name}."
        require(given, "sts_loss: temperatures", sorted(temperatures), f"{name} among them", advice)
        terms[name] = TEMPERED_TERMS[name](cosines, gold, temperature=temperatures[name])
    return terms
