"""What may change between a run and its continuation, what may by name, and what may not."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from tests.support import tiny
from trainer.checkpoint.compare import (
    Comparison,
    change_lines,
    compare_runs,
    describe_environment,
    is_same,
    next_stretches,
)
from trainer.checkpoint.differences import WHOLE
from trainer.checkpoint.manifest import Manifest
from trainer.data.growth import SourceState
from trainer.data.stretch import Stretch
from trainer.errors import CheckpointError
from trainer.recipe.embedding_distillation import EmbeddingDistillationRecipe
from trainer.recipe.load import plain_recipe
from trainer.recipe.schema import DataRecipe, Recipe, SourceRecipe

RECIPE = tiny.make_recipe(Path("model"))
STATES = {"ir": SourceState(fingerprint="aa", num_rows=1000),
          "sts": SourceState(fingerprint="bb", num_rows=40)}  # fmt: skip
SAME = {"ir": 0, "sts": 0}


def changed(recipe: Recipe, key: str, value: Any) -> dict[str, Any]:
    """Plain values of a recipe with one leaf replaced."""
    plain = plain_recipe(recipe)
    *path, leaf = key.split(".")
    place: Any = plain
    for part in path:
        place = place[int(part) if part.isdecimal() else part]
    place[leaf] = value
    return plain


def stretch(recipe: Mapping[str, Any], first_step: int = 0, **more: Any) -> Stretch:
    return Stretch(first_step=first_step, recipe=recipe, **({"sources": STATES} | more))


def compare(
    recipe: Mapping[str, Any],
    *named: str,
    was: Recipe = RECIPE,
    added: Mapping[str, int | str] = SAME,
) -> Comparison:
    current = stretch(plain_recipe(was))
    return compare_runs("step-3", current, recipe, named=named, added=added)


def refused(recipe: Mapping[str, Any], *named: str, **more: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        compare(recipe, *named, **more)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_nothing_changed_says_nothing() -> None:
    assert compare(plain_recipe(RECIPE)) == Comparison()


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("output_dir", "moved", "output_dir = 'moved' (was 'unused')"),
        ("engine.max_tokens_per_chunk", 32, "engine.max_tokens_per_chunk = 32 (was 64)"),
        ("engine.gather", "step", "engine.gather = 'step' (was 'auto')"),
        ("data.workers", 0, "data.workers = 0 (was 2)"),
        ("data.tokens", "ahead", "data.tokens = 'ahead' (was 'auto')"),
        ("data.overlap", "warn", "data.overlap = 'warn' (was None)"),
        ("data.overlap", "error", "data.overlap = 'error' (was None)"),
        ("data.sources.0.path", "b", "data.sources.ir.path = 'b' (was 'unused')"),
        (
            "data.sources.0.teacher_embeddings",
            "t",
            "data.sources.ir.teacher_embeddings = 't' (was None)",
        ),
        ("checkpoint.keep", 5, "checkpoint.keep = 5 (was 2)"),
        ("eval.every_steps", 5, "eval.every_steps = 5 (was None)"),
        ("log.wandb_project", "p", "log.wandb_project = 'p' (was None)"),
        ("train.max_steps", 9, "train.max_steps = 9 (was 3)"),
    ],
)
def test_harmless_changes_pass_with_a_line(key: str, value: Any, line: str) -> None:
    constant = dataclasses.replace(RECIPE.train, warmup_ratio=0.0)
    was = dataclasses.replace(RECIPE, train=constant)
    assert compare(changed(was, key, value), was=was) == Comparison(lines=[line])


SHAPING: list[tuple[str, Any]] = [
    ("seed", 1),
    ("data.pattern", {"ir": 1}),
    ("data.schedule", "proportional"),
    ("data.sources.0.weight", 2.0),
    ("data.sources.0.global_batch_size", 4),
    ("tasks.ir.temperature", 1.0),
    ("tasks.ir.weights.infonce", 0.5),
    ("tasks.sts", None),
    ("train.learning_rate", 1.0),
    ("train.schedule", "linear"),
    ("train.warmup_ratio", 0.5),
    ("train.max_steps", 9),
]
"""What may change by name alone."""


def by_source(key: str) -> str:
    return key.replace("sources.0", "sources.ir")


@pytest.mark.parametrize(("key", "value"), SHAPING, ids=[key for key, _ in SHAPING])
def test_what_shapes_the_steps_changes_by_name_alone(key: str, value: Any) -> None:
    recipe, name = changed(RECIPE, key, value), by_source(key)
    message = refused(recipe)
    wanted = rf"checkpoint step-3: {re.escape(name)}.* = .* \(was .*\); expected the run that wrote"
    assert re.search(wanted, message)
    assert f"it. Undo the change, name it (--resume --change {name}), or start anew in" in message
    found = compare(recipe, name)
    assert found.changed == [name]
    assert re.fullmatch(rf"{re.escape(name)} = .* \(was .*\)", found.lines[0])
    # another name does not cover it; the section above it does
    refused(recipe, "checkpoint.keep")
    assert compare(recipe, name.rpartition(".")[0] or name).changed == [name]


FIXED: list[tuple[str, Any, str]] = [
    ("model.path", "other", "the parameters were trained as those of this model"),
    ("model.pooling", "mean", "the parameters were trained as those of this model"),
    ("model.lora", {"rank": 8}, "the parameters were trained as those of this model"),
    ("data.query_max_tokens", 8, "the model was trained to read its texts in this way"),
    ("data.prompt_template", "{text}", "the model was trained to read its texts in this way"),
    ("data.sources.0.query_instruction", "q: ", "the model was trained to read its texts"),
    ("data.sources.0.score_range", [0, 5], "the rows trained on so far would be read in another"),
    ("data.sources.0.columns", {"query": "other"}, "the rows trained on so far would be read in"),
    ("data.sources.0.label_texts", {"1": "a"}, "the rows trained on so far would be read in"),
    ("data.overlap", "drop", "`drop` leaves rows out"),
    ("data.subset", {"fraction": 0.5, "seed": 0}, "another part of the rows would be trained on"),
    ("train.betas", [0.5, 0.9], "the state of the optimizer was made with it"),
    ("train.optimizer", "adamw", "the state of the optimizer was made with it"),
]
"""What may not change, named or not, and the reason that is told."""


@pytest.mark.parametrize(("key", "value", "reason"), FIXED, ids=[key for key, *_ in FIXED])
def test_what_the_parameters_were_trained_with_stays(key: str, value: Any, reason: str) -> None:
    recipe, name = changed(RECIPE, key, value), by_source(key)
    for named in ((), (name,)):
        message = refused(recipe, *named)
        assert re.search(rf"step-3: {re.escape(name)}.* = .* \(was .*\); expected the run", message)
        assert re.search(rf"{re.escape(name)}\S* cannot change: {reason}", message)
        assert message.endswith("Undo the change, or start anew in another output_dir.")


LAYERED = "tasks.{}.embedding_distillation.projection"


def taught(**projections: bool | None) -> Recipe:
    """Both tasks learn a teacher's vectors, by a layer or not; a task that is None does not."""
    data = dataclasses.replace(
        RECIPE.data,
        sources=tuple(
            dataclasses.replace(one, teacher_embeddings="t") for one in RECIPE.data.sources
        ),
    )
    tasks = {}
    for task, projection in projections.items():
        section = None if projection is None else EmbeddingDistillationRecipe(projection=projection)
        tasks[task] = dataclasses.replace(RECIPE.tasks[task], embedding_distillation=section)
    return dataclasses.replace(RECIPE, data=data, tasks=tasks)


