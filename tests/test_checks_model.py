"""The check of a model's folder before anything heavy starts."""

import json
from pathlib import Path

import pytest

from tests.recipe.test_recipe_strangers import RECIPE
from trainer.errors import RecipeError
from trainer.preflight.checks import check_model
from trainer.recipe.load import load_recipe


@pytest.mark.parametrize("name", [[], {}, None, 5, "", "a/b", ".."])
def test_an_index_that_names_no_file_beside_it_is_refused(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "a.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "a.yaml", [f"model.path={folder}"])
    with pytest.raises(RecipeError, match="expected files beside the index"):
        check_model(recipe)
