"""A skipped step and a memory probe leave no trace: the next step is that of an undisturbed run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch

from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.distributed.group import Ranks, join
from trainer.engine import step as step_module
from trainer.engine.build import Built, build
from trainer.engine.out_of_memory import probe_memory
from trainer.engine.step import Stepper
from trainer.errors import StepError
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import EngineRecipe, LoraRecipe, ModelRecipe, Recipe, TrainRecipe

pytestmark = pytest.mark.dist

WAYS = [
    ("zero1_fp32.json", "step", False),
    ("zero3_offload_fp32.json", "step", False),
    ("zero3_fp32.json", "chunk", False),
    ("zero2_fp32.json", "chunk", True),
    ("zero3_bf16.json", "layer", False),
]
"""Every stage, way of gathering and precision; adapters, offload."""
MORE_WAYS = [
    ("zero2_fp32.json", "step", False),
    ("zero3_fp32.json", "step", False),
    ("zero3_fp32.json", "layer", False),
    ("zero3_fp32.json", "step", True),
    ("zero1_bf16.json", "step", False),
]
"""Other pairs of the same."""
BAD = 1


def recipe_of(model: Path, file: str, *, lora: bool) -> Recipe:
    """Adam, so that moments count too; small chunks."""
    dtype: Any = "bfloat16" if "bf16" in file else "float32"
    return tiny.make_recipe(
        model,
        model=ModelRecipe(path=str(model), dtype=dtype, lora=LoraRecipe() if lora else None),
        engine=EngineRecipe(deepspeed=file, max_tokens_per_chunk=64),
        train=TrainRecipe(max_steps=5, learning_rate=1e-3, max_skipped_steps=1),
    )


def spoil(ranks: Ranks) -> None:
    """Let the gradient of step 1 be no number, where the second rank embeds its first text."""
    real = step_module.step_loss

    def planted(batch: Any, *arguments: Any) -> Any:
        pull = real(batch, *arguments)

        def malformed(vectors: Any) -> Any:
            gradients, terms = pull(vectors)
            if batch.plan.step == BAD and ranks.rank == 1:
                gradients[0][0, 0] = torch.nan
            return gradients, terms

        return malformed

    step_module.step_loss = planted  # type: ignore[assignment]


def state_of(built: Built) -> dict[str, torch.Tensor]:
    """This rank's share of parameters, masters and moments."""
    optimizer = built.engine.optimizer
    state = {
        f"{at} {name}": value.clone()
        for at, moments in enumerate(optimizer.optimizer.state.values())
        for name, value in moments.items()
        if torch.is_tensor(value)
    }
    for name, parameter in built.engine.module.named_parameters():
        state[name] = getattr(parameter, "ds_tensor", parameter).detach().clone()
    return state


@contextmanager
def warnings_of_deepspeed() -> Iterator[list[str]]:
    """What DeepSpeed warns of during the block."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    deepspeed.utils.logger.addHandler(handler)
    yield told
    deepspeed.utils.logger.removeHandler(handler)


def train(recipe: Recipe, gather: Any, ranks: Ranks, *, disturbed: bool) -> Any:
    """Steps 0 and 2, with a memory probe before and the bad step 1 between them if disturbed."""
    resolved = resolve(recipe, world_size=ranks.world_size)
    path, config = recipe.model.path, dict(resolved.deepspeed)
    built = build(recipe, model_path=path, config=config, gather=gather, ranks=ranks)
    stepper = Stepper(recipe, built, ranks, num_steps=5, warmup_steps=0)
    batches = tiny.three_batches()
    if disturbed:
        random = torch.get_rng_state()
        with warnings_of_deepspeed() as warned:
            probe_memory(recipe, built, ranks)
        assert warned == []
        assert torch.equal(torch.get_rng_state(), random)
        assert built.engine.global_steps == built.engine.skipped_steps == 0
    stepper.run(batches[0])
    told = ""
    if disturbed:
        before = state_of(built)
        with warnings_of_deepspeed() as warned:
            report = stepper.run(batches[BAD])
        # a step that really was skipped is still reported, by the first rank
        assert [text for text in warned if "OVERFLOW" in text] == warned
        assert len(warned) == int(ranks.is_first)
        assert (report.grad_norm, report.skipped_steps) == (None, 1)
        after = state_of(built)
        assert all(torch.equal(after[name], value) for name, value in before.items())
    losses = [stepper.run(batches[2]).loss]
    state = state_of(built)
    if disturbed:
        with pytest.raises(StepError) as caught:
            stepper.run(batches[BAD])
        told = str(caught.value)
    built.engine.destroy()
    return losses, state, told


def compare(
    rank: int, world_size: int, model: Path, ways: list[tuple[str, str, bool]]
) -> dict[str, Any]:
    """Body of a rank: each way, undisturbed and disturbed."""
    ranks = join(timeout_minutes=2)
    spoil(ranks)
    found = {}
    for file, gather, lora in ways:
        recipe = recipe_of(model, file, lora=lora)
        want = train(recipe, gather, ranks, disturbed=False)
        got = train(recipe, gather, ranks, disturbed=True)
        name = f"{file}, {gather}{', lora' if lora else ''}"
        differ = [key for key, value in want[1].items() if not torch.equal(got[1][key], value)]
        found[name] = (want[0] == got[0], len(want[1]), differ, got[2])
    return found


@pytest.mark.parametrize(
    "ways", [WAYS, pytest.param(MORE_WAYS, marks=pytest.mark.slow)], ids=["ways", "more ways"]
)
def test_next_step_is_bit_for_bit_that_of_an_undisturbed_run(
    tmp_path: Path, ways: list[tuple[str, str, bool]]
) -> None:
    model = tiny.save_model(tiny.qwen3_config(num_hidden_layers=2), tmp_path / "model")
    for rank in run_ranks(compare, 2, model, ways, timeout_sec=240):
        assert len(rank) == len(ways)
        for name, (same_loss, num_tensors, differ, told) in rank.items():
            assert num_tensors > 0
            assert (same_loss, differ) == (True, []), name
            assert told.startswith("step 1 (sts, source sts, rows 0, 1, 2"), name
