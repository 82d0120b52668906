"""The loss of a step against numbers computed by hand from its batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import tiny
from trainer.data.batch import IrBatch, StepPlan
from trainer.engine.chunks import plan_chunks
from trainer.engine.losses.step_loss import whole_loss
from trainer.engine.materialise import lengths_of
from trainer.recipe import ir, sts
from trainer.recipe.ir import IrRecipe, MarginMask
from trainer.recipe.kind import reads_middle
from trainer.recipe.sts import StsRecipe, similarity_weights

TAU = 0.5
CPU = torch.device("cpu")
NO_PAIRS = np.empty((0, 2), np.int64)
# unit vectors in the plane, by angle in degrees; cosines between them are plain numbers
ANGLES = [0.0, 90.0, 10.0, 60.0, 20.0]


def batch(masked: np.ndarray, *, absent: bool = False) -> IrBatch:
    """Two queries at 0 and 90 degrees; positives at 10 and 60; negatives at 20 and, again, 10.

    The second query's negative is the first query's positive.
    """
    return IrBatch(
        plan=StepPlan(step=0, task="ir", source="ir", epoch=0, rows=np.arange(2)),
        texts=tiny.make_texts([3, 3, 3, 3, 3], seed=0),
        query=np.array([0, 1]),
        passages=np.array([[2, -1 if absent else 4], [3, 2]]),
        masked=masked,
    )


def loss(one: IrBatch, **changes: object) -> float:
    recipe = IrRecipe(global_batch_size=2, positives=1, negatives=1, temperature=TAU, **changes)
    plan = plan_chunks(lengths_of(one.texts), num_ranks=1, max_tokens=999)
    radians = torch.tensor(ANGLES).deg2rad()
    vectors = torch.stack([radians.cos(), radians.sin()], dim=1)[plan.rows(0)]
    return float(whole_loss(one, recipe, plan, CPU)((vectors,)))


def by_hand(denominators: list[list[float]]) -> float:
    """Mean cross-entropy; each list holds a query's angles to its candidates, the target first."""
    terms = []
    for angles in denominators:
        logits = [math.cos(math.radians(angle)) / TAU for angle in angles]
        terms.append(math.log(sum(map(math.exp, logits))) - logits[0])
    return sum(terms) / len(terms)


def test_without_a_mask_a_known_positive_counts_against_its_query() -> None:
    # candidates of both queries: 10, 60 (positives), 20, 10 (negatives)
    want = by_hand([[10, 60, 20, 10], [30, 80, 70, 80]])
    assert loss(batch(NO_PAIRS)) == pytest.approx(want, rel=1e-6)


def test_masked_pair_leaves_the_denominator() -> None:
    # the second record's negative (flat column 3) is a known positive of the first query
    want = by_hand([[10, 60, 20], [30, 80, 70, 80]])
    assert loss(batch(np.array([[0, 3]]))) == pytest.approx(want, rel=1e-6)


def test_absent_negative_is_no_candidate_and_masks_still_hit_their_column() -> None:
    want = by_hand([[10, 60], [30, 80, 80]])
    assert loss(batch(np.array([[0, 3]]), absent=True)) == pytest.approx(want, rel=1e-6)


def test_column_without_any_passage_is_dropped() -> None:
    one = batch(NO_PAIRS)
    alone = replace(one, passages=np.array([[2, -1], [3, -1]]))
    assert loss(alone) == pytest.approx(by_hand([[10, 60], [30, 80]]), rel=1e-6)


def test_margin_removes_what_outscores_the_positive() -> None:
    # the second query's positive is at 30 degrees, cosine 0.866; nothing is above it.
    # the first query's is at 10 degrees, cosine 0.985; with -0.04 the negative at 20 (0.940) stays,
    # the copy of the positive goes
    want = by_hand([[10, 60, 20], [30, 80, 70, 80]])
    got = loss(batch(NO_PAIRS), mask=MarginMask(margin=-0.04))
    assert got == pytest.approx(want, rel=1e-6)


def test_only_similarity_with_the_auxiliary_loss_needs_the_middle_layer() -> None:
    with_it = StsRecipe(global_batch_size=8)
    without = StsRecipe(global_batch_size=8, weights=similarity_weights(infonce=0.0))
    assert reads_middle(sts.KIND, with_it)
    assert not reads_middle(sts.KIND, without)
    assert not reads_middle(ir.KIND, IrRecipe(global_batch_size=2))
