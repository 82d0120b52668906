"""Every way to run a step gives the parameters that one plain process gives.

Three SGD steps (IR, STS with the middle-layer loss, IR), float32, no clipping. Tolerance: the
largest difference of a parameter, over the largest movement of that parameter, is 1e-5 or two units
in the last place of the parameter itself, whichever is larger: a difference of float32 numbers
cannot be told more finely.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.data.batch import Batch
from trainer.distributed.group import Ranks, join
from trainer.engine.build import build, load_embedder
from trainer.engine.step import Stepper
from trainer.merge.model_place import place_of_model
from trainer.model.embedder import Embedder
from trainer.recipe.kind import reads_middle
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import EngineRecipe, LoraRecipe, Recipe
from trainer.recipe.tasks import TASKS

pytestmark = pytest.mark.dist


@dataclass(frozen=True)
class Variant:
    """One way to run the same three steps."""

    name: str
    deepspeed: str = "zero3_fp32.json"
    gather: str = "step"
    max_tokens: int = 64
    keep: int | None = None
    checkpointing: bool = False
    composed: bool = False
    whole: bool = False


FULL = [
    Variant("one chunk", max_tokens=10_000),
    Variant("zero1", deepspeed="zero1_fp32.json"),
    Variant("replica, nothing kept", keep=0),
    Variant("replica, small chunks", max_tokens=16),
    Variant("replica, checkpointing", checkpointing=True),
    Variant("layer major", gather="layer"),
    Variant("layer major, some kept", gather="layer", max_tokens=16, keep=40),
    Variant("chunk, some kept, checkpointing", gather="chunk", checkpointing=True, max_tokens=40,
            keep=100),
    Variant("offload", deepspeed="zero3_offload_fp32.json"),
]  # fmt: skip
MORE_FULL = [
    Variant("replica"),
    Variant("zero2", deepspeed="zero2_fp32.json"),
    Variant("replica, some whole graphs", checkpointing=True, whole=True, keep=40, max_tokens=16),
    Variant("layer major, small chunks", gather="layer", max_tokens=16),
    Variant("layer major, all kept", gather="layer", max_tokens=16, keep=10_000),
    Variant("layer major, some kept, zero1", deepspeed="zero1_fp32.json", gather="layer",
            max_tokens=16, keep=40),
    Variant("layer major, some kept, zero2", deepspeed="zero2_fp32.json", gather="layer",
            max_tokens=16, keep=40),
    Variant("chunk", gather="chunk"),
    Variant("chunk, nothing kept", gather="chunk", keep=0),
    Variant("chunk, all kept, small chunks", gather="chunk", max_tokens=16, keep=10_000),
    Variant("chunk, some kept, zero1", deepspeed="zero1_fp32.json", gather="chunk", max_tokens=16,
            keep=40),
    Variant("chunk, some kept, zero2", deepspeed="zero2_fp32.json", gather="chunk", max_tokens=16,
            keep=40),
    Variant("chunk, checkpointing, small chunks", gather="chunk", checkpointing=True,
            max_tokens=16),
    Variant("offload, layer major", deepspeed="zero3_offload_fp32.json", gather="layer"),
    Variant("offload, layer major, some kept", deepspeed="zero3_offload_fp32.json", gather="layer",
            max_tokens=16, keep=40),
    Variant("offload, chunk, some kept", deepspeed="zero3_offload_fp32.json", gather="chunk",
            max_tokens=16, keep=40),
]  # fmt: skip
"""What those above hold one by one."""
COMPOSED = [
    Variant("composed, zero1", deepspeed="zero1_fp32.json", composed=True),
    Variant("composed, zero2", deepspeed="zero2_fp32.json", composed=True),
    Variant("composed, replica, small chunks", max_tokens=16, composed=True),
    Variant("composed, layer major", gather="layer", composed=True),
    Variant("composed, chunk", gather="chunk", composed=True),
    Variant("composed, layer major, some kept", gather="layer", composed=True, max_tokens=16,
            keep=40),
    Variant("composed, chunk, some kept", gather="chunk", composed=True, max_tokens=16, keep=40),
]  # fmt: skip
LORA = [
    Variant("one chunk", max_tokens=10_000),
    Variant("replica, small chunks", max_tokens=16, checkpointing=True),
    Variant("layer major", gather="layer"),
]
MORE_LORA = [
    Variant("chunk", gather="chunk"),
    Variant("layer major, some kept", gather="layer", max_tokens=16, keep=40),
    Variant("chunk, some kept, checkpointing", gather="chunk", max_tokens=16, keep=40,
            checkpointing=True),
]  # fmt: skip


def recipe_of(variant: Variant, model: Path, lora: LoraRecipe | None) -> Recipe:
    """The tiny recipe run this way."""
    made = tiny.composed_recipe(model) if variant.composed else tiny.make_recipe(model)
    return replace(
        made,
        model=replace(made.model, gradient_checkpointing=variant.checkpointing, lora=lora),
        engine=EngineRecipe(
            deepspeed=variant.deepspeed,
            max_tokens_per_chunk=variant.max_tokens,
            keep_graph_tokens=variant.keep,
        ),
    )


def train(
    recipe: Recipe, gather: Any, ranks: Ranks, *, whole: bool = False
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Three steps through DeepSpeed; full final parameters and the losses."""
    import deepspeed

    resolved = resolve(recipe, world_size=ranks.world_size)
    built = build(
        recipe,
        model_path=place_of_model(recipe.model),
        config=dict(resolved.deepspeed),
        gather=gather,
        ranks=ranks,
        whole_graphs=whole,
    )
    stepper = Stepper(recipe, built, ranks, num_steps=3, warmup_steps=0)
    losses = [stepper.run(batch).loss for batch in tiny.three_batches()]
    final = {}
    for name, parameter in built.engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            final[name] = parameter.detach().clone()
    built.engine.destroy()
    return final, losses


