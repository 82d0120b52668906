"""Which ranks see the same folder: hosts may share a file system or have a disk each.

What is done once for a folder (creating, renaming, deleting) is done by its keeper, one rank per
storage; what is read whole (hashes) is shared among all ranks that see it.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from trainer.distributed.agree import on_all_ranks, on_first_rank
from trainer.distributed.group import Ranks


@dataclass(frozen=True)
class Storage:
    """A folder as this rank sees it, and who else sees the same one."""

    ranks: Ranks
    """This process."""
    keepers: tuple[int, ...]
    """By rank, the lowest rank that sees the same folder."""

    @property
    def is_keeper(self) -> bool:
        """Whether this rank does what is done once for its folder."""
        return self.keepers[self.ranks.rank] == self.ranks.rank

    @property
    def members(self) -> list[int]:
        """Ranks that see this rank's folder, this one among them."""
        keeper = self.keepers[self.ranks.rank]
        return [rank for rank, one in enumerate(self.keepers) if one == keeper]

    @property
    def is_shared(self) -> bool:
        """Whether all ranks see one folder."""
        return len(set(self.keepers)) == 1

    def share(self, names: list[str]) -> list[str]:
        """This rank's share of work on files that all members see."""
        members = self.members
        return names[members.index(self.ranks.rank) :: len(members)]


def probe_storage(folder: Path, ranks: Ranks) -> Storage:
    """Find out who sees this folder, by files that are gone afterwards; the folder is created.

    Raises:
        CheckpointError: a rank cannot write to it.
    Collective: yes.
    """
    token = on_first_rank(lambda: secrets.token_hex(8), ranks)
    mine = folder / f".rank-{ranks.rank}-{token}"

    def leave_trace() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        mine.touch()

    on_all_ranks(leave_trace, ranks)
    storage = Storage(ranks, tuple(on_all_ranks(lambda: _lowest(folder, token), ranks)))
    if storage.is_keeper:
        # those of a run that was killed here are among them
        for trace in folder.glob(".rank-*"):
            trace.unlink(missing_ok=True)
    dist.barrier()
    return storage


def _lowest(folder: Path, token: str) -> int:
    """The lowest rank whose file with this token is there."""
    return min(int(path.name.split("-")[1]) for path in folder.glob(f".rank-*-{token}"))
