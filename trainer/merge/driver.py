"""Run a merge: workers, progress, journal, memory bound; arithmetic and formats live elsewhere."""

import gc
import json
import logging
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.page_cache import FOLIO_BYTES, Mapping, drop_pages, file_mappings
from trainer.checkpoint.tensors import StoredTensor
from trainer.errors import CheckpointError
from trainer.merge.assets import copy_assets
from trainer.merge.blocks import Scratch
from trainer.merge.depth import at_depth
from trainer.merge.merge_plan import MergePlan, plan_id, plan_merge
from trainer.merge.output import PartialFolder, check_output
from trainer.merge.output_file import BLOCK_BYTES
from trainer.merge.record import merge_html, merge_json
from trainer.merge.settings import FORMULAS, MergeSettings, check_settings
from trainer.merge.stream import (
    MergeItem,
    Outcome,
    bytes_per_element,
    is_compiled,
    merge_tensor,
)

logger = logging.getLogger(__name__)

MAX_BLOCK = 1 << 18
"""Elements of a block for torch's operations: calls cost little, and a shared cache holds it."""
MAX_COMPILED_BLOCK = 1 << 20
"""The same for compiled loops, which cut blocks into tiles themselves."""
MIN_BLOCK = 1 << 12
"""Below this, calls cost more than arithmetic."""
INTERPRETER_BYTES = 192 << 20
"""Python, torch and numba alone; what a larger program holds besides is not the merge's."""
RESERVE_BYTES = 80 << 20
"""What allocator, threads, file tables and compiling the loops take besides the buffers."""
EXTRA_FILE_BYTES = 32 << 20
"""Room asked for config, tokenizer and reports."""

Progress = Callable[[int, int], None]
"""Gets bytes of inputs merged since the last call and bytes in all; from any thread."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did."""

    output: Path
    """Folder of the result."""
    outcomes: dict[str, Outcome]
    """By tensor."""
    input_bytes: int
    """Bytes of tensors merged, as stored."""
    output_bytes: int
    """Size of the weights' files."""
    seconds: float
    """Wall-clock time."""


@dataclass(frozen=True)
class _Job:
    plan: MergePlan
    settings: MergeSettings
    folder: PartialFolder
    scratches: "queue.SimpleQueue[Scratch]"
    stop: Event
    progress: Progress
    input_bytes: int
    num_layers: int
    passing: list[Mapping]
    """Inputs that leave the page cache behind the merge."""


class _StoppedError(Exception):
    """Ends workers after another one failed."""


def merge_checkpoints(
    base: Path,
    checkpoints: Sequence[Path],
    output: Path,
    settings: MergeSettings | None = None,
    *,
    progress: Progress = lambda done, total: None,
    resume: bool = False,
    finish: Callable[[Path], None] = lambda folder: None,
) -> MergeReport:
    """Merge checkpoints of one base into a folder that transformers can load.

    Args:
        base: the pre-trained model.
        checkpoints: folders of any understood kind.
        output: folder to make; it appears complete or not at all.
        settings: method and limits; null: the defaults.
        progress: called as bytes are merged.
        resume: continue an interrupted merge of the same inputs, settings and output.
        finish: called with the folder, all else done, before it gets its name.

    Returns:
        Norms and weights by tensor, and what it cost.

    Raises:
        CheckpointError: if inputs, settings, memory or disk do not allow it; then no output
            folder is left.
    """
    begun = time.monotonic()
    settings = settings or MergeSettings()
    check_settings(settings, len(checkpoints))
    plan = plan_merge(base, checkpoints, settings)
    block = block_size(plan, settings)
    if plan.averaged:
        logger.info(
            "%s: not in the base, so how far each checkpoint moved is not known; the mean is taken",
            ", ".join(plan.averaged),
        )
    partial = PartialFolder(
        output, plan_id(plan, settings), plan.shards, resume=resume, durable=settings.durable
    )
    check_output(output, plan.output_bytes + EXTRA_FILE_BYTES - partial.allocated_bytes())
    with partial as folder:
        with _single_threaded_torch(), _collector_at_rest(), _flushing(folder):
            outcomes = _merge_all(plan, settings, folder, block, progress)
        folder.seal()
        copy_assets(plan.assets, folder.path, plan.dtype)
        _write_reports(plan, settings, outcomes, folder.path)
        finish(folder.path)
        folder.publish()
    seconds = time.monotonic() - begun
    return MergeReport(output, outcomes, plan.input_bytes, plan.output_bytes, seconds)


