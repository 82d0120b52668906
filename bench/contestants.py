"""This trainer and its peer, made from the same folder and stepped on the same texts."""

import json
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from bench.jobs import LEARNING_RATE, MAX_GRAD_NORM, TEMPERATURE, Job, OursJob, PeerJob, Work
from trainer.data.batch import Batch, StepPlan
from trainer.data.loader import batches
from trainer.data.sources import open_source
from trainer.data.tokens import load_tokenizer, make_encoder
from trainer.distributed.group import join
from trainer.engine.build import build
from trainer.engine.step import Stepper, StepReport
from trainer.memory.estimate import MemoryPlan, plan_memory
from trainer.memory.shapes import measure_model
from trainer.model.backbone import load_config
from trainer.recipe.ir import IrRecipe
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import (
    AUTO,
    DataRecipe,
    EngineRecipe,
    LoraRecipe,
    ModelRecipe,
    Recipe,
    SourceRecipe,
    TrainRecipe,
)

NUM_STEPS = 10_000
"""Length that the learning rate's shape is given; it is constant."""


class Contestant(Protocol):
    """A model with its optimizer, ready to take steps."""

    def prepare(self, index: int) -> None:
        """Tokenise the batch of a step; not timed, as loaders do it ahead."""

    def step(self, index: int) -> float:
        """Take an optimizer step on a prepared batch; returns its loss."""

    def facts(self) -> dict[str, float]:
        """What else is worth showing."""


def make(job: Job) -> Contestant:
    """Load model, optimizer and texts, in the process that is measured."""
    return Ours(job) if isinstance(job, OursJob) else Peer(job)