@pytest.mark.parametrize(
    ("was", "now", "task"),
    [
        (taught(ir=True, sts=False), taught(ir=False, sts=False), "ir"),
        (taught(ir=False, sts=False), taught(ir=False, sts=True), "sts"),
        (taught(ir=None, sts=False), taught(ir=True, sts=False), "ir"),
        (taught(ir=False, sts=True), taught(ir=False, sts=None), "sts"),
    ],
)
def test_a_layer_to_a_teachers_size_neither_comes_nor_goes(
    was: Recipe, now: Recipe, task: str
) -> None:
    key = LAYERED.format(task)
    for named in ((), (f"tasks.{task}",)):
        message = refused(plain_recipe(now), *named, was=was)
        assert re.search(rf"step-3: {re.escape(key)} = (True|False) \(was (True|False)\)", message)
        assert f"{key} cannot change: a checkpoint has the layer to the teacher's size" in message


def test_another_task_may_take_to_the_layer_by_name() -> None:
    was, now = taught(ir=True, sts=False), taught(ir=False, sts=True)
    keys = [LAYERED.format(task) for task in ("ir", "sts")]
    assert compare(plain_recipe(now), *keys, was=was).changed == keys
    # the teacher of a source that no task learns from trains no layer
    assert compare(plain_recipe(was), was=was) == Comparison()


@pytest.mark.parametrize("key", ["columns", "label_texts"])
def test_names_that_a_user_gave_change_when_one_comes_or_goes(key: str) -> None:
    key, given = f"data.sources.0.{key}", {"a": "x", "b": "y"}
    old, new = changed(RECIPE, key, given), changed(RECIPE, key, {"a": "x"})
    for was, now in ((old, new), (new, old)):
        with pytest.raises(CheckpointError, match=rf"{by_source(key)} = {{.*}} \(was {{.*}}\)"):
            compare_runs("step-3", stretch(was), now, named=("data",), added=SAME)
        assert not is_same(stretch(was), stretch(now))


