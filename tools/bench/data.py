"""Measure the data plane: what the batches of one rank cost as the number of ranks grows.

    python tools/bench/data.py            # 1, 8, 64 and 512 simulated ranks: about five minutes
    python tools/bench/data.py --json     # the last line is one JSON object
    python tools/bench/data.py --spare 8  # rows with more negatives than a step takes
    python tools/bench/data.py --rows 4 --ranks 1 8 --tokens 32     # a look: half a minute

Every rank trains on as many rows, so the global batch grows with the ranks. No engine runs: a
process for each rank of the first host makes its batches, from tokens made ahead, and hands them
over as a data worker does. The processes take turns at each step, those that made it for the host
first: here they may be more than the cores, and would measure how they disturb each other. Before
each step they read other memory, as the caches of a processor are filled with other things in a
run. Times are CPU seconds of a process, on average over the host; memory is that of the largest.
`cold` is the first pass over the steps, with the store out of the page cache; `warm` the fastest of
nine more.

The tokenizer splits at spaces: what it costs counts only where batches are made on the fly.
"""

import argparse
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainer.data.host_share import HostShare, new_folder, shared_folder
from trainer.data.planned import plan_of
from trainer.data.processes import Worker, send, started
from trainer.data.sources import Source, open_sources
from trainer.data.token_making import make_pieces
from trainer.data.token_store import TokenStore, open_store
from trainer.data.tokens import TextEncoder, make_encoder
from trainer.data.tokens_ahead import token_jobs
from trainer.data.worker import Ahead, Job
from trainer.recipe.ir import KIND, IrRecipe
from trainer.recipe.schema import DataRecipe, ModelRecipe, Recipe, SourceRecipe, TrainRecipe

RANK = "tools.bench.data_rank"
NUM_WARM = 9
"""Passes after the cold one."""
NUM_WORDS = 20_000
SEED = 3
MODELS = {"0.5B": 0.5e9, "1.5B": 1.5e9, "7B": 7e9, "14B": 14e9, "32B": 32e9, "70B": 70e9}
"""Parameters."""
FLOP_PER_PARAMETER = 8
"""Of a token in a step with a gradient cache: a forward without graph, a forward and a backward."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is measured."""

    rows: int
    """Queries of a rank in a step."""
    negatives: int
    """Passages of a query beside its positive."""
    tokens: int
    """Mean length of a passage; a query is a quarter as long."""
    steps: int
    """Steps of one pass."""
    ranks_per_host: int = 8
    """Ranks of a host, at most."""
    spare: int = 0
    """Negatives that a row has beyond those of a step. Where there are some, a choice is drawn for
    each row of the global batch on every rank, one by one."""

    def recipe(self, path: Path, num_ranks: int) -> Recipe:
        """The run of so many ranks."""
        settings = IrRecipe(global_batch_size=self.rows * num_ranks, negatives=self.negatives)
        source = SourceRecipe(name="bench", task=KIND.name, path=str(path))
        return Recipe(
            name="bench",
            output_dir="unused",
            model=ModelRecipe(path="unused"),
            data=DataRecipe(
                sources=(source,), tokens="ahead", workers=0, passage_max_tokens=4 * self.tokens
            ),
            tasks={KIND.name: settings},
            train=TrainRecipe(max_steps=1),
            seed=SEED,
        )


