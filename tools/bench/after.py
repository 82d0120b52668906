"""What comes after a first training: mining again, bags that are merged, a merge towards the base.

    python tools/bench/after.py --data ../shared/data                 # three hours of an idle core
    python tools/bench/after.py --data ../shared/data --pieces 1      # one piece, then the table
    python tools/bench/after.py --variants trained mined --seeds 1    # a look at a part
    python tools/bench/after.py --show                                # the table of what is there

All start from MiniLM and `recipes/ablations/codiemb.yaml`: STS-B, MedQuAD and SQuAD sentences, not
SciFact.

- `trained` is a run of the recipe, whose negatives were found by BM25.
- `mined` is the same with negatives that `tools/mine.py` finds with the untouched MiniLM, below
  0.95 of the positive's score.
- `bag` is `tools/bag.py`: four runs of a quarter of the steps on half of the rows each, merged.
- `merged back` is `tools/delta_merge.py --search --keep-base` of `trained` alone, from the base to
  it. What it is chosen by is neither trained on nor scored: other pairs of STS-B, other queries of
  MedQuAD and SQuAD, and, for what must not be lost, SciFact's training queries.

Results are kept in the work folder, a file each. With `--json` the last line is
`{model: {set: [value of each seed]}}`; `lambda` of the merge stands among the sets, and its factors
of the first and the last layer.
"""

import argparse
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.ablation_data import FULL, IR_SOURCES, QUICK, HeldOut, prepare, prepare_choosing
from bench.ablation_runs import BASE, RECIPES, Setup, score, train_ours
from bench.ablation_table import UNTOUCHED, Results, Scored, by_set, render
from bench.demo_runs import run_logged
from bench.kept import Kept
from bench.pieces import Pieces, parser_of
from trainer.cli import ending_with_code
from trainer.recipe.load import load_recipe
from trainer.recipe.model_path import resolve_model_path

STYLE = "codiemb"
TRAINED, MINED, BAG, MERGED = "trained", "mined", "bag", "merged back"
VARIANTS = (TRAINED, MINED, BAG, MERGED)
BAGS, FRACTION = 4, 0.5
RELATIVE_MARGIN, MINED_NEGATIVES = 0.95, 5
"""Of mining: highest score of a negative as a share of the positive's, and how many of a query."""
LAMBDA, FIRST, LAST = "lambda", "first", "last"
"""Of the chosen merge; 0 is the base, 1 the run. The others are lambda's factors by depth."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Makes and scores models."""

    data: Path
    """Public sets."""
    setup: Setup
    """Where all goes, and how much is scored."""

    def __call__(self, name: str, seed: int) -> dict[str, float]:
        """The scores of a model; a merge towards the base has its lambda among them."""
        if name == UNTOUCHED:
            return score(Path(resolve_model_path(BASE)), self.setup)
        if name == TRAINED:
            return score(train_ours(STYLE, seed, self.setup), self.setup)
        if name == MINED:
            return score(self._train_mined(seed), self.setup)
        if name == BAG:
            return score(self._bag(seed), self.setup)
        return merge_back(seed, self.data, self.setup)

    def _train_mined(self, seed: int) -> Path:
        """The recipe with other negatives."""
        paths = {source: self._mined(source) for source in IR_SOURCES}
        own = tuple(f"data.sources.{source}.path={path}" for source, path in paths.items())
        setup = replace(self.setup, overrides=(*self.setup.overrides, *own))
        setup = replace(setup, runs=setup.folder / "runs-mined")
        return train_ours(STYLE, seed, setup)

    def _mined(self, source: str) -> Path:
        """Rows of a source with mined negatives, made once."""
        found = self.setup.data / f"{source}.mined.jsonl"
        if not found.is_file():
            rows = self.setup.data / f"{source}.train.jsonl"
            words = ["--model", BASE, "--source", str(rows), "--output", str(found)]
            words += ["--num-negatives", str(MINED_NEGATIVES)]
            words += ["--relative-margin", str(RELATIVE_MARGIN)]
            run_logged("tools/mine.py", words, found.with_suffix(".log"), what="after: mine")
        return found

    def _bag(self, seed: int) -> Path:
        """Runs on parts, merged, of as many steps together as one run."""
        recipe = RECIPES / f"{STYLE}.yaml"
        steps = load_recipe(recipe, self.setup.overrides).train.max_steps
        assert steps is not None
        output = self.setup.folder / f"bag-{seed}"
        shutil.rmtree(output, ignore_errors=True)
        words = ["--recipe", str(recipe), "--bags", str(BAGS), "--fraction", str(FRACTION)]
        words += ["--output", str(output), "--seed", str(BAGS * seed), "--launcher", "python"]
        words += [*self.setup.overrides, f"data.root={self.setup.data}", f"seed={seed}"]
        words += [f"train.max_steps={-(-steps // BAGS)}", "checkpoint.every_steps=null"]
        run_logged("tools/bag.py", words, output.with_suffix(".log"), what="after: bag")
        return output / "merged"


