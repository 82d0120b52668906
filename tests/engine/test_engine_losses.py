"""The loss of a step against numbers computed by hand from its batch."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.objectives.test_objectives_blocks import Naive
from tests.support import tiny
from trainer.data.batch import IrBatch, StepPlan, Texts
from trainer.distributed.group import Ranks
from trainer.engine.chunks import plan_chunks
from trainer.engine.losses.ir import retrieval_loss
from trainer.engine.losses.step_loss import whole_loss
from trainer.engine.losses.sts import similarity_loss
from trainer.engine.materialise import lengths_of
from trainer.objectives.blocks import Guide
from trainer.objectives.distillation import kl_divergence
from trainer.objectives.prefixes import Prefix
from trainer.objectives.regularisers import spread_out
from trainer.recipe import ir, sts
from trainer.recipe.embedding_distillation import EmbeddingDistillationRecipe
from trainer.recipe.ir import DistillationRecipe, IrRecipe, MaskRecipe
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
    got = loss(batch(NO_PAIRS), mask=MaskRecipe(margin=-0.04))
    assert got == pytest.approx(want, rel=1e-6)


def test_only_similarity_with_the_auxiliary_loss_needs_the_middle_layer() -> None:
    with_it = StsRecipe(global_batch_size=8)
    without = StsRecipe(global_batch_size=8, weights=similarity_weights(infonce=0.0))
    assert reads_middle(sts.KIND, with_it)
    assert not reads_middle(sts.KIND, without)
    assert not reads_middle(ir.KIND, IrRecipe(global_batch_size=2))


def random_table(num_texts: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(num_texts, size, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=1).requires_grad_()


def composed_by_hand(one: IrBatch, settings: IrRecipe, table: torch.Tensor) -> torch.Tensor:
    """The loss of `tiny.composed_recipe` written out: every term on every prefix."""
    teacher = torch.from_numpy(one.teacher).double()
    num_slots = one.passages.shape[1]
    known = {(row, *divmod(flat, num_slots)) for row, flat in one.masked.tolist()}
    best = teacher[:, : settings.positives].amax(1)
    guided = [(i, i, s) for i in range(8) for s in range(2, 3) if teacher[i, s] > best[i]]
    assert guided
    vectors = torch.from_numpy(one.texts.teacher_vectors).double()
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    guide = Guide(queries=vectors[one.query], passages=vectors[one.passages])
    total = torch.zeros((), dtype=torch.float64)
    for size, weight in ((24, 1.0), (4, 0.5)):
        # the whole vector is read as it is given
        cut = table if size == 24 else torch.nn.functional.normalize(table[:, :size], dim=1)
        queries, passages = cut[one.query], cut[one.passages]
        options = {
            "num_positives": 2, "temperature": 0.1, "known": frozenset({*known, *guided}),
            "margin": 0.1, "margin_of": "own", "hardness": 5.0, "guide": guide,
        }  # fmt: skip
        infonce = Naive(queries, passages, directions=settings.directions, **options).losses()
        hard = Naive(queries, passages, in_batch=False, **options).losses()
        spread = spread_out(queries) + (spread_out(passages[:, 0]) + spread_out(passages[:, 1])) / 2
        scores, rows = torch.einsum("qd,qsd->qs", queries, passages), ~teacher.isnan().any(1)
        slots = [
            kl_divergence(scores[rows][:, [j, 2]], teacher[rows][:, [j, 2]], temperature=0.1,
                    teacher_temperature=1.0)
            for j in range(2)
        ]  # fmt: skip
        taught = torch.stack(slots).mean()
        terms = infonce.mean() + 0.5 * hard.mean() + 0.5 * spread + 2.0 * taught
        total = total + weight * terms
    return total + 3.0 * embedding_by_hand(table, one.texts)


def embedding_by_hand(table: torch.Tensor, texts: Texts) -> torch.Tensor:
    """Mean over all texts, each once, of how far its whole vector is from the teacher's."""
    vectors = torch.from_numpy(texts.teacher_vectors).double()
    gaps = [
        1 - vector @ teacher / (vector.norm() * teacher.norm())
        for vector, teacher in zip(table, vectors, strict=True)
    ]
    assert len(gaps) == len(texts.token_ids)
    return torch.stack(gaps).mean()


