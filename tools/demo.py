"""The whole trainer in a few minutes: make data, train, compare, search. `make demo` runs this.

What is there is kept: data and base model of the same packages are not made again, an interrupted
run continues, and a finished one is only shown. `--fresh` trains anew.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "recipes/demo.yaml"
FOLDER = "runs/demo"
TRACES = (
    "recipe.yaml",
    "metrics.jsonl",
    "eval.jsonl",
    "checkpoints",
    "model",
    "report.html",
    "tensorboard",
    "search_cache",
)
"""What a run leaves in its folder, beside data and base model."""
SHOWN_METRICS = {"ndcg_at_10": "nDCG@10", "spearman": "Spearman"}
BATCH_DIVISOR = 128
"""Greatest common divisor of the recipe's batch sizes; ranks must divide it."""
CPU_RANKS = 2
QUESTION = "solve a sparse linear system"


def run(*command: str) -> None:
    """Run a command from the project's root, shown first; ends the demo if it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    executable = sys.executable if command[0] == "python" else _script(command[0])
    code = subprocess.run([executable, *command[1:]], cwd=ROOT, check=False).returncode
    if code:
        sys.stderr.write(
            f"demo: {command[0]} ended with exit code {code}; see its message above.\n"
        )
        sys.exit(code)


def _script(name: str) -> str:
    """A command that was installed beside this Python."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        sys.stderr.write(
            f"demo: {path} = missing; expected the command that comes with the package {name}. "
            "Run `make demo`, which installs it.\n"
        )
        sys.exit(2)
    return str(path)


def num_ranks() -> int:
    """All GPUs that share the batches evenly, or two CPU processes."""
    import torch

    num_gpus = torch.cuda.device_count()
    if not num_gpus:
        return CPU_RANKS
    return max(n for n in range(1, num_gpus + 1) if BATCH_DIVISOR % n == 0)


def train(folder: Path) -> None:
    """Train from the start or from the newest checkpoint, unless a finished run is there."""
    if (folder / "model").is_dir():
        print(
            f"{FOLDER} holds a finished run, shown below. "
            "`python tools/demo.py --fresh` trains anew."
        )
        return
    started = (folder / "recipe.yaml").exists()
    if started:
        print(f"{FOLDER} holds an interrupted run; it goes on from its newest checkpoint.")
    resume = ["--resume"] if started else []
    ranks = str(num_ranks())
    run(
        "deepspeed",
        "--quiet",
        "--num_accelerators",
        ranks,
        "trainer/run.py",
        "--recipe",
        RECIPE,
        *resume,
    )


def remove_run(folder: Path) -> None:
    """Remove a run, but not the data and base model."""
    for name in TRACES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def evaluations(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first and the last line of `eval.jsonl`."""
    path = folder / "eval.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if len(lines) < 2:
        sys.stderr.write(
            f"{path}: lines = {len(lines)}; expected an evaluation before and one after the "
            "training. Run `python tools/demo.py --fresh`.\n"
        )
        sys.exit(1)
    return json.loads(lines[0]), json.loads(lines[-1])


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Each set's main metric before and after, in columns."""
    columns = f"{'held-out set':<14}{'metric':<12}{'before':>8}{'after':>8}{'change':>9}"
    lines = [f"After {after['step']} steps:", "", columns, "-" * len(columns)]
    for name, metrics in after["sets"].items():
        for metric, shown in SHOWN_METRICS.items():
            if metric in metrics:
                old, new = before["sets"][name][metric], metrics[metric]
                lines.append(f"{name:<14}{shown:<12}{old:>8.3f}{new:>8.3f}{new - old:>+9.3f}")
    return "\n".join(lines)


def main() -> None:
    """Make, train, show, search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="remove an earlier run and train anew")
    arguments = parser.parse_args()
    started = time.monotonic()
    folder = ROOT / FOLDER
    if arguments.fresh:
        remove_run(folder)
    run("python", "-m", "demo.data", "--output", FOLDER)
    train(folder)
    print(f"\n{table(*evaluations(folder))}")
    run("python", "tools/search.py", "--model", f"{FOLDER}/model", QUESTION)
    print(f"\nDone in {time.monotonic() - started:.0f} s. Curves and numbers: {FOLDER}/report.html")
    print("Search for something else:")
    print(f'  .venv/bin/python tools/search.py --model {FOLDER}/model "read a file line by line"')


if __name__ == "__main__":
    main()
