"""A run whose address space is limited keeps as much as it planned to, and never runs out.

The plan is told what is left of the limit, as in a run, and the steps have mixes of lengths that
no plan knows.
"""

import ctypes
import gc
import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.data.batch import Batch, IrBatch, StepPlan, StsBatch, Texts
from trainer.distributed.group import Ranks, join
from trainer.engine import grad_cache, hooked_grad_cache
from trainer.engine.build import build
from trainer.engine.step import Stepper
from trainer.memory.gather import Passes, choose_passes
from trainer.memory.machine import STATM
from trainer.model.backbone import load_config
from trainer.recipe.ir import IrRecipe
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import DataRecipe, EngineRecipe, LoraRecipe, Recipe, TrainRecipe
from trainer.recipe.sts import StsRecipe

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS = 200
WARM_STEPS = 50
"""Without a limit, before it is set."""
QUERIES, PAIRS = 24, 48
"""Rows of the two kinds of step."""
QUERY_TOKENS, PASSAGE_TOKENS = 32, 64
"""Of the longest texts; a step has 3,840 tokens at most."""
CHUNK_TOKENS = 768
INSTRUCTION = np.arange(1, 9, dtype=np.int32)
"""Before all queries of every other step."""
MMAP_THRESHOLD, ARENA_MAX = -3, -8
"""Of glibc's `mallopt`."""
MIXES = ("any", "longest", "shortest", "few long", "few short", "steep")
"""How the lengths of a step are drawn."""


@dataclass(frozen=True)
class Limited:
    """One way to run under a limit."""

    name: str
    spare_mib: int
    """What the limit leaves when the plan is made."""
    gather: Any = "step"
    stage: int = 1
    checkpointing: bool = False
    lora: bool = False


WAYS = [
    Limited("some graphs", 72, stage=3),
    Limited("borders", 25, checkpointing=True),
    Limited("some graphs, LoRA", 58, stage=3, lora=True),
    Limited("some layers", 74, stage=3, gather="layer"),
    Limited("some chunks", 75, stage=3, gather="chunk"),
]
"""So much memory that the plan fills its share of it with what can be kept."""


def recipe_of(way: Limited, model: Path) -> Recipe:
    """A recipe whose activations outweigh its parameters many times."""
    made = tiny.make_recipe(model)
    lora = LoraRecipe(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))
    return replace(
        made,
        model=replace(
            made.model, gradient_checkpointing=way.checkpointing, lora=lora if way.lora else None
        ),
        data=DataRecipe(
            sources=made.data.sources,
            query_max_tokens=QUERY_TOKENS,
            passage_max_tokens=PASSAGE_TOKENS,
        ),
        tasks={
            "ir": IrRecipe(global_batch_size=QUERIES, negatives=1),
            "sts": StsRecipe(global_batch_size=PAIRS),
        },
        train=TrainRecipe(max_steps=STEPS, learning_rate=1e-4),
        engine=EngineRecipe(max_tokens_per_chunk=CHUNK_TOKENS, gather=way.gather),
    )


def lengths_of(rng: np.random.Generator, mix: str, size: int, longest: int) -> np.ndarray:
    """Tokens of some texts, 2 to `longest`."""
    drawn = rng.integers(2, longest + 1, size)
    rare = rng.random(size) < 0.1
    return {
        "any": drawn,
        "longest": np.full(size, longest),
        "shortest": rng.integers(2, 5, size),
        "few long": np.where(rare, longest, 3),
        "few short": np.where(rare, 3, longest),
        "steep": np.exp(rng.uniform(np.log(2), np.log(longest), size)).astype(int).clip(2, longest),
    }[mix]


