"""Charts of what training did to the vectors: one task's score against the other's, and cosines.

SVG text for pages that load nothing; it must not read files.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from trainer.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    Series,
    grid,
    label,
    labelled,
    legend,
    look,
    nice_ticks,
    svg_path,
)

KINDS = ("positive", "negative", "random")
"""Pairs whose cosines are drawn, in the order of the legend."""


def trade_off_chart(title: str, names: tuple[str, str], paths: Sequence[Series]) -> str:
    """The way of each run through the plane of two scores, from a ring to a filled dot.

    Args:
        title: what is drawn, for screen readers.
        names: of the scores, to the right and upwards.
        paths: scores of each run's evaluations in order; x and y may go back and forth.

    Returns:
        An `<svg>` element, and a legend for several runs.
    """
    across = nice_ticks(min(min(p.x) for p in paths), max(max(p.x) for p in paths))
    upwards = nice_ticks(min(min(p.y) for p in paths), max(max(p.y) for p in paths))
    at_x = Scale(low=across[0], high=across[-1], start=LEFT, stop=WIDTH - RIGHT)
    at_y = Scale(low=upwards[0], high=upwards[-1], start=HEIGHT - BOTTOM, stop=TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *grid(labelled(across, at_x), labelled(upwards, at_y)),
        label(WIDTH - RIGHT, HEIGHT - 4, f"{names[0]} →", "end"),
        label(4, HEIGHT - 4, f"↑ {names[1]}", "start"),
    ]
    for number, path in enumerate(paths):
        parts += _way(path, at_x, at_y, number)
    more = legend([path.name for path in paths]) if len(paths) > 1 else ""
    return "".join([*parts, "</svg>"]) + more


def _way(path: Series, at_x: Scale, at_y: Scale, number: int) -> list[str]:
    """Line and dots of one run: a ring where it began, the largest dot where it ended."""
    colour, dash = look(number)
    drawn = svg_path(path, at_x, at_y)
    parts = [f'<path class="line" stroke="{colour}" stroke-dasharray="{dash}" d="{drawn}"/>']
    last = len(path.x) - 1
    for index, (x, y) in enumerate(zip(path.x, path.y, strict=True)):
        place = f'cx="{at_x(x):.1f}" cy="{at_y(y):.1f}"'
        if index == 0:
            parts.append(f'<circle fill="#fff" stroke="{colour}" stroke-width="2" {place} r="5"/>')
        else:
            parts.append(f'<circle fill="{colour}" {place} r="{6 if index == last else 3}"/>')
    return parts


def histogram_chart(title: str, counts: Mapping[str, Sequence[int]], *, low: float) -> str:
    """Shares of cosines of positive, negative and random pairs, outlines over each other.

    Args:
        title: what is drawn, for screen readers.
        counts: pairs in equal bins from -1 to 1, by kind; a kind without pairs is left out.
        low: where the axis begins, from `lowest_cosine`, so that charts can be compared.

    Returns:
        An `<svg>` element; its legend is `cosine_legend`.
    """
    shares = {kind: _shares(counts[kind]) for kind in KINDS if sum(counts.get(kind, ()))}
    top = max((max(values) for values in shares.values()), default=1.0)
    ticks = nice_ticks(0.0, top)
    at_x = Scale(low=low, high=1.0, start=LEFT, stop=WIDTH - RIGHT)
    at_y = Scale(low=0.0, high=ticks[-1], start=HEIGHT - BOTTOM, stop=TOP)
    across = [tick / 2 for tick in range(round(2 * low), 3)]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *grid(labelled(across, at_x), {at_y(t): f"{t:.0%}" for t in ticks}),
        label(WIDTH - RIGHT, HEIGHT - 4, "cosine", "end"),
        label(4, HEIGHT - 4, "share of pairs", "start"),
    ]
    for kind, values in shares.items():
        colour, dash = look(KINDS.index(kind))
        outline = _outline(values, low, at_x, at_y)
        parts.append(f'<path fill="{colour}" fill-opacity=".12" d="{outline}Z"/>')
        parts.append(
            f'<path class="line" stroke="{colour}" stroke-dasharray="{dash}" d="{outline}"/>'
        )
    return "".join([*parts, "</svg>"])


def cosine_legend() -> str:
    """Names of the outlines of `histogram_chart`."""
    return legend([f"{kind} pairs" for kind in KINDS])


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total for count in counts]


def lowest_cosine(histograms: Iterable[Mapping[str, Sequence[int]]]) -> float:
    """-1, or the largest of -0.5 and 0 below which no histogram has a pair."""
    every = [counts for one in histograms for counts in one.values()]
    for low in (0.0, -0.5):
        if not any(any(counts[: _first_bin(counts, low)]) for counts in every):
            return low
    return -1.0


def _first_bin(values: Sequence[float], low: float) -> int:
    """The bin that begins at or before a cosine."""
    return int((low + 1) / 2 * len(values))


def _outline(values: Sequence[float], low: float, at_x: Scale, at_y: Scale) -> str:
    """SVG path along the tops of the bars from a cosine to 1."""
    first, width = _first_bin(values, low), 2 / len(values)
    steps = [f"M{at_x(low):.1f} {at_y(0):.1f}"]
    for index in range(first, len(values)):
        right = min(1.0, -1 + (index + 1) * width)
        steps.append(f"V{at_y(values[index]):.1f}H{at_x(right):.1f}")
    return "".join([*steps, f"V{at_y(0):.1f}"])
