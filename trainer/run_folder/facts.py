"""`run.json` of an output folder: where a run was made and what it draws from.

It must not import torch: the page on a run reads these facts.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer import __version__
from trainer.data.plan import Exposure
from trainer.data.stretch import Stretch, plain_stretches, read_stretches
from trainer.run_folder.layout import RunFolder


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the recipe does not say."""

    num_ranks: int
    """Processes of the run."""
    device: str
    """Kind of device, and its name where it has one."""
    num_steps: int
    """Steps of the whole run."""
    exposure: Sequence[Exposure]
    """How often each source is seen in these steps."""
    scored_rows: Mapping[str, int]
    """Rows with a teacher's scores of each source that has any."""
    libraries: Mapping[str, str]
    """Releases that shape the numbers."""
    stretches: Sequence[Stretch]
    """Parts of the run, each with its recipe and data."""


def write_run_facts(folder: Path, facts: RunFacts) -> None:
    """Write `run.json`, replacing that of an interrupted part of the same run."""
    content = {
        "environment": {
            "ranks": facts.num_ranks,
            "device": facts.device,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
            "codiemb-trainer": __version__,
            **facts.libraries,
        },
        "num_steps": facts.num_steps,
        "exposure": [asdict(one) for one in facts.exposure],
        "scored_rows": dict(facts.scored_rows),
        "stretches": plain_stretches(facts.stretches),
    }
    target = RunFolder(folder).facts
    partial = target.with_name(f".{target.name}")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, target)


def read_run_stretches(folder: Path) -> tuple[Stretch, ...]:
    """The stretches of `run.json`; none where it is missing, damaged or of an older release."""
    try:
        content = json.loads(RunFolder(folder).facts.read_text(encoding="utf-8"))
        return read_stretches(content["stretches"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ()
