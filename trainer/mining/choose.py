"""Which candidates of a query become its negatives; it must not search or read files.

Letters: k candidates of a query, best first.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.errors import RecipeError

SPARE = 10
"""Candidates that are searched for each negative where a filter may leave some out."""
OWN_REASONS = ("known", "absolute_margin", "relative_margin", "max_score")
"""Why a candidate is left out by what it is and by its cosine."""
REASONS = (*OWN_REASONS, "guide_margin", "skipped")
"""Why a candidate is left out, in the order in which that is asked."""


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """How negatives are chosen."""

    num_negatives: int = 4
    """Of each query at most."""
    skip_top: int = 0
    """Best candidates that are left out, counted after all filters."""
    max_score: float | None = None
    """Highest cosine of a negative; None: any."""
    relative_margin: float | None = None
    """Highest cosine of a negative as a share of the positive's, such as 0.95 (Moreira et al. 2024,
    NV-Retriever, arXiv:2407.15831); of several positives the least similar counts. None: any."""
    absolute_margin: float | None = None
    """Cosine by which a negative must stay below the positive's; None: any."""
    guide_margin: float | None = None
    """Score by which a negative must stay below the positive's, as a guide or a cross-encoder
    scores them; 0: as in GISTEmbed (Solatorio 2024, arXiv:2402.16829). None: any."""
    sampling: Literal["hardest", "random"] = "hardest"
    """Of what is left: the best, or some by chance."""
    depth: int | None = None
    """Candidates that are searched, besides as many as answer a query; None: `skip_top` and
    `num_negatives`, ten times as many of these where a filter or chance may leave some out."""
    seed: int = 42
    """Of `random`."""

    @property
    def considered(self) -> int:
        """Candidates that are searched, besides as many as answer a query."""
        if self.depth is not None:
            return self.depth
        limits = (
            self.max_score, self.relative_margin, self.absolute_margin, self.guide_margin,
        )  # fmt: skip
        is_filtered = any(one is not None for one in limits) or self.sampling == "random"
        return self.skip_top + self.num_negatives * (SPARE if is_filtered else 1)

    def recorded(self) -> dict[str, Any]:
        """What decides the result."""
        return asdict(self)


def check_settings(settings: MiningSettings) -> None:
    """Refuse settings out of bounds.

    Raises:
        RecipeError: naming the first.
    """
    for name, low in (("num_negatives", 1), ("skip_top", 0)):
        if getattr(settings, name) < low:
            raise _wrong(name, getattr(settings, name), f"at least {low}")
    for name in ("max_score", "relative_margin", "absolute_margin"):
        value = getattr(settings, name)
        if value is not None and not -2 <= value <= 2:
            raise _wrong(name, value, "a number from -2 to 2")
    margin = settings.guide_margin
    if margin is not None and not abs(margin) < float("inf"):
        raise _wrong("guide_margin", margin, "a finite number")
    least = settings.skip_top + settings.num_negatives
    if settings.depth is not None and settings.depth < least:
        raise _wrong("depth", settings.depth, f"at least {least}, skip_top and num_negatives")


def _wrong(name: str, found: object, expected: str) -> RecipeError:
    key = f"--{name.replace('_', '-')}"
    return RecipeError(f"{key}: {found}; expected {expected}. Change it.")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The negatives of one query."""

    passages: NDArray[np.int64]
    """Best first [n], n at most `num_negatives`."""
    scores: NDArray[np.float32]
    """Their cosines [n]."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many candidates each of `REASONS` left out."""


def choose(
    passages: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    known: Collection[int],
    positive: float,
    settings: MiningSettings,
    salt: int,
) -> Chosen:
    """The negatives of one query.

    Args:
        passages: candidates [k], distinct, best first.
        scores: their cosines [k].
        known: passages that answer the query, or are the query's own text.
        positive: cosine of the query's least similar positive.
        settings: filters.
        salt: of the query; chance is a function of it and the seed.
    """
    places, left_out = allowed(passages, scores, known=known, positive=positive, settings=settings)
    return take(passages, scores, places, left_out=left_out, settings=settings, salt=salt)


def allowed(
    passages: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    known: Collection[int],
    positive: float,
    settings: MiningSettings,
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """The candidates of a query that no filter by cosine leaves out.

    Args:
        passages: candidates [k], distinct, best first.
        scores: their cosines [k].
        known: passages that answer the query, or are the query's own text.
        positive: cosine of the query's least similar positive.
        settings: filters.

    Returns:
        Their places among the candidates, ascending, and how many each of `OWN_REASONS` left out.
    """
    stays = np.ones(len(passages), bool)
    left_out = {}
    for reason in OWN_REASONS:
        out = stays & _is_out(reason, passages, scores, known, positive, settings)
        left_out[reason] = int(out.sum())
        stays &= ~out
    return np.flatnonzero(stays), left_out


def take(
    passages: NDArray[np.int64],
    scores: NDArray[np.float32],
    places: NDArray[np.int64],
    *,
    left_out: dict[str, int],
    settings: MiningSettings,
    salt: int,
) -> Chosen:
    """The negatives of one query among the candidates that no filter leaves out.

    Args:
        passages: candidates [k], distinct, best first.
        scores: their cosines [k].
        places: of those that may be taken, ascending.
        left_out: how many each filter left out.
        settings: how many are skipped and taken, and how.
        salt: of the query; chance is a function of it and the seed.
    """
    counts = {**left_out, "skipped": min(len(places), settings.skip_top)}
    places = places[settings.skip_top :]
    if settings.sampling == "random" and len(places) > settings.num_negatives:
        chance = np.random.default_rng([settings.seed, salt])
        places = np.sort(chance.choice(places, settings.num_negatives, replace=False))
    places = places[: settings.num_negatives]
    return Chosen(passages=passages[places], scores=scores[places], left_out=counts)


def _is_out(
    reason: str,
    passages: NDArray[np.int64],
    scores: NDArray[np.float32],
    known: Collection[int],
    positive: float,
    settings: MiningSettings,
) -> NDArray[np.bool_]:
    """Which candidates a filter leaves out [k]."""
    if reason == "known":
        return np.isin(passages, np.fromiter(known, np.int64, len(known)))
    limit = getattr(settings, reason)
    if limit is None:
        return np.zeros(len(passages), bool)
    if reason == "absolute_margin":
        return scores > np.float32(positive - limit)
    if reason == "relative_margin":
        # of a positive below 0 too, the margin lowers what is allowed
        return scores > np.float32(positive - abs(positive) * (1 - limit))
    return scores > np.float32(limit)
