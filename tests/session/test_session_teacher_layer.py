"""A run that trains a layer to a teacher's size: resumed, exported and merged as one without it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoint.test_checkpoint_world_size import masters
from tests.support import corpus
from tests.support.forked import finish_forked
from tests.support.ranks import run_ranks
from tests.support.sessions import cut, run_of, run_session
from trainer.checkpoint.open import open_checkpoint
from trainer.checkpoint.tensors import read_whole
from trainer.checkpoint.zero_format import read_progress, read_zero

pytestmark = [pytest.mark.dist, pytest.mark.slow]

LAYER = "teacher_layer.weight"
SIZE, HIDDEN = 20, 32
LEARNS = (
    "data.sources.ir.teacher_embeddings=teacher",
    "tasks.ir.embedding_distillation={{weight: 2, projection: true}}",
)
LORA = "model.lora={{rank: 3, alpha: 8, dropout: 0.1, targets: [q_proj, v_proj, down_proj]}}"
ZERO = [f"engine.deepspeed=zero{stage}_fp32.json" for stage in (1, 2, 3)]
RUNS = {
    "full": ([], [ZERO[0], ZERO[2], ZERO[1]]),
    "adapters": ([LORA, "checkpoint.export=both"], [ZERO[2]] * 3),
}
"""Overrides of each run, and of its three legs: to step 2, to step 4, to step 6."""


def make_teacher(folder: Path) -> None:
    """A vector of each text of `ir.jsonl`; pairs have none, so that steps go without the term."""
    rows = map(json.loads, (folder / "ir.jsonl").read_text().splitlines())
    texts = sorted(
        {text for row in rows for text in [row["query"], *row["positives"], *row["negatives"]]}
    )
    (folder / "teacher").mkdir()
    vectors = np.random.default_rng(0).normal(size=(len(texts), SIZE)).astype(np.float16)
    np.save(folder / "teacher" / "embeddings.npy", vectors)
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    (folder / "teacher" / "texts.jsonl").write_text(lines)


def leg_of(folder: Path, name: str, leg: int, place: str) -> Any:
    common, legs = RUNS[name]
    every = ("checkpoint.every_steps=2", "checkpoint.keep=9")
    return run_of(folder, place, *every, *LEARNS, *common, legs[leg])


def uninterrupted(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Each run to its end; master and moment of the layer there."""
    found = {}
    for name in RUNS:
        run = leg_of(folder, name, 0, f"whole {name}")
        start = run.session.built.engine.module.teacher_layer.weight
        assert tuple(getattr(start, "ds_shape", start.shape)) == (SIZE, HIDDEN)
        run_session(run, resume=False)
        found[name] = at_end(folder / f"whole {name}")
        run.session.built.engine.destroy()
    return found


