"""Which format a file comes nearest to, and what it lacks: reported once, not row by row."""

import difflib
import math
from collections.abc import Collection, Sequence

import yaml

from trainer.data.columns import listed
from trainer.data.formats.adapter import Adapter
from trainer.errors import DataError

PLAIN = "sentence-transformers"
"""Format that is advised where others are as near: a column holds a text, whatever the file is."""


def nearest(adapters: Sequence[Adapter], columns: Collection[str]) -> Adapter:
    """The format that lacks the fewest columns, and of several the one with the most similar names.

    Names that are not similar at all do not count. Of formats that are equally far, `PLAIN` is
    taken where it is among them.

    Args:
        adapters: at least one.
        columns: those of the file.
    """

    def distance(adapter: Adapter) -> tuple[int, float, bool]:
        missing = adapter.missing(columns)
        rest = [column for column in columns if not adapter.reads(column)]
        similar = [name for name in missing if nearest_name(name, rest) is not None]
        likeness = sum(_likeness(name, rest) for name in similar)
        return len(missing), -likeness, adapter.name != PLAIN

    return min(adapters, key=distance)


def plainest(adapters: Sequence[Adapter]) -> Adapter:
    """The format to advise for columns that come near none.

    Args:
        adapters: at least one.
    """
    return next((one for one in adapters if one.name == PLAIN), adapters[0])


def comes_near(adapter: Adapter, columns: Collection[str]) -> bool:
    """Whether a file has a column that the format needs, or one of a similar name."""
    missing = adapter.missing(columns)
    if len(missing) < len(adapter.columns) + len(adapter.any_of):
        return True
    return any(nearest_name(name, columns) is not None for name in missing)


def nearest_name(name: str, known: Collection[str]) -> str | None:
    """The known name that is most like a name, or begins as it does; None if there is none."""
    close = difflib.get_close_matches(name, known, n=1)
    short = [one for one in known if len(one) > 2 and name.startswith(one)]
    return next(iter([*close, *short]), None)


def lacking(
    adapter: Adapter,
    others: Sequence[Adapter],
    columns: Collection[str],
    *,
    owner: str,
    place: str,
) -> DataError:
    """A file does not have all columns of the format that it is read in.

    Args:
        adapter: of the format.
        others: those that lack nothing.
        columns: those of the file, under the recipe's names.
        owner: recipe key of the source.
        place: where the rows stand.
    """
    missing = [_with_alternatives(adapter, name) for name in adapter.missing(columns)]
    format_name = f"format {adapter.name}"
    fitting = f" They are all that format {others[0].name} needs." if others else ""
    return DataError(
        f"{place}: columns = {listed(columns)}; expected {' and '.join(missing)} of {format_name}."
        f"{fitting} {mapping_hint(adapter, columns, owner=owner)}, or correct format."
    )


def mapping_hint(adapter: Adapter, columns: Collection[str], *, owner: str) -> str:
    """How a recipe maps what a file lacks to what it has.

    Args:
        adapter: of the format.
        columns: those of the file, under the recipe's names.
        owner: recipe key of the source.
    """
    rest = [column for column in columns if not adapter.reads(column)]
    pairs = _paired(adapter.missing(columns), rest)
    # names with signs that mean something to YAML come in quotes
    shown = yaml.safe_dump(
        pairs, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    )
    return f"Name the file's own columns with {owner}.columns: {shown.strip()}"


def _paired(names: Collection[str], columns: Collection[str]) -> dict[str, str]:
    """Each name with the column that is most like it, no column twice, of equals the first."""
    rest, pairs = sorted(columns), {}
    for name in names:
        close = nearest_name(name, rest)
        alike = (one for one in rest if _likeness(name, [one]) == _likeness(name, [close or ""]))
        pairs[name] = next(alike, "COLUMN") if close else "COLUMN"
        rest = [one for one in rest if one != pairs[name]]
    return pairs


def _likeness(name: str, columns: Collection[str]) -> float:
    """How like the most similar column a name is, 0 to 1; 1 for one that it begins with."""
    if any(len(column) > 2 and name.startswith(column) for column in columns):
        return 1.0
    ratios = (difflib.SequenceMatcher(None, name, column).ratio() for column in columns)
    return max(ratios, default=0.0)


def _with_alternatives(adapter: Adapter, name: str) -> str:
    """A missing column, with what may stand in its place."""
    group = next((group for group in adapter.any_of if group[0] == name), (name,))
    return name if len(group) == 1 else f"{name} (or {', '.join(group[1:])})"
