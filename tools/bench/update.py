"""Is an update as good as training anew? The demo's small decoder, without one package, then with.

    python tools/bench/update.py                # 9 results: about an hour on two idle cores
    python tools/bench/update.py --pieces 1     # one missing result, then the table
    python tools/bench/update.py --show         # the table of what is there

`old` trains the demo's recipe on the docs of all packages but one. `retrained` trains it on all
docs, for as many steps. `update` is `tools/update.py` on the old run, with the docs that were left
out as new source and a quarter of the steps. All are scored on held-out docs of the package, which
are new, and on held-out docs and pairs of the others, which are old. Results are kept in the work
folder, a file each. With `--json` the last line is `{model: {set: [value of each seed]}}`.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import yaml

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.demo_runs import RECIPE, cell, check_demo, run_logged
from bench.kept import Kept
from bench.left_out import SIZES, left_out_sizes
from bench.pieces import Pieces, parser_of
from series.scores import sets_of
from tools.evaluate import evaluate
from trainer.cli import ending_with_code
from trainer.recipe.load import load_recipe
from trainer.run_folder.finished import read_finished
from trainer.run_folder.layout import RunFolder

SHARE_OF_STEPS = 0.25
"""Steps of the update for each of theirs."""
METRICS = {"new_docs": "ndcg_at_10", "old_docs": "ndcg_at_10", "old_pairs": "spearman"}
"""What is compared on each held-out set."""
NEW, OLD = ("new_docs",), ("old_docs", "old_pairs")
MODELS = ("old", "retrained", "update")
LEAST_GAIN = 0.8
"""Of what training anew gains on the new set."""
MOST_LOST = 0.005
"""Mean over the old sets, against the old model."""

Scores = dict[str, float]
"""Held-out set to its score."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all results share."""

    demo: Path
    """Holds `base`, which `make demo` makes."""
    folder: Path
    """Data, runs and results."""
    steps: int = 240
    """Of the old run and of training anew; the default is the demo's."""
    words: tuple[str, ...] = ()
    """Further options of `tools/update.py`."""
    overrides: tuple[str, ...] = ()
    """Further changes of every recipe."""

    @property
    def kept(self) -> Kept:
        """Results that are there."""
        return Kept(self.folder / "results")

    def recipe(self, name: str) -> str:
        """The demo's recipe with the sources of `old`, of `retrained`, or the `new` one alone."""
        recipe, data = yaml.safe_load(RECIPE.read_text(encoding="utf-8")), self.folder / "data"
        recipe["model"]["path"] = str(self.demo / "base")
        recipe["data"]["root"] = str(data)
        recipe["checkpoint"] = {"every_steps": None, "keep": 1}
        sizes = left_out_sizes(data)
        new = {"name": "left_out", "task": "ir", "path": "new.ir.jsonl"}
        old = [
            {"name": "docs", "task": "ir", "path": "old.ir.jsonl"},
            {"name": "summaries", "task": "sts", "path": "old.train.sts.jsonl"},
        ]
        new_set = {"name": "new_docs", "task": "ir", "path": "new_held_out"}
        old_sets = [
            {"name": "old_docs", "task": "ir", "path": "old_held_out"},
            {"name": "old_pairs", "task": "sts", "path": "old.held_out.sts.jsonl"},
        ]
        recipe["train"]["max_steps"] = self.steps
        if name == "new":
            recipe["data"] |= {"sources": [new], "pattern": {"ir": 1}}
            del recipe["tasks"]["sts"]
            recipe["eval"] = {"sets": [new_set]}
        else:
            # rows of both files are seen equally often
            share = {"weight": sizes["new"] / sizes["old"]}
            recipe["data"]["sources"] = old if name == "old" else [*old, new | share]
            recipe["eval"] = {"sets": old_sets}
        return yaml.safe_dump(recipe, sort_keys=False)

    def run(self, name: str, seed: int) -> Path:
        """Output folder of a result."""
        return self.folder / "runs" / f"{name}-{seed}"

    def made_from(self, name: str, seed: int) -> list[str]:
        """What a result depends on besides the program."""
        if name != "update":
            return [self.recipe(name), str(seed), *self.overrides]
        return [*self.made_from("old", seed), self.recipe("new"), *self.words]


def train(name: str, seed: int, setup: Setup) -> Path:
    """A run in a process of its own, from the start; gives its model.

    Raises:
        TrainerError: if the run fails.
    """
    run = setup.run(name, seed)
    shutil.rmtree(run, ignore_errors=True)
    recipe = _written(setup, name, seed)
    words = ["--recipe", recipe, f"seed={seed}", f"output_dir={run}", *setup.overrides]
    run_logged("trainer/run.py", words, run.with_suffix(".log"), what=f"update: {name}")
    return RunFolder(run).model


