"""The rows of the authors' release of CoDiEmb (arXiv 2508.11442).

Each text is a triple: task instruction, instance instruction, text. The instance instruction
belongs to the text and is put before it, as the release does; the task instruction is the
source's `query_instruction` here, so that it is exported with the model.
"""

from typing import Any

from trainer.data.fields import Row, RowError, check_string, check_text, shown
from trainer.data.formats.adapter import Adapter, ScoredPair
from trainer.data.records import IrRecord
from trainer.recipe.schema import Task


def parse_ir(row: Row) -> IrRecord:
    """`{"task_type": "ir", "query": triple, "positives": [triple], "negatives": [triple]}`.

    Raises:
        RowError: if a field is missing or wrong, or there is no positive.
    """
    _check_task(row, "ir")
    return IrRecord(
        query=_text("query", row.require("query", "a triple of texts")),
        positives=_texts(row, "positives"),
        negatives=_texts(row, "negatives")
        if row.has("negatives") and row.items("negatives")
        else (),
    )


def parse_sts(row: Row) -> ScoredPair:
    """`{"task_type": "sts", "query": triple, "positives": [triple], "positive_scores": [number]}`.

    Raises:
        RowError: if a field is missing or wrong, or there is not exactly one pair.
    """
    _check_task(row, "sts")
    texts = _texts(row, "positives")
    scores = row.items("positive_scores")
    if len(texts) != 1 or len(scores) != 1:
        got = f"{len(texts)} with {len(scores)} positive_scores"
        raise RowError("positives", got, "one of each, as a row is one pair")
    query = _text("query", row.require("query", "a triple of texts"))
    score = Row({"positive_scores[0]": scores[0]}).number("positive_scores[0]")
    return ScoredPair(query, texts[0], score)


def task_instruction(row: Row) -> str:
    """The instruction that the row's query carries."""
    query = row.values.get("query")
    return str(query[0]) if isinstance(query, list) and query else ""


def _check_task(row: Row, task: Task) -> None:
    if row.text("task_type") != task:
        raise RowError("task_type", shown(row.text("task_type")), f'"{task}", as the source says')


def _texts(row: Row, field: str) -> tuple[str, ...]:
    triples = row.items(field)
    if not triples:
        raise RowError(field, "[]", "at least one triple of texts")
    return tuple(_text(f"{field}[{i}]", triple) for i, triple in enumerate(triples))


def _text(field: str, triple: Any) -> str:
    if not isinstance(triple, list) or len(triple) != 3:
        expected = "a triple: task instruction, instance instruction, text"
        raise RowError(field, shown(triple), expected)
    return check_string(f"{field}[1]", triple[1]) + check_text(f"{field}[2]", triple[2])


ADAPTERS = (
    Adapter(
        name="codiemb",
        task="ir",
        columns=frozenset({"task_type", "query", "positives"}),
        parse=parse_ir,
        instruction=task_instruction,
    ),
    Adapter(
        name="codiemb",
        task="sts",
        columns=frozenset({"task_type", "query", "positives", "positive_scores"}),
        parse=parse_sts,
        instruction=task_instruction,
    ),
)
