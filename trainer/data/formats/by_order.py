"""Rows whose columns count by their order, whatever their names; only where the recipe says so.

sentence-transformers trains so: a column `label` or `score` apart, the texts are taken as they
stand. MS MARCO's triples have no header at all.
"""

from trainer.data.fields import Row, RowError
from trainer.data.formats.adapter import Adapter, ScoredPair
from trainer.data.formats.labels import PAIR_SCORES, check_positive, pair_score
from trainer.data.formats.teacher_scores import COLUMNS, make_record, margins_or_scores
from trainer.data.header import NUMBERED, Headerless
from trainer.data.records import IrRecord

NO_TEXTS = (*PAIR_SCORES, "return_loss", "dataset_name", "prompt_name")
"""Columns that sentence-transformers does not take for texts."""
NUMBERED_PAIR = tuple(NUMBERED.format(number) for number in (1, 2, 3))
"""Two texts and a score where no header names them."""


def parse_ir(row: Row) -> IrRecord:
    """Query, positive, then any number of negatives, with a teacher's margins or scores.

    Raises:
        RowError: if there are fewer than two texts, one of them is no text, or there are not as
            many scores as texts.
    """
    query, positive, *negatives = _texts(row)
    check_positive(row, num_negatives=len(negatives))
    written = [negative for name in negatives for negative in row.one_or_listed(name)]
    scores = margins_or_scores(row, num_positives=1, num_negatives=len(written))
    return make_record(row.text(query), [row.text(positive)], row.keep(written), scores)


def parse_sts(row: Row) -> ScoredPair:
    """Two texts, with a score under one of its usual names.

    Raises:
        RowError: if there are not two texts and a score.
    """
    first, second, *_ = _texts(row)
    return ScoredPair(row.text(first), row.text(second), pair_score(row))


def parse_numbered_sts(row: Row) -> ScoredPair:
    """Two texts and a score, of a file without a header.

    Raises:
        RowError: if they are no such.
    """
    first, second, score = NUMBERED_PAIR
    return ScoredPair(row.text(first), row.text(second), row.number(score))


def has_no_score(row: Row) -> bool:
    """Whether no column has a usual name of a score, as where columns are numbered."""
    return not any(map(row.has, PAIR_SCORES))


def _texts(row: Row) -> list[str]:
    names = [name for name in row.values if name not in NO_TEXTS]
    if len(names) < 2:
        raise RowError("row", f"{len(names)} columns of text", "at least 2: query and positive")
    return names


ADAPTERS = (
    Adapter(
        name="by-order",
        task="ir",
        columns=frozenset(),
        parse=parse_ir,
        is_found=False,
        optional=COLUMNS,
        teacher_columns=", ".join(COLUMNS),
        is_by_order=True,
    ),
    Adapter(
        name="by-order",
        task="sts",
        columns=frozenset(NUMBERED_PAIR),
        parse=parse_numbered_sts,
        fits=has_no_score,
        is_found=False,
        is_by_order=True,
    ),
    Adapter(
        name="by-order",
        task="sts",
        columns=frozenset(),
        parse=parse_sts,
        any_of=(PAIR_SCORES,),
        is_found=False,
        is_by_order=True,
    ),
    Adapter(
        name="msmarco-triples",
        task="ir",
        columns=frozenset({"query", "positive", "negative"}),
        parse=parse_ir,
        is_found=False,
        headerless=Headerless(("query", "positive", "negative")),
    ),
    Adapter(
        name="pairs-without-header",
        task="ir",
        columns=frozenset({"query", "positive"}),
        parse=parse_ir,
        is_found=False,
        headerless=Headerless(("query", "positive")),
    ),
)
