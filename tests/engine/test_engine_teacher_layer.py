"""The layer to a teacher's size: trained as a loop in float64 says, whatever runs the steps.

Three SGD steps: retrieval that learns a teacher's vectors, pairs that do not and read the middle
layer, and pairs that learn them. The reference is one process and autograd: the term is a loop over
texts in float64, everything else is the loss of the same recipe without it. Tolerance as in
`test_engine_equality`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.engine.test_engine_equality import largest_difference
from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.data.batch import Batch
from trainer.distributed.group import Ranks, join
from trainer.engine.build import build, load_embedder
from trainer.engine.losses.table import task_loss
from trainer.engine.step import Stepper
from trainer.objectives.prefixes import Prefix
from trainer.recipe.embedding_distillation import EmbeddingDistillationRecipe
from trainer.recipe.ir import IrRecipe
from trainer.recipe.labels import LabelsRecipe
from trainer.recipe.per_source import settings_of
from trainer.recipe.resolve import resolve, uses_teacher_layer
from trainer.recipe.schema import (
    DataRecipe,
    EngineRecipe,
    LoraRecipe,
    MatryoshkaRecipe,
    ModelRecipe,
    ProjectionRecipe,
    Recipe,
    SourceRecipe,
)
from trainer.recipe.sts import StsRecipe

TAUGHT = EmbeddingDistillationRecipe(weight=3.0, projection=True)
LORA = LoraRecipe(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Variant:
    """One way to run the same three steps."""

    deepspeed: str = "zero3_fp32.json"
    gather: str = "step"
    max_tokens: int = 24


VARIANTS = [
    Variant("zero1_fp32.json"),
    Variant("zero2_fp32.json"),
    Variant(max_tokens=16),
    Variant(gather="layer"),
    Variant(gather="chunk"),
    Variant("zero1_fp32.json", gather="chunk"),
]


def recipe_of(model: Path, variant: Variant, **settings: Any) -> Recipe:
    """A recipe one of whose sources of pairs has no teacher."""
    teachers = {"ir": "unused", "sts": None, "taught": "unused"}
    sources = tuple(
        SourceRecipe(
            name=name,
            task="ir" if name == "ir" else "sts",
            path="unused",
            teacher_embeddings=folder,
        )
        for name, folder in teachers.items()
    )
    return tiny.make_recipe(
        model,
        model=ModelRecipe(path=str(model), **settings),
        data=DataRecipe(sources=sources, pattern={"ir": 1, "sts": 1}),
        tasks={
            "ir": IrRecipe(
                global_batch_size=8,
                positives=2,
                negatives=1,
                temperature=0.1,
                embedding_distillation=TAUGHT,
            ),
            "sts": StsRecipe(global_batch_size=8, embedding_distillation=TAUGHT),
        },
        engine=EngineRecipe(deepspeed=variant.deepspeed, max_tokens_per_chunk=variant.max_tokens),
    )


def three_batches() -> list[Batch]:
    """With a teacher, without, with one again."""
    last = tiny.sts_batch(2)
    return [
        tiny.ir_batch(0, long_first=True),
        tiny.sts_batch(1),
        replace(last, plan=replace(last.plan, source="taught")),
    ]


def train(recipe: Recipe, gather: Any, ranks: Ranks) -> tuple[dict[str, Tensor], list[float]]:
    """Three steps through DeepSpeed; full final parameters and the losses."""
    import deepspeed

    built = build(
        recipe,
        model_path=recipe.model.path,
        config=dict(resolve(recipe, world_size=ranks.world_size).deepspeed),
        gather=gather,
        ranks=ranks,
        teacher_size=tiny.TEACHER_SIZE,
    )
    stepper = Stepper(recipe, built, ranks, num_steps=3, warmup_steps=0)
    losses = [stepper.run(batch).loss for batch in three_batches()]
    final = {}
    for name, parameter in built.engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            final[name] = parameter.detach().clone()
    built.engine.destroy()
    return final, losses


def run_all(
    rank: int, world_size: int, model: Path, variants: list[Variant], settings: dict[str, Any]
) -> list[Any]:
    """Body of a rank: each variant in turn."""
    ranks = join(timeout_minutes=5)
    return [train(recipe_of(model, v, **settings), v.gather, ranks) for v in variants]


def looped(vectors: Tensor, weight: Tensor, teacher: np.ndarray) -> Tensor:
    """Mean of 1 - cosine of W v and t, text by text in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for v, t in zip(vectors.double(), torch.from_numpy(teacher).double(), strict=True):
        brought = torch.stack([(row * v).sum() for row in weight.double()])
        total = total + 1 - (brought * t).sum() / (brought.norm() * t.norm())
    return total / len(vectors)


