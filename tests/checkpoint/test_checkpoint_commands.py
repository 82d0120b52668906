"""Checkpoints through the real command: malformed ones, merged ones, and a full disk."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import corpus
from tests.support.forked import finish_forked, forked
from tests.support.launched import lines, num_steps
from trainer.checkpoint.manifest import read_manifest, verify

pytestmark = pytest.mark.dist

DISK_BYTES = 24 << 20
MINUTES = 1e-6
"""60 us, shorter than any step: saving by time alone then happens at each."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    corpus.make_workspace(folder)
    return folder


def arguments(workspace: Path, name: str, *more: str) -> list[str]:
    """Four steps, saved by time alone, merged in the end."""
    return [
        "--recipe", str(workspace / "recipe.yaml"), f"output_dir={workspace}/{name}",
        "eval.sets=[]", "train.max_steps=4", "checkpoint.every_steps=null",
        f"checkpoint.every_minutes={MINUTES}", "checkpoint.keep=4",
        "checkpoint.merge.last=3", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(workspace: Path) -> Path:
    """A run on one rank."""
    ended = finish_forked(workspace, *arguments(workspace, "run"))
    assert ended.code == 0, ended.out + ended.err
    return workspace / "run"


def test_saves_by_time(finished: Path) -> None:
    tags = [path.name for path in (finished / "checkpoints").glob("step-*")]
    assert sorted(tags) == ["step-1", "step-2", "step-3", "step-4"]


def test_the_last_checkpoints_are_merged(finished: Path, workspace: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from trainer.merge import MergeSettings, merge_checkpoints

    tags = [finished / "checkpoints" / f"step-{step}" for step in (2, 3, 4)]
    settings = MergeSettings(memory_budget_bytes=None)
    merge_checkpoints(workspace / "model", tags, workspace / "by hand", settings)
    weights = [
        (folder / "model.safetensors").read_bytes()
        for folder in (finished / "merged", workspace / "by hand", finished / "model")
    ]
    assert weights[0] == weights[1] != weights[2]
    assert SentenceTransformer(str(finished / "merged")).prompts["query"] == "w1 w2 "


def test_both_exports_have_a_card(finished: Path) -> None:
    whole, merged = ((finished / name / "README.md").read_text() for name in ("model", "merged"))
    assert f'SentenceTransformer("{finished}/model")' in whole
    assert f'SentenceTransformer("{finished}/merged")' in merged
    assert "## Merge" not in whole
    names = ", ".join(f"`run/checkpoints/step-{step}`" for step in (2, 3, 4))
    assert f"| checkpoints | {names} |" in merged


def test_spoiled_checkpoints_are_named_and_passed_over(finished: Path, workspace: Path) -> None:
    shutil.copytree(finished, workspace / "malformed")
    checkpoints = workspace / "malformed" / "checkpoints"
    optimizer = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    flipped = checkpoints / "step-4" / optimizer
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut = checkpoints / "step-3" / optimizer
    cut.write_bytes(cut.read_bytes()[:-1])
    (checkpoints / "step-2" / "embedder" / "config.json").unlink()
    # what the page on the run cannot be made of costs the page only
    (workspace / "malformed" / "merged" / "merge.json").write_text("{")
    shutil.rmtree(workspace / "malformed" / "model")
    with (workspace / "malformed" / "metrics.jsonl").open("ab") as file:
        file.write(b"\0\xff\n")
    more = arguments(workspace, "malformed", "--resume", "engine.max_tokens_per_chunk=48")
    ended = finish_forked(workspace, *more)
    assert ended.code == 0, ended.out + ended.err
    for words in (
        rf"step-4 is skipped: .*step-4/{optimizer}: content changed",
        rf"step-3 is skipped: .*step-3/{optimizer}: size = ",
        r"step-2 is skipped: .*step-2/embedder/config.json: missing",
        r"since checkpoint step-1: engine.max_tokens_per_chunk = 48 \(was 64\)",
        r"resumed from step-1: next step is 1",
        r"report.html: not written \(DataError: .*merge.json: '\{'; expected a JSON object",
    ):
        assert re.search(words, ended.out), words
    assert [line["step"] for line in lines(workspace / "malformed" / "metrics.jsonl")] == [
        0,
        1,
        2,
        3,
    ]
    assert (workspace / "malformed" / "model" / "model.safetensors").is_file()


def test_none_valid_or_another_run_ends_with_code_2(finished: Path, workspace: Path) -> None:
    shutil.copytree(finished, workspace / "hopeless")
    changed = ("--resume", "seed=8", "train.learning_rate=0.1", "train.max_steps=5")
    ended = finish_forked(workspace, *arguments(workspace, "hopeless", *changed))
    assert ended.code == 2
    for words in (r"seed = 8 \(was 7\)", r"train.learning_rate = 0.1 \(was 0.001\)",
                  r"train.max_steps = 5 \(was 4\)", "or start anew in another"):  # fmt: skip
        assert re.search(words, ended.err), ended.err
    for manifest in (workspace / "hopeless" / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    ended = finish_forked(workspace, *arguments(workspace, "hopeless", "--resume"))
    assert ended.code == 2
    assert "no valid checkpoint among 4; expected one." in ended.err
    assert "Traceback" not in ended.err


@pytest.fixture
def small_disk(workspace: Path) -> Iterator[Path]:
    """Mounted where the run's checkpoints go."""
    mount, folder = shutil.which("mount"), workspace / "full" / "checkpoints"
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root may mount a small disk")
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "small", str(folder)]
    if subprocess.run([mount, *options], check=False, capture_output=True).returncode:
        pytest.skip("this system does not let root mount a small disk")
    yield folder
    # Lazily: a failed test may leave a process on it that is still ending.
    subprocess.run([shutil.which("umount") or "umount", "--lazy", str(folder)], check=True)


def filled(path: Path) -> bool:
    """Make a file longer until its disk is full, whoever else writes there meanwhile."""
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(64 << 10))
    return True


def remount(folder: Path, mode: str) -> None:
    """Change a mount under the run; it is refused while a file is being written."""
    command = [shutil.which("mount") or "mount", "-o", f"remount,{mode}", str(folder)]
    for _ in range(200):
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.01)
    pytest.fail(f"the small disk could not be remounted {mode}")


