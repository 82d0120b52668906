"""Hard negatives mined between steps of a run (`data.mine`), and the files that keep them.

`mined/SOURCE/STEP.npy` holds what the steps from STEP on draw from until the next mining. Only the
files in force lie there; a checkpoint has its own copy of those that its next step needs.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from trainer.checkpoint.manifest import digest
from trainer.checkpoint.storage import Storage
from trainer.data.mined import with_mined
from trainer.data.mined_rows import rows_until
from trainer.data.mixed_source import with_mixes
from trainer.data.sources import Source, StepSource
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
RECORD = ".json"
"""Ending of what stands beside a file of places, for a run that is interrupted soon after."""
PROBE_ROWS = 32
"""Rows whose queries tell whether the weights are those of a mining."""
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
        file, embed = session.folder.mined_file(source.name, step), TrainedEmbedder(session, source)
        opened = next(one for one in session.data.sources if one.name == source.name)
        settings = settings_of_mining(mine, recipe.seed)
        identity = identity_of(opened, settings, rows, embed)
        kept = self._kept(file, identity)
        if kept is not None:
            self._tell(step, kept, "as was found before the run was interrupted, it ")
            return True
        with tqdm(
            desc=f"mining {source.name}", unit="text", disable=None if ranks.is_first else True
        ) as bar:
            mining = SourceMining(
                source=opened,
                embed=embed,
                settings=settings,
                rows=rows,
                work=session.folder.mined / WORK,
                ranks=ranks,
                is_keeper=self.storage.is_keeper,
                goes_on=lambda: not any_rank(self.is_interrupted(), ranks),
                progress=lambda what, done, total: show(bar, what, done, total),
            )
            found = mining.run()
        if found is None:
            self._keep(lambda: shutil.rmtree(mining.work, ignore_errors=True))
            return False
        found = {"source": source.name, **found, "seconds": time.monotonic() - began}
        self._keep(lambda: publish(mining.places, file, {"identity": identity, "found": found}))
        self._tell(step, found)
        return True

    def _kept(self, file: Path, identity: str) -> dict[str, Any] | None:
        """The numbers of a mining whose file is there; None where it is not the same on all disks.

        Args:
            file: of places.
            identity: of the mining that is due.
        """
        is_keeper = self.storage.is_keeper
        there = on_all_ranks(
            lambda: read_kept(file, identity) if is_keeper else None, self.session.ranks
        )
        found = [one for rank, one in enumerate(there) if self.storage.keepers[rank] == rank]
        return None if None in found else found[0]

    def _tell(self, step: int, found: dict[str, Any], how: str = "") -> None:
        """Record the numbers of a mining; not collective."""
        if self.session.ranks.is_first:
            self.record(step, found)
            logger.info("step %d: %s%s", step, how, described(found))

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


def identity_of(
    source: Source, settings: MiningSettings, rows: np.ndarray, embed: "TrainedEmbedder"
) -> str:
    """Of all that the result of a mining follows from, hexadecimal; same weights give same bits.

    Args:
        source: opened.
        settings: how negatives are chosen.
        rows: that get negatives [n], int64, at least one.
        embed: of the source; a few queries tell the weights.
    Collective: yes.
    """
    queries = [str(source.record(row).query) for row in rows[:PROBE_ROWS].tolist()]
    vectors = embed(queries, "query").cpu().numpy()
    parts = (source.identity, json.dumps(settings.recorded(), sort_keys=True))
    found = hashlib.sha256("|".join(parts).encode())
    found.update(rows.tobytes())
    found.update(vectors.tobytes())
    return found.hexdigest()


def publish(places: Path, file: Path, record: Mapping[str, Any]) -> None:
    """Give a file of places its name, and then say beside it what it is; not collective."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(RECORD)
    beside.unlink(missing_ok=True)
    with places.open("rb") as whole:
        os.fsync(whole.fileno())
    sha256 = digest(places).sha256
    places.replace(file)
    partial = beside.with_name(f".{beside.name}")
    partial.write_text(json.dumps({**record, "sha256": sha256}), encoding="utf-8")
    partial.replace(beside)
    shutil.rmtree(places.parent, ignore_errors=True)


def read_kept(file: Path, identity: str) -> dict[str, Any] | None:
    """The numbers beside a whole file of places of a certain mining; None: there is none.

    Not collective.
    """
    try:
        record = json.loads(file.with_suffix(RECORD).read_text(encoding="utf-8"))
        if record["identity"] != identity or record["sha256"] != digest(file).sha256:
            return None
        found: dict[str, Any] = record["found"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found


def remove_others(mined: Path, step: int) -> None:
    """Remove what was mined before other steps; not collective."""
    for file in mined.glob("*/*"):
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
