"""The model card of an export, `README.md`: front matter for the hub and text for people.

It is made of small files alone: it loads no model, and must not import torch.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import Recipe
from trainer.report.base_model import BaseModel, base_of_folder, base_of_recipe
from trainer.report.card_facts import CardFacts, TrainedBy
from trainer.report.card_metadata import front_matter, relation
from trainer.report.card_training import merging, training
from trainer.report.card_usage import usage
from trainer.report.exported import read_exported
from trainer.report.markdown import code, plain, table
from trainer.report.read import MERGE_KEYS, Run, read_training
from trainer.run_folder.layout import MERGE_RECORD, RunFolder

CARD = "README.md"
PLACE = "<!-- place: {place} -->"
"""The last line of a card: what an upload replaces by the name on the hub."""
MADE = {
    "finetune": "Trained from {base} with codiemb-trainer.",
    "adapter": "An adapter for {base}, trained with codiemb-trainer.",
    "merge": "Checkpoints that were trained from {base}, merged with codiemb-trainer.",
}
"""How an export came about, by its relation to the base."""


def write_run_card(folder: Path, run: Path, *, place: str, step: int | None = None) -> Path:
    """Write the card of an export, or of a merge, of one run.

    Args:
        folder: the export, all else complete.
        run: output folder of the run.
        place: how commands will name the export.
        step: steps done by the exported parameters; None: all of the run.

    Returns:
        The card.

    Raises:
        TrainerError: a file of the run or of the export is damaged.
        OSError: the card cannot be written; an older one stays.
    """
    recipe = load_recipe(RunFolder(run).recipe)
    merge = _merge_record(folder)
    trained_by = _trained_by(recipe, read_training(run), step)
    facts = CardFacts(
        name=recipe.name,
        exported=read_exported(folder, _as_path(place)),
        base=base_of_recipe(recipe.model.path, recipe.model.revision),
        # merged weights are those of no evaluation
        trained_by=trained_by if merge is None else replace(trained_by, after=None),
        merge=merge,
    )
    return _write(folder / CARD, render(facts))


def write_merge_card(folder: Path, *, place: str) -> Path:
    """Write the card of merged checkpoints, which may be of several runs.

    Args:
        folder: holds `merge.json`.
        place: how commands will name it.

    Returns:
        The card.

    Raises:
        TrainerError: there is no `merge.json`, or a file is damaged.
        OSError: the card cannot be written; an older one stays.
    """
    merge = _merge_record(folder)
    if merge is None:
        raise DataError(
            f"{folder}: {MERGE_RECORD} = missing; expected the output of tools/delta_merge.py. "
            "Check the path."
        )
    facts = CardFacts(
        name=Path(place).name,
        exported=read_exported(folder, _as_path(place)),
        base=base_of_folder(Path(str(merge["base"]["path"]))),
        trained_by=None,
        merge=merge,
    )
    return _write(folder / CARD, render(facts))


def _as_path(place: str) -> str:
    """A place that no word of the text can be."""
    return place if "/" in place else f"./{place}"


def card_for_hub(card: Path, repo: str) -> str:
    """A card's text with the folder's path replaced by its name on the hub.

    Args:
        card: the file; one that the trainer did not write stays as it is.
        repo: `OWNER/NAME`.
    """
    text = card.read_text(encoding="utf-8")
    before, _, after = PLACE.partition("{place}")
    found = re.search(f"{re.escape(before)}(.+){re.escape(after)}", text)
    if found is None:
        return text
    # not where it is a part of a longer path
    return re.sub(rf"(?<![\w./-]){re.escape(found[1])}(?![\w/-])", repo, text)


def _trained_by(recipe: Recipe, run: Run, step: int | None) -> TrainedBy:
    """The run, and the evaluation of what it exported."""
    done = step
    if done is None:
        done = max((line["step"] + 1 for line in run.steps), default=0)
    names = {held_out.name for held_out in recipe.eval.sets}
    found = [line for line in run.evaluations if line["step"] == done]
    after = next((line for line in reversed(found) if line["sets"].keys() <= names), None)
    return TrainedBy(recipe=recipe, run=run, step=done, after=after)


def _merge_record(folder: Path) -> Mapping[str, Any] | None:
    """Content of `merge.json`; None without one.

    Raises:
        DataError: it is damaged.
    """
    path = folder / MERGE_RECORD
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {*MERGE_KEYS, "base", "settings"} <= content.keys():
        raise DataError(
            f"{path}: content = no record of a merge; expected what the merge wrote. Merge again."
        )
    return content


def render(facts: CardFacts) -> str:
    """The whole card."""
    parts = [
        f"# {plain(facts.name)}",
        _introduction(facts),
        _summary(facts),
        *usage(facts),
        *merging(facts),
        *training(facts),
        PLACE.format(place=facts.exported.place),
    ]
    return f"{front_matter(facts)}\n" + "\n\n".join(parts) + "\n"


def _introduction(facts: CardFacts) -> str:
    """What the model is, and of what it was made."""
    size = facts.exported.dimensions
    vectors = f"vectors of {size:,} numbers" if size else "hidden states"
    return (
        f"{MADE[relation(facts)].format(base=_base(facts.base))} The model turns texts into "
        f"{vectors}; texts of similar meaning have a cosine near 1."
    )


def _base(base: BaseModel) -> str:
    """The base, as a link where the hub has it."""
    if base.hub is None:
        return f"the local model {code(base.name)}"
    link = f"[{plain(base.hub)}](https://huggingface.co/{base.hub})"
    return f"{link} (revision {code(base.revision)})" if base.revision else link


def _summary(facts: CardFacts) -> str:
    """The numbers that a user needs first."""
    exported, run = facts.exported, facts.trained_by
    labels = {
        "size of a vector": exported.dimensions,
        "it can be cut to": ", ".join(f"{size:,}" for size in facts.shorter),
        "longest text": exported.max_tokens and f"{exported.max_tokens:,} tokens",
        "pooling": exported.pooling,
        "attention": run.recipe.model.attention if run else None,
        "similarity": "cosine" if exported.is_embedder else None,
        "licence of the base": _joined(facts.base.inherited.get("license")),
    }
    rows = [(name, plain(value)) for name, value in labels.items() if value]
    return table(("property", "value"), rows, num_names=2)


def _joined(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


def _write(file: Path, text: str) -> Path:
    """Write a card whole or not at all."""
    partial = file.with_name(f".{file.name}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
    return file
