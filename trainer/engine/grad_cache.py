"""How the chunks of a step go through a sharded model: the gradient cache in three forms.

The method is Gao et al. 2021, arXiv:2101.06983; the forms give the same gradient and differ in
speed and memory.
`StepGradCache` gathers parameters once per step, `LayerGradCache` once per layer and direction,
`ChunkGradCache` for every chunk, as a plain DeepSpeed loop would. They must not know losses:
a step's loss is a function from this rank's vectors to their gradients.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import deepspeed
import torch
from torch import Tensor

from trainer.engine.losses.task_loss import Vectors
from trainer.engine.replica import Replica
from trainer.model.embedder import Chunk, Embedder

ValueAndGrad = Callable[[Vectors], tuple[Vectors, dict[str, Tensor]]]
"""From vectors to (d loss / d vectors times the number of ranks, scalar terms to report)."""


class GradCache(Protocol):
    """One way to run chunks; every rank calls it with as many chunks as the others."""

    @property
    def shares_prefix(self) -> bool:
        """Whether `embed` takes chunks whose texts share their first tokens."""
        ...

    def accumulate(
        self, chunks: Sequence[Chunk], value_and_grad: ValueAndGrad, *, step_key: int, middle: bool
    ) -> dict[str, Tensor]:
        """Leave the step's gradient in the engine, ready for `engine.step()`.

        Args:
            chunks: this rank's texts.
            value_and_grad: the loss, called once with all vectors of this rank.
            step_key: seed and step, mixed; keys dropout.
            middle: whether the middle layer is pooled too.

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


def concatenate(outputs: Sequence[Vectors]) -> Vectors:
    """Join the vectors of chunks in order."""
    return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))


def hand_on(outputs: Vectors, gradients: Vectors) -> None:
    """Continue the way back from vectors to parameters.

    Vectors without a trained parameter before them, as those of a middle layer below all adapters,
    have none to hand a gradient to.
    """
    pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


def surrogate(outputs: Vectors, gradients: Vectors) -> Tensor:
    """A scalar whose gradient with respect to outputs is the cached gradient."""
    products = [(o * g).sum() for o, g in zip(outputs, gradients, strict=True)]
    return torch.stack(products).sum()


def split_like(chunks: Sequence[Chunk], gradients: Vectors) -> list[Vectors]:
    """Cut gradients of all texts into those of each chunk."""
    sizes = [chunk.num_texts for chunk in chunks]
    return list(zip(*(g.split(sizes) for g in gradients), strict=True))


def first_kept(chunks: Sequence[Chunk], keep_graph_tokens: int) -> int:
    """Index of the first chunk whose graph survives pass 1.

    The last chunks are kept while they fit `keep_graph_tokens`; a lone chunk always is.
    """
    if len(chunks) == 1:
        return 0
    index, tokens = len(chunks), 0
    while index > 0 and tokens + chunks[index - 1].padded_tokens <= keep_graph_tokens:
        index -= 1
        tokens += chunks[index].padded_tokens
    return index


class StepGradCache:
    """Both passes on a hook-free replica over parameters gathered once, one reduction at the end.

    Costs about what ZeRO-1 costs; holds all parameters and all trainable gradients for the step.
    Ranks may have different numbers of chunks.
    """

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, replica: Replica, *, keep_graph_tokens: int
    ) -> None:
        self.engine = engine
        self.replica = replica
        self.keep_graph_tokens = keep_graph_tokens

    @property
    def shares_prefix(self) -> bool:
        """See `GradCache.shares_prefix`."""
        return shares_prefix(self.engine)

    def accumulate(
        self, chunks: Sequence[Chunk], value_and_grad: ValueAndGrad, *, step_key: int, middle: bool
    ) -> dict[str, Tensor]:
        """See `GradCache.accumulate`."""
        chunks = [chunk for chunk in chunks if chunk.num_texts]
        kept_from = first_kept(chunks, self.keep_graph_tokens)
        self.engine.set_gradient_accumulation_boundary(True)
        with self.replica.gathered() as model:
            model.train()
            outputs = []
            for i, chunk in enumerate(chunks):
                with torch.set_grad_enabled(i >= kept_from):
                    model.begin(chunk, step_key)
                    outputs.append(model(chunk, middle=middle))
            gradients, terms = value_and_grad(self._joined(model, outputs, middle))
            cached = split_like(chunks, gradients)
            # newest graphs first: they are freed before any chunk runs again
            for i in reversed(range(len(chunks))):
                model.begin(chunks[i], step_key)
                output = outputs[i] if i >= kept_from else model(chunks[i], middle=middle)
                outputs[i] = ()
                hand_on(output, cached[i])
                del output
            self.replica.deliver(self.engine)
        return terms

    def _joined(self, model: Embedder, outputs: Sequence[Vectors], middle: bool) -> Vectors:
        """All vectors of this rank without graph; empty tensors where it has no texts."""
        if outputs:
            return tuple(v.detach() for v in concatenate(outputs))
        sizes = (model.vector_size, model.state_size) if middle else (model.vector_size,)
        return tuple(torch.empty(0, size, device=self.engine.device) for size in sizes)

    def embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """See `GradCache.embed`."""
        with self.replica.gathered() as model, torch.no_grad():
            model.eval()
            outputs = [model(chunk) for chunk in chunks if chunk.num_texts]
            return self._joined(model, outputs, middle=False)[0]

    def held(self) -> contextlib.AbstractContextManager[object]:
        """See `GradCache.held`."""
        return self.replica.gathered()


