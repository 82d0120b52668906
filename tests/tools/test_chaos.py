"""The chaos script on two kills: it ends well, and its plan covers every kind for any seed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.faults import KILLS, harm, make_plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.dist
@pytest.mark.slow
def test_two_kills_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "tools/chaos.py", "--kills", "2", "--seed", "3", "--json"]
    ended = subprocess.run(
        [*command, "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["kills"] == 2
    assert result["bit_identical"] is True
    assert result["steps_repeated"] == result["steps_missing"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_plan_tries_every_kind_in_order_of_steps(seed: int) -> None:
    plan = make_plan(seed, 20, 80, can_fill=True)
    assert {event.kill for event in plan} == {*KILLS, "full disk"}
    steps = [event.step for event in plan]
    assert steps == sorted(steps)
    assert 0 < min(steps) <= max(steps) < 80
    assert plan == make_plan(seed, 20, 80, can_fill=True)


def test_damage_spares_the_only_checkpoint(tmp_path: Path) -> None:
    import random

    (tmp_path / "checkpoints" / "step-2").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-2" / "file").write_bytes(b"12")
    assert harm("flip", tmp_path, random.Random(0)) == ""
    (tmp_path / "checkpoints" / "step-4").mkdir()
    (tmp_path / "checkpoints" / "step-4" / "file").write_bytes(b"12")
    assert harm("remove", tmp_path, random.Random(0)) == "step-4/file: remove"
    assert (tmp_path / "checkpoints" / "step-2" / "file").read_bytes() == b"12"
