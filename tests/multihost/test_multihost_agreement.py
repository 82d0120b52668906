"""Ranks that were given different recipes all hear of it; equal ones go on."""

import dataclasses

import pytest

from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.distributed.group import Ranks
from trainer.errors import HostError
from trainer.preflight.hosts import check_hosts

pytestmark = pytest.mark.dist


def checks(rank: int, world_size: int, seeds: list[list[int]]) -> list[str]:
    """What each comparison says on this rank; empty where it passes."""
    import torch

    ranks = Ranks(rank=rank, world_size=world_size, device=torch.device("cpu"))
    told = []
    for by_rank in seeds:
        recipe = dataclasses.replace(tiny.make_recipe(tiny.Path("unused")), seed=by_rank[rank])
        try:
            check_hosts(recipe, (), {"model.safetensors": "abc"}, ranks)
        except HostError as error:
            told.append(str(error))
        else:
            told.append("")
    return told


def test_difference_reaches_every_rank() -> None:
    first, second = run_ranks(checks, 2, [[1, 1], [1, 2], [3, 3]])
    assert first == second
    assert first[0] == first[2] == ""
    assert "(rank 1): recipe: seed = 2; expected 1" in first[1]
