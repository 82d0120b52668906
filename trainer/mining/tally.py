"""What a mining found, counted for its record; it must not choose or read files."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.mining.choose import REASONS, Chosen
from trainer.mining.quality import contrastive_information

BINS = np.linspace(-1, 1, 81)
"""Edges of the histograms of cosines."""


@dataclass(kw_only=True)
class Tally:
    """Counts for the record of a mining."""

    positives: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(BINS) - 1, np.int64))
    """Histogram of the cosines of queries with what answers them."""
    negatives: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(BINS) - 1, np.int64))
    """The same of chosen negatives."""
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    """Candidates by reason."""
    above_positive: int = 0
    """Chosen negatives that are nearer than the query's least similar positive: likely false."""
    above_by_teacher: int | None = None
    """Chosen negatives that a guide or cross-encoder scores above the query's positive that it
    scores lowest; None: there is none."""
    queries: int = 0
    """Queries that were counted."""
    without: int = 0
    """Queries for which no negative was left."""
    fewer: int = 0
    """Queries with some, but fewer than asked for."""
    information: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    """Sums over queries of effective contrastive information, capacity, hardness and safety."""

    def add(self, chosen: Chosen, positives: NDArray[np.float32], wanted: int) -> None:
        """Count one query."""
        count = len(chosen.passages)
        self.positives += np.histogram(np.clip(positives, -1, 1), BINS)[0]
        self.negatives += np.histogram(np.clip(chosen.scores, -1, 1), BINS)[0]
        for reason, number in chosen.left_out.items():
            self.left_out[reason] += number
        self.above_positive += int((chosen.scores > positives.min()).sum())
        self.queries += 1
        self.without += count == 0
        self.fewer += 0 < count < wanted
        one = contrastive_information(float(positives.min()), chosen.scores)
        self.information += (one.total, one.capacity, one.hardness, one.safety)

    def add_teacher(self, negatives: NDArray[np.float32], positives: NDArray[np.float32]) -> None:
        """Count one query's chosen negatives by a teacher's scores of them and of its positives."""
        above = int((negatives > positives.min()).sum())
        self.above_by_teacher = (self.above_by_teacher or 0) + above

    def recorded(self) -> dict[str, Any]:
        """As JSON has it."""
        total, capacity, hardness, safety = self.information.tolist()
        # what has no negatives has neither hardness nor safety
        chosen = max(1, self.queries - self.without)
        return {
            "bins": [round(float(edge), 3) for edge in BINS],
            "positives": self.positives.tolist(),
            "negatives": self.negatives.tolist(),
            "left_out": self.left_out,
            "above_positive": self.above_positive,
            "above_by_teacher": self.above_by_teacher,
            "queries_without": self.without,
            "queries_with_fewer": self.fewer,
            "effective_contrastive_information": {
                "mean_nats": total / max(1, self.queries),
                "capacity_nats": capacity / max(1, self.queries),
                "hardness": hardness / chosen,
                "safety": safety / chosen,
            },
        }
