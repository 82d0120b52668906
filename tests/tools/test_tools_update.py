"""An update is planned, refused where it cannot be, trained, merged, scored; kills cost nothing."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from series.commands import ROOT
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
