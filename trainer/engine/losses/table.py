"""The loss of each task; a new one is a file beside this one and one line here."""

from trainer.data.batch import Batch
from trainer.distributed.group import Ranks
from trainer.engine.losses.ir import retrieval_loss
from trainer.engine.losses.labels import labels_loss
from trainer.engine.losses.sts import similarity_loss
from trainer.engine.losses.task_loss import MakeLoss, TaskLoss
from trainer.recipe import ir, labels, sts
from trainer.recipe.kind import TaskSettings

LOSSES: dict[str, MakeLoss] = {
    ir.KIND.name: retrieval_loss,
    sts.KIND.name: similarity_loss,
    labels.KIND.name: labels_loss,
}
"""What makes the loss of a batch, by task."""


def task_loss(batch: Batch, settings: TaskSettings, ranks: Ranks) -> TaskLoss:
    """The loss of a batch of any task on this rank."""
    return LOSSES[batch.plan.task](batch, settings, ranks)
