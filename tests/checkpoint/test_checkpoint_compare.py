"""What may change between a checkpoint and its continuation, and what may not."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from trainer.checkpoint.compare import compare_runs
from trainer.checkpoint.manifest import Manifest
from trainer.errors import CheckpointError
from trainer.recipe.schema import Recipe

RECIPE = tiny.make_recipe(Path("model"))
SOURCES = {"ir": "aa", "sts": "bb"}
VERSIONS = {"trainer": "0.1.0", "torch": "2.13.0"}


def changed(recipe: Recipe, key: str, value: Any) -> dict[str, Any]:
    """Plain values of a recipe with one leaf replaced."""
    plain = dataclasses.asdict(recipe)
    *path, leaf = key.split(".")
    place: Any = plain
    for part in path:
        place = list(place) if isinstance(place, tuple) else place
        place = place[int(part) if part.isdecimal() else part]
    place[leaf] = value
    return plain


def compare(
    recipe: Mapping[str, Any],
    *,
    was: Recipe = RECIPE,
    sources: Mapping[str, str] = SOURCES,
    versions: Mapping[str, str] = VERSIONS,
    world_size: int = 2,
) -> list[str]:
    saved = Manifest(
        step=3,
        world_size=2,
        recipe=dataclasses.asdict(was),
        sources=SOURCES,
        versions=VERSIONS,
        files={},
    )
    return compare_runs(
        "step-3",
        saved,
        recipe=recipe,
        sources=sources,
        versions=versions,
        world_size=world_size,
    )


def test_nothing_changed_says_nothing() -> None:
    assert compare(dataclasses.asdict(RECIPE)) == []


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("output_dir", "moved", "output_dir = 'moved' (was 'unused')"),
        ("engine.max_tokens_per_chunk", 32, "engine.max_tokens_per_chunk = 32 (was 64)"),
        ("engine.gather", "step", "engine.gather = 'step' (was 'auto')"),
        ("data.workers", 0, "data.workers = 0 (was 2)"),
        ("data.sources.0.path", "b", "data.sources.0.path = 'b' (was 'unused')"),
        (
            "data.sources.0.teacher_embeddings",
            "t",
            "data.sources.0.teacher_embeddings = 't' (was None)",
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
    assert compare(changed(was, key, value), was=was) == [line]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("model.pooling", "mean"),
        ("model.lora", {"rank": 8}),
        ("data.query_max_tokens", 8),
        ("data.pattern", {"ir": 1}),
        ("data.sources.0.weight", 2.0),
        ("tasks.ir.temperature", 1.0),
        ("tasks.sts", None),
        ("train.learning_rate", 1.0),
        ("train.max_steps", 9),
        ("train.betas", (0.5, 0.9)),
    ],
)
def test_harmful_changes_stop(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        compare(changed(RECIPE, key, value))
    wanted = rf"checkpoint step-3: {re.escape(key)}.* = .* \(was .*\); expected the run that wrote"
    assert re.search(wanted, str(caught.value))


def test_other_data_stops() -> None:
    with pytest.raises(CheckpointError, match=r"data of source sts = 'cc' \(was 'bb'\)"):
        compare(dataclasses.asdict(RECIPE), sources={"ir": "aa", "sts": "cc"})


def test_versions_and_ranks_are_told() -> None:
    lines = compare(
        dataclasses.asdict(RECIPE), versions={"trainer": "0.2.0", "torch": "2.13.0"}, world_size=1
    )
    assert lines == ["version of trainer = '0.2.0' (was '0.1.0')", "number of ranks = 1 (was 2)"]


def test_a_key_of_another_release_is_no_change() -> None:
    plain = dataclasses.asdict(RECIPE)
    plain["train"]["new_key"] = 1
    del plain["data"]["pool_instruction"]
    assert compare(plain) == []


@pytest.mark.parametrize(("key", "value"), [("global_batch_size", 4), ("negatives", 0)])
def test_a_source_that_now_overrides_its_task_is_another_run(key: str, value: int) -> None:
    now = changed(RECIPE, f"data.sources.0.{key}", value)
    line = re.escape(f"data.sources.0.{key} = {value} (was None)")
    with pytest.raises(CheckpointError, match=line):
        compare(now)
    # a release before this key overrode nothing
    earlier = dataclasses.asdict(RECIPE)
    for source in earlier["data"]["sources"]:
        del source[key]
    saved = Manifest(
        step=3, world_size=2, recipe=earlier, sources=SOURCES, versions=VERSIONS, files={}
    )
    arguments = {"sources": SOURCES, "versions": VERSIONS, "world_size": 2}
    with pytest.raises(CheckpointError, match=line):
        compare_runs("step-3", saved, recipe=now, **arguments)  # type: ignore[arg-type]
    same = dataclasses.asdict(RECIPE)
    assert compare_runs("step-3", saved, recipe=same, **arguments) == []  # type: ignore[arg-type]


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
    old = without(dataclasses.asdict(RECIPE), key)
    saved = Manifest(
        step=3, world_size=2, recipe=old, sources=SOURCES, versions=VERSIONS, files={}
    )  # fmt: skip
    same: dict[str, Any] = {"sources": SOURCES, "versions": VERSIONS, "world_size": 2}
    assert compare_runs("step-3", saved, recipe=dataclasses.asdict(RECIPE), **same) == []
    with pytest.raises(CheckpointError, match=re.escape(key)):
        compare_runs("step-3", saved, recipe=changed(RECIPE, key, value), **same)


def without(plain: dict[str, Any], key: str) -> dict[str, Any]:
    """Plain values without one leaf."""
    *path, leaf = key.split(".")
    place: Any = plain
    for part in path:
        place = place[int(part) if part.isdecimal() else part]
    del place[leaf]
    return plain
