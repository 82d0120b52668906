"""Rules between keys of a recipe: pairs that contradict each other; it must not read files.

Each rule is a function that raises on the first breach; `check_rules` runs them all.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from trainer.errors import RecipeError
from trainer.recipe.document import KeyPath, shorten
from trainer.recipe.eval_kinds import EVAL_KINDS, MEANS, row_kind
from trainer.recipe.kind import Fail, Side, Words
from trainer.recipe.mine_rules import check_mine
from trainer.recipe.mixes import check_mixes
from trainer.recipe.per_source import overrides_of, settings_of
from trainer.recipe.schema import (
    EvalSetRecipe,
    LoraRecipe,
    MatryoshkaRecipe,
    Recipe,
    SourceRecipe,
)
from trainer.recipe.sides import sides_of
from trainer.recipe.source_rules import check_source_keys
from trainer.recipe.tasks import TASKS


def check_rules(recipe: Recipe, place: Callable[[KeyPath], str]) -> None:
    """Refuse a recipe whose keys contradict each other.

    Args:
        recipe: with all types and bounds already right.
        place: gives the `file:line` or override that a key came from.
    Raises:
        RecipeError: on the first contradiction.
    """

    def fail(key: str, got: object, expected: str, advice: str) -> RecipeError:
        where = place(tuple(key.split(".")))
        shown = got if isinstance(got, Words) else shorten(got)
        return RecipeError(f"{where}: {key} = {shown}; expected {expected}. {advice}")

    for rule in (_check_names, _check_best, _check_sources, _check_overrides, _check_tasks):
        rule(recipe, fail)
    check_source_keys(recipe, fail)
    check_mixes(recipe, fail)
    check_mine(recipe, fail)
    _check_pattern(recipe, fail)
    for rule in (_check_template, _check_length, _check_model, _check_numbers, _check_merge):
        rule(recipe, fail)
    _check_export(recipe, fail)


def _check_names(recipe: Recipe, fail: Fail) -> None:
    """Texts that name something must not be empty, nor name two things."""
    for key, text in (
        ("name", recipe.name),
        ("output_dir", recipe.output_dir),
        ("model.path", recipe.model.path),
        ("engine.deepspeed", recipe.engine.deepspeed),
        ("model.end_token", recipe.model.end_token),
    ):
        if text is not None and not text.strip():
            raise fail(key, text, "text that is not empty", "Fill it in.")
    _check_unique("data.sources", recipe.data.sources, fail)
    _check_unique("eval.sets", recipe.eval.sets, fail)


def _check_best(recipe: Recipe, fail: Fail) -> None:
    """The metric that chooses the best evaluation is one of an evaluation set."""
    metric, sets = recipe.eval.best_metric, recipe.eval.sets
    if metric is None:
        if recipe.eval.patience is not None:
            advice = "Set eval.best_metric, or leave eval.patience out."
            raise fail("eval.patience", recipe.eval.patience, "a metric to judge by", advice)
        return
    known = [f"{one.name}.{name}" for one in sets for name in EVAL_KINDS[one.task].metrics]
    if metric not in ([*MEANS, *known] if sets else []):
        means = ", ".join(f"`{name}`" for name in MEANS)
        expected = f"{means} or one of {', '.join(known)}" if sets else "null without eval.sets"
        raise fail("eval.best_metric", metric, expected, "Correct it.")


def _check_unique(key: str, items: Sequence[SourceRecipe | EvalSetRecipe], fail: Fail) -> None:
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        where = f"{key}.{index}.name"
        if not item.name or item.name.isdecimal() or set(item.name) & set("./= \t\n"):
            rule = "a word without dots, slashes, spaces or `=`, and not a number"
            raise fail(where, item.name, rule, "Rename it: metrics and overrides use the name.")
        if item.name in first:
            other = f"{key}.{first[item.name]}"
            raise fail(where, item.name, f"a name that {other} does not have", "Rename one.")
        first[item.name] = index


def _check_sources(recipe: Recipe, fail: Fail) -> None:
    """Every set has one origin; its scores and instructions are of use."""
    if not recipe.data.sources:
        raise fail("data.sources", (), "at least one source", "Add a data set.")
    for name, items in (("data.sources", recipe.data.sources), ("eval.sets", recipe.eval.sets)):
        _check_origins(name, items, fail)
        _check_ranges(name, items, fail)
    for index, source in enumerate(recipe.data.sources):
        if source.row_settings and not source.path:
            key, expected = f"data.sources.{index}.row_settings", "false without `path`"
            raise fail(key, True, expected, "Download the files and name them, or remove it.")
        if source.stream and (not source.hub or source.format == "beir"):
            key, expected = f"data.sources.{index}.stream", "false without rows of a set of `hub`"
            raise fail(key, True, expected, "Remove it.")
    for index, held_out in enumerate(recipe.eval.sets):
        kind, instruction = EVAL_KINDS[held_out.task], held_out.passage_instruction
        if instruction and "passage" not in kind.prompts:
            expected = f"nothing, as sets of kind {kind.name} have no passages"
            key = f"eval.sets.{index}.passage_instruction"
            raise fail(key, instruction, expected, "Write it as query_instruction, or remove it.")


def _check_origins(key: str, items: Sequence[SourceRecipe | EvalSetRecipe], fail: Fail) -> None:
    """A set lies on disk or on the hub."""
    for index, item in enumerate(items):
        where = f"{key}.{index}.path"
        if not item.path and not item.hub:
            raise fail(where, Words("(missing)"), "either `path` or `hub`", "Add one of them.")
        if item.path and item.hub:
            got = Words(f"{item.path} beside hub = {item.hub}")
            raise fail(where, got, "only one of `path` and `hub`", "Remove one of them.")
        if item.header is not None and not item.path:
            where, expected = f"{key}.{index}.header", "null without `path`"
            raise fail(where, item.header, expected, "Remove it.")


def _check_ranges(key: str, items: Sequence[SourceRecipe | EvalSetRecipe], fail: Fail) -> None:
    """A score range belongs to sts and has a low and a high end."""
    for index, item in enumerate(items):
        where = f"{key}.{index}.score_range"
        if item.score_range is None:
            continue
        if not row_kind(item.task).has_scores:
            expected = f"no range, as rows of task {item.task} have no score"
            raise fail(where, item.score_range, expected, "Remove it.")
        if item.score_range[0] >= item.score_range[1]:
            raise fail(where, item.score_range, "[lowest, highest]", "Swap or widen them.")


def _check_overrides(recipe: Recipe, fail: Fail) -> None:
    """A source overrides what its task has, within the bounds there."""
    for index, source in enumerate(recipe.data.sources):
        fields = {field.name: field for field in dataclasses.fields(TASKS[source.task].settings)}
        for name, value in overrides_of(source).items():
            key = f"data.sources.{index}.{name}"
            if name not in fields:
                expected = f"null, as steps of task {source.task} have no {name}"
                raise fail(key, value, expected, "Remove it.")
            low = fields[name].metadata.get("low")
            if low is not None and value < low:
                raise fail(key, value, f"at least {low} for task {source.task}", "Raise it.")


def _check_tasks(recipe: Recipe, fail: Fail) -> None:
    """A task with a source has its batch and a loss that can be above zero."""
    for source in recipe.data.sources:
        if source.task not in recipe.tasks:
            key = f"tasks.{source.task}"
            expected = f"a section with global_batch_size, as source {source.name} is of this task"
            raise fail(key, Words("(missing)"), expected, f"Add {key}, or remove the source.")
    for task, settings in recipe.tasks.items():
        if not any(TASKS[task].weights_of(settings).values()):
            raise fail(f"tasks.{task}.weights", Words("all 0"), "one above 0", "Raise one.")
        if all(source.task != task for source in recipe.data.sources):
            TASKS[task].check(settings, fail)
    for index, source in enumerate(recipe.data.sources):
        settings = settings_of(recipe, source.name)
        TASKS[source.task].check(settings, _fail_of_source(source, index, fail))
        if not any(TASKS[source.task].weights_of(settings).values()):
            key, expected = f"data.sources.{index}.name", "a source whose steps have a loss"
            advice = f"Raise a weight of tasks.{source.task}, or give it teacher_embeddings."
            raise fail(key, source.name, expected, advice)


def _fail_of_source(source: SourceRecipe, index: int, fail: Fail) -> Fail:
    """As `fail`, but what is wrong because of a source is named as a key of the source."""
    own = overrides_of(source)
    if not own:
        return fail

    def fail_of_source(key: str, got: object, expected: str, advice: str) -> RecipeError:
        name = key.rpartition(".")[-1]
        if name in own:
            return fail(f"data.sources.{index}.{name}", got, expected, advice)
        return fail(key, got, f"{expected} (in steps of source {source.name})", advice)

    return fail_of_source


def _check_pattern(recipe: Recipe, fail: Fail) -> None:
    """The pattern gives turns to exactly the tasks that have sources."""
    tasks = {source.task for source in recipe.data.sources}
    for task, turns in recipe.data.pattern.items():
        key = f"data.pattern.{task}"
        if task not in tasks:
            expected = f"tasks that have a source: {', '.join(sorted(tasks))}"
            raise fail(key, turns, expected, f"Remove {task}, or add a source of this task.")
        if turns < 1:
            raise fail(key, turns, "an integer of at least 1", "Raise it, or remove its sources.")
    for task in sorted(tasks - set(recipe.data.pattern)):
        raise fail(
            f"data.pattern.{task}",
            Words("(missing)"),
            f"turns for every task with a source: {', '.join(sorted(tasks))}",
            f"Add `{task}: 1`, or remove the pattern to give each task one turn.",
        )


def _check_template(recipe: Recipe, fail: Fail) -> None:
    """The prompt template is an instruction, then the text: exports keep nothing after a text."""
    template = recipe.data.prompt_template
    head = template.removesuffix("{text}")
    if head == template or "{text}" in head or head.count("{instruction}") != 1:
        raise fail(
            "data.prompt_template",
            template,
            "{instruction} once and {text} once, at the end",
            "Write for example '{instruction}{text}'.",
        )


def _check_length(recipe: Recipe, fail: Fail) -> None:
    """The run ends either after steps or after epochs."""
    steps, epochs = recipe.train.max_steps, recipe.train.epochs
    if steps is None and epochs is None:
        expected = "either train.max_steps or train.epochs"
        raise fail("train.max_steps", Words("(missing)"), expected, "Add one of them.")
    if steps is not None and epochs is not None:
        got = Words(f"{steps} beside train.epochs = {epochs:g}")
        expected = "only one of train.max_steps and train.epochs"
        raise fail("train.max_steps", got, expected, "Set the other to null.")


def _check_model(recipe: Recipe, fail: Fail) -> None:
    """Remote code is pinned; adapters have targets."""
    model = recipe.model
    if model.trust_remote_code and not model.revision:
        raise fail(
            "model.trust_remote_code",
            Words("true without model.revision"),
            "a commit beside it, so that the code cannot change unseen",
            "Set model.revision to the commit that you have read.",
        )
    if model.matryoshka is not None:
        _check_matryoshka(model.matryoshka, fail)
    if model.lora is not None:
        _check_adapters(model.lora, fail)
    export = recipe.checkpoint.export
    if model.lora is None and model.adapter != "continue" and export != "merged":
        expected = "merged where all parameters are trained"
        raise fail("checkpoint.export", export, expected, "Remove it, or add model.lora.")


def _check_adapters(lora: LoraRecipe, fail: Fail) -> None:
    """Adapters have targets; trained tokens without them have no other setting."""
    for index, token in enumerate(lora.trainable_tokens):
        key = f"model.lora.trainable_tokens.{index}"
        if token in lora.trainable_tokens[:index]:
            raise fail(key, token, "each token once", "Remove one of the two.")
        if token == "":
            raise fail(key, token, "a token, or its id", "Fill it in, or remove it.")
    if lora.targets:
        return
    if not lora.trainable_tokens:
        expected = "at least one module name, or all-linear"
        raise fail("model.lora.targets", (), expected, "Name the modules that get an adapter.")
    alone = LoraRecipe(targets=(), trainable_tokens=lora.trainable_tokens)
    for field in dataclasses.fields(LoraRecipe):
        value = getattr(lora, field.name)
        if value != getattr(alone, field.name):
            expected = "nothing where tokens alone are trained, with model.lora.targets = []"
            raise fail(f"model.lora.{field.name}", value, expected, "Remove it, or name targets.")


def _check_matryoshka(matryoshka: MatryoshkaRecipe, fail: Fail) -> None:
    """Parts that get shorter, each with a weight."""
    dims, weights = matryoshka.dims, matryoshka.weights
    falling = all(first > second for first, second in itertools.pairwise(dims))
    if not dims or dims[-1] < 1 or not falling:
        expected = "sizes of at least 1, each below the one before"
        raise fail("model.matryoshka.dims", dims, expected, "Sort them, the whole vector first.")
    if weights is not None and (len(weights) != len(dims) or min(weights, default=0) <= 0):
        expected = f"{len(dims)} numbers above 0, one for each of dims"
        raise fail("model.matryoshka.weights", weights, expected, "Correct them.")


def _check_numbers(recipe: Recipe, fail: Fail) -> None:
    """Adam's decay rates are shares."""
    for index, beta in enumerate(recipe.train.betas):
        if not 0 <= beta < 1:
            raise fail(f"train.betas.{index}", beta, "at least 0 and below 1", "Change it.")


