"""One run put together: model, data, loop, evaluation, checkpoints and export."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from trainer import __version__
from trainer.checkpoint.adapter_export import AdapterBase, check_exportable
from trainer.checkpoint.base_identity import check_dtypes, identify_base
from trainer.checkpoint.embedder_files import write_embedder_files
from trainer.checkpoint.export import ExportRequest, export_model
from trainer.checkpoint.manifest import BaseIdentity
from trainer.checkpoint.run_checkpoints import RunCheckpoints
from trainer.checkpoint.save import SaveError, tag_of
from trainer.checkpoint.storage import probe_storage
from trainer.data.loader import batches
from trainer.data.plan import DataPlan, make_plan
from trainer.data.tokens import TextEncoder, check_instructions, load_tokenizer, make_encoder
from trainer.distributed.group import Ranks, joined
from trainer.engine.bad_steps import BadSteps
from trainer.engine.build import Built, build
from trainer.engine.embed import embed_texts
from trainer.engine.loop import Hooks, Interrupt, Schedule, fit
from trainer.engine.out_of_memory import probe_memory
from trainer.engine.recorder import FileRecorder, Recorder
from trainer.engine.step import Stepper
from trainer.evaluation.early_stopping import EarlyStopping
from trainer.evaluation.evaluate import SetReport, Side, examine_set
from trainer.memory.gather import choose_gather
from trainer.merge.merge_run import merge_last
from trainer.model.backbone import check_backbone, load_config
from trainer.model.limits import fit_tokenizer, num_token_ids
from trainer.preflight.checks import RunData, writing_to
from trainer.preflight.deepspeed_dict import check_deepspeed
from trainer.preflight.hosts import check_hosts, describe_base
from trainer.recipe.load import dump_recipe
from trainer.recipe.model_path import resolve_model_path
from trainer.recipe.resolve import resolve, warmup_steps
from trainer.recipe.schema import EvalSetRecipe, Recipe
from trainer.report.write import write_report
from trainer.run_folder.facts import RunFacts, write_run_facts
from trainer.run_folder.finished import clear_finished, write_finished

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "deepspeed", "transformers", "peft", "numpy")
"""Whose releases shape the numbers; recorded with each checkpoint."""


def train(recipe: Recipe, data: RunData, *, resume: bool) -> int:
    """Train as the recipe says, from the start or from the newest valid checkpoint.

    Args:
        recipe: checked.
        data: opened and checked.
        resume: whether to continue what `output_dir` holds.

    Returns:
        Exit code: 0 done, 130 or 143 interrupted and saved.

    Raises:
        TrainerError: see the rooms that `Session` is made of.
    """
    interrupt = Interrupt()
    with interrupt.listening(), joined(recipe.engine.timeout_minutes) as ranks:
        session = open_session(recipe, data, ranks)
        start = session.prepare(resume=resume)
        done = session.fit(start, interrupt)
        if ranks.is_first:
            session.report()
        if interrupt.signal is None:
            session.restore_best(done)
            session.export()
            session.merge()
            if ranks.is_first:
                write_finished(session.folder, step=done)
            logger.info("done: %d steps, model in %s", done, session.folder / "model")
        else:
            logger.info("interrupted after %d steps, saved; continue with --resume", done)
    return interrupt.exit_code


def open_session(recipe: Recipe, data: RunData, ranks: Ranks) -> "Session":
    """Load tokenizer and model and make the engine. Collective: yes."""
    path = resolve_model_path(recipe.model.path)
    check_dtypes(path, recipe.model.revision)
    resolved = resolve(recipe, world_size=ranks.world_size)
    check_deepspeed(resolved.deepspeed, file=recipe.engine.deepspeed)
    config = load_config(recipe.model, path)
    num_ids = num_token_ids(check_backbone(recipe, path, config, download=True))
    tokenizer = load_tokenizer(
        path,
        pooling=recipe.model.pooling,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    fit_tokenizer(tokenizer, num_ids, recipe.model.path)
    encoder = make_encoder(tokenizer, recipe.data, pooling=recipe.model.pooling, num_ids=num_ids)
    check_instructions(encoder, recipe)
    check_hosts(recipe, data.sources, describe_base(path, config), ranks)
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
    plan = make_plan(recipe, {source.name: len(source) for source in data.sources})
    name, revision = recipe.model.path, recipe.model.revision
    base = identify_base(name, path, ranks, revision=revision) if recipe.model.lora else None
    return Session(recipe, data, ranks, built, tokenizer, encoder, plan, base)


@dataclass(frozen=True)
class Session:
    """A loaded run; methods are collective."""

    recipe: Recipe
    """As loaded."""
    data: RunData
    """Sources and evaluation sets, opened before the group was joined."""
    ranks: Ranks
    """This process."""
    built: Built
    """Engine and passes."""
    tokenizer: PreTrainedTokenizerFast
    """Of the model; exported with it."""
    encoder: TextEncoder
    """Texts to token ids, as in training."""
    plan: DataPlan
    """Which rows each step takes."""
    base: BaseIdentity | None
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
        return {source.name: source.fingerprint for source in self.data.sources}

    def prepare(self, *, resume: bool) -> int:
        """Restore the newest valid checkpoint if asked; returns the first step to take."""
        checkpoints, start = self.checkpoints, 0
        if resume:
            start = checkpoints.restore(self.built.engine, num_steps=self.num_steps)
        if start > 0:
            logger.info("resumed from %s: next step is %d", tag_of(start), start)
        if self.ranks.is_first:
            with writing_to(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                clear_finished(self.folder)
                (self.folder / "recipe.yaml").write_text(dump_recipe(self.recipe), encoding="utf-8")
                write_run_facts(self.folder, self._facts())
        dist.barrier()
        return start

    def fit(self, start: int, interrupt: Interrupt) -> int:
        """Run the loop from a step; returns steps done."""
        recipe, stop = self.recipe, self.num_steps
        warmup = warmup_steps(recipe, stop)
        bad_steps = BadSteps(
            folder=self.folder,
            sources={source.name: source for source in self.data.sources},
            ranks=self.ranks,
        )
        stepper = Stepper(recipe, self.built, self.ranks, stop, warmup, bad_steps)
        if start < stop:
            probe_memory(recipe, self.built, self.ranks)
        stream = batches(self.plan, self.data.sources, self.encoder, recipe, start, stop)
        with closing(stream), self._recorder(start, stop) as recorder:
            had_ended = self.early_stopping.recall(start)
            self.checkpoints.align_best(
                self.early_stopping.best_step, self.early_stopping.record.steps
            )
            if had_ended:
                return start
            schedule = Schedule(
                start=start,
                stop=stop,
                start_evaluated=self.early_stopping.record.has_start,
                eval_every=recipe.eval.every_steps,
                save_every=recipe.checkpoint.every_steps,
                save_every_minutes=recipe.checkpoint.every_minutes,
            )
            hooks = Hooks(
                step=stepper.run,
                report=recorder.step,
                evaluate=lambda done: self._judge(done, recorder),
                save=self.save,
                try_save=self.try_save,
            )
            return fit(stream, schedule, hooks, self.ranks, interrupt)

    def _recorder(self, start: int, stop: int) -> Recorder:
        """Writes numbers on the first rank, nothing elsewhere."""
        if not self.ranks.is_first:
            return Recorder()
        recipe = self.recipe
        with writing_to(self.folder):
            return FileRecorder(
                self.folder,
                start=start,
                stop=stop,
                wandb_project=recipe.log.wandb_project,
                name=recipe.name,
            )

    def _facts(self) -> RunFacts:
        """What the page says besides the recipe."""
        device = self.ranks.device
        cuda = device.type == "cuda"
        return RunFacts(
            num_ranks=self.ranks.world_size,
            device=torch.cuda.get_device_name(device) if cuda else device.type,
            num_steps=self.num_steps,
            exposure=self.plan.exposure(self.num_steps),
            libraries={name: version(name) for name in LIBRARIES},
        )

    @cached_property
    def early_stopping(self) -> EarlyStopping:
        """Follows the best evaluation."""
        return EarlyStopping(self.recipe.eval, self.folder, self.ranks)

    def _judge(self, done: int, recorder: Recorder) -> bool:
        """Evaluate, record, keep the checkpoint if it is the best; whether the run should end."""
        reports = self.evaluate()
        results = {name: report.metrics for name, report in reports.items()}
        geometry = {name: report.geometry.recorded for name, report in reports.items()}
        recorder.evaluation(done, results, geometry)
        verdict = self.early_stopping.judge(done, results)
        if verdict.is_best and done:
            self._keep_best(done)
        if verdict.is_last:
            logger.info("after %d steps eval.patience has ended", done)
        return verdict.is_last

    def _keep_best(self, done: int) -> None:
        """Keep the checkpoint of this step, or say why not."""
        engine = self.built.engine
        try:
            self.checkpoints.keep_best(engine, done, write_embedder=self._write_embedder)
        except SaveError as error:
            logger.warning("%s The best checkpoint so far is not kept.", error)

    def restore_best(self, done: int) -> None:
        """Go back to the best evaluation's parameters, where the recipe names a metric."""
        best = self.early_stopping.best_step
        if best is None or best == done:
            return
        metric = self.recipe.eval.best_metric
        if best > 0 and self.checkpoints.load(self.built.engine, best):
            logger.info("model/ is that of step %d, the best by %s", best, metric)
        else:
            logger.warning("%s was best after %d steps, of which there is no checkpoint; model/ is "
                           "that of step %d", metric, best, done)  # fmt: skip

    def evaluate(self) -> dict[str, SetReport]:
        """Metrics and geometry of every evaluation set."""
        with self.built.grad_cache.held():
            return {
                held_out.name: examine_set(records, SetEmbedder(self, held_out))
                for held_out, records in zip(
                    self.recipe.eval.sets, self.data.eval_sets, strict=True
                )
            }

    @cached_property
    def checkpoints(self) -> RunCheckpoints:
        """Checkpoints of this run; their folder is made. Collective: yes, the first time."""
        folder = self.folder / "checkpoints"
        return RunCheckpoints(
            folder=folder,
            storage=probe_storage(folder, self.ranks),
            recipe=self.recipe,
            sources=self.fingerprints,
            versions={"trainer": __version__, **{name: version(name) for name in LIBRARIES}},
            base=self.base,
        )

    def save(self, done: int) -> None:
        """Write the checkpoint of `done` steps.

        Raises:
            SaveError: a disk refused.
        """
        engine = self.built.engine
        self.checkpoints.save(engine, done, write_embedder=self._write_embedder)

    def try_save(self, done: int) -> None:
        """Write the checkpoint of `done` steps, or say why not and when it is tried again."""
        try:
            self.save(done)
        except SaveError as error:
            again = self.recipe.checkpoint
            when = [f"in {again.every_minutes:g} minutes"] if again.every_minutes else []
            when += [f"after step {done + again.every_steps}"] if again.every_steps else []
            logger.warning("%s Training goes on; saving is tried again %s, and at the end.",
                           error, " or ".join(when))  # fmt: skip

    def report(self) -> None:
        """Write `report.html`; a fault costs the page, which `tools/report.py` makes again."""
        try:
            write_report(self.folder)
        except Exception as error:  # noqa: BLE001 - the model is still to be exported
            logger.warning("report.html: not written (%s: %s)", type(error).__name__, error)

    def export(self) -> None:
        """Write `model/`."""
        request = ExportRequest(
            kind=self.recipe.checkpoint.export,
            base=self._adapter_base(),
            write_embedder=self._write_embedder,
        )
        backbone = self.built.engine.module.backbone
        export_model(backbone, self.folder / "model", request, self.ranks)

    def merge(self) -> None:
        """Write `merged/`, where the recipe asks for it."""
        merge = self.recipe.checkpoint.merge
        if merge is None:
            return
        checkpoints = self.checkpoints.newest(merge.last)
        if len(checkpoints) < merge.last:
            logger.warning("checkpoint.merge.last = %d, but the run saved %d; those are merged",
                           merge.last, len(checkpoints))  # fmt: skip
        model = self.recipe.model
        base = (resolve_model_path(model.path), model.revision)
        merge_last(merge, base, checkpoints, self.folder / "merged", self.ranks)
        if self.ranks.is_first:
            self.report()

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
            grad_cache=self.session.built.grad_cache,
            ranks=self.session.ranks,
            chunk_tokens=self.session.recipe.engine.max_tokens_per_chunk,
        )
