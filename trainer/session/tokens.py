"""The tokens of a run's sources, made by all hosts before the first step; it must not train."""

import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm

from trainer.data.host_share import HostShare, new_folder, shared_memory
from trainer.data.token_making import Making, disk_refusing
from trainer.data.token_pieces import TokenJob
from trainer.data.token_store import TokenStore, open_store
from trainer.data.tokens_ahead import announce, token_jobs
from trainer.data.worker import Ahead
from trainer.distributed.agree import on_all_ranks
from trainer.distributed.group import Ranks
from trainer.errors import DataError
from trainer.recipe.schema import Recipe
from trainer.session.cache_groups import groups_of_hosts, is_first_of_host
from trainer.session.open import Session
from trainer.session.token_shares import make_shares

logger = logging.getLogger(__name__)

TURN_SEC = 10.0
"""Ranks talk so often while tokens are made, so that no collective waits for long."""


def tokens_ahead(session: Session, recipe: Recipe) -> Ahead | None:
    """The tokens of all sources that a recipe tokenises ahead; None: there are none.

    Args:
        session: whose sources and encoder are used.
        recipe: of the stretch that is trained.

    Raises:
        DataError: if a text has no tokens, a store is damaged, or the disk is full.
        StepError: if a process that makes tokens died.
    Collective: yes.
    """
    ranks = session.ranks
    jobs = token_jobs(recipe, session.data.sources, session.encoder, num_ranks=ranks.world_size)
    stores = {name: found for name, job in jobs.items() if (found := _store(job, recipe, ranks))}
    if not stores:
        return None
    return Ahead(
        stores=stores,
        rank=ranks.rank,
        num_ranks=ranks.world_size,
        host=_host_share(ranks) if recipe.data.workers else None,
    )


def _host_share(ranks: Ranks) -> HostShare | None:
    """Where this rank shares batches with the others of its host; None: it has no others.

    Collective: yes.
    """
    where = on_all_ranks(lambda: (shared_memory(), secrets.token_hex(8)), ranks)
    memory = [identity for identity, _ in where]
    same = [rank for rank, identity in enumerate(memory) if identity == memory[ranks.rank]]
    if memory[ranks.rank] is None or len(same) == 1:
        return None
    return HostShare(
        folder=new_folder(where[same[0]][1]),
        index=same.index(ranks.rank),
        count=len(same),
        ranks=tuple(same),
    )


def _store(job: TokenJob, recipe: Recipe, ranks: Ranks) -> TokenStore | None:
    """One store, made where it is not there; None: there is no room and `auto` need not have it.

    Collective: yes.
    """
    ranks.enter(f"while source {job.source.name} is tokenised")
    if not all(on_all_ranks(lambda: open_store(job.folder) is not None, ranks)):
        refused = [fault for fault in on_all_ranks(lambda: _announced(job), ranks) if fault]
        if refused and recipe.data.tokens == "ahead":
            raise refused[0]
        if refused:
            logger.warning("source %s is tokenised on the fly: %s", job.source.name, refused[0])
            return None
        make_store(job, ranks)
    store = open_store(job.folder)
    assert store is not None, f"{job.folder} was made"
    logger.info("source %s: tokens of %d texts in %s", job.source.name,
                len(store.arrays["lengths"]), job.folder)  # fmt: skip
    return store


def _announced(job: TokenJob) -> DataError | None:
    """Why a store cannot be made on this host; None: it can."""
    if not is_first_of_host():
        return None
    try:
        with disk_refusing(job):
            announce(job, num_processes=num_makers(job))
    except DataError as error:
        return error
    return None


def make_store(job: TokenJob, ranks: Ranks) -> None:
    """Make a store with all cores of all hosts, in each of their caches.

    Raises:
        DataError: if a text has no tokens, a piece is damaged, or a disk is full.
        HostError: if two hosts would make other tokens.
        StepError: if a process that makes tokens died.
    Collective: yes.
    """
    groups = groups_of_hosts(job, ranks)
    bar = tqdm(
        total=job.num_pieces,
        desc=f"tokenising {job.source.name}",
        unit="piece",
        disable=None if ranks.is_first else True,
    )
    with bar:
        if len(groups) == 1:
            _run_makers(job, range(job.num_pieces) if is_first_of_host() else None, ranks, bar)
            return
        make_shares(
            job,
            groups,
            ranks,
            make=lambda numbers: _run_makers(job, numbers, ranks, bar),
            copied=bar.update,
        )


def _run_makers(
    job: TokenJob, numbers: Sequence[int] | None, ranks: Ranks, bar: "tqdm[Any]"
) -> None:
    """Make some pieces on this host, and join all that are there; None: others do.

    Collective: yes.
    """
    with ExitStack() as running:
        making: list[Making] = []

        def advance() -> bool:
            if numbers is None:
                return True
            if not making:
                count = max(1, min(len(numbers), num_makers(job)))
                making.append(running.enter_context(Making(job, count, numbers)))
            making[0].advance(TURN_SEC)
            bar.update(making[0].num_made() - bar.n)
            return making[0].has_ended()

        while not all(on_all_ranks(advance, ranks)):
            pass


def num_makers(job: TokenJob) -> int:
    """Processes that make a store on this host: one a core, and no more than there are pieces."""
    return min(job.num_pieces, len(os.sched_getaffinity(0)))
