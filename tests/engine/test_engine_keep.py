"""What pass 1 keeps changes no number, also where memory runs out in the middle of a step."""

import ctypes
import logging
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.test_engine_equality import Variant, recipe_of
from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.data.batch import Texts
from trainer.distributed.group import Ranks, join
from trainer.engine import grad_cache
from trainer.engine.build import build
from trainer.engine.grad_cache import StepGradCache
from trainer.engine.losses.task_loss import Vectors
from trainer.engine.materialise import make_chunks
from trainer.engine.step import Stepper
from trainer.memory.machine import STATM
from trainer.model.embedder import Chunk, Embedder
from trainer.model.layer_major import ChunkwiseLayer
from trainer.recipe.resolve import resolve

pytestmark = pytest.mark.dist

KEEPING = Variant("kept", max_tokens=16, keep=10_000, checkpointing=True)
M_MMAP_THRESHOLD = -3
"""Of glibc's `mallopt`."""
CHUNKS, TEXTS, LENGTH = 16, 64, 32
"""Of a rank, in a step that is large for its model: 8 MB of activations a chunk."""


def built_of(model: Path, ranks: Ranks, gather: Any = "step", **settings: Any) -> Any:
    """An engine that keeps every graph."""
    recipe = recipe_of(KEEPING, model, None)
    config = dict(resolve(recipe, world_size=ranks.world_size).deepspeed)
    found = build(
        recipe, model_path=str(model), config=config, gather=gather, ranks=ranks, **settings
    )
    return recipe, found


def three_steps(model: Path, ranks: Ranks, plant: Any, **settings: Any) -> dict[str, Any]:
    """Losses and final parameters, and what is kept at the end, with a fault in step 1."""
    import deepspeed

    recipe, built = built_of(model, ranks, **settings)
    stepper = Stepper(recipe, built, ranks, num_steps=3, warmup_steps=0)
    losses = []
    for step, batch in enumerate(tiny.three_batches()):
        with plant(step == 1 and ranks.rank == 1):
            losses.append(stepper.run(batch).loss)
    final = {}
    for name, parameter in built.engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            final[name] = parameter.detach().clone()
    is_whole = getattr(built.grad_cache, "whole_graphs", False)
    kept = (built.grad_cache.keep_graph_tokens, is_whole)
    built.engine.destroy()
    return {"losses": losses, "final": final, "kept": kept}


@contextmanager
def undisturbed(wanted: bool) -> Iterator[None]:
    yield


