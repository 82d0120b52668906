"""The ablation as text: means over seeds with their spread; it must not train or score."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

from tools.bench._ablation_data import HELD_OUT

Results = Mapping[str, Sequence[Mapping[str, float]]]
"""Scores by set, one for each seed, by variant."""

UNTOUCHED = "untouched"


def _mean_of(task: str, domain: str | None = None) -> Callable[[Mapping[str, float]], float]:
    """Mean over the sets of a task, of one domain or of both alike."""
    domains = [domain] if domain else ["in", "out"]

    def mean(scores: Mapping[str, float]) -> float:
        return fmean(
            fmean(scores[one.name] for one in HELD_OUT if (one.task, one.domain) == (task, where))
            for where in domains
        )

    return mean


COLUMNS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "STS in": _mean_of("sts", "in"),
    "STS out": _mean_of("sts", "out"),
    "STS mean": _mean_of("sts"),
    "IR in": _mean_of("ir", "in"),
    "IR out": _mean_of("ir", "out"),
    "IR mean": _mean_of("ir"),
}


def render(results: Results) -> str:
    """The table: absolute values of the untouched backbone, changes from it for all others.

    Args:
        results: may lack variants and seeds that are still to be made.

    Returns:
        Lines of text; changes in hundredths (points), mean over seeds and standard deviation.
    """
    if UNTOUCHED not in results:
        return "nothing scored yet"
    base = results[UNTOUCHED][0]
    width = max(map(len, results))
    lines = [
        f"{'variant':{width}}  seeds" + "".join(f"{name:>15}" for name in COLUMNS),
        f"{UNTOUCHED:{width}}      -"
        + "".join(f"{100 * column(base):15.2f}" for column in COLUMNS.values()),
    ]
    for variant, seeds in results.items():
        if variant != UNTOUCHED:
            cells = [
                _change([column(one) - column(base) for one in seeds])
                for column in COLUMNS.values()
            ]
            lines.append(f"{variant:{width}}  {len(seeds):5}" + "".join(cells))
    legend = [
        "",
        "Points (hundredths) of Spearman (STS) and nDCG@10 (IR); below the first line: change from",
        "the untouched backbone, mean +- standard deviation over seeds. In domain: "
        + ", ".join(one.name for one in HELD_OUT if one.domain == "in")
        + "; out of domain: "
        + ", ".join(one.name for one in HELD_OUT if one.domain == "out")
        + ".",
    ]
    return "\n".join(lines + legend)


def _change(values: Sequence[float]) -> str:
    """Mean and spread of changes, in points."""
    spread = f" +-{100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{f'{100 * fmean(values):+.2f}{spread}':>15}"
