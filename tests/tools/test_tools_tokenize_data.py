"""The command that tokenises beforehand makes what a run of two ranks then trains on."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import corpus
from tests.support.forked import finish_forked
from tests.support.launched import Ended, lines
from tests.support.ranks import run_ranks
from tests.support.sessions import run_of
from tools.tokenize_data import jobs_of
from trainer.data.host_share import MIN_ROWS
from trainer.data.row_settings import with_row_settings
from trainer.data.tokens_ahead import token_jobs
from trainer.preflight.checks import open_data
from trainer.recipe.load import load_recipe

pytestmark = pytest.mark.dist

TOOL = "tools/tokenize_data.py"
MODES = ("on_the_fly", "ahead", "ahead_shared")


def tokenise(folder: Path, *arguments: str) -> Ended:
    given = ("--recipe", str(folder / "recipe.yaml"), *arguments)
    cache = {"TRAINER_CACHE_DIR": str(folder / "cache")}
    return finish_forked(folder, *given, script=TOOL, **cache)


def both_modes(rank: int, world_size: int, folder: Path) -> dict[str, list[Any]]:
    """Losses and masks of all steps; what is on disk must not change."""
    from trainer.data.host_share import HostShare
    from trainer.engine.loop import Interrupt

    os.environ["TRAINER_CACHE_DIR"] = str(folder / "cache")
    found = {}
    defaults = HostShare.__init__.__kwdefaults__
    for name in MODES:
        mode = name.removesuffix("_shared")
        run = run_of(folder, name, "train.max_steps=4", f"data.tokens={mode}", "data.workers=1")
        defaults["min_rows"] = 1 if name != mode else MIN_ROWS
        steps = []
        mines_nothing = run._mining(SimpleNamespace(mining=None), Interrupt())  # type: ignore[arg-type]
        for batch in run._batches(mines_nothing, 0, 4):
            texts = batch.texts
            steps.append((type(texts.token_ids).__name__, texts.lengths.tolist()))
        assert run.fit(run.prepare(resume=False), Interrupt()) == 4
        found[name] = steps
    return found


def test_tokens_made_beforehand_are_what_a_run_trains_on(tmp_path: Path) -> None:
    corpus.make_workspace(tmp_path)
    missing = tokenise(tmp_path, "--check")
    assert missing.code == 2
    assert "= missing; expected finished ones. Make them with the same command" in missing.err
    made = tokenise(tmp_path, "--processes", "1")
    assert made.code == 0, made.out + made.err
    stores = sorted((tmp_path / "cache").glob("*/tokens"))
    assert len([line for line in made.out.splitlines() if " tokens in " in line]) == len(stores)
    before = {file: file.stat().st_mtime_ns for one in stores for file in one.rglob("*")}
    (told, *_) = run_ranks(both_modes, 2, tmp_path, timeout_sec=240.0)
    assert {kind for kind, _ in told["on_the_fly"]} == {"tuple"}
    assert {kind for kind, _ in told["ahead"] + told["ahead_shared"]} == {"OwnIds"}
    lengths = [[length for _, length in told[mode]] for mode in MODES]
    assert lengths[0] == lengths[1] == lengths[2]
    after = {file: file.stat().st_mtime_ns for one in stores for file in one.rglob("*")}
    assert after == before
    assert sorted((tmp_path / "cache").glob("*/tokens")) == stores
    timed = {"seconds", "tokens_per_sec"}
    losses = [
        [
            {k: v for k, v in line.items() if k not in timed}
            for line in lines(tmp_path / mode / "metrics.jsonl")
        ]
        for mode in MODES
    ]
    assert losses[0] == losses[1] == losses[2]
    assert tokenise(tmp_path, "--check").code == 0
    piece = next(stores[0].glob("piece-*"))
    content = bytearray(piece.read_bytes())
    content[3] ^= 1
    piece.write_bytes(content)
    damaged = tokenise(tmp_path, "--check")
    assert damaged.code == 2
    assert "another hash than its index says" in damaged.err


def test_stores_are_of_the_rows_and_instructions_that_a_run_has(tmp_path: Path) -> None:
    corpus.make_workspace(tmp_path)
    rows = [
        {"query": f"w{i} w{i + 1}", "pos": [f"w{i + 2}"], "neg": [f"w{i + 5}"], "prompt": "w9 w8 "}
        for i in range(12)
    ]
    (tmp_path / "fe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planted = (tmp_path / "sts.jsonl").read_text().splitlines(keepends=True)[:5]
    (tmp_path / "dev.jsonl").write_text("".join(planted))
    sources = [
        {"name": "fe", "task": "ir", "path": "fe.jsonl", "row_settings": True},
        {"name": "sts", "task": "sts", "path": "sts.jsonl"},
    ]
    overrides = [
        f"data.sources={json.dumps(sources)}", "data.overlap=drop", "data.tokens=ahead",
        'eval.sets=[{"name": "dev", "task": "sts", "path": "dev.jsonl"}]', "eval.best_metric=null",
    ]  # fmt: skip
    recipe = with_row_settings(load_recipe(tmp_path / "recipe.yaml", overrides))
    made = {job.source.name: job for job in jobs_of(recipe)}
    run = token_jobs(recipe, open_data(recipe).sources, made["fe"].encoder, num_ranks=1)
    assert {name: job.folder for name, job in made.items()} == {
        name: job.folder for name, job in run.items()
    }
    assert len(made["sts"].source) == len((tmp_path / "sts.jsonl").read_text().splitlines()) - 5
    plain = replace(recipe.data.sources[0], row_settings=False, query_instruction="")
    other = replace(recipe, data=replace(recipe.data, sources=(plain, *recipe.data.sources[1:])))
    assert {job.source.name: job for job in jobs_of(other)}["fe"].folder != made["fe"].folder


def test_a_number_of_processes_below_one_is_refused(tmp_path: Path) -> None:
    ended = tokenise(tmp_path, "--processes", "0")
    assert ended.code == 2
    assert "0: expected a whole number above 0" in ended.err
