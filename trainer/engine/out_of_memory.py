"""Out of memory: a probe finds it before the first step, and the message names the remedy.

It must not choose sizes itself: the recipe's numbers are what the user lowers.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import deepspeed
import numpy as np
import torch
from torch import Tensor

from trainer.data.batch import Texts
from trainer.distributed.group import Ranks
from trainer.engine.build import Built
from trainer.engine.losses.task_loss import Vectors
from trainer.engine.materialise import make_chunks
from trainer.engine.memory_errors import is_out_of_memory
from trainer.errors import StepError
from trainer.model.token_rows import trained_id
from trainer.recipe.per_source import step_kinds
from trainer.recipe.resolve import row_texts, uses_middle_layer, uses_teacher_layer
from trainer.recipe.schema import AUTO, Recipe

CHEAP_ON_CPU_FLOP = 1e11
"""A memory probe of more work than this, about two seconds of a core, is not made without a GPU."""
FLOP_PER_PARAMETER = 8
"""Operations of one token: forward twice, and backward, which costs twice a forward."""
SKIP_WORDS = "OVERFLOW!"
"""How DeepSpeed's warning of a step without an update begins."""
COUNTERS = ("skipped_steps", "global_steps", "global_samples", "micro_steps")
"""What DeepSpeed counts, and a memory probe must not."""


@dataclass(frozen=True, kw_only=True)
class LargestChunk:
    """The most that a forward and the graphs kept beside it can hold on one rank."""

    num_texts: int
    """Texts of a chunk."""
    text_tokens: int
    """Tokens of each."""
    num_chunks: int
    """As many as keep their graph, and one more that runs twice."""

    def __str__(self) -> str:
        return f"{self.num_chunks} x {self.num_texts} texts of {self.text_tokens} tokens"


