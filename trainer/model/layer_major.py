"""The embedder run layer by layer over all chunks of a step, for ZeRO-3 with little memory.

Each decoder layer sees one flat tensor of all tokens, so DeepSpeed fetches its parameters once per
direction and reduces its gradients once, however the tokens are cut into chunks. Parameter names
stay those of the plain embedder: layers change class, not place.

Letters: T tokens of all chunks that run, H hidden size, n texts of all chunks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model.embedder import Chunk, Embedder, unit
from trainer.model.shared_prefix import in_own_rows
from trainer.recipe.schema import MEANS

OnError = Callable[[RuntimeError | MemoryError], None]
"""Called when a graph finds no room: raises again what is no want of memory."""


@dataclass
class KeptGraphs:
    """The last chunks of a step, whose layers keep their activations while there is memory."""

    first: int
    """Index of the first of them."""
    on_error: OnError
    """Whom to tell that there is none."""

    def give_up(self, error: RuntimeError | MemoryError, num_chunks: int) -> None:
        """Keep nothing from here on, or raise the error again."""
        self.on_error(error)
        self.first = num_chunks


def raise_again(error: RuntimeError | MemoryError) -> None:
    """An `OnError` that makes do with nothing less."""
    raise error


@dataclass(frozen=True)
class ChunkRun:
    """How a flat tensor of tokens falls into chunks; passed beside it through every layer."""

    chunks: Sequence[Chunk]
    """In the order of their tokens."""
    masks: Sequence[Any]
    """Attention mask of each chunk as its layers expect it."""
    rotary: Sequence[tuple[Tensor, Tensor]]
    """Cosines and sines of each chunk, each [1, L, R], or [B, L, R] where texts differ."""
    embedder: "LayerMajorEmbedder"
    """Sets the random keys of a chunk."""
    step_key: int
    """Seed and step, mixed."""
    kept: "KeptGraphs"
    """Which of them are not recomputed."""

    @property
    def sizes(self) -> list[int]:
        """Tokens of each chunk that pass through the layers."""
        return [chunk.run_tokens for chunk in self.chunks]


class ChunkwiseLayer(nn.Module):
    """Mixin before a decoder layer's class: forward over flat tokens, chunk by chunk."""

    def forward(self, hidden_TH: Tensor, run: ChunkRun, depth: int) -> Tensor:
        """Apply layer number `depth` to each chunk [T, H] -> [T, H]."""
        parts = [
            self._kept_or_not(part, run, i, depth)
            for i, part in enumerate(hidden_TH.split(run.sizes))
        ]
        return torch.cat(parts)

    def _kept_or_not(self, part_TH: Tensor, run: ChunkRun, index: int, depth: int) -> Tensor:
        """The layer on one chunk, with its graph or under checkpointing.

        Nothing here is a collective, so a rank that has no room for a graph can do without it.
        """
        if not torch.is_grad_enabled():
            return self._one(part_TH, run, index, depth)
        if index >= run.kept.first:
            try:
                return self._one(part_TH, run, index, depth)
            except (RuntimeError, MemoryError) as error:
                run.kept.give_up(error, len(run.chunks))
        part: Tensor = checkpoint(
            self._one, part_TH, run, index, depth, use_reentrant=False, preserve_rng_state=False
        )
        return part

    def _one(self, part_TH: Tensor, run: ChunkRun, index: int, depth: int) -> Tensor:
        """The layer on one chunk; called again with the same randomness when recomputed."""
        chunk = run.chunks[index]
        num_rows = 1 if chunk.num_shared else chunk.num_texts
        run.embedder.begin(chunk, run.step_key, depth=depth)
        # [B * L, H] -> [B, L, H], or [T, H] -> [1, T, H] where texts share tokens
        output = super().forward(
            part_TH.view(num_rows, -1, part_TH.shape[-1]),
            attention_mask=run.masks[index],
            position_embeddings=run.rotary[index],
        )
        return output.reshape(part_TH.shape)


