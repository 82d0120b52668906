"""The command as users start it, by deepspeed and torchrun; resumed, interrupted, exported.

What does not depend on a launcher is run by forked ranks. Plain python is in test_security.py.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import tiny
from tests.support.cards import run_python
from tests.support.corpus import make_workspace
from tests.support.forked import finish_forked
from tests.support.launched import environment
from trainer.export.clients.table import read_clients
from trainer.export.parity_file import PARITY, read_parity

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[1]
LIMIT_SEC = 240


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's root and return it finished, whatever its exit code."""
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SEC,
        env=environment(),
        check=False,
    )


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
    recipe = ("--recipe", str(workspace / "recipe.yaml"), "engine.gather=auto",
              "data.workers=1")  # fmt: skip
    ended = finish_forked(workspace, *recipe, ranks=2)
    assert ended.code == 0, ended.out + ended.err
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


def test_resumed_equals_uninterrupted(finished: Path, workspace: Path) -> None:
    cut = workspace / "cut"
    shutil.copytree(finished, cut)
    shutil.rmtree(cut / "checkpoints" / "step-20")
    shutil.rmtree(cut / "model")
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "torn')
    recipe = ("--recipe", str(workspace / "recipe.yaml"), "--resume", f"output_dir={cut}")
    ended = finish_forked(workspace, *recipe, ranks=2)
    assert ended.code == 0, ended.out + ended.err
    assert "resumed from step-10" in ended.out
    assert_same_run(cut, finished)


def assert_same_run(one: Path, other: Path) -> None:
    """Two run folders hold the same steps, evaluations and weights, to the bit."""
    for name in ("metrics.jsonl", "eval.jsonl"):
        first, second = (lines(f / name) if (f / name).exists() else [] for f in (one, other))
        assert list(map(without_clock, first)) == list(map(without_clock, second))
    weights = (f / "model" / "model.safetensors" for f in (one, other))
    left, right = (path.read_bytes() for path in weights)
    assert left == right


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

    shares_prefix = False

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


COMPOSED = (
    # a middle layer of another size than the last, which a term of STS reads
    "model.projection={size: 24, bias: true, activation: tanh}",
    "model.matryoshka={dims: [24, 8], weights: [1, 0.5]}",
    "tasks.ir.directions=[query_to_doc, query_to_query, doc_to_query, doc_to_doc]",
    "tasks.ir.mask={margin: 0.1, of: own}",
    "tasks.ir.hardness=2",
    "tasks.ir.spread_out=0.5",
    "tasks.ir.weights.hard_negatives=0.5",
    "tasks.sts.weights.angle=1",
)


def test_selfcheck_passes_and_names_a_planted_error(finished: Path, workspace: Path) -> None:
    recipe = ("--recipe", str(workspace / "recipe.yaml"), "--selfcheck")
    passed = finish_forked(workspace, *recipe, *COMPOSED, ranks=2)
    assert passed.code == 0, passed.out + passed.err
    assert "selfcheck passed" in passed.out
    found = re.search(
        r"outside matrix products of the model: ([\d.]+)% of a whole step", passed.out
    )
    assert found is not None, passed.out
    # a tiny model hardly multiplies
    assert 50 < float(found[1]) < 100
    planted = finish_forked(workspace, *recipe, script="tests/support/planted.py")
    assert planted.code == 1, planted.out + planted.err
    assert "backbone.layers.1.mlp.up_proj.weight" in planted.err


def test_selfcheck_of_an_encoder_has_no_dropout_within_attention(workspace: Path) -> None:
    encoder = workspace / "encoder"
    shutil.copytree(workspace / "model", encoder)
    config = tiny.bert_config(
        vocab_size=json.loads((encoder / "config.json").read_text())["vocab_size"],
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    tiny.save_model(config, encoder)
    changes = (f"model.path={encoder}", "model.attention=bidirectional", "model.pooling=mean",
               "tasks.sts.weights.infonce=0")  # fmt: skip
    recipe = ("--recipe", str(workspace / "recipe.yaml"), "--selfcheck", *changes)
    passed = finish_forked(workspace, *recipe)
    assert passed.code == 0, passed.out + passed.err
    assert "dropout within attention was off" in passed.out


def by_launcher(name: str) -> tuple[str, ...]:
    """The start of a command line on two ranks."""
    ranks = {"torchrun": "--nproc-per-node=2", "deepspeed": "--num_accelerators=2"}[name]
    port = {"torchrun": "--master-port", "deepspeed": "--master_port"}[name]
    return (name, ranks, f"{port}={free_port()}", "trainer/run.py")


LAUNCHERS = ["torchrun", pytest.param("deepspeed", marks=pytest.mark.slow)]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c_saves_and_resume_loses_nothing(
    launcher: str, workspace: Path, tmp_path: Path
) -> None:
    folder, alike = tmp_path / "interrupted", tmp_path / "never interrupted"
    recipe = ("--recipe", str(workspace / "recipe.yaml"), "eval.sets=[]",
              "train.schedule=constant", "train.warmup_ratio=0", "data.workers=1")  # fmt: skip
    with subprocess.Popen(
        [*by_launcher(launcher), *recipe, f"output_dir={folder}", "train.max_steps=600"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
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
    recipe = (*recipe, f"train.max_steps={taken + 2}")
    for place, more in ((folder, ("--resume",)), (alike, ())):
        ended = finish_forked(tmp_path, *recipe, f"output_dir={place}", *more, ranks=2)
        assert ended.code == 0, ended.out + ended.err
    assert [line["step"] for line in lines(metrics)] == list(range(taken + 2))
    assert_same_run(folder, alike)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_launched_equals_forked(
    launcher: str, finished: Path, workspace: Path, tmp_path: Path
) -> None:
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={tmp_path}/run")
    result = run(*by_launcher(launcher), *recipe)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_same_run(tmp_path / "run", finished)