def at_end(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Master and first moment of the layer in the last checkpoint of a run."""
    saved = folder / "checkpoints" / "step-6"
    moments = read_progress(saved).moments["exp_avg"]
    return layer_at(folder, 6), read_whole(moments[LAYER]).float()


def again(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Each run from step 4 on as many ranks; master and moment of the layer at its end."""
    found = {}
    for name in RUNS:
        run = leg_of(folder, name, 0, f"again {name}")
        run_session(run, resume=True)
        found[name] = at_end(folder / f"again {name}")
        run.session.built.engine.destroy()
    return found


def continued(rank: int, world_size: int, folder: Path, leg: int) -> list[str]:
    """Resume every run on other ranks; names of parameters that were not loaded to the bit."""
    from trainer.engine.loop import Interrupt

    wrong = []
    for name in RUNS:
        run = leg_of(folder, name, leg, f"leg {leg} {name}")
        start = run.prepare(resume=True)
        assert start == 2 * leg
        saved = folder / f"leg {leg} {name}" / "checkpoints" / f"step-{start}"
        tensors, moments = read_zero(saved).tensors, read_progress(saved).moments
        loaded = masters(run.session)
        assert LAYER in loaded
        wrong += [
            f"{name}: {parameter}"
            for parameter, (master, moment) in loaded.items()
            if not torch.equal(master, read_whole(tensors[parameter]).float())
            or not torch.equal(moment, read_whole(moments["exp_avg"][parameter]).float())
        ]
        run.fit(start, Interrupt())
        run.session.built.engine.destroy()
    return wrong


def layer_at(folder: Path, step: int) -> torch.Tensor:
    return read_whole(read_zero(folder / "checkpoints" / f"step-{step}").tensors[LAYER]).float()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    corpus.make_workspace(folder)
    make_teacher(folder)
    return folder


@pytest.fixture(scope="module")
def whole(workspace: Path) -> dict[str, Any]:
    """Master and moment of the layer at the end of each run."""
    found: dict[str, Any] = run_ranks(uninterrupted, 2, workspace, timeout_sec=600)[0]
    return found


def test_a_run_that_is_resumed_is_the_same_to_the_bit(
    whole: dict[str, Any], workspace: Path
) -> None:
    for name in RUNS:
        folder = workspace / f"whole {name}"
        first, last = layer_at(folder, 2), layer_at(folder, 6)
        assert first.shape == (SIZE, HIDDEN)
        assert not torch.equal(first, last)
        cut(folder, workspace / f"again {name}", after=4)
    for name, found in run_ranks(again, 2, workspace, timeout_sec=600)[0].items():
        assert all(map(torch.equal, found, whole[name])), name
        one, other = (
            load_file(workspace / f"{which} {name}" / "model" / "model.safetensors")
            for which in ("whole", "again")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_another_number_of_ranks_and_another_stage_go_on_with_it(
    whole: dict[str, Any], workspace: Path
) -> None:
    for leg, ranks in ((1, 1), (2, 2)):
        before = "whole" if leg == 1 else "leg 1"
        for name in RUNS:
            cut(workspace / f"{before} {name}", workspace / f"leg {leg} {name}", after=2 * leg)
        assert run_ranks(continued, ranks, workspace, leg, timeout_sec=600)[0] == []
    for name in RUNS:
        got, want = (
            layer_at(workspace / f"leg 2 {name}", 6),
            layer_at(workspace / f"whole {name}", 6),
        )
        # float32 sums in another order over four steps
        assert (got - want).norm() <= 1e-5 * want.norm(), name


def test_no_export_and_no_merge_has_it(whole: dict[str, Any], workspace: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from trainer.merge import MergeSettings, merge_checkpoints

    base = set(load_file(workspace / "model" / "model.safetensors"))
    for name in RUNS:
        folder = workspace / f"whole {name}"
        checkpoints = [folder / "checkpoints" / f"step-{step}" for step in (2, 6)]
        assert LAYER in read_zero(checkpoints[0]).tensors
        opened = open_checkpoint(checkpoints[0])
        assert set(opened.plain) == (set() if name == "adapters" else base)
        merge_checkpoints(workspace / "model", checkpoints, folder / "merged", MergeSettings())
        for output in (folder / "model", folder / "merged"):
            assert set(load_file(output / "model.safetensors")) == base
            assert not [path for path in output.rglob("*") if "Dense" in path.name]
            model = SentenceTransformer(str(output))
            assert model.encode(["w1 w2 w3"]).shape == (1, HIDDEN)
    adapter = load_file(
        workspace / "whole adapters" / "model" / "adapter" / "adapter_model.safetensors"
    )
    assert adapter
    assert all("lora_" in name for name in adapter)


def test_selfcheck_compares_its_gradient(workspace: Path) -> None:
    learns = [one.format() for one in LEARNS]
    ended = finish_forked(
        workspace, "--recipe", str(workspace / "recipe.yaml"), "--selfcheck", *learns, ranks=2
    )
    assert ended.code == 0, ended.out + ended.err
    assert f"{HIDDEN} to {SIZE} for embedding_distillation.projection" in ended.out
