"""Stores of tokens made by many processes at once, on one host or on several that share a folder.

Pieces are claimed by locks that end with their process. So makers of two runs deal the pieces among
themselves, and what a killed maker had under way is made by another one. Pieces that a host with
another folder made are received as they are. Started as `python -m trainer.data.token_making` a
process makes pieces until none is left.
"""

import fcntl
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from trainer.data.processes import Worker, as_child, read_sent, receive, send, send_frame, started
from trainer.data.token_index import join_pieces
from trainer.data.token_pieces import TokenJob, check_piece, make_piece, replaced
from trainer.data.token_store import INDEX, TokenStore, open_store, piece_path
from trainer.errors import DataError, StepError, TrainerError

LOCKS = "locks"
"""A file of a store; byte i of it is locked while piece i is made, the last one while they are
joined."""
POLL_SEC = 0.2
"""Between two looks at what others make."""


def make_pieces(job: TokenJob, *, first: int, numbers: Sequence[int] | None = None) -> None:
    """Make or check every piece that no other process is at, then join them.

    Args:
        job: whose folder exists.
        first: where among them to begin, so that makers seldom meet.
        numbers: of the pieces; None: all. Some are joined with the others if these are there.

    Raises:
        DataError: if a row changed, a text has no tokens, or the disk is full.
    """
    chosen = range(job.num_pieces) if numbers is None else numbers
    with disk_refusing(job), (job.folder / LOCKS).open("ab") as locks:
        left = [chosen[(first + place) % len(chosen)] for place in range(len(chosen))]
        while left and not (job.folder / INDEX).is_dir():
            waiting = [number for number in left if not _make_claimed(job, number, locks)]
            if len(waiting) == len(left):
                time.sleep(POLL_SEC)
            left = waiting
        if len(chosen) < job.num_pieces and not _are_all_there(job):
            return
        with _claimed(locks, job.num_pieces, wait=True):
            if not (job.folder / INDEX).is_dir():
                join_pieces(job)


def _are_all_there(job: TokenJob) -> bool:
    return all(piece_path(job.folder, number).exists() for number in range(job.num_pieces))


def _make_claimed(job: TokenJob, number: int, locks: IO[bytes]) -> bool:
    """Make or check a piece; False if another process is at it."""
    with _claimed(locks, number, wait=False) as is_mine:
        if not is_mine:
            return False
        path = piece_path(job.folder, number)
        if path.exists():
            try:
                check_piece(path)
                return True
            except DataError:
                path.unlink()  # what is damaged is made anew
        make_piece(job, number)
        return True


@contextmanager
def _claimed(locks: IO[bytes], number: int, *, wait: bool) -> Iterator[bool]:
    """Whether the lock of a piece is this process's; the system drops it when the process ends."""
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
    except (BlockingIOError, PermissionError):
        yield False
        return
    except OSError:
        yield True  # a disk without locks: two may make the same piece, which does no harm
        return
    try:
        yield True
    finally:
        fcntl.lockf(locks, fcntl.LOCK_UN, 1, number)


@contextmanager
def received_piece(job: TokenJob, number: int, sender: str) -> Iterator[IO[bytes] | None]:
    """A file to write a piece to that `sender` made; None: another process is at it.

    It is there under its name when the block ends, if it is as it was written.

    Raises:
        DataError: if it is not, or the disk is full; nothing is left.
    """
    path = piece_path(job.folder, number)
    with (
        disk_refusing(job),
        (job.folder / LOCKS).open("ab") as locks,
        _claimed(locks, number, wait=False) as is_mine,
    ):
        if not is_mine:
            yield None
            return
        with replaced(path) as file:
            yield file
            file.flush()
            try:
                check_piece(Path(file.name))
            except DataError as error:
                raise DataError(
                    f"{path}: content = damaged, as {sender} sent it; expected a piece as it was "
                    f"written. Delete {path.parent.parent.name} in the cache of {sender}: its "
                    "tokens are made anew when they are needed."
                ) from error


@contextmanager
def disk_refusing(job: TokenJob) -> Iterator[None]:
    """Turn what the disk refuses into a message.

    Raises:
        DataError: naming the folder.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or job.folder}: tokens of source {job.source.name} = not written "
            f"({error.strerror or error}); expected room in the cache. Free space, set "
            "TRAINER_CACHE_DIR to a folder on a larger disk, or set data.tokens=on_the_fly. "
            "Pieces that are finished are kept."
        ) from error


@dataclass
class Making:
    """A store that is being made by processes of this host; a context that ends them."""

    job: TokenJob
    """What is made."""
    num_processes: int
    """Makers that are started."""
    numbers: Sequence[int] | None = None
    """Of the pieces that are made, see `make_pieces`; None: all."""
    running: ExitStack = field(default_factory=ExitStack)
    makers: list[Worker] = field(default_factory=list)

    def __enter__(self) -> "Making":
        with disk_refusing(self.job):
            self.job.folder.mkdir(parents=True, exist_ok=True)
        num_pieces = self.job.num_pieces if self.numbers is None else len(self.numbers)
        stride = -(-num_pieces // self.num_processes)
        for number in range(self.num_processes):
            maker = self.running.enter_context(started("trainer.data.token_making"))
            assert maker.stdin is not None
            send(maker.stdin, (self.job, number * stride, self.numbers))
            self.makers.append(maker)
        return self

    def __exit__(self, *_: object) -> None:
        self.running.close()

    def advance(self, seconds: float) -> TokenStore | None:
        """Wait for the store, at most so long; None: it is not finished yet.

        Raises:
            DataError: see `make_pieces`; also if a maker died of a file that changed.
            StepError: if a maker died of something else.
        """
        deadline = time.monotonic() + seconds
        while True:
            for maker in self.makers:
                if maker.poll() is not None:
                    _check_end(maker, self.job)
            if self.has_ended():
                return open_store(self.job.folder)
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_SEC)

    def has_ended(self) -> bool:
        """Whether the makers have, so that there is nothing to wait for."""
        return all(maker.poll() is not None for maker in self.makers)

    def num_made(self) -> int:
        """Pieces that are finished, whoever made them."""
        return sum(1 for _ in self.job.folder.glob(piece_path(self.job.folder, 0).name[:6] + "*"))


def _check_end(maker: Worker, job: TokenJob) -> None:
    """Raise what ended a maker early."""
    if maker.returncode == 0:
        return
    assert maker.stdout is not None
    error = receive(maker.stdout)
    if isinstance(error, TrainerError):
        raise error
    job.source.check_files()  # the system ends a process that reads a file which became shorter
    raise StepError(
        f"token maker (process {maker.pid}): exit code = {maker.returncode}; expected 0. See its "
        "traceback above and the machine's memory. Pieces that are finished are kept."
    )


def main() -> None:
    """Reads a job and makes its pieces; what goes wrong is sent to the process that started it."""
    pipe = as_child()
    job, first, numbers = read_sent(sys.stdin.buffer)
    try:
        make_pieces(job, first=first, numbers=numbers)
    except TrainerError as error:
        send_frame(pipe, error)
        sys.exit(1)


if __name__ == "__main__":
    main()
