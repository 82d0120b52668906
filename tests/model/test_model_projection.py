"""The dense layer behind the pooling: a loop in float64, its start, and a base that has one."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from tests.support import tiny
from trainer.distributed.group import Ranks
from trainer.engine.build import load_embedder
from trainer.errors import RecipeError
from trainer.model.embedder import Embedder
from trainer.model.limits import check_dims
from trainer.model.projection import Projection, check_projection, dense_config, recipe_of_dense
from trainer.recipe.schema import (
    LoraRecipe,
    MatryoshkaRecipe,
    ModelRecipe,
    ProjectionRecipe,
)

SIZES = [ProjectionRecipe(size=3), ProjectionRecipe(size=7, bias=True, activation="tanh")]


@pytest.mark.parametrize("recipe", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projection_is_that_of_a_loop(recipe: ProjectionRecipe, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Projection(recipe, hidden_size=5, dtype=dtype)
    state_BH, cotangent_BD = torch.randn(4, 5, requires_grad=True), torch.randn(4, recipe.size)
    got = layer(state_BH)
    found = torch.autograd.grad((got * cotangent_BD).sum(), [state_BH, *layer.parameters()])
    wide = state_BH.detach().double().requires_grad_()
    weights = [one.detach().double().requires_grad_() for one in layer.parameters()]
    rows = []
    for row in wide:
        elements = [sum(row[j] * weights[0][i, j] for j in range(5)) for i in range(recipe.size)]
        if recipe.bias:
            elements = [one + weights[1][i] for i, one in enumerate(elements)]
        if recipe.activation == "tanh":
            elements = [torch.tanh(one) for one in elements]
        rows.append(torch.stack(elements))
    want = torch.stack(rows)
    wanted = torch.autograd.grad((want * cotangent_BD.double()).sum(), [wide, *weights])
    assert got.dtype == torch.float32
    # states and weights are read as they are and summed in float32, in bfloat16 models too
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    for one, other in zip(found, wanted, strict=True):
        # a gradient has the dtype of its weight: 8 bits in bfloat16
        tolerance = 1e-5 if one.dtype == torch.float32 else 2**-8
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("recipe", SIZES)
def test_settings_of_dense_are_read_back(recipe: ProjectionRecipe) -> None:
    assert recipe_of_dense(dense_config(recipe, 5)) == recipe


def test_other_layers_are_not_taken_for_it() -> None:
    config = dense_config(SIZES[0], 5)
    assert recipe_of_dense(config | {"activation_function": "torch.nn.modules.GELU"}) is None
    assert recipe_of_dense(config | {"use_residual": True}) is None


def embedder_of(folder: Path, teacher_size: int | None = None, **model: object) -> Embedder:
    recipe = tiny.make_recipe(folder, model=ModelRecipe(path=str(folder), **model))
    ranks = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    config = {"zero_optimization": {"stage": 0}}
    return load_embedder(
        recipe, model_path=str(folder), config=config, ranks=ranks, teacher_size=teacher_size
    )


def start_of(folder: Path, **model: object) -> dict[str, torch.Tensor]:
    projection = embedder_of(folder, **model).projection
    assert projection is not None
    return dict(projection.named_parameters())


def test_start_follows_the_seed_alone(tmp_path: Path) -> None:
    model = tiny.save_model(tiny.qwen3_config(), tmp_path)
    projection = ProjectionRecipe(size=6, bias=True)
    torch.manual_seed(1)
    first = start_of(model, projection=projection)
    torch.manual_seed(2)
    second = start_of(model, projection=projection, lora=LoraRecipe(rank=2))
    assert first["linear.weight"].shape == (6, 32)
    for name, one in first.items():
        assert torch.equal(one, second[name])
        # adapters leave it trained in full
        assert one.requires_grad
        assert second[name].requires_grad
    # the size of torch's Linear: uniform within one over the root of its inputs
    assert first["linear.weight"].abs().max() <= 32**-0.5
    assert first["linear.weight"].abs().max() > 0.9 * 32**-0.5


def with_dense(folder: Path, recipe: ProjectionRecipe, *, seed: int) -> dict[str, torch.Tensor]:
    """Give a model's folder a dense layer; returns its weights."""
    torch.manual_seed(seed)
    layer = Projection(recipe, hidden_size=32, dtype=torch.float32)
    tensors = {name: one.detach() for name, one in layer.named_parameters()}
    (folder / "2_Dense").mkdir()
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense_config(recipe, 32)))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [
        {"path": place, "type": f"sentence_transformers.models.{kind}"}
        for place, kind in kinds.items()
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return tensors


def test_training_goes_on_from_the_layer_of_the_base(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.save_model(tiny.qwen3_config(), tmp_path)
    recipe = ProjectionRecipe(size=6)
    tensors = with_dense(model, recipe, seed=5)
    found = start_of(model, projection=recipe)
    assert torch.equal(found["linear.weight"], tensors["linear.weight"])
    settings = {"hidden_size": 32, "download": False}
    check_projection(ModelRecipe(path="m", projection=recipe), str(model), **settings)
    with caplog.at_level(logging.WARNING, "trainer.model.projection"):
        check_projection(ModelRecipe(path="m"), str(model), **settings)
    assert "dense layers behind the pooling (2_Dense) are left out; set model.proj" in caplog.text
    for other in (ProjectionRecipe(size=8), ProjectionRecipe(size=6, activation="tanh")):
        with pytest.raises(RecipeError, match=r"model\.projection = size .*; expected that of .*"
                                              r"2_Dense, .*: size 6, bias false"):  # fmt: skip
            check_projection(ModelRecipe(path="m", projection=other), str(model), **settings)
    for content in ("[1]", "{", '[{"type": "a.Dense", "path": "../x"}]'):
        (model / "modules.json").write_text(content)
        with pytest.raises(RecipeError, match=r"modules\.json = not readable"):
            check_projection(ModelRecipe(path="m"), str(model), **settings)


def test_several_layers_of_a_base_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.save_model(tiny.qwen3_config(), tmp_path)
    with_dense(model, ProjectionRecipe(size=6), seed=5)
    modules = json.loads((model / "modules.json").read_text())
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (model / "modules.json").write_text(json.dumps(modules))
    recipe = ModelRecipe(path="m", projection=ProjectionRecipe(size=8))
    with caplog.at_level(logging.WARNING, "trainer.model.projection"):
        check_projection(recipe, str(model), hidden_size=32, download=False)
    assert "(2_Dense, 3_Dense) are left out; model.projection starts anew" in caplog.text
    assert start_of(model, projection=recipe.projection)["linear.weight"].shape == (8, 32)


def test_leading_parts_are_checked_against_the_projection() -> None:
    skeleton = AutoModel.from_config(tiny.qwen3_config())
    matryoshka = MatryoshkaRecipe(dims=(48, 16))
    model = ModelRecipe(path="m", matryoshka=matryoshka, projection=ProjectionRecipe(size=48))
    check_dims(tiny.make_recipe(Path("m"), model=model), skeleton)
    shorter = replace(model, projection=ProjectionRecipe(size=20))
    with pytest.raises(RecipeError, match=r"dims = \[48, 16\]; expected at most 20, the size of"):
        check_dims(tiny.make_recipe(Path("m"), model=shorter), skeleton)


def test_vectors_are_projected_and_those_of_the_middle_are_not(tmp_path: Path) -> None:
    from tests.model.test_model_embedder import chunks_of

    model = tiny.save_model(tiny.qwen3_config(), tmp_path)
    plain = embedder_of(model).eval()
    made = embedder_of(model, projection=ProjectionRecipe(size=6, bias=True)).eval()
    (chunk,) = chunks_of([3, 9, 5], max_tokens=999)
    with torch.no_grad():
        last, middle = made(chunk, middle=True)
        unprojected, wanted = plain(chunk, middle=True)
        assert made.projection is not None
        weight, bias = made.projection.linear.weight, made.projection.linear.bias
        hidden = plain.backbone(input_ids=chunk.input_ids).last_hidden_state
    assert (made.vector_size, plain.vector_size) == (6, 32)
    assert torch.equal(middle, wanted)
    state = hidden[torch.arange(3), chunk.lengths - 1].double()
    want = state @ weight.double().T + bias.double()
    want /= want.norm(dim=1, keepdim=True)
    torch.testing.assert_close(last.double(), want, rtol=1e-5, atol=1e-6)
    assert unprojected.shape == (3, 32)


def test_a_layer_to_a_teachers_size_changes_no_vector_that_is_served(tmp_path: Path) -> None:
    from tests.model.test_model_embedder import chunks_of

    model = tiny.save_model(tiny.qwen3_config(), tmp_path)
    projection = ProjectionRecipe(size=6)
    made, again = (embedder_of(model, 20, projection=projection) for _ in range(2))
    plain = embedder_of(model, projection=projection)
    assert made.teacher_layer is not None
    assert again.teacher_layer is not None
    weight = made.teacher_layer.weight
    assert weight.requires_grad
    assert torch.equal(weight, again.teacher_layer.weight)
    assert weight.abs().max() <= 6**-0.5
    assert made.projection is not None
    assert plain.projection is not None
    assert torch.equal(made.projection.linear.weight, plain.projection.linear.weight)
    (chunk,) = chunks_of([3, 9, 5], max_tokens=999)
    for training in (False, True):
        for embedder in (made, plain):
            embedder.train(training)
        for middle in (False, True):
            # the last layer runs otherwise, to the last bit, where all hidden states are asked for
            want, *wanted = plain(chunk, middle=middle)
            assert made.table_sizes(middle=middle, taught=True)[-1] == 20
            last, *others = made(chunk, middle=middle)
            assert torch.equal(last, want)
            assert len(others) == middle
            last, *others = made(chunk, middle=middle, taught=True)
            assert torch.equal(last, want)
            assert not middle or torch.equal(others[0], wanted[0])
            brought = torch.nn.functional.normalize(last.double() @ weight.double().T)
            torch.testing.assert_close(others[-1].double(), brought, rtol=1e-5, atol=1e-6)
    # every backward pass of training reaches the layer, as ZeRO-3 needs it
    (reached,) = torch.autograd.grad(made(chunk)[0].sum(), weight)
    assert torch.equal(reached, torch.zeros(20, 6))
    alone = made.eval()(chunk)[0].sum()
    assert torch.autograd.grad(alone, weight, allow_unused=True) == (None,)


def test_weights_of_a_damaged_layer_are_refused(tmp_path: Path) -> None:
    model = tiny.save_model(tiny.qwen3_config(), tmp_path)
    recipe = ProjectionRecipe(size=6)
    with_dense(model, recipe, seed=5)
    weights = model / "2_Dense" / "model.safetensors"
    save_file({"weight": load_file(weights)["linear.weight"]}, weights)
    with pytest.raises(RecipeError, match=r"2_Dense/model\.safetensors = not readable"):
        start_of(model, projection=recipe)