def largest_chunk(
    recipe: Recipe, *, world_size: int, max_positions: int, keep_graph_tokens: int
) -> LargestChunk:
    """The largest chunk that the recipe allows and its batches can fill.

    Args:
        recipe: as loaded.
        world_size: number of ranks.
        max_positions: positions that the model has.
        keep_graph_tokens: padded tokens whose graph is kept.
    """
    budget = recipe.engine.max_tokens_per_chunk
    steps = []
    for kind in step_kinds(recipe):
        texts = row_texts(recipe, kind)
        texts_per_row = sum(number for number, _ in texts)
        steps.append((kind.settings.global_batch_size * texts_per_row, max(t for _, t in texts)))
    num_texts, longest = max(steps, key=lambda step: step[0] * step[1])
    share, tokens = math.ceil(num_texts / world_size), min(longest, max_positions)
    rows = min(max(1, budget // tokens), share)
    num_kept = keep_graph_tokens // (rows * tokens)
    return LargestChunk(
        num_texts=rows,
        text_tokens=tokens,
        num_chunks=min(num_kept + 1, math.ceil(share / rows)),
    )


def is_worth_probing(built: Built, chunk: LargestChunk, device: torch.device) -> bool:
    """Whether a memory probe costs little beside what it can save."""
    sizes = (getattr(p, "ds_numel", p.numel()) for p in built.engine.module.parameters())
    tokens = chunk.num_chunks * chunk.num_texts * chunk.text_tokens
    return device.type == "cuda" or FLOP_PER_PARAMETER * sum(sizes) * tokens < CHEAP_ON_CPU_FLOP


def probe_memory(recipe: Recipe, built: Built, ranks: Ranks) -> None:
    """Run the largest chunk forward and backward, and leave everything as it was.

    Its gradient is not a number, which DeepSpeed drops as it does in a skipped step. Left out where
    it would cost more than a moment: on a CPU with a model that is not tiny. A step of more chunks
    needs a little more: its vectors, and with `gather: layer` one hidden state per token and layer.

    Raises:
        StepError: if there is not enough memory.
    Collective: yes.
    """
    positions = getattr(built.engine.module.config, "max_position_embeddings", None) or math.inf
    chunk = largest_chunk(
        recipe,
        world_size=ranks.world_size,
        max_positions=int(min(positions, 1 << 30)),
        keep_graph_tokens=built.grad_cache.keep_graph_tokens,
    )
    if not is_worth_probing(built, chunk, ranks.device):
        return
    ranks.enter("in a memory probe before the first step")
    engine = built.engine
    before = {name: getattr(engine, name) for name in COUNTERS}
    on_gpu = [ranks.device] if ranks.device.type == "cuda" else []
    memory = explaining_memory(recipe, built, ranks, f"memory probe of {chunk}")
    with memory, torch.random.fork_rng(devices=on_gpu):
        built.grad_cache.accumulate(
            make_chunks(*_filled(chunk, trained_id(engine.module)), key=0, device=ranks.device),
            _no_gradient,
            step_key=0,
            middle=uses_middle_layer(recipe),
            taught=uses_teacher_layer(recipe),
        )
        with _skipping_quietly():
            engine.step()
    assert engine.skipped_steps == before["skipped_steps"] + 1, (
        "the memory probe changed the parameters"
    )
    for name, value in before.items():
        setattr(engine, name, value)
    if on_gpu:
        torch.cuda.empty_cache()


@contextmanager
def _skipping_quietly() -> Iterator[None]:
    """Keep DeepSpeed from warning of a skipped step that is meant to be one; others it reports."""

    def is_other(record: logging.LogRecord) -> bool:
        return SKIP_WORDS not in record.getMessage()

    deepspeed.utils.logger.addFilter(is_other)
    try:
        yield
    finally:
        deepspeed.utils.logger.removeFilter(is_other)


def _filled(chunk: LargestChunk, token: int) -> tuple[Texts, list[np.ndarray]]:
    """Texts of one token, all of a length, and the plan that deals them to chunks."""
    total = chunk.num_chunks * chunk.num_texts
    ids = tuple(np.full(chunk.text_tokens, token, np.int32) for _ in range(total))
    texts = Texts(token_ids=ids, num_prompt_tokens=np.zeros(total, np.int64))
    return texts, np.array_split(np.arange(total), chunk.num_chunks)


def _no_gradient(vectors: Vectors) -> tuple[Vectors, dict[str, Tensor]]:
    """A loss whose gradient is not a number."""
    return tuple(torch.full_like(v, torch.nan) for v in vectors), {}


@contextmanager
def explaining_memory(recipe: Recipe, built: Built, ranks: Ranks, what: str) -> Iterator[None]:
    """Turn an out-of-memory error in the block into a message that names the numbers to lower.

    Raises:
        StepError: naming `what`, the rank, and the keys of the recipe.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = (str(error).splitlines() or ["MemoryError"])[0][:300]
        raise StepError(
            f"{what}, rank {ranks.rank} on {ranks.device}: memory = not enough ({found}); expected "
            f"room for a forward and backward of {recipe.engine.max_tokens_per_chunk} tokens. "
            f"{_remedies(recipe, built)}"
        ) from error


def _remedies(recipe: Recipe, built: Built) -> str:
    """What to change, as a sentence, the cheapest first."""
    engine, remedies = recipe.engine, []
    if isinstance(engine.keep_graph_tokens, int) and engine.keep_graph_tokens:
        remedies.append(
            f"lower engine.keep_graph_tokens to {engine.keep_graph_tokens // 2} or 0 "
            f"(now {engine.keep_graph_tokens})"
        )
    elif engine.keep_graph_tokens == AUTO and built.gather != "step":
        remedies.append(
            f"set engine.keep_graph_tokens=null (auto keeps {built.grad_cache.keep_graph_tokens})"
        )
    half = engine.max_tokens_per_chunk // 2
    remedies.append(
        f"lower engine.max_tokens_per_chunk to {half} (now {engine.max_tokens_per_chunk})"
    )
    if not recipe.model.gradient_checkpointing:
        remedies.append("set model.gradient_checkpointing=true")
    if built.gather == "step" and built.engine.zero_optimization_stage() == 3:
        remedies.append("set engine.gather=layer (now step)")
    text = "; or ".join(remedies)
    return f"{text[0].upper()}{text[1:]}."
