"""Memory of exact search over random vectors: a million documents against a hundred thousand.

    python tools/bench/search_memory.py          # a minute or two on one CPU core
    python tools/bench/search_memory.py --json   # the last line is one JSON object

The corpus is made block by block, as an evaluation embeds it, and never exists whole: 1.5 GB for a
million vectors of 384 numbers. Memory is the peak of anonymous pages above those before the search.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.memory import Peak, anonymous_bytes
from trainer.cli import ending_with_code

SIZES = (100_000, 1_000_000)
NUM_QUERIES, WIDTH, BLOCK, DEPTH = 100, 384, 8_192, 100
"""Queries, numbers of a vector, documents of a block, documents kept for each query."""


def blocks(num_documents: int) -> Iterator[object]:
    """Random vectors, a block at a time [n, WIDTH]."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for start in range(0, num_documents, BLOCK):
        yield torch.randn(min(BLOCK, num_documents - start), WIDTH, generator=generator)


def measure(num_documents: int) -> dict[str, float]:
    """Peak memory, bytes, and time, seconds, of one search."""
    import torch

    from trainer.evaluation.search import top_k_streamed

    queries = torch.randn(NUM_QUERIES, WIDTH, generator=torch.Generator().manual_seed(1))
    with Peak() as memory:
        begun = time.monotonic()
        _, rows = top_k_streamed(queries, blocks(num_documents), DEPTH)  # type: ignore[arg-type]
        assert int(rows.max()) < num_documents
        seconds = time.monotonic() - begun
    return {"peak_bytes": float(memory.above), "seconds": seconds}


def main() -> int:
    """Search both corpora and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs=2, default=SIZES, metavar=("SMALL", "LARGE"))
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    small, large = arguments.sizes
    # the first search loads libraries and buffers that the others reuse
    measure(min(small, 2 * BLOCK))
    results = {size: measure(size) for size in (small, large)}
    print(f"{'documents':>10}  {'peak, MiB':>9}  {'seconds':>7}  {'all vectors, MiB':>16}")
    for size, one in results.items():
        whole = size * WIDTH * 4 / 2**20
        print(
            f"{size:10,}  {one['peak_bytes'] / 2**20:9.1f}  {one['seconds']:7.1f}  {whole:16,.0f}"
        )
    growth = results[large]["peak_bytes"] / results[small]["peak_bytes"]
    print(
        f"memory in use now: {anonymous_bytes() / 2**20:,.0f} MiB; growth of the peak: {growth:.2f}"
    )
    if arguments.json:
        peaks = {str(size): one["peak_bytes"] for size, one in results.items()}
        print(json.dumps({"peak_bytes": peaks, "memory_growth": growth}))
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
