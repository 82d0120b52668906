"""Sizes to which vectors may be cut: what servers read, and what no reader does unasked."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig

from tests.support.exported import edit, make_base, make_export
from tools import evaluate
from trainer.checkpoint.json_files import read_object, write_json
from trainer.evaluation.exported import load_model, trained_dims
from trainer.export.clients.table import read_clients
from trainer.export.complete import complete_folder
from trainer.export.dims import ANY_DIM, DIMS, dims_of, with_common_dims
from trainer.export.parity_file import find_parity
from trainer.merge.assets import copy_assets, find_assets
from trainer.recipe.schema import MatryoshkaRecipe

TRAINED = (32, 16, 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that promises other sizes than will be trained."""
    folder = make_base(tmp_path_factory.mktemp("base") / "base")
    edit(folder / "config.json", lambda config: config.update({DIMS: [32, 4], ANY_DIM: True}))
    return folder


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    return make_export(base, folder, matryoshka=MatryoshkaRecipe(dims=TRAINED))


def test_servers_read_the_trained_sizes(model: Path, tmp_path: Path) -> None:
    config = read_object(model / "config.json")
    assert config[DIMS] == list(TRAINED)
    assert ANY_DIM not in config
    # as vLLM and SGLang read them
    assert AutoConfig.from_pretrained(model).matryoshka_dimensions == list(TRAINED)
    # a folder that is brought into the form of all readers keeps them
    folder = Path(shutil.copytree(model, tmp_path / "fixed"))
    edit(folder / "config.json", lambda config: config.pop("torch_dtype"))
    assert complete_folder(folder)
    assert read_object(folder / "config.json") == config


def test_nothing_promises_what_was_not_trained(base: Path, tmp_path: Path) -> None:
    plain = make_export(base, tmp_path / "plain")
    assert not {DIMS, ANY_DIM} & read_object(plain / "config.json").keys()


def test_whole_vectors_are_given_unless_one_asks(model: Path) -> None:
    parity = find_parity(model)
    assert parity is not None
    assert parity.settings.dimensions == 32
    assert {one.outcome for one in read_clients(model)} <= {"equal", "refused"}
    assert "truncate_dim" not in read_object(model / "config_sentence_transformers.json")
    texts = [text.text for text in parity.texts if text.prompt_name is None and text.text.strip()]
    whole = SentenceTransformer(str(model), device="cpu").encode(texts)
    assert whole.shape == (len(texts), 32)
    for size in TRAINED:
        cut = SentenceTransformer(str(model), device="cpu", truncate_dim=size).encode(texts)
        # the same forward: a prefix is a cut of the whole, and parity.json needs to hold no more
        assert np.array_equal(cut, whole[:, :size])


def test_the_evaluation_tool_takes_the_trained_sizes(model: Path, tmp_path: Path) -> None:
    rows = [("w1 w2", "w1 w3", 5.0), ("w4 w5", "w9", 1.0), ("w6", "w7 w8", 3.0)]
    lines = [json.dumps({"text1": a, "text2": b, "score": s}) + "\n" for a, b, s in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    sets = evaluate.read_sets([str(tmp_path / "pairs.jsonl")], "dev")
    assert list(evaluate.examine(str(model), sets)["pairs"].dims) == list(TRAINED)
    assert list(evaluate.examine(str(model), sets, dims=(2,))["pairs"].dims) == [32, 2]
    # a run says so in its recipe, whatever its folder holds
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(
        f"name: a\noutput_dir: a\nmodel: {{path: {model}, matryoshka: {{dims: [32, 2]}}}}\n"
        "train: {max_steps: 1}\ntasks: {sts: {global_batch_size: 2}}\n"
        "data:\n  sources: [{name: a, task: sts, path: a}]\n"
    )
    assert trained_dims(str(run), load_model(str(model))) == (32, 2)


@pytest.mark.parametrize("found", [None, "all", [], {"a": 1}, 64, [0, True, "8", 2.0]])
def test_what_is_no_list_of_sizes_names_none(found: Any) -> None:
    assert dims_of({DIMS: found}) == ()


def test_a_merge_promises_what_all_its_checkpoints_do(base: Path, tmp_path: Path) -> None:
    config = {**read_object(base / "config.json"), DIMS: [32, 16, 8]}
    others = {"same": config, "fewer": config | {DIMS: [16, 32]}, "none": config | {DIMS: None}}
    for name, content in others.items():
        write_json(tmp_path / name / "config.json", content)
    first = tmp_path / "same"
    merged = {}
    for name in others:
        target = tmp_path / f"merged with {name}"
        target.mkdir()
        copy_assets(find_assets([[first], [tmp_path / name]], [base]), target, torch.float32)
        merged[name] = read_object(target / "config.json").get(DIMS)
    assert merged == {"same": [32, 16, 8], "fewer": [32, 16], "none": None}
    # without a checkpoint's own config there is nothing to narrow
    assert with_common_dims(config, []) == config
