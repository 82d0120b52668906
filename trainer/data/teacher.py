"""Which sources have a teacher's scores, its vectors, hard negatives: asked before training."""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np

from trainer.data.cache import cached_arrays
from trainer.data.fields import shown
from trainer.data.formats import ADAPTERS
from trainer.data.scan import CACHE_FROM_ROWS
from trainer.data.sources import Source
from trainer.data.teacher_vectors import NO_ROW, TEXTS, TeacherVectors
from trainer.errors import DataError
from trainer.recipe.embedding_distillation import LAYER_KEY, embedding_distillation, is_projected
from trainer.recipe.kind import TaskKind
from trainer.recipe.mine_rules import mined_names
from trainer.recipe.per_source import NO_IN_BATCH_NEGATIVES, key_of, overrides_of, settings_of
from trainer.recipe.schema import Recipe, SourceRecipe, Task
from trainer.recipe.tasks import TASKS

LOOKED_AT = 1000
"""Rows of a source that are looked at for hard negatives."""
BLOCK_ROWS = 1024
"""Rows of a source whose texts are looked up at a time."""

logger = logging.getLogger(__name__)


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


def check_teachers(sources: Sequence[Source], recipe: Recipe) -> None:
    """Refuse a recipe that learns from a teacher where no row of the task has its scores.

    A source without scores beside one that has them is told of: its rows train the other terms.

    Raises:
        DataError: naming the key and the first source.
    """
    for task, settings in recipe.tasks.items():
        key = TASKS[task].teacher_key(settings)
        if key is None:
            continue
        names = {one.name for one in recipe.data.sources if one.task == task}
        asked = [source for source in sources if source.name in names]
        # its vectors say as much as scores, and more, of what is to be left out
        by_vectors = _is_of_guide(task, key)
        without = [
            source
            for source in asked
            if not source.num_scored and not (by_vectors and source.teacher_vectors is not None)
        ]
        if without and len(without) == len(asked):
            require_teacher(without[0], key)
        for source in without:
            logger.warning(
                "data.sources.%s: no row has a teacher's scores; %s counts for other sources alone",
                source.name, key,
            )  # fmt: skip


def _is_of_guide(task: str, key: str) -> bool:
    """Whether a key asks for what a teacher's vectors say too."""
    return key == f"tasks.{task}.{TASKS[task].guide_key}"


def check_negatives(sources: Sequence[Source], recipe: Recipe) -> None:
    """Refuse a source that has no loss without hard negatives, and keys that none of a task serves.

    A source without hard negatives beside one that has some is told of: its rows train the other
    terms. Rows are looked at until one has a negative; of a large source, some that lie far apart.

    Raises:
        DataError: naming the key and the source.
    """
    for task, settings in recipe.tasks.items():
        names = {one.name for one in recipe.data.sources if one.task == task}
        own = [source for source in sources if source.name in names]
        without = {one.name for one in own if _lacks_negatives(one, recipe, TASKS[task])}
        for key in TASKS[task].negatives_keys(settings) if without else ():
            _check_some_have_negatives(own, without, recipe, task, key)


def _lacks_negatives(source: Source, recipe: Recipe, kind: TaskKind) -> bool:
    """Whether something reads hard negatives that a source does not have.

    Raises:
        DataError: if its steps have no loss then.
    """
    settings = settings_of(recipe, source.name)
    key = kind.negatives_key(settings)
    if key is None and not kind.negatives_keys(settings):
        return False
    mine = recipe.data.mine
    has_some = mine is not None and mine.start and source.name in mined_names(recipe.data)
    has_some = has_some or any(
        getattr(source.record(row), "negatives", ()) for row in _looked_at(source)
    )
    if key is not None and not has_some:
        raise _no_negatives(source, recipe, key)
    return not has_some or getattr(settings, "negatives", None) == 0


