"""`--selfcheck`: is the chunked, sharded gradient right on this model, and where does time go.

The reference shares as little as possible with what it checks: every rank embeds the whole batch in
one forward of the hook-free model, without cache, chunks or DeepSpeed, and differentiates the loss.
Compared are the vectors, and the gradients of all parameters, of a loss that both sides
differentiate at the same vectors. An untrained model's vectors are nearly equal, so rank
losses divide by a tiny spread: at vectors that differ in their last bits, as those of any two
chunkings do, gradients differ a hundred times as much, which says nothing about either side.

Where gradients of texts nearly cancel, float32 sums differ by more than the limit whatever computes
them. How much, plain autograd says: the reference is made twice, once cut as the engine cuts.
"""

import dataclasses
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import deepspeed
import numpy as np
import torch
from torch import Tensor

from trainer.data.batch import Batch
from trainer.data.loader import batches
from trainer.data.plan import DataPlan
from trainer.distributed.group import join, leave
from trainer.distributed.rows import gather_rows
from trainer.engine.chunks import ChunkPlan, plan_chunks
from trainer.engine.grad_cache import ValueAndGrad
from trainer.engine.losses.step_loss import step_loss, whole_loss
from trainer.engine.losses.task_loss import Vectors, prefixes_of
from trainer.engine.materialise import lengths_of, make_chunks, plan_texts, step_key
from trainer.model.dropout import leave_attention_whole
from trainer.preflight.checks import RunData
from trainer.recipe.embedding_distillation import LAYER_KEY, is_projected
from trainer.recipe.kind import TaskSettings, reads_middle
from trainer.recipe.per_source import settings_of, step_kinds, turn_of
from trainer.recipe.schema import Recipe
from trainer.recipe.tasks import TASKS
from trainer.session.open import Session, open_session
from trainer.session.step_share import share_outside_products

logger = logging.getLogger(__name__)

NUM_STEPS = 4
"""First steps that are compared; kinds of steps that come later are compared besides."""
ROWS_PER_RANK = 8
"""Queries or pairs of a compared batch, per rank, at most."""
MEASURED_ROWS = 32
"""The same of a step whose time is measured."""
NUM_CHUNKS = 4
"""Chunks per rank that a compared batch is cut into, about."""
LIMITS = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest relative error of vectors and of a parameter's gradient, by `model.dtype`."""
ROUNDING = 4
"""Times the difference of plain autograd with itself that is rounding, in float32 up to:"""
MOST_ROUNDING = 1e-4
NORM_FLOOR = 0.01
"""A gradient smaller than this share of the whole is compared with this share of the whole."""
TAUGHT = f"the vectors at the teacher's size ({LAYER_KEY})"
"""What the last of the vectors of a step are called where a layer makes them."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One batch."""

    task: str
    """Task of the batch."""
    source: str
    """Where its rows are from."""
    error: float
    """Largest relative error of a parameter's gradient, or of the vectors if that is larger."""
    place: str
    """The parameter it occurs in, or whose vectors."""
    rounding: float
    """Largest relative difference of the reference with itself when the batch is cut."""
    plan: ChunkPlan
    """How the batch was cut."""
    seconds: dict[str, float]
    """Wall time by `data`, `loss`, `gather`, `reduce` and `step`, which holds all but data."""


