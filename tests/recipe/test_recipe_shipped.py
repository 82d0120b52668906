"""Every recipe that comes with the project loads, resolves and opens with what a user needs."""

from pathlib import Path

import pytest

from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.resolve import resolve

FILES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipe_loads_and_resolves(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == file.stem
    for world_size in (1, 2, 4, 8):
        resolve(recipe, world_size=world_size)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipe_opens_with_launch_hardware_and_result(file: Path) -> None:
    comment = "".join(line for line in file.open() if line.startswith("#"))
    assert f"--recipe recipes/{file.name}" in comment
    for word in ("Launch:", "Hardware:", "Result:"):
        assert word in comment


def test_the_recipes_of_the_readme_are_there() -> None:
    assert {"minilm", "qwen7b", "qwen7b_lora"} <= {file.stem for file in FILES}
