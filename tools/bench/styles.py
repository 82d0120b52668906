"""Published training recipes on one small backbone and the same data, from one command.

    python tools/bench/styles.py --data ../shared/data             # hours of a CPU core
    python tools/bench/styles.py --data ../shared/data --pieces 1  # one piece, then the table
    python tools/bench/styles.py --show                            # the table of what is there

Each file of `recipes/styles/` says what it takes from a paper and what differs. All train MiniLM
(22M parameters) for as many steps of as many rows on STS-B, MedQuAD and SQuAD sentences, and are
scored on held-out parts of these and on SciFact, on which none is trained. Results are kept in the
work folder, a file each. With `--json` the last line is `{style: {set: [value of each seed]}}`; the
`seconds` of a step and the `peak_mib` of a run stand among the sets.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.ablation_data import FULL, QUICK, prepare
from bench.ablation_runs import BASE, ROOT, Scores, Setup, peak_file, score, train_ours
from bench.ablation_table import UNTOUCHED, render
from bench.kept import Kept
from bench.teacher import write_scored
from trainer.cli import ending_with_code
from trainer.recipe.model_path import resolve_model_path

RECIPES = ROOT / "recipes" / "styles"
STYLES = tuple(sorted(file.stem for file in RECIPES.glob("*.yaml")))
SCORED = ("medquad", "squad")
"""Sets whose rows also exist with the scores of the untouched backbone."""
COSTS = ("seconds", "peak_mib")
"""What is kept beside the scores: median seconds of a step, and the run's largest memory."""


def pieces(styles: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Everything that is scored, seed by seed."""
    yield UNTOUCHED, 0
    for seed in seeds:
        for style in styles:
            yield style, seed


def made_from(setup: Setup, style: str) -> list[str]:
    """What a result depends on besides the program."""
    file = RECIPES / f"{style}.yaml"
    recipe = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [recipe, *setup.overrides, repr(setup.size)]


def work(style: str, seed: int, setup: Setup) -> Scores:
    """Train and score a style, or score the backbone."""
    if style == UNTOUCHED:
        return score(Path(resolve_model_path(BASE)), setup)
    model = train_ours(style, seed, setup)
    peak = float(peak_file(model.parent).read_text(encoding="ascii"))
    lines = (model.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = sorted(json.loads(line)["seconds"] for line in lines)
    return {**score(model, setup), "seconds": seconds[len(seconds) // 2], "peak_mib": peak}


def prepare_scored(setup: Setup) -> None:
    """Training rows with the untouched backbone's scores, once."""
    for name in SCORED:
        scored = setup.data / f"{name}.scored.jsonl"
        if not scored.is_file():
            write_scored(setup.data / f"{name}.train.jsonl", scored, BASE)


def costs(results: dict[str, list[Scores]]) -> str:
    """Seconds of a step and memory of each style, the mean over seeds."""
    lines = [f"{'style':16} {'s/step':>8} {'MiB':>8}"]
    for style, seeds in results.items():
        if all(name in one for one in seeds for name in COSTS):
            seconds, peak = (fmean(one[name] for one in seeds) for name in COSTS)
            lines.append(f"{style:16} {seconds:8.2f} {peak:8.0f}")
    return "\n".join(lines)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/styles"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES)
    parser.add_argument("--pieces", type=int, help="make at most so many missing results")
    parser.add_argument("--show", action="store_true", help="make none")
    parser.add_argument("--quick", action="store_true", help="tiny sets: shows only that it runs")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of all recipes")
    return parser.parse_args()


def main() -> int:
    """Make what is missing and print the tables."""
    arguments = read_arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.disable(logging.WARNING)
    setup = Setup(
        folder=arguments.work.resolve(),
        size=QUICK if arguments.quick else FULL,
        overrides=tuple(arguments.overrides),
        recipes=RECIPES,
    )
    kept = Kept(setup.folder / "results")
    wanted = tuple(pieces(arguments.styles, arguments.seeds))
    missing = [
        (style, seed)
        for style, seed in wanted
        if kept.get(f"{style}-{seed}", made_from(setup, style)) is None
    ]
    todo = [] if arguments.show else missing[: arguments.pieces]
    if todo:
        prepare(arguments.data, setup.data, setup.size, None)
        if any(".scored." in part for style, _ in todo for part in made_from(setup, style)):
            prepare_scored(setup)
    for style, seed in todo:
        print(f"{style}, seed {seed} ...", file=sys.stderr, flush=True)
        kept.make(f"{style}-{seed}", made_from(setup, style), partial(work, style, seed, setup))
    results: dict[str, list[Scores]] = {}
    for style, seed in wanted:
        found = kept.get(f"{style}-{seed}", made_from(setup, style))
        if found is not None:
            results.setdefault(style, []).append(found)
    print(f"{render(results, setup.held_out)}\n\n{costs(results)}")
    if arguments.json:
        print(json.dumps(by_set(results)))
    return 0


def by_set(results: dict[str, list[Scores]]) -> dict[str, dict[str, list[float]]]:
    """Style to set to the values of its seeds."""
    return {
        style: {name: [one[name] for one in seeds] for name in seeds[0]}
        for style, seeds in results.items()
    }


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
