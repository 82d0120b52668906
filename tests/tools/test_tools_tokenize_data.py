"""The command that tokenises beforehand makes what a run of two ranks then trains on."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import corpus
from tests.support.forked import finish_forked
from tests.support.launched import Ended, lines
from tests.support.ranks import run_ranks
from tests.support.sessions import run_of
from trainer.data.host_share import MIN_ROWS

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
        stream = run._batches(run.artifacts.checkpoints.planned, 0, 4)
        for batch in stream:
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
    assert "another hash than its footer says" in damaged.err


def test_a_number_of_processes_below_one_is_refused(tmp_path: Path) -> None:
    ended = tokenise(tmp_path, "--processes", "0")
    assert ended.code == 2
    assert "0: expected a whole number above 0" in ended.err
