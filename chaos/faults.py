"""What `tools/chaos.py` does to a run: kills by a seeded plan, and damage between launches."""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

Kill = Literal["all", "rank", "saving", "starting", "worker", "full disk"]
Damage = Literal["none", "flip", "truncate", "remove", "torn line"]
KILLS: tuple[Kill, ...] = ("saving", "rank", "starting", "worker", "all")
DAMAGES: tuple[Damage, ...] = ("none", "flip", "truncate", "remove", "torn line")
TOKEN = "CHAOS_LAUNCH"
"""Variable of the environment by which a launch's processes are known."""
POLL_SEC = 0.002
STARTING_SEC = 9.0
"""A launch takes a little longer until its first step; a kill at start falls into that time."""
SAVING_SEC = 0.25
"""A save of the tiny model takes about so long."""
STARVED_STEPS = 4
"""Saves are due every second step."""
LEFT_BYTES = 200_000
"""Of a full disk: too little for a checkpoint, enough for lines of metrics."""
END_SEC = 60.0
"""How long what is left of a launch may take to end by itself."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One kill of the plan, and what is done before the next launch."""

    kill: Kill
    """Whom: the launcher and all it started, one rank, a data worker; or when: in a save, before
    the first step, after saves failed on a full disk."""
    step: int
    """It happens once this step has been taken."""
    delay_sec: float
    """And so much later."""
    damage: Damage
    """To the newest checkpoint or the metrics file."""


def make_plan(seed: int, kills: int, steps: int, *, can_fill: bool) -> list[Event]:
    """Kills spread over the run, so that each launch gets further; the first kinds are all tried.

    Args:
        seed: of all choices.
        kills: how many.
        steps: of the run.
        can_fill: whether the disk of the run can be filled.
    """
    rng = random.Random(seed)
    known: tuple[Kill, ...] = (*KILLS, "full disk") if can_fill else KILLS
    kinds = [known[i % len(known)] for i in range(kills)]
    harms = [DAMAGES[i % len(DAMAGES)] for i in range(kills)]
    rng.shuffle(kinds)
    rng.shuffle(harms)
    plan = []
    for i, (kind, harm) in enumerate(zip(kinds, harms, strict=True)):
        low, high = (1 + (steps - 4) * k // kills for k in (i, i + 1))
        delay = rng.uniform(0, {"starting": STARTING_SEC}.get(kind, SAVING_SEC))
        plan.append(Event(kill=kind, step=rng.randrange(low, max(high, low + 1)),
                          delay_sec=delay, damage=harm))  # fmt: skip
    return plan


def strike(event: Event, process: subprocess.Popen[str], run: Path, token: str) -> bool:
    """Wait for an event's moment and kill; what is not killed must end by itself.

    Args:
        event: what and when.
        process: the launcher.
        run: output folder.
        token: value of `TOKEN` in the launch's environment.

    Returns:
        False when the launch ended before.

    Raises:
        TimeoutError: it did not.
    """
    begun, old = time.monotonic(), _metrics_file(run)
    while process.poll() is None:
        if event.kill == "starting":
            if time.monotonic() - begun >= event.delay_sec:
                break
        elif _reached(event.step, run, old) and (event.kill != "saving" or _is_saving(run)):
            if event.kill == "full disk":
                _starve(process, run)
            time.sleep(event.delay_sec)
            break
        time.sleep(POLL_SEC)
    victims = _victims(event.kill, token)
    for victim in victims:
        _kill(victim)
    if victims and event.kill not in ("rank", "worker"):
        # what was about to be started when its parent died
        for late in _processes(token):
            _kill(late)
    _await_end(process, token)
    return bool(victims)


def _processes(token: str) -> list[psutil.Process]:
    """Whatever a launch started and is alive, by a word in its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(TOKEN) == token:
                found.append(process)
    return found


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


def _victims(kind: Kill, token: str) -> list[psutil.Process]:
    """Whom to kill; everybody where the wanted one is not there yet."""
    wanted = {"rank": "trainer/run.py --local_rank", "worker": "trainer.data.worker"}
    everybody = _processes(token)
    chosen = [one for one in everybody if kind in wanted and _is(one, wanted[kind])]
    return chosen[-1:] or everybody


def _is(process: psutil.Process, words: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return words in " ".join(process.cmdline())
    return False


def _await_end(process: subprocess.Popen[str], token: str) -> None:
    """Everything must be gone before the next launch."""
    deadline = time.monotonic() + END_SEC
    while process.poll() is None or _processes(token):
        if time.monotonic() > deadline:
            left = [one.pid for one in _processes(token)]
            raise TimeoutError(f"{left} did not end within {END_SEC:.0f} s of a kill")
        time.sleep(0.1)


def _metrics_file(run: Path) -> int | None:
    """What distinguishes the metrics file of one launch from that of the next."""
    with contextlib.suppress(OSError):
        return (run / "metrics.jsonl").stat().st_ino
    return None


def _reached(step: int, run: Path, old: int | None) -> bool:
    """Whether this launch has taken a step; lines of an earlier one do not count."""
    return _metrics_file(run) not in (None, old) and _last_step(run) >= step


def _last_step(run: Path) -> int:
    """Steps that the metrics file lists, without parsing it."""
    with contextlib.suppress(OSError):
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def _is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".partial-*"))


def harm(damage: Damage, run: Path, rng: random.Random) -> str:
    """Damage the newest of several checkpoints, or the last line of the metrics.

    Returns:
        What was done, for a person; empty for nothing.
    """
    if damage == "torn line":
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 9999, "lo')
        return "metrics.jsonl: half a line"
    tags = sorted((run / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
    if len(tags) < 2 or damage == "none":
        return ""
    files = sorted(path for path in tags[-1].rglob("*") if path.is_file())
    victim = rng.choice(files)
    content = bytearray(victim.read_bytes())
    place = rng.randrange(len(content))
    if damage == "flip":
        content[place] ^= 1 << rng.randrange(8)
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(content[:place])
    else:
        victim.unlink()
    return f"{tags[-1].name}/{victim.name}: {damage}"


def _starve(process: subprocess.Popen[str], run: Path) -> None:
    """Leave no room for a checkpoint while the run takes a few steps more."""
    begun, first = time.monotonic(), _last_step(run)
    with filled(run):
        while _last_step(run) < first + STARVED_STEPS and process.poll() is None:
            if time.monotonic() - begun > END_SEC:
                raise TimeoutError("the run took no step on a full disk")
            time.sleep(POLL_SEC)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """A disk with next to no room during the block."""
    filler = folder / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - LEFT_BYTES)
        yield
    finally:
        filler.unlink(missing_ok=True)


def mount_small_disk(folder: Path, size_bytes: int) -> bool:
    """A small disk of its own in memory; returns False where the user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = shutil.which("mount")
    if os.geteuid() != 0 or command is None:
        return False
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "chaos", str(folder)]
    return subprocess.run([command, *options], check=False, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    """Take a small disk away, with all on it."""
    command = shutil.which("umount")
    if command is not None and os.path.ismount(folder):
        done = subprocess.run([command, str(folder)], check=False, capture_output=True)
        if done.returncode:
            raise OSError(errno.EBUSY, "the disk is in use", str(folder))