def failing_after(holder: Any, name: str, count: int) -> Any:
    """A fault in the call of that number of a function, after the function has done its work."""

    @contextmanager
    def planted(wanted: bool) -> Iterator[None]:
        real: Callable[..., Any] = getattr(holder, name)
        calls = 0

        def failing(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            result = real(*arguments, **options)
            if calls == count:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return result

        if wanted:
            setattr(holder, name, failing)
        try:
            yield
        finally:
            setattr(holder, name, real)

    return planted


def run_planted(rank: int, world_size: int, model: Path, names: list[str]) -> dict[str, Any]:
    ranks = join(timeout_minutes=2)
    forward, back = (Embedder, "forward"), (grad_cache, "hand_on")
    whole, layer = {"whole_graphs": True}, {"gather": "layer"}
    faults: dict[str, tuple[Any, dict[str, Any]]] = {
        "undisturbed": (undisturbed, {}),
        "in pass 1": (failing_after(*forward, 2), {}),
        "in pass 2": (failing_after(*back, 2), {}),
        "whole graphs": (undisturbed, whole),
        "whole, in pass 2": (failing_after(*back, 1), whole),
        "layer": (undisturbed, layer),
        "layer, in its forward": (failing_after(ChunkwiseLayer, "_one", 7), layer),
    }
    return {name: three_steps(model, ranks, faults[name][0], **faults[name][1]) for name in names}


EVERYTHING, LESS, WHOLE = (10_000, False), (5_000, False), (10_000, True)
KEPT = {
    "undisturbed": (EVERYTHING, EVERYTHING),
    "in pass 1": (EVERYTHING, LESS),
    "in pass 2": (EVERYTHING, LESS),
    "whole graphs": (WHOLE, WHOLE),
    "whole, in pass 2": (WHOLE, LESS),
    "layer": (EVERYTHING, EVERYTHING),
    "layer, in its forward": (EVERYTHING, LESS),
}
"""What the two ranks keep at the end, the second of which has the fault."""
FEW = ["undisturbed", "in pass 1", "whole, in pass 2"]


@pytest.mark.parametrize(
    "names", [FEW, pytest.param(list(KEPT), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_memory_that_runs_out_in_a_pass_changes_no_number(tmp_path: Path, names: list[str]) -> None:
    model = tiny.save_model(tiny.qwen3_config(num_hidden_layers=3), tmp_path)
    first, second = run_ranks(run_planted, 2, model, names, timeout_sec=240)
    for result in (first, second):
        for name, got in result.items():
            want = result["layer" if name.startswith("layer") else "undisturbed"]
            assert got["losses"] == want["losses"], name
            for parameter, value in want["final"].items():
                assert torch.equal(got["final"][parameter], value), f"{name}: {parameter}"
    kept = {name: (first[name]["kept"], second[name]["kept"]) for name in names}
    assert kept == {name: KEPT[name] for name in names}


@contextmanager
def limited(spare_bytes: int) -> Iterator[None]:
    """No more memory for this process than it holds and so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(STATM.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + spare_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def gradient_of_texts(
    built: Any, ranks: Ranks, first_spare: int | None, second_spare: int | None
) -> tuple[Tensor, list[str]]:
    """Gradient of a large step on one rank where its passes have little memory, and warnings."""
    total = CHUNKS * TEXTS
    ids = tuple(np.full(LENGTH, 3 + i % 40, np.int32) for i in range(total))
    texts = Texts(token_ids=ids, num_prompt_tokens=np.zeros(total, np.int64))
    own = np.array_split(np.arange(total), CHUNKS)
    chunks: list[Chunk] = make_chunks(texts, own, key=0, device=ranks.device)
    stack: list[Any] = []

    def enter(spare: int | None) -> None:
        if spare is not None:
            stack.append(limited(spare))
            stack[-1].__enter__()

    def leave() -> None:
        while stack:
            stack.pop().__exit__(None, None, None)

    def value_and_grad(vectors: Vectors) -> tuple[Vectors, dict[str, Tensor]]:
        leave()
        gradients = tuple(v.cos() for v in vectors)
        enter(second_spare)
        return gradients, {}

    warned: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    grad_cache.logger.addHandler(handler)
    passes: StepGradCache = built.grad_cache
    found: list[Tensor] = []

    def deliver(engine: Any) -> None:
        leave()
        found.extend(g.clone() for _, g in passes.replica.gradients())

    passes.replica.deliver = deliver  # type: ignore[method-assign]
    enter(first_spare)
    try:
        passes.accumulate(chunks, value_and_grad, step_key=1, middle=False)
    finally:
        leave()
        grad_cache.logger.removeHandler(handler)
    return torch.cat([g.flatten() for g in found]), warned


def run_limited(rank: int, world_size: int, model: Path) -> dict[str, Any]:
    # what is freed leaves the address space at once
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    ranks = join(timeout_minutes=2)
    _, built = built_of(model, ranks, whole_graphs=True)
    everything = 10**9
    found = {}
    for name, spares in (
        ("free", (None, None)),
        ("pass 1", (60 << 20, None)),
        ("pass 2", (None, 1 << 18)),
    ):
        built.grad_cache.keep_graph_tokens, built.grad_cache.whole_graphs = everything, True
        found[name] = gradient_of_texts(built, ranks, *spares)
    return found


@pytest.mark.slow
def test_a_real_limit_in_either_pass_is_survived(tmp_path: Path) -> None:
    config = tiny.qwen3_config(num_hidden_layers=4, hidden_size=64, intermediate_size=256)
    model = tiny.save_model(config, tmp_path)
    (found,) = run_ranks(run_limited, 1, model, timeout_sec=120)
    want, warned = found["free"]
    assert warned == []
    for name in ("pass 1", "pass 2"):
        got, warned = found[name]
        assert torch.equal(got, want), name
        assert len(warned) == 1, name
        assert warned[0].startswith("no room for all activations of 1,000,000,000 tokens")
