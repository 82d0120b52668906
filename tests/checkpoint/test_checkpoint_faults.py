"""Spoiled checkpoints, disks that refuse, and hosts with a disk each: all ranks agree on the end.

One launch of two ranks tells it all; the real command is in test_checkpoint_commands.py.
"""

import dataclasses
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import corpus
from tests.support.ranks import run_ranks
from tests.support.sessions import cut, run_of, run_session
from trainer.checkpoint.manifest import digest, digests, read_manifest, verify, write_manifest
from trainer.errors import TrainerError

pytestmark = pytest.mark.dist

OFTEN = ("checkpoint.every_steps=1", "checkpoint.keep=9", "train.max_steps=3")


@dataclass
class Told:
    """What a rank brings back."""

    mistakes: dict[str, str] = field(default_factory=dict)
    """Messages by mistake, with exit codes."""
    starts: dict[str, int] = field(default_factory=dict)
    """Step at which a run was continued, by what was done to it."""
    left: dict[str, list[str]] = field(default_factory=dict)
    """Checkpoints folder after a failed save, by who could not write."""


@contextmanager
def small_files(enabled: bool) -> Iterator[None]:
    """The system refuses this process files above 20 kB, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if enabled:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Attack:
    """Runs a command when it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.target}'",)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def vouch(folder: Path) -> None:
    """Write the files' true hashes into the manifest, as somebody with bad intent would."""
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, files=digests(folder, manifest.files)))


def plant(path: Path, marker: Path) -> None:
    """Put code into a checkpoint's pickle and vouch for it."""
    content = torch.load(path, weights_only=False)
    torch.save({**content, "extra": Attack(marker)}, path)
    vouch(path.parent)


def lead_outside(folder: Path) -> None:
    """Vouch for a file that is not in the checkpoint."""
    manifest = read_manifest(folder)
    files = {"../../x": digest(folder / "manifest.json"), **manifest.files}
    write_manifest(folder, dataclasses.replace(manifest, files=files))


def other_step(folder: Path) -> None:
    """One flipped bit that leaves the manifest readable."""
    text = (folder / "manifest.json").read_text()
    assert '"step": 3' in text
    (folder / "manifest.json").write_text(text.replace('"step": 3', '"step": 2'))