def run_all(
    rank: int, world_size: int, model: Path, variants: list[Variant], lora: LoraRecipe | None
) -> dict[str, Any]:
    """Body of a rank: each variant in turn."""
    ranks = join(timeout_minutes=2)
    return {
        v.name: train(recipe_of(v, model, lora), v.gather, ranks, whole=v.whole) for v in variants
    }


def largest_difference(
    got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> tuple[float, str]:
    """Largest difference over movement, and its parameter."""
    worst = (0.0, "")
    assert got.keys() == want.keys()
    for name, expected in want.items():
        moved = (expected - start[name]).abs().max()
        rounding = 2 * torch.finfo(torch.float32).eps * expected.abs().max()
        excess = ((got[name] - expected).abs().max() - rounding).clamp_min(0)
        if moved > 0:
            worst = max(worst, (float(excess / moved), name))
        else:
            assert torch.equal(got[name], expected), name
    return worst


def plain_reference(
    rank: int,
    world_size: int,
    model: Path,
    lora: LoraRecipe | None,
    composed: bool = False,
    prepare: Callable[[Embedder], None] = lambda embedder: None,
    make_batches: Callable[[], list[Batch]] = tiny.three_batches,
) -> dict[str, Any]:
    """One process, no DeepSpeed, no cache: one forward of everything, autograd, SGD."""
    from trainer.engine.chunks import plan_chunks
    from trainer.engine.losses.step_loss import whole_loss
    from trainer.engine.losses.task_loss import prefixes_of
    from trainer.engine.materialise import lengths_of, make_chunks, step_key

    ranks = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    recipe = recipe_of(Variant("plain", composed=composed), model, lora)
    prefixes = prefixes_of(recipe.model.matryoshka)
    embedder = load_embedder(
        recipe, model_path=str(model), config={"zero_optimization": {"stage": 0}}, ranks=ranks
    )
    prepare(embedder)
    start = {n: p.detach().clone() for n, p in embedder.named_parameters()}
    trainable = [p for p in embedder.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=recipe.train.learning_rate)
    losses = []
    for step, batch in enumerate(make_batches()):
        plan = plan_chunks(lengths_of(batch.texts), num_ranks=1, max_tokens=10**6)
        key = step_key(recipe.seed, step)
        (chunk,) = make_chunks(batch.texts, plan.ranks[0], key=key, device=ranks.device)
        embedder.begin(chunk, key)
        settings = recipe.tasks[batch.plan.task]
        outputs = embedder(chunk, middle=reads_middle(TASKS[batch.plan.task], settings))
        loss = whole_loss(batch, settings, plan, ranks.device, prefixes)(outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    final = {n: p.detach().clone() for n, p in embedder.named_parameters()}
    return {"start": start, "final": final, "losses": losses}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tiny.qwen3_config(num_hidden_layers=3), tmp_path_factory.mktemp("model"))


def check(results: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    """All ranks hold the reference's parameters and saw its losses."""
    for result in results:
        for name, (final, losses) in result.items():
            assert losses == pytest.approx(reference["losses"], rel=1e-5), name
            worst, where = largest_difference(final, reference["final"], reference["start"])
            assert worst < 1e-5, f"{name}: {where} differs by {worst:.2e} of its movement"


def test_full_finetuning_is_the_same_any_way(model: Path) -> None:
    (reference,) = run_ranks(plain_reference, 1, model, None)
    check(run_ranks(run_all, 2, model, FULL, None, timeout_sec=240), reference)
    alone = [replace(v, name=f"alone: {v.name}") for v in FULL[1:4]]
    check(run_ranks(run_all, 1, model, alone, None, timeout_sec=120), reference)


@pytest.mark.slow
def test_full_finetuning_is_the_same_in_more_ways(model: Path) -> None:
    (reference,) = run_ranks(plain_reference, 1, model, None)
    check(run_ranks(run_all, 2, model, MORE_FULL, None, timeout_sec=240), reference)


def test_a_composed_loss_is_the_same_any_way(model: Path) -> None:
    (reference,) = run_ranks(plain_reference, 1, model, None, True)
    check(run_ranks(run_all, 2, model, COMPOSED[1:4], None, timeout_sec=240), reference)
    ((plain, composed),) = run_ranks(count_forwards, 1, model, [FULL[3], COMPOSED[2]])
    assert composed == plain


@pytest.mark.slow
def test_a_composed_loss_is_the_same_in_more_ways(model: Path) -> None:
    (reference,) = run_ranks(plain_reference, 1, model, None, True)
    check(run_ranks(run_all, 2, model, COMPOSED, None, timeout_sec=240), reference)
    lora = LoraRecipe(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))
    (reference,) = run_ranks(plain_reference, 1, model, lora, True)
    check(run_ranks(run_all, 2, model, COMPOSED[2:3], lora, timeout_sec=120), reference)


def count_forwards(
    rank: int, world_size: int, model: Path, variants: list[Variant]
) -> list[list[Any]]:
    """Forwards of the model in each of three steps of each variant, chunks and tokens reported."""
    calls = 0
    forward = Embedder.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(*arguments, **options)

    Embedder.forward = counted  # type: ignore[method-assign]
    ranks = join(timeout_minutes=2)
    found: list[list[Any]] = []
    for variant in variants:
        recipe = recipe_of(variant, model, None)
        config = dict(resolve(recipe, world_size=world_size).deepspeed)
        built = build(recipe, model_path=str(model), config=config, gather="step", ranks=ranks)
        stepper = Stepper(recipe, built, ranks, num_steps=3, warmup_steps=0)
        steps = []
        for batch in tiny.three_batches():
            before = calls
            report = stepper.run(batch)
            assert calls > before
            steps.append((calls - before, report.num_chunks, report.tokens))
        built.engine.destroy()
        found.append(steps)
    return found


def test_lora_with_dropout_is_the_same_any_way(model: Path) -> None:
    lora = LoraRecipe(rank=4, alpha=8, dropout=0.1, targets=("q_proj", "v_proj", "down_proj"))
    (reference,) = run_ranks(plain_reference, 1, model, lora)
    check(run_ranks(run_all, 2, model, LORA, lora, timeout_sec=180), reference)


@pytest.mark.slow
def test_lora_with_dropout_is_the_same_chunk_by_chunk(model: Path) -> None:
    lora = LoraRecipe(rank=4, alpha=8, dropout=0.1, targets=("q_proj", "v_proj", "down_proj"))
    (reference,) = run_ranks(plain_reference, 1, model, lora)
    check(run_ranks(run_all, 2, model, MORE_LORA, lora, timeout_sec=180), reference)
