"""Two hosts by DeepSpeed's own launcher: hostfile, pdsh and ssh."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import CABLE, NAMES, Hosts
from tests.support.launched import BIN, LIMIT_SEC
from trainer.recipe.load import load_recipe

pytestmark = [pytest.mark.dist, pytest.mark.hosts]

TOOLS = ("pdsh", "ssh", "ssh-keygen", "/usr/sbin/sshd")
SSHD = """\
Port 22
ListenAddress 0.0.0.0
HostKey {folder}/host
AuthorizedKeysFile {folder}/id.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
StrictModes no
PidFile none
"""
SSH = """\
Host *
  IdentityFile {folder}/id
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
  StrictHostKeyChecking accept-new
  BatchMode yes
  ConnectTimeout 5
  ServerAliveInterval 5
  ServerAliveCountMax 3
"""
VARIABLES = f"""\
CUDA_VISIBLE_DEVICES=-1
HF_HUB_OFFLINE=1
OMP_NUM_THREADS=1
GLOO_SOCKET_IFNAME={CABLE}
"""
"""A launcher hands on hardly any variable by itself."""


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Path]:
    """Keys and settings of ssh in a folder, which holds an `ssh` that uses them."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: install openssh-server and pdsh")
    folder = tmp_path / "ssh"
    folder.mkdir()
    for name in ("id", "host"):
        command = ["/usr/bin/env", "ssh-keygen", "-q", "-t", "ed25519", "-N", ""]
        subprocess.run([*command, "-f", str(folder / name)], check=True)
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    (folder / "config").write_text(SSH.format(folder=folder))
    (folder / "variables").write_text(VARIABLES)
    shim = folder / "bin" / "ssh"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    shim.chmod(0o755)
    separated = Path("/run/sshd")
    made = not separated.exists()
    separated.mkdir(exist_ok=True)
    yield folder
    if made:
        separated.rmdir()


def test_hostfile_and_pdsh(hosts: Hosts, keys: Path, workspace: Path, tmp_path: Path) -> None:
    for host in NAMES:
        sshd = ("/usr/sbin/sshd", "-D", "-e", "-f", str(keys / "sshd_config"))
        hosts.start(host, *sshd, log="sshd")
    time.sleep(1.0)
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("h1 slots=1\nh2 slots=1\n")
    run = tmp_path / "run"
    launcher = hosts.start(
        "h1",
        str(BIN / "deepspeed"),
        f"--hostfile={hostfile}",
        "--master_addr=10.77.0.1",
        "--master_port=29517",
        "trainer/run.py",
        "--recipe",
        str(workspace / "recipe.yaml"),
        f"output_dir={run}",
        "train.max_steps=4",
        "eval.sets=[]",
        "train.betas=[0.9, 0.98]",
        'data.sources.ir.query_instruction=w2 "w1" w3',
        PATH=f"{keys / 'bin'}:{BIN}:/usr/bin:/bin:/usr/sbin:/sbin",
        DS_ENV_FILE=str(keys / "variables"),
    )
    code = launcher.wait(timeout=LIMIT_SEC)
    told = hosts.output("h1")
    assert code == 0, told
    assert "host h1: ranks 0 of 2" in told
    assert "host h2: ranks 1 of 2" in told
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((run / "finished.json").read_text())["step"] == 4
    # overrides came through two shells
    resolved = load_recipe(run / "recipe.yaml")
    assert resolved.train.betas == (0.9, 0.98)
    assert resolved.data.sources[0].query_instruction == 'w2 "w1" w3'