def valid_steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints, each of which must be as its manifest says."""
    manifests = {path: read_manifest(path) for path in checkpoints.glob("step-*")}
    for path, manifest in manifests.items():
        verify(path, manifest, manifest.files)
    return sorted(manifest.step for manifest in manifests.values())


def test_full_and_read_only_disk_cost_no_step(small_disk: Path, workspace: Path) -> None:
    run = small_disk.parent
    more = arguments(workspace, "full", "--resume", "train.max_steps=60", "checkpoint.merge=null",
                     "checkpoint.every_minutes=null", "checkpoint.every_steps=2",
                     "checkpoint.keep=2")  # fmt: skip
    with forked(workspace, *more, ranks=2) as command:
        command.until(lambda: num_steps(run) >= 4)
        filler = small_disk / "filler"
        # Again and again: what a checkpoint took may come free, of a failed save or an old one.
        command.until(lambda: filled(filler) and num_steps(run) >= 12)
        kept = valid_steps(small_disk)
        filler.unlink()
        command.until(lambda: min(valid_quietly(small_disk), default=0) > max(kept))
        remount(small_disk, "ro")
        now = num_steps(run)
        command.until(lambda: num_steps(run) >= now + 5)
        remount(small_disk, "rw")
        ended = command.wait()
    assert ended.code == 0, ended.out + ended.err
    assert kept
    assert valid_steps(small_disk) == [58, 60]
    assert re.search(r"checkpoint of step \d+ was not saved: .*free disk = ", ended.out)
    assert re.search(r"not saved: .*Read-only file system", ended.out)
    assert re.search(r"Training goes on; saving is tried again after step \d+", ended.out)
    assert not list(small_disk.glob(".partial-*"))
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == list(range(60))


def valid_quietly(checkpoints: Path) -> list[int]:
    """Steps whose checkpoints have their names, while they may come and go."""
    return [int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")]
