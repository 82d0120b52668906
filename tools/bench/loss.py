"""Measure the tiled InfoNCE: memory and time of a large batch, equality with the plain form.

    python tools/bench/loss.py            # 16,384 queries of 1,024: half an hour on two CPU cores
    python tools/bench/loss.py --json     # the last line is one JSON object
    python tools/bench/loss.py --parts tiled    # without the composed loss: two minutes

The composed loss has all four directions, a margin of the own positive, hardness and three
Matryoshka prefixes at once; it is set beside its parts, each alone.

Memory is what forward and backward need above the inputs and their gradients: on a CPU anonymous
pages of the process, sampled; on a GPU what torch's allocator gave.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.memory import Peak
from trainer.objectives.contrastive import info_nce
from trainer.objectives.prefixes import Prefix

MIB = 2**20
TEMPERATURE = 0.02
PARTS = ("tiled", "composed")
COMPOSED_NEGATIVES = 4
DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one measurement."""

    num_queries: int
    """G."""
    size: int
    """D."""
    num_positives: int
    """P."""
    num_negatives: int
    """N per query."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One forward and backward."""

    loss: float
    """In nats."""
    grads: tuple[Tensor, ...]
    """To queries and passages."""
    seconds: float
    """Wall clock."""
    cpu_seconds: float
    """Of all threads of the process: what others do on the machine is not in it."""
    peak_mib: float
    """Above inputs and gradients."""


Loss = Callable[[Tensor, Tensor, int, Tensor], Tensor]


def tiled(queries: Tensor, passages: Tensor, num_positives: int, masked: Tensor) -> Tensor:
    """The loss as the trainer computes it."""
    return info_nce(
        queries, passages, num_positives=num_positives, temperature=TEMPERATURE, mask=masked
    )


