"""What an update gained on the new held-out sets and lost on the old ones: record, table and page.

It must not score anything.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any, Literal

from tools.evaluate import Results, columns
from trainer.recipe.eval_kinds import EVAL_KINDS, metric_label
from trainer.recipe.schema import EvalSetRecipe
from trainer.report import html

OLD, UPDATED, MERGED = "old", "updated", "merged"
"""The three models: that of the old run, the one trained now, and both in one."""
Side = Literal["new", "old"]
"""Of which recipe a held-out set is."""
HEAD = ("set", "of", *(OLD, UPDATED, MERGED), "change")
SOURCE_HEAD = ("source", "of", "task", "rows", "all rows", "steps")


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """The main metric of a held-out set by each model, NaN where it is not defined."""

    name: str
    of: Side
    metric: str
    old: float
    updated: float
    merged: float

    @property
    def change(self) -> float:
        """How much higher the merged model scores than the old one."""
        return self.merged - self.old


def set_scores(
    scores: Mapping[str, Results],
    new: Sequence[EvalSetRecipe],
    old: Sequence[EvalSetRecipe],
) -> list[SetScores]:
    """The main metric of every set, those of the new recipe first.

    Args:
        scores: metrics by set, of each of the three models.
        new: sets of the new recipe alone.
        old: sets of the old run.
    """
    of_sides: tuple[tuple[Side, Sequence[EvalSetRecipe]], ...] = (("new", new), ("old", old))
    found = []
    for side, sets in of_sides:
        for one in sets:
            metric = EVAL_KINDS[one.task].main_metric
            values = {name: results[one.name][metric] for name, results in scores.items()}
            found.append(SetScores(name=one.name, of=side, metric=metric, **values))
    return found


def gained(lines: Sequence[SetScores], model: str) -> float:
    """Mean over the new sets of how much higher a model scores than the old one; NaN without any.

    Args:
        lines: from `set_scores`.
        model: `updated` or `merged`.
    """
    changes = [getattr(line, model) - line.old for line in lines if line.of == "new"]
    return fmean(changes) if changes else math.nan


def lost(lines: Sequence[SetScores], model: str) -> float:
    """The same of the old sets, as what is lost: negative where the model scores higher."""
    changes = [line.old - getattr(line, model) for line in lines if line.of == "old"]
    return fmean(changes) if changes else math.nan


def gains(lines: Sequence[SetScores]) -> dict[str, Any]:
    """What JSON has of the sets and their means, None where something is not defined."""
    return {
        "sets": [
            {
                "name": line.name,
                "of": line.of,
                "metric": line.metric,
                **{key: _plain(getattr(line, key)) for key in (OLD, UPDATED, MERGED, "change")},
            }
            for line in lines
        ],
        "gained": {model: _plain(gained(lines, model)) for model in (UPDATED, MERGED)},
        "lost": {model: _plain(lost(lines, model)) for model in (UPDATED, MERGED)},
    }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def gains_text(lines: Sequence[SetScores]) -> str:
    """The table and both means, in points: hundredths of a metric."""
    return "\n".join([columns([HEAD, *_rows(lines)]), "", *_sentences(lines)])


def gains_page(
    lines: Sequence[SetScores], facts: Mapping[str, str], sources: Sequence[Mapping[str, Any]]
) -> str:
    """The page on an update as HTML.

    Args:
        lines: from `set_scores`.
        facts: what was done, by a few words each.
        sources: what was trained on, with the same keys each.
    """
    return html.page(
        "Update of a model",
        [
            "<h1>Update of a model</h1>",
            *(f"<p>{escape(sentence)}</p>" for sentence in _sentences(lines)),
            "<h2>Held-out sets</h2>",
            html.table(HEAD, _rows(lines), num_names=2),
            '<p class="note">Change: of the merged model against the old one.</p>',
            "<h2>What was done</h2>",
            html.table(("what", "how"), list(facts.items()), num_names=2),
            "<h2>What was trained on</h2>",
            html.table(SOURCE_HEAD, source_rows(sources), num_names=3),
        ],
    )


def source_rows(sources: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Cells below `SOURCE_HEAD`; what is not known yet is a question mark."""
    return [
        tuple("?" if value is None else str(value) for value in source.values())
        for source in sources
    ]


def _rows(lines: Sequence[SetScores]) -> Iterator[tuple[str, ...]]:
    for line in lines:
        values = (line.old, line.updated, line.merged)
        yield (
            f"{line.name}, {metric_label(line.metric)}",
            line.of,
            *(f"{value:.4f}" for value in values),
            f"{line.change:+.4f}",
        )


def _sentences(lines: Sequence[SetScores]) -> Iterator[str]:
    for side, verb, mean in (("new", "gained", gained), ("old", "lost", lost)):
        number = sum(line.of == side for line in lines)
        if number:
            merged, updated = (100 * mean(lines, model) for model in (MERGED, UPDATED))
            yield (
                f"{verb} on the {side}: {merged:.2f} points, the mean of {number} held-out "
                f"set{'s' if number > 1 else ''}; {updated:.2f} before merging"
            )
        else:
            yield f"{verb} on the {side}: not known, as no held-out set is {side}"
