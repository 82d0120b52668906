"""Files and processes that fail beside a run: workers, disks, data that changes, clocks."""

import ast
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.corpus import make_workspace
from tests.support.forked import finish_forked, forked
from tests.support.launched import lines, num_steps
from tests.test_run_cli import project as project  # a fixture: a right recipe with its data
from tests.test_run_cli import run

ROOT = Path(__file__).resolve().parents[1]
MORE_STEPS = ("train.max_steps=100000", "eval.sets=[]")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount is None or unmount is None:
        pytest.skip("no mount command")
    command = [mount, "-t", "tmpfs", "-o", "size=8M", "test", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run([unmount, "-l", str(folder)], check=True)


def fill(disk: Path, *, but: int = 0) -> Path:
    """Leave no room but some bytes; returns the file that takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(1 << 12)):
                pass
        file.truncate(max(0, file.tell() - but))
    return filler


def test_full_disk_is_told_at_once(project: Path, disk: Path) -> None:
    fill(disk, but=8192)
    ended = run(project, "--recipe", "small.yaml", f"output_dir={disk}/run")
    assert ended.code == 2
    assert "(the disk is full); expected a folder on a disk with room" in ended.message
    assert "torch" not in ended.imported


@pytest.mark.dist
def test_folder_that_cannot_be_made_is_told_before_training(
    workspace: Path, tmp_path: Path
) -> None:
    # nobody may make a folder here, root included
    recipe = ("--recipe", str(workspace / "recipe.yaml"), "output_dir=/proc/run", *MORE_STEPS)
    ended = finish_forked(tmp_path, *recipe)
    assert ended.code == 2, ended.err
    assert ended.err.count("recipe: output_dir = /proc/run (") == 1, ended.err
    assert "Traceback" not in ended.err


@pytest.mark.dist
def test_metrics_wait_in_memory_while_the_disk_is_full(workspace: Path, disk: Path) -> None:
    folder = disk / "run"
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={folder}", "eval.sets=[]")
    more = ("train.max_steps=80", "checkpoint.every_steps=100000")
    with forked(workspace, *recipe, *more) as command:
        command.until(lambda: num_steps(folder) > 3)
        filler = fill(disk)
        command.until(lambda: "its lines wait in memory" in command.out.read_text())
        filler.unlink()
        ended = command.wait()
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    assert "written again, no line is missing" in ended.out
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == list(range(80))


@pytest.mark.dist
def test_killed_data_worker_is_named(workspace: Path, tmp_path: Path) -> None:
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={tmp_path}/run")
    with forked(tmp_path, *recipe, *MORE_STEPS, "data.workers=1", ranks=2) as command:
        command.until(lambda: num_steps(tmp_path / "run") > 3)
        (worker,) = command.find("RANK", "1", "trainer.data.worker")
        os.kill(worker, signal.SIGKILL)
        ended = command.wait(within_sec=30)
    assert ended.code == 1, ended.err
    told = re.findall(rf"data worker 0 \(process {worker}\): exit code = -9; expected", ended.err)
    assert len(told) == 1, ended.err
    assert ended.err.count("rank 1 (host ") == 1
    assert "Traceback" not in ended.err


@pytest.mark.dist
def test_data_file_that_shrinks_ends_the_run(workspace: Path, tmp_path: Path) -> None:
    shutil.copy(workspace / "ir.jsonl", tmp_path / "ir.jsonl")
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={tmp_path}/run")
    # not with a worker: it is hundreds of such small batches ahead, which are as good as ever
    data = f"data.sources.ir.path={tmp_path}/ir.jsonl"
    with forked(tmp_path, *recipe, *MORE_STEPS, data) as command:
        command.until(lambda: num_steps(tmp_path / "run") > 3)
        os.truncate(tmp_path / "ir.jsonl", 100)
        ended = command.wait(within_sec=60)
    assert ended.code == 2, ended.err
    assert ended.err.count(f"{tmp_path}/ir.jsonl: content = 100 bytes, ") == 1, ended.err
    assert "Traceback" not in ended.err


def test_no_duration_is_taken_from_a_clock_that_can_be_set_back() -> None:
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "trainer").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.time", "time.time_ns")
    ]
    assert calls == []
