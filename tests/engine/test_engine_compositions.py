"""Any composition of a recipe's retrieval loss equals a plain float64 loop, on any ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from tests.objectives.test_objectives_blocks import DIRECTIONS, Naive
from tests.objectives.test_objectives_loops import distance_loop, spread_loop
from trainer.data.batch import IrBatch, StepPlan, Texts
from trainer.data.known_positives import known_positives
from trainer.distributed.group import Ranks
from trainer.engine.losses.ir import retrieval_loss
from trainer.errors import RecipeError
from trainer.objectives.blocks import Guide
from trainer.objectives.distillation import DISTANCES
from trainer.objectives.prefixes import Prefix
from trainer.recipe.embedding_distillation import EmbeddingDistillationRecipe
from trainer.recipe.ir import KIND, DistillationRecipe, IrRecipe, MaskRecipe

SIZE = 6
PREFIXES = [(Prefix(None),), (Prefix(6), Prefix(3, 0.5)), (Prefix(4, 2.0), Prefix(2))]


@st.composite
def recipes(draw: st.DrawFn) -> IrRecipe:
    """Every key of a retrieval task; those that a recipe may not have beside others are dropped."""
    one_of = lambda *values: draw(st.sampled_from(values))  # noqa: E731 - shorter than a function
    weights = {"infonce": one_of(0.0, 1.0, 1.0), "hard_negatives": one_of(0.0, 0.5)}
    in_batch = one_of(True, True, "positives", "positives_only", False)
    margin = MaskRecipe(
        margin=one_of(-0.1, 0.05, 0.2), of=one_of("own", "best"), guide=one_of(True, False)
    )
    hardness = one_of(0.0, 3.0)
    values: dict[str, Any] = {
        "in_batch": in_batch,
        "directions": DIRECTIONS[:1]
        if in_batch is False
        else ("query_to_doc", *sorted(draw(st.sets(st.sampled_from(DIRECTIONS[1:]))))),
        "mask": one_of("known", "none", margin, margin, MaskRecipe(guide=True)),
        "hardness": hardness,
        "hardness_of": one_of("all", "in_batch", "hard") if hardness else "all",
    }
    if not weights["infonce"]:
        for name in ("in_batch", "directions"):
            del values[name]
        if not weights["hard_negatives"]:
            values = {}
    loss, temperature = one_of(*DISTANCES), one_of(None, 0.3)
    taught = DistillationRecipe(
        loss=loss, weight=1.3, temperature=temperature, teacher_temperature=one_of(1.0, 0.5)
    )
    found = IrRecipe(
        global_batch_size=draw(st.integers(2, 5)),
        positives=draw(st.integers(1, 2)),
        negatives=draw(st.integers(0, 3)),
        temperature=0.2,
        spread_out=one_of(0.0, 0.7),
        distillation=one_of(None, taught),
        embedding_distillation=one_of(None, EmbeddingDistillationRecipe(weight=2.0)),
        weights=weights,
        **values,
    )
    try:
        KIND.check(found, lambda *words: RecipeError(str(words)))
    except RecipeError:
        assume(False)
    assume(any(KIND.weights_of(found).values()))
    return found


def batch_of(recipe: IrRecipe, seed: int) -> IrBatch:
    """Queries whose passages are shared, absent, scored by a teacher, or not, at random."""
    rng = np.random.default_rng(seed)
    num_queries, num_positives = recipe.global_batch_size, recipe.positives
    num_slots, num_texts = num_positives + recipe.negatives, num_queries + int(rng.integers(4, 9))
    query = rng.permutation(num_queries)
    passages = rng.integers(num_queries, num_texts, size=(num_queries, num_slots))
    passages[rng.random(num_queries) < 0.3, num_positives:] = -1
    masked = np.empty((0, 2), np.int64)
    if recipe.mask != "none":
        masked = known_positives(
            query,
            passages[:, :num_positives].reshape(-1),
            np.full(num_queries, num_positives),
            passages,
            num_positives=num_positives,
        )
    teacher = rng.normal(size=passages.shape).astype(np.float32)
    teacher[passages < 0] = np.nan
    teacher[rng.random(num_queries) < 0.3] = np.nan
    vectors = rng.normal(size=(num_texts, SIZE)).astype(np.float16)
    has_vectors = recipe.embedding_distillation is not None or rng.random() < 0.5
    return IrBatch(
        plan=StepPlan(step=0, task="ir", source="ir", epoch=0, rows=np.arange(num_queries)),
        texts=Texts(
            token_ids=tuple(np.array([1, 2], np.int32) for _ in range(num_texts)),
            num_prompt_tokens=np.zeros(num_texts, np.int64),
            teacher_vectors=vectors if has_vectors else None,
        ),
        query=query,
        passages=passages,
        masked=masked,
        teacher=teacher if rng.random() < 0.7 else None,
    )


@dataclass(frozen=True)
class Loop:
    """The loss of a recipe as docs/method.md says it, one number at a time."""

    recipe: IrRecipe
    batch: IrBatch

    def value(self, table: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        """The weighted sum of all terms over all prefixes."""
        recipe, texts, total = self.recipe, self.batch.texts, 0.0 * table.sum()
        weights = KIND.weights_of(recipe)
        for prefix in prefixes:
            whole = prefix.size in (None, SIZE)
            cut = table if whole else normalize(table[:, : prefix.size], dim=1)
            terms = self.terms(cut[self.batch.query], cut[np.maximum(self.batch.passages, 0)])
            summed = sum(weights[name] * value for name, value in terms.items())
            total = total + prefix.weight * summed
        if recipe.embedding_distillation is not None:
            wanted = torch.from_numpy(texts.teacher_vectors).double()
            cosines = [v @ t / (v.norm() * t.norm()) for v, t in zip(table, wanted, strict=True)]
            total = total + weights["embedding_distillation"] * (1 - torch.stack(cosines)).mean()
        return total

    def terms(self, queries: Tensor, passages: Tensor) -> Mapping[str, Tensor]:
        """Those on one prefix, by name."""
        recipe, options = self.recipe, self.options()
        num_positives = recipe.positives
        naive = Naive(
            queries, passages, directions=recipe.directions, in_batch=recipe.in_batch, **options
        )
        hard = Naive(queries, passages, in_batch=False, **options).losses()
        with_some = (self.batch.passages[:, num_positives:] >= 0).any(1)
        positives = [spread_loop(list(passages[:, slot])) for slot in range(num_positives)]
        return {
            "infonce": naive.losses().mean(),
            "hard_negatives": hard[with_some].mean() if with_some.any() else 0.0 * hard.sum(),
            "spread_out": spread_loop(list(queries)) + sum(positives) / num_positives,
            "distillation": self.distance(queries, passages),
        }

    def options(self) -> dict[str, Any]:
        """What both InfoNCE read."""
        recipe, batch, guide = self.recipe, self.batch, None
        limits = recipe.mask if isinstance(recipe.mask, MaskRecipe) else MaskRecipe()
        num_positives, num_slots = recipe.positives, batch.passages.shape[1]
        known = {(row, *divmod(flat, num_slots)) for row, flat in batch.masked.tolist()}
        if limits.guide and batch.teacher is not None:
            for i, scores in enumerate(batch.teacher):
                best = max(scores[:num_positives])
                known |= {(i, i, c) for c in range(num_positives, num_slots) if scores[c] > best}
        if limits.guide and batch.texts.teacher_vectors is not None:
            vectors = normalize(torch.from_numpy(batch.texts.teacher_vectors).double(), dim=1)
            guide = Guide(
                queries=vectors[batch.query], passages=vectors[np.maximum(batch.passages, 0)]
            )
        return {
            "num_positives": num_positives, "temperature": recipe.temperature,
            "known": frozenset(known), "absent": torch.from_numpy(batch.passages < 0),
            "margin": limits.margin, "margin_of": limits.of, "hardness": recipe.hardness,
            "hardness_of": recipe.hardness_of, "guide": guide,
        }  # fmt: skip

    def distance(self, queries: Tensor, passages: Tensor) -> Tensor:
        """Mean over slots of the queries that have all scores, and hard negatives or none has."""
        recipe, teacher = self.recipe, self.batch.teacher
        taught, zero = recipe.distillation, 0.0 * queries.sum()
        if taught is None or teacher is None:
            return zero
        here = [c for c in range(teacher.shape[1]) if (self.batch.passages[:, c] >= 0).any()]
        found = []
        for i in range(len(queries)):
            if np.isnan(teacher[i, here]).any():
                continue
            for slot in range(recipe.positives):
                columns = [slot, *(c for c in here if c >= recipe.positives)]
                found.append(
                    distance_loop(
                        taught.loss,
                        [queries[i] @ passages[i, c] for c in columns],
                        teacher[i, columns].tolist(),
                        taught.divisor,
                        taught.teacher_temperature,
                    )
                )
        return sum(found, zero) / max(1, len(found))


@given(recipe=recipes(), seed=st.integers(0, 2**16), prefixes=st.sampled_from(PREFIXES))
@settings(max_examples=30)
def test_any_composition_equals_the_loop(
    recipe: IrRecipe, seed: int, prefixes: Sequence[Prefix]
) -> None:
    batch = batch_of(recipe, seed)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(
        len(batch.texts.token_ids), SIZE, generator=generator, dtype=torch.float64
    )
    table = normalize(numbers, dim=1).requires_grad_()
    want = Loop(recipe, batch).value(table, prefixes)
    (slope,) = torch.autograd.grad(want, table)
    for world_size in (1, 2, 3):
        shares = [
            retrieval_loss(
                batch, recipe, Ranks(rank=rank, world_size=world_size, device=torch.device("cpu"))
            )
            for rank in range(world_size)
        ]
        total = torch.stack([share((table,), prefixes)["loss"] for share in shares]).sum()
        torch.testing.assert_close(total, want, rtol=1e-6, atol=1e-7)
        (got,) = torch.autograd.grad(total, table)
        torch.testing.assert_close(got, slope, rtol=1e-6, atol=1e-7)
