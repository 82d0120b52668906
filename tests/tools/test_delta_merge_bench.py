"""The benchmark runs and prints what others read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_prints_its_keys_and_leaves_nothing(tmp_path: Path) -> None:
    script = str(ROOT / "tools" / "bench" / "merge.py")
    options = ["--sizes", "tiny", "--parts", "merge", "io", "--repeats", "1", "--json"]

    done = subprocess.run(
        [sys.executable, script, "--workdir", str(tmp_path), *options],
        capture_output=True,
        text=True,
        check=True,
    )

    result = json.loads(done.stdout.splitlines()[-1])
    assert result["io_ratio"] > 0
    assert 0 < result["peak_anon_bytes"] < 512 << 20
    assert not list(tmp_path.iterdir())
