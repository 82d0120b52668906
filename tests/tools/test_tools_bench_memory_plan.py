"""The memory plan keeps its promise where it is measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench.memory_plan import AUTO, BUDGETS, TOLERANCE

ROOT = Path(__file__).parents[2]


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stage", "gather"), [("full", 3, "layer"), ("lora", 1, "step")])
def test_plan_is_near_the_measured_peak(kind: str, stage: int, gather: str, tmp_path: Path) -> None:
    ways = ("--sizes", "small", "--kinds", kind, "--stages", str(stage), "--gathers", gather)
    command = [sys.executable, "tools/bench/memory_plan.py", *ways, "--json"]
    command.append(f"--rows={tmp_path / 'rows.jsonl'}")
    first, again = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stdout + first.stderr
    rows = json.loads(first.stdout.splitlines()[-1])["rows"]
    # what was measured is not measured again, or the bytes would differ
    assert json.loads(again.stdout.splitlines()[-1])["rows"] == rows
    assert [row["budget"] for row in rows] == [*map(str, BUDGETS), AUTO]
    assert rows[-1]["kept"] > 0
    for row in rows:
        assert row["predicted"] == pytest.approx(row["measured"], rel=TOLERANCE)
