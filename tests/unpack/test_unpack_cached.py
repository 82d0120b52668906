"""A GGUF file as `model.path` is unpacked once, and is a base like any other."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.corpus import RECIPE, make_workspace
from tests.support.forked import finish_forked
from tests.support.gguf_files import make_llama, write_gguf
from tools import delta_merge
from trainer.data.cache import cache_root
from trainer.errors import CheckpointError
from trainer.report.base_model import base_of_recipe
from trainer.unpack.cached import place_of_base, unpacked_before


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound file, and an empty cache."""
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "small.gguf", make_llama(), general__license="apache-2.0")


def folders() -> list[Path]:
    """What the cache holds, unfinished folders too."""
    return sorted(path for parent in cache_root().glob("*/") for path in parent.iterdir())


def test_a_file_is_unpacked_once_for_each_dtype_and_again_when_it_changed(file: Path) -> None:
    assert unpacked_before(str(file)) is None
    first = Path(place_of_base(str(file), "float32"))
    assert first.name == "small"
    assert unpacked_before(str(file)) == first
    made = first.stat().st_ctime_ns
    assert place_of_base(str(file), "float32") == str(first)
    assert first.stat().st_ctime_ns == made
    half = Path(place_of_base(str(file), "bfloat16"))
    dtypes = {tensor.dtype for tensor in load_file(half / "model.safetensors").values()}
    assert dtypes == {torch.bfloat16}
    assert folders() == sorted([first, half])
    os.utime(file, ns=(1, 1))
    assert place_of_base(str(file), "float32") not in (str(first), str(half))


def test_other_bases_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert place_of_base(str(tmp_path), "float32") == str(tmp_path)


def test_a_cache_that_cannot_be_written_is_told(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "taken"))
    with pytest.raises(CheckpointError, match=r"expected a cache to unpack .* TRAINER_CACHE_DIR"):
        place_of_base(str(file), "float32")


def test_the_card_of_a_base_is_that_of_its_unpacked_folder(file: Path) -> None:
    base = base_of_recipe(str(file), None)
    assert (base.name, base.hub, base.inherited) == ("small.gguf", None, {})
    place_of_base(str(file), "bfloat16")
    assert base_of_recipe(str(file), None).inherited == {"license": "apache-2.0"}


@pytest.fixture
def workspace(file: Path) -> Path:
    """Data, and a recipe that names the file."""
    folder = file.parent
    make_workspace(folder)
    shutil.rmtree(folder / "model")
    recipe = RECIPE.format(folder=folder).replace(f"{folder}/model", str(file))
    (folder / "recipe.yaml").write_text(recipe)
    return folder


@pytest.mark.dist
def test_dry_run_unpacks_or_ends_with_one_message(workspace: Path) -> None:
    recipe = ("--recipe", str(workspace / "recipe.yaml"), "--dry-run")
    ended = finish_forked(workspace, *recipe)
    assert ended.code == 0, ended.out + ended.err
    assert "small.gguf: is unpacked into" in ended.out
    assert [path.name for path in folders()] == ["small"]
    assert str(folders()[0]) in ended.out
    # one byte of the header is enough
    with (workspace / "small.gguf").open("r+b") as raw:
        raw.seek(8)
        raw.write(b"\xff\xff")
    ended = finish_forked(workspace, *recipe)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "small.gguf: content = " in ended.err
    assert len(folders()) == 1


@pytest.mark.dist
def test_adapters_are_trained_exported_and_merged_on_it(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("model.lora={rank: 4}", "train.max_steps=4", "eval.every_steps=null")
    changes += ("checkpoint.every_steps=2", "checkpoint.merge={last: 2}", "checkpoint.export=both")
    recipe = ("--recipe", str(workspace / "recipe.yaml"), *changes)
    ended = finish_forked(workspace, *recipe, ranks=2)
    assert ended.code == 0, ended.out + ended.err
    assert ended.out.count("is unpacked into") == 1
    (base,) = folders()
    run = workspace / "run"
    adapter = json.loads((run / "model" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(base)
    manifest = json.loads((run / "checkpoints" / "step-4" / "manifest.json").read_text())
    assert manifest["base"]["path"] == str(workspace / "small.gguf")
    assert manifest["base"]["files"].keys() == {"config.json", "model.safetensors"}
    assert "license: apache-2.0" in (run / "model" / "README.md").read_text()
    names = load_file(base / "model.safetensors").keys()
    merged = load_file(run / "merged" / "model.safetensors")
    assert {f"model.{name}" for name in merged} == names
    # the command finds the same base, whose identity the checkpoints hold
    steps = [str(run / "checkpoints" / f"step-{step}") for step in (2, 4)]
    words = ["--base", str(workspace / "small.gguf"), "--checkpoints", *steps]
    assert delta_merge.main([*words, "--output", str(workspace / "by-command")]) == 0
    again = load_file(workspace / "by-command" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in merged.items())
    assert len(folders()) == 1
