"""How the chunks of a step go through a sharded model: the gradient cache in three forms.

The method is Gao et al. 2021, arXiv:2101.06983; the forms give the same gradient and differ in
speed and memory.
`StepGradCache`, which is here, gathers parameters once per step. Those of
`trainer.engine.hooked_grad_cache` gather once per layer and direction, or for every chunk. They
must not know losses: a step's loss is a function from this rank's vectors to their gradients.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import deepspeed
import torch
from torch import Tensor

from trainer.engine.chunk_vectors import concatenate, split_like
from trainer.engine.losses.task_loss import Vectors
from trainer.engine.memory_errors import is_out_of_memory
from trainer.engine.replica import Replica
from trainer.model.embedder import Chunk, Embedder

logger = logging.getLogger(__name__)

ValueAndGrad = Callable[[Vectors], tuple[Vectors, dict[str, Tensor]]]
"""From vectors to (d loss / d vectors times the number of ranks, scalar terms to report)."""


class GradCache(Protocol):
    """One way to run chunks; every rank calls it with as many chunks as the others."""

    keep_graph_tokens: int
    """Padded tokens whose graph is kept, so that they run forward once."""

    @property
    def shares_prefix(self) -> bool:
        """Whether `embed` takes chunks whose texts share their first tokens."""
        ...

    def accumulate(
        self,
        chunks: Sequence[Chunk],
        value_and_grad: ValueAndGrad,
        *,
        step_key: int,
        middle: bool,
        taught: bool = False,
    ) -> dict[str, Tensor]:
        """Leave the step's gradient in the engine, ready for `engine.step()`.

        Args:
            chunks: this rank's texts.
            value_and_grad: the loss, called once with all vectors of this rank.
            step_key: seed and step, mixed; keys dropout.
            middle: whether the middle layer is pooled too.
            taught: whether vectors are also brought to a teacher's size.

        Returns:
            The terms that `value_and_grad` returned.
        Collective: yes.
        """
        ...

    def embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """Vectors without gradient or dropout [n, H], float32. Collective: yes."""
        ...

    def held(self) -> contextlib.AbstractContextManager[object]:
        """Keep parameters where they are between calls of `embed`. Collective: yes."""
        ...


def shares_prefix(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether texts may share their first tokens in evaluation."""
    return engine.module.prefix is not None


def hand_on(outputs: Vectors, gradients: Vectors) -> None:
    """Continue the way back from vectors to parameters.

    Vectors without a trained parameter before them, as those of a middle layer below all adapters,
    have none to hand a gradient to.
    """
    pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


def first_kept(chunks: Sequence[Chunk], keep_graph_tokens: int) -> int:
    """Index of the first chunk whose graph survives pass 1.

    The last chunks are kept while they fit `keep_graph_tokens`.
    """
    index, tokens = len(chunks), 0
    while index > 0 and tokens + chunks[index - 1].padded_tokens <= keep_graph_tokens:
        index -= 1
        tokens += chunks[index].padded_tokens
    return index


def has_graph(outputs: Vectors) -> bool:
    """Whether a chunk can go back without another forward."""
    return any(output.requires_grad for output in outputs)


@contextlib.contextmanager
def recomputing_nothing(model: Embedder, *, wanted: bool) -> Iterator[None]:
    """Where wanted, layers keep their activations for a while although they are checkpointed."""
    layers: list[Any] = [
        module for module in model.modules() if getattr(module, "gradient_checkpointing", False)
    ]
    for layer in layers if wanted else ():
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """Both passes of one rank over its chunks, on a module without hooks."""

    model: Embedder
    chunks: Sequence[Chunk]
    """None of them empty."""
    step_key: int
    """Seed and step, mixed."""
    middle: bool
    """Whether the middle layer is pooled too."""
    taught: bool
    """Whether vectors are also brought to a teacher's size."""

    def forward(self, kept_from: int) -> list[Vectors]:
        """Vectors of each chunk, with their graph from chunk `kept_from` on."""
        outputs = []
        for i, chunk in enumerate(self.chunks):
            with torch.set_grad_enabled(i >= kept_from):
                self.model.begin(chunk, self.step_key)
                outputs.append(self._run(chunk))
        return outputs

    def backward(self, outputs: list[Vectors], cached: Sequence[Vectors]) -> None:
        """Add the gradient of every chunk; one without a graph runs forward again.

        Newest graphs first: they are freed before any chunk runs again.
        """
        for i in reversed(range(len(self.chunks))):
            chunk, output = self.chunks[i], outputs[i]
            outputs[i] = ()
            self.model.begin(chunk, self.step_key)
            if not has_graph(output):
                output = self._run(chunk)
            hand_on(output, cached[i])
            del output

    def _run(self, chunk: Chunk) -> Vectors:
        """One forward."""
        return self.model(chunk, middle=self.middle, taught=self.taught)


