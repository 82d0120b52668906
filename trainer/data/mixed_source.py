"""Several sources that share steps, read as one; it must not decide which rows a step takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.mixed_rows import OWNER_BIT
from trainer.data.sources import StepSource
from trainer.data.teacher_vectors import TeacherVectors
from trainer.recipe.schema import DataRecipe


@dataclass(frozen=True, kw_only=True)
class MixedSource:
    """The rows of a mix, numbered as in `trainer.data.mixed_rows`."""

    name: str
    """Of the mix."""
    members: tuple[StepSource, ...]
    """Its sources, in its order."""

    @property
    def teacher_vectors(self) -> TeacherVectors | None:
        """See `StepSource.teacher_vectors`; all sources of a mix name one folder."""
        return self.members[0].teacher_vectors

    def record(self, row: int) -> Any:
        """See `StepSource.record`."""
        owner = row >> OWNER_BIT
        return self.members[owner].record(row - (owner << OWNER_BIT))

    def check_files(self) -> None:
        """See `StepSource.check_files`."""
        for member in self.members:
            member.check_files()


def with_mixes(data: DataRecipe, sources: Sequence[StepSource]) -> Mapping[str, StepSource]:
    """All that takes turns by name: sources, and mixes of those that are at hand.

    Args:
        data: says what is mixed.
        sources: opened.
    """
    by_name = {source.name: source for source in sources}
    mixes = {
        name: MixedSource(name=name, members=tuple(by_name[one] for one in members))
        for name, members in data.mix.items()
        if all(one in by_name for one in members)
    }
    return {**by_name, **mixes}
