"""Which sources have a teacher's scores: asked before a loss that learns from them starts."""

from collections.abc import Sequence

from trainer.data.formats import ADAPTERS
from trainer.data.sources import Source
from trainer.errors import DataError


def require_teacher(source: Source, key: str) -> None:
    """Refuse a source none of whose rows has scores; those of only some rows are enough.

    Args:
        source: one that is trained on.
        key: of the recipe, which needs the scores, such as `tasks.ir.distillation`.

    Raises:
        DataError: naming the source, its rows, and where scores are looked for.
    """
    if source.num_scored:
        return
    columns = source.teacher_columns
    if columns:
        looked, advice = f"in {columns}", "Add them"
    else:
        names = dict.fromkeys(one.name for one in ADAPTERS if one.teacher_columns)
        looked = "but its format has none"
        advice = f"Write its rows in a format that has them ({', '.join(names)})"
    raise DataError(
        f"data.sources.{source.name}: rows with a teacher's scores = 0 of {len(source)}; expected "
        f"at least one for {key}, {looked}. {advice}, or remove {key} or the source."
    )


def scored_rows(sources: Sequence[Source]) -> dict[str, int]:
    """Number of rows with a teacher's scores of each source that has any, by name."""
    return {source.name: source.num_scored for source in sources if source.num_scored}
