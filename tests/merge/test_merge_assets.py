"""Config, tokenizer and licence of a merge: what is compared, and what is carried over."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import bases
from trainer.checkpoint.json_files import write_json
from trainer.errors import CheckpointError
from trainer.export.complete import complete_folder
from trainer.export.rope import read_config
from trainer.merge.assets import check_architecture, copy_assets, find_assets, weights_form


def config_in(folder: Path, **keys: Any) -> Path:
    """A folder with a config as transformers 4 writes it."""
    write_json(folder / "config.json", {"model_type": "llama"} | bases.SIZES | keys)
    return folder


def newer(folder: Path, target: Path) -> Path:
    """The same config as transformers 5 writes it."""
    read = read_config(json.loads((folder / "config.json").read_text()))
    assert read is not None
    write_json(target / "config.json", json.loads(read.to_json_string()))
    return target


SCALED = {"rope_theta": 5e5, "rope_scaling": bases.LLAMA3}


@pytest.mark.parametrize("keys", [{}, {"rope_theta": 1e6}, SCALED])
def test_one_rope_in_two_forms_is_accepted(tmp_path: Path, keys: dict[str, Any]) -> None:
    base = config_in(tmp_path / "base", **keys)
    other = newer(base, tmp_path / "other")
    check_architecture([base], {other: [other]})
    check_architecture([other], {base: [base]})


@pytest.mark.parametrize("form", ["release 4", "release 5"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_theta": 1e4}, r"config rope_theta = 10000\.0; expected 500000\.0 as in the base"),
        (
            {"rope_scaling": bases.LLAMA3 | {"factor": 4.0}},
            r"config factor = 4\.0; expected 8\.0 as in the base",
        ),
        ({"rope_scaling": None}, r"config factor = None; expected 8\.0 as in the base"),
    ],
)
def test_another_rope_is_refused(
    tmp_path: Path, keys: dict[str, Any], message: str, form: str
) -> None:
    base = config_in(tmp_path / "base", **SCALED)
    other = config_in(tmp_path / "other", **SCALED | keys)
    other = other if form == "release 4" else newer(other, tmp_path / "newer")
    with pytest.raises(CheckpointError, match=message):
        check_architecture([base], {other: [other]})


def test_keys_of_an_unknown_type_are_compared_as_they_are(tmp_path: Path) -> None:
    base = config_in(tmp_path / "base", model_type="none such", rope_theta=1.0)
    other = config_in(tmp_path / "other", model_type="none such", rope_theta=2.0)
    with pytest.raises(CheckpointError, match=r"config rope_theta = 2\.0; expected 1\.0"):
        check_architecture([base], {other: [other]})


def test_the_files_of_a_merge_are_those_of_an_export(tmp_path: Path) -> None:
    base = bases.write_base("llama2", tmp_path / "base")
    newer(base, tmp_path / "checkpoint")
    target = tmp_path / "merged"
    target.mkdir()
    assets = find_assets([[tmp_path / "checkpoint"]], [base])
    copy_assets(assets, target, torch.bfloat16)
    config = json.loads((target / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"] == 10000.0
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert (target / "LICENSE").read_text() == "terms"
    tokenizer = json.loads((target / "tokenizer_config.json").read_text())
    assert (tokenizer["add_bos_token"], tokenizer["add_eos_token"]) == (True, False)
    assert complete_folder(target, base=base) == []


def test_weights_of_a_bidirectional_decoder_need_transformers_5(tmp_path: Path) -> None:
    folder = config_in(tmp_path / "a", is_causal=False)
    assert "needs transformers 5" in weights_form(find_assets([[folder]], []))
    assert weights_form(find_assets([[config_in(tmp_path / "b")]], [])) == "pt"
    assert weights_form(find_assets([], [])) == "pt"