def _looked_at(source: Source) -> Sequence[int]:
    """Rows that are looked at for hard negatives."""
    return sorted({len(source) * i // LOOKED_AT for i in range(LOOKED_AT)})


def _no_negatives(source: Source, recipe: Recipe, key: str) -> DataError:
    own = next(one for one in recipe.data.sources if one.name == source.name)
    name = key.removeprefix(f"tasks.{own.task}.")
    key = why = key_of(own, name)
    advice = f"Mine negatives, or remove {key} or the source."
    if name in overrides_of(own) and getattr(own, name) is None:
        why = f"{key}=false, which path means as it ends in {NO_IN_BATCH_NEGATIVES}"
        advice = f"Mine negatives, set {key}=true, or remove the source."
    if getattr(settings_of(recipe, source.name), "negatives", None) == 0:
        return DataError(
            f"data.sources.{source.name}: negatives = 0 in its steps; expected at least 1 for "
            f"{why}. {advice}"
        )
    return DataError(
        f"data.sources.{source.name}: rows with hard negatives = 0 of {len(_looked_at(source))} "
        f"that were looked at; expected some for {why}. {advice}"
    )


def _check_some_have_negatives(
    own: Sequence[Source], without: set[str], recipe: Recipe, task: Task, key: str
) -> None:
    """Refuse a key that no source of its task can serve; tell of a source that cannot.

    A teacher's scores without hard negatives say nothing; sources without scores were told of.
    """
    is_guide = _is_of_guide(task, key)
    of_teacher = is_guide or key == TASKS[task].teacher_key(recipe.tasks[task])
    by_vectors = {one.name for one in own if is_guide and one.teacher_vectors is not None}
    asked = [one for one in own if one.num_scored or not of_teacher or one.name in by_vectors]
    lacking = [one for one in asked if one.name in without - by_vectors]
    if lacking and len(lacking) == len(asked):
        raise _no_negatives(lacking[0], recipe, key)
    for source in lacking:
        logger.warning(
            "data.sources.%s: no row has hard negatives; %s counts for other sources alone",
            source.name, key,
        )  # fmt: skip


def scored_rows(sources: Sequence[Source]) -> dict[str, int]:
    """Number of rows with a teacher's scores of each source that has any, by name."""
    return {source.name: source.num_scored for source in sources if source.num_scored}


def check_teacher_vectors(sources: Sequence[Source]) -> None:
    """Refuse a source one of whose texts its teacher's vectors lack.

    Raises:
        DataError: naming the text, its row and file.
    """
    for source in sources:
        teacher = source.teacher_vectors
        if teacher is None:
            continue
        check = partial(_check_covered, source, teacher)
        if len(source) < CACHE_FROM_ROWS:
            check()
        else:
            cached_arrays(f"covered2|{source.identity}", check)


def _check_covered(source: Source, teacher: TeacherVectors) -> dict[str, np.ndarray]:
    """Look every text of a source up; returns what the cache keeps of a source without fault."""
    for start in range(0, len(source), BLOCK_ROWS):
        rows = range(start, min(start + BLOCK_ROWS, len(source)))
        texts = [(text, row) for row in rows for text in source.record(row).texts]
        found = teacher.find([text for text, _ in texts])
        for at in np.flatnonzero(found == NO_ROW)[:1]:
            text, row = texts[at]
            raise DataError(
                f"{source.place(row)}: text = {shown(text)}; expected a text of "
                f"{teacher.folder / TEXTS}, the {len(teacher)} texts with vectors in "
                f"data.sources.{source.name}.teacher_embeddings. Embed it too, as the row has it, "
                "or remove the key."
            )
    return {"covered": np.array(True)}


def check_widths(sources: Sequence[Source], recipe: Recipe, *, hidden_size: int) -> None:
    """Refuse a teacher whose vectors are of another size than the model's, without a layer to it.

    Args:
        sources: opened.
        recipe: `model.projection`, and whose vectors a layer brings to a teacher's size.
        hidden_size: of the backbone; the size of the vectors where there is no projection.

    Raises:
        DataError: naming the source and both sizes.
    """
    projection = recipe.model.projection
    size = hidden_size if projection is None else projection.size
    for source in sources:
        teacher = source.teacher_vectors
        settings = settings_of(recipe, source.name)
        if embedding_distillation(settings) is None or is_projected(settings):
            continue  # a guide's vectors meet each other alone
        if teacher is not None and teacher.size != size:
            raise DataError(
                f"data.sources.{source.name}: size of the vectors of teacher_embeddings = "
                f"{teacher.size}; expected {size}, the size of the model's vectors. Set "
                f"tasks.{_section(recipe, source).task}.{LAYER_KEY}=true, or "
                f"model.projection.size={teacher.size}, or take a teacher of {size} dimensions."
            )


def teacher_size(sources: Sequence[Source], recipe: Recipe) -> int | None:
    """Size of the vectors that a trained layer brings the model's to; None where there is no layer.

    Args:
        sources: opened.
        recipe: says whose vectors are brought to it.

    Raises:
        DataError: two sources have teachers of different sizes, for which there is one layer.
    """
    found: tuple[str, int] | None = None
    for source in sources:
        teacher = source.teacher_vectors
        if teacher is None or not is_projected(settings_of(recipe, source.name)):
            continue
        name, size = found = found or (source.name, teacher.size)
        if teacher.size != size:
            key = f"tasks.{_section(recipe, source).task}.{LAYER_KEY}"
            raise DataError(
                f"data.sources.{source.name}: size of the vectors of teacher_embeddings = "
                f"{teacher.size}; expected {size}, as data.sources.{name} has them: {key} is one "
                "layer to one size. Take one teacher for both, or set the key to false for a "
                "task whose teacher has the size of the model's vectors."
            )
    return None if found is None else found[1]


def _section(recipe: Recipe, source: Source) -> SourceRecipe:
    """What a recipe says of a source."""
    return next(one for one in recipe.data.sources if one.name == source.name)


def taught_sources(sources: Sequence[Source], recipe: Recipe) -> list[str]:
    """For a person: the teacher's vectors of each source of a task that learns from some."""
    lines = []
    for source in sources:
        teacher = source.teacher_vectors
        task = _section(recipe, source).task
        if teacher is not None:
            brought = is_projected(settings_of(recipe, source.name))
            lines.append(
                f"a teacher's vectors of {teacher.size} dimensions for all texts of {source.name}"
                + (", to which a layer brings the model's" if brought else "")
            )
        elif embedding_distillation(recipe.tasks[task]) is not None:
            lines.append(
                f"no teacher's vectors for {source.name}: its steps go without "
                "embedding_distillation"
            )
    return lines
