"""Rows of nomic's contrastors: `metadata.objective` names the columns that make the record."""

from typing import Any

from trainer.data.fields import Row, RowError, shown
from trainer.data.formats.adapter import Adapter
from trainer.data.records import IrRecord


def parse_ir(row: Row) -> IrRecord:
    """`{"query": str, "document": str, "negatives": [str], "metadata": {"objective": {...}}}`.

    The columns are those of the one objective that `triplet` or `paired` holds.

    Raises:
        RowError: if a field is missing or wrong, or there is not one such objective.
    """
    query, positive, *negatives = _objective(row)
    return IrRecord(
        query=row.text(query),
        positives=(row.text(positive),),
        negatives=tuple(text for name in negatives for text in row.one_negative(name)),
    )


def has_objective(row: Row) -> bool:
    """Whether the metadata is that of contrastors."""
    metadata = row.values.get("metadata")
    return isinstance(metadata, dict) and isinstance(metadata.get("objective"), dict)


def _objective(row: Row) -> list[str]:
    """Names of two columns, or of three."""
    metadata = row.require("metadata", "an object with an objective")
    objective = metadata.get("objective") if isinstance(metadata, dict) else None
    kinds = ("triplet", "paired")
    found: list[Any] = []
    if isinstance(objective, dict):
        listed = [objective[kind] for kind in kinds if isinstance(objective.get(kind), list)]
        found = [names for one in listed for names in one]
    is_one = len(found) == 1 and isinstance(found[0], list) and len(found[0]) in (2, 3)
    if not is_one or not all(isinstance(name, str) for name in found[0]):
        expected = "one `paired` or `triplet` list of two or three columns"
        raise RowError("metadata.objective", shown(objective), expected)
    return list(found[0])


ADAPTERS = (
    Adapter(
        name="nomic",
        task="ir",
        columns=frozenset({"metadata"}),
        parse=parse_ir,
        fits=has_objective,
    ),
)