class LayerMajorEmbedder(Embedder):
    """An embedder whose forward takes all chunks of a step; see the module's docstring."""

    @classmethod
    def adopt(cls, embedder: Embedder) -> "LayerMajorEmbedder":
        """Turn an embedder into a layer-major one in place; before `deepspeed.initialize`.

        Args:
            embedder: one for which `supports_layer_major` holds.
        """
        layers = decoder_of(embedder.backbone).layers
        for layer in layers:
            layer.gradient_checkpointing = False
            layer.__class__ = type(
                f"Chunkwise{type(layer).__name__}", (ChunkwiseLayer, type(layer)), {}
            )
        embedder.__class__ = cls
        embedder.packed = False  # layers cut the flat tokens into padded rows
        set_z3_leaf_modules(embedder, [ChunkwiseLayer])
        return embedder  # type: ignore[return-value]

    def forward(  # type: ignore[override]
        self,
        chunks: Sequence[Chunk],
        *,
        step_key: int,
        middle: bool,
        taught: bool = False,
        kept_from: int | None = None,
        on_error: OnError = raise_again,
    ) -> tuple[Tensor, ...]:
        """Embed all chunks.

        Args:
            chunks: at least one, none empty.
            step_key: seed and step, mixed.
            middle: also pool `hidden_states[num_states // 2]`, before any final norm and without
                the projection.
            taught: also bring the vectors to a teacher's size, S.
            kept_from: index of the first chunk whose layers are not recomputed; None: all are.
            on_error: told where there is no memory for that; its layers are recomputed then.

        Returns:
            (last [n, D],), then middle [n, H] and taught [n, S] where asked for, float32, norm 1.
        Collective: yes under ZeRO-3, with the same calls whatever the chunks.
        """
        decoder = decoder_of(self.backbone)
        flat_T = torch.cat([chunk.run_ids for chunk in chunks])
        hidden_TH = decoder.embed_tokens(flat_T)
        if torch.is_grad_enabled() and not hidden_TH.requires_grad:
            # with frozen embeddings the leaf modules' backward hooks would fire too early
            hidden_TH.requires_grad_()
        kept = KeptGraphs(len(chunks) if kept_from is None else kept_from, on_error)
        run = self._run(chunks, hidden_TH, step_key, kept)
        middle_of = (len(decoder.layers) + 1) // 2
        middle_TH = hidden_TH
        for i, layer in enumerate(decoder.layers):
            hidden_TH = layer(hidden_TH, run, i)
            if i + 1 == middle_of:
                middle_TH = hidden_TH
        last = self.to_vectors(self._pool_flat(hidden_TH, run, norm=decoder.norm))
        pooled_nH = self._pool_flat(middle_TH, run, norm=None) if middle else None
        return self.tables(last, None if pooled_nH is None else unit(pooled_nH), taught=taught)

    def _run(
        self, chunks: Sequence[Chunk], hidden_TH: Tensor, step_key: int, kept: KeptGraphs
    ) -> ChunkRun:
        """Masks and rotary tables of a step."""
        return ChunkRun(
            chunks=chunks,
            masks=[self._layer_mask(chunk, hidden_TH) for chunk in chunks],
            rotary=self._rotary(chunks, hidden_TH),
            embedder=self,
            step_key=step_key,
            kept=kept,
        )

    def _rotary(self, chunks: Sequence[Chunk], hidden_TH: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cosines and sines of each chunk; DeepSpeed sees one call, however many chunks there are.

        Where they depend on the lengths of texts, its hooks, which have no parameters to gather
        there, are passed by.
        """
        module = decoder_of(self.backbone).rotary_emb
        lengths = [chunk.input_ids.shape[1] for chunk in chunks]
        position_1L = torch.arange(max(lengths), device=hidden_TH.device)[None]
        if self.text_lengths is None:
            cos, sin = module(hidden_TH[None, :1], position_1L)
            return [
                (cos[:, chunk.run_positions], sin[:, chunk.run_positions])
                if chunk.num_shared
                else (cos[:, :length], sin[:, :length])
                for chunk, length in zip(chunks, lengths, strict=True)
            ]
        tables = []
        for chunk, length in zip(chunks, lengths, strict=True):
            self._point_at(chunk)
            tables.append(module.forward(hidden_TH[None, :1], position_1L[:, :length]))
        return tables

    def _layer_mask(self, chunk: Chunk, hidden_TH: Tensor) -> Any:
        """The mask that transformers would build for full attention over this chunk.

        Where texts share tokens, attention makes its own.
        """
        from transformers.masking_utils import create_causal_mask

        if chunk.num_shared:
            return None
        num_texts, length = chunk.input_ids.shape
        mask: Any = create_causal_mask(
            config=decoder_of(self.backbone).config,
            inputs_embeds=hidden_TH.new_empty(num_texts, length, 1),
            attention_mask=self.mask_for(chunk),
            past_key_values=None,
        )
        return mask

    def _pool_flat(self, hidden_TH: Tensor, run: ChunkRun, *, norm: nn.Module | None) -> Tensor:
        """Pool flat tokens [T, H] to [n, H], float32; the norm is called once."""
        if self.pooling in MEANS:
            normed_TH = hidden_TH if norm is None else norm(hidden_TH)
            parts = normed_TH.split(run.sizes)
            return torch.cat(
                [
                    self.pool(in_own_rows(part, chunk.num_texts, chunk.num_shared), chunk)
                    for part, chunk in zip(parts, run.chunks, strict=True)
                ]
            )
        rows_nH = hidden_TH[self._token_of_each_text(run)]
        normed_nH: Tensor = rows_nH if norm is None else norm(rows_nH)
        return normed_nH.float()

    def _token_of_each_text(self, run: ChunkRun) -> Tensor:
        """Flat index of the token that stands for each text [n], int64; not for a mean."""
        rows, start = [], 0
        for chunk in run.chunks:
            rows.append(
                start + (chunk.last_places if self.pooling == "last" else chunk.first_places)
            )
            start += chunk.run_tokens
        return torch.cat(rows)


def decoder_of(backbone: nn.Module) -> Any:
    """The transformers decoder inside a backbone that peft may have wrapped."""
    inner = getattr(backbone, "base_model", None)
    return inner.model if inner is not None and hasattr(backbone, "peft_config") else backbone


def supports_layer_major(backbone: nn.Module) -> bool:
    """Whether a backbone has the parts of a Llama-style decoder with full attention in each layer.

    Checked by structure: embedding, layers that take rotary tables, final norm, no active window.
    """
    decoder = decoder_of(backbone)
    parts = ("embed_tokens", "layers", "norm", "rotary_emb")
    if not all(isinstance(getattr(decoder, part, None), nn.Module) for part in parts):
        return False
    kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    windowed = kinds != {"full_attention"} or (
        not hasattr(decoder.config, "layer_types")
        and getattr(decoder.config, "sliding_window", None) is not None
    )
    return not windowed and len({type(layer) for layer in decoder.layers}) == 1
