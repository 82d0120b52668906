"""The last layer, run on the pooled tokens wherever that changes nothing.

With last-token pooling nothing reads what the last layer makes of the other tokens, beyond their
keys and values: the query and output maps, the scores and the MLP are needed for one token of each
text. Values and gradients stay the same; one layer of all saves most of its work and of the
activations that go with it. In training alone: outside of it, who calls the backbone gets all
tokens. It must not touch any other layer.

Letters: B texts, L tokens, T tokens in one row, H hidden size, A heads, D size of a head.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainer.model.dropout import DropoutKeys
from trainer.model.shared_prefix import SharedPrefix, attend_behind_prefix, spread

MLP_MAPS = ("gate_proj", "up_proj", "down_proj")
"""What a Llama-style MLP consists of, by which it is known."""
ATTENTION_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The same of an attention module."""
KERNEL = "sdpa_from_pooled"
"""The name under which transformers finds `attend_from_pooled`."""


@dataclass
class PooledTokens:
    """Where the pooled token of each text lies; set before each forward and each backward."""

    row_B: Tensor | None = None
    """Row of the activations [B], int64; None lets all tokens through."""
    column_B: Tensor | None = None
    """Place in that row [B], int64."""
    place_B: Tensor | None = None
    """Place in its text [B], int64."""
    text_B: Tensor | None = None
    """Key of each text [B], int64; keys dropout."""


class OnPooledTokens(nn.Module):
    """Mixin before a position-wise module's class: in training, zeros for what nothing reads."""

    pooled: PooledTokens
    keys: DropoutKeys

    def forward(self, hidden: Tensor) -> Tensor:
        """The module at the pooled tokens, 0 at all others, [B, L, ...] or [1, T, ...]."""
        row, column = self.pooled.row_B, self.pooled.column_B
        if row is None or not self.training:
            return super().forward(hidden)
        # [B, H] -> [B, 1, H]
        chosen = hidden[row, column][:, None]
        # of the packed form, dropout would expect a key for each token
        text_B, position_B = self.keys.text_B, self.keys.position_B
        self.keys.text_B, self.keys.position_B = self.pooled.text_B, None
        output = super().forward(chosen)
        self.keys.text_B, self.keys.position_B = text_B, position_B
        zeros = output.new_zeros(*hidden.shape[:2], output.shape[2])
        return zeros.index_put_((row, column), output[:, 0])


def attend_from_pooled(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Fused attention whose only queries are the pooled tokens.

    A pooled token is the last one of its text, so whatever the mask it sees the keys up to itself.

    Args:
        module: an attention module with `pooled`.
        query: of all tokens [B, A, L, D], or [1, A, T, D] where the first tokens are shared.
        key: [B, heads of keys, L, D].
        value: like `key`.
        attention_mask: of transformers' own fused attention, which runs where this does not fit:
            outside of training, packed rows, windows, attention dropout.
        settings: of transformers' own fused attention.

    Returns:
        The output [B, L, A, D] or [1, T, A, D], 0 for all other tokens, and None.
    """
    pooled: PooledTokens = module.pooled  # type: ignore[assignment]
    row, column, place = pooled.row_B, pooled.column_B, pooled.place_B
    prefix: SharedPrefix | None = getattr(module, "prefix", None)
    shared = prefix if prefix is not None and prefix.num_tokens else None
    special = settings.get("sliding_window") or settings.get("dropout")
    apart = row is not None and (shared is not None or len(row) == len(query))
    if row is None or place is None or not apart or special or not module.training:
        attend = sdpa_attention_forward if shared is None else attend_behind_prefix
        return attend(module, query, key, value, attention_mask, **settings)
    # [B, A, L, D] or, with shared tokens, [1, A, T, D] -> [B, A, 1, D]
    chosen = query[row, :, column][:, :, None]
    if shared is not None:
        key, value = spread(key, shared), spread(value, shared)
    seen_B11L = (torch.arange(key.shape[2], device=key.device) <= place[:, None])[:, None, None]
    output, _ = sdpa_attention_forward(module, chosen, key, value, seen_B11L, **settings)
    zeros = output.new_zeros(len(query), query.shape[2], *output.shape[2:])
    return zeros.index_put_((row, column), output[:, 0]), None


def narrow_last_layer(backbone: nn.Module, keys: DropoutKeys) -> PooledTokens | None:
    """Change the classes of the last layer's modules, in place; names of parameters stay.

    Args:
        backbone: a model without a head; peft may have wrapped its linear maps.
        keys: of the backbone's dropouts.

    Returns:
        Where to say which tokens are pooled; None where the backbone has no Llama-style layers.
    """
    layer = _last_layer(backbone)
    mlp: Any = getattr(layer, "mlp", None)
    if not _consists_of(mlp, MLP_MAPS):
        return None
    pooled = PooledTokens()
    narrowed = [mlp]
    attention: Any = getattr(layer, "self_attn", None)
    if _consists_of(attention, ATTENTION_MAPS):
        narrowed += [attention.q_proj, attention.o_proj]
        attention.pooled = pooled
        if attention.config._attn_implementation == "sdpa":
            AttentionInterface.register(KERNEL, attend_from_pooled)
            # its own, for the model's config says how all others attend
            attention.config = copy.copy(attention.config)
            attention.config._attn_implementation_internal = KERNEL
    for module in narrowed:
        kind = type(module)
        module.__class__ = type(f"Pooled{kind.__name__}", (OnPooledTokens, kind), {})
        module.pooled, module.keys = pooled, keys
    return pooled


def _last_layer(backbone: nn.Module) -> Any:
    """The last decoder layer, if there are any."""
    for module in backbone.modules():
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            return layers[-1]
    return None


def _consists_of(module: Any, parts: tuple[str, ...]) -> bool:
    """Whether a module has the maps by which it is known to be of Llama's kind."""
    return all(isinstance(getattr(module, part, None), nn.Module) for part in parts)
