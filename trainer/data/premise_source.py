"""Inference rows as a source of retrieval: a premise finds what follows from it.

Rows of one premise are one record wherever they stand in the files: what it entails are the
positives, what contradicts it are the hard negatives. Neutral rows are neither.
"""

import logging
from array import array
from dataclasses import dataclass

import numpy as np

from trainer.data.cache import Arrays, cached_arrays
from trainer.data.over_table import OverTable, records_of
from trainer.data.records import InferenceRow, IrRecord
from trainer.data.scan import CACHE_FROM_ROWS, text_key
from trainer.data.table_source import TableSource
from trainer.errors import DataError
from trainer.recipe.schema import SourceRecipe

logger = logging.getLogger(__name__)

USED = ("entailment", "contradiction")
"""Relations that training reads."""


@dataclass(frozen=True, kw_only=True)
class PremiseSource(OverTable):
    """Premises that entail something, each with all of its rows that are used."""

    members: np.ndarray
    """Rows of each premise, one premise after another [m], int64."""
    starts: np.ndarray
    """Where each premise begins [n + 1], int64."""

    def record(self, row: int) -> IrRecord:
        """A premise with what follows from it and what contradicts it, each text once."""
        members = self.members[self.starts[row] : self.starts[row + 1]].tolist()
        rows: list[InferenceRow] = [self.table.record(member) for member in members]
        by_relation = {
            relation: dict.fromkeys(one.hypothesis for one in rows if one.relation == relation)
            for relation in USED
        }
        positives, negatives = by_relation.values()
        return IrRecord(
            query=rows[0].premise,
            positives=tuple(positives),
            negatives=tuple(text for text in negatives if text not in positives),
        )


def premise_source(table: TableSource, recipe: SourceRecipe, root: str) -> PremiseSource:
    """The source that inference rows are, with what is left out told of.

    Args:
        table: each row an `InferenceRow`.
        recipe: its section of the recipe.
        root: unused, as nothing stands in another file.

    Raises:
        DataError: if no row is an entailment.
    """
    arrays, owner = _arrays(table), f"data.sources.{recipe.name}"
    num_premises = len(arrays["starts"]) - 1
    if num_premises == 0:
        raise DataError(
            f"{owner}: rows of entailment = 0 of {len(table.rows)}; expected some, as the positive "
            "of a premise is what follows from it. Check the column label."
        )
    without, unused = int(arrays["num_without"]), int(arrays["num_unused"])
    if without or unused:
        logger.warning(
            "%s: left out are %d rows that are neutral or without a label, and %d whose premise "
            "entails nothing",
            owner, unused, without,
        )  # fmt: skip
    return PremiseSource(
        table=table,
        records=arrays["members"][arrays["starts"][:-1]],
        describe=f"{table.describe}, {num_premises} premises that entail something",
        members=arrays["members"],
        starts=arrays["starts"],
    )


def _arrays(table: TableSource) -> Arrays:
    """Rows by premise, from the cache where a large table was seen before."""
    if len(table.rows) < CACHE_FROM_ROWS:
        return _grouped(table)
    return cached_arrays(f"premises2|{table.identity}", lambda: _grouped(table))


def _grouped(table: TableSource) -> Arrays:
    """One pass over the rows, of each of which a key and two flags are kept."""
    keys, entails, used = array("Q"), array("b"), array("b")
    for _, record in records_of(table):
        assert isinstance(record, InferenceRow)
        keys.append(text_key(record.premise))
        entails.append(record.relation == "entailment")
        used.append(record.relation in USED)
    rows = np.flatnonzero(np.array(used, bool))
    _, first, premise = np.unique(
        np.array(keys, np.uint64)[rows], return_index=True, return_inverse=True
    )
    # premises in the order in which they come first
    premise = np.argsort(np.argsort(first))[premise]
    with_positive = np.zeros(len(first), bool)
    with_positive[premise[np.array(entails, bool)[rows]]] = True
    kept = with_positive[premise]
    order = np.argsort(premise[kept], kind="stable")
    sizes = np.bincount(premise[kept], minlength=len(first))[with_positive]
    return {
        "members": rows[kept][order].astype(np.int64),
        "starts": np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]).astype(np.int64),
        "num_without": np.array(len(rows) - kept.sum()),
        "num_unused": np.array(len(used) - len(rows)),
    }
