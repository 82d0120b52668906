"""Adapters of all kinds, and trained tokens: every client reads the same vectors.

One launch of two ranks trains, exports, and starts again from what was exported.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.checkpoint.test_checkpoint_lora import TEXTS, close, embed
from tests.engine.test_engine_adapters import gpt2_config
from tests.support import corpus, tiny
from tests.support.ranks import run_ranks
from tests.support.sessions import run_of, run_session

pytestmark = pytest.mark.dist

SHORT = ("train.max_steps=2", "checkpoint.every_steps=2", "checkpoint.export=both")
RUNS = {
    "gpt2": ("gpt2 base", "model.lora={{rank: 4, alpha: 8}}"),
    "whole": (
        "model",
        "model.lora={{rank: 4, alpha: 8, targets: [embed_tokens, q_proj], "
        "modules_to_save: [norm]}}",
    ),
    "tokens": (
        "model",
        "model.lora={{rank: 4, alpha: 8, targets: [q_proj], trainable_tokens: [w3, 9, w1]}}",
    ),
    "tokens alone": ("gpt2 base", "model.lora={{targets: [], trainable_tokens: [w3, w1]}}"),
    "dora": (
        "gpt2 base",
        "model.lora={{rank: 4, alpha: 8, dora: true, targets: [wte, c_attn, c_fc]}}",
    ),
}
"""Base and adapters of each run."""


def body(rank: int, world_size: int, folder: Path) -> dict[str, Tensor]:
    """The trainer's vectors of TEXTS by run, and those that a run from its adapter starts with."""
    os.environ["TRAINER_CACHE_DIR"] = str(folder / "cache")
    vectors = {}
    for name, (base, lora) in RUNS.items():
        run = run_of(folder, name, f"model.path={{folder}}/{base}", lora, *SHORT)
        vectors[f"{name}, at first"] = embed(run.session)
        run_session(run, resume=False)
        vectors[name] = embed(run.session)
        run.session.built.engine.destroy()
        for way in ("continue", "merge"):
            path = f"model.path={{folder}}/{name}/model/adapter"
            again = run_of(folder, f"{name}-{way}", path, f"model.adapter={way}")
            vectors[f"{name}, {way}"] = embed(again.session)
            again.session.built.engine.destroy()
    return vectors


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    corpus.make_workspace(folder)
    tiny.save_model(gpt2_config(), folder / "gpt2 base")
    corpus.save_tokenizer(folder / "gpt2 base")
    return folder


@pytest.fixture(scope="module")
def told(workspace: Path) -> dict[str, Tensor]:
    first, second = run_ranks(body, 2, workspace, timeout_sec=240)
    assert all(torch.equal(vectors, second[name]) for name, vectors in first.items())
    return first


@pytest.mark.parametrize("name", RUNS)
def test_every_client_gives_the_trainers_vectors(
    told: dict[str, Tensor], workspace: Path, name: str
) -> None:
    from sentence_transformers import SentenceTransformer

    assert (told[name] - told[f"{name}, at first"]).abs().max() > 1e-3
    for folder in ("model", "model/adapter"):
        model = SentenceTransformer(str(workspace / name / folder))
        close(model.encode(TEXTS, prompt_name="query", convert_to_tensor=True), told[name])
    close(by_peft(workspace, name), told[name][:1])


def by_peft(workspace: Path, name: str) -> Tensor:
    """The vector of the first of TEXTS, of the base with the adapter that peft loads."""
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    adapter = workspace / name / "model" / "adapter"
    base = AutoModel.from_pretrained(workspace / RUNS[name][0])
    model = PeftModel.from_pretrained(base, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    ids = tokenizer("w1 w2 " + TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        return nn.functional.normalize(model(input_ids=ids).last_hidden_state[:, -1])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_from_the_adapter_starts_with_its_vectors(told: dict[str, Tensor], name: str) -> None:
    assert torch.equal(told[f"{name}, continue"], told[name])
    close(told[f"{name}, merge"], told[name])


@pytest.mark.parametrize("name", RUNS)
def test_checkpoints_and_adapters_merge_to_the_exported_weights(
    told: dict[str, Tensor], workspace: Path, tmp_path: Path, name: str
) -> None:
    from trainer.merge import MergeSettings, merge_checkpoints

    wanted = load_file(workspace / name / "model" / "model.safetensors")
    settings = MergeSettings(method="task_arithmetic")
    for place in ("checkpoints/step-2", "model/adapter"):
        output = tmp_path / place.replace("/", "-")
        merge_checkpoints(workspace / RUNS[name][0], [workspace / name / place], output, settings)
        merged: dict[str, Any] = load_file(output / "model.safetensors")
        assert merged.keys() == wanted.keys()
        for tensor, value in wanted.items():
            torch.testing.assert_close(merged[tensor], value, atol=1e-7, rtol=1e-6)
