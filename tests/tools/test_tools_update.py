"""An update is planned, refused where it cannot be, trained, merged, scored; kills cost nothing."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from series.commands import ROOT
from tests.support.forked import finish_forked
from tests.support.launched import Ended, Launched, finish, launched, num_steps
from tests.support.updates import OLD_STEPS, make_update, write_old_run
from tests.test_run_cli import snapshot
from tools import update
from trainer.cli import ending_with_code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and new sources, in the folder that the recipe of these is relative to."""
    folder = tmp_path_factory.mktemp("update")
    make_update(folder)
    write_old_run(folder)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of run and new recipe that a test may change; the rest is in the current folder."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "new.yaml", tmp_path)
    monkeypatch.chdir(made)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, here: Path, *words: str) -> int:
    names = {"--run": "run", "--recipe": "new.yaml", "--output": "out"}
    default = [word for name, file in names.items() for word in (name, str(here / file))]
    monkeypatch.setattr(sys, "argv", ["update.py", *default, *words])
    try:
        return ending_with_code(update.main)
    except SystemExit as ended:
        return int(str(ended.code))


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    here: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(here)
    words = ("--steps", "10", "--weight", "0.3", "--launcher", "torchrun --nproc-per-node 2")
    assert run(monkeypatch, here, *words, "--dry-run", "--json") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    text, told = "\n".join(lines), json.loads(last)
    old, out = here / "run", here / "out"
    assert f"train {old}/model for 10 steps, 50% of the {OLD_STEPS} of {old}; --steps" in text
    assert told["train"]["command"] == [
        *("torchrun", "--nproc-per-node", "2", str(ROOT / "trainer" / "run.py")),
        *("--recipe", f"{out}/update.yaml"),
    ]
    rows = {one["name"]: (one["of"], one["rows"], one["all_rows"], one["steps"])
            for one in told["train"]["sources"]}  # fmt: skip
    assert rows == {
        "ir": ("old", 10, 40, 1),
        "sts": ("old", 10, 40, 1),
        "more": ("new", 30, 30, 8),
    }
    merge = " ".join(told["merge"]["command"])
    assert merge.endswith("--method task_arithmetic --weights 0.3 0.7")
    assert f"--base {made}/model --checkpoints {out}/run/model {old}/model " in merge
    assert [(one["set"], one["of"]) for one in told["score"]] == [
        ("fresh", "new"), ("pairs", "old"), ("docs", "old"),
    ]  # fmt: skip
    assert snapshot(here) == before


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), "--method uniform"),
        (("--method", "ties"), "--method ties"),
        (("--method", "slerp"), "--method slerp"),
        (("--method", "slerp", "--weight", "0.2"), "--method slerp --t 0.8"),
        (("--search", "fresh.jsonl:sts"), "--search {made}/fresh.jsonl:sts"),
    ],
)
def test_how_the_merge_is_chosen(
    here: Path,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    options: str,
) -> None:
    assert run(monkeypatch, here, *words, "--dry-run", "--json") == 0
    command = json.loads(capsys.readouterr().out.splitlines()[-1])["merge"]["command"]
    assert " ".join(command).endswith(options.format(made=made))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--old-share", "0"), "--old-share 0: expected above 0 and at most 1"),
        (("--old-share", "1.5"), "--old-share 1.5: expected above 0 and at most 1"),
        (("--steps", "0"), "--steps 0: expected at least 1"),
        (("--seed", "-1"), "--seed -1: expected at least 0"),
        (("--search", "x", "--weight", "1"), "what --search chooses"),
        (("--weight", "1.2"), "--weight 1.2: expected from 0 to 1"),
        (("--weight", "1", "--method", "ties"), "not for --method ties"),
        (("--method", "task_arithmetic"), "expected --weight beside it"),
        (("--method", "slurp"), "invalid choice: 'slurp'"),
        (("--search", "nowhere"), "nowhere = missing"),
        (("train.max_steps=9",), "an update is as long as --steps says"),
        (("train.learning_rate=fast",), "override train.learning_rate=fast"),
        (("--run", "nowhere"), "--run = nowhere (missing); expected the output folder of a fin"),
        (("--run", "sts.jsonl"), "--run = sts.jsonl (is a file)"),
        (("--run", "model"), "model/finished.json: file = missing; expected the output folder of"),
        (("--recipe", "recipe.yaml"), "data.sources.ir = a source of the same name in"),
        (("--recipe", "nowhere.yaml"), "nowhere.yaml"),
        (("--output", "run"), "/run (holds finished.json); expected a new or empty folder"),
        (("--output", "sts.jsonl/out"), "Not a directory); expected a folder to write to"),
        (("--output", "sts.jsonl"), "sts.jsonl (is a file)"),
        (("--launcher", "no_such_launcher"), "expected a command (there is none)"),
        (("--launcher", "torchrun '"), "expected a command (No closing quotation)"),
        (("--old-share", "0.1"), "expected at most 4, the rows of source ir in data.sources.ir.su"),
    ],
)
def test_wrong_arguments_are_one_message(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    assert run(monkeypatch, here, *words) == 2
    assert message in capsys.readouterr().err
    assert not (here / "out").exists()


Change = Callable[[Path], object]


def new(old: str, text: str) -> Change:
    """A change of the recipe of the new sources."""

    def change(here: Path) -> None:
        content = (here / "new.yaml").read_text()
        assert old in content
        (here / "new.yaml").write_text(content.replace(old, text, 1))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (new("pooling: last", "pooling: mean"), "model.pooling = 'mean'; expected 'last', as in"),
        (new("path: model", "path: run/model"), "Name the backbone of the old run; --start says"),
        (
            new("pooling: last", "pooling: last, matryoshka: {dims: [32, 8]}"),
            "model.matryoshka = {'dims': [32, 8], 'weights': None}; expected null, as in",
        ),
        (new("query_max_tokens: 12", "query_max_tokens: 9"), "query_max_tokens = 9; expected 12"),
        (
            new("w1 w2 ", "find: "),
            "data.sources.more.query_instruction = 'find: '; expected 'w1 w2 ', as sources of",
        ),
        (new("more.jsonl", "ir.jsonl"), "data.sources.more = the rows of source ir in"),
        (
            new("name: pairs, task: sts, path: sts", "name: pairs, task: sts, path: fresh"),
            "eval.sets.pairs = another set than that of the same name",
        ),
        (
            new("every_steps: 5", "every_steps: 5, export: adapter"),
            "checkpoint.export = 'adapter'; expected merged where all parameters",
        ),
        (lambda here: (here / "run" / "finished.json").unlink(), "finished.json: file = missing"),
        (
            lambda here: (here / "run" / "finished.json").write_text("{}"),
            "finished.json: content = unreadable (KeyError('step')); expected the output folder",
        ),
        (
            lambda here: (here / "run" / "model" / "modules.json").unlink(),
            "modules.json: file = missing; expected the output folder of a finished run. Export",
        ),
    ],
)
def test_what_does_not_agree_is_refused(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Change,
    message: str,
) -> None:
    change(here)
    assert run(monkeypatch, here, "--dry-run") == 2
    assert message in capsys.readouterr().err
    assert not (here / "out").exists()