def write_rows(path: Path, work: Work, num_rows: int) -> None:
    """Rows of random words, no two texts the same; lengths as a lognormal has them."""
    rng = np.random.default_rng(SEED)
    words = np.array([f"w{i}" for i in range(NUM_WORDS)])

    def text(mean: int) -> str:
        length = max(2, int(rng.lognormal(np.log(mean) - 0.125, 0.5)))
        return " ".join(words[rng.integers(0, NUM_WORDS, min(length, 4 * mean - 1))])

    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_rows):
            row = {
                "query": text(max(4, work.tokens // 4)),
                "positives": [text(work.tokens)],
                "negatives": [text(work.tokens) for _ in range(work.negatives + work.spare)],
            }
            file.write(json.dumps(row) + "\n")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    names = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(NUM_WORDS))]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The data that all measurements share."""

    work: Work
    path: Path
    """The rows."""
    source: Source
    encoder: TextEncoder
    store: TokenStore

    def measure(self, num_ranks: int, *, ahead: bool) -> dict[str, float]:
        """Cost of a step to a rank of the first host; see `data_rank`."""
        recipe = self.work.recipe(self.path, num_ranks)
        stores = {self.source.name: self.store}
        num_local = min(num_ranks, self.work.ranks_per_host) if ahead else 1
        job = Job(
            plan=plan_of(recipe, [self.source]),
            sources={self.source.name: self.source},
            encoder=self.encoder,
            recipe=recipe,
        )
        with ExitStack() as running:
            folder = new_folder(secrets.token_hex(8))
            # held, or a run that starts meanwhile would take it for one that a killed run left
            running.enter_context(shared_folder(HostShare(folder=folder, index=0, count=num_local)))
            processes = [running.enter_context(started(RANK)) for _ in range(num_local)]
            for rank, process in enumerate(processes):
                host = HostShare(folder=folder, index=rank, count=num_local)
                of_rank = Ahead(
                    stores=stores,
                    rank=rank,
                    num_ranks=num_ranks,
                    host=host if num_local > 1 else None,
                )
                assert process.stdin is not None
                send(process.stdin, replace(job, ahead=of_rank) if ahead else job, more=True)
            return self._passes(job, processes, num_warm=NUM_WARM if ahead else 0)

    def _passes(self, job: Job, processes: Sequence[Worker], *, num_warm: int) -> dict[str, float]:
        """What a rank's step costs in the first pass, and at least in one of some more."""
        steps = range(self.work.steps)
        # what a process does once: imports, first calls
        if num_warm:
            one_pass(job, processes, "first", range(len(steps), len(steps) + 1))
        drop_pages(self.store.folder)
        cold = one_pass(job, processes, "cold", steps)
        warm = [one_pass(job, processes, f"warm{n}", steps) for n in range(num_warm)] or [cold]
        least = [min(one[rank].cpu_seconds for one in warm) for rank in range(len(processes))]
        return {
            "cold_cpu_seconds": fmean(one.cpu_seconds for one in cold) / len(steps),
            "warm_cpu_seconds": fmean(least) / len(steps),
            "own_tokens": fmean(one.tokens for one in cold) / len(steps),
            "anonymous_bytes": max(one.anonymous_bytes for one in cold),
        }


@dataclass(kw_only=True)
class Cost:
    """Of some steps to one rank."""

    cpu_seconds: float = 0.0
    tokens: int = 0
    anonymous_bytes: int = 0
    """At most, after a step."""


def one_pass(job: Job, processes: Sequence[Worker], name: str, steps: Iterable[int]) -> list[Cost]:
    """Every step by every process, one after the other; the cost to each."""
    costs = [Cost() for _ in processes]
    for step in steps:
        # the rank that makes the step for all is the first; see `Job.frame`
        _, turn = job.plan.turn(step)
        for place in range(len(processes)):
            rank = (turn + place) % len(processes)
            found = answer(processes[rank], f"{name} {step}\n")
            costs[rank].cpu_seconds += found["cpu_seconds"]
            costs[rank].tokens += found["tokens"]
            most = max(costs[rank].anonymous_bytes, found["anonymous_bytes"])
            costs[rank].anonymous_bytes = most
    return costs


