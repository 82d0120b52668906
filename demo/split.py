"""What of the demo's docs is held out, and how its rows are written; it must not make rows."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from demo.docs import Doc

HELD_OUT_PERCENT = 7
"""Share of the modules that is held out."""
LEADING_WORDS = 40
"""Texts that agree in so many leading words count as the same text."""


def is_held_out(module: str) -> bool:
    """Whether a module belongs to the evaluation; decided by its name alone."""
    digest = hashlib.sha256(module.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def likeness(text: str) -> str:
    """Equal for texts that agree in their leading words, whatever case, digits and signs."""
    return " ".join(re.findall(r"[a-z]+", text.lower())[:LEADING_WORDS])


def split_docs(docs: Iterable[Doc]) -> tuple[list[Doc], list[Doc]]:
    """Training docs and held-out docs.

    A training doc whose summary or text is also a held-out one's, or nearly, is dropped.
    """
    train: list[Doc] = []
    held_out: list[Doc] = []
    for doc in docs:
        (held_out if is_held_out(doc.module) else train).append(doc)
    summaries = {likeness(doc.summary) for doc in held_out}
    texts = {likeness(doc.text) for doc in held_out}
    kept = [
        doc
        for doc in train
        if likeness(doc.summary) not in summaries and likeness(doc.text) not in texts
    ]
    return kept, held_out


def by_summary(docs: Iterable[Doc]) -> Mapping[str, list[Doc]]:
    """Docs under their summary; several docs may open alike."""
    groups: dict[str, list[Doc]] = defaultdict(list)
    for doc in docs:
        groups[doc.summary].append(doc)
    return groups


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
