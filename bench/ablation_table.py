"""The ablation as text: means over seeds with their spread; it must not train or score."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from bench.ablation_data import HeldOut

Scored = Mapping[str, float]
"""Scores of a model, by set."""
Results = Mapping[str, Sequence[Scored]]
"""Scores of each seed, by variant."""

UNTOUCHED = "untouched"


def render(results: Results, held_out: Sequence[HeldOut]) -> str:
    """The table: absolute values of the untouched backbone, changes from it for all others.

    Args:
        results: may lack variants and seeds that are still to be made.
        held_out: the scored sets; a domain without any has no column.

    Returns:
        Lines of text; changes in hundredths (points), mean over seeds and standard deviation.
    """
    if UNTOUCHED not in results:
        return "nothing scored yet"
    base = _columns(results[UNTOUCHED][0], held_out)
    width = max(map(len, results))
    lines = [
        f"{'variant':{width}}  seeds" + "".join(f"{name:>15}" for name in base),
        f"{UNTOUCHED:{width}}      -" + "".join(f"{100 * one:15.2f}" for one in base.values()),
    ]
    for variant, seeds in results.items():
        if variant != UNTOUCHED:
            found = [_columns(scores, held_out) for scores in seeds]
            cells = [_change([one[name] - base[name] for one in found]) for name in base]
            lines.append(f"{variant:{width}}  {len(seeds):5}" + "".join(cells))
    legend = [
        "",
        "Points (hundredths) of Spearman (STS) and nDCG@10 (IR); below the first line: change from",
        "the untouched backbone, mean +- standard deviation over seeds. In domain: "
        + ", ".join(one.name for one in held_out if one.domain == "in")
        + "; out of domain: "
        + ", ".join(one.name for one in held_out if one.domain == "out")
        + ".",
    ]
    return "\n".join(lines + legend)


def by_set(results: Results) -> dict[str, dict[str, list[float]]]:
    """Variant to set to the values of its seeds."""
    return {
        variant: {name: [one[name] for one in seeds] for name in seeds[0]}
        for variant, seeds in results.items()
    }


def _columns(scores: Scored, held_out: Sequence[HeldOut]) -> dict[str, float]:
    """Mean over the sets of each task and domain, and over its domains alike."""
    columns: dict[str, float] = {}
    for task in ("sts", "ir"):
        found = {}
        for domain in ("in", "out"):
            sets = [one.name for one in held_out if (one.task, one.domain) == (task, domain)]
            if sets:
                found[f"{task.upper()} {domain}"] = fmean(scores[name] for name in sets)
        columns |= found | {f"{task.upper()} mean": fmean(found.values())}
    return columns


def _change(values: Sequence[float]) -> str:
    """Mean and spread of changes, in points."""
    spread = f" +-{100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{f'{100 * fmean(values):+.2f}{spread}':>15}"
