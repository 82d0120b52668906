"""The process that makes batches ahead of time, and the pipe to it; imports neither torch nor run.

Started as `python -m trainer.data.worker`. It reads one job from its input and writes one frame
for each of its steps to its output: 8 bytes of length, then the pickled batch, or the error that
making it raised. It ends when its steps are done or its output is closed.
"""

import os
import pickle
import select
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, NamedTuple

from trainer.data.batch import Batch, StepPlan, StoredBatch
from trainer.data.collate import make_batch, make_stored_batch
from trainer.data.host_share import HostShare, SharedFrame
from trainer.data.mixed_store import AnyStore, mixed_store
from trainer.data.plan import DataPlan
from trainer.data.processes import HEADER, read_sent
from trainer.data.slot_table import SlotTable, read_own, with_tokens
from trainer.data.sources import StepSource
from trainer.data.step_prompts import StepPrompts, step_prompts
from trainer.data.token_store import TokenStore
from trainer.data.tokens import TextEncoder
from trainer.errors import TrainerError
from trainer.recipe.per_source import settings_of
from trainer.recipe.schema import Recipe

MOST_UNREAD = 2
"""Steps of a worker that lie in shared memory for the training process."""
NAP_MS = 2


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What was tokenised ahead, and for which rank it is read."""

    stores: Mapping[str, TokenStore]
    """Tokens by name of the source; other sources are tokenised on the fly."""
    rank: int
    """Whose texts' ids are read."""
    num_ranks: int
    """All ranks."""
    host: HostShare | None = None
    """What is the same on all ranks of this host is made once; None: this rank makes all."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that is needed to make batches, in any process."""

    plan: DataPlan
    """Which rows each step takes."""
    sources: Mapping[str, StepSource]
    """By name, mixes too."""
    encoder: TextEncoder
    """Texts to token ids."""
    recipe: Recipe
    """The run."""
    ahead: Ahead | None = None
    """None: every source is tokenised on the fly."""

    def owner(self, step: int, num_workers: int) -> int:
        """Which of some workers makes a step: a source's steps go round, as their costs differ."""
        name, turn = self.plan.turn(step)
        return (turn + list(self.sources).index(name)) % num_workers

    def batch(self, step: int) -> Batch:
        """The global batch of a step.

        Raises:
            DataError: if a data file or a row changed on disk, or a text has no tokens, or stored
                tokens are damaged.
        """
        plan = self.plan.at(step)
        source, ahead = self.sources[plan.source], self.ahead
        source.check_files()
        if ahead is None or plan.source not in self.stores:
            return make_batch(plan, source, self.encoder, self.recipe)
        stored = self._stored(plan, ahead, (ahead.rank,))
        tokens = read_own(stored.own(0), self.stores[plan.source])
        return with_tokens(stored.batch, tokens)

    def frame(self, step: int, num_workers: int) -> Batch | SharedFrame:
        """The same in the form in which it is handed over best.

        Raises:
            DataError: as `batch`.
        """
        name, turn = self.plan.turn(step)
        ahead = self.ahead
        host = None if ahead is None else ahead.host
        if ahead is None or host is None or name not in self.stores:
            return self.batch(step)
        if self.plan.sources[name].batch_size < host.min_rows:
            return self.batch(step)
        self.sources[name].check_files()
        # of the steps that one worker of each rank makes, ranks take turns
        maker = (turn + list(self.sources).index(name)) // num_workers
        ranks = host.ranks or range(ahead.rank - host.index, ahead.rank - host.index + host.count)

        def make() -> StoredBatch:
            return self._stored(self.plan.source_step(name, turn, step), ahead, ranks)

        own, found = host.get(step, maker, make)
        tokens = read_own(own, self.stores[name])
        if isinstance(found, str):
            return SharedFrame(found, tokens)
        return with_tokens(found, tokens)

    def _stored(self, plan: StepPlan, ahead: Ahead, ranks: Sequence[int]) -> StoredBatch:
        """A batch of a source that was tokenised ahead, for some ranks."""
        source = self.sources[plan.source]
        table = SlotTable(
            store=self.stores[plan.source],
            teacher=source.teacher_vectors,
            num_first=self.num_first[plan.source],
            query_of_owner=self.prompts[plan.source].query_of_owner,
        )
        settings, seed = self.settings[plan.source], self.recipe.seed
        return make_stored_batch(
            plan, source, table, settings, seed, num_ranks=ahead.num_ranks, ranks=ranks
        )

    @cached_property
    def stores(self) -> dict[str, AnyStore]:
        """Tokens of what was tokenised ahead; of a mix, if all of its sources were."""
        stores = {} if self.ahead is None else self.ahead.stores
        mixes = {
            name: mixed_store([stores[one] for one in members], self.prompts[name])
            for name, members in self.recipe.data.mix.items()
            if all(one in stores for one in members)
        }
        return {**stores, **mixes}

    @cached_property
    def prompts(self) -> dict[str, StepPrompts]:
        """Instructions of the steps of each source and mix, by name."""
        return {name: step_prompts(self.recipe.data, name) for name in self.sources}

    @cached_property
    def num_first(self) -> dict[str, tuple[int, ...]]:
        """First tokens that instructions give to queries and to passages, by name."""
        count = self.encoder.num_first_tokens
        return {name: prompts.first_tokens(count) for name, prompts in self.prompts.items()}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Of the steps of each source, by its name."""
        return {name: settings_of(self.recipe, name) for name in self.sources}


class Share(NamedTuple):
    """One worker's part of a job."""

    steps: range
    """Steps of all workers."""
    number: int
    """Of this worker, from 0."""
    num_workers: int
    """All workers."""


def work(job: Job, share: Share, pipe: IO[bytes]) -> None:
    """Makes a worker's batches and writes them; stops at the first of our errors."""
    unread: deque[str] = deque()
    for step in share.steps:
        if job.owner(step, share.num_workers) != share.number:
            continue
        frame: Batch | SharedFrame | TrainerError
        _wait_for_reader(unread, pipe)
        try:
            frame = job.frame(step, share.num_workers)
        except TrainerError as error:
            frame = error
        content = pickle.dumps(frame, protocol=pickle.HIGHEST_PROTOCOL)
        pipe.write(HEADER.pack(len(content)))
        pipe.write(content)
        pipe.flush()
        if isinstance(frame, TrainerError):
            return
        if isinstance(frame, SharedFrame):
            unread.append(frame.path)


def _wait_for_reader(unread: deque[str], pipe: IO[bytes]) -> None:
    """Waits while too many steps in shared memory were not taken: their frames fill no pipe.

    Args:
        unread: their files, in order; those that were taken are removed.
        pipe: to the process that takes them.

    Raises:
        BrokenPipeError: if that process is gone.
    """
    reader = select.poll()
    reader.register(pipe, 0)  # says of its end alone
    while len(unread) >= MOST_UNREAD:
        if not os.path.exists(unread[0]):
            unread.popleft()
        elif reader.poll(NAP_MS):
            raise BrokenPipeError


def main() -> None:
    """Reads the job, keeps the pipe for frames alone, and works until done or not wanted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # The training process saves on these and needs its batches until it closes the pipe.
        signal.signal(number, signal.SIG_IGN)
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job, share = read_sent(sys.stdin.buffer)
    try:
        work(job, share, pipe)
        pipe.close()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