def test_all_mappings_with_a_users_names_are_compared_whole() -> None:
    assert set(own_names("", Recipe)) == {
        "data.mix", "data.pattern", "data.sources.0.columns", "data.sources.0.label_texts",
        "eval.sets.0.columns",
    }  # fmt: skip
    assert all(WHOLE.fullmatch(key) for key in own_names("", Recipe))


def own_names(key: str, hint: Any) -> list[str]:
    """Keys of the schema whose values have names that no table gives."""
    if get_origin(hint) is Annotated:
        return []
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        below = [(f"{key}.{one.name}".lstrip("."), hints[one.name])
                 for one in dataclasses.fields(hint)]  # fmt: skip
    elif get_origin(hint) in (dict, Mapping):
        return [key]
    else:
        inside = f"{key}.0" if get_origin(hint) is tuple else key
        below = [(inside, one) for one in get_args(hint)]
    return [found for name, one in below for found in own_names(name, one)]


def test_rows_that_were_left_out_stay_out() -> None:
    data = dataclasses.replace(RECIPE.data, overlap="drop")
    was = dataclasses.replace(RECIPE, data=data)
    for overlap in (None, "warn", "error"):
        message = refused(changed(was, "data.overlap", overlap), "data.overlap", was=was)
        assert "data.overlap cannot change: `drop` leaves rows out" in message
    others = stretch(plain_recipe(was)), stretch(plain_recipe(RECIPE))
    assert not is_same(*others)
    warned = stretch(changed(RECIPE, "data.overlap", "warn"))
    assert is_same(warned, others[1])


def test_a_named_change_that_is_harmless_is_kept_too() -> None:
    found = compare(changed(RECIPE, "eval.every_steps", 5), "eval.every_steps")
    assert found.changed == ["eval.every_steps"]


def test_a_named_key_that_does_not_differ_begins_nothing() -> None:
    assert compare(plain_recipe(RECIPE), "train.learning_rate", "seed") == Comparison()


def test_other_rows_are_told_from_added_ones() -> None:
    plain = plain_recipe(RECIPE)
    others = refused(plain, "data.sources.ir", added={"ir": "they are others", "sts": 0})
    assert (
        "data of source ir = other rows (was 1,000 rows that must stay as they are and stand "
        "first, but they are others; give other rows to a source of another name)" in others
    )
    assert "or start anew" in others
    more = refused(plain, added={"ir": 400, "sts": 0})
    assert (
        "rows were added to source ir: 400 after the 1,000 that the run began with; name the "
        "source in --change to train on them; expected the run that wrote it. Undo the change, "
        "name it (--resume --change data.sources.ir.path), or start anew" in more
    )
    for named in ("data.sources.ir", "data.sources.ir.path", "data"):
        found = compare(plain, named, added={"ir": 400, "sts": 0})
        assert found.changed == ["data.sources.ir.path"]
        assert found.lines == ["rows were added to source ir: 400 after the 1,000 that the run "
                               "began with"]  # fmt: skip
    refused(plain, "data.sources.ir.weight", added={"ir": 400, "sts": 0})


def with_sources(*names: str) -> Recipe:
    sources = tuple(
        SourceRecipe(name=name, task="sts" if name == "sts" else "ir", path="unused")
        for name in names
    )
    tasks = {source.task for source in sources}
    pattern = {task: turns for task, turns in {"ir": 1, "sts": 1}.items() if task in tasks}
    return dataclasses.replace(RECIPE, data=DataRecipe(sources=sources, pattern=pattern))


def test_a_further_source_is_named_and_none_is_removed() -> None:
    one, both, three = with_sources("ir"), with_sources("ir", "sts"), with_sources("x", "sts", "ir")
    message = refused(plain_recipe(three), was=both, added={})
    assert "data.sources.x = a further source (was not there)" in message
    found = compare(plain_recipe(three), "data.sources.x", was=both, added={})
    assert found.changed == ["data.sources.x"]
    # a task that had no source brings its turns
    found = compare(plain_recipe(both), "data.sources.sts", was=one, added={})
    assert found.changed == ["data.pattern", "data.sources.sts"]
    message = refused(plain_recipe(both), "data.sources.x", was=three, added={})
    assert "data.sources.x = (missing) (was there)" in message
    assert "data.sources.x cannot change: the run trains on this source" in message


def test_all_that_is_refused_is_told_at_once() -> None:
    recipe = changed(RECIPE, "seed", 1)
    recipe["model"]["pooling"], recipe["train"]["learning_rate"] = "mean", 1.0
    message = refused(recipe, added={"ir": 5, "sts": "they are others"})
    for part in ("seed = 1", "model.pooling = 'mean'", "train.learning_rate = 1.0",
                 "rows were added to source ir: 5", "data of source sts = other rows",
                 "--change seed train.learning_rate data.sources.ir.path)",
                 "model.pooling cannot change"):  # fmt: skip
        assert part in message