def update(seed: int, setup: Setup) -> Path:
    """The update of the old run of a seed, which is trained if it is not there; gives its model.

    Raises:
        TrainerError: if it fails.
    """
    if read_finished(setup.run("old", seed)) is None:
        train("old", seed, setup)
    output = setup.run("update", seed)
    shutil.rmtree(output, ignore_errors=True)
    steps = str(round(SHARE_OF_STEPS * setup.steps))
    words = ["--run", str(setup.run("old", seed)), "--recipe", _written(setup, "new", seed)]
    words += ["--output", str(output), "--steps", steps, "--launcher", "python", *setup.words]
    changes = [f"seed={seed}", *setup.overrides]
    log = output.with_suffix(".log")
    run_logged("tools/update.py", [*words, "--", *changes], log, what="update: update")
    return output / "merged"


def _written(setup: Setup, name: str, seed: int) -> str:
    """The file of a recipe."""
    file = setup.run(name, seed).with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(setup.recipe(name), encoding="utf-8")
    return str(file)


def score(model: Path, setup: Setup) -> Scores:
    """The main metrics of a model on all held-out sets."""
    sets = [
        one
        for name in ("new", "old")
        for one in sets_of(load_recipe(_written(setup, name, 0), setup.overrides))
    ]
    found = evaluate(str(model), sets)
    return {name: found[name][metric] for name, metric in METRICS.items()}


def pieces(setup: Setup) -> Pieces[Scores]:
    """All models."""

    def work(name: str, seed: int) -> Scores:
        is_update = name == "update"
        return score(update(seed, setup) if is_update else train(name, seed, setup), setup)

    return Pieces(kept=setup.kept, variants=MODELS, made_from=setup.made_from, work=work)


def collect(setup: Setup, seeds: Sequence[int]) -> dict[str, dict[int, Scores]]:
    """Results that are there, by model and seed; what they are made from is known with the data."""
    is_there = (setup.folder / "data" / SIZES).is_file()
    return pieces(setup).there(seeds) if is_there else {}


def render(results: Mapping[str, Mapping[int, Scores]]) -> str:
    """Scores, means over seeds, and what each seed says."""
    lines = [f"{'model':10} seeds" + "".join(f"{name:>18}" for name in METRICS)]
    for name, seeds in results.items():
        cells = [cell([one[key] for one in seeds.values()], width=18) for key in METRICS]
        lines.append(f"{name:10} {len(seeds):5}" + "".join(cells))
    return "\n".join([*lines, "", *verdicts(results)])


def verdicts(results: Mapping[str, Mapping[int, Scores]]) -> Iterator[str]:
    """What the update of each seed gains and loses, beside training anew."""
    old, retrained = (results.get(name, {}) for name in ("old", "retrained"))
    for seed, scores in results.get("update", {}).items():
        if seed in old and seed in retrained:
            gain, best = (
                fmean(one[name] - old[seed][name] for name in NEW)
                for one in (scores, retrained[seed])
            )
            lost = fmean(old[seed][name] - scores[name] for name in OLD)
            holds = best > 0 and gain >= LEAST_GAIN * best and lost <= MOST_LOST
            share = f"{gain / best:.0%} of it" if best > 0 else "no share of it"
            yield (
                f"seed {seed}: training anew gains {100 * best:.2f} points on the new set, the "
                f"update {share} in {SHARE_OF_STEPS:.0%} of the steps; it loses {100 * lost:.2f} "
                f"points on the old sets: {'holds' if holds else 'DOES NOT HOLD'}"
            )


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, "runs/update", MODELS)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--steps", type=int, default=240,
                        help="of old run and retraining (default: 240)")  # fmt: skip
    parser.add_argument("--options", default="", help="more options of tools/update.py, one word")
    return parser.parse_args()


def main() -> int:
    """Make what is missing and print the table.

    Raises:
        RecipeError: without the demo's base model.
        TrainerError: if a run fails.
    """
    arguments = read_arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    setup = Setup(
        demo=arguments.demo.resolve(),
        folder=arguments.work.resolve(),
        steps=arguments.steps,
        words=tuple(shlex.split(arguments.options)),
        overrides=tuple(arguments.overrides),
    )
    check_demo(setup.demo, "docs.jsonl")
    if not arguments.show:
        pieces(setup).make(arguments, lambda: None)
    results = collect(setup, arguments.seeds)
    print(render(results) if results else "nothing there yet")
    if arguments.json:
        print(json.dumps({
            model: {key: [one[key] for one in seeds.values()] for key in METRICS}
            for model, seeds in results.items()
        }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
