"""Two hosts on one machine, made of namespaces: each has its network, name, processes and mounts.

They are joined by one cable (a pair of virtual interfaces), which a test can cut. Nothing is added
to the machine's own network, and only processes inside the namespaces are ended.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.launched import ROOT, environment

CABLE = "veth1"
"""Name of the interface on each host."""
NAMES = ("h1", "h2")
ADDRESSES = {"h1": "10.77.0.1", "h2": "10.77.0.2"}
FILES = Path("/etc/netns")
"""Where `ip netns exec` looks for a host's own /etc/hosts."""


def missing() -> str | None:
    """Why hosts cannot be made here, or None where they can."""
    if os.geteuid() != 0:
        return "needs root to make namespaces"
    for tool in ("ip", "unshare", "mount"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    probe = f"probe{os.getpid()}"
    made = subprocess.run(["/usr/bin/env", "ip", "netns", "add", probe], check=False)
    if made.returncode:
        return "may not make network namespaces"
    _ip("netns", "del", probe)
    return None


def _ip(*arguments: str, check: bool = True) -> str:
    """Run `ip`; its output."""
    command = ["/usr/bin/env", "ip", *arguments]
    return subprocess.run(command, check=check, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Hosts:
    """Two hosts that are up."""

    prefix: str
    """Of the names of their namespaces."""
    folder: Path
    """For their files."""

    def space(self, host: str) -> str:
        """Name of a host's network namespace."""
        return f"{self.prefix}{host}"

    def start(
        self,
        host: str,
        *command: str,
        local: Mapping[Path, Path] | None = None,
        log: str = "out",
        **variables: str,
    ) -> subprocess.Popen[str]:
        """Start a command on a host, in the project's root.

        Args:
            host: one of `NAMES`.
            *command: what to run.
            local: folders that are other folders on this host, as a disk of its own would be.
            log: its output goes to the file HOST.LOG.
            **variables: of its environment.
        """
        mounts = "".join(f"mount --bind {own} {seen}; " for seen, own in (local or {}).items())
        inside = f'hostname {host}; mount -t tmpfs tmpfs /dev/shm; {mounts}exec "$@"'
        separate = (
            "unshare",
            "--mount",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        )
        into = ("/usr/bin/env", "ip", "netns", "exec", self.space(host), *separate)
        names = {"GLOO_SOCKET_IFNAME": CABLE, "HOSTNAME": host}
        with (self.folder / f"{host}.{log}").open("w") as out:
            return subprocess.Popen(
                [*into, "bash", "-c", inside, "bash", *command],
                cwd=ROOT,
                env=environment(**names, **variables),
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def output(self, host: str) -> str:
        """What a host's last command has printed."""
        return (self.folder / f"{host}.out").read_text()

    def processes(self, host: str) -> list[int]:
        """All processes on a host."""
        return [int(word) for word in _ip("netns", "pids", self.space(host)).split()]

    def ranks(self, host: str) -> list[int]:
        """The training processes on a host."""
        return [process for process in self.processes(host) if _trains(process)]

    def cut(self) -> None:
        """ValueAndGrad the cable."""
        _ip("-n", self.space("h2"), "link", "set", CABLE, "down")

    def end(self) -> None:
        """End whatever runs on the hosts."""
        for host in NAMES:
            for process in self.processes(host):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def _trains(process: int) -> bool:
    """Whether a process is a rank: the script itself, not a launcher or a worker of it."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    runs = any(word.endswith(b"trainer/run.py") for word in words[:4])
    return runs and any(variable.startswith(b"RANK=") for variable in variables)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Bring two hosts up, and end and remove all of them afterwards."""
    hosts = Hosts(f"t{os.getpid()}", folder)
    try:
        for name in NAMES:
            _ip("netns", "add", hosts.space(name))
            known = FILES / hosts.space(name)
            known.mkdir(parents=True)
            lines = ["127.0.0.1 localhost", *(f"{ADDRESSES[host]} {host}" for host in NAMES)]
            (known / "hosts").write_text("\n".join(lines) + "\n")
            (known / "resolv.conf").write_text("")
        one, two = (hosts.space(name) for name in NAMES)
        _ip("link", "add", CABLE, "netns", one, "type", "veth", "peer", "name", CABLE, "netns", two)
        for name in NAMES:
            space = hosts.space(name)
            _ip("-n", space, "addr", "add", f"{ADDRESSES[name]}/24", "dev", CABLE)
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", CABLE, "up")
        yield hosts
    finally:
        hosts.end()
        for name in NAMES:
            _ip("netns", "del", hosts.space(name), check=False)
            shutil.rmtree(FILES / hosts.space(name), ignore_errors=True)
        with contextlib.suppress(OSError):
            FILES.rmdir()
