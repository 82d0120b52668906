"""What a tokenizer alone takes on a share of the rows of a file, in a process of its own.

Started by `tools/bench/tokenise.py`, which sends path, tokenizer, number of the process, number of
processes, and which half of the rows. It answers with one JSON object.
"""

import json
import sys
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from trainer.data.processes import read_sent

ROWS_AT_ONCE = 256


def main() -> None:
    """Time the calls of the tokenizer, and nothing else."""
    path, tokenizer, number, processes, half = read_sent(sys.stdin.buffer)
    seconds = cpu = 0.0
    num_tokens = 0
    tokenizer.no_truncation()
    for texts in _blocks(path, number + half * processes, 2 * processes):
        began, began_cpu = time.perf_counter(), time.process_time()
        encodings = tokenizer.encode_batch_fast(texts)
        seconds += time.perf_counter() - began
        cpu += time.process_time() - began_cpu
        num_tokens += sum(len(encoding) for encoding in encodings)
    found = {"seconds": seconds, "cpu_seconds": cpu, "num_tokens": num_tokens}
    sys.stdout.write(json.dumps(found))


def _blocks(path: Path, number: int, parts: int) -> Iterator[list[str]]:
    """Texts of one part of the rows, a block of rows at a time."""
    with path.open(encoding="utf-8") as file:
        for turn in count():
            lines = list(islice(file, ROWS_AT_ONCE))
            if not lines:
                return
            if turn % parts == number:
                rows = map(json.loads, lines)
                yield [
                    text
                    for row in rows
                    for text in (row["query"], *row["positives"], *row["negatives"])
                ]


if __name__ == "__main__":
    main()
