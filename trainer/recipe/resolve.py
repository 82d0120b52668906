"""What follows from a recipe by arithmetic: shares of ranks, warmup, the DeepSpeed dict.

Nothing is floored, rounded down or switched off: what does not fit is an error. It must not read
data or import torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import RecipeError
from trainer.recipe.deepspeed_file import read_deepspeed_file
from trainer.recipe.embedding_distillation import is_projected
from trainer.recipe.kind import Side, reads_middle
from trainer.recipe.per_source import StepKind, key_of, step_kinds
from trainer.recipe.schema import Recipe
from trainer.recipe.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a recipe means for a number of ranks."""

    world_size: int
    """Ranks over all hosts."""
    rows_per_rank: Mapping[str, int]
    """Queries or pairs of one step that fall to each rank, by kind of step."""
    deepspeed: Mapping[str, Any]
    """The dict for `deepspeed.initialize`."""


def resolve(recipe: Recipe, *, world_size: int) -> Resolved:
    """Check the recipe's arithmetic and derive what the other rooms need.

    Args:
        recipe: as loaded.
        world_size: ranks over all hosts, at least 1.

    Raises:
        RecipeError: if a batch does not divide by the ranks, or the ds_config is missing, not
            valid or against the recipe.
    """
    return Resolved(
        world_size=world_size,
        rows_per_rank={kind.name: _rows_per_rank(kind, world_size) for kind in step_kinds(recipe)},
        deepspeed=deepspeed_config(recipe, world_size=world_size),
    )


def row_texts(recipe: Recipe, kind: StepKind) -> list[tuple[int, int]]:
    """What a row of a kind of step holds at most: (number of texts, tokens of each) by side."""
    data = recipe.data
    limits: dict[Side, int] = {"query": data.query_max_tokens, "passage": data.passage_max_tokens}
    sides = TASKS[kind.task].texts_of_row(kind.settings)
    return [(number, limits[side]) for side, number in sides.items() if number]


def longest_text(recipe: Recipe) -> int:
    """Tokens of the longest text that any step may have."""
    return max(tokens for kind in step_kinds(recipe) for _, tokens in row_texts(recipe, kind))


def uses_middle_layer(recipe: Recipe) -> bool:
    """Whether the loss of any step reads the middle hidden layer."""
    return any(reads_middle(TASKS[kind.task], kind.settings) for kind in step_kinds(recipe))


def uses_teacher_layer(recipe: Recipe) -> bool:
    """Whether a layer is trained that brings vectors to a teacher's size for the loss of a step."""
    return any(is_projected(kind.settings) for kind in step_kinds(recipe))


def _rows_per_rank(kind: StepKind, world_size: int) -> int:
    """A rank's share of a global batch, which must be whole."""
    size = kind.settings.global_batch_size
    if size % world_size:
        below = size // world_size * world_size
        nearest = [str(number) for number in (below, below + world_size) if number > 0]
        key = key_of(kind.sources[0], "global_batch_size")
        raise RecipeError(
            f"recipe: {key} = {size}; expected a multiple of the number of ranks = {world_size}. "
            f"Use {' or '.join(nearest)}, or another number of ranks."
        )
    return size // world_size


def warmup_steps(recipe: Recipe, num_steps: int) -> int:
    """Steps over which the rate rises: the ratio's share of `num_steps`, to the nearest step."""
    return round(recipe.train.warmup_ratio * num_steps)


def deepspeed_config(recipe: Recipe, *, world_size: int) -> dict[str, Any]:
    """The ds_config file with what the recipe owns written into it.

    The engine cuts each step into chunks itself, so DeepSpeed sees one row per rank and no
    accumulation. `gradient_clipping` is always written: absent means 1.0 in DeepSpeed, not off.

    Raises:
        RecipeError: if the file is missing, is not valid, sets what the recipe owns, or has
            another precision than `model.dtype`.
    """
    owned = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.train.max_grad_norm,
        "zero_allow_untested_optimizer": True,
    }
    return read_deepspeed_file(recipe.engine.deepspeed, dtype=recipe.model.dtype) | owned