class StepGradCache:
    """Both passes on a hook-free replica over parameters gathered once, one reduction at the end.

    Costs about what ZeRO-1 costs; holds all parameters and all trainable gradients for the step.
    Ranks may have different numbers of chunks.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        replica: Replica,
        *,
        keep_graph_tokens: int,
        whole_graphs: bool = False,
    ) -> None:
        """Set up both passes.

        Args:
            engine: owns the parameters.
            replica: its structure without hooks.
            keep_graph_tokens: padded tokens whose graph pass 1 keeps.
            whole_graphs: keep all activations also where the model recomputes its layers.
        """
        self.engine = engine
        self.replica = replica
        self.keep_graph_tokens = keep_graph_tokens
        self.whole_graphs = whole_graphs

    @property
    def shares_prefix(self) -> bool:
        """See `GradCache.shares_prefix`."""
        return shares_prefix(self.engine)

    def accumulate(
        self,
        chunks: Sequence[Chunk],
        value_and_grad: ValueAndGrad,
        *,
        step_key: int,
        middle: bool,
        taught: bool = False,
    ) -> dict[str, Tensor]:
        """See `GradCache.accumulate`.

        A pass in which kept graphs leave no room runs again without them. The other ranks, which
        this one does not meet within a pass, only wait.
        """
        chunks = [chunk for chunk in chunks if chunk.num_texts]
        self.engine.set_gradient_accumulation_boundary(True)
        with self.replica.gathered() as model:
            model.train()
            passes = _Passes(
                model=model, chunks=chunks, step_key=step_key, middle=middle, taught=taught
            )
            outputs = self._first_pass(passes)
            sizes = model.table_sizes(middle=middle, taught=taught)
            gradients, terms = value_and_grad(self._joined(outputs, sizes))
            self._second_pass(passes, outputs, split_like(chunks, gradients))
            self.replica.deliver(self.engine)
        return terms

    def _first_pass(self, passes: "_Passes") -> list[Vectors]:
        """Vectors of all chunks, those of the last chunks with their graph."""
        kept_from = first_kept(passes.chunks, self.keep_graph_tokens)
        if len(passes.chunks) == 1:
            # it goes back at once
            kept_from = 0
        try:
            with recomputing_nothing(passes.model, wanted=self.whole_graphs):
                return passes.forward(kept_from)
        except (RuntimeError, MemoryError) as error:
            if kept_from == len(passes.chunks):
                raise
            self._keep_less(error)
        return passes.forward(len(passes.chunks))

    def _second_pass(
        self, passes: "_Passes", outputs: list[Vectors], cached: Sequence[Vectors]
    ) -> None:
        """Leave the gradient of all chunks in the replica; takes the outputs out of their list."""
        can_do_with_less = self.whole_graphs or any(map(has_graph, outputs))
        try:
            with recomputing_nothing(passes.model, wanted=self.whole_graphs):
                passes.backward(outputs, cached)
            return
        except (RuntimeError, MemoryError) as error:
            if not can_do_with_less:
                raise
            self._keep_less(error)
        outputs[:] = [() for _ in outputs]
        self.replica.forget_gradients()
        passes.backward(outputs, cached)

    def _keep_less(self, error: RuntimeError | MemoryError) -> None:
        """Where memory has run out, keep less in further steps, and say so; else raise it again."""
        if not is_out_of_memory(error):
            raise error
        logger.warning(
            "no room for %s of %s tokens between the passes of a step; they run again without, and "
            "this rank keeps less in further steps",
            "all activations" if self.whole_graphs else "the graphs",
            f"{self.keep_graph_tokens:,}",
        )
        self.keep_graph_tokens //= 2
        self.whole_graphs = False

    def _joined(self, outputs: Sequence[Vectors], sizes: Sequence[int]) -> Vectors:
        """All vectors of this rank without graph; tensors [0, size] where it has no texts."""
        if outputs:
            return tuple(v.detach() for v in concatenate(outputs))
        return tuple(torch.empty(0, size, device=self.engine.device) for size in sizes)

    def embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """See `GradCache.embed`."""
        with self.replica.gathered() as model, torch.no_grad():
            model.eval()
            outputs = [model(chunk) for chunk in chunks if chunk.num_texts]
            return self._joined(outputs, [model.vector_size])[0]

    def held(self) -> contextlib.AbstractContextManager[object]:
        """See `GradCache.held`."""
        return self.replica.gathered()
