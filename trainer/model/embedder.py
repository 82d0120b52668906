"""The module that DeepSpeed wraps: a backbone whose output is pooled, unit-norm vectors.

It must not know batches, losses or collectives.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.dropout import DropoutKeys, key_dropouts
from trainer.model.pooled_layer import PooledTokens, narrow_last_layer
from trainer.model.pooling import pool
from trainer.model.projection import Projection, WideLinear
from trainer.model.shared_prefix import (
    SharedPrefix,
    copied_tokens,
    in_one_row,
    in_own_rows,
)
from trainer.model.text_rotary import TextLengths, scale_by_text
from trainer.recipe.schema import Attention, Pooling

GENERATOR_SEEDS = 1 << 64
"""Seeds that torch's generators tell apart; it refuses greater ones."""


@dataclass(frozen=True)
class Chunk:
    """Some texts of a step, padded on the right to the longest of them."""

    input_ids: Tensor
    """Token ids [B, L], int64; padding may be any id."""
    lengths: Tensor
    """Real tokens of each text [B], int64."""
    prompt_lengths: Tensor
    """Leading tokens that a mean leaves out [B], int64."""
    text_keys: Tensor
    """Identity of each text within the step [B], int64; keys dropout."""
    random_seed: int
    """Seeds torch's generator before the forward, for randomness inside fused kernels; any size,
    of which the low 64 bits count."""
    has_padding: bool
    """Whether any text is shorter than L."""
    num_shared: int = 0
    """P, leading tokens that all texts have in common and that run once; less than each length."""

    @classmethod
    def placeholder(cls, device: torch.device) -> "Chunk":
        """A one-token text that stands in for an empty chunk; its gradient is always zero."""
        one = torch.ones(1, dtype=torch.int64, device=device)
        return cls(
            input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device),
            lengths=one,
            prompt_lengths=torch.zeros_like(one),
            text_keys=torch.zeros_like(one),
            random_seed=0,
            has_padding=False,
        )

    @property
    def num_texts(self) -> int:
        """B."""
        return self.input_ids.shape[0]

    @property
    def run_tokens(self) -> int:
        """T, tokens that pass through the model: B * L, or P + B * (L - P)."""
        num_texts, length = self.input_ids.shape
        return self.num_shared + num_texts * (length - self.num_shared)

    @property
    def padded_tokens(self) -> int:
        """What the chunk counts where memory is measured in tokens: B * L, or a little over T."""
        return self.run_tokens + copied_tokens(self.num_texts, self.num_shared)

    @property
    def run_ids(self) -> Tensor:
        """Token ids in the order in which they run [T], int64."""
        if not self.num_shared:
            return self.input_ids.flatten()
        return in_one_row(self.input_ids, self.num_shared)

    @property
    def run_positions(self) -> Tensor:
        """Place in its text of each token that runs [T], int64."""
        position_L = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return in_one_row(position_L.expand(self.input_ids.shape), self.num_shared)

    @property
    def first_places(self) -> Tensor:
        """Where the first token of each text runs [B], int64, 0..T-1."""
        if self.num_shared:
            return torch.zeros_like(self.lengths)
        return self.input_ids.shape[1] * torch.arange(self.num_texts, device=self.lengths.device)

    @property
    def last_places(self) -> Tensor:
        """Where the last token of each text runs [B], int64, 0..T-1."""
        own_length = self.input_ids.shape[1] - self.num_shared
        start_B = own_length * torch.arange(self.num_texts, device=self.lengths.device)
        return start_B + self.lengths - 1