def make_recipe(job: OursJob) -> Recipe:
    """The recipe of a job."""
    work = job.work
    source = SourceRecipe(
        name="docs",
        task="ir",
        path=str(work.pairs),
        query_instruction=work.instruction,
        passage_instruction=work.instruction,
    )
    model: dict[str, Any] = {"dtype": work.dtype, "gradient_checkpointing": work.checkpointing}
    if work.lora_rank:
        model["lora"] = LoraRecipe(rank=work.lora_rank, alpha=2 * work.lora_rank)
    engine: dict[str, Any] = {
        "gather": job.gather,
        "attention_kernel": work.kernel,
        "share_prefix": job.share_prefix,
        "kernels": job.kernels,
    }
    return Recipe(
        name="benchmark",
        output_dir="unused",
        model=ModelRecipe(path=str(work.model), **model),
        data=DataRecipe(
            sources=(source,),
            query_max_tokens=work.max_tokens,
            passage_max_tokens=work.max_tokens,
            workers=1,
        ),
        # masks would leave candidates out that the peer counts
        tasks={
            "ir": IrRecipe(
                global_batch_size=work.batch_size,
                negatives=0,
                temperature=TEMPERATURE,
                mask="none",
            )
        },
        train=TrainRecipe(
            max_steps=NUM_STEPS,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            warmup_ratio=0.0,
            weight_decay=0.0,
            max_grad_norm=MAX_GRAD_NORM,
        ),
        engine=EngineRecipe(
            deepspeed=job.deepspeed,
            max_tokens_per_chunk=job.chunk_tokens,
            keep_graph_tokens=job.keep_tokens,
            **engine,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class InOrder:
    """A data plan that takes rows as they stand in the file, so that the peer can do the same."""

    num_rows: int
    """Of the file; after the last comes the first."""
    batch_size: int
    """Rows of a step."""

    def turn(self, step: int) -> tuple[str, int]:
        """The source of a step and how many steps it had before."""
        return "docs", step

    def at(self, step: int) -> StepPlan:
        """Which rows a step takes."""
        rows = np.arange(step * self.batch_size, (step + 1) * self.batch_size) % self.num_rows
        return StepPlan(step=step, task="ir", source="docs", epoch=0, rows=rows)


class Ours:
    """The engine's own step, as a run takes it."""

    def __init__(self, job: OursJob) -> None:
        ranks = join(timeout_minutes=10)
        self.recipe = make_recipe(job)
        path = str(job.work.model)
        config = dict(resolve(self.recipe, world_size=ranks.world_size).deepspeed)
        built = build(
            self.recipe,
            model_path=path,
            config=config,
            gather=self.recipe.engine.gather,
            ranks=ranks,
        )
        self.stepper = Stepper(self.recipe, built, ranks, num_steps=NUM_STEPS, warmup_steps=0)
        source = open_source(self.recipe.data.sources[0], ".")
        plan = InOrder(num_rows=len(source), batch_size=job.work.batch_size)
        tokenizer = load_tokenizer(path, pooling="last")
        encoder = make_encoder(tokenizer, self.recipe.data, pooling="last")
        self.batches = batches(plan, (source,), encoder, self.recipe, 0, NUM_STEPS)  # type: ignore[arg-type]
        self.batch: Batch | None = None
        self.report: StepReport | None = None

    def prepare(self, index: int) -> None:
        """See `Contestant.prepare`; a worker process tokenises, as in a run."""
        self.batch = next(self.batches)
        assert self.batch.plan.step == index

    def step(self, index: int) -> float:
        """See `Contestant.step`."""
        assert self.batch is not None
        self.report = self.stepper.run(self.batch)
        return self.report.loss

    def facts(self) -> dict[str, float]:
        """Of the last step: chunks of a rank, padding, real tokens, and those that ran."""
        report = self.report
        assert report is not None
        return {
            "chunks": report.num_chunks,
            "padding": report.padding_fraction,
            "tokens": report.tokens,
            "run": report.tokens * (1 - report.shared_fraction) / (1 - report.padding_fraction),
        }


def planned_tokens(job: OursJob, step_bytes: int) -> int:
    """What `engine.keep_graph_tokens: auto` keeps on one rank whose steps may take so many bytes.

    Args:
        job: its own `keep_tokens` does not count.
        step_bytes: above what is held before the first step.
    """
    recipe = make_recipe(job)
    engine = replace(recipe.engine, keep_graph_tokens=AUTO, memory_fraction=1.0)
    shape = measure_model(load_config(recipe.model, recipe.model.path), recipe)

    def planned(usable_bytes: int | None) -> MemoryPlan:
        return plan_memory(
            replace(recipe, engine=engine),
            shape,
            deepspeed=resolve(recipe, world_size=1).deepspeed,
            world_size=1,
            usable_bytes=usable_bytes,
            on_gpu=torch.cuda.is_available(),
        )

    loaded = planned(None).parts("step")
    return planned(step_bytes + loaded["parameters"] + loaded["masters"]).kept["step"]


class Peer:
    """The loss as its documentation shows it, with the update that its trainer makes."""

    def __init__(self, job: PeerJob) -> None:
        from sentence_transformers.sentence_transformer.losses import (
            CachedMultipleNegativesRankingLoss,
        )

        work = job.work
        self.work = work
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = make_peer_model(work).to(self.device).train()
        self.loss = CachedMultipleNegativesRankingLoss(
            self.model,
            scale=1 / TEMPERATURE,
            mini_batch_size=job.mini_batch_size,
            mini_batch_num_tokens=job.mini_batch_tokens,
        )
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trainable, lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self.rows = [json.loads(line) for line in work.pairs.read_text("utf-8").splitlines()]
        self.features: list[dict[str, Any]] = []

    def prepare(self, index: int) -> None:
        """See `Contestant.prepare`."""
        size = self.work.batch_size
        rows = [self.rows[i % len(self.rows)] for i in range(index * size, (index + 1) * size)]
        columns = ([row["query"] for row in rows], [row["positives"][0] for row in rows])
        self.features = [
            {
                key: value.to(self.device) if isinstance(value, torch.Tensor) else value
                for key, value in self.model.preprocess(texts).items()
            }
            for texts in columns
        ]

    def step(self, index: int) -> float:
        """See `Contestant.step`."""
        loss = self.loss(self.features, None)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)

    def facts(self) -> dict[str, float]:
        """Nothing: the loss does not show how it cut the batch."""
        return {}


def make_peer_model(work: Work) -> Any:
    """The folder as a sentence-transformers model with last-token pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(
        str(work.model),
        max_seq_length=work.max_tokens,
        model_kwargs={"dtype": getattr(torch, work.dtype), "attn_implementation": work.kernel},
    )
    size = transformer.get_embedding_dimension()
    model = SentenceTransformer(
        modules=[transformer, Pooling(size, pooling_mode="lasttoken"), Normalize()], device="cpu"
    )
    if work.lora_rank:
        from peft import LoraConfig, TaskType

        model.add_adapter(
            LoraConfig(
                task_type=TaskType.FEATURE_EXTRACTION,
                r=work.lora_rank,
                lora_alpha=2 * work.lora_rank,
                target_modules="all-linear",
            )
        )
    if work.checkpointing:
        transformer.auto_model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    return model