def merge_back(seed: int, data: Path, setup: Setup) -> dict[str, float]:
    """Search for a merge of a run with its base; gives its scores and what was chosen."""
    trained = of_whole_texts(setup.run_folder(STYLE, seed) / "model", setup)
    output = setup.folder / f"merged-{seed}"
    sets = prepare_choosing(data, setup.data / "choosing", setup.size)
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(output.with_name(f".search-{output.name}"), ignore_errors=True)
    words = ["--base", BASE, "--checkpoints", str(trained), "--output", str(output)]
    words += ["--keep-base", "--search", *map(str, sets)]
    run_logged("tools/delta_merge.py", words, output.with_suffix(".log"), what="after: merge")
    record = json.loads((output / "search.json").read_text(encoding="utf-8"))
    (best,) = (one for one in record["tried"] if one["name"] == record["best"])
    first, last = best["options"].get("by_depth", (1.0, 1.0))
    chosen = {LAMBDA: best["options"].get("lambda_", 1.0), FIRST: first, LAST: last}
    return {**score(output, setup), **chosen}


def of_whole_texts(model: Path, setup: Setup) -> Path:
    """A copy of a run's model that reads texts as long as those that are scored."""
    copy = model.parent / "whole_texts"
    shutil.copytree(model, copy, dirs_exist_ok=True)
    file = copy / "sentence_bert_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["max_seq_length"] = setup.size.tokens
    file.write_text(json.dumps(config), encoding="utf-8")
    return copy


def made_from(name: str, setup: Setup) -> list[str]:
    """What a result depends on besides the program."""
    recipe = "" if name == UNTOUCHED else (RECIPES / f"{STYLE}.yaml").read_text(encoding="utf-8")
    return [name, recipe, *setup.overrides, repr(setup.size)]


def pieces(data: Path, setup: Setup) -> Pieces[dict[str, float]]:
    """Everything that is scored."""
    return Pieces(
        kept=Kept(setup.folder / "results"),
        variants=(UNTOUCHED, *VARIANTS),
        made_from=lambda name, _: made_from(name, setup),
        work=Work(data=data, setup=setup),
    )


def shares(there: Mapping[str, Mapping[int, Scored]], held_out: Sequence[HeldOut]) -> str:
    """For each seed: lambda, what is kept of the gains in domain, and the change out of domain."""
    (base,) = there[UNTOUCHED].values()
    runs = there.get(TRAINED, {})
    lines = [
        f"{'seed':>4} {'lambda':>7} {'by depth':>10} {'STS kept':>9} {'IR in kept':>11} "
        f"{'out of domain':>14}"
    ]
    pairs = ((seed, runs[seed], one) for seed, one in there[MERGED].items() if seed in runs)
    for seed, trained, merged in pairs:

        def gain(scores: Scored, task: str, domain: str, base: Scored = base) -> float:
            names = [one.name for one in held_out if (one.task, one.domain) == (task, domain)]
            return fmean(scores[name] - base[name] for name in names)

        gains = [(gain(merged, task, "in"), gain(trained, task, "in")) for task in ("sts", "ir")]
        kept = [part / whole if whole else math.nan for part, whole in gains]
        depths = f"{merged[FIRST]:g} to {merged[LAST]:g}"
        lines.append(
            f"{seed:4} {merged[LAMBDA]:7.2f} {depths:>10} {kept[0]:9.0%} {kept[1]:11.0%} "
            f"{100 * gain(merged, 'ir', 'out'):+14.2f}"
        )
    return "\n".join(lines)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, "runs/after", VARIANTS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--quick", action="store_true", help="tiny sets: shows only that it runs")
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
    )
    models = pieces(arguments.data, setup)
    backbone = argparse.Namespace(**vars(arguments) | {"seeds": [0], "variants": [UNTOUCHED]})
    for one in (backbone, arguments):
        models.make(one, lambda: prepare(arguments.data, setup.data, setup.size, None))
    there = models.there([0, *arguments.seeds])
    results: Results = {name: [*seeds.values()] for name, seeds in there.items()}
    print(render(results, setup.held_out))
    if {UNTOUCHED, MERGED} <= results.keys():
        print(f"\n{shares(there, setup.held_out)}")
    if arguments.json:
        print(json.dumps(by_set(results)))
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
