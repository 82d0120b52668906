"""The whole trainer in a few minutes: make data, train, compare, search. `make demo` runs this.

What is there is kept: data and base model of the same packages are not made again, an interrupted
run continues, and a finished one is only shown. `--fresh` trains anew.
"""

import argparse
import sys
import time
from pathlib import Path

# started by path, as the Makefile does
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.driver import ROOT, Driver, remove_run, table

DRIVER = Driver(
    name="demo",
    tool="tools/demo.py",
    recipe="recipes/demo.yaml",
    folder="runs/demo",
    batch_divisor=128,
)
QUESTION = "solve a sparse linear system"


def main() -> None:
    """Make, train, show, search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="remove an earlier run and train anew")
    arguments = parser.parse_args()
    started = time.monotonic()
    folder = ROOT / DRIVER.folder
    if arguments.fresh:
        remove_run(folder)
    DRIVER.run("python", "-m", "demo.data", "--output", DRIVER.folder)
    DRIVER.train(folder)
    before, after = DRIVER.evaluations(folder)
    print(f"\n{table(before, after, ('before', 'after'))}")
    model = f"{DRIVER.folder}/model"
    DRIVER.run("python", "tools/search.py", "--model", model, QUESTION)
    report = f"{DRIVER.folder}/report.html"
    print(f"\nDone in {time.monotonic() - started:.0f} s. Curves and numbers: {report}")
    print("Search for something else:")
    print(f'  .venv/bin/python tools/search.py --model {model} "read a file line by line"')


if __name__ == "__main__":
    main()