def reference(rank: int, world_size: int, model: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One process, no DeepSpeed, no cache: one forward of everything, autograd, SGD."""
    from trainer.engine.chunks import plan_chunks
    from trainer.engine.losses.step_loss import whole_loss
    from trainer.engine.losses.task_loss import prefixes_of
    from trainer.engine.materialise import lengths_of, make_chunks, step_key

    ranks = Ranks(rank=0, world_size=1, device=CPU)
    recipe = recipe_of(model, VARIANTS[0], **settings)
    embedder = load_embedder(
        recipe,
        model_path=str(model),
        config={"zero_optimization": {"stage": 0}},
        ranks=ranks,
        teacher_size=tiny.TEACHER_SIZE,
    )
    assert embedder.teacher_layer is not None
    start = {n: p.detach().clone() for n, p in embedder.named_parameters()}
    optimizer = torch.optim.SGD(
        [p for p in embedder.parameters() if p.requires_grad], lr=recipe.train.learning_rate
    )
    losses = []
    for step, batch in enumerate(three_batches()):
        plan = plan_chunks(lengths_of(batch.texts), num_ranks=1, max_tokens=10**6)
        key = step_key(recipe.seed, step)
        (chunk,) = make_chunks(batch.texts, plan.ranks[0], key=key, device=CPU)
        embedder.begin(chunk, key)
        taught = settings_of(recipe, batch.plan.source)
        plain: Any = replace(taught, embedding_distillation=None)  # type: ignore[type-var]
        outputs = embedder.eval()(chunk, middle=batch.plan.task == "sts")
        loss = whole_loss(batch, plain, plan, CPU, prefixes_of(recipe.model.matryoshka))(outputs)
        if plain != taught:
            assert batch.texts.teacher_vectors is not None
            teacher = batch.texts.teacher_vectors[plan.order]
            term = looped(outputs[0], embedder.teacher_layer.weight, teacher)
            loss = loss + TAUGHT.weight * term
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    final = {n: p.detach().clone() for n, p in embedder.named_parameters()}
    return {"start": start, "final": final, "losses": losses}


SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapters, projected, leading parts": {
        "lora": LORA,
        "pooling": "mean",
        "projection": ProjectionRecipe(size=16),
        "matryoshka": MatryoshkaRecipe(dims=(16, 8)),
    },
}


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_those_of_a_loop_whatever_runs_them(tmp_path: Path, name: str) -> None:
    model = tiny.save_model(tiny.qwen3_config(num_hidden_layers=3), tmp_path)
    settings = SETTINGS[name]
    (want,) = run_ranks(reference, 1, model, settings)
    moved = (want["final"]["teacher_layer.weight"] - want["start"]["teacher_layer.weight"]).abs()
    assert moved.max() > 0
    for world_size in (1, 2):
        results = run_ranks(run_all, world_size, model, VARIANTS, settings, timeout_sec=600)
        for result in results:
            for variant, (final, losses) in zip(VARIANTS, result, strict=True):
                assert losses == pytest.approx(want["losses"], rel=1e-5), variant
                worst, where = largest_difference(final, want["final"], want["start"])
                assert worst < 1e-5, f"{variant}: {where} differs by {worst:.2e} of its movement"


def shares_of(settings: Any, batch: Batch, tables: Any, prefixes: Any) -> Iterator[Tensor]:
    """The loss over 1, 2 and 3 ranks, the shares of its ranks added up."""
    for world_size in (1, 2, 3):
        yield sum(
            task_loss(batch, settings, Ranks(rank=rank, world_size=world_size, device=CPU))(
                tables, prefixes
            )["loss"]
            for rank in range(world_size)
        )


@pytest.mark.parametrize("prefixes", [(Prefix(None),), (Prefix(8, 0.5), Prefix(4, 0.25))])
@pytest.mark.parametrize("name", ["ir", "sts", "supcon", "in_batch", "own_negatives"])
def test_each_task_reads_the_vectors_at_the_teachers_size_for_this_term_alone(
    name: str, prefixes: Any
) -> None:
    settings: Any
    if name == "ir":
        batch, settings = tiny.ir_batch(0), IrRecipe(global_batch_size=8, positives=2, negatives=1)
    elif name == "sts":
        batch, settings = tiny.sts_batch(1), StsRecipe(global_batch_size=8)
    else:
        batch = tiny.labels_batch(2)
        settings = LabelsRecipe(
            global_batch_size=8,
            positives=2,
            negatives=2,
            objective=name,  # type: ignore[arg-type]
        )
    generator = torch.Generator().manual_seed(3)
    num_texts = len(batch.texts.token_ids)
    last, middle = (
        normalize(torch.randn(num_texts, size, generator=generator, dtype=torch.float64), dim=1)
        for size in (8, 6)
    )
    weight = torch.randn(tiny.TEACHER_SIZE, 8, generator=generator, dtype=torch.float64)
    last.requires_grad_()
    weight.requires_grad_()
    own = (last, middle) if name == "sts" else (last,)
    assert batch.texts.teacher_vectors is not None
    term = 3.0 * looped(last, weight, batch.texts.teacher_vectors)
    # without the term the loss is another test's matter
    want = next(shares_of(settings, batch, own, prefixes)) + term
    wanted = torch.autograd.grad(want, (last, weight))
    taught = replace(settings, embedding_distillation=TAUGHT)
    for got in shares_of(taught, batch, (*own, normalize(last @ weight.T, dim=1)), prefixes):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, check_dtype=False)
        found = torch.autograd.grad(got, (last, weight), retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_layer_is_trained_where_a_step_asks_for_it(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, VARIANTS[0])
    assert uses_teacher_layer(recipe)
    bare = tuple(replace(one, teacher_embeddings=None) for one in recipe.data.sources)
    assert not uses_teacher_layer(replace(recipe, data=replace(recipe.data, sources=bare)))
    same_size = replace(TAUGHT, projection=False)
    tasks = {
        task: replace(one, embedding_distillation=same_size)  # type: ignore[type-var]
        for task, one in recipe.tasks.items()
    }
    assert not uses_teacher_layer(replace(recipe, tasks=tasks))
