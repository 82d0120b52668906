"""The prompts of an exported model, under names by which clients and mteb find them.

It must not write files.
"""

from collections.abc import Collection, Iterator, Mapping

from trainer.data.prompts import prompt_prefix
from trainer.export.sentence_files import with_benchmark_names
from trainer.recipe.eval_kinds import EVAL_KINDS
from trainer.recipe.kind import Side
from trainer.recipe.schema import EvalSetRecipe, Recipe, SourceRecipe
from trainer.recipe.sides import sides_of_source
from trainer.recipe.tasks import TASKS

SIDE_NAMES: dict[Side, str] = {"query": "query", "passage": "document"}
"""What prompts of a side are called, or end in behind a hyphen."""


def prompts_of(recipe: Recipe) -> dict[str, str]:
    """Prompts by name, each that of the first source whose task has it, such as `query`.

    Sources with other instructions add `<source>-query` and `<source>-document`. An evaluation set
    with an instruction that its kind's names do not lead to adds it: under the name of the kind,
    such as `Classification`, or under the name of the set where the kind has one already, of a
    source of the same name or of an earlier set. What labelled sources are trained with counts for
    kinds that no set gives an instruction.
    """
    prompts: dict[str, str] = {}
    for source in recipe.data.sources:
        for name, prompt in _of_source(recipe, source):
            if prompts.setdefault(name, prompt) != prompt:
                prompts[f"{source.name}-{name}"] = prompt
    # retrieval clients ask for these two by name
    prompts = {"query": "", "document": ""} | prompts
    settled = {(source.task, side) for source in recipe.data.sources for side in SIDE_NAMES}
    for held_out in recipe.eval.sets:
        prompts |= _missing(held_out, prompts, recipe.data.prompt_template, settled)
        settled |= {(held_out.task, side) for side, text in _instructions(held_out).items() if text}
    return prompts


def replaced_prompts(recipe: Recipe) -> Iterator[str]:
    """A line for each prompt of a kind that a held-out set gives and no source is trained with."""
    prompts = prompts_of(recipe)
    for task, kind in TASKS.items():
        sources = [source for source in recipe.data.sources if source.task == task]
        of_sources = [found for source in sources for found in _of_source(recipe, source)]
        for name, own in kind.benchmark_prompts.items():
            trained = dict.fromkeys(prompt for key, prompt in of_sources if key == own)
            if trained and name in prompts and prompts[name] not in trained:
                yield (
                    f"the export's prompt {name} is {prompts[name]!r}, as eval.sets have it; the "
                    f"sources of task {task} are trained with {', '.join(map(repr, trained))}"
                )


def _of_source(recipe: Recipe, source: SourceRecipe) -> Iterator[tuple[str, str]]:
    """The prompts of the sides that a source's steps have, under the names of its task."""
    of_side, sides = _instructions(source), sides_of_source(recipe, source)
    for name, side in TASKS[source.task].prompts.items():
        if side in sides:
            yield name, prompt_prefix(recipe.data.prompt_template, of_side[side])


def _instructions(recipe: SourceRecipe | EvalSetRecipe) -> dict[Side, str]:
    """Instruction of each side."""
    return {"query": recipe.query_instruction, "passage": recipe.passage_instruction}


def _missing(
    held_out: EvalSetRecipe,
    prompts: Mapping[str, str],
    template: str,
    settled: Collection[tuple[str, Side]],
) -> dict[str, str]:
    """Prompts of a set that its kind's names do not lead to, under new names.

    Args:
        held_out: the set.
        prompts: of the model so far.
        template: `data.prompt_template`.
        settled: kinds and sides whose instruction a source or an earlier set has decided.
    """
    known, kind = with_benchmark_names(prompts), EVAL_KINDS[held_out.task]
    of_side, missing = _instructions(held_out), dict[str, str]()
    for side, names in kind.prompts.items():
        wanted = prompt_prefix(template, of_side[side])
        if not wanted or wanted == next((known[name] for name in names if name in known), ""):
            continue
        own = f"{held_out.name}-{SIDE_NAMES[side]}" if len(kind.prompts) > 1 else held_out.name
        is_settled = names[0] in prompts or (kind.name, side) in settled
        name = own if is_settled else names[0]
        missing |= {} if name in prompts else {name: wanted}
    return missing
