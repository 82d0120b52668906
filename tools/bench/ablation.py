"""Compare CoDiEmb with what it replaces, on a small real model, from one command.

    python tools/bench/ablation.py --data ../shared/data             # hours of a CPU core
    python tools/bench/ablation.py --data ../shared/data --pieces 1  # one piece, then the table
    python tools/bench/ablation.py --show                            # the table of what is there
    python tools/bench/ablation.py --left-out news --variants codiemb sentence_transformers

MiniLM (22M parameters) is trained for 300 steps of batch 32 on STS-B, MedQuAD and SQuAD sentences,
in the ways of `recipes/ablations/` and with sentence-transformers, and scored on held-out parts of
these and on SciFact, which no variant trained on. `--left-out` keeps a genre of STS-B out of
training and scores it by itself: similarity out of domain. Results are kept in the work folder, a
file each, so that the table can be made in pieces; a piece is done anew when its recipe changes.
With `--json` the last line is `{variant: {set: [value of each seed]}}`.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.ablation_data import FULL, GENRES, QUICK, prepare
from bench.ablation_runs import (
    BASE,
    RECIPES,
    Scores,
    Setup,
    checkpoints_of,
    merge,
    score,
    train_ours,
    train_peer,
)
from bench.ablation_table import UNTOUCHED, Results, by_set, render
from trainer.cli import ending_with_code
from trainer.errors import RecipeError
from trainer.merge.settings import Granularity
from trainer.recipe.model_path import resolve_model_path

TRAINED = ("codiemb", "sentence_transformers", "cosent_infonce", "mixed_infonce")
"""Variants that are trained, the most telling first."""
DELTA_MERGES: tuple[tuple[float, Granularity], ...] = (
    (1.0, "tensor"),
    (-1.0, "tensor"),
    (4.0, "tensor"),
    (1.0, "row"),
    (1.0, "element"),
)
"""Alpha and granularity of each merge by deviations."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One model to make and score."""

    variant: str
    """Row of the table."""
    seed: int
    make: Callable[[], Path]
    """Trains or merges; returns the model's folder."""

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.variant}-{self.seed}"


def pieces(setup: Setup, seeds: Sequence[int]) -> Iterator[Piece]:
    """All models of the table, seed by seed, in the order in which they are made."""
    yield Piece(variant=UNTOUCHED, seed=0, make=lambda: Path(resolve_model_path(BASE)))
    for seed in seeds:
        for variant in TRAINED:
            yield Piece(variant=variant, seed=seed, make=_trainer(variant, seed, setup))
        yield from _merges(setup, seed)


def _trainer(variant: str, seed: int, setup: Setup) -> Callable[[], Path]:
    """How a variant is trained."""
    if variant == "sentence_transformers":
        return lambda: train_peer(seed, setup)
    return lambda: train_ours(variant, seed, setup)


def _merges(setup: Setup, seed: int) -> Iterator[Piece]:
    """The checkpoints of a CoDiEmb run, each alone and fused in several ways."""
    run = setup.run_folder("codiemb", seed)
    output = setup.folder / f"merged-{seed}"
    yield Piece(
        variant="codiemb + uniform",
        seed=seed,
        make=lambda: merge(checkpoints_of(run), output, method="uniform"),
    )
    for alpha, granularity in DELTA_MERGES:
        yield Piece(
            variant=f"codiemb + delta, alpha {alpha:g}, {granularity}",
            seed=seed,
            make=_delta_merge(run, output, alpha, granularity),
        )
    for share in range(1, 5):
        yield Piece(
            variant=f"codiemb after {20 * share}% of the steps",
            seed=seed,
            make=_single(run, output, share - 1),
        )


def _delta_merge(
    run: Path, output: Path, alpha: float, granularity: Granularity
) -> Callable[[], Path]:
    return lambda: merge(
        checkpoints_of(run), output, method="delta", alpha=alpha, granularity=granularity
    )


