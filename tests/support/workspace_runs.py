"""Runs of a workspace's recipe by forked ranks, and what two of them are compared by."""

import json
from pathlib import Path
from typing import Any

from tests.support.forked import Ended, finish_forked

CLOCK = ("seconds", "tokens_per_sec")
"""Of a line of metrics.jsonl: what differs between equal runs."""


def run(workspace: Path, name: str, *arguments: str, ranks: int = 2) -> Ended:
    """The recipe of a workspace, run into a folder of this name; the cache is shared."""
    recipe = ("--recipe", str(workspace / "recipe.yaml"), f"output_dir={workspace / name}")
    cache = str(workspace / "cache")
    return finish_forked(workspace, *recipe, *arguments, ranks=ranks, TRAINER_CACHE_DIR=cache)


def steps(folder: Path) -> list[dict[str, Any]]:
    """What a run measured, without its clock."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def weights(folder: Path) -> bytes:
    """The exported weights of a run."""
    return (folder / "model" / "model.safetensors").read_bytes()
