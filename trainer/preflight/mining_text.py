"""What a dry run says of negatives that the run will mine; it must read no more than rows."""

from collections.abc import Sequence

import numpy as np

from trainer.data.mined_rows import rows_until
from trainer.data.planned import plan_of
from trainer.data.sources import BeirSource, Source
from trainer.memory.text import table
from trainer.mining.mine import QUERY_BLOCK
from trainer.mining.vectors import BLOCK_TEXTS
from trainer.recipe.ir import IrRecipe
from trainer.recipe.mine_rules import mined_names
from trainer.recipe.per_source import settings_of
from trainer.recipe.schema import Recipe

SAMPLED_ROWS = 200
"""Rows whose passages are counted."""
MIB, GIB = 2**20, 2**30
FLOAT_BYTES, PLACE_BYTES = 4, 8
COLUMNS = ("source", "passages", "queries", "steps", "vectors on disk", "negatives on disk")


def mining_section(recipe: Recipe, sources: Sequence[Source], vector_size: int) -> tuple[str, ...]:
    """When negatives are mined, of how many texts, and what that takes; empty: never.

    Args:
        recipe: of the run.
        sources: those on this machine, opened.
        vector_size: of the model.
    """
    mine = recipe.data.mine
    if mine is None:
        return ()
    first = 0 if mine.start else mine.every_steps
    opened = {one.name: one for one in sources}
    away = [one.name for one in recipe.data.sources if one.name not in opened]
    title = f"Mining: before step {first:,} and every {mine.every_steps:,} steps from there"
    if away:
        unread = f"known when the rows of {', '.join(away)} are counted, at the start"
        return (f"{title}\n  {unread}",)
    plan = plan_of(recipe, sources)
    rows: list[tuple[str, ...]] = [COLUMNS]
    for name in mined_names(recipe.data):
        asked = len(rows_until(plan, recipe.data, name, first))
        rows.append(_row(recipe, opened[name], asked, vector_size))
    held = _bytes((BLOCK_TEXTS + QUERY_BLOCK) * vector_size * FLOAT_BYTES)
    return (
        f"{title}\n{table(rows)}\n  it embeds as many texts as so many steps of the source; a rank "
        f"holds {held} of vectors at a time, and some tens of bytes of each passage",
    )


def _row(recipe: Recipe, source: Source, asked: int, vector_size: int) -> tuple[str, ...]:
    """One mining of a source; equal passages are counted once when it is made."""
    assert recipe.data.mine is not None
    passages, settings = num_passages(source), settings_of(recipe, source.name)
    assert isinstance(settings, IrRecipe)
    of_step = settings.global_batch_size * (1 + settings.positives + settings.negatives)
    return (
        source.name,
        f"{'' if isinstance(source, BeirSource) else 'about '}{passages:,}",
        f"{asked:,}",
        f"{(passages + asked) / of_step:,.1f}",
        _bytes(passages * vector_size * FLOAT_BYTES),
        _bytes(len(source) * recipe.data.mine.num_negatives * PLACE_BYTES),
    )


def num_passages(source: Source) -> int:
    """Passages that are searched: documents of a corpus, or about those of all rows."""
    if isinstance(source, BeirSource):
        return len(source.records.folder.corpus_ids.rows)
    total = len(source)
    rows = np.unique(np.linspace(0, total - 1, min(total, SAMPLED_ROWS)).astype(np.int64))
    records = [source.record(row) for row in rows.tolist()]
    counted = sum(len(one.positives) + len(one.negatives) for one in records)
    return counted * total // len(rows)


def _bytes(number: int) -> str:
    return f"{number / GIB:.2f} GiB" if number >= GIB else f"{number / MIB:.2f} MiB"
