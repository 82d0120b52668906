"""A finished run with a recipe of new sources beside it, for tests of `tools/update.py`."""

import random
import shutil
from pathlib import Path

from tests.support.corpus import make_workspace, sentence, write_lines
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.run_folder.finished import write_finished
from trainer.run_folder.layout import RunFolder

OLD_STEPS = 20
"""Steps of the old run."""

NEW = """\
name: tiny-new
output_dir: unused
seed: 8
model: {path: model, pooling: last}
data:
  query_max_tokens: 12
  passage_max_tokens: 16
  workers: 0
  sources:
    - {name: more, task: ir, path: more.jsonl, query_instruction: "w1 w2 "}
tasks:
  ir: {global_batch_size: 8, positives: 1, negatives: 1, temperature: 0.05}
train: {epochs: 1, learning_rate: 1.0e-3}
engine: {deepspeed: zero3_fp32.json, max_tokens_per_chunk: 64, gather: step}
eval:
  sets:
    - {name: fresh, task: sts, path: fresh.jsonl}
    - {name: pairs, task: sts, path: sts.jsonl}
checkpoint: {every_steps: 5}
"""
"""Relative to the workspace; the second held-out set is one of the old run's."""


def make_update(folder: Path) -> Path:
    """The corpus' workspace, `new.yaml` with 30 new rows and 20 held-out pairs; gives its path."""
    make_workspace(folder)
    rng = random.Random(5)
    rows = [
        {"query": sentence(rng, 2, 6), "positives": [sentence(rng)], "negatives": [sentence(rng)]}
        for _ in range(30)
    ]
    write_lines(folder / "more.jsonl", rows)
    pairs = [
        {"text1": sentence(rng), "text2": sentence(rng), "score": rng.choice([0, 1, 2.5, 4, 5])}
        for _ in range(20)
    ]
    write_lines(folder / "fresh.jsonl", pairs)
    (folder / "new.yaml").write_text(NEW, encoding="utf-8")
    return folder / "new.yaml"


def write_old_run(folder: Path) -> Path:
    """What a run of the workspace's recipe leaves that an update looks at, without training."""
    run = RunFolder(folder / "run")
    recipe = load_recipe(folder / "recipe.yaml")
    shutil.copytree(folder / "model", run.model)
    (run.model / "modules.json").write_text("[]", encoding="utf-8")
    run.recipe.write_text(dump_recipe(recipe), encoding="utf-8")
    write_finished(run.root, step=OLD_STEPS)
    return run.root
