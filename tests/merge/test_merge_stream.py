"""One tensor through blocks of any size against the naive computation in float64."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.merge_truth import assert_merged
from trainer.checkpoint.tensors import StoredTensor
from trainer.errors import CheckpointError
from trainer.merge.blocks import Scratch
from trainer.merge.settings import MergeSettings
from trainer.merge.stream import MergeItem, Outcome, merge_tensor

METHODS = ["delta", "uniform", "task_arithmetic", "ties"]
GRANULARITIES = ["tensor", "row", "element"]


def stored(values: Tensor, num_pieces: int = 1) -> StoredTensor:
    pieces = values.flatten().tensor_split(num_pieces)
    return StoredTensor(tuple(values.shape), tuple(pieces))


def run(
    base: Tensor,
    tuned: list[Tensor],
    options: MergeSettings,
    block: int,
    dtype: torch.dtype,
    *,
    in_pieces: bool = True,
) -> tuple[Tensor, Outcome]:
    item = MergeItem(
        name="layers.0.weight",
        base=stored(base),
        tuned=tuple(stored(one, index + 1 if in_pieces else 1) for index, one in enumerate(tuned)),
        dtype=dtype,
        paths=tuple(Path(f"model{i}") for i in range(len(tuned) + 1)),
    )
    parts: list[Tensor] = []
    scratch = Scratch.allocate(len(tuned), block)
    outcome = merge_tensor(item, options, scratch, lambda values: parts.append(values.clone()))
    return torch.cat(parts).view(base.shape), outcome


def models(seed: int, shape: tuple[int, ...], dtype: torch.dtype, count: int) -> list[Tensor]:
    """A base and checkpoints as far from it as it is from zero, so that changes cancel."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count + 1)]


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    method=st.sampled_from(METHODS),
    granularity=st.sampled_from(GRANULARITIES),
    alpha=st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0]),
    lambda_=st.sampled_from([-1.0, 0.3, 1.0, 2.5]),
    density=st.sampled_from([0.05, 0.4, 1.0]),
    shape=st.sampled_from([(), (1,), (23,), (7, 11), (40, 3), (3, 4, 5), (2, 90)]),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16])] * 2),
    count=st.integers(1, 4),
    block=st.sampled_from([8, 17, 64, 4096]),
    in_pieces=st.booleans(),
)
def test_equals_the_naive_merge_within_one_unit_in_the_last_place(
    seed: int, method: str, granularity: str, alpha: float, lambda_: float, density: float,
    shape: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype], count: int, block: int,
    in_pieces: bool,
) -> None:  # fmt: skip
    base, *tuned = models(seed, shape, dtypes[0], count)
    options = MergeSettings(
        method=method, granularity=granularity, alpha=alpha, lambda_=lambda_, density=density,
    )  # fmt: skip

    merged, _ = run(base, tuned, options, block, dtypes[1], in_pieces=in_pieces)

    assert_merged(merged, base.double(), [one.double() for one in tuned], options)


@pytest.mark.parametrize("in_pieces", [True, False])
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e30])
def test_many_cancelling_elements_stay_within_one_unit(scale: float, in_pieces: bool) -> None:
    base, *tuned = (scale * one for one in models(3, (700, 1000), torch.bfloat16, 2))

    merged, outcome = run(
        base, tuned, MergeSettings(), 1 << 17, torch.bfloat16, in_pieces=in_pieces
    )

    assert_merged(merged, base.double(), [one.double() for one in tuned], MergeSettings())
    norms = [float((one.double() - base.double()).norm()) for one in tuned]
    # float32 sums of 128 squares that are all multiples of one power of two
    assert outcome.norms == pytest.approx(norms, rel=3e-8)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("method", ["delta", "uniform", "task_arithmetic"])
def test_one_checkpoint_with_factor_one_is_that_checkpoint(method: str, granularity: str) -> None:
    base, tuned = models(4, (9, 14), torch.float32, 1)
    base[0, 0], tuned[0, 0] = 0.0, -0.0
    base[1, 0], tuned[1, 0] = 1e30, 1e-30
    options = MergeSettings(method=method, granularity=granularity)

    merged, _ = run(base, [tuned], options, 32, torch.float32)

    assert torch.equal(merged.view(torch.int32), tuned.view(torch.int32))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0])
def test_a_tensor_that_nobody_moved_keeps_the_bases_bits(
    method: str, granularity: str, alpha: float
) -> None:
    (base,) = models(5, (9, 14), torch.float32, 0)
    base[0, :3] = torch.tensor([-0.0, 1e-42, 3e38])
    options = MergeSettings(method=method, granularity=granularity, alpha=alpha, lambda_=0.7)

    merged, outcome = run(base, [base.clone(), base.clone()], options, 32, torch.float32)

    assert torch.equal(merged.view(torch.int32), base.view(torch.int32))
    assert outcome.norms == (0.0, 0.0)


def test_alpha_zero_equals_uniform() -> None:
    base, *tuned = models(6, (9, 14), torch.float32, 3)

    soup, _ = run(base, tuned, MergeSettings(alpha=0.0), 32, torch.float32)
    uniform, _ = run(base, tuned, MergeSettings(method="uniform"), 32, torch.float32)

    assert torch.equal(soup, uniform)


def test_norms_and_weights_are_reported() -> None:
    base = torch.zeros(4)
    tuned = [torch.full((4,), 3.0), torch.full((4,), -1.0)]

    _, outcome = run(base, tuned, MergeSettings(), 2, torch.float32)

    assert outcome == Outcome((6.0, 2.0), (0.75, 0.25))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_refused_by_name(method: str, value: float) -> None:
    base, *tuned = models(7, (9, 14), torch.float32, 2)
    tuned[1][3, 1] = value
    options = MergeSettings(method=method)

    with pytest.raises(CheckpointError, match=r"model2: layers\.0\.weight, element 43 = (nan|inf)"):
        run(base, tuned, options, 16, torch.float32)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("method", METHODS)
def test_allowed_non_finite_values_touch_nothing_else(method: str, granularity: str) -> None:
    base, *tuned = models(8, (9, 14), torch.float32, 2)
    clean = [one.clone() for one in tuned]
    clean[1][3, 1] = base[3, 1]
    tuned[1][3, 1] = float("nan")
    options = {"method": method, "granularity": granularity, "density": 1.0}

    merged, _ = run(base, tuned, MergeSettings(**options, allow_nan=True), 16, torch.float32)
    wanted, _ = run(base, clean, MergeSettings(**options), 16, torch.float32)

    assert merged[3, 1].isnan()
    merged[3, 1] = wanted[3, 1]
    assert torch.equal(merged, wanted)


def test_integers_must_agree() -> None:
    base = torch.arange(20)
    other = base.clone()
    other[7] = 0

    merged, _ = run(base, [base.clone()], MergeSettings(), 8, torch.int64)

    assert torch.equal(merged, base)
    with pytest.raises(CheckpointError, match=r"model1: layers\.0\.weight = other integers"):
        run(base, [other], MergeSettings(), 8, torch.int64)
