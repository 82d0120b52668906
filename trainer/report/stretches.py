"""The page's section on the stretches of a run that went on with changes; it must not read."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from trainer.checkpoint.compare import change_lines
from trainer.data.stretch import Stretch, read_stretches
from trainer.report.html import table
from trainer.report.read import Run


def stretches_section(run: Run) -> str:
    """Where each stretch begins and what it has changed; nothing for a run of one."""
    rows = stretch_rows(run_stretches(run.facts), run.facts.get("num_steps") or 0)
    if len(rows) < 2:
        return ""
    note = (
        "Each stretch is planned by its own recipe and data; streams of rows go on from one to the "
        "next. The recipe below is that of the last one."
    )
    head = ("steps", "what changed")
    return f'<h2>Stretches</h2>{table(head, rows, num_names=2)}<p class="note">{note}</p>'


def run_stretches(facts: Mapping[str, Any]) -> tuple[Stretch, ...]:
    """The stretches that `run.json` has; none of an older release or where they are damaged."""
    try:
        return read_stretches(facts.get("stretches") or ())
    except (LookupError, TypeError, ValueError, AttributeError):
        return ()


def stretch_rows(stretches: Sequence[Stretch], num_steps: int) -> list[tuple[str, str]]:
    """Steps of each stretch, counted from 0, and its changes in one line.

    Args:
        stretches: of a run, in order.
        num_steps: steps of the whole run.
    """
    if not stretches:
        return []
    ends = [*(one.first_step for one in stretches[1:]), num_steps]
    spans = [f"{one.first_step:,} to {end - 1:,}" for one, end in zip(stretches, ends, strict=True)]
    changes = ["; ".join(change_lines(*pair)) or "nothing" for pair in pairwise(stretches)]
    return list(zip(spans, ["-", *changes], strict=True))
