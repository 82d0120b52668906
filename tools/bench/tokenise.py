"""Measure making tokens ahead: its time over what the tokenizer alone takes, and its memory.

    python tools/bench/tokenise.py                     # 5 GB of rows: about an hour on two cores
    python tools/bench/tokenise.py --megabytes 200     # a look
    python tools/bench/tokenise.py --json              # the last line is one JSON object

Rows are of made-up words, drawn as words of a language are (Zipf), and are written to a temporary
folder. `alone` are processes, one a core, that parse the rows and time nothing but the calls of the
tokenizer on their texts; its time is that of the slowest of them. One half of the rows comes before
all else and one after it, as machines change their speed. `ahead` is the whole time from a source
that is open to a finished store, with as many processes. Opening the source (each row is checked,
and the file hashed) happens once for a file; `opened and ahead` is both. Memory is the largest that
is no file's, of any process, while all this lasts.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.memory import anonymous_bytes, children
from trainer.data.processes import send, started
from trainer.data.sources import open_sources
from trainer.data.token_making import Making
from trainer.data.token_store import TokenStore
from trainer.data.tokens import make_encoder
from trainer.data.tokens_ahead import token_jobs
from trainer.recipe.ir import KIND, IrRecipe
from trainer.recipe.schema import DataRecipe, ModelRecipe, Recipe, SourceRecipe, TrainRecipe

ALONE = "tools.bench.tokenise_alone"
SEED = 3
NUM_WORDS = 100_000
VOCABULARY = 32_000
EXPONENT = 1.1
"""Of Zipf's law."""
PASSAGES = 4
"""Of a row, the first of them positive."""
WORDS = 160
"""Of a passage, on average; a query has an eighth."""
ROWS_AT_ONCE = 512
SAMPLE_SEC = 0.2
MB, MIB = 10**6, 2**20


def words() -> np.ndarray:
    """Distinct made-up words, short ones first."""
    choice, found = random.Random(SEED), dict[str, None]()
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (1 + number) for number in range(len(letters))]
    while len(found) < NUM_WORDS:
        length = 2 + len(found) * 8 // NUM_WORDS + choice.randrange(3)
        found["".join(choice.choices(letters, weights, k=length))] = None
    return np.array([*found])


