"""Batches of a run in order, made ahead of time by worker processes; it holds no rules of its own.

A worker computes whole steps, each a function of (seed, step), so the number of workers changes
nothing but speed. Workers are plain child processes that read one job and write batches into a
pipe: they import neither torch nor the launching script, and end by themselves when the pipe does.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainer.data.batch import Batch
from trainer.data.collate import make_batch
from trainer.data.plan import DataPlan
from trainer.data.sources import Source
from trainer.data.tokens import make_encoder
from trainer.recipe.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def batches(
    plan: DataPlan,
    sources: tuple[Source, ...],
    tokenizer: "PreTrainedTokenizerFast",
    recipe: Recipe,
    start: int,
    stop: int,
) -> Iterator[Batch]:
    """The global batches of steps start..stop-1, in order; close the iterator to stop early.

    Raises:
        DataError: if a row changed on disk or a text has no tokens.
        StepError: if a worker process died.
    """
    encoder = make_encoder(tokenizer, recipe.data, pooling=recipe.model.pooling)
    by_name = {source.name: source for source in sources}
    for step in range(start, stop):
        step_plan = plan.at(step)
        yield make_batch(step_plan, by_name[step_plan.source], encoder, recipe)
