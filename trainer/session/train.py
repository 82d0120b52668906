"""Train a run from its first or its next step to its end, and hand over what it made."""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch.distributed as dist

from trainer.checkpoint.tags import tag_of
from trainer.data.batch import Batch
from trainer.data.loader import batches
from trainer.data.stretch import spans, stretch_at
from trainer.distributed.group import joined
from trainer.engine.bad_steps import BadSteps
from trainer.engine.loop import Hooks, Interrupt, Schedule, fit
from trainer.engine.out_of_memory import probe_memory
from trainer.engine.recorder import FileRecorder, Recorder
from trainer.engine.step import Stepper, StepReport
from trainer.preflight.checks import RunData, writing_to
from trainer.recipe.mine_rules import mined_spans
from trainer.recipe.resolve import warmup_steps
from trainer.recipe.schema import Recipe
from trainer.run_folder.finished import write_finished
from trainer.session.artifacts import Artifacts
from trainer.session.held_out import HeldOut
from trainer.session.mining import RunMining
from trainer.session.open import Session, open_session
from trainer.session.tokens import tokens_ahead

logger = logging.getLogger(__name__)


def train(recipe: Recipe, data: RunData, *, resume: bool, named: Sequence[str] = ()) -> int:
    """Train as the recipe says, from the start or from the newest valid checkpoint.

    Args:
        recipe: checked.
        data: opened and checked.
        resume: whether to continue what `output_dir` holds.
        named: keys that may differ from what it holds.

    Returns:
        Exit code: 0 done, 130 or 143 interrupted and saved.

    Raises:
        TrainerError: see the rooms that a session is made of.
    """
    interrupt = Interrupt()
    with interrupt.listening(), joined(recipe.engine.timeout_minutes) as ranks:
        run = TrainingRun.of(open_session(recipe, data, ranks, named=named))
        start = run.prepare(resume=resume)
        done = run.fit(start, interrupt)
        # a signal may have reached one rank alone, and all must end or finish
        is_interrupted = interrupt.agree(ranks)
        if ranks.is_first:
            run.artifacts.report()
        if is_interrupted:
            logger.info("interrupted after %d steps, saved; continue with --resume", done)
        else:
            run.finish(done)
    return interrupt.exit_code


@dataclass(frozen=True)
class TrainingRun:
    """A session with what evaluates it and what writes its artifacts; methods are collective."""

    session: Session
    artifacts: Artifacts
    held_out: HeldOut

    @classmethod
    def of(cls, session: Session) -> "TrainingRun":
        """The run of a session."""
        artifacts = Artifacts(session)
        return cls(session, artifacts, HeldOut(session, artifacts))

    def prepare(self, *, resume: bool) -> int:
        """Restore the newest valid checkpoint if asked; returns the first step to take."""
        session, start = self.session, 0
        checkpoints = self.artifacts.checkpoints
        if resume:
            start = checkpoints.restore(session.built.engine)
        if start > 0:
            logger.info("resumed from %s: next step is %d", tag_of(start), start)
        if checkpoints.storage.is_keeper:
            self.artifacts.begin()
        dist.barrier()
        return start

    def fit(self, start: int, interrupt: Interrupt) -> int:
        """Run the loop from a step; returns steps done."""
        session, recipe = self.session, self.session.recipe
        planned = self.artifacts.checkpoints.planned
        stop = planned[-1].num_steps
        if start < stop:
            probe_memory(recipe, session.built, session.ranks)
        with ExitStack() as running:
            recorder = running.enter_context(self._recorder(start, stop))
            mining = self._mining(recorder, interrupt)
            stream = running.enter_context(closing(self._batches(mining, start, stop)))
            stopping = self.held_out.early_stopping
            had_ended = stopping.recall(start)
            self.artifacts.checkpoints.align_best(stopping.best_step, stopping.record.steps)
            if had_ended:
                return start
            schedule = Schedule(
                start=start,
                stop=stop,
                start_evaluated=stopping.record.has_start,
                eval_every=recipe.eval.every_steps,
                save_every=recipe.checkpoint.every_steps,
                save_every_minutes=recipe.checkpoint.every_minutes,
            )
            hooks = Hooks(
                step=self._steps(mining),
                report=recorder.step,
                evaluate=lambda done: self.held_out.evaluate_step(done, recorder),
                save=self.artifacts.save,
                try_save=self.artifacts.try_save,
            )
            return fit(stream, schedule, hooks, session.ranks, interrupt)

    def finish(self, done: int) -> None:
        """Export the best model, merge where asked, and write the marker of a finished run."""
        session = self.session
        self.artifacts.export(self.held_out.restore_best(done))
        self.artifacts.merge()
        if session.ranks.is_first:
            write_finished(session.folder.root, step=done)
        logger.info("done: %d steps, model in %s", done, session.folder.model)

    def _mining(self, recorder: Recorder, interrupt: Interrupt) -> RunMining:
        """What mines negatives between the steps of this run."""
        checkpoints = self.artifacts.checkpoints
        return RunMining(
            session=self.session,
            storage=checkpoints.storage,
            planned=checkpoints.planned,
            record=recorder.mining,
            is_interrupted=lambda: interrupt.signal is not None,
        )

    def _batches(self, mining: RunMining, start: int, stop: int) -> Generator[Batch]:
        """The batches of some steps, those of each stretch by its own recipe.

        They end early where a signal came while negatives were mined.
        """
        session = self.session
        for one, first, end in spans(mining.planned, start, stop):
            ahead = tokens_ahead(session, one.recipe)
            for begin, until in mined_spans(one.recipe.data.mine, first, end):
                sources = mining.sources_at(begin)
                if sources is None:
                    return
                stream = batches(
                    *(one.plan, sources, session.encoder, one.recipe, begin, until),
                    ahead=ahead,
                )
                with closing(stream):
                    yield from stream

    def _steps(self, mining: RunMining) -> Callable[[Batch], StepReport]:
        """Takes the steps of this run, each as its stretch has it."""
        session, planned = self.session, mining.planned
        bad_steps = BadSteps(
            folder=session.folder.root, sources=mining.sources, ranks=session.ranks
        )
        steppers = {
            one.first_step: Stepper(
                one.recipe,
                session.built,
                session.ranks,
                one.num_steps,
                warmup_steps(one.recipe, one.num_steps),
                bad_steps,
            )
            for one in planned
        }
        return lambda batch: steppers[stretch_at(planned, batch.plan.step).first_step].run(batch)

    def _recorder(self, start: int, stop: int) -> Recorder:
        """Writes numbers on the first rank, nothing elsewhere."""
        session = self.session
        if not session.ranks.is_first:
            return Recorder()
        with writing_to(session.folder.root):
            return FileRecorder(
                session.folder.root,
                start=start,
                stop=stop,
                wandb_project=session.recipe.log.wandb_project,
                name=session.recipe.name,
            )
