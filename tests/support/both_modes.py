"""Batches made on the fly and from tokens made ahead, which must be the same bit for bit."""

import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.batch import Batch
from trainer.data.collate import make_stored_batch
from trainer.data.deal import NO_TEXT, deal_all
from trainer.data.slot_table import SlotTable, read_own, with_tokens
from trainer.data.sources import Source
from trainer.data.step_prompts import step_prompts
from trainer.data.token_making import make_pieces
from trainer.data.token_store import TokenStore, open_store
from trainer.data.tokens import TextEncoder
from trainer.data.tokens_ahead import token_jobs
from trainer.recipe.per_source import settings_of
from trainer.recipe.schema import Recipe


def always_ahead(recipe: Recipe) -> Recipe:
    """A recipe whose sources are all tokenised ahead."""
    return replace(recipe, data=replace(recipe.data, tokens="ahead"))


def stores_in(
    folder: Path, recipe: Recipe, sources: Sequence[Source], encoder: TextEncoder
) -> dict[str, TokenStore]:
    """Tokens of all sources, made by this process."""
    stores = {}
    for name, job in token_jobs(always_ahead(recipe), sources, encoder, num_ranks=1).items():
        own = replace(job, folder=folder / name)
        own.folder.mkdir(parents=True)
        make_pieces(own, first=0)
        store = open_store(own.folder)
        assert store is not None
        stores[name] = store
    return stores


def assert_same(whole: Batch, stored: Batch, *, rank: int, num_ranks: int) -> None:
    """All of a batch, and the token ids of one rank's texts."""
    assert type(whole) is type(stored)
    for one in fields(whole):  # type: ignore[arg-type]
        if one.name not in ("texts", "plan"):
            _assert_equal(getattr(whole, one.name), getattr(stored, one.name), one.name)
    assert np.array_equal(whole.plan.rows, stored.plan.rows)
    _assert_equal(whole.texts.lengths, stored.texts.lengths, "lengths")
    for name in ("num_prompt_tokens", "teacher_vectors"):
        _assert_equal(getattr(whole.texts, name), getattr(stored.texts, name), name)
    lengths, groups = whole.texts.lengths, stored.texts.groups
    assert groups is not None
    assert whole.texts.groups is not None
    for one, other in zip(whole.texts.groups, groups, strict=True):
        _assert_equal(one.ids, other.ids, "groups")
        assert one.num_shared == other.num_shared
    for text in deal_all(lengths, groups, num_ranks)[:, rank].tolist():
        if text == NO_TEXT:
            continue
        _assert_equal(whole.texts.token_ids[text], stored.texts.token_ids[text], f"text {text}")


def _assert_equal(one: Any, other: Any, name: str) -> None:
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, name
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), name
    else:
        assert one == other, name


def assert_stored_alike(whole: Batch, source: Source, encoder: TextEncoder, recipe: Recipe) -> None:
    """A batch that was made on the fly is made from stored tokens for every rank of 1, 2 and 8."""
    with tempfile.TemporaryDirectory() as folder:
        store = stores_in(Path(folder), recipe, [source], encoder)[source.name]
        for num_ranks in (1, 2, 8):
            for rank in range(num_ranks):
                table = SlotTable(
                    store=store,
                    teacher=source.teacher_vectors,
                    num_first=step_prompts(recipe.data, source.name).first_tokens(
                        encoder.num_first_tokens
                    ),
                )
                settings = settings_of(recipe, source.name)
                stored = make_stored_batch(
                    whole.plan, source, table, settings, recipe.seed, num_ranks=num_ranks
                )
                own = with_tokens(stored.batch, read_own(stored.own(rank), store))
                assert_same(whole, own, rank=rank, num_ranks=num_ranks)
