"""How many passages are searched exactly, and what more of them need; it must not search."""

import importlib.util

from trainer.errors import RecipeError

EXACT_UP_TO = 5_000_000
"""Passages that are searched exactly, unless told otherwise."""
LEAST_EXACT = 1_000
"""Fewer passages could not train the quantiser of an index."""


def check_exact_up_to(exact_up_to: int) -> None:
    """Refuse a bound that an index could not follow.

    Raises:
        RecipeError: naming it.
    """
    if exact_up_to < LEAST_EXACT:
        raise RecipeError(
            f"--exact-up-to: {exact_up_to}; expected at least {LEAST_EXACT}, as fewer passages "
            "cannot train an index. Change it."
        )


def check_index(num_passages: int, exact_up_to: int) -> None:
    """Refuse a corpus that needs an index where there is no library for it.

    Raises:
        RecipeError: naming both numbers.
    """
    if num_passages > exact_up_to and importlib.util.find_spec("faiss") is None:
        raise RecipeError(
            f"--exact-up-to: {exact_up_to} = less than the {num_passages} passages; expected the "
            "package faiss-cpu, to search more. Install it with `pip install -e '.[mine]'`, or "
            f"give --exact-up-to {num_passages}, which takes longer."
        )
