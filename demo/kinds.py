"""Held-out sets of the demo for the evaluation kinds that are no task.

Nobody judged them: where two docs stand, and what stands in one docstring, is taken for what they
mean. They are silver, as the labels of `demo.labels` and the scores of `demo.sts` are:

- pair classification: two summaries belong together if they are of one module, and not if they are
  of two packages;
- reranking: the rest of a docstring among the rests of others, of its own module first;
- bitext: Python is the other language. A summary goes with the signature that it documents.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.docs import Doc
from demo.split import by_summary, write_jsonl

Rows = list[dict[str, Any]]
NUM_PAIRS = 300
"""Pairs of each label."""
NUM_QUERIES = 200
"""Queries with candidates."""
NUM_CANDIDATES = 10
"""Candidates of a query, its answers among them."""
NUM_SIGNATURES = 500
"""Summaries with a signature."""


def pair_rows(docs: Sequence[Doc], seed: int) -> Rows:
    """`text1, text2, label`: summaries of one module, and of two packages.

    Args:
        docs: held-out ones, of two packages at least.
        seed: of the draw.
    """
    rng = random.Random(seed)
    modules: dict[str, list[Doc]] = defaultdict(list)
    for doc in docs:
        modules[doc.module].append(doc)
    large = [group for group in modules.values() if len({doc.summary for doc in group}) > 1]
    alike = [rng.sample(rng.choice(large), 2) for _ in range(NUM_PAIRS if large else 0)]
    apart = [rng.sample(docs, 2) for _ in range(NUM_PAIRS)]
    pairs = [(one, other, 1) for one, other in alike if one.summary != other.summary]
    pairs += [(one, other, 0) for one, other in apart if one.package != other.package]
    return [{"text1": a.summary, "text2": b.summary, "label": label} for a, b, label in pairs]


def candidate_rows(docs: Sequence[Doc], seed: int) -> Rows:
    """`query, positives, negatives`: a summary, and the rests of docstrings.

    Args:
        docs: held-out ones.
        seed: of the draw.
    """
    rng = random.Random(seed)
    asked = list(by_summary(docs).items())
    rows = []
    for summary, answers in rng.sample(asked, min(NUM_QUERIES, len(asked))):
        positives = [doc.text for doc in answers][: NUM_CANDIDATES // 2]
        near = [doc for doc in docs if doc.module == answers[0].module]
        others = [*rng.sample(near, len(near)), *rng.sample(docs, min(NUM_CANDIDATES, len(docs)))]
        texts = dict.fromkeys(doc.text for doc in others if doc.summary != summary)
        negatives = list(texts)[: NUM_CANDIDATES - len(positives)]
        rows.append({"query": summary, "positives": positives, "negatives": negatives})
    return rows


def translation_rows(docs: Sequence[Doc], seed: int) -> Rows:
    """`text1, text2`: a summary, and the signature that it documents; each of them once.

    Args:
        docs: held-out ones.
        seed: of the draw.
    """
    found: dict[str, str] = {}
    for summary, group in by_summary(docs).items():
        if group[0].parameters:
            found.setdefault(signature(group[0]), summary)
    rows = [{"text1": summary, "text2": code} for code, summary in found.items()]
    return random.Random(seed).sample(rows, min(NUM_SIGNATURES, len(rows)))


def signature(doc: Doc) -> str:
    """How a function is called."""
    return f"{doc.name}({', '.join(doc.parameters)})"


def write_kinds(folder: Path, docs: Sequence[Doc], seed: int) -> None:
    """Write the three files.

    Args:
        folder: of the data.
        docs: held-out ones.
        seed: of the draws.
    """
    write_jsonl(folder / "matches.jsonl", pair_rows(docs, seed))
    write_jsonl(folder / "ranked.jsonl", candidate_rows(docs, seed))
    write_jsonl(folder / "code.jsonl", translation_rows(docs, seed))
