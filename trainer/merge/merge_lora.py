"""Merge adapters of one base into one adapter of the summed rank; the base's weights stay unread.

Sum of K low-rank changes: sum_k c_k B_k A_k = [c_1 B_1 .. c_K B_K] [A_1; ..; A_K], exactly, with
c_k = lambda * w_k * scale_k. Modules with fewer ranks than the largest are filled up with zeros,
so that one rank holds for all. Letters: r summed rank, m rows and n columns of a weight.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.open import (
    ADAPTER_BASE,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    base_fingerprint,
    identity,
)
from trainer.checkpoint.safetensors_file import Slot, encode_header
from trainer.checkpoint.tensors import LowRankTensor, SlicedTensor, numel
from trainer.errors import CheckpointError
from trainer.merge.arithmetic import delta_weights
from trainer.merge.assets import copy_assets, find_assets
from trainer.merge.depth import at_depth, count_layers
from trainer.merge.driver import EXTRA_FILE_BYTES, MergeReport
from trainer.merge.low_rank import equal_values, factors, is_low_rank_change, row_norms
from trainer.merge.merge_plan import Inputs, MergePlan, open_inputs, plan_id
from trainer.merge.output import PartialFolder, ShardFile, check_output
from trainer.merge.record import merge_html, merge_json
from trainer.merge.settings import MergeSettings, check_settings
from trainer.merge.spherical import SPHERICAL
from trainer.merge.stream import Outcome

PEFT_PREFIX = "base_model.model."
"""What peft puts before the base's names."""


@dataclass(frozen=True)
class Change:
    """What every checkpoint adds to one weight."""

    name: str
    """Of the weight, without wrappers."""
    shape: tuple[int, int]
    """[m, n] of B A; a transposed weight is [n, m]."""
    parts: tuple[LowRankTensor | None, ...]
    """By checkpoint; None where it has no adapter here."""

    @property
    def rank(self) -> int:
        """Summed rank."""
        return sum(_rank(part) for part in self.parts if part is not None)


def merge_adapters(
    base: Path, checkpoints: Sequence[Path], output: Path, settings: MergeSettings | None = None
) -> MergeReport:
    """Merge adapters into a peft folder.

    Args:
        base: the model they were trained on.
        checkpoints: ZeRO checkpoints of LoRA runs and peft folders.
        output: folder to make; it appears complete or not at all.
        settings: method `delta` (per tensor or row), `uniform` or `task_arithmetic`; factors are
            written in float32, or in bfloat16 if `dtype` says so.

    Returns:
        Norms and weights by adapted weight, and what it cost.

    Raises:
        CheckpointError: if inputs or settings do not allow it: DoRA, weights trained whole,
            adapters of embeddings, `ties`, a weight per element.
    """
    begun = time.monotonic()
    settings = settings or MergeSettings()
    check_settings(settings, len(checkpoints))
    _check_method(settings)
    inputs = open_inputs(base, checkpoints)
    changes = _changes(inputs)
    rank = max(change.rank for change in changes)
    shard = _lay_out(changes, rank, settings)
    plan = _plan(inputs, shard, settings)
    check_output(output, shard.num_bytes + EXTRA_FILE_BYTES)
    outcomes = {}
    with PartialFolder(
        output, plan_id(plan, settings), (shard,), resume=False, durable=settings.durable
    ) as folder:
        for change in changes:
            own = at_depth(settings, change.name, plan.num_layers)
            outcomes[change.name] = _write_change(folder, change, rank, own)
        folder.seal()
        copy_assets(plan.assets, folder.path, plan.dtype)
        _write_texts(folder.path, plan, _config(inputs, changes, rank), outcomes, settings)
        (folder.path / ADAPTER_BASE).write_text(_base_json(inputs), encoding="utf-8")
        folder.publish()
    read = sum(_stored_bytes(part) for change in changes for part in change.parts if part)
    return MergeReport(output, outcomes, read, shard.num_bytes, time.monotonic() - begun)


