"""How much memory a rank will need, from the model's config alone; it must not load weights.

A step has phases, and each holds other things besides what lives through the run: while chunks run,
activations; while gradients are reduced, DeepSpeed's copies of them; while weights are updated, the
optimizer's. The peak is that of the largest phase. `tools/bench/memory_plan.py` compares it with
measured peaks.

Letters: P all parameters, T trained ones, W ranks, b bytes of `model.dtype`, L layers.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from trainer.memory.shapes import ModelShape
from trainer.memory.workload import Job, loss_bytes
from trainer.recipe.deepspeed_file import offloads
from trainer.recipe.schema import AUTO, Recipe

Way = Literal["step", "layer", "chunk"]
"""When ZeRO-3 gathers parameters: once per step, once per layer, or for every chunk."""
BytesByPart = Mapping[str, int]
"""Bytes by name."""

FLAT_STATES = 2
"""States of all tokens besides those at the borders: a layer's parts, and the same joined."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of a rank, phase by phase and part by part."""

    phases: Mapping[Way, Mapping[str, BytesByPart]]
    """For each value of `engine.gather` that suits the model, fastest first."""
    host: BytesByPart
    """On the CPU side, for each rank: what is offloaded."""
    checkpoint_bytes: int
    """On disk for one checkpoint of all ranks."""
    export_bytes: int
    """On disk for `model/`: all weights, adapters merged into them."""
    usable_bytes: int | None
    """What a rank may use of its GPU, or its share of the machine; None where not known."""
    kept: Mapping[Way, int]
    """Padded tokens whose graph is kept with each of these ways, so that they run forward once."""

    def peak_phase(self, gather: Way) -> str:
        """The phase that needs most with that way of gathering."""
        phases = self.phases[gather]
        return max(phases, key=lambda name: sum(phases[name].values()))

    def parts(self, gather: Way) -> BytesByPart:
        """What is held in that phase."""
        return self.phases[gather][self.peak_phase(gather)]

    def total(self, gather: Way) -> int:
        """Peak bytes with that way of gathering."""
        return sum(self.parts(gather).values())

    @property
    def gather(self) -> Way:
        """The fastest way that fits, else the one that needs least."""
        if self.usable_bytes is None:
            return "step"
        fitting = [way for way in self.phases if self.fits_with(way)]
        return fitting[0] if fitting else min(self.phases, key=self.total)

    def fits_with(self, gather: Way) -> bool:
        """Whether a way of gathering is under the memory there is, as far as that is known."""
        return self.usable_bytes is None or self.total(gather) <= self.usable_bytes

    def fits_in(self, gather: Way, fraction: float) -> bool:
        """Whether it is under that share of the memory; never where that is not known."""
        return self.usable_bytes is not None and self.total(gather) <= fraction * self.usable_bytes

    @property
    def fits(self) -> bool:
        """The same for the chosen way."""
        return self.fits_with(self.gather)


def plan_memory(
    recipe: Recipe,
    shape: ModelShape,
    *,
    deepspeed: Mapping[str, Any],
    world_size: int,
    usable_bytes: int | None = None,
    on_gpu: bool = True,
) -> MemoryPlan:
    """Add up a rank's memory.

    Args:
        recipe: batch sizes, lengths, dtype, chunk budget.
        shape: from `measure_model` of the same recipe; batches, budgets and files may differ.
        deepspeed: the resolved dict; its stage and offloading decide what is sharded.
        world_size: W.
        usable_bytes: from `device_memory` or `usable`; None where not known.
        on_gpu: whether the ranks compute on GPUs.
    """
    zero = deepspeed["zero_optimization"]
    job = Job(recipe=recipe, shape=shape, zero=zero, world_size=world_size, on_gpu=on_gpu)
    resident = _resident(job)
    moved = _offloaded(deepspeed)
    held = {name: size for name, size in resident.items() if name not in moved}
    held["embeddings and loss"] = loss_bytes(recipe, shape, world_size=world_size)
    ways = [way for way in WAYS if shape.is_layered or way != "layer"]
    room = None
    if usable_bytes is not None:
        room = recipe.engine.memory_fraction * usable_bytes - sum(held.values())
    kept = {way: _kept_tokens(job, way, room) for way in ways}
    phases = {way: WAYS[way](job, kept[way]) for way in ways}
    update = _update(job, moved)
    return MemoryPlan(
        phases={
            way: {name: {**held, **parts} for name, parts in found.items()}
            | {"update": {**held, **update}}
            for way, found in phases.items()
        },
        host=_host(job, {name: resident[name] for name in moved if name in resident}),
        checkpoint_bytes=_checkpoint_bytes(job),
        export_bytes=job.width * (shape.num_parameters - shape.teacher_parameters),
        usable_bytes=usable_bytes,
        kept=kept,
    )


