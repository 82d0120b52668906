"""What stands before the texts of a step, which may hold rows of several sources."""

from collections.abc import Callable
from dataclasses import dataclass

from trainer.recipe.per_source import members_of
from trainer.recipe.schema import DataRecipe


@dataclass(frozen=True, kw_only=True)
class StepPrompts:
    """Instructions of the steps of a source, or of a mix of sources."""

    queries: tuple[str, ...]
    """Those of queries, each once."""
    query_of_owner: tuple[int, ...]
    """Which of them each source of the step has."""
    passage: str
    """That of passages, the same for all sources of a mix."""

    def first_tokens(self, count: Callable[[str], int]) -> tuple[int, ...]:
        """First tokens that each instruction gives, that of passages last.

        Args:
            count: first tokens of an instruction.
        """
        return tuple(map(count, (*self.queries, self.passage)))


def step_prompts(data: DataRecipe, name: str) -> StepPrompts:
    """The instructions of the steps of a source, or of a mix.

    Args:
        data: has both.
        name: of either.
    """
    members = members_of(data, name)
    queries = tuple(dict.fromkeys(one.query_instruction for one in members))
    return StepPrompts(
        queries=queries,
        query_of_owner=tuple(queries.index(one.query_instruction) for one in members),
        passage=members[0].passage_instruction,
    )
