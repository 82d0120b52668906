"""What the commands that show a whole run share: launching, keeping, comparing, searching.

Data of the same packages is kept, an interrupted run continues, and a finished one is only shown.
It must not import torch at the top: the commands answer at once.
"""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.recipe.eval_kinds import metric_label

ROOT = Path(__file__).resolve().parents[1]
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
CPU_RANKS = 2


@dataclass(frozen=True, kw_only=True)
class Driver:
    """One command that trains a recipe and shows what came of it."""

    name: str
    """Of its target in the Makefile."""
    tool: str
    """The script behind the target."""
    recipe: str
    """Recipe, from the project's root."""
    folder: str
    """Its output folder, from the project's root."""
    batch_divisor: int
    """Greatest common divisor of the recipe's batch sizes; ranks must divide it."""

    def run(self, *command: str) -> None:
        """Run a command from the project's root, shown first; ends this one if it fails."""
        print(f"\n$ {shlex.join(command)}", flush=True)
        executable = sys.executable if command[0] == "python" else self._script(command[0])
        code = subprocess.run([executable, *command[1:]], cwd=ROOT, check=False).returncode
        if code:
            sys.stderr.write(
                f"{self.name}: {command[0]} ended with exit code {code}; see its message above.\n"
            )
            sys.exit(code)

    def _script(self, name: str) -> str:
        """A command that was installed beside this Python."""
        path = Path(sys.executable).parent / name
        if not path.exists():
            sys.stderr.write(
                f"{self.name}: {path} = missing; expected the command that comes with the package "
                f"{name}. Run `make {self.name}`, which installs it.\n"
            )
            sys.exit(2)
        return str(path)

    def num_ranks(self) -> int:
        """All GPUs that share the batches evenly, or two CPU processes."""
        import torch

        num_gpus = torch.cuda.device_count()
        if not num_gpus:
            return CPU_RANKS
        return max(n for n in range(1, num_gpus + 1) if self.batch_divisor % n == 0)

    def train(self, folder: Path) -> None:
        """Train from the start or from the newest checkpoint, unless a finished run is there.

        Args:
            folder: the output folder.
        """
        if (folder / "model").is_dir():
            print(
                f"{self.folder} holds a finished run, shown below. "
                f"`python {self.tool} --fresh` trains anew."
            )
            return
        started = (folder / "recipe.yaml").exists()
        if started:
            print(f"{self.folder} holds an interrupted run; it goes on from its newest checkpoint.")
        resume = ["--resume"] if started else []
        ranks = ["--num_accelerators", str(self.num_ranks())]
        recipe = ["--recipe", self.recipe]
        self.run("deepspeed", "--quiet", *ranks, "trainer/run.py", *recipe, *resume)

    def evaluations(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """The first and the last line of `eval.jsonl` in the output folder."""
        path = folder / "eval.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if len(lines) < 2:
            sys.stderr.write(
                f"{path}: lines = {len(lines)}; expected an evaluation before and one after the "
                f"training. Run `python {self.tool} --fresh`.\n"
            )
            sys.exit(1)
        return json.loads(lines[0]), json.loads(lines[-1])


def remove_run(folder: Path) -> None:
    """Remove a run, but not the data and base model."""
    for name in TRACES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def table(before: dict[str, Any], after: dict[str, Any], names: tuple[str, str]) -> str:
    """Each set's main metric before and after, in columns.

    Args:
        before: line of `eval.jsonl`.
        after: a later one.
        names: of the two columns, at most nine letters each.
    """
    first, last = names
    columns = f"{'held-out set':<14}{'metric':<19}{first:>10}{last:>8}{'change':>9}"
    lines = [f"After {after['step']} steps:", "", columns, "-" * len(columns)]
    for name, metrics in after["sets"].items():
        main = next(iter(metrics))
        old, new, shown = before["sets"][name][main], metrics[main], metric_label(main)
        lines.append(f"{name:<14}{shown:<19}{old:>10.3f}{new:>8.3f}{new - old:>+9.3f}")
    return "\n".join(lines)
