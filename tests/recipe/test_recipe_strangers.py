"""Recipes that a stranger made: numbers and overrides without end are named and cut."""

from pathlib import Path

import pytest

from trainer.errors import RecipeError
from trainer.recipe.load import load_recipe

HUGE = "0x" + "f" * 4000
"""An integer that YAML reads and that Python does not write out in decimal."""
RECIPE = """\
name: a
output_dir: out
model: {path: m}
data: {sources: [{name: s, task: ir, path: x.jsonl}]}
tasks: {ir: {global_batch_size: 4}}
train: {max_steps: 2}
"""


def refused(folder: Path, text: str, *overrides: str) -> str:
    file = folder / "a.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    message = str(caught.value)
    assert "; expected " in message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("task: ir", f"task: {HUGE}", "data.sources.0.task"),
        ("{path: m}", f"{{path: m, ? {HUGE} : 1}}", "model.a number too long to show"),
        ("{path: m}", f"{{path: m, pooling: {HUGE}}}", "model.pooling"),
        ("name: a", f"name: a\n? {HUGE}\n: a", "a number too long to show"),
        ("{sources:", f"{{pattern: {{? {HUGE} : 1}}, sources:", "data.pattern"),
        ("max_steps: 2", f"max_steps: {HUGE}", "train.max_steps"),
    ],
)
def test_a_number_without_end_is_named(old: str, new: str, where: str, tmp_path: Path) -> None:
    assert RECIPE.count(old) == 1
    assert f": {where}" in refused(tmp_path, RECIPE.replace(old, new))


@pytest.mark.parametrize(
    "override", ["x" * 5000, "x" * 5000 + "=1", "name.x=" + "y" * 5000, "train.max_steps=" + HUGE]
)
def test_a_long_override_is_cut(override: str, tmp_path: Path) -> None:
    assert override[:60] in refused(tmp_path, RECIPE, override)
