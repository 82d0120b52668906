"""The first tokens of a chunk, run once where all its texts have them in common.

A causal decoder's states of an instruction do not depend on what follows it. So the texts of a
chunk can lie in one row, the common tokens first and then what each text has of its own: maps,
norms and the MLP see a common token once, and the own tokens of each text attend to the keys and
values of the common ones, whose gradients add up over the texts. Values and gradients are those of
the texts run one by one. It must not know batches or pooling.

Letters: P common tokens, B texts, O own tokens of a text with padding, L = P + O, T = P + B * O,
A heads, D size of a head.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainer.model.dropout import KeyedDropout

KERNEL = "sdpa_behind_prefix"
"""The name under which transformers finds `attend_behind_prefix`."""
COPY_SHARE = 8
"""A text's copy of a shared token's keys and values takes at most a token's memory over this."""


@dataclass
class SharedPrefix:
    """What of the running chunk is shared; set before each forward and each backward."""

    in_training: bool
    """Whether texts may share in training, too: dropout draws for each text anew."""
    num_tokens: int = 0
    """P; 0: nothing is shared, and texts lie in rows of their own."""
    num_texts: int = 0
    """B."""


def copied_tokens(num_texts: int, num_shared: int) -> int:
    """Tokens whose memory the copies of shared keys and values take, rounded up."""
    return -(-num_texts * num_shared // COPY_SHARE)


def in_one_row(rows_BL: Tensor, num_shared: int) -> Tensor:
    """Values of padded texts without the repeated ones [B, L] -> [T]."""
    return torch.cat([rows_BL[0, :num_shared], rows_BL[:, num_shared:].flatten()])


def in_own_rows(hidden_TH: Tensor, num_texts: int, num_shared: int) -> Tensor:
    """Token states of padded texts, the common ones repeated [T, H] -> [B, L, H]."""
    if not num_shared:
        return hidden_TH.view(num_texts, -1, hidden_TH.shape[-1])
    shared_PH, own = hidden_TH.split([num_shared, len(hidden_TH) - num_shared])
    own_BOH = own.view(num_texts, -1, hidden_TH.shape[-1])
    return torch.cat([shared_PH.expand(num_texts, -1, -1), own_BOH], dim=1)


def spread(states: Tensor, prefix: SharedPrefix) -> Tensor:
    """Keys or values of whole texts [1, A, T, D] -> [B, A, L, D]."""
    return _joined(*_parts(states, prefix))


def attend_behind_prefix(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Fused causal attention of texts whose first tokens lie in front of all of them.

    Args:
        module: an attention module with `prefix`.
        query: [1, A, T, D].
        key: [1, heads of keys, T, D].
        value: like `key`.
        attention_mask: of transformers' own fused attention, which runs where nothing is shared.
        settings: of transformers' own fused attention.

    Returns:
        The output [1, T, A, D], and None.
    """
    prefix: SharedPrefix = module.prefix  # type: ignore[assignment]
    if not prefix.num_tokens:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    (query, own_query), (key, own_key), (value, own_value) = (
        _parts(states, prefix) for states in (query, key, value)
    )
    shared, _ = sdpa_attention_forward(module, query, key, value, None, **settings)
    keys, values = _joined(key, own_key), _joined(value, own_value)
    place_L = torch.arange(keys.shape[2], device=keys.device)
    seen_OL = place_L <= place_L[prefix.num_tokens :, None]
    own = _attend(module, own_query, keys, values, seen_OL, settings)
    # [1, P, A, D] and [B, O, A, D] -> [1, T, A, D]
    return torch.cat([shared, own.flatten(0, 1)[None]], dim=1), None


def _parts(states: Tensor, prefix: SharedPrefix) -> tuple[Tensor, Tensor]:
    """The shared tokens [1, A, P, D] and the own ones of each text [B, A, O, D] of [1, A, T, D].

    Cut at once: a slice of its own would have a gradient of T tokens, mostly zeros.
    """
    num_own = states.shape[2] - prefix.num_tokens
    shared, own = states.split([prefix.num_tokens, num_own], dim=2)
    return shared, own[0].unflatten(1, (prefix.num_texts, -1)).transpose(0, 1)


def _joined(shared: Tensor, own: Tensor) -> Tensor:
    """Whole texts [B, A, L, D] of what `_parts` returns."""
    return torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=2)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen_OL: Tensor,
    settings: dict[str, Any],
) -> Tensor:
    """Fused attention under a mask of all texts; [B, A, O, D] -> [B, O, A, D]."""
    mask = seen_OL[None, None]
    if query.device.type != "cpu":
        output, _ = sdpa_attention_forward(module, query, key, value, mask, **settings)
        return output
    # the kernel of CPUs reads grouped heads under a mask, too, where transformers would copy them
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=settings.get("scaling"), enable_gqa=True
    ).transpose(1, 2)


def share_prefix(backbone: nn.Module, attentions: list[Any]) -> SharedPrefix:
    """Let attention read shared first tokens, in place; names of parameters stay.

    Args:
        backbone: a Llama-style decoder with full causal attention, run by transformers' sdpa.
        attentions: the attention module of each layer.

    Returns:
        Where to say what is shared.
    """
    AttentionInterface.register(KERNEL, attend_behind_prefix)
    prefix = SharedPrefix(in_training=not _draws(backbone, attentions))
    own_config: Any = None
    for attention in attentions:
        attention.prefix = prefix
        # the narrowed last layer has a function of its own, which knows of shared tokens
        if attention.config._attn_implementation == "sdpa":
            if own_config is None:
                # its own, for the model's config says which masks are made
                own_config = copy.copy(attention.config)
                own_config._attn_implementation_internal = KERNEL
            attention.config = own_config
    return prefix


def _draws(backbone: nn.Module, attentions: list[Any]) -> bool:
    """Whether training draws random numbers for each text."""
    return any(isinstance(module, KeyedDropout) for module in backbone.modules()) or any(
        getattr(attention, "attention_dropout", 0.0) for attention in attentions
    )
