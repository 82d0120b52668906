"""The page on a search over merges: what each candidate scored, and the trade-off of two kinds."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from trainer.errors import DataError
from trainer.report.charts import Series
from trainer.report.html import framed, page, table
from trainer.report.vector_charts import trade_off_chart

RECORD, PAGE = "search.json", "search.html"
FRONT = "no other is better at both"
"""Name of the candidates that are not dominated."""


def write_search_page(folder: Path) -> Path:
    """Write the page into the folder of a merge that was searched for.

    Args:
        folder: holds `search.json`.

    Raises:
        DataError: there is no such file, or it is damaged.
        OSError: the page cannot be written.
    """
    record = folder / RECORD
    try:
        text = search_page(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{record}: content = unreadable ({error!r:.80}); expected the record of a search. "
            "Merge again."
        ) from error
    (folder / PAGE).write_text(text, encoding="utf-8")
    return folder / PAGE


def search_page(record: Mapping[str, Any]) -> str:
    """The page as HTML, from the content of `search.json`."""
    kinds, tried = record["kinds"], record["tried"]
    names = list(dict.fromkeys(kinds.values()))
    head = ("merge", "mean of kinds", *kinds, "seconds")
    rows = [
        (
            one["name"],
            _number(one["value"]),
            *(_number(_main(one, name)) for name in kinds),
            f"{one['seconds']:.0f}",
        )
        for one in sorted(tried, key=_rank, reverse=True)
    ]
    inputs = ", ".join(record["checkpoints"])
    rule = " among those that fall below the base on no set" if record.get("keep_base") else ""
    return page(
        "Search over merges",
        [
            "<h1>Search over merges</h1>",
            f'<p class="note">Of {escape(inputs)} on {escape(record["base"])}. The result is '
            f"<b>{escape(record['best'])}</b>, the best of {len(tried)}{rule}.</p>",
            _trade_off(tried, kinds, names) if len(names) > 1 else "",
            "<h2>What was tried</h2>",
            table(head, rows),
        ],
    )


def _trade_off(tried: Sequence[Any], kinds: Mapping[str, str], names: Sequence[str]) -> str:
    """Means of the first two kinds of every candidate, the front as a line."""
    points: dict[str, tuple[float, float]] = {}
    for one in tried:
        x, y = (_mean(one, kinds, name) for name in names[:2])
        if x is not None and y is not None:
            points[one["name"]] = (x, y)
    if not points:
        return ""
    best = sorted(front(points), key=points.__getitem__)
    paths = [
        Series(name=FRONT, x=[points[n][0] for n in best], y=[points[n][1] for n in best]),
        *(Series(name=n, x=[points[n][0]], y=[points[n][1]]) for n in points if n not in best),
    ]
    title = f"{names[1]} against {names[0]}: {', '.join(best)}"
    axes = (f"mean {names[0]} score", f"mean {names[1]} score")
    return framed(title, trade_off_chart(title, axes, paths))


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The candidates that no other equals or beats in both kinds, and beats in one."""
    return [
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]


def _mean(one: Mapping[str, Any], kinds: Mapping[str, str], kind: str) -> float | None:
    values = [_main(one, name) for name, its in kinds.items() if its == kind]
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _main(one: Mapping[str, Any], name: str) -> float | None:
    """The main metric of a set."""
    value: float | None = next(iter(one["sets"][name].values()))
    return value


def _rank(one: Mapping[str, Any]) -> float:
    return -1e9 if one["value"] is None else float(one["value"])


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
