"""What a chunk of texts keeps in memory, found by running the model without numbers.

Tensors on the meta device have sizes and no storage, so a forward and a backward of any model take
a second or two and show exactly which tensors live at once: what each module saves, temporary
results, and gradients on their way. It must not load weights.

Letters: B texts, L tokens, A heads, D size of a head.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface

from trainer.model.embedder import Chunk, Embedder
from trainer.model.layer_major import decoder_of

META = torch.device("meta")
KERNEL = "sizes_of_fused_attention"
"""The name under which transformers finds `fused_attention`."""


@dataclass(frozen=True, kw_only=True)
class ChunkMemory:
    """Bytes that one chunk needs besides parameters and their gradients."""

    graph: int
    """After the forward: what the backward will read."""
    peak: int
    """At most during forward and backward, with gradients to add to."""


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are alive; only those made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note its results."""
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            self._note(leaf, made_here=False)
        results = func(*args, **kwargs)
        for leaf in tree_leaves(results):
            self._note(leaf, made_here=True)
        return results

    def _note(self, leaf: Any, *, made_here: bool) -> None:
        """Count a tensor's storage until it is freed; parameters and the like count nothing."""
        if not isinstance(leaf, Tensor):
            return
        storage = leaf.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if made_here else 0
        self._known[key] = weakref.ref(storage, partial(self._forget, key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int, _: Any) -> None:
        self._known.pop(key, None)
        self.now -= size


def measure_chunk(embedder: Embedder, *, num_texts: int, length: int, middle: bool) -> ChunkMemory:
    """Sizes of a forward and a backward of texts of one length through the whole model.

    Args:
        embedder: on the meta device, in training mode.
        num_texts: B.
        length: L.
        middle: whether the middle layer is pooled too.
    """
    chunk = _chunk(num_texts, length)

    def forward() -> tuple[Tensor, ...]:
        embedder.begin(chunk, 0)
        return embedder(chunk, middle=middle)

    return _measure(forward, embedder)


def measure_layer(embedder: Embedder, *, num_texts: int, length: int) -> ChunkMemory:
    """The same for the first layer of a Llama-style decoder alone, its input and output included.

    Args:
        embedder: on the meta device, in training mode, without checkpointing.
        num_texts: B.
        length: L.
    """
    decoder: Any = decoder_of(embedder.backbone)
    layer, hidden_size = decoder.layers[0], decoder.config.hidden_size
    dtype = decoder.embed_tokens.weight.dtype
    places = torch.zeros(1, length, dtype=torch.int64, device=META)
    rotary = decoder.rotary_emb(torch.zeros(1, 1, hidden_size, dtype=dtype, device=META), places)

    def forward() -> tuple[Tensor, ...]:
        embedder.begin(_chunk(num_texts, length), 0)
        hidden = torch.empty(num_texts, length, hidden_size, dtype=dtype, device=META)
        hidden.requires_grad_()
        return (layer(hidden, attention_mask=None, position_embeddings=rotary),)

    return _measure(forward, layer)


def _chunk(num_texts: int, length: int) -> Chunk:
    """Texts of one length, without ids."""
    numbers = torch.zeros(num_texts, dtype=torch.int64, device=META)
    return Chunk(
        input_ids=torch.zeros(num_texts, length, dtype=torch.int64, device=META),
        lengths=numbers,
        prompt_lengths=numbers,
        text_keys=numbers,
        random_seed=0,
        # a mask is given, else transformers would look for packed texts in numbers that are absent
        has_padding=True,
    )


def _measure(forward: Callable[[], tuple[Tensor, ...]], module: nn.Module) -> ChunkMemory:
    """Run forward and backward where each trained parameter has a float32 gradient."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad_dtype = torch.float32
            parameter.grad = torch.empty_like(parameter, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]), LiveBytes() as live:
        outputs = forward()
        graph = live.now
        torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
    return ChunkMemory(graph=graph, peak=live.peak)


class _Fused(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: its inputs, its output, a number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # [B, A, L, D] laid out as [B, L, A, D]
        output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        sums = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def fused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it; [B, A, L, D] -> [B, L, A, D]."""
    output: Tensor = _Fused.apply(query, key, value)
    return output, None


def _no_mask(*args: Any, **settings: Any) -> None:
    """Fused kernels build no mask for texts without padding."""


def register() -> str:
    """Make `fused_attention` known to transformers; returns its name."""
    AttentionInterface.register(KERNEL, fused_attention)
    AttentionMaskInterface.register(KERNEL, _no_mask)
    return KERNEL
