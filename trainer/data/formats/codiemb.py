"""The rows of the authors' release of CoDiEmb (arXiv 2508.11442).

Each text is a triple: task instruction, instance instruction, text. The instance instruction
belongs to the text and is put before it, as the release does; the task instruction is the
source's `query_instruction` here, so that it is exported with the model.
"""

from typing import Any

from trainer.data.fields import Row, RowError, check_string, check_text, shown
from trainer.data.formats.adapter import Adapter, RowRecords, ScoredPair
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
        negatives=row.kept("negatives", row.items("negatives"), _text)
        if row.has("negatives")
        else (),
    )


def parse_sts(row: Row) -> RowRecords:
    """`{"task_type": "sts", "query": triple, "positives": [triple], "positive_scores": [number]}`.

    Each positive is a pair with the query, and so is each negative that has a score in
    `negative_scores`.

    Raises:
        RowError: if a field is missing or wrong, or there are not as many texts as scores.
    """
    _check_task(row, "sts")
    query = _text("query", row.require("query", "a triple of texts"))
    pairs = _scored(row, query, "positives", "positive_scores")
    if not pairs:
        raise RowError("positives", "[]", "at least one triple of texts")
    if row.has("negative_scores") and row.items("negative_scores"):
        pairs += _scored(row, query, "negatives", "negative_scores")
    return RowRecords(tuple(pairs))


def task_instruction(row: Row) -> str:
    """The instruction that the row's query carries."""
    query = row.values.get("query")
    return str(query[0]) if isinstance(query, list) and query else ""


def _check_task(row: Row, task: Task) -> None:
    if row.text("task_type") != task:
        raise RowError("task_type", shown(row.text("task_type")), f'"{task}", as the source says')


def _scored(row: Row, query: str, field: str, score_field: str) -> list[ScoredPair]:
    triples, scores = row.items(field), row.items(score_field)
    if len(triples) != len(scores):
        got = f"{len(triples)} with {len(scores)} {score_field}"
        raise RowError(field, got, "as many texts as scores")
    pairs = []
    for number, (triple, score) in enumerate(zip(triples, scores, strict=True)):
        name = f"{score_field}[{number}]"
        text = _text(f"{field}[{number}]", triple)
        pairs.append(ScoredPair(query, text, Row({name: score}).number(name)))
    return pairs


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
        optional=("negatives",),
        instruction=task_instruction,
    ),
    Adapter(
        name="codiemb",
        task="sts",
        columns=frozenset({"task_type", "query", "positives", "positive_scores"}),
        parse=parse_sts,
        optional=("negatives", "negative_scores"),
        instruction=task_instruction,
    ),
)
