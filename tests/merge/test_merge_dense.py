"""The dense layer behind the pooling in a merge: any tensor, or a mean where the base has none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.merge_truth import assert_merged
from trainer.errors import CheckpointError
from trainer.export.embedder_files import modules_of
from trainer.merge import MergeSettings, merge_checkpoints
from trainer.merge.driver import describe
from trainer.model.projection import dense_config
from trainer.recipe.schema import ProjectionRecipe

PROJECTION = ProjectionRecipe(size=5, bias=True)
NAMES = {"linear.weight": (5, 8), "linear.bias": (5,)}


def save(
    folder: Path,
    seed: int,
    projection: ProjectionRecipe | None,
    *,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A toy of two tensors and, if asked, a dense layer of any values."""
    random = torch.Generator().manual_seed(seed)
    shapes = {f"{prefix}embed.weight": (31, 8), f"{prefix}layers.0.proj.weight": (8, 8)}
    folder.mkdir()
    tensors = {n: torch.randn(s, generator=random).to(dtype) for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    (folder / "modules.json").write_text(json.dumps(modules_of(projection)))
    if projection is not None:
        (folder / "2_Dense").mkdir()
        config = json.dumps(dense_config(projection, 8))
        (folder / "2_Dense" / "config.json").write_text(config)
        dense = {n: torch.randn(s, generator=random).to(dtype) for n, s in NAMES.items()}
        save_file(dense, folder / "2_Dense" / "model.safetensors", {"format": "pt"})
    return folder


def dense_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "2_Dense" / "model.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "delta", "alpha": 2.0, "lambda_": 0.7},
        {"method": "delta", "granularity": "row"},
        {"method": "task_arithmetic", "weights": (0.9, -0.4, 0.1)},
        {"method": "ties", "density": 0.3},
    ],
)
@pytest.mark.parametrize("shard_bytes", [1 << 30, 1000])
def test_layers_that_the_base_has_not_are_averaged(
    tmp_path: Path, settings: dict[str, Any], shard_bytes: int
) -> None:
    base = save(tmp_path / "base", 0, None)
    tuned = [save(tmp_path / f"{i}", i, PROJECTION) for i in (1, 2, 3)]
    chosen = MergeSettings(**settings, max_shard_bytes=shard_bytes)
    told = describe(base, tuned, tmp_path / "out", chosen)
    merge_checkpoints(base, tuned, tmp_path / "out", chosen)
    merged = dense_of(tmp_path / "out")
    assert merged.keys() == NAMES.keys()
    for name, values in merged.items():
        mean = sum(dense_of(one)[name].double() for one in tuned) / 3
        assert torch.equal(values, mean.float())
    names = [f"projection.{name}" for name in NAMES]
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert sorted(record["averaged"]) == sorted(names)
    assert sorted(told["averaged"].split(", ")) == sorted(names)
    for name in names:
        assert record["tensors"][name]["weights"] == [1 / 3] * 3
    # the backbone is merged as asked, and no file of it has the layer
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == (1 if shard_bytes > 1000 else 2)
    backbone = {name: one for file in files for name, one in load_file(file).items()}
    parts = [load_file(one / "model.safetensors") for one in (base, *tuned)]
    assert backbone.keys() == parts[0].keys()
    for name, values in backbone.items():
        start, *own = (part[name].double() for part in parts)
        assert_merged(values, start, own, chosen)
    assert json.loads((tmp_path / "out" / "modules.json").read_text()) == modules_of(PROJECTION)
    config = json.loads((tmp_path / "out" / "2_Dense" / "config.json").read_text())
    assert config == dense_config(PROJECTION, 8)


def test_one_checkpoint_keeps_its_layer_bit_for_bit(tmp_path: Path) -> None:
    base = save(tmp_path / "base", 0, None, prefix="model.")
    tuned = save(tmp_path / "a", 1, PROJECTION, prefix="model.", dtype=torch.bfloat16)
    merge_checkpoints(base, [tuned], tmp_path / "out", MergeSettings(hash_files=True))
    for name, values in dense_of(tmp_path / "out").items():
        assert values.dtype == torch.bfloat16
        assert torch.equal(values, dense_of(tuned)[name])
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == {
        "model.embed.weight",
        "model.layers.0.proj.weight",
    }


def test_a_layer_of_the_base_is_merged_as_any_tensor(tmp_path: Path) -> None:
    base = save(tmp_path / "base", 0, PROJECTION)
    tuned = [save(tmp_path / f"{i}", i, PROJECTION) for i in (1, 2)]
    settings = MergeSettings(alpha=2.0)
    merge_checkpoints(base, tuned, tmp_path / "out", settings)
    for name, values in dense_of(tmp_path / "out").items():
        start, *own = (dense_of(one)[name].double() for one in (base, *tuned))
        assert_merged(values, start, own, settings)
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert "averaged" not in record
    assert sorted(record["base"]["files"]) == ["2_Dense/model.safetensors", "model.safetensors"]


def test_a_layer_that_training_left_out_is_left_out(tmp_path: Path) -> None:
    base = save(tmp_path / "base", 0, PROJECTION)
    tuned = [save(tmp_path / f"{i}", i, None) for i in (1, 2)]
    merge_checkpoints(base, tuned, tmp_path / "out", MergeSettings())
    assert not (tmp_path / "out" / "2_Dense").exists()
    assert json.loads((tmp_path / "out" / "modules.json").read_text()) == modules_of(None)


def lose_weights(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").unlink()


def other_activation(folder: Path) -> None:
    other = ProjectionRecipe(size=5, bias=True, activation="tanh")
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense_config(other, 8)))


def other_shape(folder: Path) -> None:
    dense = dense_of(folder)
    dense["linear.weight"] = dense["linear.weight"][:, :7].contiguous()
    save_file(dense, folder / "2_Dense" / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lose_weights, r"a: projection.linear.bias, projection.linear.weight = missing"),
        (other_activation, r"b: dense layer = .*Identity'}; expected .*Tanh'} as in .*/a"),
        (other_shape, r"projection.linear.weight shape = \[5, 8\]; expected \[5, 7\]"),
    ],
)
def test_layers_that_do_not_fit_are_refused(tmp_path: Path, spoil: Any, told: str) -> None:
    base = save(tmp_path / "base", 0, None)
    tuned = [save(tmp_path / name, i, PROJECTION) for i, name in enumerate("ab", start=1)]
    spoil(tmp_path / "a")
    with pytest.raises(CheckpointError, match=told):
        merge_checkpoints(base, tuned, tmp_path / "out", MergeSettings())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "b", "base"]


def test_a_layer_without_weights_anywhere_is_refused(tmp_path: Path) -> None:
    base = save(tmp_path / "base", 0, None)
    tuned = save(tmp_path / "a", 1, PROJECTION)
    lose_weights(tuned)
    told = r"a/modules.json: dense layer = one without weights; expected none, as in the checkpoi"
    with pytest.raises(CheckpointError, match=told):
        merge_checkpoints(base, [tuned], tmp_path / "out", MergeSettings())
