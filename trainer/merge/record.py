"""The record of a merge: `merge.json`, and `merge.html` with weights by layer and module."""

import html
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import __version__
from trainer.checkpoint.open import file_hash
from trainer.merge.merge_plan import MergePlan
from trainer.merge.settings import FORMULAS, MergeSettings
from trainer.merge.stream import Outcome

LAYER = re.compile(
    r"(?P<before>.*?)(?:layers|layer|h|block|blocks)\.(?P<layer>\d+)\.(?P<module>.+)"
)
PALETTE = ((0, 34, 78), (65, 77, 107), (124, 123, 120), (188, 175, 111), (254, 232, 56))
"""Dark blue over grey to yellow in even steps of brightness, for colour-blind readers."""
CELL_WIDTH, CELL_HEIGHT, LEFT = 34, 16, 70
LIGHT = 0.6
"""Share of the palette from which black text is read better than white."""
LABEL_HEIGHT = 5
"""Room above the cells per letter of the longest label, which stands slantwise."""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Merge</title>
<style>body{{font:14px sans-serif;margin:2em;color:#222}}text{{font-size:11px}}
td,th{{padding:2px 10px;text-align:left}}code{{background:#eee;padding:1px 4px}}</style>
<h1>Merge of {count} checkpoints</h1>
<p>Method <code>{method}</code>: <code>{formula}</code></p>
<table>{settings}</table>
<p>A cell is the checkpoint's weight in one tensor (under <code>ties</code> the share of elements
it took part in). Point at a cell for its numbers. Empty cells: no such tensor, or none moved.</p>
{maps}
</html>
"""


def merge_json(
    plan: MergePlan, settings: MergeSettings, outcomes: Mapping[str, Outcome], folder: Path
) -> dict[str, Any]:
    """Content of `merge.json`.

    Args:
        plan: what was merged.
        settings: how.
        outcomes: norms and weights by tensor.
        folder: where the shards lie; read whole if settings ask for hashes.
    """
    hashes = {one.name: file_hash(folder / one.name) for one in plan.shards if settings.hash_files}
    tensors = {
        name: {"norms": list(outcome.norms), "weights": list(outcome.weights)}
        for name, outcome in outcomes.items()
    }
    return {
        "format": 1,
        "program": f"codiemb-trainer {__version__}",
        "method": settings.method,
        "formula": FORMULAS[settings.method],
        "settings": settings.recorded(),
        "base": plan.identities[0],
        "checkpoints": list(plan.identities[1:]),
        "left_out": list(plan.left_out),
        **({"averaged": list(plan.averaged)} if plan.averaged else {}),
        "tensors": tensors,
        **({"output_sha256": hashes} if hashes else {}),
    }


def merge_html(content: Mapping[str, Any]) -> str:
    """A page without dependencies: one heatmap per checkpoint.

    Args:
        content: what `merge_json` gave.
    """
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in content["settings"].items()
    )
    return PAGE.format(
        count=len(content["checkpoints"]),
        method=content["method"],
        formula=html.escape(content["formula"]),
        settings=rows,
        maps=heatmaps(content),
    )


def heatmaps(content: Mapping[str, Any]) -> str:
    """The legend and a heatmap of weights by layer and module for each checkpoint, as HTML.

    Args:
        content: what `merge_json` gave.
    """
    cells = _cells(content["tensors"])
    weights = [abs(w) for one in content["tensors"].values() for w in one["weights"]]
    top = max(weights, default=1.0) or 1.0
    maps = [
        f"<h3>{html.escape(str(checkpoint['path']))}</h3>{_heatmap(cells, index, top)}"
        for index, checkpoint in enumerate(content["checkpoints"])
    ]
    return "\n".join([f"<p>{_legend(top)}</p>", *maps])


def _cells(tensors: Mapping[str, Any]) -> dict[tuple[str, str], tuple[str, Any]]:
    """Tensor and its numbers by (row, column): layer and module, or `other` and the whole name."""
    cells: dict[tuple[str, str], tuple[str, Any]] = {}
    for name, numbers in tensors.items():
        match = LAYER.fullmatch(name)
        place = (match["layer"], match["before"] + match["module"]) if match else ("other", name)
        cells[place] = (name, numbers)
    return cells


def _heatmap(cells: Mapping[tuple[str, str], tuple[str, Any]], index: int, top: float) -> str:
    by_row: dict[str, list[str]] = defaultdict(list)
    for row, column in cells:
        by_row[row].append(column)
    layers = sorted((row for row in by_row if row != "other"), key=int)
    columns = list(dict.fromkeys(column for row in layers for column in by_row[row]))
    in_layers = {row: by_row[row] for row in layers}
    parts = [_svg(cells, in_layers, columns, index, top)] if layers else []
    if by_row.get("other"):
        parts.append(_svg(cells, {"other": by_row["other"]}, by_row["other"], index, top))
    return "<br>".join(parts)


def _svg(
    cells: Mapping[tuple[str, str], tuple[str, Any]],
    rows: Mapping[str, Sequence[str]],
    columns: Sequence[str],
    index: int,
    top: float,
) -> str:
    above = 20 + LABEL_HEIGHT * max(len(column.removesuffix(".weight")) for column in columns)
    width, height = LEFT + CELL_WIDTH * len(columns) + above, above + CELL_HEIGHT * len(rows) + 5
    places = {column: i for i, column in enumerate(columns)}
    parts = [f'<svg width="{width}" height="{height}" role="img">']
    for i, column in enumerate(columns):
        x, label = LEFT + CELL_WIDTH * i + 20, html.escape(column.removesuffix(".weight"))
        parts.append(f'<text transform="translate({x},{above - 5}) rotate(-50)">{label}</text>')
    for j, row in enumerate(rows):
        y = above + CELL_HEIGHT * j
        parts.append(f'<text x="{LEFT - 6}" y="{y + 12}" text-anchor="end">{row}</text>')
        for column in rows[row]:
            x = LEFT + CELL_WIDTH * places[column]
            parts.append(_cell(*cells[row, column], index, (x, y), top))
    return "".join([*parts, "</svg>"])


def _cell(name: str, numbers: Any, index: int, at: tuple[int, int], top: float) -> str:
    weight, norm = numbers["weights"][index], numbers["norms"][index]
    moved, share = any(numbers["norms"]), abs(weight) / top
    tip = html.escape(f"{name}: weight {weight:.4f}, norm {norm:.4g}")
    return (
        f'<rect x="{at[0]}" y="{at[1]}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" '
        f'fill="{_colour(share) if moved else "#fff"}" stroke="#ccc"><title>{tip}</title></rect>'
        f'<text x="{at[0] + 4}" y="{at[1] + 11}" style="font-size:10px" pointer-events="none" '
        f'fill="{"#fff" if share < LIGHT else "#000"}">{f"{weight:.2f}" if moved else ""}</text>'
    )


def _colour(share: float) -> str:
    """Colour for a share of 0 to 1, between the palette's steps."""
    place = min(max(share, 0.0), 1.0) * (len(PALETTE) - 1)
    index = min(int(place), len(PALETTE) - 2)
    low, high, part = PALETTE[index], PALETTE[index + 1], place - index
    mixed = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{one:02x}" for one in mixed)


def _legend(top: float) -> str:
    steps = [
        f'<span style="background:{_colour(i / 4)};color:{"#fff" if i / 4 < LIGHT else "#000"};'
        f'padding:2px 10px">{top * i / 4:.3g}</span>'
        for i in range(5)
    ]
    return "".join(steps)
