"""The gradient cache in the two forms that run through DeepSpeed's hooks; see `grad_cache`.

`LayerGradCache` gathers parameters once per layer and direction, `ChunkGradCache` for every chunk,
as a plain DeepSpeed loop would. Every forward and backward is a collective, so ranks must agree on
their number, and a step cannot begin anew on one rank.
"""

import contextlib
import logging
from collections.abc import Sequence
from functools import partial

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from trainer.engine.chunk_vectors import concatenate, filled, real_rows, scattered, split_like
from trainer.engine.grad_cache import ValueAndGrad, first_kept, shares_prefix
from trainer.engine.losses.task_loss import Vectors
from trainer.engine.memory_errors import is_out_of_memory
from trainer.model.embedder import Chunk

logger = logging.getLogger(__name__)


def surrogate(outputs: Vectors, gradients: Vectors) -> Tensor:
    """A scalar whose gradient with respect to outputs is the cached gradient."""
    products = [(o * g).sum() for o, g in zip(outputs, gradients, strict=True)]
    return torch.stack(products).sum()


class LayerGradCache:
    """One pass, layer by layer over all chunks; what is not kept is recomputed going back.

    ZeRO-3 gathers each layer once per direction and reduces each gradient once; memory is that of
    plain chunks plus one hidden state per token and layer, and the graphs that are kept. The
    engine's module must be a `LayerMajorEmbedder`.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, *, keep_graph_tokens: int) -> None:
        """Set up the pass.

        Args:
            engine: owns the parameters. At stage 3 with DeepSpeed's own linear function where
                graphs are kept, else they would hold gathered weights.
            keep_graph_tokens: padded tokens whose layers are not recomputed.
        """
        self.engine = engine
        self.keep_graph_tokens = keep_graph_tokens

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

        A layer that finds no room for the graph of a chunk recomputes it, as all others that come
        behind it in the step.
        """
        self.engine.train()
        outputs = self.engine(
            filled(chunks, self.engine.device),
            step_key=step_key,
            middle=middle,
            taught=taught,
            kept_from=first_kept(chunks, self.keep_graph_tokens),
            on_error=self._keep_less,
        )
        kept = real_rows(chunks)
        gradients, terms = value_and_grad(tuple(v.detach()[kept] for v in outputs))
        padded = tuple(scattered(g, kept, len(v)) for g, v in zip(gradients, outputs, strict=True))
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.backward(surrogate(outputs, padded), scale_wrt_gas=False)
        return terms

    def _keep_less(self, error: RuntimeError | MemoryError) -> None:
        """Where memory has run out, keep less in further steps, and say so; else raise it again."""
        if not is_out_of_memory(error):
            raise error
        logger.warning(
            "no room for the graphs of %s tokens in the layers of a step; layers are recomputed, "
            "and this rank keeps less in further steps",
            f"{self.keep_graph_tokens:,}",
        )
        self.keep_graph_tokens //= 2

    def embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """See `GradCache.embed`."""
        self.engine.eval()
        with torch.no_grad():
            outputs = self.engine(filled(chunks, self.engine.device), step_key=0, middle=False)
        self.engine.train()
        return outputs[0][real_rows(chunks)]

    def held(self) -> contextlib.AbstractContextManager[object]:
        """See `GradCache.held`; nothing to hold."""
        return contextlib.nullcontext()


class ChunkGradCache:
    """Two passes through the hooked engine, chunk by chunk: works for any backbone, least memory.

    Gathers and reduces for every chunk; the last ones, whose graphs are kept, go back together.
    The reference that the others are tested against.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, *, keep_graph_tokens: int) -> None:
        """Set up both passes.

        Args:
            engine: owns the parameters.
            keep_graph_tokens: padded tokens whose graph pass 1 keeps; the same on all ranks.
        """
        self.engine = engine
        self.keep_graph_tokens = keep_graph_tokens

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

        DeepSpeed adds up gradients where each forward is followed by its backward, or where one
        backward follows all forwards. So kept graphs go back in one backward, before the others.
        """
        self.engine.train()
        run = filled(chunks, self.engine.device)
        forward = partial(self._forward, step_key=step_key, middle=middle, taught=taught)
        kept_from = self._first_kept(run)
        outputs = []
        for i, chunk in enumerate(run):
            with torch.set_grad_enabled(i >= kept_from):
                outputs.append(forward(chunk))
        rows = real_rows(chunks)
        gradients, terms = value_and_grad(tuple(v.detach()[rows] for v in concatenate(outputs)))
        padded = tuple(scattered(g, rows, sum(c.num_texts for c in run)) for g in gradients)
        cached = split_like(run, padded)
        kept = list(zip(run, outputs, cached, strict=True))[kept_from:]
        for chunk, vectors, _ in kept:
            self._begin_backward_of(chunk, vectors, step_key)
        if kept:
            products = [surrogate(vectors, gradient) for _, vectors, gradient in kept]
            self._backward(torch.stack(products).sum(), is_last=kept_from == 0)
        for i in range(kept_from):
            self._backward(surrogate(forward(run[i]), cached[i]), is_last=i == kept_from - 1)
        return terms

    def _first_kept(self, run: Sequence[Chunk]) -> int:
        """Index of the first chunk that runs once: the last ones while they fit on every rank."""
        if len(run) == 1:
            return 0
        if not self.keep_graph_tokens:
            return len(run)
        index = torch.tensor(first_kept(run, self.keep_graph_tokens), device=self.engine.device)
        dist.all_reduce(index, op=dist.ReduceOp.MAX)
        return int(index)

    def _begin_backward_of(self, chunk: Chunk, vectors: Vectors, step_key: int) -> None:
        """Set what modules read of a chunk when its way back begins, where layers are recomputed.

        Autograd goes back through whatever ran last, first; chunks do not mix.
        """

        def begin(_: Tensor) -> None:
            self.engine.module.begin(chunk, step_key)

        for vector in vectors:
            if vector.requires_grad:
                vector.register_hook(begin)

    def _backward(self, loss: Tensor, *, is_last: bool) -> None:
        """One hooked backward."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss, scale_wrt_gas=False)

    def _forward(self, chunk: Chunk, *, step_key: int, middle: bool, taught: bool) -> Vectors:
        """One hooked forward."""
        self.engine.module.begin(chunk, step_key)
        vectors: Vectors = self.engine(chunk, middle=middle, taught=taught)
        return vectors

    def embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """See `GradCache.embed`."""
        self.engine.eval()
        with torch.no_grad():
            outputs = [self.engine(chunk) for chunk in filled(chunks, self.engine.device)]
        self.engine.train()
        return concatenate(outputs)[0][real_rows(chunks)]

    def held(self) -> contextlib.AbstractContextManager[object]:
        """See `GradCache.held`; nothing to hold."""
        return contextlib.nullcontext()
