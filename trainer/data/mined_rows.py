"""Which rows get negatives in a mining: those that steps take until the next one; a pure function.

It follows from the plan of the mining's stretch alone, however long the run will be.
"""

import numpy as np

from trainer.data.plan import DataPlan
from trainer.recipe.per_source import turn_of
from trainer.recipe.schema import DataRecipe


def rows_until(plan: DataPlan, data: DataRecipe, name: str, step: int) -> np.ndarray:
    """Rows of a source that the steps from one on take until the next mining, ascending, int64.

    Args:
        plan: of the stretch that has the step.
        data: says how often negatives are mined, and what is mixed.
        name: of the source.
        step: before which negatives are mined.
    """
    assert data.mine is not None
    taker = turn_of(data, name)
    found = [np.empty(0, np.int64)]
    for number in range(step, step + data.mine.every_steps):
        turn = plan.turn(number)
        if turn[0] == taker:
            found.append(plan.source_step(*turn, number).rows_by_source[name])
    return np.unique(np.concatenate(found))
