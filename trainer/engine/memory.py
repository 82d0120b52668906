"""How much memory a rank will need, from the model's config alone; it must not load weights.

An estimate to plan by, not a measurement: each part's formula stands at the function that computes
it. Letters: P all parameters, T trainable ones, W ranks, b bytes of `model.dtype`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig

from trainer.model.adapters import check_targets
from trainer.model.layer_major import supports_layer_major
from trainer.objectives.contrastive import TILE_BYTES
from trainer.recipe.resolve import global_batch_sizes
from trainer.recipe.schema import LoraRecipe, Recipe, Task

Way = Literal["step", "chunk", "interleaved"]
"""When ZeRO-3 gathers parameters: once per step, once per layer, or for every chunk."""

RESERVED_BYTES = 2 * 2**30
"""CUDA context, cuBLAS workspaces and fragmentation of the allocator, per GPU."""
MEMINFO = Path("/proc/meminfo")
"""Where Linux tells how much memory is free."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
"""b."""
NORM_ELEMENTS = 6
"""Hidden states per token that a layer's two norms and residuals keep, float32 counted double."""
TILES = 4
"""Tiles of logits that the contrastive loss holds at once."""
OFFLOADED = {
    "offload_param": ("parameters",),
    "offload_optimizer": ("gradients", "optimizer state"),
}
"""What each section of a ds_config moves to the host."""
VECTOR_COPIES = 3
"""Copies of all embeddings on a rank: gathered values, their gradients, and those being reduced."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a backbone."""

    num_parameters: int
    """P, adapters included."""
    num_trainable: int
    """T: P, or those of the adapters."""
    layer_parameters: int
    """Parameters of the largest repeated block, or of the embeddings if these are more."""
    num_layers: int
    """Repeated blocks."""
    hidden_size: int
    """Elements of a token's hidden state."""
    is_layered: bool
    """Whether chunks can run layer by layer, as `gather: chunk` has them."""
    layer_elements: int
    """Elements that a token leaves in one layer for its backward pass.

    Inputs and outputs of the linear maps, norms and residuals; fused attention keeps no matrix of
    tokens by tokens.
    """


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on each GPU, part by part."""

    parts: Mapping[Way, Mapping[str, int]]
    """Bytes by name for each value of `engine.gather` that suits the model, fastest first."""
    host_bytes: int
    """On the CPU side, for each rank."""
    checkpoint_bytes: int
    """On disk for one checkpoint of all ranks."""
    usable_bytes: int | None
    """What a rank may use of its GPU, or its share of the machine; None where not known."""

    def total(self, gather: Way) -> int:
        """Peak bytes with that way of gathering."""
        return sum(self.parts[gather].values())

    @property
    def gather(self) -> Way:
        """The fastest way that fits, else the one that needs least."""
        if self.usable_bytes is None:
            return "step"
        fitting = [way for way in self.parts if self.total(way) <= self.usable_bytes]
        return fitting[0] if fitting else min(self.parts, key=self.total)

    @property
    def fits(self) -> bool:
        """Whether the chosen way is under the GPU's memory, as far as that is known."""
        return self.usable_bytes is None or self.total(self.gather) <= self.usable_bytes


def measure_model(config: PretrainedConfig, lora: LoraRecipe | None) -> ModelShape:
    """Build the model without storage and count.

    Args:
        config: as transformers reads it; no weights are needed.
        lora: adapters, or None for full fine-tuning.

    Raises:
        RecipeError: a target of the adapters that matches nothing.
    """
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    if lora is not None:
        check_targets(model, lora)
    blocks = _blocks(model)
    block = max(blocks, key=_count, default=model)
    embeddings = [_count(module) for module in model.modules() if isinstance(module, nn.Embedding)]
    adapters = 0 if lora is None else _adapter_parameters(model, lora)
    hidden_size = int(config.get_text_config().hidden_size)
    linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
    elements = sum(linear.in_features + linear.out_features for linear in linears)
    return ModelShape(
        num_parameters=_count(model) + adapters,
        num_trainable=_count(model) if lora is None else adapters,
        layer_parameters=max([_count(block), *embeddings]),
        num_layers=max(1, len(blocks)),
        hidden_size=hidden_size,
        is_layered=supports_layer_major(model),
        layer_elements=elements + NORM_ELEMENTS * hidden_size,
    )


