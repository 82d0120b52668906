"""One run put together: model, data, loop, evaluation, checkpoints and export."""

import dataclasses
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from trainer import __version__
from trainer.checkpoint.adapter_export import AdapterBase, check_exportable
from trainer.checkpoint.base_identity import check_same_base, identify_base
from trainer.checkpoint.embedder_files import write_embedder_files
from trainer.checkpoint.export import ExportRequest, export_model
from trainer.checkpoint.manifest import BaseIdentity
from trainer.checkpoint.resume import check_same_run, find_checkpoint, load_checkpoint
from trainer.checkpoint.save import SaveRequest, save_checkpoint
from trainer.data.evalsets import IrEvalSet, StsEvalSet
from trainer.data.loader import batches
from trainer.data.plan import DataPlan, make_plan
from trainer.data.sources import Source, open_eval_set
from trainer.data.tokens import TextEncoder, check_instructions, load_tokenizer, make_encoder
from trainer.engine.build import Built, build
from trainer.engine.embed import embed_texts
from trainer.engine.gather_mode import choose_gather
from trainer.engine.loop import Hooks, Interrupt, Schedule, fit
from trainer.engine.metrics import FileRecorder, Recorder
from trainer.engine.ranks import Ranks, join, leave
from trainer.engine.step import Stepper
from trainer.evaluation.evaluate import Side, evaluate_set
from trainer.model.backbone import load_config
from trainer.recipe.load import dump_recipe
from trainer.recipe.model_path import resolve_model_path
from trainer.recipe.resolve import resolve, warmup_steps
from trainer.recipe.schema import EvalSetRecipe, Recipe
from trainer.report import write_report

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "deepspeed", "transformers", "peft", "numpy")
"""Whose releases shape the numbers; recorded with each checkpoint."""


def train(recipe: Recipe, sources: tuple[Source, ...], *, resume: bool) -> int:
    """Train as the recipe says, from the start or from the newest valid checkpoint.

    Args:
        recipe: checked.
        sources: opened and checked.
        resume: whether to continue what `output_dir` holds.

    Returns:
        Exit code: 0 done, 130 or 143 interrupted and saved.

    Raises:
        TrainerError: see the rooms that `Session` is made of.
    """
    interrupt = Interrupt()
    with interrupt.listening():
        ranks = join(recipe.engine.timeout_minutes)
        try:
            session = open_session(recipe, sources, ranks)
            start = session.prepare(resume=resume)
            done = session.fit(start, interrupt)
            if ranks.is_first:
                write_report(session.folder)
            if interrupt.signal is None:
                session.export()
                logger.info("done: %d steps, model in %s", done, session.folder / "model")
            else:
                logger.info("interrupted after %d steps, saved; continue with --resume", done)
        finally:
            leave()
    return interrupt.exit_code