def test_composed_loss_on_any_number_of_ranks_is_the_one_written_out() -> None:
    one, settings = tiny.ir_batch(0), tiny.composed_recipe(Path("unused")).tasks["ir"]
    assert isinstance(settings, IrRecipe)
    table = random_table(26, 24)
    want = composed_by_hand(one, settings, table)
    expected = [want, *torch.autograd.grad(want, table)]
    prefixes = (Prefix(24), Prefix(4, 0.5))
    for world_size in (1, 2, 3):
        shares = [
            retrieval_loss(one, settings, Ranks(rank=rank, world_size=world_size, device=CPU))
            for rank in range(world_size)
        ]
        terms = [share((table,), prefixes) for share in shares]
        total = torch.stack([found.pop("loss") for found in terms]).sum()
        assert list(terms[0]) == [
            "infonce", "hard_negatives", "spread_out", "distillation", "embedding_distillation"
        ]  # fmt: skip
        reported = torch.stack([found["embedding_distillation"] for found in terms]).sum()
        torch.testing.assert_close(reported, embedding_by_hand(table, one.texts))
        for left, right in zip([total, *torch.autograd.grad(total, table)], expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("absent", [(), (0, 3, 6), tuple(range(8))])
def test_rows_without_hard_negatives_leave_their_terms(absent: tuple[int, ...]) -> None:
    one, table = tiny.ir_batch(0), random_table(26, 24)
    passages, teacher = one.passages.copy(), one.teacher.copy()
    passages[list(absent), 2], teacher[list(absent), 2] = -1, np.nan
    one = replace(one, passages=passages, teacher=teacher, masked=NO_PAIRS)
    settings = IrRecipe(
        global_batch_size=8, positives=2, temperature=0.1,
        weights={"infonce": 0.0, "hard_negatives": 0.5},
        distillation=DistillationRecipe(loss="kl", weight=2.0, temperature=0.1),
    )  # fmt: skip
    hard, taught = [], []
    for i in set(range(8)) - set(absent):
        for j in range(2):
            scores = torch.stack([table[one.query[i]] @ table[passages[i, c]] for c in (j, 2)])
            hard.append(-(scores / 0.1).log_softmax(0)[0])
            wanted = torch.from_numpy(teacher[i, [j, 2]]).double().softmax(0)
            if not np.isnan(teacher[i]).any():
                taught.append((wanted * (wanted.log() - (scores / 0.1).log_softmax(0))).sum())
    zero = 0.0 * table.sum()
    means = {"hard_negatives": sum(hard, zero) / max(1, len(hard)),
             "distillation": sum(taught, zero) / max(1, len(taught))}  # fmt: skip
    want = 0.5 * means["hard_negatives"] + 2.0 * means["distillation"]
    for world_size in (1, 2, 3):
        terms = [
            retrieval_loss(one, settings, Ranks(rank=rank, world_size=world_size, device=CPU))(
                (table,), (Prefix(None),)
            )
            for rank in range(world_size)
        ]
        for name, mean in means.items():
            torch.testing.assert_close(torch.stack([found[name] for found in terms]).sum(), mean)
        total = torch.stack([found["loss"] for found in terms]).sum()
        got, right = (torch.autograd.grad(x, table, retain_graph=True)[0] for x in (total, want))
        torch.testing.assert_close(total, want, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-12)


def test_rows_without_a_teacher_leave_the_other_terms_alone() -> None:
    settings = tiny.composed_recipe(Path("unused")).tasks["ir"]
    one = replace(tiny.ir_batch(0), teacher=None)
    table = random_table(26, 24)
    ranks = Ranks(rank=0, world_size=1, device=CPU)
    assert retrieval_loss(one, settings, ranks)((table,), (Prefix(None),))["distillation"] == 0


@pytest.mark.parametrize("cross_device", [True, False])
def test_similarity_learns_vectors_whatever_its_other_terms_do(cross_device: bool) -> None:
    one, table = tiny.sts_batch(0), random_table(16, 24)
    bare = StsRecipe(
        global_batch_size=8, weights=similarity_weights(infonce=0.0), cross_device=cross_device
    )
    settings = replace(bare, embedding_distillation=EmbeddingDistillationRecipe(weight=3.0))
    prefixes = (Prefix(24), Prefix(4, 0.5))
    for world_size in (1, 2, 3):
        plain, taught = (
            [
                similarity_loss(one, each, Ranks(rank=rank, world_size=world_size, device=CPU))(
                    (table,), prefixes
                )
                for rank in range(world_size)
            ]
            for each in (bare, settings)
        )
        assert list(taught[0]) == [*plain[0], "embedding_distillation"]
        want = embedding_by_hand(table, one.texts)
        shares = torch.stack([found["embedding_distillation"] for found in taught])
        torch.testing.assert_close(shares.sum(), want)
        totals = [torch.stack([found["loss"] for found in each]).sum() for each in (plain, taught)]
        expected = totals[0] + 3.0 * want
        torch.testing.assert_close(totals[1], expected)
        got, right = (torch.autograd.grad(x, table)[0] for x in (totals[1], expected))
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-9)


def test_the_middle_layer_is_whole_beside_the_whole_vector() -> None:
    one, last = tiny.sts_batch(0), random_table(16, 8)
    middle = random_table(16, 24).detach().requires_grad_()
    settings = StsRecipe(global_batch_size=8, weights=similarity_weights())
    loss = similarity_loss(one, settings, Ranks(rank=0, world_size=1, device=CPU))
    plain = loss((last, middle), (Prefix(None),))
    whole = loss((last, middle), (Prefix(8),))
    for name, value in plain.items():
        assert torch.equal(whole[name], value)
    (got,) = torch.autograd.grad(whole["infonce"], middle, retain_graph=True)
    assert bool((got[:, 8:] != 0).any())
    # a shorter part has the first numbers of each layer, normalised
    shorter = loss((last, middle), (Prefix(8), Prefix(4, 0.5)))
    cut = [torch.nn.functional.normalize(table[:, :4], dim=1) for table in (last, middle)]
    part = loss(tuple(cut), (Prefix(None),))
    torch.testing.assert_close(shorter["infonce"], plain["infonce"] + 0.5 * part["infonce"])


def test_vectors_may_be_all_that_is_learned() -> None:
    settings = IrRecipe(
        global_batch_size=8,
        positives=2,
        weights={"infonce": 0.0, "hard_negatives": 0.0},
        embedding_distillation=EmbeddingDistillationRecipe(weight=2.0),
    )
    one, table = tiny.ir_batch(0), random_table(26, 24)
    found = retrieval_loss(one, settings, Ranks(rank=0, world_size=1, device=CPU))(
        (table,), (Prefix(24),)
    )
    assert list(found) == ["loss", "embedding_distillation"]
    torch.testing.assert_close(found["loss"], 2.0 * embedding_by_hand(table, one.texts))