def describe(
    base: Path, checkpoints: Sequence[Path], output: Path, settings: MergeSettings
) -> dict[str, Any]:
    """What a merge would do, after the same checks; nothing is written.

    Args:
        base: the pre-trained model.
        checkpoints: what to merge.
        output: folder that would be made.
        settings: method and limits.

    Returns:
        Counts and sizes for a person, by name.

    Raises:
        CheckpointError: as `merge_checkpoints` would, before it writes.
    """
    check_settings(settings, len(checkpoints))
    plan = plan_merge(base, checkpoints, settings)
    needed = plan.output_bytes + EXTRA_FILE_BYTES
    peak = peak_bytes(plan, settings)
    check_output(output, needed)
    largest = max(plan.items, key=lambda item: item.num_bytes)
    return {
        "formula": FORMULAS[settings.method],
        "tensors": len(plan.items),
        "left_out": ", ".join(plan.left_out) or "none",
        "averaged": ", ".join(plan.averaged) or "none",
        "largest": f"{largest.name} {list(largest.base.shape)}",
        "bytes_to_read": plan.input_bytes,
        "bytes_to_write": plan.output_bytes,
        "files": len(plan.shards),
        "peak_memory_bytes": peak,
        "disk_bytes": needed,
        "config_from": str(plan.assets.config or "nowhere"),
        "tokenizer_from": str(plan.assets.tokenizer or "nowhere"),
        "embedder_from": str(plan.assets.sentence or "nowhere"),
    }


def anonymous_bytes() -> int:
    """Anonymous memory of this process now, bytes; 0 where the system does not report it."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def block_size(plan: MergePlan, settings: MergeSettings) -> int:
    """Elements of a block with which the merge stays within its memory.

    Raises:
        CheckpointError: if the budget is too small for the smallest useful block.
    """
    largest = MAX_COMPILED_BLOCK if is_compiled(settings) else MAX_BLOCK
    if settings.memory_budget_bytes is None:
        return largest
    num_checkpoints = len(plan.identities) - 1
    fixed = _fixed_bytes() + settings.num_workers * _resident_bytes(plan)
    per_element = settings.num_workers * bytes_per_element(num_checkpoints, settings)
    block = (settings.memory_budget_bytes - fixed) // per_element
    if block < MIN_BLOCK:
        needed = fixed + MIN_BLOCK * per_element
        raise CheckpointError(
            f"merge: memory_budget = {settings.memory_budget_bytes:,} bytes; expected at least "
            f"{needed:,} for {settings.num_workers} workers. Raise it, or use fewer workers."
        )
    # whole blocks of the disk, in any dtype
    return min(block // BLOCK_BYTES * BLOCK_BYTES, largest)


def peak_bytes(plan: MergePlan, settings: MergeSettings) -> int:
    """Anonymous memory that a merge needs at most, bytes."""
    per_element = bytes_per_element(len(plan.identities) - 1, settings)
    worker = _resident_bytes(plan) + block_size(plan, settings) * per_element
    return _fixed_bytes() + settings.num_workers * worker


def _fixed_bytes() -> int:
    """What is held whatever the block: the program, up to its usual size, and the reserve."""
    return min(anonymous_bytes(), INTERPRETER_BYTES) + RESERVE_BYTES


def _resident_bytes(plan: MergePlan) -> int:
    return max(sum(one.resident_bytes for one in (item.base, *item.tuned)) for item in plan.items)


@contextmanager
def _single_threaded_torch() -> Iterator[None]:
    """Each worker is a thread of its own; torch's inner threads would only get in their way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Spare Python's collector what was there before; it took a third of the workers' time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _flushing(folder: PartialFolder) -> Iterator[None]:
    """Write back to disk beside the arithmetic."""
    done = Event()
    with ThreadPoolExecutor(1) as pool:
        flushing = pool.submit(folder.flush_until, done)
        try:
            yield
        finally:
            done.set()
        # a disk reports here, and only once, that it could not take what it had accepted
        flushing.result()