def answer(process: Worker, line: str) -> dict[str, Any]:
    """What a process says to a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line.encode("ascii"))
    process.stdin.flush()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def opened(work: Work, folder: Path, num_rows: int) -> Bench:
    """Rows and their tokens, made."""
    path = folder / "rows.jsonl"
    write_rows(path, work, num_rows)
    recipe = work.recipe(path, 1)
    encoder = make_encoder(make_tokenizer(), recipe.data, pooling="last")
    sources = open_sources(recipe.data)
    (job,) = token_jobs(recipe, sources, encoder, num_ranks=1).values()
    job.folder.mkdir(parents=True)
    make_pieces(job, first=0)
    store = open_store(job.folder)
    assert store is not None, f"{job.folder} was made"
    return Bench(work=work, path=path, source=sources[0], encoder=encoder, store=store)


def drop_pages(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def report(work: Work, ranks: Sequence[int], found: dict[int, dict[str, float]],
           on_the_fly: dict[str, float]) -> dict[str, Any]:  # fmt: skip
    """The numbers of the JSON object."""
    least, most = found[min(ranks)], found[max(ranks)]
    name = f"{max(ranks)}_over_{min(ranks)}"
    return {
        "rows_per_rank": work.rows,
        "texts_per_rank": work.rows * (2 + work.negatives),
        "mean_passage_tokens": work.tokens,
        "spare_negatives": work.spare,
        "ranks_per_host": work.ranks_per_host,
        "tokens_per_cpu_second": least["own_tokens"] / least["warm_cpu_seconds"],
        "tokens_per_cpu_second_cold": least["own_tokens"] / least["cold_cpu_seconds"],
        "on_the_fly_tokens_per_cpu_second": on_the_fly["own_tokens"]
        / on_the_fly["cold_cpu_seconds"],
        f"rank_cost_{name}": most["warm_cpu_seconds"] / least["warm_cpu_seconds"],
        f"rank_cost_{name}_cold": most["cold_cpu_seconds"] / least["cold_cpu_seconds"],
        f"memory_growth_{name}": most["anonymous_bytes"] / least["anonymous_bytes"],
        "ranks": {str(number): found[number] for number in ranks},
    }


def show(numbers: dict[str, Any]) -> None:
    """The tables for a person."""
    row = "{:>6} {:>9} {:>9} {:>11} {:>11} {:>11} {:>11} {:>11}"
    print(row.format("", "", "", "a rank,", "a rank,", "a host,", "a host,", ""))
    print(row.format("ranks", "cold ms", "warm ms", "cold", "warm", "cold", "warm", "memory MiB"))
    for ranks, found in numbers["ranks"].items():
        on_host = min(int(ranks), numbers["ranks_per_host"])
        rates = [found["own_tokens"] / found[f"{name}_cpu_seconds"] for name in ("cold", "warm")]
        of_ranks = [f"{rate / 1e6:.2f}" for rate in rates]
        of_hosts = [f"{on_host * rate / 1e6:.2f}" for rate in rates]
        times = [f"{found[f'{name}_cpu_seconds'] * 1e3:.2f}" for name in ("cold", "warm")]
        memory = f"{found['anonymous_bytes'] / 2**20:.0f}"
        print(row.format(ranks, *times, *of_ranks, *of_hosts, memory))
    print("rates: million own tokens a second, each rank with a core")
    flies = numbers["on_the_fly_tokens_per_cpu_second"]
    print(f"on the fly: {flies / 1e6:.2f} million tokens/s of all ranks, by a process")
    print(f"\nUp to how many GPUs of {numbers['gpu_tflops']:g} TFLOP/s data is enough, cold, "
          f"with {numbers['workers']} workers a rank")  # fmt: skip
    row = "{:>6} {:>16} {:>14} {:>12}"
    print(row.format("model", "tokens/s a GPU", "ahead", "on the fly"))
    for name, gpus in numbers["gpus"].items():
        more = " or more" if gpus["ahead"] == max(map(int, numbers["ranks"])) else ""
        needed = f"{gpus['tokens_per_sec']:,.0f}"
        print(row.format(name, needed, f"{gpus['ahead']}{more}", gpus["on_the_fly"]))


def gpus_fed(numbers: dict[str, Any], *, gpu_tflops: float, workers: int) -> dict[str, Any]:
    """For each size of model what a GPU needs, and how many GPUs data can feed; see `show`."""
    rates = {
        int(ranks): workers
        * found["own_tokens"]
        / max(found["cold_cpu_seconds"], found["warm_cpu_seconds"])
        for ranks, found in numbers["ranks"].items()
    }
    flies, gpus = numbers["on_the_fly_tokens_per_cpu_second"], {}
    for name, parameters in MODELS.items():
        need = gpu_tflops * 1e12 / (FLOP_PER_PARAMETER * parameters)
        enough = [ranks for ranks, rate in rates.items() if rate >= need]
        gpus[name] = {
            "tokens_per_sec": need,
            "ahead": max(enough, default=0),
            "on_the_fly": int(workers * flies / need),
        }
    return {"gpu_tflops": gpu_tflops, "workers": workers, "gpus": gpus}


def main() -> None:
    """Measure, print tables, and with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=32, help="queries of a rank in a step")
    parser.add_argument("--negatives", type=int, default=7, help="hard negatives of a query")
    parser.add_argument("--spare", type=int, default=0, help="negatives that a step leaves out")
    parser.add_argument("--tokens", type=int, default=256, help="mean length of a passage")
    parser.add_argument("--steps", type=int, default=8, help="steps of one pass")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--ranks-per-host", type=int, default=8, help="GPUs of a host")
    parser.add_argument("--gpu-tflops", type=float, default=400.0, help="what a GPU achieves")
    parser.add_argument("--workers", type=int, default=2, help="data workers of a rank")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    work = Work(
        rows=args.rows,
        negatives=args.negatives,
        tokens=args.tokens,
        steps=args.steps,
        spare=args.spare,
        ranks_per_host=args.ranks_per_host,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRAINER_CACHE_DIR"] = str(Path(folder) / "cache")
        bench = opened(work, Path(folder), args.rows * max(args.ranks))
        found = {number: bench.measure(number, ahead=True) for number in args.ranks}
        on_the_fly = bench.measure(min(args.ranks), ahead=False)
    numbers = report(work, args.ranks, found, on_the_fly)
    numbers |= gpus_fed(numbers, gpu_tflops=args.gpu_tflops, workers=args.workers)
    show(numbers)
    if args.json:
        sys.stdout.write(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main()
