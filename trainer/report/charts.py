"""Line charts as SVG text, for pages that load nothing; it must not read files.

Letters: n points of a series.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 44
"""Size of a chart and its margins, in SVG units; text of 14 units is legible on a phone."""
MAX_POINTS = 400
"""More points than that are averaged in equal runs: a screen shows no more."""
SMOOTHING_SHARE = 25
"""The smooth line is a mean over this fraction of the points: n / 25."""
NUM_TICKS = 5
LABEL_WIDTH = 44
"""SVG units that a number such as 1,024 needs."""
ROUNDING = 1e-9
"""Values that differ by less than this share of their size count as equal: means of equal numbers
differ in their last digits."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart under every common colour blindness: Okabe and Ito 2008."""
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 2")
"""A second difference between series, for print."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line."""

    name: str
    """In the legend."""
    x: Sequence[float]
    """Ascending [n]."""
    y: Sequence[float]
    """Finite [n]."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """How the values of a chart are drawn."""

    unit: str = ""
    """Written below the axis."""
    logarithmic: bool = False
    """Equal ratios at equal distances; all values must be above 0."""
    smooth: bool = True
    """Whether single values scatter, so that their running mean is drawn over them."""
    x_name: str = "step"
    """Written below the other axis."""
    halves_x: bool = False
    """Equal ratios of x at equal distances, and each x that occurs under its own label; all must be
    above 0."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps values to SVG units."""

    low: float
    high: float
    start: float
    """Unit of `low`."""
    stop: float
    """Unit of `high`."""

    def __call__(self, value: float) -> float:
        """The unit of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers, about NUM_TICKS of them, from at or below `low` to at or above `high`."""
    size = max(abs(low), abs(high))
    span = high - low if high - low > ROUNDING * size else size or 1.0
    power = 10.0 ** math.floor(math.log10(span / NUM_TICKS))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * NUM_TICKS >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Short numbers, with as many digits as distinguish them: 1200 -> 1,200, 0.00002 -> 2e-05."""
    labels: list[str] = []
    for digits in range(3, 18):
        labels = [_label_of(value, digits) for value in values]
        if len(set(labels)) == len(set(values)):
            break
    return labels


def _label_of(value: float, digits: int) -> str:
    """A number with so many digits, and no fewer before the point than it has."""
    if value == 0:
        return "0"
    if abs(value) >= 1_000:
        return f"{value:,.{digits - 3}f}"
    return f"{value:.{digits}g}"


def thinned(series: Series) -> Series:
    """At most MAX_POINTS points, each the mean of a run of neighbours."""
    run = math.ceil(len(series.x) / MAX_POINTS)
    if run <= 1:
        return series
    starts = range(0, len(series.x), run)
    return Series(
        name=series.name,
        x=[_mean(series.x[start : start + run]) for start in starts],
        y=[_mean(series.y[start : start + run]) for start in starts],
    )


def smoothed(series: Series) -> Series:
    """The mean of each point and as many neighbours on either side."""
    count = len(series.y)
    most = count // SMOOTHING_SHARE // 2
    means = []
    for at in range(count):
        reach = min(most, at, count - 1 - at)
        means.append(_mean(series.y[at - reach : at + reach + 1]))
    return Series(name=series.name, x=series.x, y=means)


def line_chart(title: str, axis: Axis, series: Sequence[Series]) -> str:
    """A chart of one or several series over steps.

    Args:
        title: what is drawn, for screen readers.
        axis: of the values.
        series: at least one, each with at least one point.

    Returns:
        An `<svg>` element that scales to the width of its place, and a legend for several series.
    """
    drawn = [_drawn(one, axis) for one in series]
    ticks_x = _ticks_x(drawn, axis)
    low, high = min(min(s.y) for s in drawn), max(max(s.y) for s in drawn)
    ticks_y = [*range(math.floor(low), math.ceil(high) + 1)] if axis.logarithmic else None
    # All values in one power of ten: finer ticks, which then are no powers of ten.
    ticks_y = ticks_y if ticks_y and len(ticks_y) > 1 else nice_ticks(low, high)
    at_x = Scale(low=ticks_x[0], high=ticks_x[-1], start=LEFT, stop=WIDTH - RIGHT)
    at_y = Scale(low=ticks_y[0], high=ticks_y[-1], start=HEIGHT - BOTTOM, stop=TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *grid(
            _labels_x(ticks_x, at_x, axis), labelled(ticks_y, at_y, logarithmic=axis.logarithmic)
        ),
        label(WIDTH - RIGHT, HEIGHT - 4, axis.x_name, "end"),
        label(4, HEIGHT - 4, axis.unit, "start") if axis.unit else "",
    ]
    for number, one in enumerate(drawn):
        smooth = smoothed(one) if axis.smooth else one
        parts += _lines(svg_path(one, at_x, at_y), svg_path(smooth, at_x, at_y), number)
        if len(one.x) <= SMOOTHING_SHARE:
            parts += _dots(one, at_x, at_y, number)
    return "".join([*parts, "</svg>"]) + (
        legend([one.name for one in drawn]) if len(drawn) > 1 else ""
    )


def _drawn(series: Series, axis: Axis) -> Series:
    """Few enough points, on the axis' own scale."""
    thin = thinned(series)
    y = [math.log10(value) for value in thin.y] if axis.logarithmic else thin.y
    x = [math.log2(value) for value in thin.x] if axis.halves_x else thin.x
    return Series(name=thin.name, x=x, y=y)


