"""What a ready model says of the texts of some rows: cosines beside passages, or vectors."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.teacher_vectors import TEXTS, VECTORS
from trainer.evaluation.exported import load_model
from trainer.recipe.model_path import resolve_model_path

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOKENS = 64
"""Longest text that the teacher reads."""


def write_scored(rows: Path, scored: Path, teacher: str) -> None:
    """Write the rows of a JSONL file again with `positive_scores` and `negative_scores`.

    Args:
        rows: records of `query`, `positives`, `negatives`.
        scored: the file to write; whole or not there.
        teacher: a model as `model.path` of a recipe names it.
    """
    records = _records(rows)
    texts, vectors = _embedded(records, teacher)
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


def write_vectors(rows: Path, folder: Path, teacher: str) -> None:
    """Write the vectors of all texts of a JSONL file as `teacher_embeddings` of a source has them.

    Args:
        rows: records of `query`, `positives`, `negatives`.
        folder: to make; whole or not there.
        teacher: a model as `model.path` of a recipe names it.
    """
    texts, vectors = _embedded(_records(rows), teacher)
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    np.save(part / VECTORS, vectors.numpy().astype(np.float16))
    lines = "".join(f"{json.dumps(text, ensure_ascii=False)}\n" for text in texts)
    (part / TEXTS).write_text(lines, encoding="utf-8")
    part.rename(folder)


def _records(rows: Path) -> list[dict[str, Any]]:
    """All rows of a JSONL file."""
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]


def _embedded(records: Sequence[dict[str, Any]], teacher: str) -> tuple[list[str], "Tensor"]:
    """The n distinct texts of some rows, and the teacher's vectors of them [n, D], float32."""
    model = load_model(resolve_model_path(teacher))
    model.max_seq_length = MAX_TOKENS
    texts = list(dict.fromkeys(text for record in records for text in _texts(record)))
    vectors = model.encode(
        texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
    )
    return texts, vectors.float().cpu()


def _texts(record: Mapping[str, Any]) -> Iterable[str]:
    """All texts of a row."""
    return [record["query"], *record["positives"], *record["negatives"]]
