"""Search over a large corpus takes no more memory than over a small one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus() -> None:
    sizes = ("30000", "240000")
    command = [sys.executable, "tools/bench/search_memory.py", "--sizes", *sizes, "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    peaks = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
    # all vectors of the larger corpus would take 352 MiB; allocators round by some
    assert peaks["240000"] < peaks["30000"] + 48 * MIB
    assert peaks["240000"] < 128 * MIB
