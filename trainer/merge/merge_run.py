"""Merge the last checkpoints of a run when it ends; it must not train."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.checkpoint.base_identity import base_files
from trainer.checkpoint.replace import replace_folder, restore_replaced
from trainer.distributed.agree import on_first_rank
from trainer.distributed.group import Ranks
from trainer.merge.driver import merge_checkpoints
from trainer.merge.settings import MergeSettings
from trainer.recipe.checkpoint import MergeRecipe

logger = logging.getLogger(__name__)


def merge_last(
    recipe: MergeRecipe,
    base: tuple[str, str | None],
    checkpoints: Sequence[Path],
    output: Path,
    ranks: Ranks,
    *,
    finish: Callable[[Path], None],
) -> None:
    """Merge checkpoints of this run with its base, on the first rank while the others wait.

    Args:
        recipe: how.
        base: resolved path and revision of the pre-trained model.
        checkpoints: tag folders, oldest first; all their files visible to the first rank.
        output: folder of the result; one of an earlier end of the run is replaced.
        ranks: this process.
        finish: called with the result, all else done, before it gets its name.

    Raises:
        CheckpointError: on all ranks, if inputs, memory or disk do not allow it.
    Collective: yes.
    """
    settings = MergeSettings(
        method=recipe.method,
        granularity=recipe.granularity,
        alpha=recipe.alpha,
        lambda_=recipe.scale,
        by_depth=recipe.by_depth,
        memory_budget_bytes=None,
        hash_files=True,
    )

    def merge() -> None:
        restore_replaced(output.parent)
        fresh = output.with_name(f".partial-{output.name}")
        for leftover in output.parent.glob(f"{fresh.name}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        merge_checkpoints(base_files(*base)[0].parent, checkpoints, fresh, settings)
        finish(fresh)
        replace_folder(fresh, output)

    on_first_rank(merge, ranks)
    names = ", ".join(path.name for path in checkpoints)
    logger.info("merged %s (%s) into %s", names, recipe.method, output)