def test_a_folder_of_another_update_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(*words: str) -> update.Update:
        names = ["--run", str(here / "run"), "--recipe", str(here / "new.yaml")]
        output = ["--output", str(here / "out")]
        return update.plan_update(update.parse_arguments([*names, *output, *words]))

    update.begin(planned())
    before = snapshot(here)
    update.begin(planned())
    assert snapshot(here) == before
    # what does not shape the steps may change
    update.begin(planned("engine.max_tokens_per_chunk=32"))
    assert "max_tokens_per_chunk: 32" in (here / "out" / "update.yaml").read_text()
    (here / "out" / ".partial-plan.json").write_text("{")
    for words, message in {
        ("--steps", "9"): "recipe.train.max_steps = 5; expected 9, as this command says. The fol",
        ("--weight", "1"): "merge = ['--method', 'uniform']; expected ['--method', 'task_arithme",
        ("--seed", "1"): "recipe.data.sources.ir.subset.seed = 0; expected 1",
    }.items():
        assert run(monkeypatch, here, *words) == 2
        assert message in capsys.readouterr().err
    (here / "out" / "plan.json").unlink()
    assert run(monkeypatch, here) == 2
    assert "out (holds update.yaml); expected a new or empty folder" in capsys.readouterr().err


STEPS = 60
"""Of the update that is killed, so that a signal finds it training."""
LIMIT_SEC = 900
"""No test waits longer for a training, a merge and the scores of three models."""


