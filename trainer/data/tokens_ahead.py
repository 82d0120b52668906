"""Which sources are tokenised ahead, where their tokens lie, and what making them will take.

A store is found by all that its ids follow from. So a changed file, tokenizer, instruction or limit
finds another one, and ids that are out of date are never read.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tokenizers

from trainer.data.cache import cache_root, place_in_cache
from trainer.data.label_source import LabelledSource
from trainer.data.sources import BeirSource, Source
from trainer.data.tasks import TASK_DATA
from trainer.data.token_pieces import TokenJob
from trainer.data.token_store import FORMAT, SLOT_BYTES
from trainer.data.tokens import TextEncoder
from trainer.errors import DataError, RecipeError
from trainer.recipe.mine_rules import mined_names
from trainer.recipe.schema import Recipe

logger = logging.getLogger(__name__)

AHEAD_FROM_ROWS = 100_000
"""`data.tokens: auto` tokenises sources of so many rows ahead, whatever the number of ranks."""
AHEAD_FROM_RANKS = 8
"""With so many ranks every source is: each rank would tokenise the texts of all of them."""
SAMPLED_ROWS = 200
"""Rows that the size of a store is estimated from."""
GB = 10**9


def is_ahead(recipe: Recipe, source: Source, *, num_ranks: int) -> bool:
    """Whether a source is tokenised ahead.

    Raises:
        RecipeError: if it must be, and its task has no form for it.
    """
    mode = recipe.data.tokens
    if TASK_DATA[source.task].row_texts is None:
        if mode == "ahead":
            raise RecipeError(
                f"recipe: data.tokens = ahead; expected auto or on_the_fly, as steps of task "
                f"{source.task} (source {source.name}) are tokenised on the fly alone. Change it."
            )
        return False
    if isinstance(source, BeirSource) and source.name in mined_names(recipe.data):
        return False  # a step may draw any document of its corpus, see `check_mined`
    is_large = len(source) >= AHEAD_FROM_ROWS or num_ranks >= AHEAD_FROM_RANKS
    return mode == "ahead" or (mode == "auto" and is_large)


def token_jobs(
    recipe: Recipe, sources: Sequence[Source], encoder: TextEncoder, *, num_ranks: int
) -> dict[str, TokenJob]:
    """The stores that a run needs, by name of the source.

    Raises:
        RecipeError: see `is_ahead`.
    """
    jobs, settings = {}, {one.name: one for one in recipe.data.sources}
    for source in sources:
        row_texts = TASK_DATA[source.task].row_texts
        is_wanted = source.name in settings and is_ahead(recipe, source, num_ranks=num_ranks)
        if not is_wanted or row_texts is None:
            continue
        job = TokenJob(
            folder=Path(),
            source=source,
            row_texts=row_texts,
            encoder=encoder,
            limits=recipe.data,
            settings=settings[source.name],
        )
        jobs[source.name] = place(job)
    return jobs


def place(job: TokenJob) -> TokenJob:
    """A job whose folder is that of its content in the cache."""
    folder = place_in_cache(identity(job), "tokens")
    return replace(job, folder=folder)


def identity(job: TokenJob) -> str:
    """All that the ids of a source follow from, as one line."""
    source, settings, encoder = job.source, job.settings, job.encoder
    labels = source.label_texts if isinstance(source, LabelledSource) else None
    parts = {
        "rows": (source.fingerprint, len(source), source.task, labels, job.limits.on_bad_row),
        "read": (
            *(settings.format, settings.columns, settings.header),
            *(settings.split, settings.score_range),
        ),
        "prompt": (encoder.template, encoder.pool_instruction, job.sides()),
        "tokenizer": tokenizer_digest(encoder),
    }
    return f"tokens{FORMAT}|{json.dumps(parts, sort_keys=True)}"


def tokenizer_digest(encoder: TextEncoder) -> str:
    """Of the content of a tokenizer and the release that runs it, hexadecimal."""
    encoder.tokenizer.no_truncation()
    refused = sorted(encoder.refused_ids.items())
    parts = (tokenizers.__version__, encoder.tokenizer.to_str(), sorted(encoder.special_ids))
    return hashlib.sha256(json.dumps((*parts, refused)).encode()).hexdigest()


@dataclass(frozen=True)
class Estimate:
    """What a store will hold."""

    num_tokens: int
    """Of all texts of all rows."""
    num_bytes: int
    """On disk."""


def estimate(job: TokenJob) -> Estimate:
    """The size of a store, from rows that are spread evenly over the source."""
    total = len(job.source)
    rows = np.unique(np.linspace(0, total - 1, min(total, SAMPLED_ROWS)).astype(np.int64))
    records = [job.row_texts(job.source.record(row)) for row in rows.tolist()]
    num_slots = sum(len(one.queries) + len(one.passages) for one in records)
    num_tokens = 0
    queries = [text for one in records for text in one.queries]
    passages = [text for one in records for text in one.passages]
    for (instruction, limit), texts in zip(job.sides(), (queries, passages), strict=True):
        encoded = job.encoder.encode(texts, instruction=instruction, max_tokens=limit)
        num_tokens += sum(map(len, encoded.token_ids))
    slots, tokens = (number * total // len(rows) for number in (num_slots, num_tokens))
    # the index stands in the pieces and once more over all of them, there with one byte more
    return Estimate(tokens, tokens * job.ids_dtype.itemsize + slots * (2 * SLOT_BYTES + 1))


def announce(job: TokenJob, *, num_processes: int) -> None:
    """Say what making a store will take, before it begins.

    Raises:
        DataError: if the disk has less room than that.
    """
    needed, root = estimate(job), cache_root()
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    logger.info(
        "source %s: tokenising %d rows once for all runs with %d processes: about %.3g million "
        "tokens, %.3g GB in %s (%.3g GB free)",
        job.source.name, len(job.source), num_processes, needed.num_tokens / 1e6,
        needed.num_bytes / GB, job.folder, free / GB,
    )  # fmt: skip
    there = sum(file.stat().st_size for file in job.folder.glob("piece-*"))
    if needed.num_bytes - there > free:
        raise DataError(
            f"{root}: free = {free / GB:.3g} GB; expected {needed.num_bytes / GB:.3g} GB for the "
            f"tokens of source {job.source.name}. Free space, set TRAINER_CACHE_DIR to a folder on "
            "a larger disk, or set data.tokens=on_the_fly."
        )
