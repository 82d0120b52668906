"""Find rows of a recipe's sources that ask the same as an earlier row of any of them.

It must not change a file: what repeats is printed, and with --write listed row by row.
"""

import argparse
import errno
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from trainer.cli import ending_with_code
from trainer.data.near_texts import KnownTexts
from trainer.data.row_settings import with_row_settings
from trainer.data.sources import Source, open_sources
from trainer.errors import DataError
from trainer.recipe.load import load_recipe

DESCRIPTION = """\
Compare what rows ask - queries, pairs in either order, labelled texts - over all sources of a
recipe, in the order of the recipe. Equal means: but for case, spaces and punctuation. Nearly equal
means: one word changed among many. Memory is about 12 kB a distinct row.
"""
EPILOG = """\
examples:
  python tools/dedup.py --recipe recipes/minilm.yaml
  python tools/dedup.py --recipe recipes/minilm.yaml --write repeats.jsonl
"""
NUM_SHOWN = 3
"""Examples of each pair of sources."""
SHOWN_CHARACTERS = 60
"""Of a text in an example."""


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A row that repeats an earlier one."""

    source: str
    """Where it is."""
    place: str
    """`path:line` of it."""
    asked: str
    """What it asks; texts of a pair are joined by a null character."""
    first_source: str
    """Where the earlier one is."""
    first_place: str
    """`path:line` of that."""
    first_asked: str
    """What that asks."""
    is_equal: bool
    """Whether only case, spaces and punctuation differ."""

    def to_json(self) -> dict[str, object]:
        """As a line of the file of --write."""
        return {
            "source": self.source,
            "row": self.place,
            "asked": self.asked.split("\0"),
            "first_source": self.first_source,
            "first_row": self.first_place,
            "first_asked": self.first_asked.split("\0"),
            "equal": self.is_equal,
        }


def find_repeats(sources: Sequence[Source]) -> Iterator[Repeat]:
    """Every row that repeats an earlier one, in the order of sources and rows."""
    known = KnownTexts()
    places: list[tuple[Source, int]] = []
    total = sum(map(len, sources))
    with tqdm(total=total, unit=" rows", disable=not sys.stderr.isatty()) as progress:
        for source in sources:
            for row in range(len(source)):
                asked = source.record(row).asked()
                match = known.find(asked)
                progress.update()
                if match is None:
                    known.add(asked)
                    places.append((source, row))
                    continue
                first, first_row = places[match.index]
                yield Repeat(
                    source=source.name,
                    place=source.place(row),
                    asked=asked,
                    first_source=first.name,
                    first_place=first.place(first_row),
                    first_asked=first.record(first_row).asked(),
                    is_equal=match.is_equal,
                )


@contextmanager
def listing(path: Path | None) -> Iterator[IO[str] | None]:
    """The file of --write, whole in the end or not there; None where none is wanted.

    Raises:
        DataError: if it is there already, or cannot be written.
    """
    if path is None:
        yield None
        return
    building = path.with_name(f"{path.name}.building")
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, "it is there already")
        with building.open("w", encoding="utf-8") as file:
            yield file
        building.rename(path)
    except OSError as error:
        raise DataError(
            f"--write = {path}; expected a new file that can be written ({error.strerror}). Name "
            "another."
        ) from error
    finally:
        building.unlink(missing_ok=True)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """What the user asked for."""
    parser = argparse.ArgumentParser(
        prog="dedup.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", required=True, metavar="FILE", help="its sources are compared")
    parser.add_argument("--write", type=Path, help="list every row that repeats another, as JSONL")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="as in training")
    return parser.parse_intermixed_args(words)


def main() -> int:
    """Compare, print and return the exit code.

    Raises:
        DataError: if the file of --write cannot be written, or is there already.
    """
    arguments = parse_arguments(sys.argv[1:])
    recipe = with_row_settings(load_recipe(arguments.recipe, arguments.overrides))
    sources = open_sources(recipe.data)
    counts: Counter[tuple[str, str, bool]] = Counter()
    examples: dict[tuple[str, str], list[Repeat]] = {}
    with listing(arguments.write) as listed:
        for repeat in find_repeats(sources):
            pair = (repeat.source, repeat.first_source)
            counts[*pair, repeat.is_equal] += 1
            if len(examples.setdefault(pair, [])) < NUM_SHOWN:
                examples[pair].append(repeat)
            if listed is not None:
                listed.write(f"{json.dumps(repeat.to_json())}\n")
    show(sources, counts, examples)
    if arguments.json:
        rows = {source.name: len(source) for source in sources}
        found = [
            {
                "source": pair[0],
                "first_source": pair[1],
                "equal": counts[*pair, True],
                "nearly": counts[*pair, False],
            }
            for pair in examples
        ]
        sys.stdout.write(f"{json.dumps({'rows': rows, 'repeats': found})}\n")
    return 0


def show(
    sources: Sequence[Source],
    counts: Counter[tuple[str, str, bool]],
    examples: dict[tuple[str, str], list[Repeat]],
) -> None:
    """The table for a person, and examples."""
    print(f"{sum(map(len, sources)):,} rows of {len(sources)} sources")
    if not examples:
        print("No row repeats another.")
    for pair, shown in examples.items():
        where = "itself" if pair[0] == pair[1] else pair[1]
        print(
            f"{pair[0]} repeats {where}: {counts[*pair, True]:,} rows equal, "
            f"{counts[*pair, False]:,} nearly"
        )
        for repeat in shown:
            print(f"  {repeat.place} {_short(repeat.asked)}")
            print(f"    {repeat.first_place} {_short(repeat.first_asked)}")


def _short(asked: str) -> str:
    """The beginning of each text."""
    parts = (" ".join(part.split()) for part in asked.split("\0"))
    return " | ".join(
        p if len(p) <= SHOWN_CHARACTERS else f"{p[:SHOWN_CHARACTERS]}..." for p in parts
    )


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