SPOILED: dict[str, Callable[[Path], None]] = {
    "flipped": lambda f: flip(f / "step-3" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"),
    "cut": lambda f: halve(f / "step-3" / "embedder" / "tokenizer.json"),
    "missing": lambda f: (f / "step-3" / "zero_pp_rank_0_mp_rank_00_model_states.pt").unlink(),
    "no manifest": lambda f: (f / "step-3" / "manifest.json").unlink(),
    "manifest changed": lambda f: other_step(f / "step-3"),
    "outside": lambda f: lead_outside(f / "step-3"),
    "hostile": lambda f: plant(
        f / "step-3" / "zero_pp_rank_1_mp_rank_00_optim_states.pt", f / "marker"
    ),
}


def body(rank: int, world_size: int, folder: Path) -> Told:
    from torch.distributed import barrier

    told = Told()

    def alone(act: Callable[..., Any], *arguments: Any) -> None:
        barrier()
        if rank == 0:
            act(*arguments)
        barrier()

    def attempt(name: str, act: Callable[[], Any]) -> None:
        try:
            told.starts[name] = act()
        except TrainerError as error:
            told.mistakes[name] = f"{error} Exit code {error.exit_code}."

    run = run_of(folder, "whole", *OFTEN)
    run_session(run, resume=False)
    for name, limited in (("first rank", 0), ("last rank", 1)):
        with small_files(rank == limited):
            attempt(name, lambda: run.artifacts.save(4))
        told.left[name] = sorted(path.name for path in (folder / "whole/checkpoints").iterdir())
    run.artifacts.try_save(4)
    run.session.built.engine.destroy()
    for name, spoil in SPOILED.items():
        alone(partial(cut, after=3), folder / "whole", folder / name)
        alone(spoil, folder / name / "checkpoints")
    session = run_of(folder, "flipped", *OFTEN).session
    for name in SPOILED:
        run = elsewhere(session, folder / name)
        attempt(name, partial(run.prepare, resume=True))
    alone(spoil_all, folder / "flipped" / "checkpoints")
    run = elsewhere(session, folder / "flipped")
    attempt("none valid", partial(run.prepare, resume=True))
    told.starts |= apart(rank, folder, alone)
    return told


def spoil_all(checkpoints: Path) -> None:
    for tag in checkpoints.glob("step-*"):
        halve(tag / "manifest.json")


def elsewhere(session: Any, output: Path) -> Any:
    """The run of an opened session with another output folder."""
    from trainer.session.train import TrainingRun

    recipe = dataclasses.replace(session.recipe, output_dir=str(output))
    return TrainingRun.of(dataclasses.replace(session, recipe=recipe))


def apart(rank: int, folder: Path, alone: Callable[..., None]) -> dict[str, int]:
    """Each rank has a disk of its own, as hosts may; the second one's newest checkpoint is bad."""

    def opened() -> Any:
        # hosts must agree on the path, behind which each of them has another disk
        return elsewhere(run_of(folder, "disk", *OFTEN).session, folder / f"disk {rank}")

    run_session(opened(), resume=False)
    alone(flip, folder / "disk 1/checkpoints/step-3/zero_pp_rank_1_mp_rank_00_optim_states.pt")
    alone(shutil.copytree, folder / "disk 0" / "model", folder / "first model")
    run = opened()
    start: int = run.prepare(resume=True)
    from trainer.engine.loop import Interrupt

    run.fit(start, Interrupt())
    run.artifacts.export()
    return {"disk each": start}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    corpus.make_workspace(folder)
    return folder


@pytest.fixture(scope="module")
def told(workspace: Path) -> Told:
    first, second = run_ranks(body, 2, workspace, timeout_sec=240)
    assert first.starts == second.starts
    assert {**first.mistakes, "hostile": ""} == {**second.mistakes, "hostile": ""}
    return first


@pytest.mark.parametrize("who", ["first rank", "last rank"])
def test_failed_save_is_told_by_all_and_leaves_nothing(
    told: Told, workspace: Path, who: str
) -> None:
    assert re.search(r"step 4 was not saved: .*_states.pt: .*Exit code 1", told.mistakes[who])
    assert [name for name in told.left[who] if not name.startswith("zero_to_")] == [
        "latest", "step-1", "step-2", "step-3",
    ]  # fmt: skip


def test_a_later_save_succeeds(told: Told, workspace: Path) -> None:
    folder = workspace / "whole" / "checkpoints" / "step-4"
    manifest = read_manifest(folder)
    verify(folder, manifest, manifest.files)


@pytest.mark.parametrize("what", [what for what in SPOILED if what != "hostile"])
def test_falls_back_to_the_newest_valid_one(told: Told, what: str) -> None:
    assert told.starts[what] == 2


def test_none_valid_is_no_fresh_start(told: Told) -> None:
    message = told.mistakes["none valid"]
    assert re.search(r"no valid checkpoint among 3; .*step-3/manifest.json.*code 2", message)


def test_code_in_a_pickle_is_refused_by_name(told: Told, workspace: Path) -> None:
    wanted = r"zero_pp_rank_1_mp_rank_00_optim_states.pt: pickled names = posix.system; .*code 2"
    assert re.search(wanted, told.mistakes["hostile"])
    assert not (workspace / "hostile" / "checkpoints" / "marker").exists()
    # the planted code is real: a reader without care runs it
    path = workspace / "hostile/checkpoints/step-3/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    torch.load(path, weights_only=False)
    assert (workspace / "hostile" / "checkpoints" / "marker").exists()


def test_hosts_with_a_disk_each_continue_a_common_checkpoint(told: Told, workspace: Path) -> None:
    assert told.starts["disk each"] == 2
    for rank in (0, 1):
        names = read_manifest(workspace / f"disk {rank}" / "checkpoints" / "step-2").files
        assert [name for name in names if f"zero_pp_rank_{1 - rank}" in name] == []
        assert len([name for name in names if f"zero_pp_rank_{rank}" in name]) == 2
    again, first = (workspace / "disk 0" / "model", workspace / "first model")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (again, first)]
    assert weights[0] == weights[1]


def test_deepspeed_itself_is_given_no_code(workspace: Path) -> None:
    from trainer.checkpoint.deepspeed_files import CheckpointFiles

    path = workspace / "attack.pt"
    torch.save({"a": Attack(workspace / "ran")}, path)
    with pytest.raises(TrainerError, match=r"attack.pt: content = unsafe or damaged"):
        CheckpointFiles().load(str(path))
    assert not (workspace / "ran").exists()