def _resident(job: Job) -> dict[str, int]:
    """What lives through the whole run.

    Parameters: P b at stages 1 and 2, P b / W at stage 3, where the small ones stay gathered as
    well. Masters, 4 T / W, also of float32 parameters: DeepSpeed copies them. AdamW's moments,
    8 T / W. Stage 3 keeps a flat gradient, 4 T / W, and a reduction bucket.
    """
    parameters = job.width * job.shape.num_parameters
    moments = 2 if job.recipe.train.optimizer == "adamw" else 0
    parts = {
        "parameters": parameters,
        "masters": job.own,
        "optimizer state": moments * job.own,
    }
    if job.stage == 3:
        kept = int(job.zero.get("stage3_param_persistence_threshold", 1e5))
        small = sum(size * count for size, count in job.shape.numels.items() if size <= kept)
        parts["parameters"] = math.ceil(parameters / job.world_size)
        parts["parameters that stay gathered"] = job.width * small
        parts["gradients"] = job.own
        parts["buckets"] = job.bucket_taken
    return parts


def _offloaded(deepspeed: Mapping[str, Any]) -> set[str]:
    """Names of the parts that a ds_config moves to the host."""
    moved = {"parameters"} if offloads(deepspeed, "offload_param") else set()
    if offloads(deepspeed, "offload_optimizer"):
        moved |= {"gradients", "masters", "optimizer state"}
    return moved


def _host(job: Job, moved: dict[str, int]) -> dict[str, int]:
    """What is offloaded; the optimizer on the host has a gradient of its own, 4 T / W more."""
    return moved | ({"the optimizer's gradients": job.own} if "masters" in moved else {})


def _step_phases(job: Job, kept: int) -> dict[str, BytesByPart]:
    """Whole chunks over parameters gathered once: forwards, backwards, then one reduction.

    The last chunks of pass 1 keep their graphs while there are no gradients yet, and lose them one
    by one as gradients arrive. Each later chunk adds its own to those of all, 4 T; to the table of
    embeddings a replica adds row by row.
    """
    gathered = {"gathered parameters": _gathered_once(job)}
    first = {"activations": job.shape.graph(kept) + job.shape.backward(job.chunk)}
    rest = max(job.chunk, kept - job.chunk) if job.share > kept else kept - job.chunk
    more = {"activations": job.shape.graph(rest) + job.shape.backward(job.chunk)}
    gradients = {"step's gradients": job.gradients}
    phases: dict[str, BytesByPart] = {"first chunk": gathered | first}
    if rest:
        phases["later chunks"] = gathered | gradients | more
    phases["reduction"] = gathered | gradients | _reduction(job)
    return phases


def _gathered_once(job: Job) -> int:
    """Bytes of all parameters where they are sharded between steps."""
    return job.width * job.shape.num_parameters * (job.stage == 3)


def _kept_tokens(job: Job, way: Way, room: float | None) -> int:
    """Tokens whose graph is kept: those of whole chunks, and at least what costs no memory.

    That is one chunk, whose graph is held at some time anyway, but none with `layer`, which holds
    one layer of it. `auto` keeps what fits `room`, bytes beside what is held through the run; what
    costs no memory where that is None.
    """
    keep = job.recipe.engine.keep_graph_tokens
    least, most = 0 if way == "layer" else job.chunk, max(job.chunk, job.share)
    if keep == AUTO:
        keep = None if room is None else _fitting_tokens(job, way, room, most)
    keep = least if keep is None else keep // job.chunk * job.chunk if keep < most else most
    return max(least, keep)


def _fitting_tokens(job: Job, way: Way, room: float, most: int) -> int:
    """The most tokens of whole chunks whose graphs fit some bytes, 0 to `most`."""

    def kept(num_chunks: int) -> int:
        return min(num_chunks * job.chunk, most)

    def peak(num_chunks: int) -> int:
        return max(sum(parts.values()) for parts in WAYS[way](job, kept(num_chunks)).values())

    # no phase needs less for keeping more
    counts = range(math.ceil(most / job.chunk) + 1)
    return kept(max(0, bisect_right(counts, room, key=peak) - 1))


def _reduction(job: Job) -> dict[str, int]:
    """Copies of gradients while a bucket is reduced, besides the gradients that wait.

    Stages 1 and 2 fill a bucket, whose originals are freed, and copy it. Stage 3 joins a bucket's
    gradients in a new tensor, whose originals are freed; gloo sums in a copy of that.
    """
    full = 4 * job.bucket
    if job.stage == 3:
        largest = 4 * max(job.shape.numels, default=0) if job.shape.embedding_trained else 0
        return {"copies for reduction": 0 if job.on_gpu else max(full, largest)}
    return {"buckets": job.bucket_taken - full, "copies for reduction": full}


def _update(job: Job, moved: set[str]) -> dict[str, int]:
    """The update: a flat copy of the own gradients; fused AdamW holds nothing besides."""
    if "masters" in moved:
        return {}
    group = (
        min(job.own, 4 * int(job.zero.get("sub_group_size", 1e9))) if job.stage == 3 else job.own
    )
    parts = {"flat gradients": group}
    if job.stage < 3:
        parts["gradients"] = job.own
    return parts


