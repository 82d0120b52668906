"""Scores and labels of pairs under the names that they have in published sets."""

from trainer.data.fields import Row, RowError

PAIR_SCORES = (
    "score",
    "label",
    "scores",
    "labels",
    "similarity",
    "similarity_score",
    "relatedness_score",
    "is_duplicate",
    "Quality",
)
"""The first that a row has is its score."""


def pair_score(row: Row) -> float:
    """How alike the two texts of a row are, on the file's own scale.

    Raises:
        RowError: if no column says it, or it is no number.
    """
    return row.number(row.first(PAIR_SCORES))


def check_positive(row: Row, *, num_negatives: int) -> None:
    """Refuse a pair that its label calls dissimilar: as a positive it would teach the opposite.

    A label beside negatives is a teacher's score or margin.

    Raises:
        RowError: if the row has a label, no negatives, and the label is not 1.
    """
    if not row.has("label") or num_negatives:
        return
    label = row.number("label")
    if label != 1:
        expected = "1, as a query and its positive are one; scored pairs are for task sts"
        raise RowError("label", f"{label:g}", expected)
