"""Training rows that are also in an evaluation set: counted and reported before training."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from trainer.data.evalsets import EvalSet
from trainer.data.sources import Source

logger = logging.getLogger(__name__)


def count_overlaps(
    sources: Sequence[Source], held_out: Mapping[str, EvalSet]
) -> dict[tuple[str, str], int]:
    """Rows of each source whose query, or pair in either order, an evaluation set has.

    The task of a source does not matter: a set of any kind may ask what the rows of another ask.

    Args:
        sources: training sources.
        held_out: evaluation sets by name.

    Returns:
        Source and set name to number of rows, where there are any.
    """
    counts = {}
    for name, found in held_out.items():
        keys = found.query_keys()
        for source in sources:
            count = int(np.isin(source.queries, keys).sum())
            if count:
                counts[source.name, name] = count
    return counts


def warn_of_overlaps(sources: Sequence[Source], held_out: Mapping[str, EvalSet]) -> None:
    """Logs each overlap, as scores on what was trained on say little."""
    for (source, name), count in count_overlaps(sources, held_out).items():
        logger.warning(
            "data.sources.%s: %d rows are also in eval.sets.%s; its scores will be too good. "
            "Remove them from one of the two",
            source,
            count,
            name,
        )