def _check_method(settings: MergeSettings) -> None:
    wrong = None
    if settings.method == "ties" or settings.method in SPHERICAL:
        wrong = f"method = {settings.method}"
    elif settings.method == "delta" and settings.granularity == "element":
        wrong = "granularity = element"
    if wrong:
        raise CheckpointError(
            f"merge: {wrong}; expected delta per tensor or row, uniform or task_arithmetic, whose "
            "result is of low rank. Use --as model."
        )


def _changes(inputs: Inputs) -> tuple[Change, ...]:
    """Adapted weights in the base's order."""
    changes = []
    for name, base in inputs.root.items():
        tuned = [one.get(name, base) for one in inputs.matched]
        parts = tuple(one if isinstance(one, LowRankTensor) else None for one in tuned)
        for source, one in zip(inputs.sources, tuned, strict=True):
            _check_part(source.path, name, one, base)
        if any(parts):
            rows, columns = base.shape
            flipped = any(part.transposed for part in parts if part is not None)
            changes.append(Change(name, (columns, rows) if flipped else (rows, columns), parts))
    if not changes:
        raise CheckpointError(
            f"{inputs.sources[0].path}: adapters = none; expected checkpoints of LoRA runs or peft "
            "folders. Use --as model."
        )
    return tuple(changes)


def _check_part(path: Path, name: str, one: SlicedTensor, base: SlicedTensor) -> None:
    """Refuse what no adapter can hold."""
    wrong = None
    if isinstance(one, LowRankTensor):
        if one.magnitude is not None:
            wrong = "adapted by DoRA"
        elif not name.endswith(".weight") or "embed" in name.rsplit(".", 2)[-2]:
            wrong = "an adapted embedding"
        elif not is_low_rank_change(one, base) and not equal_values(one.weight, base):
            wrong = "trained whole"
    elif one is not base and not equal_values(one, base):
        wrong = "trained whole"
    if wrong:
        raise CheckpointError(
            f"{path}: {name} = {wrong}; expected LoRA on linear maps alone. Use --as model."
        )


def _rank(part: LowRankTensor) -> int:
    """Inner size of one adapter."""
    return part.left.shape[0] if part.transposed else part.left.shape[1]


def _stored_bytes(part: LowRankTensor) -> int:
    return sum(numel(one.shape) * one.dtype.itemsize for one in (part.left, part.right))


def _file_names(change: Change) -> tuple[str, str]:
    """Names of A and B in the file."""
    module = PEFT_PREFIX + change.name.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _dtype(settings: MergeSettings) -> torch.dtype:
    """Of the factors: coefficients are folded into them, which bfloat16 would round."""
    return torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32


def _lay_out(changes: Sequence[Change], rank: int, settings: MergeSettings) -> ShardFile:
    """The file of weights."""
    dtype = _dtype(settings)
    tensors: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
    for change in changes:
        (rows, columns), (a, b) = change.shape, _file_names(change)
        tensors += [(a, dtype, (rank, columns)), (b, dtype, (rows, rank))]
    header = encode_header(tensors)
    start, slots = len(header), {}
    for name, _, shape in tensors:
        slots[name] = Slot(dtype, shape, start)
        start += slots[name].num_bytes
    return ShardFile(ADAPTER_WEIGHTS, header, slots)


def _plan(inputs: Inputs, shard: ShardFile, settings: MergeSettings) -> MergePlan:
    """What reports and the name of the unfinished folder are made from."""
    found = find_assets([one.assets for one in inputs.sources], inputs.base.assets)
    sources = (inputs.base, *inputs.sources)
    return MergePlan(
        items=(),
        left_out=(),
        shards=(shard,),
        # a config would make loaders look for whole weights beside it
        assets=replace(found, config=None),
        identities=tuple(identity(one, hash_files=settings.hash_files) for one in sources),
        dtype=_dtype(settings),
        num_layers=count_layers(inputs.root, settings),
    )