def _ticks_x(drawn: Sequence[Series], axis: Axis) -> list[float]:
    """Where the axis of x is labelled, on its own scale, ascending."""
    every = {x for one in drawn for x in one.x}
    return sorted(every) if axis.halves_x else nice_ticks(min(every), max(every))


def _labels_x(ticks: Sequence[float], scale: Scale, axis: Axis) -> dict[float, str]:
    """Place and label of each tick of x; of ticks that are too close the larger is labelled."""
    if not axis.halves_x:
        return labelled(ticks, scale)
    labels: dict[float, str] = {}
    for tick in reversed(ticks):
        if not labels or min(labels) - scale(tick) >= LABEL_WIDTH:
            labels[scale(tick)] = f"{round(2.0**tick):,}"
    return labels


def labelled(
    ticks: Sequence[float], scale: Scale, *, logarithmic: bool = False
) -> dict[float, str]:
    """Place and label of each tick."""
    values = [10.0**tick for tick in ticks] if logarithmic else ticks
    return dict(zip(map(scale, ticks), tick_labels(values), strict=True))


def grid(labels_x: Mapping[float, str], labels_y: Mapping[float, str]) -> list[str]:
    """Horizontal lines, and the numbers of both axes, by their place."""
    parts = []
    for y, text in labels_y.items():
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(label(LEFT - 8, y + 5, text, "end"))
    for x, text in labels_x.items():
        parts.append(label(x, HEIGHT - BOTTOM + 19, text, "middle"))
    return parts


def _lines(raw: str, smooth: str, number: int) -> list[str]:
    """The values thin and pale, their running mean strong, from their SVG paths."""
    colour, dash = look(number)
    pale = [f'<path class="raw" stroke="{colour}" d="{raw}"/>'] if raw != smooth else []
    strong = f'<path class="line" stroke="{colour}" stroke-dasharray="{dash}" d="{smooth}"/>'
    return [*pale, strong]


def _dots(series: Series, at_x: Scale, at_y: Scale, number: int) -> list[str]:
    """A dot for each value."""
    colour, _ = look(number)
    return [
        f'<circle fill="{colour}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3.5"/>'
        for x, y in zip(series.x, series.y, strict=True)
    ]


def svg_path(series: Series, at_x: Scale, at_y: Scale) -> str:
    """SVG path data through all points."""
    points = zip(series.x, series.y, strict=True)
    return "M" + "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in points)


def look(number: int) -> tuple[str, str]:
    """Colour and dash of a series by its place in the legend; 49 of them differ."""
    turn, place = divmod(number, len(COLOURS))
    return COLOURS[place], DASHES[(place + turn) % len(DASHES)]


def legend(names: Sequence[str]) -> str:
    """Names beside samples of their lines."""
    items = []
    for number, name in enumerate(names):
        colour, dash = look(number)
        sample = (
            f'<svg class="sample" viewBox="0 0 34 10"><path class="line" stroke="{colour}" '
            f'stroke-dasharray="{dash}" d="M1 5H33"/></svg>'
        )
        items.append(f"<span>{sample}{escape(name)}</span>")
    return f'<p class="legend">{"".join(items)}</p>'


def label(x: float, y: float, text: str, anchor: str) -> str:
    """Text in a chart; `anchor` is start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
