"""Rows of FlagEmbedding: `query, pos, neg`, with scores, a prompt and a type that may be there."""

from collections.abc import Sequence
from itertools import islice

from trainer.data.fields import Row, check_string
from trainer.data.formats.adapter import Adapter, RowSettings
from trainer.data.formats.teacher_scores import make_record, score_lists
from trainer.data.records import IrRecord
from trainer.recipe.schema import EvalSetRecipe, SourceRecipe

SAME_PROMPT = ("symmetric_sts", "symmetric_clustering")
"""Types whose passages get the query's prompt there."""
ONE_NEGATIVE = "only_1neg"
LISTED_NEGATIVES = "symmetric_class"
"""Type whose rows have no more negatives than other classes."""
SCORES = ("pos_scores", "neg_scores")
"""Lists of a teacher's scores."""


def parse_ir(row: Row) -> IrRecord:
    """`{"query": str, "pos": [str], "neg": [str], "pos_scores": [number], "neg_scores": [number]}`.

    Of a row of type `only_1neg` the first negative is taken, as more are not meant to be used.

    Raises:
        RowError: if a field is missing or wrong, there is no positive, or there are not as many
            scores as texts.
    """
    query, positives, written = row.text("query"), row.texts("pos"), row.listed("neg")
    scores = score_lists(row, SCORES, (len(positives), len(written)))
    negatives = row.keep(written)
    if row.values.get("type") == ONE_NEGATIVE:
        negatives = dict(islice(negatives.items(), 1))
    return make_record(query, positives, negatives, scores)


def prompt(row: Row) -> str:
    """The instruction that the row carries."""
    found = row.values.get("prompt")
    return found if isinstance(found, str) else ""


def settings(row: Row) -> RowSettings:
    """How FlagEmbedding trains a row, by its `prompt` and `type`.

    A row of `only_1neg` has one negative, and one of `symmetric_class` has no more than it lists;
    passages of `symmetric_sts` and `symmetric_clustering` get the query's prompt.

    Raises:
        RowError: if a field is of another type.
    """
    texts = {name: row.values.get(name) for name in ("prompt", "type")}
    found = {name: "" if text is None else check_string(name, text) for name, text in texts.items()}
    kind = found["type"]
    num_negatives = {ONE_NEGATIVE: 1, LISTED_NEGATIVES: len(row.listed("neg"))}.get(kind)
    return RowSettings(found["prompt"], kind, kind in SAME_PROMPT, num_negatives)


def ignored(rows: Sequence[Row], recipe: SourceRecipe | EvalSetRecipe) -> tuple[str, ...]:
    """The prompt before passages, where the rows' type asks for it and the recipe has none."""
    types = [name for name in SAME_PROMPT if any(row.values.get("type") == name for row in rows)]
    if not types or recipe.passage_instruction == recipe.query_instruction:
        return ()
    return (
        f"rows have type {types[0]}, which puts the query's instruction before passages too, and "
        "here passages get another: set passage_instruction to query_instruction of the source",
    )


ADAPTERS = (
    Adapter(
        name="flag-embedding",
        task="ir",
        columns=frozenset({"query", "pos"}),
        parse=parse_ir,
        optional=("neg", *SCORES, "prompt", "type"),
        instruction=prompt,
        settings=settings,
        ignored=ignored,
        teacher_columns=" and ".join(SCORES),
    ),
)
