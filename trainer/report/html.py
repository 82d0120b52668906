"""The frame of the page on a run: head, style and figures; it must not read files."""

from collections.abc import Iterable, Sequence
from html import escape

from trainer.report.charts import Axis, Series, line_chart

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; }
.note { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; max-width: 44rem; }
.maps svg { width: auto; height: auto; max-width: none; }
.maps { overflow-x: auto; }
.maps h3, .pair h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
.charts { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 1rem 0 0; break-inside: avoid; max-width: 34rem; }
figcaption { font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, th.left, td.left { text-align: left; }
th { font-weight: 600; border-bottom: 2px solid #888; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 14px system-ui, sans-serif; fill: #444; }
svg .grid { stroke: #e2e2e2; }
svg .raw { fill: none; stroke-width: 1; opacity: .3; }
svg .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.legend span { margin-right: 1.25rem; white-space: nowrap; }
.legend .sample { display: inline-block; width: 34px; vertical-align: middle; margin-right: .4rem; }
pre { background: #f5f5f5; padding: .75rem; overflow-x: auto; font-size: .85rem; }
@media (max-width: 30rem) { table { font-size: .8rem; } th, td { padding: .3rem .25rem; } }
@media print {
  body { max-width: none; font-size: 11pt; padding: 0; }
  h2, h3, h2 + p, thead, figcaption { break-after: avoid; }
  tr, figure, .legend { break-inside: avoid; }
  details::details-content { content-visibility: visible; }
  .charts { display: block; } .charts figure { display: inline-block; width: 48%; }
  .wide, .maps { overflow: visible; max-width: none; }
  pre { white-space: pre-wrap; }
}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page that loads nothing.

    Args:
        title: plain text.
        parts: HTML; empty ones are left out.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # an empty icon: browsers would ask a server for one
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def figure(title: str, axis: Axis, series: Sequence[Series]) -> str:
    """A line chart under its title; nothing where there is nothing to draw."""
    return framed(title, line_chart(title, axis, series)) if series else ""


def framed(title: str, chart: str) -> str:
    """A chart under its title."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"


def charts(figures: Iterable[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="charts">{"".join(figures)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, num_names: int = 1) -> str:
    """A table of plain text.

    Args:
        head: names of the columns.
        rows: as many cells each.
        num_names: leading columns that hold words; the others hold numbers.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        marks = [' class="left"' if index < num_names else "" for index in range(len(cells))]
        parts = [
            f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True)
        ]
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table>{line(head, "th")}{body}</table></div>'
