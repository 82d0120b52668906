"""The STS losses equal loops written from their formulas, and survive what orders nothing."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.errors import ObjectiveError
from trainer.objectives.ranking import cosent_loss, pearson_loss, pro_loss, rank_kl_loss

TAU = 0.05


def naive_pearson(pred: list[float], gold: list[float]) -> float:
    n = len(pred)
    mean_pred, mean_gold = sum(pred) / n, sum(gold) / n
    covariance = sum((s - mean_pred) * (y - mean_gold) for s, y in zip(pred, gold, strict=True))
    norm_pred = math.sqrt(sum((s - mean_pred) ** 2 for s in pred))
    norm_gold = math.sqrt(sum((y - mean_gold) ** 2 for y in gold))
    return 1 - covariance / (norm_pred * norm_gold)


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


def naive_rank_kl(pred: list[float], gold: list[float]) -> float:
    n = len(pred)
    in_order = sorted(gold, reverse=True)
    ranks = []
    for y in gold:
        places = [place for place, other in enumerate(in_order) if other == y]
        ranks.append(sum(places) / len(places))
    target = softmax([(n - 1 - r) / (n - 1) / TAU for r in ranks])
    model = softmax([s / TAU for s in pred])
    return sum(p * math.log(p / q) for p, q in zip(target, model, strict=True) if p > 0) / n


def naive_pro(pred: list[float], gold: list[float]) -> float:
    order = sorted(range(len(gold)), key=lambda i: -gold[i])
    s, y = [pred[i] for i in order], [gold[i] for i in order]
    terms = []
    for k in range(len(s)):
        tail = [j for j in range(k + 1, len(s)) if y[k] - y[j] > 1e-8]
        if not tail:
            continue
        weights = [y[k] - y[j] for j in tail]
        entries = [max(weights) * s[k] / TAU]
        entries += [w * s[j] / TAU for w, j in zip(weights, tail, strict=True)]
        terms.append(-math.log(softmax(entries)[0]))
    return sum(terms) / len(terms)


def naive_cosent(pred: list[float], gold: list[float]) -> float:
    total = 1.0
    for s_i, y_i in zip(pred, gold, strict=True):
        for s_j, y_j in zip(pred, gold, strict=True):
            if y_i > y_j:
                total += math.exp(20 * (s_j - s_i))
    return math.log(total)


Loss = Callable[[Tensor, Tensor], Tensor]
NAMES = ["pearson", "rank_kl", "pro", "cosent"]
LOSSES: dict[str, Loss] = {
    "pearson": pearson_loss,
    "rank_kl": partial(rank_kl_loss, temperature=TAU),
    "pro": partial(pro_loss, temperature=TAU),
    "cosent": cosent_loss,
}
NAIVE = {
    "pearson": naive_pearson,
    "rank_kl": naive_rank_kl,
    "pro": naive_pro,
    "cosent": naive_cosent,
}

SCORES = st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.76, 1.0])
PAIRS = st.lists(st.tuples(st.floats(-1, 1, width=32), SCORES), min_size=2, max_size=9)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS)
def test_equals_the_formula(name: str, pairs: list[tuple[float, float]]) -> None:
    pred, gold = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    value = LOSSES[name](torch.tensor(pred, dtype=torch.float64), torch.tensor(gold).double())
    if len(set(gold)) == 1:
        assert value.item() == 0.0
        return
    if name == "pearson" and torch.tensor(pred).double().std(correction=0) < 1e-6:
        assert value.isfinite()
        return
    exact_gold = torch.tensor(gold).double().tolist()  # as the loss saw it, rounded to float32
    # float64 on both sides; a spread near the floor of 1e-6 costs pearson ten digits
    assert value.item() == pytest.approx(NAIVE[name](pred, exact_gold), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gold", [[0.9, 0.1, 0.4, 0.35, 0.0], [1.0, 0.2, 0.2, 1.0, 0.5]])
def test_gradcheck(name: str, gold: list[float]) -> None:
    pred = torch.tensor([0.31, -0.2, 0.77, 0.05, 0.4], dtype=torch.float64, requires_grad=True)
    exact = torch.tensor(gold, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, exact), (pred,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1.0])
def test_constant_predictions_are_finite(name: str, constant: float) -> None:
    pred = torch.full((7,), constant, requires_grad=True)
    value = LOSSES[name](pred, torch.linspace(0, 1, 7))
    (grad,) = torch.autograd.grad(value, pred)
    assert value.isfinite()
    assert bool(grad.isfinite().all())
    assert bool(grad.any())
    if name == "pearson":
        assert value.item() == pytest.approx(1.0, abs=0.01)  # float32's rounding over 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gold", [[], [0.3], [0.1] * 7, [1.0, 1.0]])
def test_golds_that_order_nothing_give_a_connected_zero(name: str, gold: list[float]) -> None:
    pred = torch.linspace(-0.5, 0.9, len(gold)).requires_grad_()
    value = LOSSES[name](pred, torch.tensor(gold))
    (grad,) = torch.autograd.grad(value, pred)
    assert value.item() == 0.0
    assert value.shape == ()
    assert grad.tolist() == [0.0] * len(gold)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_pairs_does_not_matter(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    pred = torch.rand(40, generator=generator, dtype=torch.float64)
    gold = torch.randint(0, 6, (40,), generator=generator) / 5.0
    shuffle = torch.randperm(40, generator=generator)
    first, second = (LOSSES[name](pred, gold), LOSSES[name](pred[shuffle], gold[shuffle]))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)  # sums in another order


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    pred = torch.tensor([0.5, 0.25, -0.125, 1.0], dtype=torch.bfloat16)  # exact in bfloat16
    gold = torch.tensor([0.3, 0.1, 0.2, 0.9])
    value = LOSSES[name](pred, gold)
    assert value.dtype == torch.float32
    assert value == LOSSES[name](pred.float(), gold)


@pytest.mark.parametrize("name", NAMES)
def test_perfect_order_beats_reversed_order(name: str) -> None:
    gold = torch.linspace(0, 1, 9)
    assert LOSSES[name](gold, gold) < LOSSES[name](-gold, gold)


def test_rank_kl_is_zero_at_the_target() -> None:
    gold = torch.tensor([5.0, 1.0, 3.0, 2.0], dtype=torch.float64)
    target = torch.tensor([1.0, 0.0, 2 / 3, 1 / 3], dtype=torch.float64)
    value = rank_kl_loss(target + 0.2, gold, temperature=TAU)
    assert value.item() == pytest.approx(0.0, abs=1e-15)


def test_pro_ties_within_the_gap_have_no_tail() -> None:
    gold = torch.tensor([0.5, 0.5 + 5e-9], dtype=torch.float64)
    assert pro_loss(torch.tensor([0.1, 0.9]), gold, temperature=TAU).item() == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("pred", "gold"), [((3,), (4,)), ((3, 1), (3, 1)), ((), ())], ids=["n", "2d", "0d"]
)
def test_shapes_that_do_not_fit_are_refused(name: str, pred: tuple, gold: tuple) -> None:
    with pytest.raises(ObjectiveError, match=r"pred, gold = .*; expected \[n\] and \[n\]"):
        LOSSES[name](torch.zeros(pred), torch.zeros(gold))


@pytest.mark.parametrize("loss", [rank_kl_loss, pro_loss])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf])
def test_temperatures_are_refused(loss: Callable[..., Tensor], temperature: float) -> None:
    with pytest.raises(ObjectiveError, match=r"temperature = .*; expected above 0"):
        loss(torch.zeros(2), torch.zeros(2), temperature=temperature)


def test_cosent_refuses_its_scale() -> None:
    with pytest.raises(ObjectiveError, match="cosent_loss: scale = 0; expected above 0"):
        cosent_loss(torch.zeros(2), torch.zeros(2), scale=0)
