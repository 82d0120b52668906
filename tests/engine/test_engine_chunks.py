"""The chunk plan: complete, balanced, within budget, the same number of chunks everywhere."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.engine.chunks import plan_chunks

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=300).map(np.array)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, num_ranks=st.integers(1, 8), max_tokens=st.integers(64, 8192))
def test_plan_is_complete_balanced_and_within_budget(
    lengths: np.ndarray, num_ranks: int, max_tokens: int
) -> None:
    plan = plan_chunks(lengths, num_ranks=num_ranks, max_tokens=max_tokens)
    every = np.concatenate([plan.rows(rank) for rank in range(num_ranks)])
    assert sorted(every.tolist()) == list(range(len(lengths)))
    assert len({len(chunks) for chunks in plan.ranks}) == 1
    for chunks in plan.ranks:
        for chunk in chunks:
            padded = len(chunk) * lengths[chunk].max(initial=0)
            assert padded <= max_tokens or len(chunk) == 1
    tokens = [lengths[plan.rows(rank)].sum() for rank in range(num_ranks)]
    assert max(tokens) - min(tokens) <= 2 * lengths.max()
    assert plan.real_tokens == lengths.sum()


def test_adversarial_lengths_leave_ranks_equal() -> None:
    lengths = np.array([512] * 16 + [4] * 16)
    plan = plan_chunks(lengths, num_ranks=2, max_tokens=2048)
    first, second = (lengths[plan.rows(rank)].sum() for rank in range(2))
    assert first == second


def test_padding_stays_under_a_few_per_cent() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(512, rng.lognormal(4.5, 0.7, size=16_384).astype(int) + 4)
    plan = plan_chunks(lengths, num_ranks=8, max_tokens=16_384)
    assert plan.padding_fraction < 0.04
