"""Equal and nearly equal texts are found, others are not."""

import random

import pytest

from tests.support.corpus import sentence
from trainer.data.near_texts import NEAR, KnownTexts, normalised, runs_of, similarity

VOCABULARY = [f"{first}{last}" for first in "bdfgklmnprst" for last in ("a", "el", "ion", "or")]


def text_of(rng: random.Random, num_words: int) -> list[str]:
    return rng.choices(VOCABULARY, k=num_words)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_word_in_thirty_is_near_and_five_are_not(seed: int) -> None:
    rng = random.Random(seed)
    known = [text_of(rng, 30) for _ in range(400)]
    index = KnownTexts([" ".join(words) for words in known])
    planted, others = [], []
    for number, words in enumerate(known[:200]):
        changed = list(words)
        at = rng.randrange(30)
        kind = number % 3
        changed[at : at + 1] = {0: ["new"], 1: [], 2: [words[at], "more"]}[kind]
        planted.append((number, " ".join(changed)))
        apart = list(words)
        for place in range(0, 30, 6):
            apart[place] = "other"
        others.append(" ".join(apart))
    others += [" ".join(text_of(rng, 30)) for _ in range(400)]
    found = [(number, index.find(text)) for number, text in planted]
    hits = sum(match is not None and match.index == number for number, match in found)
    wrong = sum(index.find(text) is not None for text in others)
    assert hits / len(planted) >= 0.95
    assert hits / (hits + wrong) >= 0.95
    assert all(match is None or not match.is_equal for _, match in found)


def test_case_width_spaces_and_punctuation_do_not_count() -> None:
    index = KnownTexts(["How do I reset my password?", "b\0a", "今日は天気がいい", "?!"])
    for text, place in (
        ("how do i  RESET my password", 0),
        ("\uff28ow do I reset, my password!", 0),
        ("A\0b.", 1),
        ("今日は、天気がいい。", 2),
        ("?!", 3),
    ):
        match = index.find(text)
        assert match is not None, text
        assert (match.index, match.is_equal) == (place, True)
    assert index.find("?") is None
    assert index.find("How do I reset my phone?") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0915\u093e", "\u0915\u0940"),  # vowels of Devanagari
        ("\u0b89\u0b9f\u0bb2\u0bcd", "\u0b89\u0b9f\u0bb2"),  # a mark of Tamil
        ("C++", "C#"),
        ("is 1 < 2", "is 1 > 2"),
        ("5 $", "5 \u20ac"),
        ("fine \U0001f44d", "fine \U0001f44e"),
    ],
)
def test_marks_and_symbols_count(one: str, other: str) -> None:
    assert KnownTexts([one]).find(other) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("soft\u00adware", "software"),
        ("\u200bhi there", "Hi there"),
        ("\u2764\ufe0f a_b", "\u2764 a b"),
        ("`code`", "code"),
    ],
)
def test_what_is_not_seen_does_not_count(one: str, other: str) -> None:
    match = KnownTexts([one]).find(other)
    assert match is not None
    assert match.is_equal


@pytest.mark.parametrize("first", [0x0E01, 0x1780, 0x4E00])
def test_texts_without_spaces_are_near_too(first: int) -> None:
    rng = random.Random(first)
    texts = ["".join(chr(first + rng.randrange(30)) for _ in range(120)) for _ in range(40)]
    index = KnownTexts(texts)
    for number, text in enumerate(texts):
        match = index.find(f"{text[:60]}{text[64:]}")
        assert match is not None
        assert (match.index, match.is_equal) == (number, False)


def test_of_equal_texts_the_first_is_named_and_of_near_ones_the_nearest() -> None:
    rng = random.Random(1)
    words = [sentence(rng) for _ in range(9)]
    base = " ".join(words)
    near, nearer = f"{base} one two three four", f"{base} one"
    index = KnownTexts([near, nearer, nearer.upper()])
    match = index.find(base)
    assert match is not None
    assert (match.index, match.is_equal) == (1, False)
    equal = index.find(nearer.title())
    assert equal is not None
    assert (equal.index, equal.is_equal) == (1, True)


def test_runs_of_a_pair_do_not_cross_it() -> None:
    assert runs_of("a b c\0d") == {"  a", " a b", "a b c", "b c ", "c  ", "  d", " d ", "d  "}
    assert normalised("B a\0A") == normalised("a\0b a")
    words = [f"w{i}" for i in range(15)]
    for number, is_near in ((15, True), (14, False)):
        for at in (0, 7, number - 1):
            changed = [*words[:at], "other", *words[at + 1 : number]]
            alike = similarity(runs_of(" ".join(words[:number])), runs_of(" ".join(changed)))
            assert alike == pytest.approx((number - 1) / (number + 5))
            assert (alike >= NEAR) is is_near
