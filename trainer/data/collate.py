"""Rows of a step to a tokenised global batch.

Everything is a function of (seed, step), so whoever collates a step gets the same batch. What a
batch of a task holds is decided in the task's own file.
"""

from collections.abc import Sequence

from trainer.data.batch import Batch, StepPlan, StoredBatch
from trainer.data.deal import deal_to
from trainer.data.slot_table import SlotTable
from trainer.data.sources import StepSource
from trainer.data.step_prompts import step_prompts
from trainer.data.tasks import TASK_DATA
from trainer.data.text_table import TextTable
from trainer.data.tokens import TextEncoder
from trainer.recipe.kind import TaskSettings
from trainer.recipe.per_source import settings_of
from trainer.recipe.schema import Recipe


def make_batch(plan: StepPlan, source: StepSource, encoder: TextEncoder, recipe: Recipe) -> Batch:
    """The global batch of a step.

    Args:
        plan: which rows.
        source: the plan's source, or mix.
        encoder: made from the recipe's tokenizer.
        recipe: the run; its seed, limits, instructions and settings of the source are used.

    Raises:
        DataError: if a row changed on disk, or a text has no tokens.
    """
    prompts = step_prompts(recipe.data, plan.source)
    table = TextTable(encoder, recipe.data, prompts, source.teacher_vectors)
    task, settings = TASK_DATA[plan.task], settings_of(recipe, plan.source)
    records = task.draw(plan, source, settings, recipe.seed)
    return task.collate(plan, records, table, settings, recipe.seed)


def make_stored_batch(
    plan: StepPlan,
    source: StepSource,
    table: SlotTable,
    settings: TaskSettings,
    seed: int,
    *,
    num_ranks: int,
    ranks: Sequence[int] | None = None,
) -> StoredBatch:
    """The same batch of a source that was tokenised ahead; `read_own` reads a rank's token ids.

    Args:
        plan: which rows.
        source: the plan's source, or mix.
        table: of its tokens.
        settings: of the source's steps.
        seed: of the run.
        num_ranks: ranks that its texts are dealt to.
        ranks: those that it is for; None: all.
    """
    collate = TASK_DATA[plan.task].collate_stored
    assert collate is not None, f"tokens of a {plan.task} source"
    batch, slots = collate(plan, source, table, settings, seed)
    assert batch.texts.groups is not None
    own = range(num_ranks) if ranks is None else ranks
    dealt = deal_to(batch.texts.lengths, batch.texts.groups, own, num_ranks)
    return StoredBatch(batch=batch, slots=slots[dealt], dealt=dealt)
