"""When a run mines hard negatives itself (`data.mine`), and rules for that; it reads no files."""

from collections.abc import Iterator

from trainer.recipe.ir import GUIDE, KIND, IrRecipe, is_guided
from trainer.recipe.kind import Fail, Words
from trainer.recipe.mine import MineRecipe
from trainer.recipe.per_source import key_of, settings_of
from trainer.recipe.schema import DataRecipe, Recipe, SourceRecipe

SECTION = "data.mine"


def mined_sources(data: DataRecipe) -> tuple[SourceRecipe, ...]:
    """The sources whose hard negatives a run mines, in the recipe's order."""
    if data.mine is None:
        return ()
    names = data.mine.sources
    of_task = (one for one in data.sources if one.task == KIND.name)
    return tuple(one for one in of_task if names is None or one.name in names)


def mined_names(data: DataRecipe) -> tuple[str, ...]:
    """Their names."""
    return tuple(one.name for one in mined_sources(data))


def is_due(mine: MineRecipe | None, step: int) -> bool:
    """Whether negatives are mined between a step and the one before it."""
    return mine is not None and step % mine.every_steps == 0 and (step > 0 or mine.start)


def mined_before(mine: MineRecipe | None, step: int) -> int | None:
    """The step before which the negatives of a step were mined; None: its rows have their own."""
    if mine is None:
        return None
    found = step // mine.every_steps * mine.every_steps
    return found if is_due(mine, found) else None


def mined_spans(mine: MineRecipe | None, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Steps start..stop-1 in parts that train on what one search found, each with its end."""
    while start < stop:
        every = stop if mine is None else mine.every_steps
        end = min(stop, start // every * every + every)
        yield start, end
        start = end


def check_mine(recipe: Recipe, fail: Fail) -> None:
    """Refuse mining that no step reads, that has no source, or that contradicts itself.

    Args:
        recipe: with settings for the task of every source.
        fail: makes the error of a key.

    Raises:
        RecipeError: naming the key.
    """
    mine = recipe.data.mine
    if mine is None:
        return
    _check_sources(recipe.data, mine, fail)
    least = mine.skip_top + mine.num_negatives
    if mine.depth is not None and mine.depth < least:
        expected = f"at least {least}, skip_top and num_negatives"
        raise fail(f"{SECTION}.depth", mine.depth, expected, "Raise it, or remove it.")
    steps = recipe.train.max_steps
    if steps is not None and mine.every_steps >= steps and not mine.start:
        expected = f"less than train.max_steps = {steps} where {SECTION}.start is false"
        advice = "Lower it, or set start, as nothing is mined otherwise."
        raise fail(f"{SECTION}.every_steps", mine.every_steps, expected, advice)
    for source in mined_sources(recipe.data):
        _check_source(recipe, source, mine, fail)


def _check_sources(data: DataRecipe, mine: MineRecipe, fail: Fail) -> None:
    """What is named is a source of retrieval, and there is one."""
    tasks = {one.name: one.task for one in data.sources}
    known = [name for name, task in tasks.items() if task == KIND.name]
    key, listed = f"{SECTION}.sources", ", ".join(known) or "none"
    if not known:
        expected = f"a source of task {KIND.name}, as others have no hard negatives"
        raise fail(SECTION, Words("a section"), expected, "Add one, or remove the section.")
    if mine.sources is not None and not mine.sources:
        raise fail(key, (), f"some of {listed}", "Name one, or remove the key.")
    for index, name in enumerate(mine.sources or ()):
        if name not in known:
            of_task = f" (of task {tasks[name]})" if name in tasks else ""
            expected = f"a source of task {KIND.name}: {listed}"
            raise fail(f"{key}.{index}", Words(f"{name}{of_task}"), expected, "Correct the name.")
        if name in (mine.sources or ())[:index]:
            raise fail(f"{key}.{index}", name, "each source once", "Remove one of the two.")


def _check_source(recipe: Recipe, source: SourceRecipe, mine: MineRecipe, fail: Fail) -> None:
    """Steps of a source read as many negatives as are mined, and no scores of others."""
    settings = settings_of(recipe, source.name)
    assert isinstance(settings, IrRecipe)
    other = f"or name other sources in {SECTION}.sources"
    if settings.negatives == 0:
        expected = f"at least 1, as {SECTION} finds hard negatives of source {source.name}"
        raise fail(key_of(source, "negatives"), 0, expected, f"Raise it, {other}.")
    if mine.num_negatives < settings.negatives:
        expected = f"at least {key_of(source, 'negatives')} = {settings.negatives}"
        raise fail(f"{SECTION}.num_negatives", mine.num_negatives, expected, "Raise it.")
    why = f"where {SECTION} replaces the negatives of source {source.name}: scores of rows belong "
    why += "to their own negatives"
    if settings.distillation is not None:
        advice = f"Remove it, {other}."
        raise fail("tasks.ir.distillation", Words("a section"), f"null {why}", advice)
    if is_guided(settings) and source.teacher_embeddings is None:
        advice = f"Give the source teacher_embeddings, {other}."
        raise fail(GUIDE, True, f"false {why}", advice)
