"""The loss benchmark runs at a small size and ends with the object that others read."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "loss.py"


def test_small_run_ends_with_json() -> None:
    sizes = ["--queries", "64", "--plain-queries", "32", "--size", "16", "--positives", "2"]
    command = [sys.executable, str(SCRIPT), *sizes, "--device", "cpu", "--json"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    report = json.loads(result.stdout.splitlines()[-1])
    assert {"peak_above_inputs_mib", "seconds", "queries"} <= report.keys()
    # float32, and logits reach 50
    assert report["loss_difference"] < 1e-5
    assert report["gradient_difference"] < 1e-4
