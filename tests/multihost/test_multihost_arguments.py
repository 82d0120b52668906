"""What DeepSpeed's launcher and a remote shell make of overrides, as docs/hosts.md says."""

import subprocess
from argparse import Namespace

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner

SURVIVING = (
    "train.learning_rate=1e-5",
    "output_dir=runs/a-b_c.d",
    "train.betas=[0.9, 0.98]",
    "tasks.ir.mask={margin: 0.1}",
    "data.sources.docs.query_instruction=Instruct: find it",
    'name=a "quoted" name',
    "model.lora={rank: 16, targets: [q_proj, v_proj]}",
)
CHANGED = (
    "train.betas={0.9,0.98}",
    "name=it's",
    "name=a;b",
    "name=$HOME",
    'name="a"',
    "name=costs $5",
)
"""Characters of the shell without a space beside them, and dollar signs anywhere."""


def arrives(override: str) -> list[str]:
    """What the remote shell hands to the command: pdsh joins all words by spaces."""
    runner = PDSHRunner.__new__(PDSHRunner)
    runner.args = Namespace(user_args=[override])
    words = " ".join(["/usr/bin/env", "printf", r"%s\\0", *runner.parse_user_args()])
    done = subprocess.run(
        ["/bin/bash", "-c", words], capture_output=True, text=True, cwd="/", check=False
    )
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("override", SURVIVING)
def test_override_that_survives(override: str) -> None:
    assert arrives(override) == [override]


@pytest.mark.parametrize("override", CHANGED)
def test_override_that_does_not(override: str) -> None:
    assert arrives(override) != [override]
