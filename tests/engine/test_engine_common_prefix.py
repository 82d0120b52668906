"""Texts are divided by what they begin with, and plans count the tokens that really run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.engine.chunks import ChunkPlan, plan_chunks, plan_shared
from trainer.engine.common_prefix import MOST_TOKENS, group_by_prefix, is_worth_sharing

Ids = list[np.ndarray]


def texts_of(*texts: list[int]) -> Ids:
    return [np.array(text, np.int32) for text in texts]


def behind(prefix: list[int], lengths: list[int], *, seed: int = 0) -> Ids:
    """Texts of random own tokens of the given numbers behind a prefix."""
    rng = np.random.default_rng(seed)
    return [np.array([*prefix, *rng.integers(100, 999, size=n)], np.int32) for n in lengths]


def groups_of(ids: Ids, least_saved: int = 1) -> list[tuple[list[int], int]]:
    return [
        (group.ids.tolist(), group.num_shared)
        for group in group_by_prefix(ids, least_saved=least_saved)
    ]


def test_queries_and_passages_are_groups_of_their_own() -> None:
    ids = [*behind([1, 2, 3, 4], [3] * 4, seed=1), *behind([1, 5, 6], [9] * 4, seed=2)]
    assert groups_of(ids) == [([0, 1, 2, 3], 4), ([4, 5, 6, 7], 3)]
    # what they have in common is all that is shared where dividing saves too little
    assert groups_of(ids, least_saved=100) == [([0, 1, 2, 3, 4, 5, 6, 7], 1)]


def test_texts_without_an_instruction_are_one_group() -> None:
    ids = [*behind([1, 2, 3, 4], [5] * 8, seed=1), *behind([], [5] * 8, seed=2)]
    assert groups_of(ids, least_saved=8) == [(list(range(8)), 4), (list(range(8, 16)), 0)]
    assert groups_of(behind([], [5] * 8)) == [(list(range(8)), 0)]


def test_a_word_that_many_long_texts_begin_with_is_no_group() -> None:
    ids = [*behind([1], [40] * 50, seed=1), *behind([], [40] * 50, seed=2)]
    assert groups_of(ids, least_saved=16) == [(list(range(100)), 0)]
    ids = [*behind([1], [9] * 50, seed=1), *behind([], [40] * 50, seed=2)]
    assert len(groups_of(ids, least_saved=16)) == 2


def test_a_prefix_leaves_every_text_its_last_token() -> None:
    assert groups_of(texts_of([1, 2, 3], [1, 2, 3, 4, 5]), 5) == [([0, 1], 2)]
    assert groups_of(texts_of([7, 8, 9])) == [([0], 0)]
    assert groups_of(texts_of([7])) == [([0], 0)]
    assert groups_of(texts_of([7], [7], [7])) == [([0, 1, 2], 0)]
    assert groups_of(texts_of([1, 2, 3], [1, 2, 3], [1, 2, 3])) == [([0, 1, 2], 2)]
    assert groups_of([]) == []


def test_a_long_prefix_is_shared_up_to_a_limit() -> None:
    ids = behind(list(range(1, MOST_TOKENS + 50)), [2, 3])
    assert groups_of(ids) == [([0, 1], MOST_TOKENS)]


def test_sharing_must_save_a_sixteenth() -> None:
    assert is_worth_sharing(num_texts=2, length=8, num_shared=1)
    assert not is_worth_sharing(num_texts=2, length=9, num_shared=1)
    assert not is_worth_sharing(num_texts=1, length=9, num_shared=8)
    assert not is_worth_sharing(num_texts=99, length=32, num_shared=1)


PREFIXES = st.lists(st.integers(1, 3), max_size=24)
SIDES = st.lists(
    st.tuples(PREFIXES, st.lists(st.integers(1, 40), min_size=1, max_size=60)),
    min_size=1, max_size=3,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(sides=SIDES, num_ranks=st.integers(1, 4), max_tokens=st.integers(64, 2048))
def test_plan_is_complete_and_counts_what_runs(
    sides: list[tuple[list[int], list[int]]], num_ranks: int, max_tokens: int
) -> None:
    ids = [text for i, (prefix, own) in enumerate(sides) for text in behind(prefix, own, seed=i)]
    plan = plan_shared(ids, num_ranks=num_ranks, max_tokens=max_tokens)
    every = np.concatenate([plan.rows(rank) for rank in range(num_ranks)])
    assert sorted(every.tolist()) == list(range(len(ids)))
    assert {len(chunks) for chunks in plan.ranks} == {len(plan.num_shared)}
    run = saved = 0
    for chunks in plan.ranks:
        for chunk, shared in zip(chunks, plan.num_shared, strict=True):
            texts = [ids[i].tolist() for i in chunk]
            assert all(text[:shared] == texts[0][:shared] for text in texts)
            assert all(shared < len(text) for text in texts)
            longest = max(map(len, texts), default=0)
            tokens = shared + len(texts) * (longest - shared) if texts else 0
            assert tokens <= max_tokens or len(texts) == 1
            run += tokens
            saved += shared * (len(texts) - 1) if texts else 0
    assert (plan.padded_tokens, plan.saved_tokens) == (run, saved)
    assert plan.real_tokens == sum(map(len, ids))
    assert 0 <= plan.padding_fraction < 1
    assert 0 <= plan.shared_fraction < 1


def same(one: ChunkPlan, other: ChunkPlan) -> bool:
    rows = ([[c.tolist() for c in chunks] for chunks in plan.ranks] for plan in (one, other))
    first, second = rows
    return first == second and one.num_shared == other.num_shared


def test_without_a_common_prefix_the_plan_is_the_ordinary_one() -> None:
    ids = behind([], list(range(1, 60)))
    lengths = np.array([len(text) for text in ids])
    shared = plan_shared(ids, num_ranks=2, max_tokens=256)
    assert same(shared, plan_chunks(lengths, num_ranks=2, max_tokens=256))
    assert (shared.saved_tokens, set(shared.num_shared)) == (0, {0})


def test_an_instruction_halves_the_tokens_of_a_similarity_step() -> None:
    rng = np.random.default_rng(0)
    ids = behind(list(range(1, 21)), rng.integers(6, 19, size=512).tolist())
    lengths = np.array([len(text) for text in ids])
    shared = plan_shared(ids, num_ranks=1, max_tokens=2048)
    plain = plan_chunks(lengths, num_ranks=1, max_tokens=2048)
    assert shared.padded_tokens < 0.42 * plain.padded_tokens
    assert shared.num_chunks <= plain.num_chunks
    assert shared.shared_fraction == pytest.approx(
        20 * (512 - shared.num_chunks) / plain.real_tokens
    )
