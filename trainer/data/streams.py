"""The stream of a source's rows, by chance, by class or by length, or of a mix; not its turns."""

from trainer.data.buckets import LengthBuckets
from trainer.data.classes import Classes, ClassStream
from trainer.data.lengths import RowLengths
from trainer.data.mixed_stream import MixedStream
from trainer.data.row_stream import RowStream
from trainer.data.subset import Subset
from trainer.errors import RecipeError
from trainer.recipe.per_source import num_length_buckets
from trainer.recipe.schema import Recipe, SourceRecipe

Stream = RowStream | ClassStream | MixedStream
"""Rows of a source in the order in which steps take them."""
Groups = Classes | RowLengths
"""What the order of a source's rows follows from besides chance."""


def make_stream(
    recipe: Recipe,
    source: SourceRecipe,
    groups: Groups | None,
    *,
    num_rows: int,
    batch_size: int,
    subset: Subset | None,
) -> RowStream | ClassStream:
    """The rows of a source, from the beginning of a run.

    Args:
        recipe: the run.
        source: of the recipe.
        groups: its rows by class, or their lengths; None: it needs none, or they are not at hand
            and its rows are counted only.
        num_rows: how many it has.
        batch_size: of its steps.
        subset: which of its records the rows are; None: all.

    Raises:
        RecipeError: if a bucket has fewer rows than a step.
    """
    name, seed = source.name, recipe.seed
    if isinstance(groups, Classes):
        return ClassStream(seed=seed, source=name, num_rows=num_rows, classes=groups)
    num_buckets = num_length_buckets(recipe.data, source)
    if groups is None or num_buckets == 1:
        return RowStream(seed=seed, source=name, num_rows=num_rows)
    own = f"data.sources.{name}.length_buckets"
    if num_buckets * batch_size > num_rows:
        is_own = source.length_buckets is not None
        raise RecipeError(
            f"recipe: {own if is_own else 'data.length_buckets'} = {num_buckets}; expected at most "
            f"{num_rows // batch_size} for source {name}, as a bucket of its {num_rows} rows holds "
            f"a step of {batch_size}. Lower it{'.' if is_own else f', or set {own}.'}"
        )
    buckets = LengthBuckets(
        by_length=groups.by_length(num_rows, subset),
        num_buckets=num_buckets,
        batch_size=batch_size,
    )
    return RowStream(seed=seed, source=name, num_rows=num_rows, buckets=buckets)


def continue_stream(old: Stream, position: int, new: Stream) -> tuple[Stream, int]:
    """The stream that a later stretch of a run takes rows from, and its position in it.

    Args:
        old: of the stretch before.
        position: rows that were taken from it.
        new: of the later stretch, as if it began the run; by class, or of a mix, where the old one
            is.
    """
    if isinstance(old, MixedStream):
        assert isinstance(new, MixedStream), new
        return old.continued(position, new)
    assert not isinstance(new, MixedStream), new
    if isinstance(old, ClassStream):
        return old.continued(position, num_rows=new.num_rows, seed=new.seed)
    assert isinstance(new, RowStream), new
    return old.continued(position, num_rows=new.num_rows, seed=new.seed, buckets=new.buckets)
