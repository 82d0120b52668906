"""The checkpoints of one run: which one it continues, and what goes into the next."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import deepspeed

from trainer.checkpoint.base_identity import check_same_base
from trainer.checkpoint.compare import describe_environment
from trainer.checkpoint.continued import continue_run
from trainer.checkpoint.manifest import BaseIdentity, Manifest
from trainer.checkpoint.mined import restore_mined
from trainer.checkpoint.record import Record, recorded_stretches
from trainer.checkpoint.replace import restore_replaced
from trainer.checkpoint.resume import find_checkpoint, find_tag, load_checkpoint
from trainer.checkpoint.save import SaveRequest, best_tag, mark_best, save_checkpoint, unmark_best
from trainer.checkpoint.storage import Storage
from trainer.checkpoint.tags import tag_of, tags_in
from trainer.data.growth import state_of
from trainer.data.sources import Source
from trainer.data.stretch import PlannedStretch, Stretch, plan_stretches
from trainer.distributed.agree import on_all_ranks, on_first_rank
from trainer.errors import CheckpointError
from trainer.recipe.load import plain_recipe
from trainer.recipe.schema import Recipe
from trainer.run_folder.layout import MINED, RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunCheckpoints:
    """What identifies this run's checkpoints; methods are collective."""

    folder: Path
    """`checkpoints/` of the run."""
    storage: Storage
    """Of that folder."""
    recipe: Recipe
    """As resolved."""
    sources: Sequence[Source]
    """Opened and checked."""
    named: Sequence[str] = ()
    """Keys that may differ from the run so far."""
    versions: Mapping[str, str]
    """Of this project and of the libraries that shape the numbers."""
    base: BaseIdentity | None
    """The frozen base of an adapter run."""
    own: set[str] = field(default_factory=set)
    """Tags that this process wrote or read; the same on all ranks. A folder of another tag may be
    a checkpoint that was skipped as damaged."""
    continued: list[Stretch] = field(default_factory=list)
    """Stretches of the run that was restored; empty where it begins here."""

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """Stretches of the run."""
        return tuple(self.continued) or (self._now(),)

    @property
    def planned(self) -> tuple[PlannedStretch, ...]:
        """What follows from each of them."""
        return plan_stretches(self.stretches, self.recipe, self.sources)

    @property
    def _run(self) -> RunFolder:
        """The run's output folder."""
        return RunFolder(self.folder.parent)

    def _now(self) -> Stretch:
        """The recipe and the data as they are, as if they began a run."""
        return Stretch(
            first_step=0,
            recipe=plain_recipe(self.recipe),
            sources={source.name: state_of(source) for source in self.sources},
        )

    def restore(self, engine: deepspeed.DeepSpeedEngine) -> int:
        """Continue the newest valid checkpoint; returns steps done, 0 where there is none.

        Raises:
            CheckpointError: none of them is valid, or the newest is of another run or longer.
        """
        self._check_storage(engine)
        self._keep(lambda: restore_replaced(self.folder))
        found = find_checkpoint(self.folder, self.storage)
        if found is None:
            logger.info("%s: no checkpoint; the run starts at its first step", self.folder)
            self._keep(lambda: restore_mined(None, self._run.mined, step=0))
            return 0
        self._continue(found.tag, found.manifest)
        mined = self.folder / found.tag / MINED
        self._keep(lambda: restore_mined(mined, self._run.mined, step=found.manifest.step))
        done = load_checkpoint(engine, self.folder, found, self.storage.ranks)
        self.own.add(found.tag)
        return done

    def _continue(self, tag: str, saved: Manifest) -> None:
        """Take the run up where a checkpoint has it. Collective: yes.

        Raises:
            CheckpointError: it is of another run, of adapters of another base, or longer.
        """
        stretches = on_first_rank(lambda: recorded_stretches(saved, self._run), self.storage.ranks)
        found = continue_run(Record(tag, stretches), self.recipe, self.sources, self.named)
        ranks = self.storage.ranks.world_size
        environment = describe_environment(saved, versions=self.versions, world_size=ranks)
        for line in (*found.lines, *environment):
            logger.info("since checkpoint %s: %s", tag, line)
        if self.base is not None:
            check_same_base(tag, saved.base, self.base)
        self.continued[:] = found.stretches

    def save(
        self,
        engine: deepspeed.DeepSpeedEngine,
        step: int,
        *,
        write_embedder: Callable[[Path], None],
    ) -> None:
        """Write the checkpoint of `step` steps, where the engine is, unless it was before.

        Raises:
            SaveError: a disk refused; what was there before is whole.
        """
        if self._has(tag_of(step)):
            return
        stretches = tuple(one for one in self.stretches if one.first_step < step)
        request = SaveRequest(
            step=step,
            recipe=dict(stretches[-1].recipe),
            sources={name: state.fingerprint for name, state in stretches[-1].sources.items()},
            versions=dict(self.versions),
            write_embedder=write_embedder,
            base=self.base,
            stretches=stretches,
            mined=self._run.mined,
        )
        keep = self.recipe.checkpoint.keep
        save_checkpoint(engine, self.folder, request, self.storage, keep=keep)
        self.own.add(tag_of(step))

    def keep_best(
        self,
        engine: deepspeed.DeepSpeedEngine,
        step: int,
        *,
        write_embedder: Callable[[Path], None],
    ) -> None:
        """Keep the checkpoint of `step` steps, which is where the engine is, as the best so far.

        Raises:
            SaveError: it was not saved before, and a disk refused.
        """
        self.save(engine, step, write_embedder=write_embedder)
        self._keep(lambda: mark_best(self.folder, tag_of(step)))

    def align_best(self, best: int | None, recorded: Collection[int]) -> None:
        """Let the mark of a run that goes on agree with the evaluations on record.

        Args:
            best: steps done at the best of them; None where the recipe names no metric now.
            recorded: steps done at each of them.
        """
        marked = None if best is None else tag_of(best)
        known = {tag_of(step) for step in recorded}

        def align() -> None:
            old = best_tag(self.folder)
            if marked is not None and (self.folder / marked).is_dir():
                mark_best(self.folder, marked)
            elif old is not None and (marked is not None or old not in known):
                unmark_best(self.folder)

        self._keep(align)

    def load(self, engine: deepspeed.DeepSpeedEngine, step: int) -> bool:
        """Go back to the checkpoint of `step` steps; whether it is there and valid."""
        found = find_tag(self.folder, tag_of(step), self.storage)
        if found is not None:
            load_checkpoint(engine, self.folder, found, self.storage.ranks)
        return found is not None

    def newest(self, count: int) -> list[Path]:
        """Folders of the newest checkpoints that this rank sees, oldest first."""
        return [self.folder / tag for tag in reversed(tags_in(self.folder)[:count])]

    def _has(self, tag: str) -> bool:
        """Whether a checkpoint of this process is on every rank's storage."""
        ranks = self.storage.ranks
        return tag in self.own and all(on_all_ranks((self.folder / tag).is_dir, ranks))

    def _keep(self, act: Callable[[], None]) -> None:
        """Call what is done once for a folder, on its keeper."""
        on_all_ranks(lambda: act() if self.storage.is_keeper else None, self.storage.ranks)

    def _check_storage(self, engine: deepspeed.DeepSpeedEngine) -> None:
        """Refuse hosts with a disk each where DeepSpeed would write one host's part alone."""
        alone = not self.storage.is_shared and engine.zero_optimization_stage() < 3
        if alone and not engine.use_node_local_storage():
            raise CheckpointError(
                f"{self.folder}: hosts have a disk each; expected one they share, or the ds_config "
                f"to say so under ZeRO-1 and 2. Add checkpoint.use_node_local_storage: true to it."
            )
