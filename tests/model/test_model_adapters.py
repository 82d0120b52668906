"""Adapters: targets are checked, DoRA is exact on a sharded base, dtypes are as documented."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.test_engine_equality import Variant, check, plain_reference, recipe_of, run_all
from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.errors import RecipeError
from trainer.model.adapters import check_targets
from trainer.recipe.schema import LoraRecipe

WHOLE = LoraRecipe(rank=4, targets=("q_proj",), modules_to_save=("norm",))
DORA = LoraRecipe(rank=4, alpha=8, dropout=0.1, dora=True, targets=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def meta_model() -> nn.Module:
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(tiny.qwen3_config())


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj",), ("self_attn.q_proj", "up_proj")])
def test_targets_that_match_pass(meta_model: nn.Module, targets: Any) -> None:
    check_targets(meta_model, LoraRecipe(targets=targets))


@pytest.mark.parametrize("targets", [("query",), ("q_proj", "query"), ("norm",), ("roj",)])
def test_targets_that_match_nothing_are_named(meta_model: nn.Module, targets: Any) -> None:
    with pytest.raises(RecipeError, match=rf"targets = {targets[-1]} \(matches nothing\)"):
        check_targets(meta_model, LoraRecipe(targets=targets))


def test_model_without_linear_modules_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"all-linear .*expected .*backbone: none"):
        check_targets(nn.Embedding(2, 2), LoraRecipe())


def facts(rank: int, world_size: int, model: Path) -> dict[str, Any]:
    """DoRA by every way of gathering; dtypes and bits of a bfloat16 run."""
    ways = [Variant("step"), Variant("layer", gather="layer"), Variant("il", gather="chunk")]
    return {
        "dora": run_all(rank, world_size, model, ways, DORA),
        "bfloat16": bfloat16_run(world_size, model, LoraRecipe(rank=4)),
        "whole": bfloat16_run(world_size, model, WHOLE),
    }


def bfloat16_run(world_size: int, model: Path, lora: LoraRecipe) -> dict[str, Any]:
    """Three steps under ZeRO-3; what dtype each kind of parameter has, and what moved."""
    import dataclasses

    import deepspeed

    from trainer.distributed.group import join
    from trainer.engine.build import build
    from trainer.engine.step import Stepper
    from trainer.recipe.resolve import resolve

    recipe = recipe_of(Variant("bf16", deepspeed="zero3_bf16.json"), model, lora)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dtype="bfloat16"))
    ranks = join(timeout_minutes=2)
    config = dict(resolve(recipe, world_size=world_size).deepspeed)
    built = build(recipe, model_path=str(model), config=config, gather="step", ranks=ranks)
    base = {n: p for n, p in built.engine.module.named_parameters() if not p.requires_grad}
    adapters = [p for p in built.engine.module.parameters() if p.requires_grad]
    before = {name: p.ds_tensor.clone() for name, p in base.items()}
    stepper = Stepper(recipe, built, ranks, num_steps=3, warmup_steps=0)
    for batch in tiny.three_batches():
        stepper.run(batch)
    masters = deepspeed.utils.safe_get_full_fp32_param(adapters[0]).dtype
    return {
        "base": {p.dtype for p in base.values()},
        "adapters": {p.dtype for p in adapters} | {masters},
        "unchanged": all(torch.equal(p.ds_tensor, before[name]) for name, p in base.items()),
        "optimized": sum(len(group["params"]) for group in stepper_groups(built)),
        "num_adapters": len(adapters),
    }


def stepper_groups(built: Any) -> Any:
    """The parameter groups of the optimizer, sub-groups flattened to the model's parameters."""
    return [{"params": group} for group in built.engine.optimizer.fp16_groups]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config = tiny.qwen3_config(num_hidden_layers=3)
    model = tiny.save_model(config, tmp_path_factory.mktemp("model"))
    (reference,) = run_ranks(plain_reference, 1, model, DORA)
    return {"reference": reference, "ranks": run_ranks(facts, 2, model, timeout_sec=180)}


@pytest.mark.slow
@pytest.mark.dist
def test_dora_on_a_sharded_base_equals_one_plain_process(told: dict[str, Any]) -> None:
    check([rank["dora"] for rank in told["ranks"]], told["reference"])


@pytest.mark.slow
@pytest.mark.dist
def test_bfloat16_base_stays_as_it_was_under_float32_adapters(told: dict[str, Any]) -> None:
    for rank in told["ranks"]:
        assert rank["bfloat16"] == {
            "base": {torch.bfloat16},
            "adapters": {torch.float32},
            "unchanged": True,
            "optimized": rank["bfloat16"]["num_adapters"],
            "num_adapters": 3 * 7 * 2,
        }


@pytest.mark.slow
@pytest.mark.dist
def test_beside_whole_modules_adapters_have_the_dtype_of_the_base(told: dict[str, Any]) -> None:
    for rank in told["ranks"]:
        assert rank["whole"] == {
            "base": {torch.bfloat16},
            "adapters": {torch.bfloat16, torch.float32},  # parameters and their masters
            "unchanged": True,
            "optimized": rank["whole"]["num_adapters"],
            # q_proj of 3 layers; 4 norms of each layer and the last one
            "num_adapters": 3 * 2 + 3 * 4 + 1,
        }
