"""A rank that dies ends the whole command at once, with one message that names it."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.corpus import make_workspace
from tests.support.forked import finish_forked, forked
from tests.support.launched import Ended, Launched, by_deepspeed, launched, num_steps

pytestmark = pytest.mark.dist

MORE_STEPS = ("train.max_steps=100000", "eval.sets=[]", "data.workers=1")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    return folder


def test_killed_rank_ends_all_within_30_seconds_and_is_named(
    workspace: Path, tmp_path: Path
) -> None:
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={tmp_path}/run")
    with forked(tmp_path, *recipe, *MORE_STEPS, ranks=2) as run:
        ended, killed = killed_in(run, tmp_path, dies=1)
    assert_named(ended, killed, dies=1, speaks=0)


@pytest.mark.slow
def test_launcher_lets_the_other_rank_name_the_first(workspace: Path, tmp_path: Path) -> None:
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={tmp_path}/run")
    with launched(tmp_path, by_deepspeed(), *recipe, *MORE_STEPS) as run:
        ended, killed = killed_in(run, tmp_path, dies=0)
    assert_named(ended, killed, dies=0, speaks=1)


def killed_in(run: Launched, folder: Path, *, dies: int) -> tuple[Ended, int]:
    """Kill a rank of a run that trains; how all of it ends within 30 seconds, and the process."""
    run.until(lambda: num_steps(folder / "run") > 3)
    killed = run.rank(dies)
    os.kill(killed, signal.SIGKILL)
    return run.wait(within_sec=30), killed


def assert_named(ended: Ended, killed: int, *, dies: int, speaks: int) -> None:
    """One message, by the rank that is left."""
    assert ended.code != 0
    told = re.findall(
        rf"rank (\d) \(host (.+), process {killed}\): state = ended without a word, while rank "
        rf"(\d) was (in|after) step \d+(?: \((ir|sts), source (?:ir|sts)\))?; expected 2 ranks",
        ended.err,
    )
    assert len(told) == 1, ended.err
    assert (told[0][0], told[0][2]) == (str(dies), str(speaks))
    assert "Traceback" not in ended.err, ended.err


def test_rank_with_an_error_of_its_own_ends_all(workspace: Path, tmp_path: Path) -> None:
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={tmp_path}/run")
    script = "tests/support/faults.py"
    ended = finish_forked(tmp_path, *recipe, *MORE_STEPS, script=script, ranks=2, PLANT="error:3:1")
    assert ended.code == 1
    told = re.findall(r"rank 1 \(.*\): state = failed with ValueError: only here, while", ended.err)
    assert len(told) == 1, ended.err
    assert ended.err.count("ValueError: only here\n") == 1, ended.err
