"""InfoNCE in tiles equals the written formula: values, gradients, masks, slices and extremes."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.errors import ObjectiveError
from trainer.objectives import tiles
from trainer.objectives.blocks import Job
from trainer.objectives.contrastive import info_nce, paired_info_nce

TAU = 0.05


def embeddings(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return normalize(values, dim=-1).to(dtype).requires_grad_()


def candidates(num_groups: int, num_slots: int, num_positives: int, slot: int) -> list[int]:
    """Flat columns of the slot-j positives of all queries and of all hard negatives."""
    columns = [group * num_slots + slot for group in range(num_groups)]
    for group in range(num_groups):
        columns += [group * num_slots + s for s in range(num_positives, num_slots)]
    return columns


def naive(
    queries: Tensor,
    passages: Tensor,
    num_positives: int,
    *,
    temperature: float = TAU,
    mask: Tensor | None = None,
    first_row: int = 0,
) -> Tensor:
    """The formula as it is written, one query and one slot at a time, in float64."""
    num_groups, num_slots, _ = passages.shape
    flat = passages.double().reshape(num_groups * num_slots, -1)
    terms = []
    for i, query in enumerate(queries.double()):
        for slot in range(num_positives):
            target = (first_row + i) * num_slots + slot
            denominator = torch.zeros((), dtype=torch.float64)
            for column in candidates(num_groups, num_slots, num_positives, slot):
                if mask is not None and bool(mask[i, column]) and column != target:
                    continue
                denominator = denominator + (query @ flat[column] / temperature).exp()
            terms.append(-((query @ flat[target] / temperature).exp() / denominator).log())
    return torch.stack(terms).mean()


def grads(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, retain_graph=True)


def random_mask(num_rows: int, num_columns: int, *, share: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(num_rows, num_columns, generator=generator) < share


SHAPES = [(5, 1, 0), (5, 1, 2), (4, 3, 0), (4, 2, 3), (1, 1, 0), (1, 2, 1)]


@pytest.mark.parametrize(("num_queries", "num_positives", "num_negatives"), SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_formula(
    num_queries: int, num_positives: int, num_negatives: int, masked: bool
) -> None:
    num_slots = num_positives + num_negatives
    queries, passages = embeddings(num_queries, 6), embeddings(num_queries, num_slots, 6, seed=1)
    mask = random_mask(num_queries, num_queries * num_slots) if masked else None
    ours = info_nce(queries, passages, num_positives=num_positives, temperature=TAU, mask=mask)
    theirs = naive(queries, passages, num_positives, mask=mask)
    # float64 on both sides: only the order of the sums differs
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for left, right in zip(
        grads(ours, queries, passages), grads(theirs, queries, passages), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("num_positives", "num_negatives"), [(1, 2), (3, 0), (2, 2)])
def test_gradcheck(num_positives: int, num_negatives: int) -> None:
    queries = embeddings(3, 4)
    passages = embeddings(5, num_positives + num_negatives, 4, seed=1)
    pairs = torch.tensor([[0, 3], [2, 0], [1, 5]])

    def loss(q: Tensor, p: Tensor) -> Tensor:
        return info_nce(q, p, num_positives=num_positives, temperature=0.3, mask=pairs, first_row=1)

    assert torch.autograd.gradcheck(loss, (queries, passages))


def test_gradcheck_of_unequal_weights_per_slot() -> None:
    # Slots weighted differently, one negatively, as only paired terms and callers of slots do.
    queries, passages = embeddings(3, 4), embeddings(3, 4, 4, seed=1)
    job = Job(num_positives=2, temperature=0.3)
    weights = torch.tensor([[1.0, -2.0], [0.0, 0.5], [3.0, 1.0]], dtype=torch.float64)

    def loss(q: Tensor, p: Tensor) -> Tensor:
        return (tiles.TiledInfoNCE.apply(q, None, p, job) * weights).sum()

    assert torch.autograd.gradcheck(loss, (queries, passages))


@pytest.mark.parametrize("tile_bytes", [1, 200, 400])
def test_tiles_do_not_change_the_loss(tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, passages = embeddings(7, 5), embeddings(9, 3, 5, seed=1)
    pairs = random_mask(7, 27).nonzero()

    def run() -> tuple[Tensor, ...]:
        loss = info_nce(
            queries, passages, num_positives=2, temperature=TAU, mask=pairs, first_row=2
        )
        return loss, *grads(loss, queries, passages)

    whole = run()
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    rows, groups = tiles.cut_tiles(7, 9, 5, torch.float64)
    assert len(rows) * len(groups) > 1
    for left, right in zip(run(), whole, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-12)


def test_dense_and_sparse_masks_agree() -> None:
    queries, passages = embeddings(4, 6), embeddings(6, 3, 6, seed=1)
    dense = random_mask(4, 18)
    losses = [
        info_nce(queries, passages, num_positives=2, temperature=TAU, mask=mask, first_row=1)
        for mask in (dense, dense.view(4, 6, 3), dense.nonzero(), dense.nonzero().repeat(2, 1))
    ]
    expected = naive(queries, passages, 2, mask=dense, first_row=1)
    for loss in losses:
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            grads(loss, passages)[0], grads(losses[0], passages)[0], rtol=1e-12, atol=1e-12
        )


def test_absent_passages_are_left_out_for_every_query() -> None:
    queries, passages = embeddings(3, 6), embeddings(5, 3, 6, seed=1)
    absent = torch.zeros(5, 3, dtype=torch.bool)
    absent[[0, 2, 4], [2, 1, 2]] = True
    pairs = torch.tensor([[0, 2], [1, 4], [2, 14]])
    dense = absent.flatten().repeat(3, 1)
    dense[pairs[:, 0], pairs[:, 1]] = True
    ours = info_nce(
        queries,
        passages,
        num_positives=1,
        temperature=TAU,
        mask=pairs,
        absent=absent,
        first_row=2,
    )
    theirs = naive(queries, passages, 1, mask=dense, first_row=2)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    # what is absent gets no gradient
    assert not grads(ours, passages)[0][absent].any()


def test_everything_masked_leaves_the_target() -> None:
    queries, passages = embeddings(3, 4), embeddings(3, 2, 4, seed=1)
    mask = torch.ones(3, 6, dtype=torch.bool)
    loss = info_nce(queries, passages, num_positives=1, temperature=TAU, mask=mask)
    assert loss.item() == 0.0
    assert all(not grad.any() for grad in grads(loss, queries, passages))


def test_an_empty_sparse_mask_masks_nothing() -> None:
    queries, passages = embeddings(3, 4), embeddings(3, 2, 4, seed=1)
    mask = torch.zeros(0, 2, dtype=torch.int64)
    plain = info_nce(queries, passages, num_positives=1, temperature=TAU)
    assert info_nce(queries, passages, num_positives=1, temperature=TAU, mask=mask) == plain


def test_slices_of_the_queries_sum_to_the_whole() -> None:
    queries, passages = embeddings(7, 5), embeddings(7, 3, 5, seed=1)
    mask = random_mask(7, 21)
    whole = info_nce(queries, passages, num_positives=1, temperature=TAU, mask=mask)
    total = torch.zeros((), dtype=torch.float64)
    for start, stop in [(0, 3), (3, 3), (3, 7)]:
        part = info_nce(
            queries[start:stop],
            passages,
            num_positives=1,
            temperature=TAU,
            mask=mask[start:stop],
            first_row=start,
        )
        total = total + part * (stop - start) / 7
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=0)
    for left, right in zip(
        grads(total, queries, passages), grads(whole, queries, passages), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-13)


def test_strided_passages() -> None:
    # [D, P + N, G] seen as [G, P + N, D]: no stride is the usual one
    queries, base = embeddings(4, 5), embeddings(5, 3, 4, seed=1)
    passages = base.permute(2, 1, 0)
    ours = info_nce(queries, passages, num_positives=1, temperature=TAU)
    theirs = naive(queries, passages, 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(grads(ours, base)[0], grads(theirs, base)[0], rtol=1e-10, atol=1e-12)


def test_float32_is_near_float64() -> None:
    queries, passages = embeddings(32, 64), embeddings(32, 4, 64, seed=1)
    exact = info_nce(queries, passages, num_positives=2, temperature=0.02)
    short = info_nce(queries.float(), passages.float(), num_positives=2, temperature=0.02)
    assert short.dtype == torch.float32
    # logits reach 50, where float32 resolves 4e-6
    torch.testing.assert_close(short.double(), exact, rtol=0, atol=1e-5)


def test_bfloat16_is_upcast_and_gets_bfloat16_gradients() -> None:
    queries = embeddings(8, 16, dtype=torch.bfloat16).detach().requires_grad_()
    passages = embeddings(8, 2, 16, seed=1, dtype=torch.bfloat16).detach().requires_grad_()
    loss = info_nce(queries, passages, num_positives=1, temperature=TAU)
    upcast = info_nce(queries.float(), passages.float(), num_positives=1, temperature=TAU)
    assert loss.dtype == torch.float32
    assert loss == upcast
    for left, right in zip(
        grads(loss, queries, passages), grads(upcast, queries, passages), strict=True
    ):
        assert left.dtype == torch.bfloat16
        assert torch.equal(left, right)  # autograd rounds the float32 gradient of `.float()` too


def test_autocast_does_not_lower_the_precision() -> None:
    queries, passages = (embeddings(8, 16).float(), embeddings(8, 2, 16, seed=1).float())
    plain = info_nce(queries, passages, num_positives=1, temperature=TAU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = info_nce(queries, passages, num_positives=1, temperature=TAU)
        cast_grad = grads(cast, queries)[0]
    assert cast == plain
    assert torch.equal(cast_grad, grads(plain, queries)[0])


@pytest.mark.parametrize("temperature", [0.02, 1e-4])
def test_extremes_stay_finite_and_exact(temperature: float) -> None:
    # Slot 0 finds its target at cosine -1, slot 1 at +1: one maximum for both would underflow.
    direction = normalize(torch.ones(1, 4), dim=-1)
    queries = direction.repeat(3, 1).requires_grad_()
    passages = torch.stack([-queries, queries], dim=1).detach().requires_grad_()
    loss = info_nce(queries, passages, num_positives=2, temperature=temperature)
    # All candidates of a slot are alike, so each target is one of three; a logit of 1 / temperature
    # is resolved to 1.2e-7 of itself.
    assert loss.item() == pytest.approx(math.log(3), abs=1.2e-7 / temperature)
    assert all(bool(grad.isfinite().all()) for grad in grads(loss, queries, passages))


def test_hopeless_target_has_a_finite_loss() -> None:
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    passages = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    loss = info_nce(query, passages, num_positives=1, temperature=0.001)
    assert loss.item() == pytest.approx(2000.0)
    assert all(bool(grad.isfinite().all()) for grad in grads(loss, query, passages))


def test_no_queries_give_a_connected_zero() -> None:
    queries, passages = embeddings(4, 3), embeddings(4, 2, 3, seed=1)
    loss = info_nce(queries[:0], passages, num_positives=1, temperature=TAU, first_row=4)
    assert loss.item() == 0.0
    assert all(not grad.any() for grad in grads(loss, queries, passages))


BAD_CALLS = [
    ({"queries": torch.zeros(2)}, r"queries, passages = \[\[2\], .*expected \[B, D\]"),
    ({"passages": torch.zeros(4, 3)}, r"expected \[B, D\], \[G, P \+ N, D\]"),
    ({"queries": torch.zeros(4, 5)}, "embedding sizes"),
    ({"num_positives": 0}, "num_positives = 0; expected 1 to 2"),
    ({"num_positives": 3}, "num_positives = 3; expected 1 to 2"),
    ({"first_row": -1}, "first_row = -1; expected 0 to 0"),
    ({"first_row": 1}, "first_row = 1; expected 0 to 0"),
    ({"queries": torch.zeros(5, 3)}, "first_row = 0; expected 0 to -1"),
    ({"temperature": 0.0}, "temperature = 0.0; expected above 0"),
    ({"temperature": math.nan}, "temperature = nan"),
    ({"mask": torch.zeros(4, 7, dtype=torch.bool)}, r"bool mask = \[4, 7\]; expected \[4, 4, 2\]"),
    ({"mask": torch.zeros(4, 3, dtype=torch.int64)}, r"expected bool or int64 \[M, 2\]"),
    ({"mask": torch.zeros(4, 8)}, r"expected bool or int64 \[M, 2\]"),
    ({"absent": torch.zeros(4, 2)}, r"absent = .*; expected bool \[4, 2\]"),
    ({"absent": torch.zeros(4, 3, dtype=torch.bool)}, r"expected bool \[4, 2\]"),
    ({"mask": torch.tensor([[4, 0]])}, "expected rows below 4, columns below 8"),
    ({"mask": torch.tensor([[0, 8]])}, "expected rows below 4, columns below 8"),
    ({"mask": torch.tensor([[0, -1]])}, "expected rows below 4, columns below 8"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CALLS)
def test_arguments_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    call = {
        "queries": torch.zeros(4, 3),
        "passages": torch.zeros(4, 2, 3),
        "num_positives": 1,
        "temperature": TAU,
    }
    with pytest.raises(ObjectiveError, match=message):
        info_nce(**(call | change))


def naive_paired(first: Tensor, second: Tensor, positive: list[bool]) -> Tensor:
    terms = []
    for i in range(len(first)):
        if positive[i]:
            scores = torch.stack([(first[i] @ other / TAU).exp() for other in second])
            terms.append(-(scores[i] / scores.sum()).log())
    return torch.stack(terms).mean()


def test_paired_equals_the_formula() -> None:
    first, second = embeddings(5, 4), embeddings(5, 4, seed=1)
    positive = torch.tensor([True, False, False, True, True])
    ours = paired_info_nce(first, second, positive, temperature=TAU)
    theirs = naive_paired(first, second, positive.tolist())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for left, right in zip(grads(ours, first, second), grads(theirs, first, second), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("positive", [[False, False, False], [True], []])
def test_paired_without_a_task_is_a_connected_zero(positive: list[bool]) -> None:
    first, second = embeddings(len(positive), 4), embeddings(len(positive), 4, seed=1)
    flags = torch.tensor(positive, dtype=torch.bool)
    loss = paired_info_nce(first, second, flags, temperature=TAU)
    assert loss.item() == 0.0
    assert all(not grad.any() for grad in grads(loss, first, second))


def test_paired_refuses_shapes_and_temperature() -> None:
    first = torch.zeros(3, 2)
    with pytest.raises(ObjectiveError, match=r"paired_info_nce: shapes = .*\[n, D\], \[n, D\]"):
        paired_info_nce(first, first, torch.ones(2, dtype=torch.bool), temperature=TAU)
    with pytest.raises(ObjectiveError, match="paired_info_nce: temperature = -1"):
        paired_info_nce(first, first, torch.ones(3, dtype=torch.bool), temperature=-1)


@pytest.mark.parametrize("first_row", [0, 2])
def test_margin_leaves_out_what_scores_above_the_best_positive(first_row: int) -> None:
    queries, passages = embeddings(3, 6), embeddings(5, 4, 6, seed=1)
    scores = queries.detach() @ passages.detach().reshape(20, 6).T
    own = torch.arange(3) + first_row
    best = scores.reshape(3, 5, 4)[torch.arange(3), own, :2].amax(1)
    mask = scores > best[:, None] + 0.1
    assert mask.any()
    got = info_nce(
        queries, passages, num_positives=2, temperature=TAU, margin=0.1, first_row=first_row
    )
    want = naive(queries, passages, 2, mask=mask, first_row=first_row)
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    for ours, theirs in zip(
        grads(got, queries, passages), grads(want, queries, passages), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
