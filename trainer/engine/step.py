"""One optimizer step on one global batch: what is done, not when."""

import logging
import math
import time
from dataclasses import dataclass

from trainer.data.batch import Batch
from trainer.distributed.group import Ranks
from trainer.engine.bad_steps import BadSteps, named_rows
from trainer.engine.build import Built
from trainer.engine.losses.step_loss import step_loss
from trainer.engine.losses.task_loss import prefixes_of
from trainer.engine.lr import learning_rate
from trainer.engine.materialise import make_chunks, plan_texts, step_key
from trainer.engine.out_of_memory import explaining_memory
from trainer.errors import StepError
from trainer.recipe.embedding_distillation import is_projected
from trainer.recipe.kind import reads_middle
from trainer.recipe.per_source import settings_of
from trainer.recipe.schema import Recipe
from trainer.recipe.tasks import TASKS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The numbers of a step, equal on all ranks."""

    step: int
    """0-based optimizer step."""
    task: str
    """Its one task."""
    source: str
    """Its one source."""
    loss: float
    """The weighted total."""
    terms: dict[str, float]
    """Each term, unweighted."""
    learning_rate: float
    """Rate of the update."""
    grad_norm: float | None
    """Global L2 norm before clipping; None where it is not finite and the step was skipped."""
    skipped_steps: int
    """Steps of the run without an update so far, this one included."""
    tokens: int
    """Real tokens of the distinct texts."""
    padding_fraction: float
    """Share of padding among the tokens that passed through the model."""
    shared_fraction: float
    """Share of the real tokens that did not run, being the first of other texts of their chunk."""
    num_chunks: int
    """Forwards per rank, of one pass."""
    masked_pairs: int
    """Candidates left out of denominators as known positives."""
    seconds: float
    """Wall time of the step."""

    @property
    def tokens_per_sec(self) -> float:
        """Real tokens over wall time."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Stepper:
    """Runs steps of one recipe on one engine."""

    recipe: Recipe
    built: Built
    ranks: Ranks
    num_steps: int
    """Steps of the run; shapes the learning rate."""
    warmup_steps: int
    """Steps of the linear rise."""
    bad_steps: BadSteps | None = None
    """Keeps what a step without a finite gradient was made of; None: nothing is kept."""

    def run(self, batch: Batch) -> StepReport:
        """Take one step.

        Raises:
            StepError: memory does not suffice, or the loss or its gradient is not finite and
                `train.max_skipped_steps` does not allow to skip the step; parameters and optimizer
                are as before.
        Collective: yes.
        """
        started = time.perf_counter()
        step, settings = batch.plan.step, settings_of(self.recipe, batch.plan.source)
        self.ranks.enter(f"in step {step} ({batch.plan.task}, source {batch.plan.source})")
        plan = plan_texts(
            batch.texts,
            num_ranks=self.ranks.world_size,
            max_tokens=self.recipe.engine.max_tokens_per_chunk,
            share=self.built.shares_in_training,
        )
        with explaining_memory(self.recipe, self.built, self.ranks, named_rows(batch)):
            key = step_key(self.recipe.seed, step)
            own = plan.ranks[self.ranks.rank]
            found = self.built.grad_cache.accumulate(
                make_chunks(
                    batch.texts,
                    own,
                    key=key,
                    device=self.ranks.device,
                    num_shared=plan.num_shared,
                ),
                step_loss(
                    batch, settings, plan, self.ranks, prefixes_of(self.recipe.model.matryoshka)
                ),
                step_key=key,
                middle=reads_middle(TASKS[batch.plan.task], settings),
                taught=is_projected(settings),
            )
            terms = {name: float(value) for name, value in found.items()}
            grad_norm = self.update(step)
        if grad_norm is None:
            self._skip(batch, terms)
        self.ranks.enter(f"after step {step}")
        return StepReport(
            step=step,
            task=batch.plan.task,
            source=batch.plan.source,
            loss=terms.pop("loss"),
            terms=terms,
            learning_rate=self._rate(step),
            grad_norm=grad_norm,
            skipped_steps=self.built.engine.skipped_steps,
            tokens=plan.real_tokens,
            padding_fraction=plan.padding_fraction,
            shared_fraction=plan.shared_fraction,
            num_chunks=plan.num_chunks,
            masked_pairs=batch.num_masked,
            seconds=time.perf_counter() - started,
        )

    def update(self, step: int) -> float | None:
        """Apply the gradient; returns its norm, or None where it is not finite.

        DeepSpeed drops such a gradient on all ranks and leaves parameters and optimizer alone.
        """
        engine = self.built.engine
        rate = self._rate(step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        skipped = engine.skipped_steps
        engine.step()
        norm = float(engine.get_global_grad_norm())
        if engine.skipped_steps != skipped:
            return None
        assert 0 <= norm < math.inf, f"step {step} was updated by a norm of {norm}"
        return norm

    def _skip(self, batch: Batch, terms: dict[str, float]) -> None:
        """Go on without an update, or stop.

        Raises:
            StepError: if no further step may be skipped.
        """
        finite = math.isfinite(terms["loss"])
        fault = "gradient norm = not finite" if finite else f"loss = {terms['loss']}"
        skipped, allowed = self.built.engine.skipped_steps, self.recipe.train.max_skipped_steps
        kept = ""
        if self.bad_steps is not None:
            self.bad_steps.keep(batch, fault)
            kept = f" Its texts are in {self.bad_steps.path(batch)}."
        if skipped > allowed:
            raise StepError(
                f"{named_rows(batch)}: {fault}; expected a finite number. Parameters are as before "
                f"this step.{kept} Look at these rows, lower train.learning_rate, set "
                "train.max_grad_norm, or let such steps be skipped: train.max_skipped_steps = "
                f"{allowed}, {skipped - 1} skipped before."
            )
        logger.warning(
            "%s: %s; skipped without an update, %d of at most %d.%s",
            named_rows(batch),
            fault,
            skipped,
            allowed,
            kept,
        )

    def _rate(self, step: int) -> float:
        """Learning rate of a step."""
        train = self.recipe.train
        return learning_rate(
            step,
            peak=train.learning_rate,
            num_steps=self.num_steps,
            warmup_steps=self.warmup_steps,
            shape=train.schedule,
            min_ratio=train.min_learning_rate_ratio,
        )
