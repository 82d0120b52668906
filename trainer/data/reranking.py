"""Held-out queries with the texts that are ranked for each: sets of reranking."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainer.data.held_out_records import Candidates
from trainer.data.scan import query_key
from trainer.data.sources import open_table_source
from trainer.recipe.eval_kinds import RERANKING
from trainer.recipe.schema import DataRecipe, EvalSetRecipe


@dataclass(frozen=True, kw_only=True)
class RerankingSet:
    """Queries with candidates of their own."""

    kind: ClassVar[str] = RERANKING.name
    rows: tuple[Candidates, ...]
    """A query with its candidates [Q]."""

    def query_keys(self) -> np.ndarray:
        """See `EvalSet.query_keys`."""
        return np.fromiter(map(query_key, self.rows), np.uint64)


def open_reranking(recipe: EvalSetRecipe, data: DataRecipe) -> RerankingSet:
    """A file of queries with positives and negatives, every row checked.

    Raises:
        DataError: if the file is missing, or a row is malformed; names file and line.
    """
    source = open_table_source(recipe, data, owner=f"eval.sets.{recipe.name}")
    return RerankingSet(rows=tuple(source.record(row) for row in range(len(source))))