class LayerGradCache:
    """One pass, layer by layer over all chunks; each (layer, chunk) is recomputed going back.

    ZeRO-3 gathers each layer once per direction and reduces each gradient once; memory is that of
    plain chunks plus one hidden state per token and layer. The engine's module must be a
    `LayerMajorEmbedder`.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self.engine = engine

    @property
    def shares_prefix(self) -> bool:
        """See `GradCache.shares_prefix`."""
        return shares_prefix(self.engine)

    def accumulate(
        self, chunks: Sequence[Chunk], value_and_grad: ValueAndGrad, *, step_key: int, middle: bool
    ) -> dict[str, Tensor]:
        """See `GradCache.accumulate`."""
        self.engine.train()
        outputs = self.engine(_filled(chunks, self.engine.device), step_key=step_key, middle=middle)
        kept = _real_rows(chunks)
        gradients, terms = value_and_grad(tuple(v.detach()[kept] for v in outputs))
        padded = tuple(_scatter(g, kept, len(v)) for g, v in zip(gradients, outputs, strict=True))
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.backward(surrogate(outputs, padded), scale_wrt_gas=False)
        return terms

    def embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """See `GradCache.embed`."""
        self.engine.eval()
        with torch.no_grad():
            outputs = self.engine(_filled(chunks, self.engine.device), step_key=0, middle=False)
        self.engine.train()
        return outputs[0][_real_rows(chunks)]

    def held(self) -> contextlib.AbstractContextManager[object]:
        """See `GradCache.held`; nothing to hold."""
        return contextlib.nullcontext()


class ChunkGradCache:
    """Two passes through the hooked engine, chunk by chunk: works for any backbone, least memory.

    Gathers and reduces for every chunk. The reference that the others are tested against.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self.engine = engine

    @property
    def shares_prefix(self) -> bool:
        """See `GradCache.shares_prefix`."""
        return shares_prefix(self.engine)

    def accumulate(
        self, chunks: Sequence[Chunk], value_and_grad: ValueAndGrad, *, step_key: int, middle: bool
    ) -> dict[str, Tensor]:
        """See `GradCache.accumulate`."""
        self.engine.train()
        run = _filled(chunks, self.engine.device)
        outputs = []
        for chunk in run:
            with torch.set_grad_enabled(len(run) == 1):
                outputs.append(self._forward(chunk, step_key, middle=middle))
        kept = _real_rows(chunks)
        gradients, terms = value_and_grad(tuple(v.detach()[kept] for v in concatenate(outputs)))
        padded = tuple(_scatter(g, kept, sum(c.num_texts for c in run)) for g in gradients)
        for i, cached in enumerate(split_like(run, padded)):
            self.engine.set_gradient_accumulation_boundary(i == len(run) - 1)
            output = outputs[0] if len(run) == 1 else self._forward(run[i], step_key, middle=middle)
            self.engine.backward(surrogate(output, cached), scale_wrt_gas=False)
        return terms

    def _forward(self, chunk: Chunk, step_key: int, *, middle: bool) -> Vectors:
        """One hooked forward."""
        self.engine.module.begin(chunk, step_key)
        vectors: Vectors = self.engine(chunk, middle=middle)
        return vectors

    def embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """See `GradCache.embed`."""
        self.engine.eval()
        with torch.no_grad():
            outputs = [self.engine(chunk) for chunk in _filled(chunks, self.engine.device)]
        self.engine.train()
        return concatenate(outputs)[0][_real_rows(chunks)]

    def held(self) -> contextlib.AbstractContextManager[object]:
        """See `GradCache.held`; nothing to hold."""
        return contextlib.nullcontext()


def _filled(chunks: Sequence[Chunk], device: torch.device) -> list[Chunk]:
    """The chunks with a one-token text in each empty one: hooked forwards must agree in number."""
    return [chunk if chunk.num_texts else Chunk.placeholder(device) for chunk in chunks]


def _real_rows(chunks: Sequence[Chunk]) -> Tensor:
    """Mask over the rows of the filled chunks: False for placeholders [n], bool, CPU."""
    return torch.tensor([bool(c.num_texts) for c in chunks for _ in range(max(1, c.num_texts))])


def _scatter(gradient: Tensor, rows: Tensor, size: int) -> Tensor:
    """Put gradient rows where `rows` is True and zeros elsewhere [size, H]."""
    full = gradient.new_zeros(size, gradient.shape[1])
    full[rows] = gradient
    return full