def plan_memory(
    recipe: Recipe,
    shape: ModelShape,
    *,
    deepspeed: Mapping[str, Any],
    world_size: int,
    usable_bytes: int | None = None,
) -> MemoryPlan:
    """Add up a rank's memory.

    Args:
        recipe: batch sizes, lengths, dtype, chunk budget.
        shape: from `measure_model`.
        deepspeed: the resolved dict; its stage and offloading decide what is sharded.
        world_size: W.
        usable_bytes: from `device_memory` or `usable`; None where not known.
    """
    zero = deepspeed["zero_optimization"]
    resident = _resident_bytes(recipe, shape, zero["stage"], world_size)
    moved = [
        part
        for section, parts in OFFLOADED.items()
        if (zero.get(section) or {}).get("device", "none") != "none"
        for part in parts
    ]
    common = {part: 0 if part in moved else size for part, size in resident.items()}
    common["embeddings and loss"] = _loss_bytes(recipe, shape)
    common["buckets"] = _bucket_bytes(shape, zero)
    whole = _whole_model_bytes(recipe, shape, zero["stage"])
    by_layer = _layer_bytes(recipe, shape, world_size)
    # chunk by chunk: whole chunks' activations over parameters that come and go by layer
    parts: dict[Way, dict[str, int]] = {"step": common | whole}
    if shape.is_layered:
        parts["chunk"] = common | by_layer
    kept = {part: whole[part] for part in ("activations", "states between layers")}
    parts["interleaved"] = common | by_layer | kept
    return MemoryPlan(
        parts=parts,
        host_bytes=sum(resident[part] for part in moved),
        checkpoint_bytes=_checkpoint_bytes(recipe, shape, zero["stage"]),
        usable_bytes=usable_bytes,
    )


def _resident_bytes(
    recipe: Recipe, shape: ModelShape, stage: int, world_size: int
) -> dict[str, int]:
    """What lives through the whole run.

    Parameters: P b at stages 1 and 2, P b / W at stage 3. Gradients, accumulated in float32: 4 T
    at stage 1, else 4 T / W. Optimizer: AdamW's two moments 8 T / W, and in bfloat16 the float32
    master weights, 4 T / W more (in float32 the parameters are their own master at stage 3 only).
    """
    trainable = 4 * shape.num_trainable
    parameters = DTYPE_BYTES[recipe.model.dtype] * shape.num_parameters
    has_master = recipe.model.dtype == "bfloat16" or stage < 3
    states = (2 if recipe.train.optimizer == "adamw" else 0) + has_master
    return {
        "parameters": parameters if stage < 3 else math.ceil(parameters / world_size),
        "gradients": trainable if stage == 1 else math.ceil(trainable / world_size),
        "optimizer state": math.ceil(states * trainable / world_size),
    }


def _checkpoint_bytes(recipe: Recipe, shape: ModelShape, stage: int) -> int:
    """Master weights and moments of what is trained, 12 T, and the trained weights themselves.

    Stage 3 leaves those out; the other stages write them in the model's dtype, T b. Frozen weights
    are not written: an adapter run names its base instead.
    """
    states = 3 if recipe.train.optimizer == "adamw" else 1
    width = 0 if stage == 3 else DTYPE_BYTES[recipe.model.dtype]
    return (4 * states + width) * shape.num_trainable


def _whole_model_bytes(recipe: Recipe, shape: ModelShape, stage: int) -> dict[str, int]:
    """What is held while whole chunks run over parameters gathered once per step.

    All parameters, P b at stage 3, and a full float32 gradient of each trainable one, 4 T. The
    graph of one chunk: without checkpointing every layer's activations of each token; with it one
    hidden state per layer and one layer's activations at a time.
    """
    width = DTYPE_BYTES[recipe.model.dtype]
    layer = shape.layer_elements * width
    if recipe.model.gradient_checkpointing:
        per_token = layer + shape.num_layers * shape.hidden_size * width
    else:
        per_token = layer * shape.num_layers
    return {
        "gathered parameters": width * shape.num_parameters if stage == 3 else 0,
        "gathered gradients": 4 * shape.num_trainable,
        "activations": _chunk_tokens(recipe) * (per_token + _pooling_bytes(shape)),
        "states between layers": 0,
    }


