"""Rows as sentence-transformers takes and mines them: triplets and scored pairs, by column name."""

import re
from collections.abc import Mapping, Sequence

from trainer.data.fields import Row, RowError, check_text, named_items, shown
from trainer.data.formats.adapter import Adapter, ScoredPair
from trainer.data.formats.labels import PAIR_SCORES, check_positive, pair_score
from trainer.data.formats.teacher_scores import (
    COLUMNS,
    TeacherScores,
    is_given,
    make_record,
    margins_or_scores,
    score_list,
)
from trainer.data.records import IrRecord

QUERIES = ("anchor", "query", "question")
POSITIVES = ("positive", "answer", "document", "passage", "docs")
PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("sentence_A", "sentence_B"),
    ("#1 String", "#2 String"),
)
"""Columns of two texts that a score compares; the last are those of MRPC's own file."""
NEGATIVE = re.compile(r"negative(?!.*_(scores?|ids?)$)\w*")
"""Columns of negatives; not those that say how well they score, or where they come from."""


def parse_ir(row: Row) -> IrRecord:
    """`anchor, positive[, negative | negatives | negative_1, negative_2, ...]`.

    The first column may be `query` or `question`, the second `answer`, `document`, `passage` or
    `docs`; each negative is a text or a list of texts. With a list of `labels` the second is a list
    too, whose texts are positives where the label is 1 and negatives where it is 0. Other labels
    are a teacher's scores of the texts: those with the highest are positives. A teacher's margins
    or scores are read as `margins_or_scores` says; beside `labels`, `scores` has one for each text.

    Raises:
        RowError: if a field is missing or wrong, a pair is labelled as none, or there are not as
            many scores as texts.
    """
    query, second = row.text(row.first(QUERIES)), row.first(POSITIVES)
    if isinstance(row.values.get("labels"), list) and isinstance(row.values.get(second), list):
        return _labelled(row, query, second)
    names = [name for name in row.values if NEGATIVE.fullmatch(name)]
    written = [negative for name in names for negative in row.one_or_listed(name)]
    negatives = row.keep(written)
    check_positive(row, num_negatives=len(names))
    has_list = isinstance(row.values.get(second), list)
    positives = row.texts(second) if has_list else (row.text(second),)
    scores = margins_or_scores(row, num_positives=len(positives), num_negatives=len(written))
    return make_record(query, positives, negatives, scores)


def parse_sts(row: Row) -> ScoredPair:
    """`sentence1, sentence2, score`, or `label` and other usual names in place of `score`.

    Raises:
        RowError: if a field is missing or wrong.
    """
    first, second = next((pair for pair in PAIRS if row.has(pair[0])), PAIRS[0])
    return ScoredPair(row.text(first), row.text(second), pair_score(row))


def _labelled(row: Row, query: str, field: str) -> IrRecord:
    """A record of a query whose texts have a label each."""
    texts, labels = row.items(field), row.items("labels")
    if len(texts) != len(labels):
        raise RowError("labels", f"{len(labels)} of {len(texts)} texts", "one for each text")
    given = score_list(row, "labels", len(texts))
    is_binary = set(given) <= {0, 1}
    highest = 1 if is_binary else max(given)
    by_label: dict[int, list[int]] = {0: [], 1: []}
    for number, label in enumerate(given):
        by_label[int(label == highest)].append(number)
    if not by_label[1]:
        raise RowError("labels", shown(labels), "a 1, as at least one text answers the query")
    if not is_binary and not by_label[0]:
        raise RowError("labels", shown(labels), "one above others, as it answers the query best")
    named = named_items(field, texts)
    positives = [check_text(*named[number]) for number in by_label[1]]
    negatives = row.keep(named[number] for number in by_label[0])
    found = None if is_binary else given
    if is_given(row, "scores"):
        found = score_list(row, "scores", len(texts))
    scores = None if found is None else _by_label(found, by_label)
    return make_record(query, positives, negatives, scores)


def _by_label(scores: Sequence[float], numbers: Mapping[int, Sequence[int]]) -> TeacherScores:
    """The scores of the texts of each label."""
    positives, negatives = (tuple(scores[number] for number in numbers[label]) for label in (1, 0))
    return TeacherScores(positives, negatives)


ADAPTERS = (
    *(
        Adapter(
            name="sentence-transformers",
            task="ir",
            columns=frozenset({query, positive}),
            parse=parse_ir,
            optional=("negative", "negatives", "negative_#", *COLUMNS),
            teacher_columns=", ".join(COLUMNS),
        )
        for query in QUERIES
        for positive in POSITIVES
    ),
    *(
        Adapter(
            name="sentence-transformers",
            task="sts",
            columns=frozenset(pair),
            parse=parse_sts,
            any_of=(PAIR_SCORES,),
        )
        for pair in PAIRS
    ),
)
