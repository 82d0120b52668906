"""Benchmarks that make results piece by piece: what is made, in which order, and what is kept."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.kept import Kept
from bench.pieces import Pieces, parser_of


@dataclass
class Made:
    """What was asked for."""

    pieces: list[tuple[str, int]] = field(default_factory=list)
    prepared: int = 0


def pieces(folder: Path, made: Made, source: str = "recipe") -> Pieces[int]:
    def work(variant: str, seed: int) -> int:
        made.pieces.append((variant, seed))
        return 10 * seed

    return Pieces(kept=Kept(folder), variants=("a", "b"), made_from=lambda *_: [source], work=work)


def run(found: Pieces[int], made: Made, *words: str) -> dict[str, dict[int, int]]:
    arguments = parser_of(__doc__, "unused", found.variants).parse_args(words)

    def prepare() -> None:
        made.prepared += 1

    found.make(arguments, prepare)
    return found.there(arguments.seeds)


def test_pieces_are_made_seed_by_seed_and_once(tmp_path: Path) -> None:
    made = Made()
    found = pieces(tmp_path, made)
    assert run(found, made, "--seeds", "1", "2", "--show") == {}
    assert (made.pieces, made.prepared) == ([], 0)
    assert run(found, made, "--seeds", "1", "2", "--pieces", "1") == {"a": {1: 10}}
    assert run(found, made, "--seeds", "1", "2", "--variants", "b") == {
        "a": {1: 10}, "b": {1: 10, 2: 20},
    }  # fmt: skip
    run(found, made, "--seeds", "1", "2")
    assert made.pieces == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert run(found, made, "--seeds", "1", "2") == {"a": {1: 10, 2: 20}, "b": {1: 10, 2: 20}}
    assert (len(made.pieces), made.prepared) == (4, 3)


def test_a_result_of_another_recipe_is_made_anew(tmp_path: Path) -> None:
    made = Made()
    run(pieces(tmp_path, made), made, "--seeds", "1", "--variants", "a")
    other = pieces(tmp_path, made, "another")
    assert other.there([1]) == {}
    assert run(other, made, "--seeds", "1", "--variants", "a") == {"a": {1: 10}}
    assert made.pieces == [("a", 1), ("a", 1)]


def test_a_variant_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        parser_of(__doc__, "unused", ("a",)).parse_args(["--variants", "c"])
    assert caught.value.code == 2
