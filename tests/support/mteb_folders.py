"""Sets of every kind as MTEB has them on the hub: folders of configurations and splits, and cards.

The rows are those of `write_sets`, so that what is read of them is known.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import yaml
from pyarrow import parquet

from tests.support.data_files import write_jsonl

COMMIT = "0" * 39 + "1"
Rows = Sequence[Mapping[str, Any]]


def write_rows(path: Path, rows: Rows) -> Path:
    """Rows in the form that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows)))
    elif path.suffix == ".gz":
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()))
    else:
        write_jsonl(path, rows)
    return path


def write_card(folder: Path, files: Mapping[str, Mapping[str, str]]) -> None:
    """A card with the file of each configuration and split."""
    configs = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": path} for split, path in splits.items()],
        }
        for name, splits in files.items()
    ]
    header = yaml.safe_dump({"language": ["en"], "configs": configs})
    (folder / "README.md").write_text(f"---\n{header}---\n\n# A set\n")


def in_cache(cache: Path, name: str) -> Path:
    """The folder in which the hub's client looks for a set, for its files to be written into."""
    place = cache / f"datasets--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    folder = place / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_classification(folder: Path, own: Path, suffix: str) -> None:
    """`text`, `label` and the label's text, in a file for each split."""
    for split in ("train", "test"):
        rows = [row | {"label_text": "-"} for row in rows_of(own / f"{split}.jsonl")]
        write_rows(folder / f"{split}{suffix}", rows)


def write_clustering(folder: Path, own: Path, suffix: str) -> None:
    """Lists in a single row."""
    rows = rows_of(own)
    texts, labels = ([row[key] for row in rows] for key in ("text", "label"))
    write_rows(folder / f"test{suffix}", [{"sentences": texts, "labels": labels}])


def write_flat_clustering(folder: Path, own: Path, suffix: str) -> None:
    """As the second version of these tasks has it: a row of each text."""
    rows = [{"sentences": row["text"], "labels": row["label"]} for row in rows_of(own)]
    write_rows(folder / f"test{suffix}", rows)


def write_pairs(folder: Path, own: Path, suffix: str) -> None:
    """Lists in a single row, under the older names."""
    rows, names = rows_of(own), {"sent1": "text1", "sent2": "text2", "labels": "label"}
    lists = {new: [row[old] for row in rows] for new, old in names.items()}
    write_rows(folder / f"test{suffix}", [lists])


def write_flat_pairs(folder: Path, own: Path, suffix: str) -> None:
    """A row of each pair."""
    names = {"sentence1": "text1", "sentence2": "text2", "labels": "label"}
    rows = [{new: row[old] for new, old in names.items()} for row in rows_of(own)]
    write_rows(folder / f"test{suffix}", rows)


def write_candidates(folder: Path, own: Path, suffix: str) -> None:
    """Texts in the rows, as older sets have them."""
    names = {"query": "query", "positive": "positives", "negative": "negatives"}
    rows = [{new: row[old] for new, old in names.items()} for row in rows_of(own)]
    write_rows(folder / f"test{suffix}", rows)


def write_ranked(folder: Path, own: Path, suffix: str) -> None:
    """Configurations of corpus, queries, judgements and candidates, as newer sets have them."""
    texts: dict[str, str] = {}
    parts: dict[str, list[dict[str, Any]]] = {"queries": [], "qrels": [], "top_ranked": []}
    for number, row in enumerate(rows_of(own)):
        named = [(f"a{number}-{at}", text, 1) for at, text in enumerate(row["positives"])]
        named += [(f"n{number}-{at}", text, 0) for at, text in enumerate(row["negatives"])]
        texts |= {name: text for name, text, _ in named}
        query = f"q{number}"
        parts["queries"].append({"_id": query, "text": row["query"]})
        parts["qrels"] += [
            {"query-id": query, "corpus-id": name, "score": gain} for name, _, gain in named
        ]
        ranked = [name for name, _, _ in named]
        parts["top_ranked"].append({"query-id": query, "corpus-ids": ranked})
    parts["corpus"] = [{"_id": name, "title": "", "text": text} for name, text in texts.items()]
    for part, rows in parts.items():
        write_rows(folder / part / f"test{suffix}", rows)


def write_bitext(folder: Path, own: Path, suffix: str) -> None:
    """Two columns of texts."""
    rows = [{"sentence1": row["text1"], "sentence2": row["text2"]} for row in rows_of(own)]
    write_rows(folder / f"test{suffix}", rows)


WRITERS = {
    "classification": ("classification", write_classification),
    "clustering": ("clustering", write_clustering),
    "clustering.v2": ("clustering", write_flat_clustering),
    "pair_classification": ("pair_classification", write_pairs),
    "pair_classification, flat": ("pair_classification", write_flat_pairs),
    "reranking, rows": ("reranking", write_candidates),
    "reranking": ("reranking", write_ranked),
    "bitext": ("bitext", write_bitext),
}
"""Layouts of the kinds that are no task, each with its kind."""