def _single(run: Path, output: Path, index: int) -> Callable[[], Path]:
    """A checkpoint as a model: a merge of it alone."""
    return lambda: merge([checkpoints_of(run)[index]], output, method="uniform")


def choose(everything: Sequence[Piece], variants: Sequence[str] | None) -> list[Piece]:
    """The pieces of some variants and the backbone's; of all, if none is named.

    Raises:
        RecipeError: if there is no such variant.
    """
    names = dict.fromkeys(piece.variant for piece in everything)
    for variant in variants or ():
        if variant not in names:
            raise RecipeError(
                f"--variants: {variant!r}; expected some of {', '.join(map(repr, names))}."
            )
    wanted = {*variants, UNTOUCHED} if variants else set(names)
    return [piece for piece in everything if piece.variant in wanted]


def digest(piece: Piece, setup: Setup) -> str:
    """What a result depends on besides this program: recipes, overrides and data."""
    name = piece.variant.split()[0]
    file = RECIPES / f"{'codiemb' if name == 'sentence_transformers' else name}.yaml"
    recipe = file.read_text(encoding="utf-8") if file.is_file() else ""
    text = json.dumps([piece.name, recipe, setup.overrides, asdict(setup.size), setup.left_out])
    return hashlib.sha256(text.encode()).hexdigest()


def known(piece: Piece, setup: Setup) -> Scores | None:
    """The kept result of a piece, if it is still right."""
    file = setup.folder / "results" / f"{piece.name}.json"
    if not file.is_file():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    return kept["scores"] if kept["digest"] == digest(piece, setup) else None


def run_piece(piece: Piece, setup: Setup) -> None:
    """Make and score a model, and keep the result."""
    begun = time.monotonic()
    scores = score(piece.make(), setup)
    file = setup.folder / "results" / f"{piece.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    seconds = round(time.monotonic() - begun)
    kept = {"digest": digest(piece, setup), "seconds": seconds, "scores": scores}
    file.write_text(json.dumps(kept), encoding="utf-8")


def collect(setup: Setup, seeds: Sequence[int]) -> Results:
    """Scores of every variant, one for each seed that is there."""
    found: dict[str, list[Scores]] = {}
    for piece in pieces(setup, seeds):
        scores = known(piece, setup)
        if scores is not None:
            found.setdefault(piece.variant, []).append(scores)
    return found


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--work", type=Path, help="default: runs/ablation, or runs/ablation-without-GENRE"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--pieces", type=int, help="make at most so many missing results")
    parser.add_argument("--variants", nargs="+", help="rows to make besides the backbone; all")
    parser.add_argument(
        "--left-out", choices=GENRES, metavar="GENRE",
        help=f"not trained on: {', '.join(GENRES)}; default: train on all of STS-B",
    )  # fmt: skip
    parser.add_argument("--show", action="store_true", help="make none")
    parser.add_argument("--quick", action="store_true", help="tiny sets: shows only that it runs")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of all recipes")
    return parser.parse_args()


def main() -> int:
    """Make what is missing and print the table."""
    arguments = read_arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.disable(logging.WARNING)
    left_out = arguments.left_out
    work = Path(f"runs/ablation-without-{left_out}" if left_out else "runs/ablation")
    setup = Setup(
        folder=(arguments.work or work).resolve(),
        size=QUICK if arguments.quick else FULL,
        overrides=tuple(arguments.overrides),
        left_out=left_out,
    )
    missing = [
        piece
        for piece in choose(tuple(pieces(setup, arguments.seeds)), arguments.variants)
        if known(piece, setup) is None
    ]
    wanted = [] if arguments.show else missing[: arguments.pieces]
    if wanted:
        prepare(arguments.data, setup.data, setup.size, setup.left_out)
    for piece in wanted:
        print(f"{piece.name} ...", file=sys.stderr, flush=True)
        run_piece(piece, setup)
    results = collect(setup, arguments.seeds)
    print(render(results, setup.held_out))
    if arguments.json:
        print(json.dumps(by_set(results)))
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