def open_session(recipe: Recipe, sources: tuple[Source, ...], ranks: Ranks) -> "Session":
    """Load tokenizer and model and make the engine. Collective: yes."""
    path = resolve_model_path(recipe.model.path)
    resolved = resolve(recipe, world_size=ranks.world_size)
    tokenizer = load_tokenizer(
        path,
        pooling=recipe.model.pooling,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    encoder = make_encoder(tokenizer, recipe.data, pooling=recipe.model.pooling)
    check_instructions(encoder, recipe)
    config = load_config(recipe.model, path)
    if recipe.model.lora is not None:
        check_exportable(recipe, config)
    gather = choose_gather(
        recipe,
        config,
        resolved.deepspeed,
        world_size=ranks.world_size,
    )
    logger.info("%d ranks on %s, gather: %s", ranks.world_size, ranks.device.type, gather)
    built = build(
        recipe, model_path=path, config=dict(resolved.deepspeed), gather=gather, ranks=ranks
    )
    plan = make_plan(recipe, {source.name: len(source) for source in sources})
    name, revision = recipe.model.path, recipe.model.revision
    base = identify_base(name, path, ranks, revision=revision) if recipe.model.lora else None
    eval_sets = tuple(open_eval_set(held_out, recipe.data) for held_out in recipe.eval.sets)
    return Session(recipe, sources, ranks, built, tokenizer, encoder, plan, base, eval_sets)


@dataclass(frozen=True)
class Session:
    """A loaded run; methods are collective."""

    recipe: Recipe
    sources: tuple[Source, ...]
    ranks: Ranks
    built: Built
    tokenizer: PreTrainedTokenizerFast
    encoder: TextEncoder
    plan: DataPlan
    base: BaseIdentity | None
    eval_sets: tuple[StsEvalSet | IrEvalSet, ...]
    """What adapters belong to; None where all parameters are trained."""

    @property
    def folder(self) -> Path:
        """The run's output folder."""
        return Path(self.recipe.output_dir).expanduser()

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        if self.recipe.train.max_steps is not None:
            return self.recipe.train.max_steps
        assert self.recipe.train.epochs is not None
        return self.plan.num_steps(self.recipe.train.epochs)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Identity of each source's data."""
        return {source.name: source.fingerprint for source in self.sources}

    def prepare(self, *, resume: bool) -> int:
        """Restore the newest valid checkpoint if asked; returns the first step to take."""
        checkpoints = self.folder / "checkpoints"
        found = find_checkpoint(checkpoints, self.ranks) if resume else None
        start = 0
        if found is not None:
            check_same_run(
                found,
                recipe=dataclasses.asdict(self.recipe),
                sources=self.fingerprints,
                world_size=self.ranks.world_size,
            )
            if self.base is not None:
                check_same_base(found.tag, found.manifest.base, self.base)
            start = load_checkpoint(self.built.engine, checkpoints, found, self.ranks)
            logger.info("resumed from %s: next step is %d", found.tag, start)
        if self.ranks.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "recipe.yaml").write_text(dump_recipe(self.recipe), encoding="utf-8")
        dist.barrier()
        return start

    def fit(self, start: int, interrupt: Interrupt) -> int:
        """Run the loop from a step; returns steps done."""
        recipe, stop = self.recipe, self.num_steps
        stepper = Stepper(recipe, self.built, self.ranks, stop, warmup_steps(recipe, stop))
        schedule = Schedule(
            start=start,
            stop=stop,
            eval_every=recipe.eval.every_steps,
            save_every=recipe.checkpoint.every_steps,
        )
        stream = batches(self.plan, self.sources, self.tokenizer, recipe, start, stop)
        with closing(stream), self._recorder(start, stop) as recorder:
            hooks = Hooks(
                step=stepper.run,
                report=recorder.step,
                evaluate=lambda done: recorder.evaluation(done, self.evaluate()),
                save=self.save,
            )
            return fit(stream, schedule, hooks, self.ranks, interrupt)

    def _recorder(self, start: int, stop: int) -> Recorder:
        """Writes numbers on the first rank, nothing elsewhere."""
        if not self.ranks.is_first:
            return Recorder()
        recipe = self.recipe
        return FileRecorder(
            self.folder,
            start=start,
            stop=stop,
            wandb_project=recipe.log.wandb_project,
            name=recipe.name,
        )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics of every evaluation set."""
        with self.built.passes.held():
            return {
                held_out.name: evaluate_set(records, SetEmbedder(self, held_out))
                for held_out, records in zip(self.recipe.eval.sets, self.eval_sets, strict=True)
            }

    def save(self, done: int) -> None:
        """Write the checkpoint of `done` steps."""
        request = SaveRequest(
            step=done,
            recipe=dataclasses.asdict(self.recipe),
            sources=self.fingerprints,
            versions={"trainer": __version__, **{name: version(name) for name in LIBRARIES}},
            write_embedder=self._write_embedder,
            base=self.base,
        )
        save_checkpoint(
            self.built.engine,
            self.folder / "checkpoints",
            request,
            self.ranks,
            keep=self.recipe.checkpoint.keep,
        )

    def export(self) -> None:
        """Write `model/`."""
        request = ExportRequest(
            kind=self.recipe.checkpoint.export,
            base=self._adapter_base(),
            write_embedder=self._write_embedder,
        )
        backbone = self.built.engine.module.backbone
        export_model(backbone, self.folder / "model", request, self.ranks)

    def _adapter_base(self) -> AdapterBase | None:
        """What an exported adapter says of its base."""
        if self.base is None:
            return None
        path = resolve_model_path(self.recipe.model.path)
        place = str(Path(path).resolve()) if Path(path).is_dir() else path
        return AdapterBase(place=place, revision=self.recipe.model.revision, identity=self.base)

    def _write_embedder(self, folder: Path) -> None:
        """Config, tokenizer, pooling and prompts."""
        write_embedder_files(
            folder,
            self.recipe,
            config=self.built.engine.module.config,
            tokenizer=self.tokenizer,
        )


@dataclass(frozen=True)
class SetEmbedder:
    """Embeds the texts of one evaluation set with its instructions."""

    session: Session
    held_out: EvalSetRecipe

    def __call__(self, texts: Sequence[str], *, side: Side) -> Tensor:
        """Vectors [n, H] on all ranks. Collective: yes."""
        data = self.session.recipe.data
        query = side == "query"
        return embed_texts(
            texts,
            instruction=(
                self.held_out.query_instruction if query else self.held_out.passage_instruction
            ),
            max_tokens=data.query_max_tokens if query else data.passage_max_tokens,
            encoder=self.session.encoder,
            passes=self.session.built.passes,
            ranks=self.session.ranks,
            chunk_tokens=self.session.recipe.engine.max_tokens_per_chunk,
        )
