"""What a run writes besides numbers: checkpoints, the exported model, the merge, the page."""

import logging
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel

from trainer import __version__
from trainer.checkpoint.run_checkpoints import RunCheckpoints
from trainer.checkpoint.save import SaveError
from trainer.checkpoint.storage import probe_storage
from trainer.data.teacher import scored_rows
from trainer.export.adapter import AdapterBase, write_adapter_config
from trainer.export.base import folder_of_base
from trainer.export.embedder_files import write_embedder_files
from trainer.export.folder import ADAPTER_FOLDER, ExportRequest, export_model
from trainer.export.parity_file import Parity, write_parity
from trainer.merge.merge_run import merge_last
from trainer.merge.model_place import place_of_model
from trainer.preflight.checks import writing_to
from trainer.recipe.load import dump_recipe
from trainer.report.card import write_run_card
from trainer.report.write import write_report
from trainer.run_folder.facts import RunFacts, write_run_facts
from trainer.session.open import Session
from trainer.session.parity import parity_of_session, warn_of_clients

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "deepspeed", "transformers", "peft", "numpy")
"""Whose releases shape the numbers; recorded with each checkpoint."""


@dataclass(frozen=True)
class Artifacts:
    """Writes what a run leaves; methods are collective unless they say otherwise."""

    session: Session

    def begin(self) -> None:
        """Write the recipe and the facts of the run, on one rank for each disk.

        What an earlier end of the run left, `model/` and its marker, stays until the next end.
        """
        folder, recipe = self.session.folder, self.session.recipe
        with writing_to(folder.root):
            folder.root.mkdir(parents=True, exist_ok=True)
            folder.recipe.write_text(dump_recipe(recipe), encoding="utf-8")
            write_run_facts(folder.root, self._facts())

    def _facts(self) -> RunFacts:
        """What the page says besides the recipe."""
        session, last = self.session, self.checkpoints.planned[-1]
        device = session.ranks.device
        return RunFacts(
            num_ranks=session.ranks.world_size,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            num_steps=last.num_steps,
            exposure=last.plan.exposure(last.num_steps),
            scored_rows=scored_rows(session.data.sources),
            libraries={name: version(name) for name in LIBRARIES},
            stretches=self.checkpoints.stretches,
        )

    @cached_property
    def checkpoints(self) -> RunCheckpoints:
        """Checkpoints of this run; their folder is made. Collective: yes, the first time."""
        session = self.session
        folder = session.folder.checkpoints
        return RunCheckpoints(
            folder=folder,
            storage=probe_storage(folder, session.ranks),
            recipe=session.recipe,
            sources=session.data.sources,
            named=session.named,
            versions={"trainer": __version__, **{name: version(name) for name in LIBRARIES}},
            base=session.base,
        )

    def save(self, done: int) -> None:
        """Write the checkpoint of `done` steps.

        Raises:
            SaveError: a disk refused.
        """
        engine = self.session.built.engine
        self.checkpoints.save(engine, done, write_embedder=self._write_beside_checkpoint)

    def try_save(self, done: int) -> None:
        """Write the checkpoint of `done` steps, or say why not and when it is tried again."""
        try:
            self.save(done)
        except SaveError as error:
            again = self.session.recipe.checkpoint
            when = [f"in {again.every_minutes:g} minutes"] if again.every_minutes else []
            when += [f"after step {done + again.every_steps}"] if again.every_steps else []
            logger.warning("%s Training goes on; saving is tried again %s, and at the end.",
                           error, " or ".join(when))  # fmt: skip

    def keep_best(self, done: int) -> None:
        """Keep the checkpoint of this step, or say why not."""
        engine = self.session.built.engine
        try:
            self.checkpoints.keep_best(engine, done, write_embedder=self._write_beside_checkpoint)
        except SaveError as error:
            logger.warning("%s The best checkpoint so far is not kept.", error)

    def report(self) -> None:
        """Write the page; a fault costs the page, which `tools/report.py` makes again.

        Collective: no; on the first rank.
        """
        try:
            write_report(self.session.folder.root)
        except Exception as error:  # noqa: BLE001 - the model is still to be exported
            logger.warning("report.html: not written (%s: %s)", type(error).__name__, error)

    def export(self, step: int | None = None) -> None:
        """Write the trained model with its own vectors, and warn of clients that would differ.

        Args:
            step: steps done by its parameters; None: all of the run.
        """
        session = self.session
        parity = parity_of_session(session)
        request = ExportRequest(
            kind=session.recipe.checkpoint.export,
            base=self._adapter_base(),
            projection=session.built.engine.module.projection,
            write_embedder=lambda folder: self._write_with_parity(folder, parity),
            write_card=lambda folder: self._write_card(folder, session.folder.model, step),
        )
        backbone = session.built.engine.module.backbone
        export_model(backbone, session.folder.model, request, session.ranks)
        if session.ranks.is_first:
            warn_of_clients(session.folder.model)

    def merge(self) -> None:
        """Merge the last checkpoints, where the recipe asks for it."""
        session = self.session
        merge, model = session.recipe.checkpoint.merge, session.recipe.model
        if merge is None:
            return
        checkpoints = self.checkpoints.newest(merge.last)
        if len(checkpoints) < merge.last:
            logger.warning("checkpoint.merge.last = %d, but the run saved %d; those are merged",
                           merge.last, len(checkpoints))  # fmt: skip
        base = (place_of_model(model), model.revision)
        merge_last(
            merge,
            base,
            checkpoints,
            session.folder.merged,
            session.ranks,
            finish=lambda folder: self._write_card(folder, session.folder.merged, None),
        )
        if session.ranks.is_first:
            self.report()

    def _adapter_base(self) -> AdapterBase | None:
        """What an exported adapter says of its base."""
        session = self.session
        if session.base is None:
            return None
        model = session.recipe.model
        path = place_of_model(model)
        place = str(Path(path).resolve()) if Path(path).is_dir() else path
        return AdapterBase(place=place, revision=model.revision, identity=session.base)

    def _write_card(self, folder: Path, target: Path, step: int | None) -> None:
        """Describe an export; a fault costs the card and not the model.

        Args:
            folder: where the export lies now.
            target: where it will lie.
            step: steps done by its parameters; None: all of the run.
        """
        place = target if folder.name != ADAPTER_FOLDER else target / ADAPTER_FOLDER
        try:
            write_run_card(folder, self.session.folder.root, place=place.as_posix(), step=step)
        except Exception as error:  # noqa: BLE001 - the model is whole without it
            logger.warning("%s: no card (%s: %s)", place, type(error).__name__, error)

    def _write_with_parity(self, folder: Path, parity: Parity | None) -> None:
        """Embedder files and, beside them, what every client must make of them."""
        self._write_embedder(folder)
        if parity is not None:
            write_parity(folder, parity)

    def _write_beside_checkpoint(self, folder: Path) -> None:
        """Embedder files and, of adapters, peft's config: merging reads there how they apply."""
        self._write_embedder(folder)
        backbone, base = self.session.built.engine.module.backbone, self._adapter_base()
        if isinstance(backbone, PeftModel) and base is not None:
            write_adapter_config(backbone, folder, base)

    def _write_embedder(self, folder: Path) -> None:
        """Config, tokenizer, pooling and prompts."""
        session, model = self.session, self.session.recipe.model
        embedder = session.built.engine.module
        backbone = embedder.backbone
        own = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
        write_embedder_files(
            folder,
            session.recipe,
            config=embedder.config,
            tokenizer=session.tokenizer,
            base=folder_of_base(place_of_model(model), model.revision),
            architecture=type(own).__name__,
        )
