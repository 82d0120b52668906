"""Results of variants and seeds that a benchmark makes piece by piece, from its command line."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from bench.kept import Kept

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Pieces(Generic[Result]):
    """What a benchmark can make: one result for each variant and seed."""

    kept: Kept
    """Results that are there."""
    variants: Sequence[str]
    """All of them, in the order of the table."""
    made_from: Callable[[str, int], Sequence[str]]
    """What a result of a variant and seed depends on besides the program."""
    work: Callable[[str, int], Result]
    """Makes it."""

    def get(self, variant: str, seed: int) -> Result | None:
        """A kept result that was made from the same."""
        found: Result | None = self.kept.get(f"{variant}-{seed}", self.made_from(variant, seed))
        return found

    def make(self, arguments: argparse.Namespace, prepare: Callable[[], None]) -> None:
        """Make what is missing of what the command line asks for, seed by seed.

        Args:
            arguments: of a parser that went through `add_arguments`.
            prepare: called before the first piece.
        """
        missing = [
            (variant, seed)
            for seed in arguments.seeds
            for variant in arguments.variants
            if self.get(variant, seed) is None
        ]
        wanted = [] if arguments.show else missing[: arguments.pieces]
        if wanted:
            prepare()
        for variant, seed in wanted:
            print(f"{variant}, seed {seed} ...", file=sys.stderr, flush=True)
            source = self.made_from(variant, seed)
            self.kept.make(f"{variant}-{seed}", source, partial(self.work, variant, seed))

    def there(self, seeds: Sequence[int]) -> dict[str, dict[int, Result]]:
        """Results that are there, by variant and seed."""
        found: dict[str, dict[int, Result]] = {}
        for variant in self.variants:
            for seed in seeds:
                result = self.get(variant, seed)
                if result is not None:
                    found.setdefault(variant, {})[seed] = result
        return found


def parser_of(
    description: str | None, work: str, variants: Sequence[str]
) -> argparse.ArgumentParser:
    """A command line that says which pieces are made, and where.

    Args:
        description: the docstring of the script.
        work: default folder.
        variants: that can be chosen.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, default=Path(work))
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--variants", nargs="+", choices=variants, default=list(variants))
    add("--pieces", type=int, help="make at most so many missing results")
    add("--show", action="store_true", help="make none")
    add("--json", action="store_true", help="one JSON object as the last line")
    add("overrides", nargs="*", metavar="key.path=value", help="of all runs")
    return parser
