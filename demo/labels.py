"""Labelled texts of the demo: the summary of a docstring, labelled with its module.

The labels are silver: a module says roughly what its functions are about. Held-out modules are
those of the other tasks, so the labels that are scored are none that were trained.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.split import is_held_out, likeness, write_jsonl

Rows = list[dict[str, str]]
"""Rows of `text` and `label`."""
MIN_TRAIN = 4
"""Fewest summaries of a module that is trained on."""
MIN_HELD_OUT = 16
"""Fewest summaries of a module that is scored: a classifier learns from eight."""


def labelled_rows(docs: Iterable[Mapping[str, Any]]) -> tuple[Rows, Rows]:
    """Rows to train on, and held-out ones; each summary once.

    Args:
        docs: rows of the demo's `docs.jsonl`.
    """
    train: Rows = []
    held_out: Rows = []
    seen: set[str] = set()
    for doc in docs:
        alike = likeness(doc["summary"])
        if alike not in seen:
            seen.add(alike)
            rows = held_out if is_held_out(doc["module"]) else train
            rows.append({"text": doc["summary"], "label": doc["module"]})
    return list(_frequent(train, MIN_TRAIN)), list(_frequent(held_out, MIN_HELD_OUT))


def _frequent(rows: Sequence[dict[str, str]], least: int) -> Iterator[dict[str, str]]:
    """Rows of labels that have so many."""
    sizes = Counter(row["label"] for row in rows)
    return (row for row in rows if sizes[row["label"]] >= least)


def write_labelled(folder: Path, docs: Iterable[Mapping[str, Any]]) -> str:
    """Write rows to train on and both held-out sets; returns one line that counts them.

    `labels.jsonl` is trained on; `classes/train.jsonl` and `classes/test.jsonl` are every other row
    of each held-out module; `clusters.jsonl` has all of them.
    """
    train, held_out = labelled_rows(docs)
    (folder / "classes").mkdir(parents=True, exist_ok=True)
    by_label: dict[str, Rows] = {}
    for row in held_out:
        by_label.setdefault(row["label"], []).append(row)
    for part, start in (("train", 0), ("test", 1)):
        rows = [row for group in by_label.values() for row in group[start::2]]
        write_jsonl(folder / "classes" / f"{part}.jsonl", rows)
    write_jsonl(folder / "clusters.jsonl", held_out)
    write_jsonl(folder / "labels.jsonl", train)
    modules = len({row["label"] for row in train})
    return (
        f"{len(train)} summaries of {modules} modules to train on, {len(held_out)} of "
        f"{len(by_label)} held out"
    )
