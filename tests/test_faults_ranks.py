"""A rank that dies ends the whole command at once, with one message that names it."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.corpus import make_workspace
from tests.support.forked import finish_forked
from tests.support.launched import by_deepspeed, launched, num_steps

pytestmark = pytest.mark.dist

MORE_STEPS = ("train.max_steps=100000", "eval.sets=[]")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    return folder


@pytest.mark.parametrize(("dies", "speaks"), [(1, 0), (0, 1)])
def test_killed_rank_ends_all_within_30_seconds_and_is_named(
    workspace: Path, tmp_path: Path, dies: int, speaks: int
) -> None:
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={tmp_path}/run")
    with launched(tmp_path, by_deepspeed(), *recipe, *MORE_STEPS) as run:
        run.until(lambda: num_steps(tmp_path / "run") > 3)
        killed = run.rank(dies)
        os.kill(killed, signal.SIGKILL)
        ended = run.wait(within_sec=30)
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