def _layer_phases(job: Job, kept: int) -> dict[str, BytesByPart]:
    """All chunks through one layer after another, and back.

    The state of every token of the rank is kept at each of the L borders, and all that layers save
    of the tokens that are not recomputed. At the top of the backward pass all of that is there, and
    one layer's gradients; at its end the table of embeddings gets its gradient.
    """
    state = job.share * job.shape.hidden_size * job.width
    borders = {"states between layers": (job.shape.num_layers + FLAT_STATES) * state}
    if kept:
        borders["kept graphs"] = job.shape.num_layers * job.shape.layer_graph(kept)
    one_layer = {"activations": job.shape.layer(job.chunk)}
    if job.stage < 3:
        gradients = {"step's gradients": job.gradients}
        return {
            "layers": borders | one_layer | gradients,
            "reduction": gradients | _reduction(job),
        }
    live, in_flight = _gathered(job)
    flight = {"parameters in flight": in_flight}
    going_back = 0 if live == job.width * job.shape.num_parameters else in_flight
    return {
        "forward": borders | one_layer | {"gathered parameters": live} | flight,
        "backward": borders
        | one_layer
        | {"gathered parameters": live, "parameters in flight": going_back}
        | {"layer's gradients": 4 * job.shape.layer_trainable},
        "embeddings": {
            "states between layers": FLAT_STATES * state,
            "gathered parameters": job.width * job.shape.embedding_parameters,
        }
        | _embedding_gradient(job),
    }


def _embedding_gradient(job: Job) -> dict[str, int]:
    """A new gradient of the table of embeddings, for which the waiting bucket is reduced."""
    if not job.shape.embedding_trained:
        return {"copies for reduction": 0}
    copies = 1 if job.on_gpu else 2
    waiting = min(job.bucket, job.shape.num_trainable - job.shape.embedding_parameters)
    return {
        "embeddings' gradient": job.embedding_gradient,
        "copies for reduction": 4 * copies * waiting,
    }


def _gathered(job: Job) -> tuple[int, int]:
    """Bytes of layers that are gathered at once, and of those on their way.

    DeepSpeed keeps a layer that is used again before `stage3_max_reuse_distance` parameters went
    by, once forward and once backward, and fetches ahead. A group on its way is there twice until
    its last parameter is used: as it came, and cut into parameters.
    """
    ahead = int(job.zero.get("stage3_prefetch_bucket_size", 5e7))
    reuse = int(job.zero.get("stage3_max_reuse_distance", 1e9)) // 2
    layer = max(job.shape.layer_parameters, job.shape.embedding_parameters)
    everything = job.shape.num_parameters
    fetched = max(ahead, job.shape.layer_parameters)
    live = min(everything, reuse + layer + fetched)
    in_flight = min(everything - job.shape.embedding_parameters, fetched)
    return job.width * live, job.width * in_flight


def _chunk_phases(job: Job, kept: int) -> dict[str, BytesByPart]:
    """Chunk by chunk through the hooked engine: a chunk's activations over layers that come and go.

    Below stage 3 all gradients wait for the last chunk. Chunks that go back together hold a
    gradient of every trained parameter, T b, until the first of them is through.
    """
    chunk = job.shape.graph(max(kept, job.chunk)) + job.shape.backward(job.chunk)
    together = job.width * job.shape.num_trainable if kept > job.chunk else 0
    sums = {"sums over kept chunks": together}
    if job.stage < 3:
        gradients = {"step's gradients": job.gradients}
        activations = {"activations": max(chunk, job.embedding_gradient)}
        return {"chunks": gradients | activations | sums, "reduction": gradients | _reduction(job)}
    live, in_flight = _gathered(job)
    moving = {"gathered parameters": live, "parameters in flight": in_flight}
    return {
        "chunks": moving
        | sums
        | {"activations": chunk, "layer's gradients": 4 * job.shape.layer_trainable},
        "embeddings": {"gathered parameters": job.width * job.shape.embedding_parameters}
        | _embedding_gradient(job),
    }


WAYS: Mapping[Way, Callable[[Job, int], dict[str, BytesByPart]]] = {
    "step": _step_phases,
    "layer": _layer_phases,
    "chunk": _chunk_phases,
}
"""From tokens whose graph is kept to the phases of a step, fastest way first."""


def _checkpoint_bytes(job: Job) -> int:
    """Master weights and moments of what is trained, 12 T, and the trained weights themselves.

    Stage 3 leaves those out; the other stages write them in the model's dtype, T b. Frozen weights
    are not written: an adapter run names its base instead.
    """
    states = 3 if job.recipe.train.optimizer == "adamw" else 1
    width = 0 if job.stage == 3 else job.width
    return (4 * states + width) * job.shape.num_trainable


def with_budget(recipe: Recipe, max_tokens_per_chunk: int) -> Recipe:
    """The recipe with another chunk budget."""
    engine = replace(recipe.engine, max_tokens_per_chunk=max_tokens_per_chunk)
    return replace(recipe, engine=engine)
