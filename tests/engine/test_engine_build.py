"""The optimizer of a run: where its state lives is what the ds_config says, not how it says it."""

from typing import Any

import pytest
import torch
from torch import nn

from trainer.distributed.group import Ranks
from trainer.engine.build import make_optimizer
from trainer.recipe.schema import TrainRecipe


@pytest.mark.parametrize(
    "offload",
    [
        {},
        {"offload_optimizer": None},
        {"offload_optimizer": {}},
        {"offload_optimizer": {"device": "none"}},
        {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "none"}},
        {"cpu_offload": False},
    ],
)
def test_optimizer_that_stays_on_the_gpu_is_torchs_own(offload: dict[str, Any]) -> None:
    on_gpu = Ranks(rank=0, world_size=1, device=torch.device("cuda"))
    config = {"zero_optimization": {"stage": 3} | offload}
    optimizer = make_optimizer(nn.Linear(2, 2), TrainRecipe(max_steps=1), config, on_gpu)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]
