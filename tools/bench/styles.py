"""Published training recipes on one small backbone and the same data, from one command.

    python tools/bench/styles.py --data ../shared/data             # hours of a CPU core
    python tools/bench/styles.py --data ../shared/data --pieces 1  # one piece, then the table
    python tools/bench/styles.py --show                            # the table of what is there
    python tools/bench/styles.py --part terms                      # CoDiEmb without each term
    python tools/bench/styles.py --part batches                    # CoDiEmb with other batch sizes

Each file of `recipes/styles/` says what it takes from a paper and what differs. All train MiniLM
(22M parameters) for as many steps of as many rows on STS-B, MedQuAD and SQuAD sentences, and are
scored on held-out parts of these and on SciFact, on which none is trained. Results are kept in the
work folder, a file each. With `--json` the last line is `{style: {set: [value of each seed]}}`; the
`seconds` of a step and the `peak_mib` of a run stand among the sets.

The other parts take apart what the style of CoDiEmb is made of: the terms of its losses, as the
paper's table of components does, and the rows of a step, at the same number of steps.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.ablation_data import FULL, QUICK, prepare
from bench.ablation_runs import BASE, ROOT, Scores, Setup, peak_file, score, train_ours
from bench.ablation_table import UNTOUCHED, by_set, render
from bench.kept import Kept
from bench.teacher import write_scored
from trainer.cli import ending_with_code
from trainer.errors import RecipeError
from trainer.recipe.model_path import resolve_model_path

RECIPES = ROOT / "recipes" / "styles"
STYLES = tuple(sorted(file.stem for file in RECIPES.glob("*.yaml")))
SCORED = ("medquad", "squad")
"""Sets whose rows also exist with the scores of the untouched backbone."""
COSTS = ("seconds", "peak_mib")
"""What is kept beside the scores: median seconds of a step, and the run's largest memory."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table."""

    name: str
    style: str
    """Its recipe."""
    overrides: tuple[str, ...] = ()
    """What it changes in the recipe."""

    def made_from(self, setup: Setup) -> list[str]:
        """What its results depend on besides the program."""
        file = RECIPES / f"{self.style}.yaml"
        recipe = file.read_text(encoding="utf-8") if file.is_file() else ""
        return [recipe, *setup.overrides, *self.overrides, repr(setup.size)]


BACKBONE = Variant(name=UNTOUCHED, style=UNTOUCHED)
WHOLE = Variant(name="codiemb", style="codiemb")
SIMILARITY_TERMS = ("pearson", "rank_kl", "pro")
"""Those that the style gives a weight."""


def without(*terms: str) -> tuple[str, ...]:
    """Overrides that take terms of similarity away."""
    return tuple(f"tasks.sts.weights.{term}=0" for term in terms)


def of_codiemb(name: str, *overrides: str) -> Variant:
    """The style of CoDiEmb with changes."""
    return Variant(name=name, style="codiemb", overrides=overrides)


PARTS: dict[str, tuple[Variant, ...]] = {
    "styles": tuple(Variant(name=style, style=style) for style in STYLES),
    "terms": (
        WHOLE,
        *(of_codiemb(f"without {term}", *without(term)) for term in SIMILARITY_TERMS),
        *(
            of_codiemb(f"{term} alone", *without(*(one for one in SIMILARITY_TERMS if one != term)))
            for term in SIMILARITY_TERMS
        ),
        of_codiemb("with InfoNCE, middle", "tasks.sts.weights.infonce=1"),
        of_codiemb("no hard negatives", "tasks.ir.negatives=0"),
    ),
    "batches": tuple(
        of_codiemb(
            f"{rows} rows",
            f"tasks.ir.global_batch_size={rows}",
            f"tasks.sts.global_batch_size={rows}",
        )
        for rows in (8, 16, 32, 64, 128)
    ),
}
"""Variants of each table."""


def pieces(variants: Sequence[Variant], seeds: Sequence[int]) -> Iterator[tuple[Variant, int]]:
    """Everything that is scored, seed by seed."""
    yield BACKBONE, 0
    for seed in seeds:
        for variant in variants:
            yield variant, seed


def work(variant: Variant, seed: int, setup: Setup) -> Scores:
    """Train and score a variant, or score the backbone."""
    if variant == BACKBONE:
        return score(Path(resolve_model_path(BASE)), setup)
    setup = replace(setup, overrides=(*setup.overrides, *variant.overrides))
    model = train_ours(variant.style, seed, setup)
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
    lines = [f"{'style':20} {'s/step':>8} {'MiB':>8}"]
    for style, seeds in results.items():
        if all(name in one for one in seeds for name in COSTS):
            seconds, peak = (fmean(one[name] for one in seeds) for name in COSTS)
            lines.append(f"{style:20} {seconds:8.2f} {peak:8.0f}")
    return "\n".join(lines)


def choose(variants: Sequence[Variant], names: Sequence[str] | None) -> list[Variant]:
    """The variants of these names; all, if none is named.

    Raises:
        RecipeError: if there is no such variant.
    """
    known = [variant.name for variant in variants]
    for name in names or ():
        if name not in known:
            raise RecipeError(
                f"--styles: {name!r}; expected some of {', '.join(map(repr, known))}."
            )
    return [variant for variant in variants if names is None or variant.name in names]


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/styles"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--part", choices=PARTS, default="styles", help="which table")
    parser.add_argument("--styles", nargs="+", metavar="NAME", help="some rows of the table only")
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
    chosen = choose(PARTS[arguments.part], arguments.styles)
    wanted = tuple(pieces(chosen, arguments.seeds))
    missing = [
        (variant, seed)
        for variant, seed in wanted
        if kept.get(f"{variant.name}-{seed}", variant.made_from(setup)) is None
    ]
    todo = [] if arguments.show else missing[: arguments.pieces]
    if todo:
        prepare(arguments.data, setup.data, setup.size, None)
        if any(".scored." in part for variant, _ in todo for part in variant.made_from(setup)):
            prepare_scored(setup)
    for variant, seed in todo:
        print(f"{variant.name}, seed {seed} ...", file=sys.stderr, flush=True)
        made_from = variant.made_from(setup)
        kept.make(f"{variant.name}-{seed}", made_from, partial(work, variant, seed, setup))
    results: dict[str, list[Scores]] = {}
    for variant, seed in wanted:
        found = kept.get(f"{variant.name}-{seed}", variant.made_from(setup))
        if found is not None:
            results.setdefault(variant.name, []).append(found)
    print(f"{render(results, setup.held_out)}\n\n{costs(results)}")
    if arguments.json:
        print(json.dumps(by_set(results)))
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
