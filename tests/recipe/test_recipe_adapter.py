"""What follows from an adapter's folder as `model.path`, and what is refused before a weight."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from trainer.errors import RecipeError
from trainer.preflight.checks import check_model
from trainer.recipe.adapter_folder import find_adapter_folder, with_adapter
from trainer.recipe.model_path import resolve_model_path
from trainer.recipe.schema import LoraRecipe, ModelRecipe, Recipe
from trainer.report.base_model import base_of_recipe

OWN = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": ["v_proj", "q_proj"],
    "use_rslora": True,
    "use_dora": False,
    "bias": "none",
    "revision": "abc",
}
LORA = LoraRecipe(rank=4, alpha=8.0, dropout=0.1, targets=("q_proj", "v_proj"), rslora=True)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The config alone, with a base beside it."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    return write(tmp_path, base_model_name_or_path=str(base))


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter"
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(OWN | changes))
    return path


def recipe_of(path: Path | str, **model: Any) -> Recipe:
    return tiny.make_recipe(Path("unused"), model=ModelRecipe(path=str(path), **model))


def test_an_adapter_is_continued_with_its_own_settings(adapter: Path) -> None:
    found = with_adapter(recipe_of(adapter, adapter="continue"))
    assert found.model.lora == LORA
    assert found.model.revision == "abc"
    assert with_adapter(found) == found
    check_model(found)
    assert resolve_model_path(str(adapter)) == str(adapter)
    assert base_of_recipe(str(adapter), None).name == "base"


def test_a_recipe_with_lora_continues_by_itself(adapter: Path) -> None:
    asked = dataclasses.replace(LORA, dropout=0.3, targets="all-linear")
    found = with_adapter(recipe_of(adapter, lora=asked, revision="mine"))
    assert (found.model.adapter, found.model.lora) == ("continue", asked)
    assert found.model.revision == "mine"


def test_a_merged_adapter_leaves_lora_to_the_recipe(adapter: Path) -> None:
    for lora in (None, LoraRecipe(rank=64)):
        assert with_adapter(recipe_of(adapter, adapter="merge", lora=lora)).model.lora == lora


def test_whole_models_are_left_as_they_are(adapter: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "base", "some/hub-id", tmp_path / "missing", "package:nothing/here"):
        recipe = recipe_of(path, lora=LORA)
        assert find_adapter_folder(str(path)) is None
        assert with_adapter(recipe) is recipe
    with pytest.raises(RecipeError, match=r"model\.adapter = merge; expected null, as model\.path"):
        with_adapter(recipe_of("some/hub-id", adapter="merge"))


def test_what_is_meant_must_be_said(adapter: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.adapter = null; expected continue or merge"):
        with_adapter(recipe_of(adapter))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 8}, r"model\.lora\.rank = 8; expected 4, as r of .*adapter_config\.json"),
        ({"alpha": 16.0}, r"model\.lora\.alpha = 16; expected 8, as lora_alpha of "),
        ({"rslora": False}, r"model\.lora\.rslora = false; expected true, as use_rslora of "),
        ({"dora": True}, r"model\.lora\.dora = true; expected false, as use_dora of "),
    ],
)
def test_other_settings_than_the_adapters_are_named(
    adapter: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        with_adapter(recipe_of(adapter, lora=dataclasses.replace(LORA, **change)))


@pytest.mark.parametrize(
    ("changes", "lora"),
    [
        ({"trainable_token_indices": [5, 2]}, dataclasses.replace(LORA, trainable_tokens=(5, 2))),
        (
            {"trainable_token_indices": {"embed_tokens": [5, 2]}},
            dataclasses.replace(LORA, trainable_tokens=(5, 2)),
        ),
        (
            {"peft_type": "TRAINABLE_TOKENS", "token_indices": [5, 2], "target_modules": None},
            LoraRecipe(targets=(), trainable_tokens=(5, 2)),
        ),
    ],
)
def test_trained_tokens_go_on_in_the_order_of_their_rows(
    adapter: Path, changes: dict[str, Any], lora: LoraRecipe
) -> None:
    base = str(adapter.parent / "base")
    write(adapter.parent, **{"base_model_name_or_path": base} | changes)
    assert with_adapter(recipe_of(adapter, adapter="continue")).model.lora == lora


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainable_token_indices": [5, 5]}, r"trainable_token_indices = \[5, 5\]; expected ids"),
        ({"trainable_token_indices": {"a": [1], "b": [1]}}, r"trainable_token_indices = .* of one"),
        ({"peft_type": "IA3"}, r"peft_type = 'IA3'; expected LoRA or DoRA"),
        ({"bias": "all"}, r"bias = 'all'; expected LoRA or DoRA"),
        ({"alpha_pattern": {"q_proj": 2}}, r"alpha_pattern = .*; expected LoRA"),
        ({"layers_to_transform": [1]}, r"layers_to_transform = \[1\]; expected LoRA .* on all mod"),
        ({"layers_to_transform": 0}, r"layers_to_transform = 0; expected LoRA or DoRA"),
        (
            {"exclude_modules": ["layers.0.self_attn.q_proj"]},
            r"exclude_modules = \['layers\.0\.self_attn\.q_proj'\]; expected LoRA or DoRA",
        ),
        ({"exclude_modules": ["proj"], "target_modules": ["a.proj"]}, r"exclude_modules = \['proj"),
        ({"exclude_modules": ".*0.*"}, r"exclude_modules = '\.\*0\.\*'; expected LoRA or DoRA"),
        (
            {"exclude_modules": ["a"], "target_modules": "all-linear"},
            r"exclude_modules = \['a'\]; expected LoRA or DoRA",
        ),
        ({"modules_to_save": "norm"}, r"modules_to_save = 'norm'; expected a list of names"),
        ({"r": "4"}, r"r = '4'; expected a number above 0"),
        ({"lora_alpha": None}, r"lora_alpha = None; expected a number above 0"),
        ({"lora_dropout": 1}, r"lora_dropout = 1; expected a number of at least 0 and below 1"),
        ({"target_modules": ".*proj"}, r"target_modules = '\.\*proj'; expected a list of names"),
    ],
)
def test_adapters_that_no_recipe_describes_can_only_be_merged(
    adapter: Path, change: dict[str, Any], message: str
) -> None:
    base = str(adapter.parent / "base")
    write(adapter.parent, **{"base_model_name_or_path": base} | change)
    with pytest.raises(RecipeError, match=rf"adapter_config\.json: {message}"):
        with_adapter(recipe_of(adapter, adapter="continue"))
    assert with_adapter(recipe_of(adapter, adapter="merge")).model.lora is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "pissa"}, r"init_lora_weights = 'pissa'; expected true, false, ga"),
        ({"init_lora_weights": "lora_ga"}, r"init_lora_weights = 'lora_ga'; expected true"),
        ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens = \[5\]; expected LoRA or"),
        ({"layer_replication": [[0, 1]]}, r"layer_replication = \[\[0, 1\]\]; expected LoRA or"),
        ({"use_bdlora": {"a": 1}}, r"use_bdlora = .*; expected LoRA or DoRA that changes each"),
    ],
)
@pytest.mark.parametrize("way", ["continue", "merge"])
def test_adapters_of_another_base_are_neither_continued_nor_merged(
    adapter: Path, change: dict[str, Any], message: str, way: Any
) -> None:
    base = str(adapter.parent / "base")
    write(adapter.parent, **{"base_model_name_or_path": base} | change)
    with pytest.raises(RecipeError, match=rf"adapter_config\.json: {message}"):
        with_adapter(recipe_of(adapter, adapter=way))
    for start in (True, False, None, "gaussian", "orthogonal", "eva", "mica"):
        write(adapter.parent, base_model_name_or_path=base, init_lora_weights=start)
        assert with_adapter(recipe_of(adapter, adapter="continue")).model.lora == LORA


def test_modules_that_get_no_adapter_anyway_may_be_excluded(adapter: Path) -> None:
    base = str(adapter.parent / "base")
    for excluded in (["lm_head", "pooler.q_proj"], ["q"], [], None):
        write(adapter.parent, base_model_name_or_path=base, exclude_modules=excluded,
              layers_to_transform=[])  # fmt: skip
        assert with_adapter(recipe_of(adapter, adapter="continue")).model.lora == LORA


def test_a_config_without_a_base_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(RecipeError, match=r"base_model_name_or_path = None; expected the folder"):
        with_adapter(recipe_of(path))
    write(tmp_path, base_model_name_or_path=str(path))
    with pytest.raises(RecipeError, match=r"\(an adapter\); expected a whole model"):
        with_adapter(recipe_of(path))
    for text in ("{", "[]"):
        (path / "adapter_config.json").write_text(text)
        with pytest.raises(RecipeError, match=r"adapter_config\.json: content = "):
            with_adapter(recipe_of(path))
    write(tmp_path, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(
        RecipeError, match=r"adapter_config\.json: base_model_name_or_path = .*gone; expe"
    ):
        check_model(with_adapter(recipe_of(path, adapter="continue")))
