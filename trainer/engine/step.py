"""One optimizer step on one global batch: what is done, not when."""

import math
import time
from dataclasses import dataclass

from trainer.data.batch import Batch
from trainer.engine.build import Built
from trainer.engine.chunks import ChunkPlan, plan_chunks
from trainer.engine.losses import needs_middle, step_loss
from trainer.engine.lr import learning_rate
from trainer.engine.materialise import lengths_of, make_chunks, step_key
from trainer.engine.ranks import Ranks
from trainer.errors import StepError
from trainer.recipe.schema import Recipe


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
    grad_norm: float
    """Global L2 norm before clipping."""
    tokens: int
    """Real tokens of the distinct texts."""
    padding_fraction: float
    """Share of padding among the tokens that passed through the model."""
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

    def run(self, batch: Batch) -> StepReport:
        """Take one step.

        Raises:
            StepError: the loss or its gradient is not finite; parameters are as before.
        Collective: yes.
        """
        started = time.perf_counter()
        step = batch.plan.step
        plan = plan_chunks(
            lengths_of(batch.texts),
            num_ranks=self.ranks.world_size,
            max_tokens=self.recipe.engine.max_tokens_per_chunk,
        )
        terms = self._accumulate(batch, plan)
        grad_norm = self._update(batch)
        return StepReport(
            step=step,
            task=batch.plan.task,
            source=batch.plan.source,
            loss=terms.pop("loss"),
            terms=terms,
            learning_rate=self._rate(step),
            grad_norm=grad_norm,
            tokens=plan.real_tokens,
            padding_fraction=plan.padding_fraction,
            num_chunks=plan.num_chunks,
            masked_pairs=len(getattr(batch, "masked", ())),
            seconds=time.perf_counter() - started,
        )

    def _accumulate(self, batch: Batch, plan: ChunkPlan) -> dict[str, float]:
        """Leave the gradient in the engine; returns the terms, `loss` among them."""
        key = step_key(self.recipe.seed, batch.plan.step)
        terms = self.built.passes.accumulate(
            make_chunks(
                batch.texts, plan.ranks[self.ranks.rank], key=key, device=self.ranks.device
            ),
            step_loss(batch, self.recipe.tasks, plan, self.ranks),
            step_key=key,
            middle=needs_middle(batch, self.recipe.tasks),
        )
        values = {name: float(value) for name, value in terms.items()}
        if not math.isfinite(values["loss"]):
            raise _fault(batch, f"loss = {values['loss']}")
        return values

    def _update(self, batch: Batch) -> float:
        """Apply the gradient; returns its norm. DeepSpeed skips an update that is not finite."""
        engine = self.built.engine
        rate = self._rate(batch.plan.step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        skipped = engine.skipped_steps
        engine.step()
        norm = float(engine.get_global_grad_norm())
        if engine.skipped_steps != skipped or not math.isfinite(norm) or norm < 0:
            raise _fault(batch, "the norm of the gradient is not finite")
        return norm

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


def _fault(batch: Batch, what: str) -> StepError:
    """The error of a step that must not update anything."""
    plan = batch.plan
    return StepError(
        f"step {plan.step} ({plan.task}, source {plan.source}, rows {plan.rows[:8].tolist()}...): "
        f"{what}; expected a finite number. Parameters are as before this step. Look at these "
        f"rows, lower train.learning_rate or set train.max_grad_norm."
    )
