"""Files of mined negatives: whole or not taken, copied with a checkpoint, and put back."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from trainer.checkpoint.mined import copy_mined, restore_mined
from trainer.session.mining import publish, read_kept, remove_others

FOUND = {"source": "ir", "queries": 2}


def mined(root: Path, step: int, content: int = 0) -> Path:
    """A file of a mining before a step, as a run publishes it."""
    work = root / ".work"
    work.mkdir(parents=True)
    np.save(work / "places.npy", np.full((2, 1), content))
    file = root / "ir" / f"{step}.npy"
    publish(work / "places.npy", file, {"identity": "a", "found": FOUND})
    return file


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_is_taken_where_it_is_whole_and_of_the_same_mining(tmp_path: Path) -> None:
    file = mined(tmp_path, 3)
    assert names(tmp_path) == ["ir", "ir/3.json", "ir/3.npy"]
    assert read_kept(file, "a") == FOUND
    assert read_kept(file, "b") is None
    for spoil in (
        lambda: np.save(file, np.full((2, 1), 7)),
        file.unlink,
        lambda: file.with_suffix(".json").write_text("{"),
        file.with_suffix(".json").unlink,
    ):
        spoil()
        assert read_kept(file, "a") is None
    # one that is mined again replaces what is there
    assert read_kept(mined(tmp_path, 3, 5), "a") == FOUND


def test_only_what_is_in_force_stays(tmp_path: Path) -> None:
    for step in (3, 6):
        mined(tmp_path, step)
    remove_others(tmp_path, 6)
    assert names(tmp_path) == ["ir", "ir/6.json", "ir/6.npy"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_checkpoint_has_a_copy_that_nothing_changes(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, checkpoint = tmp_path / "mined", tmp_path / "step-4" / "mined"
    mined(run, 3)
    if not has_links:

        def refuse(*paths: object) -> None:
            raise PermissionError("no links here")

        monkeypatch.setattr("os.link", refuse)
    (run / ".work").mkdir()
    np.save(run / ".work" / "places.npy", 1)
    copy_mined(run, checkpoint)
    shutil.rmtree(run / ".work")
    assert names(checkpoint) == ["ir", "ir/3.npy"]
    copy_mined(tmp_path / "nothing", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    # the run goes on, and then falls back
    remove_others(run, 6)
    mined(run, 6)
    mined(run, 3, 9)
    assert (np.load(checkpoint / "ir" / "3.npy") == 0).all()
    (run / ".work" / "passages").mkdir(parents=True)
    restore_mined(checkpoint, run, step=4)
    assert names(run) == ["ir", "ir/3.npy"]
    assert (np.load(run / "ir" / "3.npy") == 0).all()
    # what is due there may be the same as what is to come
    mined(run, 6)
    restore_mined(checkpoint, run, step=6)
    assert {"ir/3.npy", "ir/6.npy", "ir/6.json"} < set(names(run))
    restore_mined(None, run, step=0)
    assert names(run) == []
