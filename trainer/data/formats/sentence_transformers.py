"""Rows as sentence-transformers takes and mines them: triplets and scored pairs, by column name."""

import re

from trainer.data.fields import Row, RowError, check_text, shown
from trainer.data.formats.adapter import Adapter, ScoredPair
from trainer.data.formats.labels import check_positive, pair_score
from trainer.data.records import IrRecord

QUERIES = ("anchor", "query", "question")
POSITIVES = ("positive", "answer", "document", "passage")
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

    The first column may be `query` or `question`, the second `answer`, `document` or `passage`;
    each negative is a text or a list of texts. With a list of `labels` the second is a list too,
    whose texts are positives where the label is 1 and negatives where it is 0.

    Raises:
        RowError: if a field is missing or wrong, or a pair is labelled as none.
    """
    query, second = row.text(row.first(QUERIES)), row.first(POSITIVES)
    if isinstance(row.values.get("labels"), list) and isinstance(row.values.get(second), list):
        return _labelled(row, query, second)
    names = [name for name in row.values if NEGATIVE.fullmatch(name)]
    negatives = tuple(text for name in names for text in row.one_negative(name))
    check_positive(row, num_negatives=len(names))
    has_list = isinstance(row.values.get(second), list)
    positives = row.texts(second) if has_list else (row.text(second),)
    return IrRecord(query=query, positives=positives, negatives=negatives)


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
    by_label: dict[int, list[str]] = {0: [], 1: []}
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if isinstance(label, bool) or label not in (0, 1):
            raise RowError(f"labels[{number}]", shown(label), "0 or 1")
        by_label[int(label)].append(text)
    if not by_label[1]:
        raise RowError("labels", shown(labels), "a 1, as at least one text answers the query")
    positives = [check_text(f"{field}[{i}]", text) for i, text in enumerate(by_label[1])]
    return IrRecord(query=query, positives=tuple(positives), negatives=row.kept(field, by_label[0]))


ADAPTERS = (
    *(
        Adapter(
            name="sentence-transformers",
            task="ir",
            columns=frozenset({query, positive}),
            parse=parse_ir,
        )
        for query in QUERIES
        for positive in POSITIVES
    ),
    *(
        Adapter(name="sentence-transformers", task="sts", columns=frozenset(pair), parse=parse_sts)
        for pair in PAIRS
    ),
)
