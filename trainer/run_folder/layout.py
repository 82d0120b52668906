"""The one owner of every path in an output folder; it must not read or write any of them."""

from dataclasses import dataclass
from pathlib import Path

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
EVALUATIONS = "eval.jsonl"
CHECKPOINTS = "checkpoints"
MINED = "mined"
"""Folder of mined negatives, of a run and in a checkpoint."""
MININGS = "mined.jsonl"
MODEL = "model"
MERGED = "merged"
MERGE_RECORD = "merge.json"
REPORT = "report.html"
FACTS = "run.json"
FINISHED = "finished.json"
BAD_STEPS = "bad_steps"
TENSORBOARD = "tensorboard"
BENCHMARKS = "mteb"
LATEST = "latest"
"""In a folder of checkpoints: the file that names the newest one, as DeepSpeed has it."""
BEST = "best"
"""In a folder of checkpoints: the file that names the best one."""

TRACES = (RECIPE, METRICS, EVALUATIONS, CHECKPOINTS, MODEL, MERGED, REPORT, FACTS, FINISHED)
"""What a run leaves: a folder that holds one of these is not free for another run."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one output folder."""

    root: Path
    """The folder itself."""

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / RECIPE

    @property
    def metrics(self) -> Path:
        """One JSON object a step."""
        return self.root / METRICS

    @property
    def evaluations(self) -> Path:
        """One JSON object an evaluation."""
        return self.root / EVALUATIONS

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints in DeepSpeed's layout."""
        return self.root / CHECKPOINTS

    @property
    def mined(self) -> Path:
        """Folder of the mined negatives that steps draw from now."""
        return self.root / MINED

    def mined_file(self, source: str, step: int) -> Path:
        """The negatives of a source that were mined before a step."""
        return self.mined / source / f"{step}.npy"

    @property
    def minings(self) -> Path:
        """One JSON object a mining of a source."""
        return self.root / MININGS

    @property
    def model(self) -> Path:
        """Folder of the final export."""
        return self.root / MODEL

    @property
    def merged(self) -> Path:
        """Folder of the merge of the last checkpoints."""
        return self.root / MERGED

    @property
    def merge_record(self) -> Path:
        """How that merge was made."""
        return self.merged / MERGE_RECORD

    @property
    def report(self) -> Path:
        """The page on the run."""
        return self.root / REPORT

    @property
    def facts(self) -> Path:
        """What the recipe does not say."""
        return self.root / FACTS

    @property
    def finished(self) -> Path:
        """The marker of a run that is done."""
        return self.root / FINISHED

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.root / TENSORBOARD

    @property
    def benchmarks(self) -> Path:
        """Folder of mteb's own files of results."""
        return self.root / BENCHMARKS

    def bad_step(self, step: int) -> Path:
        """What a step without a finite gradient was made of."""
        return self.root / BAD_STEPS / f"step-{step}.json"
