"""How deep tensors are by their names, and merges that differ by depth."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.merge_truth import assert_merged
from tests.tools import test_delta_merge as by_command
from tools import delta_merge
from trainer.errors import CheckpointError
from trainer.merge.depth import at_depth, between, count_layers, depth_of, layer_of
from trainer.merge.settings import MergeSettings

DEPTHS = {
    "model.embed_tokens.weight": 0.0,
    "embeddings.LayerNorm.bias": 0.0,
    "wte.weight": 0.0,
    "layers.0.mlp.up_proj.weight": 0.0,
    "encoder.layer.1.output.dense.weight": 0.25,
    "h.3.attn.c_attn.weight": 0.75,
    # an expert's number is not a layer's
    "layers.2.mlp.experts.7.down_proj.weight": 0.5,
    "model.layers.4.input_layernorm.weight": 1.0,
    "norm.weight": 1.0,
    "lm_head.weight": 1.0,
    "2_Dense.linear.weight": 1.0,
}


def test_depth_goes_from_the_first_layer_to_the_last() -> None:
    assert count_layers(DEPTHS, MergeSettings()) == 5
    assert {name: depth_of(name, 5) for name in DEPTHS} == DEPTHS
    assert [layer_of("layers.0.w"), layer_of("norm"), layer_of("h.12.w")] == [0, None, 12]
    # a single layer is the first
    assert depth_of("layers.0.w", 1) == 0.0


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((2.0, 0.5), [2.0, 1.625, 1.25, 0.875, 0.5]),
        ((1.0, 3.0, 0.0), [1.0, 2.0, 3.0, 1.5, 0.0]),
        ((0.7,), [0.7] * 5),
    ],
)
def test_values_are_spread_evenly_and_linear_in_between(
    values: tuple[float, ...], found: list[float]
) -> None:
    assert [between(values, part / 4) for part in range(5)] == pytest.approx(found)


def test_a_tensor_has_its_own_lambda() -> None:
    settings = MergeSettings(lambda_=0.5, by_depth=(2.0, 0.0), alpha=3.0)
    assert at_depth(settings, "layers.1.w", 3) == MergeSettings(lambda_=0.5, alpha=3.0)
    assert at_depth(settings, "norm.weight", 3) == MergeSettings(lambda_=0.0, alpha=3.0)


def test_layers_without_numbers_are_told() -> None:
    names = ["embed.weight", "first.weight"]
    assert count_layers(names, MergeSettings()) == 0
    told = r"by_depth = \[1.5, 0.5\]; expected none, as no tensor .* number of a layer"
    with pytest.raises(CheckpointError, match=told):
        count_layers(names, MergeSettings(by_depth=(1.5, 0.5)))


@pytest.mark.parametrize("method", ["delta", "uniform", "ties"])
def test_the_command_merges_each_layer_by_its_own_factor(toys: Path, method: str) -> None:
    words = ["--method", method, "--lambda", "0.8", "--by-depth", "1.5", "0.5"]
    assert delta_merge.main(by_command.command(toys, *words)) == 0
    models = [load_file(toys / name / "model.safetensors") for name in ("base", "a", "b")]
    merged = load_file(toys / "out" / "model.safetensors")
    for name, values in merged.items():
        factor = 1.5 if name.startswith(("embed", "layers.0")) else 0.5
        base, *tuned = (model[name].double() for model in models)
        settings = MergeSettings(method=method, lambda_=0.8 * factor)  # type: ignore[arg-type]
        assert_merged(values, base, tuned, settings)
    settings_told = json.loads((toys / "out" / "merge.json").read_text())["settings"]
    assert settings_told["by_depth"] == [1.5, 0.5]
    assert "(1.5, 0.5)" in (toys / "out" / "merge.html").read_text()


def test_what_is_multiplied_by_zero_keeps_the_bases_values(toys: Path) -> None:
    assert delta_merge.main(by_command.command(toys, "--by-depth", "1", "0")) == 0
    base, merged = (load_file(toys / name / "model.safetensors") for name in ("base", "out"))
    kept = {name for name, values in base.items() if torch.equal(merged[name], values)}
    assert kept == {"layers.1.proj.weight", "layers.1.proj.bias", "norm.weight"}


toys = by_command.toys
