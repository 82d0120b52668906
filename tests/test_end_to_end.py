"""The command as users start it, by deepspeed and torchrun; resumed, interrupted, exported.

What does not depend on a launcher is run by forked ranks. Plain python is in test_security.py.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.cards import run_python
from tests.support.corpus import make_workspace
from tests.support.forked import finish_forked
from trainer.export.clients.table import read_clients
from trainer.export.parity_file import PARITY, read_parity

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LIMIT_SEC = 240


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def on_cpu() -> dict[str, str]:
    """The environment of a command that finds the tools of this one, and no GPU."""
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's root and return it finished, whatever its exit code."""
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SEC,
        env=on_cpu(),
        check=False,
    )


def by_deepspeed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two ranks by DeepSpeed's launcher."""
    port = f"--master_port={free_port()}"
    return run("deepspeed", port, "--num_accelerators", "2", "trainer/run.py", *arguments)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_sec")}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    return folder


@pytest.fixture(scope="module")
def finished(workspace: Path) -> Path:
    """The run folder of 20 steps on two ranks."""
    result = by_deepspeed("--recipe", str(workspace / "recipe.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace / "run"


def test_output_folder_has_every_part(finished: Path) -> None:
    steps = lines(finished / "metrics.jsonl")
    assert [line["step"] for line in steps] == list(range(20))
    assert {line["task"] for line in steps} == {"ir", "sts"}
    assert {"source", "loss", "infonce", "learning_rate", "grad_norm", "tokens"} <= set(steps[0])
    evaluations = lines(finished / "eval.jsonl")
    assert [line["step"] for line in evaluations] == [0, 10, 20]
    assert evaluations[0]["sets"].keys() == {"pairs", "docs"}
    checkpoints = finished / "checkpoints"
    assert (checkpoints / "latest").read_text() == "step-20"
    manifest = json.loads((checkpoints / "step-10" / "manifest.json").read_text())
    assert manifest["world_size"] == 2
    assert list((finished / "tensorboard").iterdir())


def test_same_losses_on_one_rank(finished: Path, workspace: Path) -> None:
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={workspace}/alone")
    ended = finish_forked(workspace, *recipe)
    assert ended.code == 0, ended.out + ended.err
    alone, together = (lines(f / "metrics.jsonl") for f in (workspace / "alone", finished))
    # issue of float32 sums in another order, over 20 Adam steps
    for one, two in zip(alone, together, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4), one["step"]
        assert (one["task"], one["source"], one["tokens"]) == (
            two["task"],
            two["source"],
            two["tokens"],
        )
    one, two = (read_parity(f / "model" / PARITY) for f in (workspace / "alone", finished))
    assert [text.token_ids for text in one.texts] == [text.token_ids for text in two.texts]
    # what 20 steps make of those sums
    assert (one.vectors * two.vectors).sum(axis=1).min() > 0.9999


def test_resumed_by_torchrun_equals_uninterrupted(finished: Path, workspace: Path) -> None:
    cut = workspace / "cut"
    shutil.copytree(finished, cut)
    shutil.rmtree(cut / "checkpoints" / "step-20")
    shutil.rmtree(cut / "model")
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "torn')
    result = run(
        "torchrun",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
        "trainer/run.py",
        "--recipe",
        str(workspace / "recipe.yaml"),
        "--resume",
        f"output_dir={cut}",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "resumed from step-10" in result.stdout
    for name in ("metrics.jsonl", "eval.jsonl"):
        again, before = lines(cut / name), lines(finished / name)
        assert list(map(without_clock, again)) == list(map(without_clock, before))
    weights = (f / "model" / "model.safetensors" for f in (cut, finished))
    first, second = (path.read_bytes() for path in weights)
    assert first == second


def test_export_gives_the_trainers_vectors(finished: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from trainer.data.tokens import load_tokenizer, make_encoder
    from trainer.distributed.group import Ranks
    from trainer.engine.embed import embed_texts
    from trainer.export.from_folder import parity_of_folder
    from trainer.recipe.load import load_recipe

    recipe = load_recipe(finished / "recipe.yaml", [])
    model = SentenceTransformer(str(finished / "model"))
    assert model.prompts["query"] == "w1 w2 "
    assert model.max_seq_length == 16
    texts = ["w3", "w4 w5 w6", " ".join(f"w{i}" for i in range(40))]
    theirs = model.encode(texts, prompt_name="query", normalize_embeddings=False)
    ours = embed_texts(
        texts,
        instruction="w1 w2 ",
        max_tokens=16,
        encoder=make_encoder(
            load_tokenizer(str(finished.parent / "model"), pooling="last"),
            recipe.data,
            pooling="last",
        ),
        grad_cache=PlainPasses(finished / "model"),
        ranks=Ranks(rank=0, world_size=1, device=torch.device("cpu")),
        chunk_tokens=64,
    )
    assert np.abs(theirs - ours.numpy()).max() < 1e-6
    # two ranks wrote what one process makes of the folder, and no client is silently different
    parity = read_parity(finished / "model" / PARITY)
    alone = parity_of_folder(finished / "model")
    assert alone.settings == parity.settings
    assert np.abs(alone.vectors - parity.vectors).max() < 1e-6
    results = read_clients(finished / "model")
    assert [result for result in results if result.outcome == "different"] == []


def test_the_card_of_the_export_is_read_by_the_hub_and_runs(finished: Path) -> None:
    from huggingface_hub import ModelCard

    file = finished / "model" / "README.md"
    data = ModelCard.load(file).data
    evaluation = lines(finished / "eval.jsonl")[-1]["sets"]
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results}
    for name, metrics in evaluation.items():
        for metric, value in metrics.items():
            # rounded to six decimals
            assert found[name, metric] == pytest.approx(value, abs=1e-6)
    one, other = (np.asarray(names["query_vectors"]) for names in run_python(file).values())
    assert np.abs(one - other).max() < 1e-5


class PlainPasses:
    """The embedder of a folder of weights, run without an engine."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel

        from trainer.model.embedder import Embedder

        backbone = AutoModel.from_pretrained(folder)
        self.embedder = Embedder(backbone, pooling="last", attention="causal").eval()

    def embed(self, chunks: list[Any]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([self.embedder(chunk)[0] for chunk in chunks])


def test_output_folder_of_another_run_is_refused(finished: Path) -> None:
    ended = finish_forked(
        finished.parent, "--recipe", str(finished.parent / "recipe.yaml"), ranks=2
    )
    assert ended.code == 2
    assert "holds a run" in ended.err
    assert "Traceback" not in ended.err


def test_selfcheck_passes_and_names_a_planted_error(finished: Path, workspace: Path) -> None:
    recipe = ("--recipe", str(workspace / "recipe.yaml"), "--selfcheck")
    passed = finish_forked(workspace, *recipe, ranks=2)
    assert passed.code == 0, passed.out + passed.err
    assert "selfcheck passed" in passed.out
    planted = finish_forked(workspace, *recipe, script="tests/support/planted.py")
    assert planted.code == 1, planted.out + planted.err
    assert "backbone.layers.1.mlp.up_proj.weight" in planted.err


def test_ctrl_c_saves_and_resume_loses_nothing(workspace: Path) -> None:
    folder = workspace / "interrupted"
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={folder}", "eval.sets=[]",
              "train.schedule=constant", "train.warmup_ratio=0")  # fmt: skip
    command = ("deepspeed", f"--master_port={free_port()}", "--num_accelerators", "2")
    with subprocess.Popen(
        [*command, "trainer/run.py", *recipe, "train.max_steps=600"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=on_cpu(),
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + LIMIT_SEC
        metrics = folder / "metrics.jsonl"
        while not metrics.exists() or len(lines(metrics)) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        # as a terminal does: to every process of the group, the launchers among them
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=LIMIT_SEC) != 0
    taken = len(lines(metrics))
    assert (folder / "checkpoints" / "latest").read_text() == f"step-{taken}"
    assert not (folder / "model").exists()
    ended = finish_forked(workspace, *recipe, f"train.max_steps={taken + 2}", "--resume", ranks=2)
    assert ended.code == 0, ended.out + ended.err
    assert [line["step"] for line in lines(metrics)] == list(range(taken + 2))
    assert (folder / "model" / "model.safetensors").exists()
