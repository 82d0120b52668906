"""Merges along great circles against whole vectors in float64, and against mergekit's own code."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.merge.test_merge_stream import models, run
from tests.support.merge_truth import units_apart
from trainer.errors import CheckpointError
from trainer.merge.settings import MergeSettings
from trainer.merge.spherical import SPHERICAL


def naive(tuned: list[Tensor], options: MergeSettings) -> Tensor:
    """The same on whole vectors, step by step."""
    vectors = [one.double().flatten() for one in tuned]
    if options.method == "slerp":
        merged = naive_slerp(*vectors, 0.5 if options.t is None else options.t)
    elif options.method == "multi_slerp":
        merged = naive_multi_slerp(vectors, list(options.weights or [1.0] * len(vectors)))
    else:
        merged = naive_karcher(vectors)
    return merged.view(tuned[0].shape)


def angle_of(first: Tensor, second: Tensor) -> float:
    return math.acos(max(-1.0, min(1.0, float(first @ second))))


def naive_slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    cosine = float((first / first.norm()) @ (second / second.norm()))
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    omega = math.acos(cosine)
    return (math.sin((1 - t) * omega) * first + math.sin(t * omega) * second) / math.sin(omega)


def naive_multi_slerp(vectors: list[Tensor], weights: list[float]) -> Tensor:
    shares = [one / sum(weights) for one in weights]
    units = [one / (one.norm() + 1e-8) for one in vectors]
    mean = sum(share * one for share, one in zip(shares, units, strict=True))
    mean = mean / mean.norm()
    tangent = sum(
        share * (one - (one @ mean) * mean) for share, one in zip(shares, units, strict=True)
    )
    length = tangent.norm() + 1e-8
    end = mean * torch.cos(length) + tangent * torch.sin(length) / length
    return end * sum(share * one.norm() for share, one in zip(shares, vectors, strict=True))


def naive_karcher(vectors: list[Tensor]) -> Tensor:
    units = [one / one.norm() for one in vectors if one.norm() > 0]
    mean = sum(units) / sum(units).norm()
    for _ in range(200):
        tangents = [
            angle_of(mean, one) / math.sin(angle_of(mean, one)) * (one - (mean @ one) * mean)
            for one in units
            if angle_of(mean, one) > 1e-9
        ]
        if not tangents:
            break
        step = sum(tangents) / len(units)
        if step.norm() < 1e-5:
            break
        mean = torch.cos(step.norm()) * mean + torch.sin(step.norm()) * step / step.norm()
        mean = mean / mean.norm()
    return mean * sum(one.norm() for one in vectors) / len(vectors)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    method=st.sampled_from(SPHERICAL),
    spread=st.sampled_from([0.01, 0.3, 1.0, 3.0]),
    t=st.sampled_from([None, 0.0, 0.2, 1.0]),
    weights=st.sampled_from([None, (0.2, 0.5, 2.0, 1.0)]),
    shape=st.sampled_from([(23,), (7, 11), (3, 4, 5)]),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16])] * 2),
    count=st.integers(2, 4),
    block=st.sampled_from([8, 17, 4096]),
)
def test_equals_whole_vectors_within_one_unit_in_the_last_place(
    seed: int, method: str, spread: float, t: float | None, weights: tuple[float, ...] | None,
    shape: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype], count: int, block: int,
) -> None:  # fmt: skip
    base, *changes = models(seed, shape, torch.float32, count)
    tuned = [(base + spread * one).to(dtypes[0]) for one in changes]
    options = MergeSettings(method=method)
    if method == "slerp":
        tuned = tuned[:2]
        options = MergeSettings(method=method, t=t)
    elif method == "multi_slerp" and weights is not None:
        options = MergeSettings(method=method, weights=weights[:count])

    merged, outcome = run(base, tuned, options, block, dtypes[1])
    wanted = naive(tuned, options)

    # the mean on the sphere is where steps have become shorter than 1e-5, from either start
    tolerance = 1e-9 if method == "karcher" else 1e-13
    near = (merged.double() - wanted).abs() <= tolerance * sum(one.double().norm() for one in tuned)
    assert bool(((units_apart(merged, wanted.to(dtypes[1])) <= 1) | near).all())
    norms = [float((one.double() - base.double()).norm()) for one in tuned]
    assert outcome.norms == pytest.approx(norms)
    summed = sum(w * one.double() for w, one in zip(outcome.weights, tuned, strict=True))
    assert torch.allclose(summed, wanted, atol=1e-7)


def test_slerp_keeps_the_norm_and_halves_the_angle() -> None:
    base = torch.zeros(2)
    tuned = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])]
    merged, outcome = run(base, tuned, MergeSettings(method="slerp"), 8, torch.float32)
    assert merged.tolist() == pytest.approx([math.sqrt(2)] * 2, rel=1e-7)
    assert outcome.weights == pytest.approx([math.sqrt(0.5)] * 2)
    third, _ = run(base, tuned, MergeSettings(method="slerp", t=1 / 3), 8, torch.float32)
    assert third.tolist() == pytest.approx([2 * math.cos(math.pi / 6), 1.0], rel=1e-6)


@pytest.mark.parametrize("method", SPHERICAL)
def test_equal_checkpoints_and_one_alone_keep_their_bits(method: str) -> None:
    base, tuned = models(1, (9, 14), torch.bfloat16, 1)
    options = MergeSettings(method=method)
    assert torch.equal(run(base, [tuned, tuned], options, 16, torch.bfloat16)[0], tuned)
    assert torch.equal(run(base, [base, base], options, 16, torch.bfloat16)[0], base)
    if method != "slerp":
        assert torch.equal(run(base, [tuned], options, 16, torch.bfloat16)[0], tuned)


def test_vectors_without_a_mean_are_refused_by_the_tensors_name() -> None:
    vector = torch.tensor([1.0, 2.0, 3.0])
    base = torch.zeros(3)
    three = [vector, -vector, torch.zeros(3)]
    with pytest.raises(CheckpointError, match=r"layers\.0\.weight = directions that cancel"):
        run(base, three, MergeSettings(method="multi_slerp"), 8, torch.float32)
    with pytest.raises(CheckpointError, match=r"layers\.0\.weight = a checkpoint opposite"):
        run(base, [vector, -vector], MergeSettings(method="karcher"), 8, torch.float32)
    # two that are opposite are on a line
    halves, _ = run(base, three[:2], MergeSettings(method="multi_slerp"), 8, torch.float32)
    assert halves.tolist() == [0.0, 0.0, 0.0]


def test_a_checkpoint_of_zeros_counts_in_the_norm_alone() -> None:
    tuned = [torch.tensor([3.0, 4.0]), torch.zeros(2)]
    merged, _ = run(torch.ones(2), tuned, MergeSettings(method="karcher"), 8, torch.float32)
    assert merged.tolist() == pytest.approx([1.5, 2.0])
    nothing, _ = run(torch.ones(2), [torch.zeros(2)] * 2, MergeSettings(method="karcher"), 8,
                     torch.float32)  # fmt: skip
    assert nothing.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("method", SPHERICAL)
def test_allowed_non_finite_values_stay_where_they_are(method: str) -> None:
    base, *tuned = models(8, (9, 14), torch.float32, 2)
    zeroed = [one.clone() for one in tuned]
    for one in zeroed:
        one[3, 1] = 0.0
    tuned[1][3, 1] = float("nan")
    tuned[0][3, 1] = 0.0
    merged, _ = run(base, tuned, MergeSettings(method=method, allow_nan=True), 16, torch.float32)
    wanted, _ = run(base, zeroed, MergeSettings(method=method), 16, torch.float32)
    assert merged[3, 1].isnan()
    merged[3, 1] = wanted[3, 1]
    assert torch.equal(merged, wanted)
    with pytest.raises(CheckpointError, match=r"model2: layers\.0\.weight, element 43 = nan"):
        run(base, tuned, MergeSettings(method=method), 16, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.02, 0.2, 1.0])
def test_mergekit_gives_the_same(dtype: torch.dtype, spread: float) -> None:
    """It runs on float32 weights, as its `dtype: float32` asks, and rounds its result."""
    slerp = pytest.importorskip("mergekit.merge_methods.slerp").slerp
    multislerp = pytest.importorskip("mergekit.merge_methods.multislerp").multislerp
    karcher = pytest.importorskip("mergekit.merge_methods.karcher").karcher_merge_tensors
    base, *changes = models(5, (300, 400), torch.float32, 3)
    tuned = [base + spread * one for one in changes]
    weights = (0.2, 0.5, 0.3)
    found = {
        "slerp": slerp(0.3, tuned[0], tuned[1]),
        "multi_slerp": getattr(multislerp, "__wrapped__", multislerp)(list(tuned), list(weights)),
        "karcher": karcher([*tuned], [1 / 3] * 3),
    }
    for method, theirs in found.items():
        options = MergeSettings(
            method=method,
            t=0.3 if method == "slerp" else None,
            weights=weights if method == "multi_slerp" else None,
        )
        inputs = tuned[:2] if method == "slerp" else tuned
        ours, _ = run(base, inputs, options, 4096, dtype)
        if dtype == torch.bfloat16:
            # where terms cancel, what is left there is the rounding of these in float32
            most = max(float(one.abs().max()) for one in inputs)
            left_over = (ours.double() - theirs.double()).abs() <= 2**-22 * most
            same = units_apart(ours, theirs.to(dtype)) <= 1
            assert bool((same | left_over).all()), method
            assert float(same.double().mean()) > 0.9999, method
        # its float32 sums err by more than a unit of float32: compared with float64, ours errs less
        exact = naive(inputs, options)
        off = [float((found.double() - exact).abs().max()) for found in (ours, theirs.to(dtype))]
        assert off[0] <= off[1] + 2**-149, method
