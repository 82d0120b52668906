"""The memory plans on top of the shipped recipes are what a dry run says, from configs alone."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.cli import parse_arguments
from trainer.preflight.dry_run import dry_run
from trainer.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
QWEN = {"model_type": "qwen2"}
SHAPES = {
    "Qwen/Qwen2.5-0.5B": QWEN | {"layers": 24, "sizes": (896, 4864, 151936), "heads": (14, 2)},
    "Qwen/Qwen2.5-1.5B": QWEN | {"layers": 28, "sizes": (1536, 8960, 151936), "heads": (12, 2)},
    "Qwen/Qwen2.5-7B": QWEN | {"layers": 28, "sizes": (3584, 18944, 152064), "heads": (28, 4)},
    "Qwen/Qwen2.5-14B": QWEN | {"layers": 48, "sizes": (5120, 13824, 152064), "heads": (40, 8)},
    "Qwen/Qwen2.5-32B": QWEN | {"layers": 64, "sizes": (5120, 27648, 152064), "heads": (40, 8)},
    "meta-llama/Meta-Llama-3-70B": {
        "model_type": "llama",
        "layers": 80,
        "sizes": (8192, 28672, 128256),
        "heads": (64, 8),
    },
}
"""As in the models' own config.json."""


def read_plans(file: Path) -> list[tuple[float, str, list[str]]]:
    """(peak in GiB, way to gather, arguments) of each plan on top of a recipe."""
    lines = [line.removeprefix("#").strip() for line in file.open() if line.startswith("#")]
    plans: list[tuple[float, str, list[str]]] = []
    for line in lines:
        if head := re.search(r": ([\d.]+), gather (\w+)[;,]", line):
            plans.append((float(head[1]), head[2], []))
        elif plans and re.match(r"--gpus |'?[a-z]+\.[a-z_]+=", line):
            plans[-1][2].extend(shlex.split(line))
    return plans


PLANS = [
    pytest.param(file, *plan, id=f"{file.stem}-{number}")
    for file in sorted((ROOT / "recipes").glob("*.yaml"))
    for number, plan in enumerate(read_plans(file))
]


def save_config(name: str, folder: Path) -> Path:
    """A folder that holds nothing but the config of a published model."""
    shape = SHAPES[name]
    hidden, intermediate, vocabulary = shape["sizes"]  # type: ignore[misc]
    heads, key_heads = shape["heads"]  # type: ignore[misc]
    config = {
        "model_type": shape["model_type"],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_large_recipe_has_plans() -> None:
    planned = {param.values[0].stem for param in PLANS}  # type: ignore[attr-defined]
    assert {"qwen0.5b", "qwen1.5b", "qwen7b", "qwen7b_lora"} <= planned
    assert {"qwen14b", "qwen32b", "llama70b"} <= planned


@pytest.mark.slow
@pytest.mark.parametrize(("file", "peak", "gather", "arguments"), PLANS)
def test_plan_on_top_is_that_of_a_dry_run(
    file: Path,
    peak: float,
    gather: str,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save_config(load_recipe(file).model.path, tmp_path / "model")
    told = [f"model.path={model}", f"output_dir={tmp_path}/run"]
    parsed = parse_arguments(["--recipe", str(file), "--dry-run", *arguments, *told])
    assert dry_run(load_recipe(file, parsed.overrides), parsed) == 0
    out = capsys.readouterr().out
    assert re.search(rf"gather: {gather}; fits ", out), out
    ways = re.search(r"Memory of each rank.*\n(.*)", out)
    peaks = re.search(r"\n  peak +(.*)", out)
    assert ways is not None
    assert peaks is not None
    column = ways[1].replace("gather: ", "").split().index(gather)
    # as written there
    assert float(peaks[1].split()[column]) == pytest.approx(peak, abs=0.005)


@pytest.mark.slow
def test_largest_dry_run_needs_a_config_only_as_a_command(tmp_path: Path) -> None:
    model = save_config("meta-llama/Meta-Llama-3-70B", tmp_path / "model")
    recipe = ROOT / "recipes" / "llama70b.yaml"
    arguments = next(plan for _, _, plan in read_plans(recipe) if "model.lora" in " ".join(plan))
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "trainer" / "run.py"),
            *("--recipe", str(recipe), "--dry-run", *arguments),
            *(f"model.path={model}", f"output_dir={tmp_path}/run"),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "fits" in done.stdout
