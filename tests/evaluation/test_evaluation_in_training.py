"""Evaluation inside a run: two ranks agree with one, the best is kept and exported, patience."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import corpus
from tests.support.held_out_sets import write_sets
from tests.support.ranks import run_ranks
from tests.support.sessions import run_of
from trainer.checkpoint.safetensors_file import map_tensors, read_header
from trainer.checkpoint.tensors import read_whole
from trainer.checkpoint.zero_format import read_zero
from trainer.data.evalsets import open_eval_set
from trainer.evaluation.best import watched_value
from trainer.recipe.schema import DataRecipe, EvalSetRecipe

pytestmark = pytest.mark.dist

SETS = (
    "eval.sets=[{{name: pairs, task: sts, path: sts.jsonl}}, {{name: docs, task: ir, path: beir}}]"
)

PREFIXES = "model.matryoshka={{dims: [32, 8], weights: [1, 0.5]}}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    corpus.make_workspace(folder)
    write_sets(folder / "kinds", labels=corpus.WORDS[:4], words=corpus.WORDS[4:])
    return folder


KINDS = (
    ("classification", "classes"),
    ("clustering", "clusters.jsonl"),
    ("pair_classification", "pairs.jsonl"),
    ("reranking", "candidates.jsonl"),
    ("bitext", "bitext.jsonl"),
)
"""Kinds that are no task, and where their sets lie in the folder `kinds`."""
EVERY_KIND = SETS.removesuffix("]") + "".join(
    f", {{{{name: {kind}, task: {kind}, path: kinds/{file}}}}}" for kind, file in KINDS
) + "]"  # fmt: skip


def examined(rank: int, world_size: int, folder: Path) -> tuple[dict[str, Any], float]:
    """Every set's report on the untrained model, and how often the BEIR folder was opened."""
    opened: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            opened.append(Path(str(arguments[0])).name)

    sys.addaudithook(note)
    docs = EvalSetRecipe(name="docs", task="ir", path=str(folder / "beir"))
    open_eval_set(docs, DataRecipe(sources=()))
    once = opened.count("dev.tsv")
    opened.clear()
    name = f"examined by {world_size}"
    reports = run_of(folder, name, EVERY_KIND, PREFIXES).held_out.evaluate()
    return reports, opened.count("dev.tsv") / once


def test_two_ranks_agree_with_one_and_open_each_set_once(workspace: Path) -> None:
    ((alone, times),) = run_ranks(examined, 1, workspace, timeout_sec=120)
    (first, *_), (second, *_) = both = run_ranks(examined, 2, workspace, timeout_sec=120)
    assert first == second  # to the bit: all ranks hold the same vectors
    assert [times, *(count for _, count in both)] == [1, 1, 1]
    assert first.keys() == alone.keys() == {"pairs", "docs", *(kind for kind, _ in KINDS)}
    for name, report in alone.items():
        # float32 vectors from chunks of other shapes
        assert first[name].metrics == pytest.approx(report.metrics, abs=1e-5)
        assert list(first[name].dims) == list(report.dims) == [32, 8]
        assert first[name].dims[32] == first[name].metrics
        assert first[name].dims[8] == pytest.approx(report.dims[8], abs=1e-5)
        assert first[name].geometry.numbers == pytest.approx(report.geometry.numbers, rel=1e-4)
        counts = first[name].geometry.histograms
        assert {kind: sum(bins) for kind, bins in counts.items()} == {
            kind: sum(bins) for kind, bins in report.geometry.histograms.items()
        }


def trained(rank: int, world_size: int, folder: Path) -> int:
    """A run with a rate at which the metric soon falls; returns the steps done."""
    from trainer.engine.loop import Interrupt

    run = run_of(
        folder,
        "watched",
        SETS,
        PREFIXES,
        *("eval.every_steps=1", "eval.best_metric=pairs.spearman", "eval.patience=2"),
        *("checkpoint.every_steps=2", "checkpoint.keep=1"),
        *("train.max_steps=12", "train.learning_rate=3e-2", "train.warmup_ratio=0"),
    )
    done: int = run.fit(run.prepare(resume=False), Interrupt())
    run.artifacts.export(run.held_out.restore_best(done))
    if rank == 0:
        run.artifacts.report()
    return done


def test_the_best_checkpoint_is_kept_and_exported(workspace: Path) -> None:
    done, other = run_ranks(trained, 2, workspace, timeout_sec=180)
    assert done == other
    run = workspace / "watched"
    lines = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    values = [watched_value(line["sets"], "pairs.spearman") for line in lines]
    assert [line["step"] for line in lines] == list(range(done + 1))
    best = values.index(max(values))
    # ended by patience, or by its length without two evaluations in a row that are no better
    assert done == best + 2 or done == 12
    checkpoints = run / "checkpoints"
    kept = {path.name for path in checkpoints.glob("step-*")}
    assert f"step-{done}" in kept
    if best > 0:
        assert (checkpoints / "best").read_text() == f"step-{best}"
        assert f"step-{best}" in kept
    expected = read_zero(checkpoints / f"step-{best or done}").tensors
    model = run / "model" / "model.safetensors"
    for name, tensor in map_tensors(model, read_header(model)).items():
        assert torch.equal(read_whole(tensor), read_whole(expected[f"backbone.{name}"])), name
    exported = best or done
    assert f"| before | after {exported:,} steps |" in (run / "model" / "README.md").read_text()
    for line in lines:
        mean = (line["sets"]["pairs"]["spearman"] + line["sets"]["docs"]["ndcg_at_10"]) / 2
        assert line["means"] == pytest.approx({"mean": mean, "mean_of_kinds": mean}, abs=1e-12)
    facts = json.loads((run / "run.json").read_text())
    assert facts["environment"]["ranks"] == 2
    assert {one["source"] for one in facts["exposure"]} == {"sts", "ir"}
    page = (run / "report.html").read_text()
    for line in lines:
        assert {name: list(by_size) for name, by_size in line["dims"].items()} == {
            "pairs": ["32", "8"],
            "docs": ["32", "8"],
        }
        assert all(line["dims"][name]["32"] == line["sets"][name] for name in line["sets"])
    folders = (run / "model", checkpoints / f"step-{done}" / "embedder")
    for config in (json.loads((one / "config.json").read_text()) for one in folders):
        assert config["matryoshka_dimensions"] == [32, 8]
    for title in ("Geometry", "Data", "Environment", "Shorter vectors"):
        assert f"<h2>{title}</h2>" in page
