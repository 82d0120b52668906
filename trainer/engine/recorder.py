"""Where the numbers of a run go: a JSON line a step, TensorBoard, a progress bar."""

import contextlib
import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trainer.engine.step import StepReport
from trainer.run_folder.layout import RunFolder

logger = logging.getLogger(__name__)

EvalResults = Mapping[str, Mapping[str, float]]
"""Metrics by set."""
EvalGeometry = Mapping[str, Mapping[str, Any]]
"""Numbers and histograms of each set's vectors."""
EvalDims = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Metrics by set and by size of the prefix."""
NO_DIMS: EvalDims = {}
"""Of a model whose whole vectors alone are scored."""
NO_MEANS: Mapping[str, float] = {}
"""Of scores that are not averaged."""


def step_line(report: StepReport) -> dict[str, Any]:
    """The object that `metrics.jsonl` holds for a step; null where a number is not finite."""
    numbers = {
        "step": report.step,
        "task": report.task,
        "source": report.source,
        "loss": report.loss,
        **report.terms,
        "learning_rate": report.learning_rate,
        "grad_norm": report.grad_norm,
        "skipped_steps": report.skipped_steps,
        "tokens": report.tokens,
        "padding_fraction": report.padding_fraction,
        "shared_fraction": report.shared_fraction,
        "num_chunks": report.num_chunks,
        "masked_pairs": report.masked_pairs,
        "seconds": report.seconds,
        "tokens_per_sec": report.tokens_per_sec,
    }
    return {key: _finite(value) for key, value in numbers.items()}


def _finite(value: Any) -> Any:
    """The value, or None for a float that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def keep_lines_before(path: Path, step: int) -> None:
    """Drop the lines of a JSONL file whose `step` is not below `step`, and damaged ones."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] < step:
                kept.append(line + b"\n")
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(b"".join(kept))
    os.replace(partial, path)


class LineFile:
    """A JSONL file that survives a full disk: lines wait in memory until there is room again.

    Whole lines only: what a failed write left of a line is cut off.
    """

    def __init__(self, path: Path) -> None:
        """Open for appending."""
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._waiting: list[bytes] = []

    def add(self, line: dict[str, Any]) -> None:
        """Append an object, or keep it for the next time where the disk is full."""
        was_full = bool(self._waiting)
        self._waiting.append(json.dumps(line).encode() + b"\n")
        fault = self._write()
        if fault is not None and not was_full:
            logger.warning(
                "%s: not written (%s); training goes on, and its lines wait in memory until there "
                "is room",
                self.path,
                fault.strerror,
            )
        if fault is None and was_full:
            logger.warning("%s: written again, no line is missing", self.path)

    def close(self) -> None:
        """Write what waits, say so if it is lost, and close."""
        if self._waiting and (fault := self._write()) is not None:
            lost = len(self._waiting)
            logger.error("%s: %d lines are lost (%s)", self.path, lost, fault.strerror)
        self._file.close()

    def _write(self) -> OSError | None:
        """Write the lines that wait, as far as it goes; returns what stopped it."""
        try:
            while self._waiting:
                self._write_line(self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            return error
        return None

    def _write_line(self, line: bytes) -> None:
        """Write a line whole or not at all."""
        end = os.fstat(self._file.fileno()).st_size
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:
            self._file.truncate(end)
            raise


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

    def evaluation(
        self,
        steps_done: int,
        results: EvalResults,
        geometry: EvalGeometry,
        dims: EvalDims = NO_DIMS,
        means: Mapping[str, float] = NO_MEANS,
    ) -> None:
        """Record an evaluation made after `steps_done` steps."""

    def mining(self, step: int, found: dict[str, Any]) -> None:
        """Record the numbers of a mining of a source before a step."""

    def close(self) -> None:
        """Close what is open."""


class FileRecorder(Recorder):
    """Writes files, TensorBoard events, a progress bar and, when asked, Weights & Biases."""

    def __init__(
        self, folder: Path, *, start: int, stop: int, wandb_project: str | None, name: str
    ) -> None:
        """Open files in the run's folder; lines of what comes after `start` steps go first.

        The evaluation made after `start` steps is of the parameters that the run goes on with.
        """
        run = RunFolder(folder)
        keep_lines_before(run.metrics, start)
        keep_lines_before(run.evaluations, start + 1 if start else 0)
        keep_lines_before(run.minings, start)
        self._minings = run.minings
        self._steps = LineFile(run.metrics)
        self._evals = LineFile(run.evaluations)
        self._board: SummaryWriter | None = SummaryWriter(str(run.tensorboard), purge_step=start)
        self._bar = tqdm(
            total=stop, initial=start, unit="step", file=sys.stdout, mininterval=1.0, smoothing=0.1
        )
        self._last_loss: dict[str, str] = {}
        self._wandb = _start_wandb(wandb_project, name, folder)
        self._put_back(folder / "eval.jsonl", start)

    def _put_back(self, file: Path, start: int) -> None:
        """Show TensorBoard the evaluation of `start` again, which its purge hides with the rest."""
        for line in map(json.loads, file.read_bytes().splitlines()):
            if line["step"] == start:
                self._to_board(_flat(line), start)

    def close(self) -> None:
        """Close files and trackers."""
        with contextlib.suppress(OSError):
            self._bar.close()
        self._steps.close()
        self._evals.close()
        with self._losing_board():
            if self._board is not None:
                self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def step(self, report: StepReport) -> None:
        """Record a step."""
        line = step_line(report)
        self._steps.add(line)
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        self._send({f"{report.task}/{key}": value for key, value in numbers.items()}, report.step)
        self._last_loss[report.task] = f"{report.loss:.4f}"
        # a terminal that is gone, or a log on a full disk, costs the bar only
        with contextlib.suppress(OSError):
            self._bar.set_postfix({**self._last_loss, "tok/s": f"{report.tokens_per_sec:,.0f}"})
            self._bar.update()

    def evaluation(
        self,
        steps_done: int,
        results: EvalResults,
        geometry: EvalGeometry,
        dims: EvalDims = NO_DIMS,
        means: Mapping[str, float] = NO_MEANS,
    ) -> None:
        """Record an evaluation made after `steps_done` steps."""
        line = {"step": steps_done, "sets": _finite_values(results), "geometry": geometry}
        if means:
            line["means"] = {name: _finite(value) for name, value in means.items()}
        if dims:
            line["dims"] = {
                name: _finite_values({str(dim): metrics for dim, metrics in by_dim.items()})
                for name, by_dim in dims.items()
            }
        self._evals.add(line)
        self._send(_flat(line), steps_done)

    def mining(self, step: int, found: dict[str, Any]) -> None:
        """Record the numbers of a mining of a source before a step."""
        lines = LineFile(self._minings)
        lines.add({"step": step, **found})
        lines.close()
        numbers = {key: one for key, one in found.items() if isinstance(one, int | float)}
        self._send({f"mined/{found['source']}/{key}": one for key, one in numbers.items()}, step)

    def _send(self, numbers: dict[str, float], step: int) -> None:
        """To TensorBoard and, when asked, Weights & Biases."""
        self._to_board(numbers, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def _to_board(self, numbers: dict[str, float], step: int) -> None:
        """To TensorBoard."""
        with self._losing_board():
            for name, value in numbers.items():
                if self._board is not None:
                    self._board.add_scalar(name, value, step)

    @contextlib.contextmanager
    def _losing_board(self) -> Iterator[None]:
        """Give up the event files where they cannot be written; all numbers are in the JSONL."""
        try:
            yield
        except OSError as error:
            self._board = None
            logger.warning(
                "tensorboard: events are no longer written (%s); metrics.jsonl goes on",
                error.strerror,
            )


def _finite_values(results: EvalResults) -> dict[str, dict[str, float | None]]:
    """Metrics by set or size, None for what JSON has no number for."""
    return {
        name: {metric: _finite(value) for metric, value in metrics.items()}
        for name, metrics in results.items()
    }


def _flat(line: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of an evaluation by one name each; what is not defined is NaN.

    Args:
        line: as `eval.jsonl` has it; `dims` is there where prefixes were scored, `means` where
            scores were averaged.
    """
    places = dict(line.get("sets", {}))
    for name, by_dim in line.get("dims", {}).items():
        places |= {f"{name}/dim_{dim}": metrics for dim, metrics in by_dim.items()}
    values = {
        f"eval/{place}/{metric}": value
        for place, metrics in places.items()
        for metric, value in metrics.items()
    } | {f"eval/{name}": value for name, value in line.get("means", {}).items()}
    return {name: math.nan if value is None else value for name, value in values.items()}


def _start_wandb(project: str | None, name: str, folder: Path) -> Any:
    """A Weights & Biases run, or None where the recipe names no project."""
    if project is None:
        return None
    import wandb

    # the same folder is the same run, also when it is resumed
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return wandb.init(project=project, name=name, dir=str(folder), resume="allow", id=identity)
