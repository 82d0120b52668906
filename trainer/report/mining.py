"""The page on a mining: cosines of positives and negatives, what was left out, rows to read."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.report.html import charts, framed, page, table
from trainer.report.vector_charts import histogram_chart, lowest_cosine

REASONS = {
    "known": "answers the query, or is its own text",
    "absolute_margin": "too near to the positive (absolute margin)",
    "relative_margin": "too near to the positive (relative margin)",
    "max_score": "above the highest cosine",
    "guide_margin": "scored too near to the positive by the guide or cross-encoder",
    "skipped": "among the nearest that are left out",
}
"""What each reason for leaving a candidate out is called."""
INFORMATION = (
    "Effective contrastive information is what a query's negatives can tell at most, ln(1 + n), "
    "times the harmonic mean of how hard and how safe they are. Compare minings of one source by "
    "one model: cosines of another model lie elsewhere."
)
"""What the quality metric says; its parts and sources stand in trainer/mining/quality.py."""


def write_mining_page(output: Path) -> Path:
    """Write the page beside the rows of a mining.

    Args:
        output: file of rows, beside which its record stands.

    Returns:
        The page.

    Raises:
        DataError: there is no record, or it is damaged.
        OSError: the page cannot be written.
    """
    record = output.with_name(f"{output.name}.json")
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        text = mining_page(output.name, content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{record}: content = unreadable ({error!r:.80}); expected the record of a mining. "
            "Mine again."
        ) from error
    made = output.with_name(f"{output.name}.html")
    made.write_text(text, encoding="utf-8")
    return made


def mining_page(name: str, record: Mapping[str, Any]) -> str:
    """The page as HTML, from the record of a mining."""
    counts = {"positive": record["positives"], "negative": record["negatives"]}
    how = {**record["settings"], "search": record["search"]}
    title = "Cosines of queries with what answers them, and with their negatives"
    drawn = histogram_chart(title, counts, low=lowest_cosine([counts]))
    return page(
        f"Negatives of {name}",
        [
            f"<h1>Negatives of {escape(name)}</h1>",
            f'<p class="note">{escape(_summary(record))}</p>',
            charts([framed(title, drawn)]),
            "<h2>How much they can teach</h2>",
            f'<p class="note">{INFORMATION}</p>',
            table(("of a query's negatives, on average", ""), _information(record)),
            "<h2>Left out</h2>",
            table(
                ("candidates that were left out", "number"),
                [(REASONS[key], f"{count:,}") for key, count in record["left_out"].items()],
            ),
            "<h2>Rows to read</h2>",
            *map(_example, record["examples"]),
            "<h2>How</h2>",
            f"<pre>{escape(json.dumps(how, indent=1))}</pre>",
        ],
    )


def _summary(record: Mapping[str, Any]) -> str:
    number = sum(record["negatives"])
    share = record["above_positive"] / number if number else 0.0
    return (
        f"{number:,} negatives for {record['queries']:,} queries among {record['passages']:,} "
        f"passages, by {record['model']}. {record['queries_without']:,} queries have none. "
        f"{share:.1%} of the negatives are nearer to the query than its least similar positive, "
        "and so likely answer it too." + _by_teacher(record, number)
    )


def _by_teacher(record: Mapping[str, Any], number: int) -> str:
    """What a guide or cross-encoder says of the negatives, if one scored them."""
    teacher = record.get("guide", record.get("cross_encoder"))
    if teacher is None:
        return ""
    share = record["above_by_teacher"] / number if number else 0.0
    return f" {teacher} scored all pairs; it finds {share:.1%} better than a positive."


def _information(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parts of effective contrastive information."""
    parts = record["effective_contrastive_information"]
    return [
        ("effective contrastive information, nats", f"{parts['mean_nats']:.3f}"),
        ("capacity: ln(1 + n), nats", f"{parts['capacity_nats']:.3f}"),
        ("hardness: mean cosine, 0 to 1", f"{parts['hardness']:.3f}"),
        ("safety: margin of the hardest below the positive, 0 to 1", f"{parts['safety']:.3f}"),
    ]


def _example(line: Mapping[str, Any]) -> str:
    """One row: its query, a positive, and its negatives with their cosines."""
    rows = [("positive", str(line["positives"][0]), "")]
    scores = line["mined_scores"]
    rows += [("negative", text, f"{score:.3f}")
             for text, score in zip(line["negatives"], scores, strict=True)]  # fmt: skip
    head = ("", str(line["query"]), "cosine")
    if "positive_scores" in line:
        given = (line["positive_scores"][0], *line["negative_scores"])
        both = zip(rows, given, strict=True)
        return table((*head, "teacher"), [(*row, f"{one:.3f}") for row, one in both], num_names=2)
    return table(head, rows, num_names=2)
