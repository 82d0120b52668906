"""Whether the texts of a chunk can share their first tokens in a model.

It must not change a model that cannot.
"""

import logging
from typing import Any

from torch import nn

from trainer.model.embedder import Embedder
from trainer.model.layer_major import decoder_of, supports_layer_major
from trainer.model.shared_prefix import share_prefix

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
"""Modules in which a token meets its neighbours, who behind shared tokens may be another text's."""

logger = logging.getLogger(__name__)


def share_where_exact(embedder: Embedder) -> None:
    """Let texts share their first tokens, in place, where that changes nothing but the work.

    What is decided is logged.

    Args:
        embedder: whole or partitioned, before it is copied or wrapped.
    """
    against = reason_against(embedder)
    if against is not None:
        logger.info("engine.share_prefix = auto: off, as %s", against)
        return
    embedder.prefix = share_prefix(embedder.backbone, attentions_of(embedder.backbone))
    if embedder.prefix.in_training:
        logger.info("engine.share_prefix = auto: on; common first tokens of texts run once")
    else:
        logger.info(
            "engine.share_prefix = auto: on in evaluation alone, as dropout draws for each text of "
            "a step anew"
        )


def attentions_of(backbone: nn.Module) -> list[Any]:
    """The attention module of each decoder layer; None for a layer that has none by that name."""
    return [getattr(layer, "self_attn", None) for layer in decoder_of(backbone).layers]


def reason_against(embedder: Embedder) -> str | None:
    """Why the texts of a chunk cannot share their first tokens, in words; None where they can."""
    backbone = embedder.backbone
    if embedder.attention != "causal":
        return "with bidirectional attention first tokens see what follows them"
    if not supports_layer_major(backbone):
        name = type(decoder_of(backbone)).__name__
        return f"{name} is no Llama-style decoder with full attention in every layer"
    if any(isinstance(module, CONVOLUTIONS) for module in backbone.modules()):
        return "tokens meet outside of attention, in convolutions"
    if embedder.text_lengths is not None:
        return "positions are scaled by the length of a text"
    decoder = decoder_of(backbone)
    kernel = decoder.config._attn_implementation
    if kernel != "sdpa":
        return f"the attention kernel is {kernel}; with sdpa it is on"
    if not decoder._supports_attention_backend or not all(
        isinstance(getattr(attention, "config", None), type(decoder.config))
        for attention in attentions_of(backbone)
    ):
        return f"the attention of {type(decoder).__name__} cannot be replaced"
    return None
