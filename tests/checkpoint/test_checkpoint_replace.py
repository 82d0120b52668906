"""A folder that takes another's name: whenever the process is killed, one of the two is there."""

import os
import signal
import sys
from pathlib import Path

import pytest

from trainer.checkpoint import replace
from trainer.checkpoint.replace import replace_folder, restore_replaced

CHANGES = ("os.rename", "os.remove", "os.rmdir")
"""What the interpreter reports just before it asks the system."""
MOST_CHANGES = 20


def make(folder: Path, content: str) -> Path:
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(content)
    return folder


def read(folder: Path) -> set[str]:
    """Contents of a whole folder; empty of one that lacks a file."""
    files = [folder / name for name in ("a", "b")]
    return {file.read_text() for file in files} if all(file.is_file() for file in files) else set()


def replace_and_die(parent: Path, number: int) -> bool:
    """Replace in a child that is killed before its nth change; whether it was."""
    child = os.fork()
    if child == 0:
        left = [number]

        def count(event: str, arguments: tuple[object, ...]) -> None:
            if event in CHANGES:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        replace_folder(parent / "new", parent / "name")
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_kill_at_any_moment_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        # as file systems answer that cannot
        monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
    for number in range(MOST_CHANGES):
        parent = tmp_path / str(number)
        parent.mkdir()
        make(parent / "name", "old")
        make(parent / "new", "new")
        was_killed = replace_and_die(parent, number)
        if can_exchange:
            assert read(parent / "name") in ({"old"}, {"new"})
        restore_replaced(parent)
        assert read(parent / "name") in ({"old"}, {"new"})
        if not was_killed:
            break
    assert number >= 3
    assert read(parent / "name") == {"new"}
    assert [path.name for path in parent.iterdir()] == ["name"]


def test_a_new_name_and_a_link_are_taken(tmp_path: Path) -> None:
    replace_folder(make(tmp_path / "new", "1"), tmp_path / "name")
    assert read(tmp_path / "name") == {"1"}
    elsewhere = make(tmp_path / "elsewhere", "2")
    (tmp_path / "link").symlink_to(elsewhere)
    replace_folder(tmp_path / "name", tmp_path / "link")
    assert read(tmp_path / "link") == {"1"}
    assert read(elsewhere) == {"2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]