def _check_merge(recipe: Recipe, fail: Fail) -> None:
    """The checkpoints to merge will be there."""
    checkpoint, key = recipe.checkpoint, "checkpoint.merge.last"
    if checkpoint.merge is None:
        return
    if checkpoint.merge.by_depth == ():
        where = "checkpoint.merge.by_depth"
        raise fail(where, [], "one number or more", "Leave it out for the same at every depth.")
    last, every, steps = checkpoint.merge.last, checkpoint.every_steps, recipe.train.max_steps
    if last > checkpoint.keep:
        expected = f"at most checkpoint.keep = {checkpoint.keep}"
        raise fail(key, last, expected, "Keep as many checkpoints as are merged.")
    if every is not None and steps is not None and checkpoint.every_minutes is None:
        saved = -(-steps // every)
        if last > saved:
            expected = f"at most the {saved} that the run saves"
            raise fail(key, last, expected, "Lower checkpoint.every_steps.")
    if last > 1 and every is None and checkpoint.every_minutes is None:
        expected = "1 where only the last step is saved"
        raise fail(key, last, expected, "Set checkpoint.every_steps.")


def _check_export(recipe: Recipe, fail: Fail) -> None:
    """The exported model takes every text that was trained or evaluated on."""
    longest, data = recipe.export.max_tokens, recipe.data
    limits: dict[Side, tuple[str, int]] = {
        "query": ("data.query_max_tokens", data.query_max_tokens),
        "passage": ("data.passage_max_tokens", data.passage_max_tokens),
    }
    for side in sides_of(recipe):
        key, limit = limits[side]
        if longest is not None and longest < limit:
            expected = f"at least {key} = {limit}"
            raise fail("export.max_tokens", longest, expected, f"Raise it, or lower {key}.")
