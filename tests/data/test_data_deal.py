"""Which rank embeds which text: complete, balanced, and as a naive dealing of cards has it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.deal import NO_TEXT, TextGroup, deal, deal_all, deal_to, groups_by_prompt

LENGTHS = st.lists(st.integers(1, 70_000), min_size=1, max_size=200).map(np.array)


def dealt_one_by_one(lengths: np.ndarray, num_ranks: int) -> list[list[int]]:
    """Longest first, to and fro."""
    order = sorted(range(len(lengths)), key=lambda text: -int(lengths[text]))
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    for place, text in enumerate(order):
        turn, seat = divmod(place, num_ranks)
        hands[seat if turn % 2 == 0 else num_ranks - 1 - seat].append(text)
    return hands


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, num_ranks=st.integers(1, 9))
def test_texts_are_dealt_to_and_fro(lengths: np.ndarray, num_ranks: int) -> None:
    rounds = deal(lengths, num_ranks)
    hands = dealt_one_by_one(lengths, num_ranks)
    groups = [TextGroup(np.arange(len(lengths)), 0)]
    for rank, hand in enumerate(hands):
        assert [text for text in rounds[:, rank].tolist() if text != NO_TEXT] == hand
        own = deal_all(lengths, groups, num_ranks)[:, rank].tolist()
        assert [text for text in own if text != NO_TEXT] == hand


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, num_ranks=st.integers(1, 9), data=st.data())
def test_groups_are_dealt_by_themselves(
    lengths: np.ndarray, num_ranks: int, data: st.DataObject
) -> None:
    side = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    )
    parts = [np.flatnonzero(side), np.flatnonzero(~side)]
    groups = [TextGroup(ids, 0) for ids in parts if len(ids)]
    for rank in range(num_ranks):
        hands = [
            group.ids[np.array(dealt_one_by_one(lengths[group.ids], num_ranks)[rank], np.int64)]
            for group in groups
        ]
        own = deal_all(lengths, groups, num_ranks)[:, rank]
        assert own[own != NO_TEXT].tolist() == np.concatenate(hands).tolist()


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, num_ranks=st.integers(1, 9), data=st.data())
def test_some_ranks_are_dealt_what_all_of_them_are(
    lengths: np.ndarray, num_ranks: int, data: st.DataObject
) -> None:
    middle = data.draw(st.integers(0, len(lengths)))
    halves = (range(middle), range(middle, len(lengths)))
    groups = [TextGroup(ids, 0) for ids in halves]
    apart = [TextGroup(np.array(ids, np.int64), 0) for ids in halves]
    ranks = data.draw(st.lists(st.integers(0, num_ranks - 1), min_size=1, unique=True))
    whole = deal_all(lengths, groups, num_ranks)
    assert np.array_equal(deal_all(lengths, apart, num_ranks), whole)
    for kind in (groups, apart):
        found = deal_to(lengths.astype(np.int32), kind, ranks, num_ranks)
        assert np.array_equal(found, np.sort(whole[:, ranks].T, axis=1))


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, data=st.data())
def test_texts_behind_an_instruction_are_a_group(lengths: np.ndarray, data: st.DataObject) -> None:
    num_prompts = data.draw(st.integers(1, 3))
    num_first = data.draw(
        st.lists(st.integers(0, 4), min_size=num_prompts + 1, max_size=num_prompts + 1)
    )
    drawn = data.draw(st.lists(st.integers(0, num_prompts - 1), max_size=len(lengths)))
    prompts = np.array(drawn, np.int64)
    found = groups_by_prompt(lengths, prompts, num_first)
    assert sorted(text for group in found for text in group.ids) == list(range(len(lengths)))
    if not any(num_first):
        assert [group.num_shared for group in found] == [0]
        return
    numbers = [*drawn, *[num_prompts] * (len(lengths) - len(drawn))]
    expected = {number: [at for at, one in enumerate(numbers) if one == number]
                for number in range(num_prompts + 1)}  # fmt: skip
    assert [list(group.ids) for group in found] == [ids for ids in expected.values() if ids]
    assert [group.num_shared for group in found] == [
        min(num_first[number], *(int(lengths[text]) - 1 for text in ids))
        for number, ids in expected.items()
        if ids
    ]
    # one instruction of queries takes no list of texts
    assert all(isinstance(group.ids, range) for group in found) or num_prompts > 1


def test_texts_whose_lengths_and_number_need_many_bits_are_dealt_too() -> None:
    lengths = np.array([3, 1 << 30, 5, 1, 1 << 30, 2])
    assert deal(lengths, 2).tolist() == [[1, 4], [0, 2], [5, 3]]
