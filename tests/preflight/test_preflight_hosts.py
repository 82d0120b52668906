"""A host that would run something else is named before anything is loaded."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from trainer.errors import HostError
from trainer.model.backbone import load_config
from trainer.preflight.hosts import Identity, describe_base, refuse_differences
from trainer.recipe.schema import ModelRecipe

FIRST = Identity(
    host="h1",
    version={"torch": "2.13.0", "codiemb-trainer": "0.1.0"},
    recipe={"seed": 42, "train": {"max_steps": 10}, "data": {"pattern": {"ir": 1}}},
    data={"docs": "aaaa"},
    base={"model.safetensors": "bbbb"},
)


def second(**changes: Any) -> Identity:
    return dataclasses.replace(FIRST, host="h2", **changes)


def test_equal_hosts_pass() -> None:
    refuse_differences([FIRST, FIRST, second(), second()])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": {**FIRST.version, "torch": "2.12.0"}}, r"torch = '2.12.0'; expected '2.13.0'"),
        (
            {"recipe": {**FIRST.recipe, "train": {"max_steps": 9}}},
            r"recipe: train.max_steps = 9; expected 10",
        ),
        ({"data": {"docs": "cccc"}}, r"data: docs = 'cccc'; expected 'aaaa'"),
        ({"base": {}}, r"base: model.safetensors = None; expected 'bbbb'"),
    ],
)
def test_difference_is_named_with_its_host(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(HostError, match=rf"host h2 \(rank 2\): .*{told}, as on host h1") as caught:
        refuse_differences([FIRST, FIRST, second(**changes), second(**changes)])
    # once for a host, however many ranks it has
    assert len(str(caught.value).splitlines()) == 1


def test_every_difference_has_a_line() -> None:
    other = second(data={"docs": "cccc"}, recipe={**FIRST.recipe, "seed": 1})
    third = dataclasses.replace(FIRST, host="h3", version={"torch": "2.13.0"}, base={})
    with pytest.raises(HostError) as caught:
        refuse_differences([FIRST, other, third])
    lines = str(caught.value).splitlines()
    assert [line.split()[1] for line in lines] == ["h2", "h2", "h3", "h3"]


def test_base_is_known_by_its_weights(tmp_path: Path) -> None:
    folder = tiny.save_model(tiny.qwen3_config(), tmp_path / "base")
    config = load_config(ModelRecipe(path=str(folder)), str(folder))
    before = describe_base(str(folder), config)
    assert before.keys() == {"config.json", "model.safetensors"}
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    after = describe_base(str(folder), config)
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after["config.json"] == before["config.json"]