def composed(queries: Tensor, passages: Tensor, num_positives: int, masked: Tensor) -> Tensor:
    """All that stands in a denominator at once, on the whole vector, its half and its quarter."""
    prefixes = [Prefix(queries.shape[1] // part) for part in (1, 2, 4)]
    return composed_of(DIRECTIONS, prefixes)(queries, passages, num_positives, masked)


def composed_of(directions: Sequence[str], prefixes: Sequence[Prefix]) -> Loss:
    """The composed loss with some of its directions and prefixes."""

    def loss(queries: Tensor, passages: Tensor, num_positives: int, masked: Tensor) -> Tensor:
        return info_nce(
            queries, passages, num_positives=num_positives, temperature=TEMPERATURE, mask=masked,
            margin=0.1, margin_of="own", hardness=5.0, directions=directions, prefixes=prefixes,
        )  # fmt: skip

    return loss


def plain(queries: Tensor, passages: Tensor, num_positives: int, masked: Tensor) -> Tensor:
    """The same loss with all similarities held at once."""
    num_groups, num_slots, _ = passages.shape
    logits = queries @ passages.flatten(0, 1).T / TEMPERATURE
    rows = torch.arange(num_groups, device=logits.device)
    own = masked[:, 1] // num_slots == masked[:, 0]
    others = masked[~(own & (masked[:, 1] % num_slots < num_positives))].to(logits.device)
    logits = logits.index_put((others[:, 0], others[:, 1]), logits.new_tensor(float("-inf")))
    logits = logits.view(num_groups, num_groups, num_slots)
    negatives = logits[:, :, num_positives:].flatten(1)
    slots = [torch.cat([logits[:, :, j], negatives], 1) for j in range(num_positives)]
    return torch.stack([cross_entropy(slot, rows) for slot in slots]).mean()


def make_inputs(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Unit-norm queries [G, D], passages [G, P + N, D] near them, and one masked pair per query."""
    generator = torch.Generator().manual_seed(0)
    num_slots = shape.num_positives + shape.num_negatives
    queries = torch.randn(shape.num_queries, shape.size, generator=generator)
    passages = torch.randn(shape.num_queries, num_slots, shape.size, generator=generator)
    passages[:, : shape.num_positives].add_(queries[:, None], alpha=0.2)
    for values in (queries, passages):
        values.div_(torch.linalg.vector_norm(values, dim=-1, keepdim=True))
    columns = torch.randint(
        0, shape.num_queries * num_slots, (shape.num_queries,), generator=generator
    )
    masked = torch.stack([torch.arange(shape.num_queries), columns], dim=1)
    inputs = (queries.to(device).requires_grad_(), passages.to(device).requires_grad_())
    return *inputs, masked


def measure(loss: Loss, shape: Shape, device: torch.device) -> Measurement:
    """One forward and backward of `loss` on fresh inputs."""
    queries, passages, masked = make_inputs(shape, device)
    grad_bytes = sum(t.numel() * t.element_size() for t in (queries, passages))
    gc.collect()
    with Peak() as memory:
        start, cpu_start = time.perf_counter(), time.process_time()
        value = loss(queries, passages, shape.num_positives, masked)
        grads = torch.autograd.grad(value, (queries, passages))
        result = value.item()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Measurement(
        loss=result, grads=grads, seconds=seconds, cpu_seconds=cpu_seconds,
        peak_mib=(memory.above - grad_bytes) / MIB,
    )  # fmt: skip


def relative_difference(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Largest difference of an entry, relative to the largest entry of its tensor."""
    pairs = zip(ours, theirs, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def compare(shape: Shape, device: torch.device) -> dict[str, float]:
    """Both forms at a size where the plain one fits."""
    ours, theirs = measure(tiled, shape, device), measure(plain, shape, device)
    return {
        "plain_queries": shape.num_queries,
        "loss_difference": abs(ours.loss - theirs.loss),
        "gradient_difference": relative_difference(ours.grads, theirs.grads),
        "tiled_seconds": ours.seconds,
        "plain_seconds": theirs.seconds,
        "tiled_peak_mib": ours.peak_mib,
        "plain_peak_mib": theirs.peak_mib,
    }


def compare_parts(shape: Shape, device: torch.device) -> dict[str, float]:
    """Time of the composed loss, and the sum of what each block of each prefix needs alone.

    A block beside `query_to_doc` is what a loss of both needs above `query_to_doc` alone.
    """
    first, *others = DIRECTIONS
    alone = 0.0
    for part in (1, 2, 4):
        prefix = [Prefix(shape.size // part)]
        base = _least_seconds(composed_of([first], prefix), shape, device)
        both = [_least_seconds(composed_of([first, x], prefix), shape, device) for x in others]
        alone += base + sum(seconds - base for seconds in both)
    seconds = _least_seconds(composed, shape, device)
    return {
        "composed_queries_timed": shape.num_queries,
        "composed_seconds": seconds,
        "blocks_alone_seconds": alone,
        "composed_over_blocks": seconds / alone,
    }


def _least_seconds(loss: Loss, shape: Shape, device: torch.device) -> float:
    """Of three runs; on a CPU those of the process alone."""
    runs = [measure(loss, shape, device) for _ in range(3)]
    return min(run.cpu_seconds if device.type == "cpu" else run.seconds for run in runs)


def main() -> None:
    """Measure, print a table, and with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--queries", type=int, default=16_384, help="G of the large run")
    parser.add_argument("--plain-queries", type=int, default=2_048, help="G of the comparison")
    parser.add_argument("--size", type=int, default=1_024, help="D")
    parser.add_argument("--positives", type=int, default=1, help="P")
    parser.add_argument("--negatives", type=int, default=2, help="N of the plain and tiled forms")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    device = torch.device(args.device)

    def sized(num_queries: int, num_positives: int, num_negatives: int) -> Shape:
        return Shape(
            num_queries=num_queries, size=args.size, num_positives=num_positives,
            num_negatives=num_negatives,
        )  # fmt: skip

    report: dict[str, float] = {"queries": args.queries}
    if "tiled" in args.parts:
        report |= compare(sized(args.plain_queries, args.positives, args.negatives), device)
        big = measure(tiled, sized(args.queries, args.positives, args.negatives), device)
        report |= {"seconds": big.seconds, "loss": big.loss, "peak_above_inputs_mib": big.peak_mib}
        show(report, args.size)
    if "composed" in args.parts:
        report |= compare_parts(sized(args.plain_queries, 1, COMPOSED_NEGATIVES), device)
        big = measure(composed, sized(args.queries, 1, COMPOSED_NEGATIVES), device)
        report |= {"composed_peak_bytes": big.peak_mib * MIB, "composed_large_seconds": big.seconds}
        show_composed(report, args.size)
    if args.json:
        sys.stdout.write(json.dumps(report) + "\n")


def show(report: dict[str, float], size: int) -> None:
    """The table for a person."""
    row = "{:<10} {:>9} {:>6} {:>12} {:>10}"
    print(row.format("form", "queries", "size", "peak MiB", "seconds"))
    runs = [
        ("plain", "plain_queries", "plain_peak_mib", "plain_seconds"),
        ("tiled", "plain_queries", "tiled_peak_mib", "tiled_seconds"),
        ("tiled", "queries", "peak_above_inputs_mib", "seconds"),
    ]
    for name, queries, peak, seconds in runs:
        numbers = (f"{report[peak]:.1f}", f"{report[seconds]:.2f}")
        print(row.format(name, report[queries], size, *numbers))
    print(f"loss: largest difference {report['loss_difference']:.1e} nats")
    print(f"gradients: largest difference {report['gradient_difference']:.1e} of the largest entry")


def show_composed(report: dict[str, float], size: int) -> None:
    """The composed loss beside its parts."""
    print(
        f"composed: {report['composed_seconds']:.2f} s at {report['composed_queries_timed']} "
        f"queries of {size}, {report['composed_over_blocks']:.2f} times the sum of its blocks one "
        f"by one ({report['blocks_alone_seconds']:.2f} s)"
    )
    print(
        f"composed: {report['composed_peak_bytes'] / MIB:.1f} MiB above inputs and gradients, "
        f"{report['composed_large_seconds']:.1f} s at {report['queries']} queries"
    )


if __name__ == "__main__":
    main()
