"""The demo's docs with one package left out: what an old model is trained on, and what is new.

It must not train or score.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.data import ir_records, sts_records, write_beir
from demo.docs import Doc, collect_docs
from demo.split import likeness, split_docs, write_jsonl

PACKAGE = "scipy"
"""About a seventh of all docs."""
SEED = 42
PAIRS_PER_KIND = {"train": 2_000, "held_out": 250}
"""As the demo draws them."""
SIZES = "sizes.json"
"""Rows of both training files; written last."""


def write_left_out(folder: Path, docs: Sequence[Doc]) -> dict[str, int]:
    """Write training files and held-out sets of the docs without the package, and of the package.

    Args:
        folder: is made.
        docs: of all packages.

    Returns:
        Number of rows of each training file of retrieval.
    """
    train, held_out = split_docs(docs)
    sides: dict[str, tuple[list[Doc], list[Doc]]] = {
        side: tuple([one for one in part if (one.package == PACKAGE) == is_new]  # type: ignore[misc]
                    for part in (train, held_out))
        for side, is_new in (("old", False), ("new", True))
    }  # fmt: skip
    # what the old model has read must not stand in the new held-out set
    seen = {likeness(doc.text) for doc in sides["old"][0]}
    new_train, new_held_out = sides["new"]
    sides["new"] = (new_train, [doc for doc in new_held_out if likeness(doc.text) not in seen])
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for side, (rows, questions) in sides.items():
        records: list[dict[str, Any]] = ir_records(rows, SEED)
        write_jsonl(folder / f"{side}.ir.jsonl", records)
        sizes[side] = len(records)
        write_beir(folder / f"{side}_held_out", questions)
    for part, docs_of_part in zip(("train", "held_out"), sides["old"], strict=True):
        pairs = sts_records(docs_of_part, PAIRS_PER_KIND[part], SEED)
        write_jsonl(folder / f"old.{part}.sts.jsonl", pairs)
    (folder / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
    return sizes


def left_out_sizes(folder: Path) -> dict[str, int]:
    """What `write_left_out` returned; the files are made where they are not there."""
    file = folder / SIZES
    if not file.is_file():
        return write_left_out(folder, collect_docs(2))
    sizes: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
    return sizes