def _layer_bytes(recipe: Recipe, shape: ModelShape, world_size: int) -> dict[str, int]:
    """What is held while all chunks run through one layer after another.

    Two layers' parameters (the next is fetched while one computes), one layer's float32 gradient,
    one layer's activations of one chunk, and the hidden state of every token of this rank at every
    border between layers.
    """
    width = DTYPE_BYTES[recipe.model.dtype]
    share = math.ceil(max(step_tokens(recipe).values(), default=0) / world_size)
    per_token = shape.layer_elements * width + _pooling_bytes(shape)
    return {
        "gathered parameters": 2 * width * shape.layer_parameters,
        "gathered gradients": 4 * min(shape.layer_parameters, shape.num_trainable),
        "activations": _chunk_tokens(recipe) * per_token,
        "states between layers": share * (shape.num_layers + 1) * shape.hidden_size * width,
    }


def _chunk_tokens(recipe: Recipe) -> int:
    """Tokens whose graph is alive at once: a chunk, the kept graphs, or one long text."""
    longest = max(recipe.data.query_max_tokens, recipe.data.passage_max_tokens)
    return max(recipe.engine.max_tokens_per_chunk, recipe.engine.keep_graph_tokens or 0, longest)


def _pooling_bytes(shape: ModelShape) -> int:
    """Two float32 hidden states per token: the last one and its gradient."""
    return 2 * 4 * shape.hidden_size


def step_tokens(recipe: Recipe) -> dict[Task, int]:
    """Tokens of one step of each task over all ranks if every text has its greatest length."""
    data, ir, sts = recipe.data, recipe.tasks.ir, recipe.tasks.sts
    tokens: dict[Task, int] = {}
    for task, size in global_batch_sizes(recipe).items():
        if task == "ir" and ir is not None:
            passages = (ir.positives + ir.negatives) * data.passage_max_tokens
            tokens[task] = size * (data.query_max_tokens + passages)
        elif task == "sts" and sts is not None:
            tokens[task] = size * 2 * data.query_max_tokens
    return tokens


def _loss_bytes(recipe: Recipe, shape: ModelShape) -> int:
    """Float32 embeddings of all ranks with their gradients, and the tiles of the loss."""
    sizes = [0]
    ir, sts = recipe.tasks.ir, recipe.tasks.sts
    if ir is not None:
        candidates = ir.global_batch_size * (ir.positives + ir.negatives)
        vectors = ir.global_batch_size + candidates
        tile = min(TILE_BYTES, 4 * ir.global_batch_size * candidates)
        sizes.append(VECTOR_COPIES * 4 * vectors * shape.hidden_size + TILES * tile)
    if sts is not None:
        pairs = sts.global_batch_size
        # last and middle layer of two texts, and the differences of all pairs of golds
        sizes.append(VECTOR_COPIES * 4 * 4 * pairs * shape.hidden_size + TILES * 4 * pairs**2)
    return max(sizes)


def _bucket_bytes(shape: ModelShape, zero: Mapping[str, Any]) -> int:
    """DeepSpeed's reduction bucket, twice where it overlaps with the backward pass, in float32."""
    elements = min(int(zero.get("reduce_bucket_size", 5e8)), shape.num_trainable)
    copies = 2 if zero.get("overlap_comm", zero["stage"] == 3) else 1
    return copies * 4 * elements


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated layers: the longest list of modules in the model."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _adapter_parameters(model: nn.Module, lora: LoraRecipe) -> int:
    """Sum of rank (in + out) over the adapted linear maps, and `out` magnitudes each for DoRA."""
    total = 0
    for name, module in model.named_modules():
        chosen = lora.targets == "all-linear" or name.rsplit(".", 1)[-1] in lora.targets
        if isinstance(module, nn.Linear) and chosen:
            total += lora.rank * (module.in_features + module.out_features)
            total += module.out_features * lora.dora
    return total


def usable(gpu_bytes: int) -> int:
    """What tensors may take of a GPU's memory, bytes."""
    return gpu_bytes - RESERVED_BYTES


def device_memory(num_local_ranks: int) -> int | None:
    """Bytes that a rank's tensors may take: of its GPU, or of its share of the free memory.

    Args:
        num_local_ranks: ranks that share this machine's memory; a GPU belongs to one rank.
    """
    if torch.cuda.is_available():
        return usable(int(torch.cuda.mem_get_info()[1]))
    if not MEMINFO.exists():
        return None
    lines = MEMINFO.read_text().splitlines()
    kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return kibibytes * 1024 // num_local_ranks
