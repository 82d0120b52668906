"""Tokens made by hosts that have a cache each: a share in each cache, then copied to the others.

A piece is made in one cache and sent to those that lack it, so pieces that an earlier run left
anywhere are made nowhere again. Sources are tokenised as in one cache otherwise.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO

import numpy as np

from trainer.data.token_making import disk_refusing, received_piece
from trainer.data.token_pieces import TokenJob
from trainer.data.token_store import INDEX, damaged, piece_path
from trainer.distributed.agree import on_all_ranks
from trainer.distributed.blocks import send_blocks
from trainer.distributed.group import Ranks
from trainer.session.cache_groups import Groups, Host

logger = logging.getLogger(__name__)

MakeHere = Callable[[Sequence[int] | None], None]
"""Makes and checks pieces on this host and joins all that are there; None: this rank does nothing.
Collective."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A piece that is sent from one cache to others."""

    number: int
    """Of the piece."""
    num_bytes: int
    """All of it."""
    sender: Host
    """Whose first rank reads it."""
    receivers: frozenset[int]
    """Ranks that write it, one for each cache that lacks it."""


def make_shares(
    job: TokenJob, groups: Groups, ranks: Ranks, *, make: MakeHere, copied: Callable[[], object]
) -> None:
    """Make a store in the caches of all groups.

    Args:
        job: what is made.
        groups: hosts that share a cache, two groups or more.
        ranks: this process.
        make: see `MakeHere`.
        copied: called on ranks that received a piece.

    Raises:
        DataError: if a text has no tokens, a piece is damaged, or a disk is full.
        StepError: if a process that makes tokens died.
    Collective: yes.
    """
    group = next((i for i, one in enumerate(groups) if ranks.rank in {h.rank for h in one}), None)
    made, received = np.zeros((2, len(groups)), np.int64)
    sizes = _sizes(job, groups, ranks)
    while True:
        make(None if group is None else _own_pieces(job, sizes, groups, group))
        before, sizes = sizes, _sizes(job, groups, ranks)
        made += np.count_nonzero(sizes, axis=1) - np.count_nonzero(before, axis=1)
        for one in copies(sizes, groups):
            _copy(job, one, ranks)
            if ranks.rank in one.receivers:
                copied()
        before, sizes = sizes, _sizes(job, groups, ranks)
        received += np.count_nonzero(sizes, axis=1) - np.count_nonzero(before, axis=1)
        if sizes.all():
            break
        # else another run is at a piece, or a disk shows late what another host wrote to it
    make(None if group is None or (job.folder / INDEX).is_dir() else ())
    logger.info(
        "source %s: %d groups of hosts have a cache each; they made %s pieces and received %s",
        job.source.name, len(groups), _listed(made), _listed(received),
    )  # fmt: skip


def dealt(missing: np.ndarray, groups: Groups) -> list[np.ndarray]:
    """Pieces that each group makes, in proportion to its cores.

    Args:
        missing: numbers of pieces that no cache has [n], int64, ascending.
        groups: in the order in which they are dealt to.
    """
    cores = np.cumsum([sum(host.num_cores for host in group) for group in groups])
    return np.split(missing, (cores * len(missing) // cores[-1])[:-1])


def copies(sizes: np.ndarray, groups: Groups) -> Iterator[Copy]:
    """What is sent so that all have what any has; those that have a piece take turns.

    Args:
        sizes: bytes of each piece in each group's cache [groups, pieces], int64; 0: it is missing.
        groups: see `Groups`.
    """
    for number in np.flatnonzero(sizes.any(axis=0) & ~sizes.all(axis=0)).tolist():
        holders = np.flatnonzero(sizes[:, number])
        holder = int(holders[number % len(holders)])
        lacking = np.flatnonzero(sizes[:, number] == 0).tolist()
        yield Copy(
            number=number,
            num_bytes=int(sizes[holder, number]),
            sender=groups[holder][0],
            receivers=frozenset(groups[one][0].rank for one in lacking),
        )


def _sizes(job: TokenJob, groups: Groups, ranks: Ranks) -> np.ndarray:
    """Bytes of each piece in each group's cache [groups, pieces], int64; 0: it is missing.

    Collective: yes.
    """
    leads = [group[0].rank for group in groups]
    found = on_all_ranks(lambda: _own_sizes(job) if ranks.rank in leads else None, ranks)
    return np.array([found[lead] for lead in leads])


def _own_sizes(job: TokenJob) -> np.ndarray:
    paths = (piece_path(job.folder, number) for number in range(job.num_pieces))
    return np.array([path.stat().st_size if path.exists() else 0 for path in paths], np.int64)


def _own_pieces(job: TokenJob, sizes: np.ndarray, groups: Groups, group: int) -> list[int] | None:
    """Pieces that a group makes, and those that are checked as an earlier run left them."""
    if (job.folder / INDEX).is_dir():
        return None
    share = dealt(np.flatnonzero(~sizes.any(axis=0)), groups)[group]
    return sorted([*share.tolist(), *np.flatnonzero(sizes[group]).tolist()]) or None


def _copy(job: TokenJob, one: Copy, ranks: Ranks) -> None:
    """Send a piece and check what came. Collective: yes."""
    files: list[IO[bytes] | None] = []
    path = piece_path(job.folder, one.number)

    def read(num_bytes: int) -> bytes:
        content = files[0].read(num_bytes) if files[0] else b""
        if len(content) != num_bytes:
            raise damaged(path, "shorter than when it was looked at")
        return content

    def write(content: memoryview) -> None:
        if files[0]:
            with disk_refusing(job):
                files[0].write(content)

    with ExitStack() as running:
        on_all_ranks(lambda: files.append(running.enter_context(_end(job, one, ranks))), ranks)
        is_receiver = ranks.rank in one.receivers
        send_blocks(
            one.num_bytes,
            read=read,
            write=write if is_receiver else None,
            source=one.sender.rank,
            ranks=ranks,
        )
        on_all_ranks(running.pop_all().close, ranks)


def _end(job: TokenJob, one: Copy, ranks: Ranks) -> AbstractContextManager[IO[bytes] | None]:
    """The file that this rank reads or writes; None: it does neither."""
    if ranks.rank == one.sender.rank:
        return _read_piece(job, one.number)
    if ranks.rank in one.receivers:
        sender = f"host {one.sender.name} (rank {one.sender.rank})"
        return received_piece(job, one.number, sender)
    return nullcontext()


@contextmanager
def _read_piece(job: TokenJob, number: int) -> Iterator[IO[bytes]]:
    path = piece_path(job.folder, number)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise damaged(path, error.strerror or "unreadable") from error


def _listed(counts: np.ndarray) -> str:
    return ", ".join(map(str, counts.tolist()))
