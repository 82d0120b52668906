"""Rows that are plain lists of texts, as in the hub's `embedding-training-data`."""

from trainer.data.fields import Row, RowError
from trainer.data.formats.adapter import Adapter
from trainer.data.records import IrRecord

SETS = ("set", "texts")


def parse_array(row: Row) -> IrRecord:
    """`[query, positive, negative, ...]`.

    Raises:
        RowError: if there are fewer than two texts, or an item is no text.
    """
    if len(row.values) < 2:
        raise RowError("row", f"{len(row.values)} texts", "at least two: a query and its positive")
    query, positive, *negatives = row.values
    return IrRecord(
        query=row.text(query),
        positives=(row.text(positive),),
        negatives=tuple(text for name in negatives for text in row.one_negative(name)),
    )


def parse_set(row: Row) -> IrRecord:
    """`{"set": [str, ...]}`, all alike: the first is the query, the others are its positives.

    Raises:
        RowError: if there are fewer than two texts, or an item is no text.
    """
    field = row.first(SETS)
    query, *positives = row.texts(field)
    if not positives:
        raise RowError(field, "1 text", "at least two, which are alike")
    return IrRecord(query=query, positives=tuple(positives))


ADAPTERS = (
    Adapter(
        name="texts",
        task="ir",
        columns=frozenset({"[0]", "[1]"}),
        parse=parse_array,
        optional=("[#]",),
    ),
    *(Adapter(name="set", task="ir", columns=frozenset({name}), parse=parse_set) for name in SETS),
)
