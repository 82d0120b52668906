"""Which hosts see the same cache; it must not know how tokens are made."""

import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from trainer.data.token_making import disk_refusing
from trainer.data.token_pieces import BUILDING, TokenJob
from trainer.distributed.agree import on_all_ranks
from trainer.distributed.group import Ranks
from trainer.errors import HostError

MARK = f"{BUILDING}seen-by-"
"""Begins the names of files by which hosts find each other; what is left of them is removed with
what makers leave."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One host of a run, as its first rank describes it."""

    name: str
    """As messages name it."""
    rank: int
    """The first of its ranks, which makes tokens and reads and writes its cache."""
    num_cores: int
    """Processes that make tokens there."""
    store: str
    """What the ids of the store follow from, as its folder's name."""
    mark: str
    """A file of the store's folder that is there where the folder is the same."""


Groups = Sequence[Sequence[Host]]
"""Hosts that see the same cache together, all in the order of their ranks."""


def is_first_of_host() -> bool:
    """Whether this rank makes tokens for its host."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def groups_of_hosts(job: TokenJob, ranks: Ranks) -> Groups:
    """The hosts of a run by the folder that a store has there.

    Each host writes a file of its own and looks for those of the others.

    Raises:
        DataError: if a cache cannot be written.
        HostError: if two hosts would make other tokens.
    Collective: yes.
    """
    described = on_all_ranks(lambda: _described(job, ranks) if is_first_of_host() else None, ranks)
    hosts = [host for host in described if host is not None]
    if len(hosts) <= 1:
        return [hosts]
    _refuse_differences(job, hosts)
    own = described[ranks.rank]
    try:
        on_all_ranks(lambda: _leave_mark(job, own), ranks)
        lowest = on_all_ranks(lambda: _first_seen(job, own, hosts), ranks)
    finally:
        if own is not None:
            with suppress(OSError):
                (job.folder / own.mark).unlink(missing_ok=True)
    together: dict[int | None, list[Host]] = {}
    for host in hosts:
        together.setdefault(lowest[host.rank], []).append(host)
    return list(together.values())


def _described(job: TokenJob, ranks: Ranks) -> Host:
    return Host(
        name=socket.gethostname(),
        rank=ranks.rank,
        num_cores=len(os.sched_getaffinity(0)),
        store=job.folder.parent.name,
        mark=f"{MARK}{secrets.token_hex(8)}",
    )


def _refuse_differences(job: TokenJob, hosts: Sequence[Host]) -> None:
    """Raise for the first host that would make other tokens; the same on all ranks."""
    first = hosts[0]
    for host in hosts[1:]:
        if host.store != first.store:
            raise HostError(
                f"host {host.name} (rank {host.rank}): tokens of source {job.source.name} = "
                f"{host.store}; expected {first.store}, as on host {first.name} (rank "
                f"{first.rank}). Copy the same data and the same tokenizer to all hosts."
            )


def _leave_mark(job: TokenJob, own: Host | None) -> None:
    if own is not None:
        with disk_refusing(job):
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / own.mark).touch()


def _first_seen(job: TokenJob, own: Host | None, hosts: Sequence[Host]) -> int | None:
    """The first rank of the first host that this one sees; itself if it sees no other."""
    if own is None:
        return None  # it makes no tokens
    seen = (
        host.rank for host in hosts if host.rank == own.rank or (job.folder / host.mark).exists()
    )
    return next(seen, own.rank)