def _write_change(
    folder: PartialFolder, change: Change, rank: int, settings: MergeSettings
) -> Outcome:
    """Compute and write the factors of one weight."""
    pairs = [factors(part) if part is not None else None for part in change.parts]
    norm_K, weight_KR = _weights(pairs, settings)
    if not bool(norm_K.isfinite().all()):
        raise CheckpointError(
            f"{folder.output}: {change.name} = a change that is no finite number; expected finite "
            "factors in all checkpoints. Use older checkpoints."
        )
    joined = _joined(change.shape, pairs, weight_KR * settings.lambda_, rank)
    for name, values in zip(_file_names(change), joined, strict=True):
        writer = folder.writer(name)
        writer.write(values.to(_dtype(settings)).contiguous().view(-1))
        writer.finish(read_all=settings.hash_files)
    return Outcome(tuple(norm_K.tolist()), tuple(weight_KR.mean(1).tolist()))


def _weights(
    pairs: Sequence[tuple[Tensor, Tensor] | None], settings: MergeSettings
) -> tuple[Tensor, Tensor]:
    """Norms of the changes [K] and their weights [K, R]: R is 1, or m for a weight per row."""
    rows = next(pair for pair in pairs if pair is not None)[0].shape[0]
    still_m = torch.zeros(rows, dtype=torch.float64)
    norm_Km = torch.stack([still_m if pair is None else row_norms(*pair) for pair in pairs])
    norm_K = torch.linalg.vector_norm(norm_Km, dim=1)
    if settings.method == "delta":
        by_row = settings.granularity == "row"
        return norm_K, delta_weights(norm_Km if by_row else norm_K[:, None], settings.alpha)
    count = len(pairs)
    fixed = (1 / count,) * count
    if settings.method == "task_arithmetic":
        fixed = settings.weights or (1.0,) * count
    return norm_K, torch.tensor(fixed, dtype=torch.float64)[:, None]


def _joined(
    shape: tuple[int, int],
    pairs: Sequence[tuple[Tensor, Tensor] | None],
    factor_KR: Tensor,
    rank: int,
) -> Iterator[Tensor]:
    """A [r, n] and B [m, r] of the sum, float64, zeros behind the last rank."""
    rows, columns = shape
    a_rn = torch.zeros(rank, columns, dtype=torch.float64)
    b_mr = torch.zeros(rows, rank, dtype=torch.float64)
    used = 0
    for pair, factor_R in zip(pairs, factor_KR, strict=True):
        if pair is None:
            continue
        left, right = pair
        span = slice(used, used + right.shape[0])
        a_rn[span] = right
        b_mr[:, span] = left * factor_R[:, None]
        used = span.stop
    yield a_rn
    yield b_mr


def _config(inputs: Inputs, changes: Sequence[Change], rank: int) -> dict[str, Any]:
    """The config for peft: alpha equals the rank, as all coefficients lie in B."""
    parts = [part for change in changes for part in change.parts if part is not None]
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": str(inputs.base.path.resolve()),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": [change.name.removesuffix(".weight") for change in changes],
        "fan_in_fan_out": any(part.transposed for part in parts),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _base_json(inputs: Inputs) -> str:
    """The base's identity, as the trainer's export of an adapter records it."""
    base = {"path": str(inputs.base.path), "fingerprint": base_fingerprint(inputs.base)}
    return json.dumps(base, indent=2)


def _write_texts(
    folder: Path,
    plan: MergePlan,
    config: Mapping[str, Any],
    outcomes: Mapping[str, Outcome],
    settings: MergeSettings,
) -> None:
    """Write the config for peft and the reports."""
    content = merge_json(plan, settings, outcomes, folder)
    for name, text in (
        (ADAPTER_CONFIG, json.dumps(config, indent=2)),
        ("merge.json", json.dumps(content, indent=1)),
        ("merge.html", merge_html(content)),
    ):
        (folder / name).write_text(text, encoding="utf-8")
