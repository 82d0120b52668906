"""Rules for keys of sources that fit their task, or that it needs; it must not read files."""

from trainer.recipe.embedding_distillation import TERM, embedding_distillation
from trainer.recipe.kind import Fail, Words
from trainer.recipe.per_source import key_of, num_length_buckets, settings_of
from trainer.recipe.schema import Recipe
from trainer.recipe.sides import sides_of_source
from trainer.recipe.tasks import TASKS


def check_source_keys(recipe: Recipe, fail: Fail) -> None:
    """Refuse keys of sources that do not fit their tasks, and tasks that lack what sources give.

    Args:
        recipe: with a section for the task of every source.
        fail: makes the error of a key.

    Raises:
        RecipeError: on the first breach.
    """
    _check_label_texts(recipe, fail)
    _check_passage_instructions(recipe, fail)
    _check_length_buckets(recipe, fail)
    _check_teacher_vectors(recipe, fail)
    _check_negatives(recipe, fail)


def _check_label_texts(recipe: Recipe, fail: Fail) -> None:
    """Texts of labels belong to rows with labels, and there are some."""
    for index, source in enumerate(recipe.data.sources):
        key, texts = f"data.sources.{index}.label_texts", source.label_texts
        if texts is None:
            continue
        if not TASKS[source.task].has_labels:
            expected = f"null, as rows of task {source.task} have no labels"
            raise fail(key, texts, expected, "Remove it.")
        if not texts:
            raise fail(key, texts, "the text of every label", "Fill it in, or remove it.")


def _check_passage_instructions(recipe: Recipe, fail: Fail) -> None:
    """An instruction of passages belongs to steps that have some."""
    for index, source in enumerate(recipe.data.sources):
        if not source.passage_instruction or "passage" in sides_of_source(recipe, source):
            continue
        texts = " without label_texts" if TASKS[source.task].has_labels else ""
        expected = f"nothing, as steps of task {source.task}{texts} have no passages"
        key = f"data.sources.{index}.passage_instruction"
        advice = "Write it as query_instruction, or remove it."
        raise fail(key, source.passage_instruction, expected, advice)


def _check_length_buckets(recipe: Recipe, fail: Fail) -> None:
    """Rows whose texts are drawn from the whole source have no steps of like length."""
    for index, source in enumerate(recipe.data.sources):
        buckets = num_length_buckets(recipe.data, source)
        if buckets == 1 or not TASKS[source.task].has_labels:
            continue
        own = f"data.sources.{index}.length_buckets"
        expected = f"1 for source {source.name}, as steps of task {source.task} draw other rows too"
        if source.length_buckets is not None:
            raise fail(own, buckets, expected, "Remove it.")
        advice = f"Set data.sources.{source.name}.length_buckets=1."
        raise fail("data.length_buckets", buckets, expected, advice)


def _check_teacher_vectors(recipe: Recipe, fail: Fail) -> None:
    """A teacher's vectors have a term that reads them, and the term has vectors."""
    for index, source in enumerate(recipe.data.sources):
        folder = source.teacher_embeddings
        settings, kind = recipe.tasks[source.task], TASKS[source.task]
        is_read = embedding_distillation(settings) is not None or kind.is_guided(settings)
        if folder is not None and not is_read:
            guide = "" if kind.guide_key is None else f" and no {kind.guide_key}"
            expected = f"null, as tasks.{source.task} has no {TERM.name}{guide}"
            key = f"data.sources.{index}.teacher_embeddings"
            raise fail(key, folder, expected, "Add that section, or remove it.")
    for task, settings in recipe.tasks.items():
        taught = embedding_distillation(settings)
        folders = [one.teacher_embeddings for one in recipe.data.sources if one.task == task]
        if taught is not None and folders and not any(folders):
            raise fail(
                f"tasks.{task}.{TERM.name}",
                Words(f"{{weight: {taught.weight:g}}}"),
                "a source of the task with teacher_embeddings",
                "Name its folder under data.sources, or remove the section.",
            )


def _check_negatives(recipe: Recipe, fail: Fail) -> None:
    """What reads hard negatives gets some from a source of its task."""
    for task, settings in recipe.tasks.items():
        sources = [one for one in recipe.data.sources if one.task == task]
        for key in TASKS[task].negatives_keys(settings):
            is_guide = key == f"tasks.{task}.{TASKS[task].guide_key}"
            if not sources or any(
                getattr(settings_of(recipe, one.name), "negatives", None)
                or (is_guide and one.teacher_embeddings is not None)
                for one in sources
            ):
                continue
            more = ", or name a folder of teacher_embeddings in the source" if is_guide else ""
            expected = f"at least 1 where {key} needs hard negatives"
            raise fail(key_of(sources[0], "negatives"), 0, expected, f"Raise it{more}.")
