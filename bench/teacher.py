"""Rows with a teacher's scores: a ready model's cosines, beside positives and negatives."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.evaluation.exported import load_model
from trainer.recipe.model_path import resolve_model_path

MAX_TOKENS = 64
"""Longest text that the teacher reads."""


def write_scored(rows: Path, scored: Path, teacher: str) -> None:
    """Write the rows of a JSONL file again with `positive_scores` and `negative_scores`.

    Args:
        rows: records of `query`, `positives`, `negatives`.
        scored: the file to write; whole or not there.
        teacher: a model as `model.path` of a recipe names it.
    """
    records = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    model = load_model(resolve_model_path(teacher))
    model.max_seq_length = MAX_TOKENS
    texts = list(dict.fromkeys(text for record in records for text in _texts(record)))
    vectors = model.encode(
        texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
    ).float()
    place = {text: row for row, text in enumerate(texts)}
    part = scored.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for record in records:
            query = vectors[place[record["query"]]]
            for key, name in (("positives", "positive_scores"), ("negatives", "negative_scores")):
                found = vectors[[place[text] for text in record[key]]] @ query
                record[name] = [round(score, 6) for score in found.tolist()]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    part.replace(scored)


def _texts(record: Mapping[str, Any]) -> Iterable[str]:
    """All texts of a row."""
    return [record["query"], *record["positives"], *record["negatives"]]