def test_versions_and_ranks_are_told() -> None:
    versions = {"trainer": "0.1.0", "torch": "2.13.0"}
    saved = Manifest(step=3, world_size=2, recipe={}, sources={}, versions=versions, files={})
    lines = describe_environment(saved, versions=versions | {"trainer": "0.2.0"}, world_size=1)
    assert lines == ["version of trainer = '0.2.0' (was '0.1.0')", "number of ranks = 1 (was 2)"]
    assert describe_environment(saved, versions=versions, world_size=2) == []


def test_a_key_of_another_release_is_no_change() -> None:
    plain = plain_recipe(RECIPE)
    plain["train"]["new_key"] = 1
    del plain["data"]["pool_instruction"]
    assert compare(plain) == Comparison()


def at(first_step: int, rate: float, *keys: str) -> Stretch:
    recipe = changed(RECIPE, "train.learning_rate", rate)
    return stretch(recipe, first_step, changed=keys)


def test_a_named_change_begins_a_stretch_and_nothing_else_does() -> None:
    first, now = at(0, 1.0), at(0, 0.5)
    key = "train.learning_rate"
    assert next_stretches([first], 4, now, [key]) == (first, at(4, 0.5, key))
    assert next_stretches([first], 4, now, []) == (now,)
    second = at(4, 0.5, key)
    assert next_stretches([first, second], 6, at(0, 0.25), ["seed"]) == (
        first, second, at(6, 0.25, "seed"),
    )  # fmt: skip
    # a stretch without a step is replaced, and what it had changed stays changed
    assert next_stretches([first, second], 4, at(0, 0.25), ["seed"]) == (
        first, at(4, 0.25, "seed", key),
    )  # fmt: skip
    # after a fall back to an older checkpoint the later stretch is still to come
    assert next_stretches([first, second], 2, at(0, 0.5), []) == (first, second)
    assert next_stretches([first, second], 0, at(0, 0.25), ["seed"]) == (at(0, 0.25, "seed", key),)


def test_records_of_one_stretch_are_the_same_whatever_harmless_keys_say() -> None:
    moved = stretch(changed(RECIPE, "output_dir", "moved"))
    assert is_same(stretch(plain_recipe(RECIPE)), moved)
    assert not is_same(at(0, 1.0), at(0, 0.5))
    assert not is_same(at(0, 1.0), at(4, 1.0))
    fewer = {"ir": SourceState(fingerprint="aa", num_rows=9), "sts": STATES["sts"]}
    assert not is_same(moved, stretch(moved.recipe, sources=fewer))
    # manifests of older releases keep no number of rows
    unknown = {name: SourceState(fingerprint="aa", num_rows=0) for name in STATES}
    assert is_same(moved, stretch(moved.recipe, sources=unknown))


def test_a_stretch_says_what_it_has_changed() -> None:
    more = STATES | {"ir": SourceState(fingerprint="cc", num_rows=1400)}
    recipe = changed(RECIPE, "train.learning_rate", 0.5)
    recipe["output_dir"] = "moved"
    second = stretch(recipe, 4, sources=more, changed=("train.learning_rate",))
    assert change_lines(stretch(plain_recipe(RECIPE)), second) == [
        "train.learning_rate = 0.5 (was 0.005)",
        "rows of ir = 1,400 (was 1,000)",
    ]


NEW_KEYS = {
    "model.matryoshka": {"dims": [32, 16]},
    "tasks.ir.hardness": 5.0,
    "tasks.ir.spread_out": 1.0,
    "tasks.ir.in_batch": False,
    "tasks.ir.directions": ["query_to_doc", "doc_to_doc"],
    "tasks.ir.distillation": {"loss": "kl"},
    "tasks.ir.weights.hard_negatives": 1.0,
    "tasks.sts.weights.angle": 1.0,
    "data.sources.0.in_batch": False,
}


@pytest.mark.parametrize(("key", "value"), NEW_KEYS.items(), ids=NEW_KEYS)
def test_a_key_that_an_older_release_lacked_had_its_default(key: str, value: Any) -> None:
    old = stretch(without(plain_recipe(RECIPE), key))

    def now(recipe: Mapping[str, Any], named: Sequence[str] = ()) -> Comparison:
        return compare_runs("step-3", old, recipe, named=named, added=SAME)

    assert now(plain_recipe(RECIPE)) == Comparison()
    with pytest.raises(CheckpointError, match=re.escape(by_source(key))):
        now(changed(RECIPE, key, value))


def without(plain: dict[str, Any], key: str) -> dict[str, Any]:
    """Plain values without one leaf."""
    *path, leaf = key.split(".")
    place: Any = plain
    for part in path:
        place = place[int(part) if part.isdecimal() else part]
    del place[leaf]
    return plain
