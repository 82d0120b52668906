"""A bag trains its parts, merges them and shows all scores; what is there already is kept."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.corpus import make_workspace
from tools import bag
from trainer.cli import ending_with_code

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def arguments_of(recipe: Path, output: Path, *more: str) -> list[str]:
    return ["--recipe", str(recipe), "--bags", "2", "--fraction", "0.5", "--output", str(output),
            *more]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bag.py", *words])
    return ending_with_code(bag.main)


def test_the_commands_are_shown_and_nothing_is_made(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments_of(recipe, tmp_path / "out", "--with-whole", "--dry-run", "train.max_steps=3")
    assert run(monkeypatch, *words, "--seed", "5", "--launcher", "torchrun --nproc-per-node 2") == 0
    first, second, whole, merge = capsys.readouterr().out.splitlines()
    assert first.startswith(f"torchrun --nproc-per-node 2 trainer/run.py --recipe {recipe} ")
    assert "data.subset.fraction=0.5 data.subset.seed=5" in first
    assert "data.subset.seed=6" in second
    assert second.endswith(f"output_dir={tmp_path}/out/bag-2")
    assert "subset" not in whole
    # the last of two values counts
    assert whole.index("train.max_steps=3") < whole.index("train.max_steps=6")
    assert f"--checkpoints {tmp_path}/out/bag-1/model {tmp_path}/out/bag-2/model" in merge
    assert merge.endswith("--method uniform")
    assert not (tmp_path / "out").exists()
    assert run(monkeypatch, *words, "--only", "2", "--json") == 0
    shown, record = capsys.readouterr().out.splitlines()
    assert shown.count("bag-2") == 1
    assert json.loads(record) == {"commands": [shlex.split(shown)]}


def test_commands_of_another_folder_name_scripts_and_files_from_there(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments_of(recipe, Path("out"), "--dry-run")) == 0
    first, *_, merge = capsys.readouterr().out.splitlines()
    assert first.startswith(f"deepspeed {ROOT}/trainer/run.py --recipe {recipe} ")
    assert f"{ROOT}/tools/delta_merge.py" in merge
    assert f"--output {tmp_path}/out/merged" in merge


def test_what_was_interrupted_goes_on(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bag-1" / "checkpoints").mkdir(parents=True)
    (tmp_path / ".search-merged").mkdir()
    assert run(monkeypatch, *arguments_of(recipe, tmp_path, "--dry-run")) == 0
    first, second, merge = capsys.readouterr().out.splitlines()
    assert first.endswith(" --resume")
    assert "--resume" not in second
    assert " --resume " in merge


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bags", "1"), "at least 2 models"),
        (("--fraction", "0"), "above 0 and at most 1"),
        (("--only", "3"), "numbers from 1 to 2"),
        (("--search", "dev", "--method", "slerp"), "what --search chooses"),
        (("--method", "slurp"), "invalid choice: 'slurp'"),
        (("--search", "nowhere"), "nowhere = missing"),
        (("data.subset.fraction=0.5",), "each run of a bag is given its own"),
        (("train.max_steps=none",), "train.max_steps"),
        (("--launcher", "no_such_launcher"), "expected a command"),
    ],
)
def test_mistakes_are_one_message(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    try:
        code = run(monkeypatch, *arguments_of(recipe, tmp_path / "out"), *words)
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.dist
def test_a_bag_is_trained_merged_and_scored(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    more = ("--with-whole", "--json", "--launcher", "torchrun --nproc-per-node 1",
            "train.max_steps=2", "checkpoint.every_steps=2", "eval.every_steps=99")  # fmt: skip
    words = arguments_of(recipe, output, *more)
    command = [sys.executable, str(ROOT / "tools" / "bag.py"), *words]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def launch(*extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *extra],
            env=os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    alone = launch("--only", "1")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert sorted(one.name for one in output.iterdir()) == ["bag-1", "plan.json"]
    done = launch()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{output}/bag-1 holds a finished run" in done.stdout
    record = json.loads(done.stdout.splitlines()[-1])
    assert record == json.loads((output / "bag.json").read_text())
    assert list(record["scores"]) == ["bag-1", "bag-2", "mean", "merged", "whole"]
    first, second, mean = (record["scores"][name] for name in ("bag-1", "bag-2", "mean"))
    for held_out, metrics in mean.items():
        for key, value in metrics.items():
            assert value == pytest.approx((first[held_out][key] + second[held_out][key]) / 2)
    # another part, another model
    assert (output / "bag-1" / "model" / "model.safetensors").read_bytes() != (
        output / "bag-2" / "model" / "model.safetensors"
    ).read_bytes()
    shutil.rmtree(output / "merged")
    again = launch()
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("holds a finished run") == 3
    assert json.loads(again.stdout.splitlines()[-1]) == record
    other = launch("--method", "ties")
    assert other.returncode == 2
    assert "merge.1 = 'uniform'; expected 'ties', as this command says" in other.stderr
