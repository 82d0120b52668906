"""Hard negatives mined between steps of a run (`data.mine`), and the files that keep them.

`mined/SOURCE/STEP.npy` holds what the steps from STEP on draw from until the next mining. Only the
files in force lie there; a checkpoint has its own copy of those that its next step needs.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from trainer.checkpoint.storage import Storage
from trainer.data.mined import with_mined
from trainer.data.mined_rows import rows_until
from trainer.data.mixed_source import with_mixes
from trainer.data.sources import StepSource
from trainer.data.stretch import PlannedStretch, stretch_at
from trainer.distributed.agree import on_all_ranks
from trainer.distributed.group import any_rank
from trainer.errors import CheckpointError
from trainer.evaluation.examine import FiniteEmbed
from trainer.mining.again import SourceMining
from trainer.mining.choose import MiningSettings
from trainer.recipe.mine import MineRecipe
from trainer.recipe.mine_rules import is_due, mined_before, mined_sources
from trainer.recipe.schema import Recipe, SourceRecipe
from trainer.session.held_out import SetEmbedder
from trainer.session.open import Session

logger = logging.getLogger(__name__)

WORK = ".work"
"""Folder in `mined/` of what is not whole."""
NOT_OF_CHOICE = ("every_steps", "start", "sources")
"""Keys of `data.mine` that say when and where, not how."""


@dataclass(frozen=True, kw_only=True)
class RunMining:
    """The minings of one run; methods are collective unless they say otherwise."""

    session: Session
    storage: Storage
    """Of the run's folder."""
    planned: Sequence[PlannedStretch]
    """Stretches of the run."""
    record: Callable[[int, dict[str, Any]], None]
    """Gets the step and the numbers of a mining of a source, on the first rank."""
    is_interrupted: Callable[[], bool]
    """Whether this rank was asked to end."""
    sources: dict[str, StepSource] = field(default_factory=dict)
    """By name, mixes too, as the steps that are taken see them."""

    def sources_at(self, step: int) -> tuple[StepSource, ...] | None:
        """The sources as the steps from one on see them, mined if it is time; None: interrupted.

        Raises:
            DataError: a file changed since it was checked.
            CheckpointError: the disk refuses, or what was mined before is not there.
        """
        one = stretch_at(self.planned, step)
        mine, since = one.recipe.data.mine, mined_before(one.recipe.data.mine, step)
        files: dict[str, Path] = {}
        if mine is not None and since is not None:
            if is_due(mine, step) and not self._mine(one, mine, step):
                return None
            files = self._files(since)
        sources = with_mined(self.session.data.sources, files)
        self.sources.clear()
        self.sources.update(with_mixes(one.recipe.data, sources))
        return sources

    def _files(self, since: int) -> dict[str, Path]:
        """What was mined before a step, by source.

        Raises:
            CheckpointError: a file is missing.
        """
        one, files = stretch_at(self.planned, since), {}
        assert one.recipe.data.mine is not None
        for source in mined_sources(one.recipe.data):
            file = self.session.folder.mined_file(source.name, since)
            if file.is_file():
                files[source.name] = file
            elif len(rows_until(one.plan, one.recipe.data, source.name, since)):
                raise CheckpointError(
                    f"{file}: missing; expected the negatives of source {source.name} that were "
                    f"mined before step {since}. Resume from an older checkpoint: move the newest "
                    "one away."
                )
        return files

    def _mine(self, one: PlannedStretch, mine: MineRecipe, step: int) -> bool:
        """Mine every source before a step; false: interrupted."""
        session, mined = self.session, self.session.folder.mined
        session.ranks.enter(f"while negatives are mined before step {step}")
        data = one.recipe.data
        with session.built.grad_cache.held():
            for source in mined_sources(data):
                self._keep(lambda: shutil.rmtree(mined / WORK, ignore_errors=True))
                rows = rows_until(one.plan, data, source.name, step)
                if len(rows) and not self._mine_source(one.recipe, source, mine, rows, step):
                    return False
        self._keep(lambda: remove_others(mined, step))
        return True

    def _mine_source(
        self, recipe: Recipe, source: SourceRecipe, mine: MineRecipe, rows: np.ndarray, step: int
    ) -> bool:
        """Mine one source before a step; false: interrupted."""
        session, ranks, began = self.session, self.session.ranks, time.monotonic()
        file = session.folder.mined_file(source.name, step)
        with tqdm(
            desc=f"mining {source.name}", unit="text", disable=None if ranks.is_first else True
        ) as bar:
            mining = SourceMining(
                source=next(one for one in session.data.sources if one.name == source.name),
                embed=TrainedEmbedder(session, source),
                settings=settings_of_mining(mine, recipe.seed),
                rows=rows,
                work=session.folder.mined / WORK,
                ranks=ranks,
                is_keeper=self.storage.is_keeper,
                goes_on=lambda: not any_rank(self.is_interrupted(), ranks),
                progress=lambda what, done, total: show(bar, what, done, total),
            )
            found = mining.run()
        if found is None:
            return False
        self._keep(lambda: publish(mining.places, file))
        if ranks.is_first:
            found |= {"source": source.name, "seconds": time.monotonic() - began}
            self.record(step, found)
            logger.info("step %d: %s", step, described(found))
        return True

    def _keep(self, act: Callable[[], None]) -> None:
        """Call what is done once for a folder, on its keeper."""
        on_all_ranks(lambda: act() if self.storage.is_keeper else None, self.storage.ranks)


@dataclass(frozen=True)
class TrainedEmbedder:
    """Embeds texts of a source as its steps do, by the weights of the moment."""

    session: Session
    source: SourceRecipe

    def __call__(self, texts: Sequence[str], side: str) -> Tensor:
        """Vectors [n, H] on all ranks, zeros for those that are not finite. Collective: yes."""
        embed = FiniteEmbed(SetEmbedder(self.session, self.source))
        return embed(texts, side="query" if side == "query" else "passage")


def settings_of_mining(mine: MineRecipe, seed: int) -> MiningSettings:
    """How negatives are chosen."""
    how = {name: value for name, value in asdict(mine).items() if name not in NOT_OF_CHOICE}
    return MiningSettings(**how, seed=seed)


def publish(places: Path, file: Path) -> None:
    """Give a file of places its name; not collective."""
    file.parent.mkdir(parents=True, exist_ok=True)
    places.replace(file)
    shutil.rmtree(places.parent, ignore_errors=True)


def remove_others(mined: Path, step: int) -> None:
    """Remove what was mined before other steps; not collective."""
    for file in mined.glob("*/*.npy"):
        if file.stem != str(step):
            file.unlink()


def show(bar: "tqdm[Any]", what: str, done: int, total: int) -> None:
    """Move a bar; what is counted may change."""
    bar.total = total
    bar.set_postfix_str(what, refresh=False)
    bar.update(done - bar.n)


def described(found: Mapping[str, Any]) -> str:
    """Numbers of a mining for a person."""
    share = found["queries_enough"] / max(1, found["queries"])
    means = [found[f"{side}_mean"] for side in ("positive", "negative")]
    positive, negative = ("none" if mean is None else f"{mean:.3f}" for mean in means)
    return (
        f"mined {found['queries']:,} queries of {found['source']} among {found['passages']:,} "
        f"passages in {found['seconds']:.0f} s: {share:.1%} have as many negatives as asked for, "
        f"{found['queries_without']:,} have none; mean cosine of positives {positive}, of "
        f"negatives {negative}"
    )