def write_rows(path: Path, num_bytes: int) -> int:
    """Rows of a file of about so many bytes; their number."""
    rng, vocabulary, num_rows = np.random.default_rng(SEED), words(), 0
    chances = np.cumsum(1 / np.arange(1, NUM_WORDS + 1) ** EXPONENT)
    chances /= chances[-1]
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            lengths = rng.integers(WORDS // 2, WORDS * 3 // 2, (ROWS_AT_ONCE, PASSAGES))
            lengths = np.concatenate([lengths[:, :1] // 8, lengths], axis=1)
            drawn = vocabulary[np.searchsorted(chances, rng.random(int(lengths.sum())))].tolist()
            ends = np.cumsum(lengths).tolist()
            spans = zip(ends, lengths.reshape(-1).tolist(), strict=True)
            texts = [" ".join(drawn[end - size : end]) for end, size in spans]
            for first in range(0, len(texts), 1 + PASSAGES):
                query, positive, *negatives = texts[first : first + 1 + PASSAGES]
                row = {"query": query, "positives": [positive], "negatives": negatives}
                file.write(json.dumps(row) + "\n")
            num_rows += ROWS_AT_ONCE
    return num_rows


def trained_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the first rows, as decoders have it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(8 * ROWS_AT_ONCE), strict=False)]
    backend.train_from_iterator((row["positives"][0] for row in rows), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def time_alone(path: Path, tokenizer: Tokenizer, processes: int, half: int) -> dict[str, float]:
    """Seconds of the tokenizer's calls: of the slowest process, and processor time of all."""
    with ExitStack() as running:
        workers = [running.enter_context(started(ALONE)) for _ in range(processes)]
        for number, worker in enumerate(workers):
            assert worker.stdin is not None
            send(worker.stdin, (path, tokenizer, number, processes, half))
        found = [json.load(worker.stdout) for worker in workers if worker.stdout]
    return {
        "seconds": max(one["seconds"] for one in found),
        "cpu_seconds": sum(one["cpu_seconds"] for one in found),
        "num_tokens": sum(one["num_tokens"] for one in found),
    }


class Watched(Thread):
    """Samples the memory that is no file's of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended, self.most_bytes = Event(), 0

    def run(self) -> None:
        """Until it is told to end."""
        while not self.ended.wait(SAMPLE_SEC):
            family = (os.getpid(), *children(os.getpid()))
            self.most_bytes = max(self.most_bytes, *map(anonymous_bytes, family))


def measure(folder: Path, megabytes: int, model: str | None, processes: int) -> dict[str, float]:
    """The numbers of the JSON object."""
    path = folder / "rows.jsonl"
    num_rows = write_rows(path, megabytes * MB)
    tokenizer = AutoTokenizer.from_pretrained(model) if model else trained_tokenizer(path)
    source = SourceRecipe(name="bench", task=KIND.name, path=str(path))
    recipe = Recipe(
        name="bench",
        output_dir="unused",
        model=ModelRecipe(path="unused"),
        data=DataRecipe(sources=(source,), tokens="ahead", passage_max_tokens=64 * WORDS),
        tasks={KIND.name: IrRecipe(global_batch_size=2, negatives=1)},
        train=TrainRecipe(max_steps=1),
    )
    encoder = make_encoder(tokenizer, recipe.data, pooling="last")
    before = time_alone(path, encoder.tokenizer, processes, 0)
    watched, store = Watched(), None
    watched.start()
    began = time.perf_counter()
    sources = open_sources(recipe.data)
    opening = time.perf_counter() - began
    (job,) = token_jobs(recipe, sources, encoder, num_ranks=1).values()
    began, cpu = time.perf_counter(), _cpu_of_children()
    with Making(job, processes) as making:
        while store is None:
            store = making.advance(1.0)
    ahead, cpu = time.perf_counter() - began, _cpu_of_children() - cpu
    watched.ended.set()
    watched.join()
    after = time_alone(path, encoder.tokenizer, processes, 1)
    alone = {name: before[name] + after[name] for name in before}
    return _report(path, num_rows, opening, alone, ahead, cpu, watched.most_bytes, store)


def _report(path: Path, num_rows: int, opening: float, alone: dict[str, float], ahead: float,
            cpu: float, most_bytes: int, store: TokenStore) -> dict[str, float]:  # fmt: skip
    return {
        "file_bytes": path.stat().st_size,
        "rows": num_rows,
        "tokens": int(store.arrays["lengths"].sum(dtype=np.int64)),
        "alone_tokens": alone["num_tokens"],
        "opening_seconds": opening,
        "alone_seconds": alone["seconds"],
        "ahead_seconds": ahead,
        "ahead_over_alone": ahead / alone["seconds"],
        "opened_over_alone": (opening + ahead) / alone["seconds"],
        "alone_cpu_seconds": alone["cpu_seconds"],
        "ahead_cpu_seconds": cpu,
        "ahead_over_alone_cpu": cpu / alone["cpu_seconds"],
        "peak_anonymous_bytes": most_bytes,
    }


def _cpu_of_children() -> float:
    """Processor time of children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def show(found: dict[str, float]) -> None:
    """The table for a person."""
    print(f"{found['file_bytes'] / 1e9:.2f} GB, {found['rows']:,.0f} rows, "
          f"{found['tokens'] / 1e6:,.0f} million tokens")  # fmt: skip
    row = "{:<20} {:>10} {:>12}"
    print(row.format("", "seconds", "CPU seconds"))
    print(row.format("tokenizer alone", f"{found['alone_seconds']:.1f}",
                     f"{found['alone_cpu_seconds']:.1f}"))  # fmt: skip
    print(row.format("tokens ahead", f"{found['ahead_seconds']:.1f}",
                     f"{found['ahead_cpu_seconds']:.1f}"))  # fmt: skip
    print(row.format("opened and ahead", f"{found['opening_seconds'] + found['ahead_seconds']:.1f}",
                     ""))  # fmt: skip
    print(row.format("ratio", f"{found['ahead_over_alone']:.3f}",
                     f"{found['ahead_over_alone_cpu']:.3f}"))  # fmt: skip
    print(row.format("ratio, opened too", f"{found['opened_over_alone']:.3f}", ""))
    print(f"largest process: {found['peak_anonymous_bytes'] / MIB:.0f} MiB of memory")


def main() -> None:
    """Measure, print a table, and with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--megabytes", type=int, default=5000, help="size of the file")
    add("--model", help="folder with the tokenizer; a byte-level BPE is trained if absent")
    add("--processes", type=int, default=len(os.sched_getaffinity(0)), help="one a core if absent")
    add("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        free = shutil.disk_usage(folder).free
        if free < 2 * args.megabytes * MB:
            raise SystemExit(
                f"{folder}: {free / MB:.0f} MB free; expected {2 * args.megabytes} MB for rows and "
                "tokens. Set TMPDIR to a folder on a larger disk."
            )
        os.environ["TRAINER_CACHE_DIR"] = str(Path(folder) / "cache")
        found = measure(Path(folder), args.megabytes, args.model, args.processes)
    show(found)
    if args.json:
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