def started(folder: Path, output: str) -> AbstractContextManager[Launched]:
    """The command as a process with a session of its own."""
    paths = ("--run", f"{folder}/run", "--recipe", f"{folder}/new.yaml")
    goal = ("--output", f"{folder}/{output}", "--json", "--steps", str(STEPS))
    places = (f"data.root={folder}", f"model.path={folder}/model")
    words = (*paths, *goal, "--launcher", "python", *places)
    return launched(folder, [sys.executable, "tools/update.py"], *words)


def finished(folder: Path, output: str) -> Ended:
    with started(folder, output) as process:
        done = process.wait(within_sec=LIMIT_SEC)
    assert done.code == 0, done.out + done.err
    return done


def stopped(folder: Path, output: str, reached: Callable[[], bool], sent: int) -> int:
    """Exit code after a signal, once something is reached; SIGKILL takes all of it at once."""
    with started(folder, output) as process:
        process.until(reached)
        pid = process.process.pid  # type: ignore[attr-defined]
        (os.killpg if sent == signal.SIGKILL else os.kill)(pid, sent)
        return process.wait(within_sec=LIMIT_SEC).code


def result(folder: Path) -> dict[str, Any]:
    """What an update ends with: weights, and the record without its place."""
    models = (folder / "run" / "model", folder / "merged")
    weights = [(model / "model.safetensors").read_bytes() for model in models]
    return {"weights": weights, "record": json.loads((folder / "update.json").read_text())}


@pytest.mark.slow
@pytest.mark.dist
def test_killed_updates_end_as_others_do_and_the_table_is_that_of_evaluate(tmp_path: Path) -> None:
    make_update(tmp_path)
    done = finish_forked(tmp_path, "--recipe", str(tmp_path / "recipe.yaml"))
    assert done.code == 0, done.out + done.err
    old = snapshot(tmp_path / "run")
    out = finished(tmp_path, "whole").out
    whole = result(tmp_path / "whole")
    assert json.loads(out.splitlines()[-1]) == whole["record"]

    cut = tmp_path / "cut"
    killed = -signal.SIGKILL
    reached: tuple[tuple[Callable[[], bool], int, int], ...] = (
        (lambda: num_steps(cut / "run") > 7, signal.SIGTERM, 143),
        (lambda: num_steps(cut / "run") > 30, signal.SIGKILL, killed),
        (lambda: any(cut.glob("merged.partial-*")), signal.SIGKILL, killed),
        (lambda: (cut / "scores" / "old.json").exists(), signal.SIGKILL, killed),
    )
    for until, sent, expected in reached:
        assert stopped(tmp_path, "cut", until, sent) == expected
        assert not (cut / "update.json").exists()
    scored = (cut / "scores" / "old.json").stat().st_mtime_ns
    assert "holds a finished run, which is kept" in finished(tmp_path, "cut").out
    assert (cut / "scores" / "old.json").stat().st_mtime_ns == scored
    assert result(cut) == whole
    assert sorted(path.name for path in cut.iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )
    assert snapshot(tmp_path / "run") == old

    _check_scores(tmp_path, whole["record"])


def _check_scores(folder: Path, record: dict[str, Any]) -> None:
    """The record has what the command of scores says of the merged folder."""
    sets = [str(folder / name) for name in ("fresh.jsonl", "sts.jsonl", "beir")]
    words = ("--model", str(folder / "whole" / "merged"), "--json", "--sets", *sets)
    out = finish(folder, [sys.executable, "tools/evaluate.py"], *words).out
    told = json.loads(out.splitlines()[-1])
    names = {"fresh": "fresh", "sts": "pairs", "beir": "docs"}
    assert {names[name]: values for name, values in told.items()} == record["scores"]["merged"]
    by_name = {one["name"]: one for one in record["sets"]}
    assert by_name["docs"]["merged"] == told["beir"]["ndcg_at_10"]
    assert (by_name["fresh"]["of"], by_name["pairs"]["of"]) == ("new", "old")
    fresh = by_name["fresh"]
    assert record["gained"]["merged"] == fresh["merged"] - fresh["old"]
    # the merged model has the prompts of the old one
    prompts = [
        json.loads((folder / model / "config_sentence_transformers.json").read_text())["prompts"]
        for model in ("run/model", "whole/merged")
    ]
    assert prompts[0] == prompts[1]