class Embedder(nn.Module):
    """A transformers backbone with pooling and, where asked, a dense layer behind it.

    Vectors are float32 with norm 1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        pooling: Pooling,
        attention: Attention,
        projection: Projection | None = None,
        teacher_layer: WideLinear | None = None,
        packed: bool = False,
    ) -> None:
        """Wrap a backbone.

        Args:
            backbone: a transformers model without a head.
            pooling: how token states become a vector.
            attention: `causal` or `bidirectional`.
            projection: the dense layer between pooling and unit norm.
            teacher_layer: from vectors to a teacher's size, for training alone.
            packed: run a chunk as one row of texts end to end, without padding. Needs a decoder
                whose kernel keeps the texts apart by their position ids: flash attention.
        """
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.teacher_layer = teacher_layer
        self.packed = packed
        self.pooling: Pooling = pooling
        self.attention: Attention = attention
        self.dropout_keys: DropoutKeys = key_dropouts(backbone)
        self.text_lengths: TextLengths | None = scale_by_text(backbone)
        self.pooled_tokens: PooledTokens | None = (
            narrow_last_layer(backbone, self.dropout_keys) if pooling == "last" else None
        )
        self.prefix: SharedPrefix | None = None
        """Where to say what texts share; None where they cannot, or as long as none should."""

    @property
    def config(self) -> Any:
        """The backbone's config; DeepSpeed and peft look for it on the wrapped module."""
        return self.backbone.config

    @property
    def vector_size(self) -> int:
        """D, elements of a vector."""
        return self.state_size if self.projection is None else self.projection.size

    @property
    def state_size(self) -> int:
        """H, elements of a token's state and of a vector of the middle layer."""
        return int(self.config.hidden_size)

    def table_sizes(self, *, middle: bool, taught: bool) -> tuple[int, ...]:
        """Elements of the vectors in each tensor that `forward` returns."""
        sizes = [self.vector_size, *([self.state_size] if middle else [])]
        if taught:
            assert self.teacher_layer is not None, "no layer brings vectors to a teacher's size"
            sizes.append(self.teacher_layer.out_features)
        return tuple(sizes)

    def mask_for(self, chunk: Chunk) -> Tensor | None:
        """Attention mask [B, L], int64, or None where the fused kernel needs none.

        A causal token never sees what follows it, so right padding cannot reach real tokens.
        """
        if self.attention == "causal" or not chunk.has_padding:
            return None
        return self._real(chunk).long()

    def begin(self, chunk: Chunk, step_key: int, *, depth: int = 0) -> None:
        """Set what modules read of a chunk; before each forward and each backward of it.

        That is everything random, and which tokens are pooled.

        Args:
            chunk: the texts about to run.
            step_key: seed and step, mixed.
            depth: number of the layer, where layers are run one by one.
        """
        self.dropout_keys.text_B = chunk.text_keys
        self.dropout_keys.position_B = None
        if self.packed:
            # one key and one position per token
            real_BL = self._real(chunk)
            self.dropout_keys.text_B = chunk.text_keys.repeat_interleave(chunk.lengths)
            self.dropout_keys.position_B = real_BL.nonzero()[:, 1]
        self.dropout_keys.step_key = step_key
        seed = (chunk.random_seed + depth) % GENERATOR_SEEDS
        if chunk.lengths.is_cpu:
            # torch.manual_seed writes down the stack for each kind of GPU that is not in use: 3 ms
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        self._point_at(chunk)

    def _point_at(self, chunk: Chunk) -> None:
        """Say how long the texts are and where their pooled tokens lie."""
        if self.text_lengths is not None:
            self.text_lengths.lengths_B, self.text_lengths.packed = chunk.lengths, self.packed
        if self.prefix is not None:
            self.prefix.num_tokens, self.prefix.num_texts = chunk.num_shared, chunk.num_texts
        pooled = self.pooled_tokens
        if pooled is None:
            return
        if self.packed or chunk.num_shared:
            # all texts are in one row
            pooled.column_B = chunk.lengths.cumsum(0) - 1 if self.packed else chunk.last_places
            pooled.row_B = torch.zeros_like(pooled.column_B)
        else:
            pooled.column_B = chunk.lengths - 1
            pooled.row_B = torch.arange(chunk.num_texts, device=chunk.lengths.device)
        pooled.place_B = chunk.lengths - 1
        pooled.text_B = chunk.text_keys

    def forward(
        self, chunk: Chunk, *, middle: bool = False, taught: bool = False
    ) -> tuple[Tensor, ...]:
        """Embed a chunk.

        Args:
            chunk: B texts.
            middle: also pool `hidden_states[num_states // 2]`, before any final norm and without
                the projection.
            taught: also bring the vectors to a teacher's size, S.

        Returns:
            (last [B, D],), then middle [B, H] and taught [B, S] where asked for, float32, norm 1.
        Collective: under ZeRO-3 a wrapped module's hooks gather parameters; a replica has none.
        """
        self._point_at(chunk)
        output = self.backbone(**self._inputs(chunk), output_hidden_states=middle)
        last = self.to_vectors(self._pooled(output.last_hidden_state, chunk))
        if not middle:
            return self.tables(last, None, taught=taught)
        states = output.hidden_states
        pooled_BH = self._pooled(states[len(states) // 2], chunk)
        return self.tables(last, unit(pooled_BH), taught=taught)

    def _inputs(self, chunk: Chunk) -> dict[str, Any]:
        """Arguments of the backbone."""
        if chunk.num_shared:
            return self._shared_inputs(chunk)
        if self.packed:
            return self._packed_inputs(chunk)
        return {"input_ids": chunk.input_ids, "attention_mask": self.mask_for(chunk)}

    def _shared_inputs(self, chunk: Chunk) -> dict[str, Any]:
        """Arguments of the backbone for one row of T tokens, the shared ones first.

        The mask is not read: one of four dimensions keeps transformers from making one of T * T.
        """
        assert self.prefix is not None, "texts share tokens in a model that cannot"
        return {
            "input_ids": chunk.run_ids[None],
            "position_ids": chunk.run_positions[None],
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=chunk.lengths.device),
        }

    def _packed_inputs(self, chunk: Chunk) -> dict[str, Any]:
        """Arguments of the backbone for one row of T real tokens, positions starting anew.

        The boundaries are given as well, which spares flash attention a look at the positions.
        """
        real_BL = self._real(chunk)
        starts = nn.functional.pad(chunk.lengths.cumsum(0, dtype=torch.int32), (1, 0))
        longest = chunk.input_ids.shape[1]
        return {
            "input_ids": chunk.input_ids[real_BL][None],
            "position_ids": real_BL.nonzero()[:, 1][None],
            "cu_seq_lens_q": starts,
            "cu_seq_lens_k": starts,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def _pooled(self, hidden: Tensor, chunk: Chunk) -> Tensor:
        """Pooled states [B, H], float32, of token states as the backbone gives them."""
        if chunk.num_shared and self.pooling == "last":
            return hidden[0, chunk.last_places].float()
        return self.pool(self._unpacked(hidden, chunk), chunk)

    def _unpacked(self, hidden: Tensor, chunk: Chunk) -> Tensor:
        """Token states as [B, L, H]; packed ones and those behind shared ones as [1, T, H]."""
        if chunk.num_shared:
            return in_own_rows(hidden[0], chunk.num_texts, chunk.num_shared)
        if not self.packed:
            return hidden
        padded_BLH = hidden.new_zeros(*chunk.input_ids.shape, hidden.shape[-1])
        return padded_BLH.masked_scatter(self._real(chunk)[:, :, None], hidden)

    def _real(self, chunk: Chunk) -> Tensor:
        """Which places hold tokens, not padding [B, L], bool."""
        position_L = torch.arange(chunk.input_ids.shape[1], device=chunk.lengths.device)
        return position_L < chunk.lengths[:, None]

    def pool(self, hidden_BLH: Tensor, chunk: Chunk) -> Tensor:
        """Pool token states [B, L, H] to [B, H], float32."""
        return pool(hidden_BLH, chunk.lengths, chunk.prompt_lengths, self.pooling)

    def to_vectors(self, pooled_BH: Tensor) -> Tensor:
        """Vectors [B, D] of norm 1 from pooled states of the last layer [B, H], float32."""
        return unit(pooled_BH if self.projection is None else self.projection(pooled_BH))

    def tables(self, last: Tensor, middle: Tensor | None, *, taught: bool) -> tuple[Tensor, ...]:
        """What `forward` returns, from vectors of the last layer [n, D] and the middle one [n, H].

        The teacher's layer runs in every step of training, over no vectors where none is asked for:
        ZeRO-3 keeps an old gradient of a parameter that a backward pass does not reach.
        """
        found = [last] if middle is None else [last, middle]
        if self.teacher_layer is None or not (taught or self.training):
            return tuple(found)
        brought = self.teacher_layer(last if taught else last[:0])
        if taught:
            return *found, unit(brought)
        # 0, and connected to the layer
        return last + brought.sum(), *found[1:]


def unit(vectors: Tensor) -> Tensor:
    """Vectors [n, D] scaled to norm 1."""
    return nn.functional.normalize(vectors, dim=-1)
