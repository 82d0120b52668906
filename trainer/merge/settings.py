"""What a merge may be asked to do, with defaults and bounds; it must not read files."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from trainer.errors import CheckpointError
from trainer.merge.spherical import SPHERICAL

Method = Literal["delta", "uniform", "task_arithmetic", "ties", "slerp", "multi_slerp", "karcher"]
Granularity = Literal["tensor", "row", "element"]
OutputDType = Literal["base", "bfloat16", "float32"]

FORMULAS: dict[str, str] = {
    "delta": "theta0 + lambda * sum_k w_k D_k, w_k = ||D_k||^alpha / sum_j ||D_j||^alpha",
    "uniform": "theta0 + lambda * sum_k D_k / K",
    "task_arithmetic": "theta0 + lambda * sum_k weight_k D_k",
    "ties": "theta0 + lambda * mean of the trimmed D_k that agree with the elected sign",
    "slerp": "(sin((1 - t) omega) theta1 + sin(t omega) theta2) / sin(omega)",
    "multi_slerp": "n sum_k v_k u_k / ||sum_k v_k u_k||, n = sum_k v_k ||theta_k||",
    "karcher": "n m, m = argmin sum_k angle(m, u_k)^2 on the sphere, n = mean of ||theta_k||",
}
"""D_k = theta_k - theta0, u_k = theta_k / ||theta_k||, omega the angle of theta1 to theta2, v_k
the weights over their sum; per tensor; K checkpoints."""


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """How checkpoints are merged."""

    method: Method = "delta"
    """Formula, see `FORMULAS`."""
    granularity: Granularity = "tensor"
    """What shares one weight under `delta`: a tensor, a row of its first dimension, a scalar."""
    alpha: float = 1.0
    """Exponent of the norms under `delta`; 0 is uniform, below 0 favours who moved least."""
    lambda_: float = 1.0
    """Factor of the summed change."""
    by_depth: tuple[float, ...] | None = None
    """Factors of lambda from the first layer to the last, see `trainer.merge.depth`; null: 1."""
    weights: tuple[float, ...] | None = None
    """One per checkpoint, for `task_arithmetic` and `multi_slerp`; null: 1 each."""
    t: float | None = None
    """Where `slerp` stops on the way from the first checkpoint, 0, to the second, 1; null: 0.5."""
    density: float = 0.2
    """Share of each tensor's largest changes that `ties` keeps, in (0, 1]."""
    dtype: OutputDType = "base"
    """Dtype of floating-point tensors; `base` keeps that of each tensor of the base."""
    max_shard_bytes: int = 5_000_000_000
    """Largest file of weights, bytes; a tensor is never split."""
    memory_budget_bytes: int | None = 512 << 20
    """Largest anonymous memory of the process, bytes; null: no bound, for use inside a program."""
    num_workers: int = 3
    """Threads, at least 1; one computes while another waits for the disk."""
    allow_nan: bool = False
    """Go on where a checkpoint holds NaN or infinity."""
    durable: bool = True
    """Wait until the result is on disk before it gets its name, so that a power cut corrupts none.
    Weights are then written past the page cache where the file system can."""
    hash_files: bool = False
    """Read inputs and outputs whole, for their sha256 and to compare with what was written."""

    def recorded(self) -> dict[str, Any]:
        """What decides the result, for `merge.json` and for telling merges apart."""
        left_out = ("memory_budget_bytes", "num_workers", "durable", "hash_files")
        return {name.rstrip("_"): one for name, one in asdict(self).items() if name not in left_out}


def check_settings(settings: MergeSettings, num_checkpoints: int) -> None:
    """Refuse settings out of bounds or at odds with each other.

    Args:
        settings: as asked.
        num_checkpoints: how many will be merged.

    Raises:
        CheckpointError: naming the first that is wrong.
    """
    choices = {"method": Method, "granularity": Granularity, "dtype": OutputDType}
    for name, kind in choices.items():
        if getattr(settings, name) not in get_args(kind):
            raise _wrong(name, getattr(settings, name), f"one of {', '.join(get_args(kind))}")
    for name in ("alpha", "lambda_"):
        if not math.isfinite(getattr(settings, name)):
            raise _wrong(name.rstrip("_"), getattr(settings, name), "a finite number")
    _check_by_depth(settings)
    if not 0 < settings.density <= 1:
        raise _wrong("density", settings.density, "a number above 0 and at most 1")
    if settings.num_workers < 1:
        raise _wrong("workers", settings.num_workers, "at least 1")
    if settings.max_shard_bytes < 1:
        raise _wrong("max_shard_size", settings.max_shard_bytes, "at least 1 byte")
    if num_checkpoints < 1:
        raise _wrong("checkpoints", num_checkpoints, "at least 1")
    _check_weights(settings, num_checkpoints)
    _check_spherical(settings, num_checkpoints)


def _check_spherical(settings: MergeSettings, num_checkpoints: int) -> None:
    """Methods that fuse whole tensors, and what belongs to them alone."""
    if settings.t is not None:
        if settings.method != "slerp":
            raise _wrong("t", settings.t, "none, unless method is slerp")
        if not 0 <= settings.t <= 1:
            raise _wrong("t", settings.t, "a number from 0 to 1")
    if settings.method not in SPHERICAL:
        return
    if settings.method == "slerp" and num_checkpoints != 2:
        raise _wrong("checkpoints", num_checkpoints, "2 for slerp; multi_slerp takes any number")
    if settings.lambda_ != 1:
        raise _wrong("lambda", settings.lambda_, f"1, as {settings.method} has no change to scale")
    if settings.by_depth is not None:
        raise _wrong("by_depth", settings.by_depth, f"none, as {settings.method} has no lambda")
    if settings.granularity != "tensor":
        raise _wrong("granularity", settings.granularity, f"tensor, as {settings.method} turns it")


def _check_by_depth(settings: MergeSettings) -> None:
    """Numbers, at least one."""
    values = settings.by_depth
    if values is not None and not (values and all(map(math.isfinite, values))):
        raise _wrong("by_depth", values, "one finite number or more")


def _check_weights(settings: MergeSettings, num_checkpoints: int) -> None:
    if settings.weights is None:
        return
    if settings.method not in ("task_arithmetic", "multi_slerp"):
        expected = "none, unless method is task_arithmetic or multi_slerp"
        raise _wrong("weights", settings.weights, expected)
    if len(settings.weights) != num_checkpoints:
        raise _wrong("weights", settings.weights, f"{num_checkpoints}, one per checkpoint")
    if not all(map(math.isfinite, settings.weights)):
        raise _wrong("weights", settings.weights, "finite numbers")
    if settings.method == "multi_slerp" and sum(settings.weights) == 0:
        raise _wrong("weights", settings.weights, "numbers whose sum is not 0")


def _wrong(name: str, found: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"merge: {name} = {found}; expected {wanted}. Change it.")
