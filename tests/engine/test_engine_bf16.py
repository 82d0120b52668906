"""bf16 weights, float32 gradients: many chunks lose no more than their own rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.distributed.group import join
from trainer.engine.build import build
from trainer.engine.chunks import plan_chunks
from trainer.engine.losses.step_loss import step_loss
from trainer.engine.losses.task_loss import Vectors
from trainer.engine.materialise import lengths_of, make_chunks
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import EngineRecipe, LoraRecipe, ModelRecipe, ProjectionRecipe

pytestmark = pytest.mark.dist


LIMITS = {
    # float32 sums of at most 14 chunks on 2 ranks: far below bf16's 4e-3
    "zero3_bf16.json": 1e-5,
    # below stage 3 DeepSpeed keeps the reduced gradient in bf16: one rounding, 8 bits
    "zero2_bf16.json": 4e-3,
    "zero1_bf16.json": 4e-3,
}


def compare_all(rank: int, world_size: int, model: Path) -> dict[tuple[str, bool], float]:
    """Each ds_config in turn, in full and with adapters; a step is taken too."""
    return {
        (name, lora is not None): compare(rank, world_size, model, name, lora)
        for name in LIMITS
        for lora in (None, LoraRecipe(rank=4))
    }


def compare(
    rank: int, world_size: int, model: Path, deepspeed_file: str, lora: LoraRecipe | None
) -> float:
    """Error of the engine's gradient against a float64 sum of the same chunks' gradients."""
    import deepspeed

    ranks = join(timeout_minutes=2)
    recipe = tiny.make_recipe(
        model,
        model=ModelRecipe(
            path=str(model),
            dtype="bfloat16",
            lora=lora,
            projection=ProjectionRecipe(size=24, bias=True, activation="tanh"),
        ),
        engine=EngineRecipe(deepspeed=deepspeed_file, max_tokens_per_chunk=16),
    )
    config = dict(resolve(recipe, world_size=world_size).deepspeed)
    built = build(recipe, model_path=str(model), config=config, gather="step", ranks=ranks)
    batch = tiny.ir_batch(0)
    plan = plan_chunks(lengths_of(batch.texts), num_ranks=world_size, max_tokens=16)
    assert plan.num_chunks > 8
    chunks = make_chunks(batch.texts, plan.ranks[rank], key=1, device=ranks.device)
    seen: list[Vectors] = []

    def value_and_grad(vectors: Vectors) -> tuple[Vectors, dict[str, torch.Tensor]]:
        gradients, terms = step_loss(batch, recipe.tasks["ir"], plan, ranks)(vectors)
        seen.append(gradients)
        return gradients, terms

    built.grad_cache.accumulate(chunks, value_and_grad, step_key=1, middle=False)
    got = {
        name: deepspeed.utils.safe_get_full_grad(p).double()
        for name, p in built.engine.module.named_parameters()
        if p.requires_grad
    }
    want: dict[str, torch.Tensor] = {}
    with built.replica.gathered() as replica:
        start = 0
        for chunk in chunks:
            replica.begin(chunk, 1)
            (vectors,) = replica(chunk)
            vectors.backward(seen[0][0][start : start + chunk.num_texts])
            start += chunk.num_texts
            for name, p in replica.named_parameters():
                if p.requires_grad:
                    want[name] = want.get(name, 0) + p.grad.double()
                    p.grad = None
    errors: list[Any] = []
    for name, local in want.items():
        torch.distributed.all_reduce(local)
        # an adapter's A has no gradient while its B is zero
        length = local.norm().clamp_min(torch.finfo(torch.float32).tiny)
        errors.append((got[name] - local / world_size).norm() / length * world_size)
    built.engine.step()
    assert built.engine.skipped_steps == 0
    built.engine.destroy()
    return float(max(errors))


@pytest.mark.slow
def test_gradient_is_the_float32_sum_of_the_chunks(tmp_path: Path) -> None:
    model = tiny.save_model(tiny.qwen3_config(), tmp_path)
    for errors in run_ranks(compare_all, 2, model, timeout_sec=120):
        for name, limit in LIMITS.items():
            for has_adapters in (False, True):
                assert errors[name, has_adapters] < limit, (name, has_adapters)
