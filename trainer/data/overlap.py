"""Training rows that are also in an evaluation set: counted and told before training."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from trainer.data.evalsets import IrEvalSet, StsEvalSet
from trainer.data.formats.adapter import ScoredPair
from trainer.data.scan import query_key, text_key
from trainer.data.sources import Source

logger = logging.getLogger(__name__)


def count_overlaps(
    sources: Sequence[Source], held_out: Mapping[str, StsEvalSet | IrEvalSet]
) -> dict[tuple[str, str], int]:
    """Rows of each source whose query, or pair in either order, an evaluation set has.

    Args:
        sources: training sources.
        held_out: evaluation sets by name.

    Returns:
        Source and set name to number of rows, where there are any.
    """
    counts = {}
    for name, found in held_out.items():
        queries = _queries(found)
        task = "ir" if isinstance(found, IrEvalSet) else "sts"
        for source in sources:
            count = int(np.isin(source.queries, queries).sum()) if source.task == task else 0
            if count:
                counts[source.name, name] = count
    return counts


def warn_of_overlaps(
    sources: Sequence[Source], held_out: Mapping[str, StsEvalSet | IrEvalSet]
) -> None:
    """Logs each overlap, as scores on what was trained on say little."""
    for (source, name), count in count_overlaps(sources, held_out).items():
        logger.warning(
            "data.sources.%s: %d rows are also in eval.sets.%s; its scores will be too good. "
            "Remove them from one of the two",
            source,
            count,
            name,
        )


def _queries(held_out: StsEvalSet | IrEvalSet) -> np.ndarray:
    """Keys of the queries or pairs [n], uint64."""
    if isinstance(held_out, IrEvalSet):
        return np.fromiter(map(text_key, held_out.queries), np.uint64)
    pairs = zip(held_out.text1, held_out.text2, strict=True)
    return np.fromiter((query_key(ScoredPair(*pair, 0.0)) for pair in pairs), np.uint64)
