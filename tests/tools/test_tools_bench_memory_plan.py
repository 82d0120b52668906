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
def test_plan_is_near_the_measured_peak(kind: str, stage: int, gather: str) -> None:
    ways = ("--sizes", "small", "--kinds", kind, "--stages", str(stage), "--gathers", gather)
    command = [sys.executable, "tools/bench/memory_plan.py", *ways, "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["budget"] for row in rows] == [
        *map(str, BUDGETS),
        *([AUTO] if gather == "step" else []),
    ]
    for row in rows:
        assert row["predicted"] == pytest.approx(row["measured"], rel=TOLERANCE)
