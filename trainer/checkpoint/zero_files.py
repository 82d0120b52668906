"""Which files of a tag folder belong to which rank; it must not open them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse, islice
from pathlib import Path

from trainer.errors import CheckpointError

STATE_FILE = re.compile(
    r"(?P<bf16>bf16_)?(zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<mp>\d+)_"
    r"(?P<kind>model|optim)_states\.pt"
)
MAX_NAMED = 5
"""Missing files that a message names."""
FOREIGN_FILE = re.compile(r"(layer_|expert_|expp_).*\.pt")


@dataclass(frozen=True)
class ZeroFiles:
    """Files of one saving."""

    model: tuple[Path, ...]
    """By rank at stage 3, one otherwise."""
    optim: tuple[Path, ...]
    """By rank."""

    @property
    def by_rank(self) -> tuple[tuple[Path, ...], ...]:
        """The sets that must hold one file per rank."""
        sharded = "zero_pp_rank" in self.model[0].name
        return (self.optim, self.model) if sharded else (self.optim,)


def is_zero_folder(folder: Path) -> bool:
    """Whether a folder looks like a DeepSpeed tag folder."""
    return any(folder.glob("*_model_states.pt")) or any(folder.glob("*_optim_states.pt"))


def find_files(folder: Path) -> ZeroFiles:
    """The model and optimizer files of a tag folder, each set complete.

    Raises:
        CheckpointError: if a file is missing, there are two layouts, or one is of tensor, pipeline
            or expert parallelism.
    """
    found: dict[tuple[str, str], dict[int, Path]] = {}
    for path in sorted(folder.glob("*.pt")):
        match = STATE_FILE.fullmatch(path.name)
        if FOREIGN_FILE.fullmatch(path.name) or (match and int(match["mp"]) > 0):
            raise CheckpointError(
                f"{path}: kind = tensor-, pipeline- or expert-parallel state; expected data "
                "parallelism only. Merge a checkpoint that ZeRO alone sharded."
            )
        if match is None:
            continue
        layout = "ranks" if match["rank"] or match["kind"] == "optim" else "single"
        kind = f"{match['bf16'] or ''}{match['kind']}"
        found.setdefault((kind, layout), {})[int(match["rank"] or 0)] = path
    model = _only_layout(folder, found, ("model",))
    optim = _only_layout(folder, found, ("optim", "bf16_optim"))
    return ZeroFiles(_complete(folder, model, "model"), _complete(folder, optim, "optim"))


def _only_layout(
    folder: Path, found: Mapping[tuple[str, str], dict[int, Path]], kinds: Sequence[str]
) -> dict[int, Path]:
    """The one set of files of a kind; two sets mean that one run wrote over another."""
    sets = [paths for (kind, _), paths in found.items() if kind in kinds]
    if not sets:
        raise CheckpointError(
            f"{folder}: *{kinds[0]}_states.pt = none; expected one per rank. Name a DeepSpeed tag "
            "folder whose saving was complete."
        )
    if len(sets) > 1:
        newest = max(sets, key=lambda paths: max(p.stat().st_mtime_ns for p in paths.values()))
        stale = [paths[min(paths)].name for paths in sets if paths is not newest]
        raise CheckpointError(
            f"{folder}: {kinds[0]} states = two layouts, {', '.join(stale)} beside "
            f"{newest[min(newest)].name}; expected those of one run. Move the stale files away."
        )
    return sets[0]


def _complete(folder: Path, paths: Mapping[int, Path], kind: str) -> tuple[Path, ...]:
    if len(paths) <= max(paths):
        # a file may be named as of any rank
        missing = islice(filterfalse(paths.__contains__, range(max(paths))), MAX_NAMED)
        name = next(iter(paths.values())).name
        names = [re.sub(r"rank_\d+", f"rank_{rank}", name, count=1) for rank in missing]
        raise CheckpointError(
            f"{folder}: {kind} states = ranks {sorted(paths)}; expected {', '.join(names)} too. "
            "Copy the missing file, or use another checkpoint."
        )
    return tuple(paths[rank] for rank in sorted(paths))