def selfcheck(recipe: Recipe, data: RunData) -> int:
    """Compare gradients on a few small batches and print one table.

    Args:
        recipe: checked; its batches are made small, everything else is as in training.
        data: opened.

    Returns:
        0, or 1 if a gradient differs by more than the limit of `model.dtype`.
    """
    ranks = join(recipe.engine.timeout_minutes)
    try:
        session = open_session(small(recipe, ranks.world_size), data, ranks)
        with session.built.replica.gathered() as model:
            models = (session.built.engine.module, model)
            is_changed = any([leave_attention_whole(one) for one in models])
        found = [compare(session, batch, waited) for batch, waited in _timed(session)]
        larger = small(recipe, ranks.world_size, rows_per_rank=MEASURED_ROWS)
        share, source = share_outside_products(session, larger)
    finally:
        leave()
    limits = [allowed(one, recipe.model.dtype) for one in found]
    worst, limit = max(
        zip(found, limits, strict=True), key=lambda pair: _badness((pair[0].error / pair[1], ""))
    )
    if ranks.is_first:
        sys.stdout.write(table(found, session.built.gather) + "\n")
        sys.stdout.write(
            f"outside matrix products of the model: {share:.1%} of a whole step of {source}, with "
            f"at most {MEASURED_ROWS} rows per rank\n"
        )
        if is_changed:
            sys.stdout.write(
                "dropout within attention was off: its masks depend on how a batch is cut\n"
            )
        layer = session.built.engine.module.teacher_layer
        if layer is not None:
            sizes = f"{layer.in_features} to {layer.out_features}"
            sys.stdout.write(f"compared too: the layer from {sizes} for {LAYER_KEY}\n")
        verdict = f"largest relative gradient error {worst.error:.1e}, limit {limit:.1e}"
        if limit > LIMITS[recipe.model.dtype]:
            verdict += f" as plain autograd differs from itself by {worst.rounding:.1e}"
        if not worst.error <= limit:
            sys.stderr.write(f"selfcheck failed: {verdict}, in {worst.place}\n")
        else:
            sys.stdout.write(f"selfcheck passed: {verdict}\n")
    return int(not worst.error <= limit)


def allowed(found: Comparison, dtype: str) -> float:
    """The error that a comparison may show, given `model.dtype`."""
    return max(LIMITS[dtype], min(ROUNDING * found.rounding, MOST_ROUNDING))


def small(recipe: Recipe, world_size: int, *, rows_per_rank: int = ROWS_PER_RANK) -> Recipe:
    """The recipe with batches of at most so many rows per rank."""
    rows = rows_per_rank * world_size
    tasks = {
        name: dataclasses.replace(one, global_batch_size=min(one.global_batch_size, rows))  # type: ignore[type-var]
        for name, one in recipe.tasks.items()
    }
    sources = tuple(
        source
        if source.global_batch_size is None
        else dataclasses.replace(source, global_batch_size=min(source.global_batch_size, rows))
        for source in recipe.data.sources
    )
    data = dataclasses.replace(recipe.data, sources=sources)
    return dataclasses.replace(recipe, tasks=tasks, data=data)


def compared_steps(recipe: Recipe, plan: DataPlan) -> tuple[range, ...]:
    """The first steps, and the first step of every kind that is not among them.

    Sources of one task whose settings are equal have one loss, and so are one kind.
    """
    seen = {plan.turn(step)[0] for step in range(NUM_STEPS)}
    turns = [
        {turn_of(recipe.data, source.name) for source in kind.sources}
        for kind in step_kinds(recipe)
    ]
    late = [min(map(plan.first_step_of, names)) for names in turns if names and not seen & names]
    return range(NUM_STEPS), *(range(step, step + 1) for step in late)


def _timed(session: Session) -> Iterator[tuple[Batch, float]]:
    """The compared batches, each with the seconds it was waited for."""
    for steps in compared_steps(session.recipe, session.plan):
        stream = batches(
            *(session.plan, session.data.sources, session.encoder, session.recipe),
            *(steps.start, steps.stop),
        )
        with closing(stream):
            while True:
                started = time.perf_counter()
                batch = next(stream, None)
                if batch is None:
                    break
                yield batch, time.perf_counter() - started


