"""Rows of Tevatron: a query with passages that have a title and a text, and perhaps a score."""

from trainer.data.fields import Row, RowError, titled_text
from trainer.data.formats.adapter import Adapter
from trainer.data.formats.teacher_scores import make_record, passage_scores
from trainer.data.records import IrRecord

POSITIVES, NEGATIVES = "positive_passages", "negative_passages"
QUERIES = ("query", "query_text")


def parse_ir(row: Row) -> IrRecord:
    """`{"query": str, "positive_passages": [{"title", "text"}], "negative_passages": [...]}`.

    In data for distillation each passage has a teacher's `score`.

    Raises:
        RowError: if a field is missing or wrong, there is no positive, or only some of the passages
            have a score.
    """
    positives, negatives = row.items(POSITIVES), row.listed(NEGATIVES)
    if not positives:
        raise RowError(POSITIVES, "[]", "at least one passage")
    texts = [titled_text(f"{POSITIVES}[{i}]", item) for i, item in enumerate(positives)]
    kept = row.keep(negatives, titled_text)
    scores = passage_scores(row.listed(POSITIVES), negatives)
    return make_record(row.text(row.first(QUERIES)), texts, kept, scores)


ADAPTERS = (
    Adapter(
        name="tevatron",
        task="ir",
        columns=frozenset({POSITIVES}),
        parse=parse_ir,
        any_of=(QUERIES,),
        optional=(NEGATIVES,),
        teacher_columns=f"score of each of {POSITIVES} and {NEGATIVES}",
    ),
)
