"""Two hosts by torchrun: the same numbers as one, one disk or two, and every fault told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import NAMES, Hosts
from tests.support.launched import LIMIT_SEC, ROOT, environment, num_steps

pytestmark = [pytest.mark.dist, pytest.mark.hosts]

SHORT = ("train.max_steps=6", "eval.sets=[]", "data.workers=0", "checkpoint.every_steps=2")
ENDLESS = ("train.max_steps=100000", "eval.sets=[]", "checkpoint.every_steps=null")


def torchrun(*arguments: str) -> list[str]:
    """Two hosts of one rank each; the first host's address is the meeting point."""
    meeting = ("--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29511", "--rdzv-id=test")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1")
    return [*launcher, *meeting, "trainer/run.py", *arguments]


def start(hosts: Hosts, *arguments: str, **settings: Any) -> list[subprocess.Popen[str]]:
    """The same command on both hosts."""
    return [hosts.start(host, *torchrun(*arguments), **settings) for host in NAMES]


def wait(hosts: Hosts, running: list[subprocess.Popen[str]]) -> str:
    """Both end well; what the first host printed."""
    for process in running:
        code = process.wait(timeout=LIMIT_SEC)
        assert code == 0, hosts.output("h1") + hosts.output("h2")
    return hosts.output("h1")


def until(reached: Callable[[], bool], hosts: Hosts, running: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + LIMIT_SEC
    while not reached():
        ended = [process.poll() for process in running if process.poll() is not None]
        assert not ended, hosts.output("h1") + hosts.output("h2")
        assert time.monotonic() < deadline, hosts.output("h1") + hosts.output("h2")
        time.sleep(0.1)


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def recipe(workspace: Path, run: Path) -> tuple[str, ...]:
    return ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={run}")


def test_two_hosts_train_as_two_ranks_of_one(workspace: Path, hosts: Hosts, tmp_path: Path) -> None:
    out = wait(hosts, start(hosts, *recipe(workspace, tmp_path / "two"), *SHORT))
    assert "host h1: ranks 0 of 2" in out
    assert "host h2: ranks 1 of 2" in out
    alone = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*alone, "trainer/run.py", *recipe(workspace, tmp_path / "one"), *SHORT],
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
        timeout=LIMIT_SEC,
    )
    # the same arithmetic in the same order, over another network
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert len(losses(tmp_path / "two")) == 6
    assert (tmp_path / "two" / "finished.json").exists()


def test_killed_rank_of_the_second_host_is_named_on_the_first(
    workspace: Path, hosts: Hosts, tmp_path: Path
) -> None:
    running = start(hosts, *recipe(workspace, tmp_path / "run"), *ENDLESS)
    until(lambda: num_steps(tmp_path / "run") > 2, hosts, running)
    (victim,) = hosts.ranks("h2")
    os.kill(victim, signal.SIGKILL)
    assert running[0].wait(timeout=30) != 0
    told = hosts.output("h1")
    assert "rank 1 (host h2, process " in told, told
    assert not (tmp_path / "run" / "finished.json").exists()


def test_cut_cable_ends_the_command_within_the_timeout_and_30_seconds(
    workspace: Path, hosts: Hosts, tmp_path: Path
) -> None:
    timeout_sec = 15
    minutes = f"engine.timeout_minutes={timeout_sec / 60}"
    running = start(hosts, *recipe(workspace, tmp_path / "run"), *ENDLESS, minutes)
    until(lambda: num_steps(tmp_path / "run") > 2, hosts, running)
    hosts.cut()
    assert running[0].wait(timeout=timeout_sec + 30) != 0


@pytest.mark.parametrize("what", ["recipe", "data"])
def test_host_that_would_run_something_else_is_refused_by_name(
    workspace: Path, hosts: Hosts, tmp_path: Path, what: str
) -> None:
    common = (*recipe(workspace, tmp_path / "run"), *SHORT)
    other, local = common, None
    if what == "recipe":
        other = (*common, "train.learning_rate=2e-3")
    else:
        changed = tmp_path / "other"
        shutil.copytree(workspace, changed, ignore=shutil.ignore_patterns("run"))
        lines = (changed / "ir.jsonl").read_text().splitlines(keepends=True)
        (changed / "ir.jsonl").write_text("".join(reversed(lines)))
        local = {workspace: changed}
    one = hosts.start("h1", *torchrun(*common))
    two = hosts.start("h2", *torchrun(*other), local=local)
    assert one.wait(timeout=LIMIT_SEC) != 0
    assert two.wait(timeout=LIMIT_SEC) != 0
    told = hosts.output("h1")
    key = "recipe: train.learning_rate = 0.002" if what == "recipe" else "data: ir = "
    assert f"host h2 (rank 1): {key}" in told, told
    assert num_steps(tmp_path / "run") == 0


def test_each_host_with_a_disk_of_its_own(workspace: Path, hosts: Hosts, tmp_path: Path) -> None:
    run = tmp_path / "run"
    disks = {host: tmp_path / f"disk-{host}" for host in NAMES}
    for folder in (run, *disks.values()):
        folder.mkdir()

    def launch(*arguments: str) -> str:
        running = [
            hosts.start(host, *torchrun(*arguments), local={run: disks[host]}) for host in NAMES
        ]
        return wait(hosts, running)

    told = (*recipe(workspace, run), *SHORT)
    launch(*told, "train.schedule=constant")
    whole = losses(disks["h1"])
    newest = [disks[host] / "checkpoints" / "step-6" for host in NAMES]
    assert all(folder.is_dir() for folder in newest)
    # one host loses its newest checkpoint: all go back to the newest that both have
    shutil.rmtree(newest[1])
    out = launch(*told, "train.schedule=constant", "--resume")
    assert "step-6" in out
    assert "resumed from step-4" in out
    assert losses(disks["h1"]) == whole