def compare(session: Session, batch: Batch, waited: float) -> Comparison:
    """Gradients of one batch both ways. Collective: yes."""
    ranks, built = session.ranks, session.built
    lengths = lengths_of(batch.texts)
    budget = max(int(lengths.max()), int(lengths.sum()) // (NUM_CHUNKS * ranks.world_size))
    plan = plan_texts(
        batch.texts,
        num_ranks=ranks.world_size,
        max_tokens=budget,
        share=built.shares_in_training,
    )
    seconds = {"data": waited, "loss": 0.0, "reduce": 0.0}
    key = step_key(session.recipe.seed, batch.plan.step)
    settings = settings_of(session.recipe, batch.plan.source)
    prefixes = prefixes_of(session.recipe.model.matryoshka)
    wanted = wanted_of(batch, settings)
    loss = _Watched(step_loss(batch, settings, plan, ranks, prefixes))
    started = time.perf_counter()
    with _measured_collectives(seconds), built.grad_cache.held():
        # what `held` gathers at once is not gathered again below
        seconds["gather"] = time.perf_counter() - started
        built.grad_cache.accumulate(
            make_chunks(
                batch.texts,
                plan.ranks[ranks.rank],
                key=key,
                device=ranks.device,
                num_shared=plan.num_shared,
            ),
            loss,
            step_key=key,
            **wanted,
        )
    seconds["step"] = time.perf_counter() - started
    seconds["loss"] = loss.seconds
    got = dict(_engine_gradients(session))
    vectors = _in_text_order(loss.vectors, plan)
    expected_vectors, expected = reference(session, batch, at=vectors)
    rounding, _ = worst_error(reference(session, batch, at=vectors, max_tokens=budget)[1], expected)
    built.engine.optimizer.zero_grad()
    error, place = max(
        worst_error(got, expected),
        # a projection makes the vectors of the last layer another size than those of the middle
        *(
            worst_error({layer: one}, {layer: want})
            for layer, one, want in zip(_names(wanted), vectors, expected_vectors, strict=True)
        ),
        key=_badness,
    )
    return Comparison(
        task=batch.plan.task,
        source=batch.plan.source,
        error=error,
        place=place,
        rounding=rounding,
        plan=plan,
        seconds=seconds,
    )


def wanted_of(batch: Batch, settings: TaskSettings) -> dict[str, bool]:
    """Which vectors the loss of a batch reads besides those of the last layer."""
    return {
        "middle": reads_middle(TASKS[batch.plan.task], settings),
        "taught": is_projected(settings),
    }


def _names(wanted: Mapping[str, bool]) -> list[str]:
    """What the vectors of a step are called."""
    names = {"middle": "the vectors of the middle layer", "taught": TAUGHT}
    return ["the vectors", *(name for key, name in names.items() if wanted[key])]


def _in_text_order(vectors: Vectors, plan: ChunkPlan) -> Vectors:
    """The vectors of all ranks, row i that of text i [U, D or H]. Collective: yes."""
    place = torch.from_numpy(np.argsort(plan.order)).to(vectors[0].device)
    return tuple(gather_rows(v, counts=plan.counts)[place] for v in vectors)


def _engine_gradients(session: Session) -> Iterator[tuple[str, Tensor]]:
    """Full averaged gradients as DeepSpeed would apply them. Collective: yes."""
    for name, parameter in session.built.engine.module.named_parameters():
        if parameter.requires_grad:
            gradient = deepspeed.utils.safe_get_full_grad(parameter)
            yield name, gradient.detach().float().clone()


def reference(
    session: Session, batch: Batch, *, at: Vectors, max_tokens: int = sys.maxsize
) -> tuple[Vectors, dict[str, Tensor]]:
    """What plain autograd over the whole batch gives, on every rank alone.

    Args:
        session: its replica is the model.
        batch: the global batch.
        at: vectors in text order at which the loss is differentiated: [U, D], then [U, H] of the
            middle layer and [U, S] at a teacher's size where the loss reads them.
        max_tokens: of one forward; whatever it is, all graphs are kept.

    Returns:
        Its own vectors in text order, and the gradient of each trainable parameter.
    Collective: yes under ZeRO-3.
    """
    ranks, recipe = session.ranks, session.recipe
    key = step_key(recipe.seed, batch.plan.step)
    plan = plan_chunks(lengths_of(batch.texts), num_ranks=1, max_tokens=max_tokens)
    chunks = make_chunks(batch.texts, plan.ranks[0], key=key, device=ranks.device)
    rows = torch.from_numpy(plan.rows(0)).to(ranks.device)
    points = tuple(vectors[rows].requires_grad_() for vectors in at)
    prefixes = prefixes_of(recipe.model.matryoshka)
    settings = settings_of(recipe, batch.plan.source)
    loss = whole_loss(batch, settings, plan, ranks.device, prefixes)(points)
    pulled = torch.autograd.grad(loss, points, allow_unused=True, materialize_grads=True)
    with session.built.replica.gathered() as model:
        model.train()
        outputs = []
        for chunk in chunks:
            model.begin(chunk, key)
            outputs.append(model(chunk, **wanted_of(batch, settings)))
        joined = tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
        torch.autograd.backward(joined, pulled)
        gradients = {
            name: torch.zeros_like(p).float() if p.grad is None else p.grad.float()
            for name, p in model.named_parameters()
            if p.requires_grad
        }
    in_order = torch.argsort(rows)
    return tuple(vectors.detach()[in_order] for vectors in joined), gradients


def worst_error(got: dict[str, Tensor], want: dict[str, Tensor]) -> tuple[float, str]:
    """Largest L2 error of a parameter's gradient over its L2 norm, and the parameter."""
    whole = float(torch.stack([gradient.norm() for gradient in want.values()]).norm())
    errors = [
        (float((got[name] - w).norm() / w.norm().clamp_min(NORM_FLOOR * whole)), name)
        for name, w in want.items()
    ]
    return max(errors, key=_badness)


def _badness(found: tuple[float, str]) -> tuple[bool, float]:
    """By what errors are ordered: a NaN is the worst of all."""
    return math.isnan(found[0]), found[0]


class _Watched:
    """A loss that keeps the vectors it was given and the wall time it took."""

    def __init__(self, loss: ValueAndGrad) -> None:
        self.loss = loss
        self.vectors: Vectors = ()
        self.seconds = 0.0

    def __call__(self, vectors: Vectors) -> tuple[Vectors, dict[str, Tensor]]:
        started = time.perf_counter()
        self.vectors = tuple(v.detach().clone() for v in vectors)
        result = self.loss(vectors)
        self.seconds = time.perf_counter() - started
        return result


class _measured_collectives:  # noqa: N801 - reads as a with-statement
    """Adds the time that DeepSpeed's collectives take to `gather` and `reduce`."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False)

    def __exit__(self, *_: object) -> None:
        deepspeed.comm.configure(enabled=False)
        deepspeed.comm.comms_logger.comms_dict.clear()
        for name, timer in deepspeed.comm.comm.timers.get_timers().items():
            kind = "reduce" if "reduce" in name else "gather"
            self.seconds[kind] += timer.elapsed(reset=True) / 1000


def table(found: list[Comparison], gather: str) -> str:
    """What was measured, a row per batch."""
    head = (
        "task",
        "source",
        "chunks",
        "error",
        "padding",
        "tokens/s",
        "gather",
        "reduce",
        "loss",
        "data",
    )
    rows: list[tuple[str, ...]] = [head]
    for one in found:
        step, total = one.seconds["step"], one.seconds["step"] + one.seconds["data"]
        rows.append(
            (
                one.task,
                one.source,
                str(one.plan.num_chunks),
                f"{one.error:.1e}",
                f"{one.plan.padding_fraction:.1%}",
                f"{one.plan.real_tokens / step:,.0f}",
                *(f"{one.seconds[part] / total:.1%}" for part in ("gather", "reduce", "loss")),
                f"{one.seconds['data'] / total:.1%}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]
    return "\n".join([f"gather: {gather}; shares of wall time on the first rank", *lines])
