"""Evaluate a run on its held-out sets and keep the best; it must not take steps."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from trainer.engine.embed import embed_texts
from trainer.engine.recorder import Recorder
from trainer.evaluation.best import means_of
from trainer.evaluation.early_stopping import EarlyStopping
from trainer.evaluation.evaluate import examine_set
from trainer.evaluation.examine import SetReport
from trainer.recipe.kind import Side
from trainer.recipe.schema import EvalSetRecipe, SourceRecipe
from trainer.session.artifacts import Artifacts
from trainer.session.open import Session

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Evaluations of one run; methods are collective."""

    session: Session
    artifacts: Artifacts

    @cached_property
    def early_stopping(self) -> EarlyStopping:
        """Follows the best evaluation."""
        session = self.session
        return EarlyStopping(session.recipe.eval, session.folder.root, session.ranks)

    def evaluate(self) -> dict[str, SetReport]:
        """Metrics, those of each trained prefix too, and geometry of every evaluation set."""
        session = self.session
        matryoshka = session.recipe.model.matryoshka
        dims = () if matryoshka is None else matryoshka.dims
        with session.built.grad_cache.held():
            return {
                held_out.name: examine_set(records, SetEmbedder(session, held_out), dims)
                for held_out, records in zip(
                    session.recipe.eval.sets, session.data.eval_sets, strict=True
                )
            }

    def evaluate_step(self, done: int, recorder: Recorder) -> bool:
        """Evaluate, record, keep the checkpoint if it is the best; whether the run should end."""
        reports = self.evaluate()
        results = {name: report.metrics for name, report in reports.items()}
        geometry = {name: report.geometry.recorded for name, report in reports.items()}
        dims = {name: report.dims for name, report in reports.items() if report.dims}
        recorder.evaluation(done, results, geometry, dims, means_of(results))
        decision = self.early_stopping.update(done, results)
        if decision.is_best and done:
            self.artifacts.keep_best(done)
        if decision.is_last:
            logger.info("after %d steps eval.patience has ended", done)
        return decision.is_last

    def restore_best(self, done: int) -> int:
        """Go back to the best evaluation's parameters, where the recipe names a metric.

        Returns:
            Steps done by the parameters that the model has now.
        """
        best, metric = self.early_stopping.best_step, self.session.recipe.eval.best_metric
        if best is None or best == done:
            return done
        if best > 0 and self.artifacts.checkpoints.load(self.session.built.engine, best):
            logger.info("model/ is that of step %d, the best by %s", best, metric)
            return best
        logger.warning("%s was best after %d steps, of which there is no checkpoint; model/ is "
                       "that of step %d", metric, best, done)  # fmt: skip
        return done


@dataclass(frozen=True)
class SetEmbedder:
    """Embeds the texts of one evaluation set, or of a source, with its instructions."""

    session: Session
    held_out: EvalSetRecipe | SourceRecipe

    def __call__(self, texts: Sequence[str], *, side: Side) -> Tensor:
        """Vectors [n, H] on all ranks. Collective: yes."""
        session, data = self.session, self.session.recipe.data
        query = side == "query"
        return embed_texts(
            texts,
            instruction=(
                self.held_out.query_instruction if query else self.held_out.passage_instruction
            ),
            max_tokens=data.query_max_tokens if query else data.passage_max_tokens,
            encoder=session.encoder,
            grad_cache=session.built.grad_cache,
            ranks=session.ranks,
            chunk_tokens=session.recipe.engine.max_tokens_per_chunk,
        )
