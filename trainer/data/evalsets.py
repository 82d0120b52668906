"""What crosses the door from data to evaluation: a held-out set of any task."""

from typing import Protocol

import numpy as np


class EvalSet(Protocol):
    """A held-out set; its records are those of its task."""

    @property
    def task(self) -> str:
        """Its task."""

    def query_keys(self) -> np.ndarray:
        """Keys of what its records ask, as `Source.queries` has them [n], uint64."""
