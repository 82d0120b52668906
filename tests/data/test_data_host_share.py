"""Steps made once for all ranks of a host: the same batches, whoever made them; nothing is left."""

import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.both_modes import assert_same, stores_in
from tests.support.data_files import byte_tokenizer, data_recipe, ir_source, write_jsonl
from trainer.data import host_share
from trainer.data.batch import (
    Batch,
    IrBatch,
    OwnTexts,
    StepPlan,
    StoredBatch,
    Texts,
    no_ids,
)
from trainer.data.deal import NO_TEXT
from trainer.data.host_share import HostShare, new_folder, read_shared, shared_folder, shared_memory
from trainer.data.loader import batches
from trainer.data.plan import DataPlan
from trainer.data.planned import plan_of
from trainer.data.sources import Source, open_sources
from trainer.data.token_store import TokenStore
from trainer.data.tokens import TextEncoder, make_encoder
from trainer.data.worker import Ahead
from trainer.recipe.schema import Recipe

NUM_RANKS = 3


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a run, in shared memory."""
    path = new_folder(f"test-{secrets.token_hex(4)}")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def stored(step: int, size: int = 5) -> StoredBatch:
    """A step whose arrays say which it is."""
    number = np.arange(size, dtype=np.int64) + step
    texts = Texts(token_ids=no_ids(number), num_prompt_tokens=np.broadcast_to(3, size), groups=None)
    plan = StepPlan(step=step, task="ir", source="s", epoch=0, rows=number)
    batch = IrBatch(
        plan=plan,
        texts=texts,
        query=number,
        passages=np.stack([number, -number], axis=1),
        masked=np.empty((0, 2), np.int64),
    )
    # of rank r the texts r and r + 1, and those before them
    dealt = np.arange(2) + np.arange(NUM_RANKS)[:, None]
    dealt = np.concatenate([np.full((NUM_RANKS, 1), NO_TEXT), dealt], axis=1)
    return StoredBatch(batch=batch, slots=10 * dealt + step, dealt=dealt)


def assert_is(found: Batch | str, step: int) -> None:
    batch = read_shared(found) if isinstance(found, str) else found
    assert isinstance(batch, IrBatch)
    assert batch.plan.step == step
    numbers = [step, step + 1, step + 2, step + 3, step + 4]
    for array in (batch.query, batch.texts.lengths, batch.passages[:, 0], -batch.passages[:, 1]):
        assert array.tolist() == numbers
    assert batch.texts.num_prompt_tokens.tolist() == [3] * 5
    assert batch.masked.shape == (0, 2)


def assert_own(own: OwnTexts, rank: int, step: int) -> None:
    assert own.texts.tolist() == [rank, rank + 1]
    assert own.slots.tolist() == [10 * rank + step, 10 * rank + 10 + step]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_step_is_made_once_and_read_by_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    # on a busy machine two seconds may pass, and a rank would make a step that is not its own
    monkeypatch.setattr(host_share, "PATIENCE_SEC", 600.0)
    made: list[tuple[int, int]] = []

    def run(index: int) -> None:
        share = HostShare(folder=folder, index=index, count=NUM_RANKS)
        for step in range(9):

            def make(step: int = step) -> StoredBatch:
                made.append((step, index))
                return stored(step)

            own, path = share.get(step, step, make)
            assert isinstance(path, str)
            assert_own(own, index, step)
            assert_is(path, step)
            os.unlink(path)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(NUM_RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [(step, step % NUM_RANKS) for step in range(9)]
    assert names(folder) == []


def test_what_one_rank_writes_to_its_arrays_no_other_sees(folder: Path) -> None:
    folder.mkdir()
    first, second = (HostShare(folder=folder, index=index, count=2) for index in (0, 1))
    first.get(4, 0, lambda: stored(4))
    _, path = second.get(4, 0, lambda: stored(0))
    assert isinstance(path, str)
    one, other = read_shared(path), read_shared(path)
    assert isinstance(one, IrBatch)
    one.query[:] = -7
    assert_is(other, 4)
    os.unlink(path)
    assert_is(other, 4)


def test_a_rank_that_waited_long_makes_the_step_and_its_late_file_is_not_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    monkeypatch.setattr(host_share, "PATIENCE_SEC", 0.02)
    late, other = (HostShare(folder=folder, index=index, count=2) for index in (0, 1))
    own, found = other.get(2, 0, lambda: stored(2))
    assert isinstance(found, IrBatch)
    assert_is(found, 2)
    assert_own(own, 1, 2)
    late.get(2, 0, lambda: stored(2))
    assert {name: (folder / name).stat().st_size > 0 for name in names(folder)} == {
        "2.0": True,
        "2.1": False,
    }


@pytest.mark.parametrize("fault", ["no room", "refused"])
def test_without_room_every_rank_makes_the_step_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    folder.mkdir()
    if fault == "no room":
        usage = shutil.disk_usage(folder)._replace(free=100)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    else:
        # the limit of a file stands for a memory file system that is full in the middle
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        maker, other = (HostShare(folder=folder, index=index, count=2) for index in (0, 1))
        _, made = maker.get(2, 0, lambda: stored(2, size=500))
    finally:
        if fault == "refused":
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    _, found = other.get(2, 0, lambda: stored(2))
    assert naps == []  # it does not wait for nothing
    assert isinstance(made, IrBatch)
    assert len(made.query) == 500
    assert isinstance(found, IrBatch)
    assert_is(found, 2)


def test_who_leaves_last_removes_the_folder(folder: Path) -> None:
    first, second = (HostShare(folder=folder, index=index, count=2) for index in (0, 1))
    with ExitStack() as outer:
        outer.enter_context(shared_folder(first))
        with shared_folder(second):
            first.get(0, 0, lambda: stored(0))
            assert names(folder) == ["0.0", "0.1", host_share.HELD]
        assert names(folder) == ["0.0", host_share.HELD]
    assert not folder.exists()


def test_what_killed_runs_left_is_removed_and_what_is_in_use_stays(folder: Path) -> None:
    left = new_folder(f"test-{secrets.token_hex(4)}")
    code = (
        "import sys; from pathlib import Path; from trainer.data.host_share import *\n"
        "with shared_folder(HostShare(folder=Path(sys.argv[1]), index=0, count=2)):\n"
        "    print('in', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, str(left)]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        with shared_folder(HostShare(folder=folder, index=0, count=2)):
            assert left.is_dir()
        process.kill()
    assert left.is_dir()
    with shared_folder(HostShare(folder=folder, index=0, count=2)):
        assert not left.exists()


def test_nobody_waits_for_ever_where_no_name_can_be_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_share, "PATIENCE_SEC", 0.02)
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # the limit of open files stands for a memory file system without room for one more name
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        share = HostShare(folder=folder, index=1, count=2)
        _, found = share.get(2, 0, lambda: stored(2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert isinstance(found, IrBatch)
    assert_is(found, 2)


def test_a_folder_that_lost_its_lock_is_removed_too(folder: Path) -> None:
    left = new_folder(f"test-{secrets.token_hex(4)}")
    left.mkdir()
    (left / "3.1").write_bytes(b"written while the folder was removed")
    with shared_folder(HostShare(folder=folder, index=0, count=2)):
        assert not left.exists()


def test_where_no_folder_can_be_made_every_rank_makes_every_step_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shm").touch()
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    share = HostShare(folder=tmp_path / "shm" / "folder", index=1, count=2)
    with shared_folder(share):
        for step in range(2):
            _, found = share.get(step, step, lambda step=step: stored(step))  # type: ignore[misc]
            assert isinstance(found, IrBatch)
            assert_is(found, step)
    assert naps == []
    assert "folder: not made (Not a directory); every rank of this host makes all " in caplog.text


def test_steps_leave_room_for_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    share = HostShare(folder=folder, index=0, count=2)
    size = len(b"".join(host_share._parts(stored(0))))
    for over, is_shared in ((1, True), (0, False)):
        usage = shutil.disk_usage(folder)._replace(total=10 * size, free=6 * size + over)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        _, found = share.get(over, 0, lambda: stored(0))
        assert isinstance(found, str) is is_shared


@dataclass(frozen=True, kw_only=True)
class Run:
    """What ranks make batches of."""

    recipe: Recipe
    sources: Sequence[Source]
    encoder: TextEncoder
    plan: DataPlan
    stores: dict[str, TokenStore]

    def stream(self, start: int, stop: int, share: HostShare) -> Generator[Batch]:
        """Batches of a rank, of which another one is on another host."""
        ahead = Ahead(stores=self.stores, rank=share.index, num_ranks=share.count + 1, host=share)
        return batches(self.plan, self.sources, self.encoder, self.recipe, start, stop, ahead=ahead)

    def whole(self, start: int, stop: int) -> list[Batch]:
        """The same made on the fly by this process."""
        alone = replace(self.recipe, data=replace(self.recipe.data, workers=0))
        return list(batches(self.plan, self.sources, self.encoder, alone, start, stop))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    rows: list[dict[str, Any]] = [
        {
            "query": f"the cat {row}",
            "positives": [f"sat {row} {i}" for i in range(1 + row % 3)],
            "negatives": [f"the dog {(row + i) % 7}" for i in range(row % 5)],
        }
        for row in range(40)
    ]
    recipe = data_recipe(
        [ir_source(write_jsonl(tmp_path / "a.jsonl", rows))],
        ir={"global_batch_size": 8, "positives": 2, "negatives": 3},
        data={"workers": 2},
    )
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
    sources = open_sources(recipe.data)
    return Run(
        recipe=recipe,
        sources=sources,
        encoder=encoder,
        plan=plan_of(recipe, sources),
        stores=stores_in(tmp_path, recipe, sources, encoder),
    )


def test_ranks_of_a_host_train_on_the_batches_of_one(run: Run, folder: Path) -> None:
    whole = run.whole(3, 11)
    with ExitStack() as running:
        shares = [
            HostShare(folder=folder, index=rank, count=NUM_RANKS, min_rows=8)
            for rank in range(NUM_RANKS)
        ]
        streams = [running.enter_context(closing(run.stream(3, 11, share))) for share in shares]
        for step, expected in enumerate(whole):
            if step == 5:
                # as services do that clear what users leave in shared memory; workers write on
                while folder.exists():
                    shutil.rmtree(folder, ignore_errors=True)
            for rank, stream in enumerate(streams):
                assert_same(expected, next(stream), rank=rank, num_ranks=NUM_RANKS + 1)
    assert not folder.exists()


def steps_in(folder: Path) -> set[str]:
    """Steps that take memory; an empty file only says that a rank did not wait any longer."""
    found = set()
    for path in folder.glob("*.*"):
        with suppress(FileNotFoundError):
            found |= {path.name.partition(".")[0]} if path.stat().st_size else set()
    return found


def test_a_slow_reader_finds_few_steps_in_memory(run: Run, folder: Path) -> None:
    whole = run.whole(0, 60)
    with ExitStack() as running:
        shares = [HostShare(folder=folder, index=rank, count=2, min_rows=8) for rank in range(2)]
        streams = [running.enter_context(closing(run.stream(0, 60, share))) for share in shares]
        for rank, stream in enumerate(streams):
            assert_same(whole[0], next(stream), rank=rank, num_ranks=3)
        most = 0
        for _ in range(40):  # long enough for workers to make all of them
            most = max(most, len(steps_in(folder)))
            time.sleep(0.05)
        # two workers with two unread steps each, and one of each that waits
        assert most <= 6
        for expected in whole[1:]:
            for rank, stream in enumerate(streams):
                assert_same(expected, next(stream), rank=rank, num_ranks=3)
    assert not folder.exists()


def test_processes_that_can_share_memory_say_so_alike() -> None:
    code = "from trainer.data.host_share import shared_memory; print(shared_memory())"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2], env=os.environ,
    )  # fmt: skip
    assert shared_memory() == other.stdout.strip() != "None"