def _merge_all(
    plan: MergePlan,
    settings: MergeSettings,
    folder: PartialFolder,
    block: int,
    progress: Progress,
) -> dict[str, Outcome]:
    scratches: queue.SimpleQueue[Scratch] = queue.SimpleQueue()
    for _ in range(settings.num_workers):
        scratches.put(Scratch.allocate(len(plan.identities) - 1, block))
    job = _Job(plan, settings, folder, scratches, Event(), progress, plan.input_bytes,
               plan.num_layers, file_mappings() if _outgrows_memory(plan) else [])  # fmt: skip
    outcomes = _resumed(job)
    left = in_order([item for item in plan.items if item.name not in outcomes])
    with ThreadPoolExecutor(settings.num_workers, initializer=torch.set_num_threads,
                            initargs=(1,)) as pool:  # fmt: skip
        futures = {pool.submit(_merge_one, job, item): item for item in left}
        try:
            _collect(job, futures, outcomes)
        except BaseException:
            job.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {item.name: outcomes[item.name] for item in plan.items}


def in_order(items: Sequence[MergeItem]) -> list[MergeItem]:
    """The order in which tensors are merged.

    Small ones first: the system reads megabytes around them, which serve the tensors beside them
    only as long as those are still to be merged. Then the largest, so that no worker is left alone
    with one at the end; but the two largest, embedding and head, not at the same time: first both
    would be read, and then, while both are computed and written, nothing.
    """
    small = [item for item in items if item.num_bytes < FOLIO_BYTES]
    large = [item for item in items if item.num_bytes >= FOLIO_BYTES]
    large.sort(key=lambda item: -item.input_bytes)
    if len(large) > 1:
        large.insert(len(large) // 2, large.pop(1))
    return small + large


def _resumed(job: _Job) -> dict[str, Outcome]:
    """Outcomes of tensors that an interrupted merge finished."""
    outcomes = {}
    sizes = {item.name: item.input_bytes for item in job.plan.items}
    for name, entry in job.folder.finished().items():
        outcomes[name] = Outcome(tuple(entry["norms"]), tuple(entry["weights"]))
        job.progress(sizes[name], job.input_bytes)
    return outcomes


def _collect(
    job: _Job, futures: dict[Future[tuple[Outcome, str]], MergeItem], outcomes: dict[str, Outcome]
) -> None:
    """Take results as they come; the first real error ends the merge."""
    for future in as_completed(futures):
        outcome, checksum = future.result()
        name = futures[future].name
        outcomes[name] = outcome
        job.folder.note({"name": name, "checksum": checksum, **asdict(outcome)})


def _merge_one(job: _Job, item: MergeItem) -> tuple[Outcome, str]:
    writer = job.folder.writer(item.name)
    per_byte = item.input_bytes / max(1, item.num_bytes)

    def write(values: Tensor) -> None:
        if job.stop.is_set():
            raise _StoppedError
        writer.write(values)
        job.progress(round(values.numel() * values.itemsize * per_byte), job.input_bytes)

    settings = at_depth(job.settings, item.name, job.num_layers)
    scratch = job.scratches.get()
    try:
        outcome = merge_tensor(item, settings, scratch, write)
    finally:
        job.scratches.put(scratch)
    _pass_by(item, job.passing)
    return outcome, writer.finish(read_all=job.settings.hash_files)


def _outgrows_memory(plan: MergePlan) -> bool:
    """Whether the page cache cannot keep the inputs until another merge.

    Then they had better leave it at once: they would push out what others keep there, and memory
    that was just used is faster than memory that the system has to find.
    """
    return plan.input_bytes > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _pass_by(item: MergeItem, mappings: list[Mapping]) -> None:
    for one in (item.base, *item.tuned):
        for piece in one.pieces if isinstance(one, StoredTensor) else ():
            drop_pages(piece, mappings)


def _write_reports(
    plan: MergePlan, settings: MergeSettings, outcomes: dict[str, Outcome], folder: Path
) -> None:
    content = merge_json(plan, settings, outcomes, folder)
    (folder / "merge.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "merge.html").write_text(merge_html(content), encoding="utf-8")
