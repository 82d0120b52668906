"""Batches divide by the ranks, and the DeepSpeed dict holds each key once."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import RecipeError
from trainer.recipe.deepspeed_file import CONFIG_FOLDER, OWNERS, read_deepspeed_file
from trainer.recipe.load import load_recipe
from trainer.recipe.resolve import resolve, warmup_steps
from trainer.recipe.schema import Recipe

TEXT = """\
name: small
output_dir: runs/small
model: {path: some/folder}
data:
  sources:
    - {name: pairs, task: sts, path: pairs.jsonl}
    - {name: docs, task: ir, path: docs.jsonl}
tasks:
  ir: {global_batch_size: 12}
  sts: {global_batch_size: 24}
train: {max_steps: 90, max_grad_norm: 0}
"""

ZERO: dict[str, Any] = {"zero_optimization": {"stage": 3}}


def small_recipe(folder: Path, *overrides: str) -> Recipe:
    file = folder / "small.yaml"
    file.write_text(TEXT)
    return load_recipe(file, overrides)


def write(folder: Path, config: object) -> str:
    file = folder / "ds.json"
    file.write_text(json.dumps(config))
    return str(file)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_shares_of_ranks_add_up(tmp_path: Path, world_size: int) -> None:
    resolved = resolve(small_recipe(tmp_path), world_size=world_size)
    assert resolved.rows_per_rank["ir"] * world_size == 12
    assert resolved.rows_per_rank["sts"] * world_size == 24


def test_batch_that_does_not_divide_names_the_nearest_that_do(tmp_path: Path) -> None:
    rule = r"tasks\.ir\.global_batch_size = 12; expected a multiple of .* = 5\. Use 10 or 15"
    with pytest.raises(RecipeError, match=rule):
        resolve(small_recipe(tmp_path), world_size=5)
    with pytest.raises(RecipeError, match=r"Use 16, or another number of ranks"):
        resolve(small_recipe(tmp_path), world_size=16)


def test_task_without_sources_is_not_checked(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, "data.sources.0.task=ir", "tasks.sts.global_batch_size=7")
    assert dict(resolve(recipe, world_size=2).rows_per_rank) == {"ir": 6}


def test_recipe_owns_batch_and_clipping(tmp_path: Path) -> None:
    config = resolve(small_recipe(tmp_path), world_size=4).deepspeed
    assert config["train_batch_size"] == 4
    assert config["train_micro_batch_size_per_gpu"] == 1
    assert config["gradient_accumulation_steps"] == 1
    assert config["gradient_clipping"] == 0  # absent would mean 1.0 to DeepSpeed
    assert config["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize(("ratio", "steps"), [(0, 0), (0.05, 4), (0.1, 9), (1, 90)])
def test_warmup_is_a_share_of_the_steps(tmp_path: Path, ratio: float, steps: int) -> None:
    recipe = small_recipe(tmp_path, f"train.warmup_ratio={ratio}")
    assert warmup_steps(recipe, 90) == steps


@pytest.mark.parametrize("key", OWNERS)
def test_key_that_the_recipe_owns_is_refused(tmp_path: Path, key: str) -> None:
    name = write(tmp_path, ZERO | {key: 1})
    with pytest.raises(RecipeError, match=rf"{key} = 1; expected no key that the recipe owns"):
        read_deepspeed_file(name, dtype="float32")


@pytest.mark.parametrize(
    ("config", "dtype", "rule"),
    [
        ([], "float32", "a JSON object"),
        ({}, "float32", "zero_optimization.stage = null; expected 1, 2 or 3"),
        ({"zero_optimization": {"stage": 0}}, "float32", "stage = 0; expected 1, 2 or 3"),
        ({"zero_optimisation": {"stage": 3}}, "float32", "Did you mean zero_optimization"),
        (ZERO | {"zzz": 1}, "float32", "zzz = 1; expected one of .* Remove it"),
        (
            ZERO | {"bf16": {"enabled": "auto"}},
            "float32",
            'bf16.enabled = "auto"; expected a value',
        ),
        (ZERO | {"bf16": {"enabled": True}}, "float32", "true; expected false, as .* float32"),
        (ZERO, "bfloat16", "bf16.enabled = false; expected true, as model.dtype is bfloat16"),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "float32",
            "stage = 2; expected stage 3 where parameters are offloaded",
        ),
    ],
)
def test_wrong_file_is_refused(tmp_path: Path, config: object, dtype: Any, rule: str) -> None:
    with pytest.raises(RecipeError, match=rule):
        read_deepspeed_file(write(tmp_path, config), dtype=dtype)


def test_file_that_is_not_json_or_repeats_a_key(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text("{,}")
    with pytest.raises(RecipeError, match="content = not JSON"):
        read_deepspeed_file(str(file), dtype="float32")
    file.write_text('{"zero_optimization": {"stage": 3, "stage": 2}}')
    with pytest.raises(RecipeError, match="stage = given twice"):
        read_deepspeed_file(str(file), dtype="float32")


def test_unknown_file_lists_those_that_come_with_the_project(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, "engine.deepspeed=zero3_fp33.json")
    with pytest.raises(RecipeError, match=r"zero1_bf16\.json, .* Did you mean zero3_fp32\.json"):
        resolve(recipe, world_size=1)


def test_path_goes_before_the_project_folder(tmp_path: Path) -> None:
    name = write(tmp_path, {"zero_optimization": {"stage": 1}})
    recipe = small_recipe(tmp_path, f"engine.deepspeed={name}")
    assert resolve(recipe, world_size=1).deepspeed["zero_optimization"] == {"stage": 1}


@pytest.mark.parametrize("file", sorted(CONFIG_FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_shipped_file_is_what_its_name_says(file: Path) -> None:
    stage, *offload, precision = file.stem.removeprefix("zero").split("_")
    config = read_deepspeed_file(file.name, dtype="bfloat16" if precision == "bf16" else "float32")
    zero = config["zero_optimization"]
    assert zero["stage"] == int(stage)
    assert ("offload_optimizer" in zero) == ("offload_param" in zero) == (offload == ["offload"])
    # bfloat16 gradients lose 0.6% where each chunk's are added and reduced in bfloat16
    assert ("communication_data_type" in config) == (precision == "bf16")
    # at stage 1 this key brings an optimizer that cannot take one reduction a step
    assert ("data_types" in config) == (precision == "bf16" and stage != "1")


def test_shipped_files_are_complete() -> None:
    names = {file.stem for file in CONFIG_FOLDER.glob("*.json")}
    kinds = ("zero1", "zero2", "zero3", "zero3_offload")
    assert names == {f"{kind}_{precision}" for kind in kinds for precision in ("fp32", "bf16")}


@pytest.mark.slow
def test_deepspeed_knows_every_shipped_key() -> None:
    # DeepSpeed forbids unknown keys inside a section, but only when an engine is built
    from deepspeed.runtime.config import get_communication_data_type
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for file in CONFIG_FOLDER.glob("*.json"):
        config = json.loads(file.read_text())
        DeepSpeedZeroConfig(**config["zero_optimization"])
        get_communication_data_type(config)
        unknown = set(config) - {
            "zero_optimization",
            "bf16",
            "data_types",
            "communication_data_type",
            "zero_force_ds_cpu_optimizer",
        }
        assert not unknown
