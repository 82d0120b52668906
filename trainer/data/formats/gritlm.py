"""Rows of GritLM and of MEDI: `query, pos, neg` whose texts are [instruction, text] pairs.

An instruction belongs to the recipe, so that it is exported with the model; that of the first row
is compared with it.
"""

from typing import Any

from trainer.data.fields import Row, RowError, check_text, shown
from trainer.data.formats.adapter import Adapter
from trainer.data.records import IrRecord


def parse_ir(row: Row) -> IrRecord:
    """`{"query": pair, "pos": [pair, ...], "neg": [pair, ...]}`; in MEDI one pair for each list.

    Raises:
        RowError: if a field is missing or wrong, or there is no positive.
    """
    positives = _items(row, "pos")
    if not positives:
        raise RowError("pos", "[]", "at least one [instruction, text]")
    return IrRecord(
        query=_text("query", row.require("query", "[instruction, text]")),
        positives=tuple(_text(f"pos[{i}]", item) for i, item in enumerate(positives)),
        negatives=row.kept("neg", _items(row, "neg"), _text) if row.has("neg") else (),
    )


def is_pair(row: Row) -> bool:
    """Whether the query is a pair, not the plain text of FlagEmbedding."""
    return isinstance(row.values.get("query"), list)


def query_instruction(row: Row) -> str:
    """The instruction of the query."""
    return _instruction(row.values.get("query"))


def passage_instruction(row: Row) -> str:
    """The instruction of the first positive."""
    return _instruction(next(iter(_items(row, "pos")), None))


def _items(row: Row, field: str) -> list[Any]:
    """The pairs of a list; two plain texts are one pair, as MEDI writes it."""
    items = row.items(field)
    if len(items) == 2 and all(isinstance(item, str) for item in items):
        return [items]
    return items


def _text(field: str, pair: Any) -> str:
    """The text of [instruction, text], of [text], or a text alone."""
    if isinstance(pair, list) and len(pair) in (1, 2):
        if not isinstance(pair[0], str):
            raise RowError(f"{field}[0]", shown(pair[0]), "a text")
        return check_text(f"{field}[{len(pair) - 1}]", pair[-1])
    if isinstance(pair, str):
        return check_text(field, pair)
    raise RowError(field, shown(pair), "[instruction, text]")


def _instruction(pair: Any) -> str:
    return str(pair[0]) if isinstance(pair, list) and len(pair) == 2 else ""


ADAPTERS = (
    Adapter(
        name="gritlm",
        task="ir",
        columns=frozenset({"query", "pos"}),
        parse=parse_ir,
        optional=("neg",),
        fits=is_pair,
        instruction=query_instruction,
        passage_instruction=passage_instruction,
    ),
)
