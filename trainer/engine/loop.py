"""When things happen: steps, evaluations and saves in order, and an orderly end on a signal."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist

from trainer.data.batch import Batch
from trainer.distributed.group import Ranks, any_rank_each
from trainer.engine.step import StepReport


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls; every function is called on all ranks."""

    step: Callable[[Batch], StepReport]
    """Takes one optimizer step."""
    report: Callable[[StepReport], None]
    """Records it."""
    evaluate: Callable[[int], bool]
    """Evaluates after so many steps; whether the run should end there."""
    save: Callable[[int], None]
    """Saves after so many steps, or raises."""
    try_save: Callable[[int], None]
    """Saves after so many steps, or warns: a later save may succeed."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which steps of the run are special; intervals in steps, None for never."""

    start: int
    """First step to take."""
    stop: int
    """One past the last step."""
    start_evaluated: bool = False
    """Whether the evaluation of `start` is on record."""
    eval_every: int | None
    save_every: int | None
    save_every_minutes: float | None = None
    """Also saves when so much time has passed since the last save."""


SAME_EVENT_SEC = 5.0
"""A signal so soon after the first is the same wish: DeepSpeed's launcher answers a Ctrl-C, which
the terminal sends to all, by a SIGTERM of its own."""


class Interrupt:
    """The first SIGINT or SIGTERM is remembered; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._noted_at = 0.0

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells have it; 0 without one."""
        return 0 if self.signal is None else 128 + self.signal

    def agree(self, ranks: Ranks) -> bool:
        """Whether a rank got a signal, which all then take over. Collective: yes."""
        found = torch.tensor(self.signal or 0, device=ranks.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        if found:
            self.signal = int(found)
        return bool(found)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Remember signals during the block."""
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self._note) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; end at a later one."""
        if self.signal is None:
            self.signal, self._noted_at = number, time.monotonic()
        elif time.monotonic() - self._noted_at > SAME_EVENT_SEC:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


class SaveClock:
    """Says when time alone asks for a save; the first rank's word counts.

    Its clock is monotonic: one that an administrator or a time server sets back does no harm.
    """

    def __init__(self, every_minutes: float | None, clock: Callable[[], float]) -> None:
        self._every_sec = None if every_minutes is None else 60 * every_minutes
        self._clock = clock
        self._last = clock()

    def is_due(self) -> bool:
        """Whether the interval has passed."""
        return self._every_sec is not None and self._clock() - self._last >= self._every_sec

    def restart(self) -> None:
        """A save was tried."""
        self._last = self._clock()


def fit(
    batches: Iterator[Batch], schedule: Schedule, hooks: Hooks, ranks: Ranks, interrupt: Interrupt
) -> int:
    """Run from `start` to `stop`; a signal or an evaluation ends it earlier, saved.

    So do batches that end early, as they do where a signal came before the next one was made.

    Returns:
        Steps done.
    Collective: yes.
    """
    start, stop = schedule.start, schedule.stop
    # saved before evaluated: the evaluation of a resumed step may be missing
    is_due = start in (0, stop) or _due(start, schedule.eval_every)
    if is_due and not schedule.start_evaluated and hooks.evaluate(start):
        return start
    clock = SaveClock(schedule.save_every_minutes, time.monotonic)
    done = start
    for done, batch in enumerate(batches, start=start + 1):
        hooks.report(hooks.step(batch))
        interrupted, time_is_up = any_rank_each(
            [interrupt.signal is not None, ranks.is_first and clock.is_due()], ranks
        )
        last = done == stop
        if last or interrupted:
            hooks.save(done)
        elif time_is_up or _due(done, schedule.save_every):
            hooks.try_save(done)
            clock.restart()
        if interrupted:
            return done
        if (last or _due(done, schedule.eval_every)) and hooks.evaluate(done) and not last:
            hooks.save(done)
            return done
    if start < done < stop:
        hooks.save(done)
    return done


def _due(done: int, every: int | None) -> bool:
    """Whether an interval ends after so many steps."""
    return every is not None and done % every == 0
