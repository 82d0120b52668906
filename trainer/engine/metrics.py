"""Where the numbers of a run go: a JSON line a step, TensorBoard, a progress bar."""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trainer.engine.step import StepReport


def step_line(report: StepReport) -> dict[str, Any]:
    """The object that `metrics.jsonl` holds for a step."""
    return {
        "step": report.step,
        "task": report.task,
        "source": report.source,
        "loss": report.loss,
        **report.terms,
        "learning_rate": report.learning_rate,
        "grad_norm": report.grad_norm,
        "tokens": report.tokens,
        "padding_fraction": report.padding_fraction,
        "num_chunks": report.num_chunks,
        "masked_pairs": report.masked_pairs,
        "seconds": report.seconds,
        "tokens_per_sec": report.tokens_per_sec,
    }


def keep_lines_before(path: Path, step: int) -> None:
    """Drop the lines of a JSONL file whose `step` is not below `step`, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
    partial = path.with_name(f".{path.name}")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


class Recorder:
    """Takes the numbers of a run and keeps none: what all ranks but the first use."""

    def __enter__(self) -> Self:
        """Start."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish."""
        self.close()

    def step(self, report: StepReport) -> None:
        """Record a step."""

    def evaluation(self, steps_done: int, results: dict[str, dict[str, float]]) -> None:
        """Record an evaluation made after `steps_done` steps."""

    def close(self) -> None:
        """Close what is open."""


class FileRecorder(Recorder):
    """Writes files, TensorBoard events, a progress bar and, when asked, Weights & Biases."""

    def __init__(
        self, folder: Path, *, start: int, stop: int, wandb_project: str | None, name: str
    ) -> None:
        """Open files in the run's folder; lines of steps from `start` on are dropped first."""
        keep_lines_before(folder / "metrics.jsonl", start)
        keep_lines_before(folder / "eval.jsonl", start)
        self._steps = (folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        self._evals = (folder / "eval.jsonl").open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        self._bar = tqdm(
            total=stop, initial=start, unit="step", file=sys.stdout, mininterval=1.0, smoothing=0.1
        )
        self._last_loss: dict[str, str] = {}
        self._wandb = _start_wandb(wandb_project, name, folder)

    def close(self) -> None:
        """Close files and trackers."""
        self._bar.close()
        self._board.close()
        self._steps.close()
        self._evals.close()
        if self._wandb is not None:
            self._wandb.finish()

    def step(self, report: StepReport) -> None:
        """Record a step."""
        line = step_line(report)
        self._steps.write(json.dumps(line) + "\n")
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        self._send({f"{report.task}/{key}": value for key, value in numbers.items()}, report.step)
        self._last_loss[report.task] = f"{report.loss:.4f}"
        self._bar.set_postfix({**self._last_loss, "tok/s": f"{report.tokens_per_sec:,.0f}"})
        self._bar.update()

    def evaluation(self, steps_done: int, results: dict[str, dict[str, float]]) -> None:
        """Record an evaluation made after `steps_done` steps."""
        self._evals.write(json.dumps({"step": steps_done, "sets": results}) + "\n")
        flat = {f"eval/{s}/{m}": v for s, metrics in results.items() for m, v in metrics.items()}
        self._send(flat, steps_done)

    def _send(self, numbers: dict[str, float], step: int) -> None:
        """To TensorBoard and, when asked, Weights & Biases."""
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)


def _start_wandb(project: str | None, name: str, folder: Path) -> Any:
    """A Weights & Biases run, or None where the recipe names no project."""
    if project is None:
        return None
    import wandb

    # the same folder is the same run, also when it is resumed
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return wandb.init(project=project, name=name, dir=str(folder), resume="allow", id=identity)
