"""What a client embedded, beside `parity.json`: ids first, then vectors; it runs no client."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.export.clients.tokens import first_difference
from trainer.export.parity_file import Parity

LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.999}
"""By dtype of the weights: other kernels and sums in another order leave far less in float32; each
rounding to bfloat16 takes three decimals of a state."""
NORM_TOLERANCE = 0.01
"""How far from 1 the norm of a client's vector may be, 16-bit answers included."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What a client made of texts of `parity.json`."""

    numbers: Sequence[int]
    """Which texts, n of them."""
    vectors: np.ndarray
    """As the client gives them [n, D]."""
    token_ids: Sequence[Sequence[int]] | None
    """As the client has them; None where it does not tell."""


@dataclass(frozen=True)
class Judgement:
    """How far a client is from the trainer."""

    cosine: float | None
    """Least over the texts; None if the vectors have another size."""
    field: str | None = None
    """What differs first; None: nothing."""
    reason: str | None = None
    """A sentence on it."""
    norm: str | None = None
    """A sentence on a vector whose norm is not 1, where directions agree."""


def judge(parity: Parity, embedded: Embedded, least: float) -> Judgement:
    """Compare sizes, ids, cosines and norms, in this order.

    Args:
        parity: what the trainer made.
        embedded: what a client made of some of the texts.
        least: cosine that is equal enough.
    """
    texts = [parity.texts[number] for number in embedded.numbers]
    wanted = np.stack([text.vector for text in texts]).astype(np.float64)
    found = np.asarray(embedded.vectors, np.float64)
    if found.shape != wanted.shape:
        return Judgement(
            None, "vectors", f"Shape {list(found.shape)}; expected {list(wanted.shape)}."
        )
    norms = np.linalg.norm(found, axis=1)
    # [n, D] * [n, D] -> [n]; a vector of zeros or of no numbers is equal to none
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.nan_to_num((found * wanted).sum(axis=1) / norms, nan=-1.0)
    worst = int(cosines.argmin())
    cosine = float(cosines[worst])
    where = f"Text {embedded.numbers[worst]} ({texts[worst].text!r:.40})"
    if (difference := _ids_differ(parity, embedded)) is not None:
        return Judgement(cosine, "token ids", difference)
    if cosine < least:
        return Judgement(
            cosine, "vectors", f"{where}: cosine {cosine:.6f}; expected {least} or more."
        )
    off = int(np.abs(norms - 1).argmax())
    if abs(norms[off] - 1) <= NORM_TOLERANCE:
        return Judgement(cosine)
    number = embedded.numbers[off]
    return Judgement(cosine, norm=f"Text {number}: norm {norms[off]:.3f}; expected 1.")


def _ids_differ(parity: Parity, embedded: Embedded) -> str | None:
    """A sentence on the first text whose ids differ."""
    if embedded.token_ids is None:
        return None
    for number, ids in zip(embedded.numbers, embedded.token_ids, strict=True):
        text = parity.texts[number]
        difference = first_difference(ids, text.token_ids)
        if difference is not None:
            found, expected = difference
            return f"Text {number} ({text.text!r:.40}), {found}; expected {expected}."
    return None
