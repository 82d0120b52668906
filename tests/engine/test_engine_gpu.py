"""On a CUDA device: the same losses as on the CPU, and bf16 near them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.corpus import make_workspace

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(recipe: Path, folder: Path, *overrides: str, devices: str) -> list[float]:
    """Losses of a run by plain python on some devices."""
    done = subprocess.run(
        [
            sys.executable,
            "trainer/run.py",
            f"--recipe={recipe}",
            f"output_dir={folder}",
            "train.max_steps=4",
            "eval.sets=[]",
            *overrides,
        ],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": devices},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


@pytest.mark.parametrize("gather", ["step", "layer", "chunk"])
def test_losses_on_a_gpu_are_those_of_the_cpu(gather: str, tmp_path: Path) -> None:
    recipe = make_workspace(tmp_path)
    way = f"engine.gather={gather}"
    cpu = losses(recipe, tmp_path / "cpu", way, devices="")
    gpu = losses(recipe, tmp_path / "gpu", way, devices="0")
    # float32 on both; other kernels sum in another order
    assert gpu == pytest.approx(cpu, rel=1e-3)
    half = ("model.dtype=bfloat16", "engine.deepspeed=zero3_bf16.json")
    # eight bits of mantissa
    assert losses(recipe, tmp_path / "half", way, *half, devices="0") == pytest.approx(cpu, rel=0.1)