def batch_of(step: int) -> Batch:
    """IR and STS by turns, each step with a mix of its own for queries and for passages."""
    rng = np.random.default_rng(step)
    is_ir = step % 3 != 2
    firsts, others = (QUERIES, 2 * QUERIES) if is_ir else (2 * PAIRS, 0)
    first, other = rng.choice(MIXES, 2)
    lengths = np.concatenate(
        [
            lengths_of(rng, first, firsts, QUERY_TOKENS),
            lengths_of(rng, other, others, PASSAGE_TOKENS),
        ]
    )
    ids = [rng.integers(1, tiny.VOCABULARY, n).astype(np.int32) for n in lengths]
    if rng.random() < 0.5:
        ids[:firsts] = [np.concatenate([INSTRUCTION, one])[:QUERY_TOKENS] for one in ids[:firsts]]
    texts = Texts(token_ids=tuple(ids), num_prompt_tokens=np.zeros(len(ids), np.int64))
    task, rows = ("ir", np.arange(QUERIES)) if is_ir else ("sts", np.arange(PAIRS))
    plan = StepPlan(step=step, task=task, source=task, epoch=0, rows=rows)
    if is_ir:
        passages = QUERIES + np.arange(2 * QUERIES).reshape(QUERIES, 2)
        none = np.empty((0, 2), np.int64)
        return IrBatch(plan=plan, texts=texts, query=rows, passages=passages, masked=none)
    score = rng.random(PAIRS).astype(np.float32)
    return StsBatch(plan=plan, texts=texts, text1=rows, text2=PAIRS + rows, score=score)


def resident(field: str) -> int:
    """`VmRSS` of this process or its highest value since it was reset, `VmHWM`, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def passes_of(recipe: Recipe, way: Limited, ranks: Ranks) -> tuple[dict[str, Any], Passes]:
    """The DeepSpeed dict with buckets no larger than the model, and what the plan decides."""
    engine = replace(recipe.engine, deepspeed=f"zero{way.stage}_fp32.json")
    config: dict[str, Any] = dict(
        resolve(replace(recipe, engine=engine), world_size=ranks.world_size).deepspeed
    )
    config["zero_optimization"] = config["zero_optimization"] | {"reduce_bucket_size": 250_000}
    model = load_config(recipe.model, recipe.model.path)
    return config, choose_passes(recipe, model, config, world_size=ranks.world_size)


def run_limited(rank: int, world_size: int, model: Path, way: Limited) -> dict[str, Any]:
    """Steps within a limit that is set before the plan is made, as `ulimit -v` would."""
    # what is freed leaves the address space at once
    libc = ctypes.CDLL(None)
    assert libc.mallopt(MMAP_THRESHOLD, 1 << 12)
    assert libc.mallopt(ARENA_MAX, 1)
    ranks = join(timeout_minutes=10)
    # libraries take what they need once, and the allocator's holes for small objects fill up
    train(recipe_of(way, model), way, ranks, steps=range(STEPS, STEPS + WARM_STEPS))
    gc.collect()
    held = int(STATM.read_text().split()[0]) * resource.getpagesize()
    limit = held + (way.spare_mib << 20)
    warned: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    for module in (grad_cache, hooked_grad_cache):
        module.logger.addHandler(handler)
    # the highest address space cannot be reset, as the highest resident memory can
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    passes = train(recipe_of(way, model), way, ranks, steps=range(STEPS))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {
        "warned": warned,
        "full": (resident("VmHWM") - before) / (limit - held),
        "kept": passes.keep_graph_tokens,
        "whole": passes.whole_graphs,
    }


def train(recipe: Recipe, way: Limited, ranks: Ranks, *, steps: range) -> Passes:
    """Plan, load and step."""
    config, passes = passes_of(recipe, way, ranks)
    built = build(
        recipe,
        model_path=recipe.model.path,
        config=config,
        gather=passes.gather,
        ranks=ranks,
        keep_graph_tokens=passes.keep_graph_tokens,
        whole_graphs=passes.whole_graphs,
    )
    stepper = Stepper(recipe, built, ranks, num_steps=steps.stop, warmup_steps=0)
    for step in steps:
        stepper.run(batch_of(step))
    built.engine.destroy()
    return passes


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_no_mix_of_lengths_runs_out(
    way: Limited, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    config = tiny.qwen3_config(
        hidden_size=64, intermediate_size=256, max_position_embeddings=PASSAGE_TOKENS
    )
    model = tiny.save_model(config, tmp_path)
    (found,) = run_ranks(run_limited, 1, model, way, timeout_sec=1800)
    for key, value in found.items():
        record_property(key, value)
    assert found["warned"] == []
    assert found["kept"] >= 2 * CHUNK_TOKENS
    assert 0.5 < found["full"] < 1
