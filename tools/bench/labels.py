"""Do labelled texts help classification and clustering? The demo's small decoder, three ways.

    python tools/bench/labels.py                # 9 runs: about an hour on two idle cores
    python tools/bench/labels.py --pieces 1     # one missing run, then the table
    python tools/bench/labels.py --show         # the table of what is there

`without` trains the demo's recipe. `own_negatives` and `supcon` add steps on summaries that are
labelled with their module (`demo/labels.py`), by the objective of that name; there are as many
steps of the other tasks. All have the same data, seeds and rate, and are scored on the demo's
held-out docs and pairs, and on held-out modules: their summaries are classified and clustered.
Results are kept in the work folder, a file each. With `--json` the last line is
`{variant: {metric: [value of each seed]}}`.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.demo_runs import RECIPE, cell, check_demo, run_logged
from bench.kept import Kept
from bench.pieces import Pieces, parser_of
from demo.labels import write_labelled
from trainer.cli import ending_with_code
from trainer.run_folder.layout import RunFolder

STEPS = {"ir": 180, "sts": 60, "labels": 180}
"""Of each task; those of the first two are the demo's."""
OWN = ("docs", "summaries")
"""Sets of the demo's recipe."""
METRICS = {
    "clusters": "v_measure", "classes": "accuracy", "docs": "ndcg_at_10", "summaries": "spearman"
}  # fmt: skip
"""What is compared on each held-out set."""
LABELS = {"global_batch_size": 64, "negatives": 3, "balance": "classes"}
"""Settings of the task, beside its objective."""
VARIANTS = ("without", "own_negatives", "supcon")
MOST_LOST = 0.01
"""How much lower a score of the other tasks may be."""

Scores = dict[str, float]
"""Held-out set to its score."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all runs share."""

    demo: Path
    """Holds `base` and `data`, which `make demo` makes."""
    folder: Path
    """Labelled rows, runs and results."""
    overrides: tuple[str, ...] = ()
    """Further changes of every variant."""

    @property
    def kept(self) -> Kept:
        """Results that are there."""
        return Kept(self.folder / "results")

    def recipe(self, variant: str) -> str:
        """The demo's recipe with the held-out sets of all variants and the source of some."""
        recipe, data = yaml.safe_load(RECIPE.read_text(encoding="utf-8")), self.folder / "data"
        recipe["model"]["path"] = str(self.demo / "base")
        recipe["data"]["root"] = str(self.demo / "data")
        recipe["checkpoint"] = {"every_steps": None, "keep": 1}
        recipe["eval"]["every_steps"] = None
        # of the demo's sets, those of its two tasks
        recipe["eval"]["sets"] = [
            *recipe["eval"]["sets"][:2],
            {"name": "classes", "task": "classification", "path": str(data / "classes")},
            {"name": "clusters", "task": "clustering", "path": str(data / "clusters.jsonl")},
        ]
        recipe["train"]["max_steps"] = STEPS["ir"] + STEPS["sts"]
        if variant != "without":
            source = {"name": "modules", "task": "labels", "path": str(data / "labels.jsonl")}
            recipe["data"]["sources"].append(source)
            turns = {task: steps // STEPS["sts"] for task, steps in STEPS.items()}
            recipe["data"]["pattern"] = turns
            recipe["tasks"]["labels"] = LABELS | {"objective": variant}
            recipe["train"]["max_steps"] += STEPS["labels"]
        return yaml.safe_dump(recipe, sort_keys=False)


def prepare(setup: Setup) -> None:
    """The labelled rows, once.

    Raises:
        RecipeError: if the demo's data and base model are not there.
    """
    check_demo(setup.demo, "docs.jsonl")
    docs = setup.demo / "data" / "docs.jsonl"
    if not (setup.folder / "data" / "labels.jsonl").is_file():
        lines = docs.read_text(encoding="utf-8").splitlines()
        print(write_labelled(setup.folder / "data", map(json.loads, lines)), file=sys.stderr)


def train(variant: str, seed: int, setup: Setup) -> Scores:
    """One run in a process of its own, and what its last evaluation says.

    Raises:
        TrainerError: if the run fails.
    """
    run = setup.folder / "runs" / f"{variant}-{seed}"
    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    recipe = run.with_suffix(".yaml")
    recipe.write_text(setup.recipe(variant), encoding="utf-8")
    words = ["--recipe", str(recipe), f"seed={seed}", f"output_dir={run}", *setup.overrides]
    run_logged("trainer/run.py", words, run.with_suffix(".log"), what=f"labels: {variant}")
    last = RunFolder(run).evaluations.read_text(encoding="utf-8").splitlines()[-1]
    sets = json.loads(last)["sets"]
    return {name: float(sets[name][metric]) for name, metric in METRICS.items()}


def pieces(setup: Setup) -> Pieces[Scores]:
    """All runs."""
    return Pieces(
        kept=setup.kept,
        variants=VARIANTS,
        made_from=lambda variant, seed: [setup.recipe(variant), str(seed), *setup.overrides],
        work=lambda variant, seed: train(variant, seed, setup),
    )


def render(results: Mapping[str, Mapping[int, Scores]]) -> str:
    """Scores, means over seeds, and what each comparison says."""
    lines = [f"{'variant':14} seeds" + "".join(f"{name:>18}" for name in METRICS.values())]
    for variant, seeds in results.items():
        cells = [cell([one[name] for one in seeds.values()], width=18) for name in METRICS]
        lines.append(f"{variant:14} {len(seeds):5}" + "".join(cells))
    return "\n".join([*lines, "", *comparisons(results)])


def comparisons(results: Mapping[str, Mapping[int, Scores]]) -> Iterator[str]:
    """Each seed of a variant beside the same seed without labelled texts."""
    without = results.get("without", {})
    for variant in VARIANTS[1:]:
        for seed, scores in results.get(variant, {}).items():
            if seed in without:
                gains = {name: scores[name] - without[seed][name] for name in METRICS}
                holds = all(
                    gain >= -MOST_LOST if name in OWN else gain > 0 for name, gain in gains.items()
                )
                shown = ", ".join(f"{METRICS[name]} {gain:+.4f}" for name, gain in gains.items())
                yield f"seed {seed}, {variant}: {shown}: {'holds' if holds else 'DOES NOT HOLD'}"


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, "runs/labels", VARIANTS)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    return parser.parse_args()


def main() -> int:
    """Make what is missing and print the table."""
    arguments = read_arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    setup = Setup(
        demo=arguments.demo.resolve(), folder=arguments.work.resolve(),
        overrides=tuple(arguments.overrides),
    )  # fmt: skip
    runs = pieces(setup)
    runs.make(arguments, lambda: prepare(setup))
    results = runs.there(arguments.seeds)
    print(render(results) if results else "nothing there yet")
    if arguments.json:
        print(json.dumps({
            variant: {METRICS[name]: [one[name] for one in seeds.values()] for name in METRICS}
            for variant, seeds in results.items()
        }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
